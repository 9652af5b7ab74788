"""The registry API over real sockets: what only a connection can show."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from p2pregistry.digest import Digest
from p2pregistry.testing.http import PATIENCE, Answer, raw_client, request, running
from p2pregistry.testing.tracker_api import AUTHORIZATION, registry

UPLOADS = "/v2/acme/api/blobs/uploads/"


async def ask(url: str, method: str, target: str, body: bytes | None = None) -> Answer:
    return await request(url, method, target, (AUTHORIZATION,), body)


async def test_a_client_that_goes_away_in_a_patch_finds_what_arrived(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    async with registry(tmp_path) as api, running(api.api) as url:
        location = (await ask(url, "POST", UPLOADS, b"")).headers["location"]
        async with await raw_client(url) as client:
            lines = [f"PATCH {location} HTTP/1.1", "Host: x", ": ".join(AUTHORIZATION), f"Content-Length: {len(data)}"]
            await client.send("\r\n".join([*lines, "", ""]).encode() + data[:2_000_000])
            await client.stream.send_eof()
            assert (await client.response("PATCH")).status == 400
        with trio.fail_after(PATIENCE):
            while (await ask(url, "GET", location)).headers["range"] != "0-1999999":
                await trio.lowlevel.checkpoint()
        assert (await ask(url, "PATCH", location, data[2_000_000:])).status == 202
        assert (await ask(url, "PUT", f"{location}?digest={Digest.of(data)}", b"")).status == 201
        assert (await ask(url, "GET", f"/v2/acme/api/blobs/{Digest.of(data)}")).body == data


async def test_a_chunked_body_and_expect_continue(tmp_path: Path) -> None:
    async with registry(tmp_path) as api, running(api.api) as url:
        location = (await ask(url, "POST", UPLOADS, b"")).headers["location"]
        async with await raw_client(url) as client:
            lines = [f"PATCH {location} HTTP/1.1", "Host: x", ": ".join(AUTHORIZATION), "Expect: 100-continue"]
            await client.send("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
            assert b" 100 " in await client.receive_until(b"\r\n\r\n")
            for piece in (b"hello ", b"world"):
                await client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            await client.send(b"0\r\n\r\n")
            answer = await client.response("PATCH")
        assert (answer.status, answer.headers["range"]) == (202, "0-10")
        assert (await ask(url, "PUT", f"{location}?digest={Digest.of(b'hello world')}", b"")).status == 201


async def test_answers_to_head_have_the_length_and_no_body(tmp_path: Path) -> None:
    async with registry(tmp_path) as api, running(api.api) as url:
        digest, body = await api.push_image("acme/api", "1", b"layer")
        for target, size in ((f"manifests/{digest}", len(body)), (f"blobs/{Digest.of(b'layer')}", 5)):
            answer = await ask(url, "HEAD", f"/v2/acme/api/{target}")
            assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(size), b"")
        missing = await ask(url, "HEAD", "/v2/acme/api/manifests/none")
        assert (missing.status, missing.body) == (404, b"")


async def test_a_manifest_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with registry(tmp_path, manifest_limit=1000) as api, running(api.api) as url:
        answer = await ask(url, "PUT", "/v2/acme/api/manifests/1", b" " * 2000)
        assert answer.status == 413
        assert b"MANIFEST_INVALID" in answer.body
