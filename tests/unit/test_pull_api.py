"""The pull API of a node: what it answers to good and bad requests, and what its cache lets go of."""

from __future__ import annotations

import email.parser
import email.policy
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest
import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import BlobSlice, Request, Stream
from p2pregistry.store.base import FilePart
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from p2pregistry.testing.http import raw_client, request
from p2pregistry.testing.node_stack import NAME, NodeStack, Origin, node_stack, origin

REPO = "acme/api"
LAYER = random.Random(1).randbytes((1 << 20) + 100)
DIGEST = Digest.of(LAYER)
BLOB = f"/v2/{REPO}/blobs/{DIGEST}"
TAG = f"/v2/{REPO}/manifests/1"
HEX = "0" * 64


@asynccontextmanager
async def both(root: Path, **options: object) -> AsyncIterator[tuple[Origin, NodeStack]]:
    """A tracker with one image and a node that has seen its manifest."""
    (root / "tracker").mkdir()
    async with origin(root / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", LAYER, b"")
        async with node_stack(root / "node", tracker=tracker.url, **options) as node:  # type: ignore[arg-type]
            assert (await call(node.pull, "GET", TAG)).status == 200
            yield tracker, node


async def get(node: NodeStack, target: str, *headers: tuple[str, str]) -> Answer:
    with trio.fail_after(20):
        return await call(node.pull, "GET", target, headers=headers)


# -------------------------------------------------------------------------------------------------------------- answers


async def test_a_blob_cold_and_warm(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, node):
        head = await call(node.pull, "HEAD", BLOB)
        assert (head.status, head.headers["content-length"]) == (200, str(len(LAYER)))
        assert node.fetched == {}  # from the descriptor
        for _ in range(2):
            answer = await get(node, BLOB)
            assert (answer.status, answer.body) == (200, LAYER)
            assert answer.headers["docker-content-digest"] == str(DIGEST)
            assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
            await node.landed()
        assert node.fetched == {"tracker": len(LAYER)}
        empty = await get(node, f"/v2/{REPO}/blobs/{Digest.of(b'')}")
        assert (empty.status, empty.body) == (200, b"")


@pytest.mark.parametrize("warm", [False, True])
async def test_ranges(tmp_path: Path, warm: bool) -> None:
    async with both(tmp_path) as (_, node):
        if warm:
            await get(node, BLOB)
            await node.landed()
        for text, part in (
            ("0-9", slice(0, 10)),
            ("1048570-1048580", slice(1048570, 1048581)),
            ("-5", slice(-5, None)),
        ):
            answer = await get(node, BLOB, ("Range", f"bytes={text}"))
            assert (answer.status, answer.body) == (206, LAYER[part])
            await node.landed()
        for ignored in ("bytes=0-1,6-5", "pages=1", "bytes=x"):
            assert (await get(node, BLOB, ("Range", ignored))).status == 200
        refused = await get(node, BLOB, ("Range", f"bytes={len(LAYER)}-"))
        assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{len(LAYER)}")
        assert refused.code == "SIZE_INVALID"


def parts_of(answer: Answer) -> list[tuple[str, bytes]]:
    """Content-Range and bytes of each part."""
    message = email.parser.BytesParser(EmailMessage, policy=email.policy.HTTP).parsebytes(
        f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode() + answer.body
    )
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    return [(str(part["content-range"]), part.get_payload(decode=True)) for part in message.iter_parts()]  # type: ignore[misc]


SEVERAL = "bytes=1048570-1048580,0-1,100-200,-5"
ASKED = [(1048570, 1048581), (0, 2), (100, 201), (len(LAYER) - 5, len(LAYER))]


@pytest.mark.parametrize("warm", [False, True])
async def test_several_ranges(tmp_path: Path, warm: bool) -> None:
    async with both(tmp_path) as (_, node):
        head = await call(node.pull, "HEAD", BLOB, headers=(("Range", SEVERAL),))
        assert node.fetched == {}
        if warm:
            await get(node, BLOB)
            await node.landed()
        answer = await get(node, BLOB, ("Range", SEVERAL))
        assert answer.status == head.status == 206
        assert str(len(answer.body)) == head.headers["content-length"]
        assert "content-range" not in answer.headers
        assert parts_of(answer) == [(f"bytes {start}-{end - 1}/{len(LAYER)}", LAYER[start:end]) for start, end in ASKED]
        await node.landed()
        one = await get(node, BLOB, ("Range", f"bytes=5-6,{len(LAYER)}-"))
        assert (one.status, one.body) == (206, LAYER[5:7])
        assert one.headers["content-range"] == f"bytes 5-6/{len(LAYER)}"
        refused = await get(node, BLOB, ("Range", f"bytes={len(LAYER)}-,-0"))
        assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{len(LAYER)}")
        many = ",".join(f"{n}-{n}" for n in range(0, 600, 2))
        assert (await get(node, BLOB, ("Range", f"bytes={many}"))).body == LAYER


async def test_a_range_of_something_else_is_the_whole(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, node):
        for tag, status in ((f'"{DIGEST}"', 206), (f'W/"{DIGEST}"', 200), ('"x"', 200), ("Tue, 1 Jan 2030", 200)):
            for ranges in ("bytes=0-9", "bytes=0-9,20-29"):
                answer = await get(node, BLOB, ("Range", ranges), ("If-Range", tag))
                assert answer.status == status
                assert status == 206 or answer.body == LAYER


@pytest.mark.parametrize("rest", [True, False])
async def test_the_pieces_of_several_ranges_of_a_cold_blob_are_fetched_first(tmp_path: Path, rest: bool) -> None:
    data = random.Random(5).randbytes(40 * PIECE_SIZE)
    (tmp_path / "tracker").mkdir()
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", data)
        async with node_stack(tmp_path / "node", tracker=tracker.url, rest=rest) as node:
            await call(node.pull, "GET", TAG)
            asked: list[int] = []

            def gate(request: Request) -> trio.Event | None:
                text = request.header("range") or ""
                if "/p2p/v1/blobs/" in request.target and text.startswith("bytes="):
                    first, last = text[6:].split("-")
                    asked.extend(range(int(first) // PIECE_SIZE, int(last) // PIECE_SIZE + 1))
                return None

            tracker.gate = gate
            wanted = [35, 3, 20]
            ranges = ",".join(f"{n * PIECE_SIZE + 7}-{n * PIECE_SIZE + 9}" for n in wanted)
            answer = await get(node, f"/v2/{REPO}/blobs/{Digest.of(data)}", ("Range", f"bytes={ranges}"))
            if rest:
                assert max(map(asked.index, wanted)) < 24  # in order the last would come 36th
            else:
                assert sorted(set(asked)) == sorted(wanted)
            assert [body for _, body in parts_of(answer)] == [
                data[n * PIECE_SIZE + 7 : n * PIECE_SIZE + 10] for n in wanted
            ]


async def test_tags_in_pages(tmp_path: Path) -> None:
    async with both(tmp_path) as (tracker, node):
        await tracker.registry.push_image(REPO, "2", b"x")
        first = await get(node, f"/v2/{REPO}/tags/list?n=1")
        assert first.json()["tags"] == ["1"]
        assert first.headers["link"] == f'</v2/{REPO}/tags/list?n=1&last=1>; rel="next"'
        assert (await get(node, f"/v2/{REPO}/tags/list?n=1&last=1")).json()["tags"] == ["2"]
        assert (await get(node, f"/v2/{REPO}/tags/list?n=0")).json()["tags"] == []


async def test_the_namespace_of_a_mirror(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, node):
        mine = await get(node, f"{TAG}?ns={NAME}")
        assert (mine.status, mine.headers["oci-namespace"]) == (200, NAME)
        for other in ("docker.io", "", "%ff", "a" * 1000, NAME + ".", "x%0d%0ay"):
            for target in (TAG, BLOB, "/v2/", f"/v2/{REPO}/tags/list"):
                answer = await request(node.url, "GET", f"{target}?ns={other}")
                assert answer.status in (400, 404)
                assert b"NAME_" in answer.body


# ------------------------------------------------------------------------------------------------------- bad requests

BAD = [
    ("GET", "/", 404, "NAME_UNKNOWN"),
    ("GET", "/v1/", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/acme", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/_catalog", 404, "NAME_UNKNOWN"),
    ("GET", f"/v2/{REPO}/referrers/{DIGEST}", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/ACME/manifests/1", 400, "NAME_INVALID"),
    ("GET", "/v2/a//b/manifests/1", 400, "NAME_INVALID"),
    ("GET", "/v2/%2e%2e/manifests/1", 400, "NAME_INVALID"),
    ("GET", "/v2/a%00b/manifests/1", 400, "NAME_INVALID"),
    ("GET", "/v2/%ff/manifests/1", 400, "NAME_INVALID"),
    ("GET", f"/v2/{'a' * 256}/manifests/1", 400, "NAME_INVALID"),
    ("GET", f"/v2/{REPO}/manifests/-x", 400, "MANIFEST_INVALID"),
    ("GET", f"/v2/{REPO}/manifests/{'x' * 129}", 400, "MANIFEST_INVALID"),
    ("GET", f"/v2/{REPO}/manifests/a%0ab", 400, "MANIFEST_INVALID"),
    ("GET", f"/v2/{REPO}/manifests/sha256:12", 400, "DIGEST_INVALID"),
    ("GET", f"/v2/{REPO}/blobs/latest", 400, "DIGEST_INVALID"),
    ("GET", f"/v2/{REPO}/blobs/sha256:{HEX.replace('0', 'A')}", 400, "DIGEST_INVALID"),
    ("GET", f"/v2/{REPO}/blobs/md5:{HEX}", 400, "DIGEST_INVALID"),
    ("GET", f"/v2/{REPO}/blobs/sha256:{HEX}", 404, "BLOB_UNKNOWN"),
    ("GET", f"/v2/{REPO}/manifests/sha256:{HEX}", 404, "MANIFEST_UNKNOWN"),
    ("GET", f"/v2/{REPO}/manifests/none", 404, "MANIFEST_UNKNOWN"),
    ("GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"),
    ("GET", f"/v2/{REPO}/tags/list?n=x", 400, "UNSUPPORTED"),
    ("GET", f"/v2/{REPO}/tags/list?n=-1", 400, "UNSUPPORTED"),
    ("GET", f"/v2/{REPO}/tags/list?last=%00", 400, "MANIFEST_INVALID"),
    ("GET", f"/v2/{REPO}/tags/list?last={'x' * 200}", 400, "MANIFEST_INVALID"),
    ("GET", f"/v2/{REPO}/blobs/uploads/", 405, "UNSUPPORTED"),
    ("GET", f"/v2/{REPO}/blobs/uploads/x", 405, "UNSUPPORTED"),
    *((method, target, 405, "UNSUPPORTED") for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")
      for target in (TAG, BLOB, f"/v2/{REPO}/blobs/uploads/", "/nonsense")),
]  # fmt: skip


async def test_bad_requests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with both(tmp_path) as (_, node):
        for method, target, status, code in BAD:
            answer = await request(node.url, method, target)
            assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), target
            assert f'"{code}"'.encode() in answer.body, target
            assert status != 405 or "allow" in answer.headers
        for header in ("Range", "Accept", "If-None-Match", "Cookie"):
            assert (await request(node.url, "GET", TAG, ((header, "x" * 20_000),))).status == 200
            assert (await request(node.url, "GET", TAG, ((header, "x" * 100_000),))).status == 431
        assert (await request(node.url, "POST", f"/v2/{REPO}/blobs/uploads/", body=bytes(3 << 20))).status == 405
    assert "Traceback" not in capfd.readouterr().err


async def test_bytes_that_are_no_request(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, node):
        for said in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\n\r\n",
        ):
            async with await raw_client(node.url) as client:
                await client.send(said)
                answer = await client.response()
                assert 400 <= answer.status < 500 or answer.status == 505
                assert b'"errors"' in answer.body
        assert (await request(node.url, "GET", "/v2/")).status == 200


# --------------------------------------------------------------------------------------------------------------- cache


async def test_the_least_recently_used_goes_first_and_is_withdrawn_before(tmp_path: Path) -> None:
    network = MemoryNetwork()
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    layers = [random.Random(n).randbytes(100_000) for n in range(4)]
    digests = [Digest.of(layer) for layer in layers]
    (tmp_path / "tracker").mkdir()
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", *layers)
        async with node_stack(
            tmp_path / "node", tracker=tracker.url, network=network, max_bytes=300_000, clock=clock
        ) as node:
            await call(node.pull, "GET", TAG)

            async def pull(n: int) -> None:
                assert (await get(node, f"/v2/{REPO}/blobs/{digests[n]}")).body == layers[n]
                await node.landed()

            for n in (0, 1, 2, 0):
                await pull(n)
            assert node.dropped == []
            await pull(3)
            assert node.dropped == [digests[1]]
            assert [bool(network.holders(digest)) for digest in digests] == [True, False, True, True]
            assert {digest async for digest, _ in node.store.blobs()} == {digests[0], digests[2], digests[3]}
            before = node.fetched["tracker"]
            await pull(1)
            assert node.fetched["tracker"] == before + len(layers[1])
            assert node.index.total() <= 300_000


async def test_what_is_served_stays(tmp_path: Path) -> None:
    first, second = random.Random(1).randbytes(100_000), random.Random(2).randbytes(100_000)
    (tmp_path / "tracker").mkdir()
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", first, second)
        async with node_stack(tmp_path / "node", tracker=tracker.url, max_bytes=150_000) as node:
            await call(node.pull, "GET", TAG)
            targets = [f"/v2/{REPO}/blobs/{Digest.of(layer)}" for layer in (first, second)]
            assert (await get(node, targets[0])).status == 200
            await node.landed()
            serving = await node.pull(Request("GET", targets[0], (), ScriptedBody([])))
            assert isinstance(serving.body, BlobSlice)
            full = await get(node, targets[1])
            assert (full.status, full.code) == (429, "TOOMANYREQUESTS")
            assert "retry-after" in full.headers
            assert await serving.body.blob.read_at(0, 100_000) == first
            serving.body.blob.close()
            await node.landed()
            assert (await get(node, targets[1])).body == second


async def test_what_is_on_its_way_stays(tmp_path: Path) -> None:
    (tmp_path / "tracker").mkdir()
    small = random.Random(3).randbytes(50_000)
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", LAYER, small)
        async with node_stack(tmp_path / "node", tracker=tracker.url, max_bytes=len(LAYER) + 10_000) as node:
            await call(node.pull, "GET", TAG)
            hold = trio.Event()
            tracker.gate = lambda asked: hold if (asked.header("range") or "").startswith("bytes=1048576") else None
            serving = await node.pull(Request("GET", BLOB, (), ScriptedBody([])))
            assert isinstance(serving.body, Stream)
            assert (await get(node, f"/v2/{REPO}/blobs/{Digest.of(small)}")).status == 429
            hold.set()
            with trio.fail_after(20):
                parts = [
                    os.pread(part.fd, part.length, part.offset) if isinstance(part, FilePart) else part
                    async for part in serving.body.chunks
                ]
            assert b"".join(parts) == LAYER
            await serving.body.chunks.aclose()  # type: ignore[attr-defined]
            await node.landed()
            assert (await get(node, f"/v2/{REPO}/blobs/{Digest.of(small)}")).body == small
            assert node.dropped == [DIGEST]


async def test_a_blob_larger_than_the_cache(tmp_path: Path) -> None:
    async with both(tmp_path, max_bytes=1000) as (_, node):
        answer = await get(node, BLOB)
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        assert await node.store.staged() == []
