"""No listener of either program can be kept busy by a client that is slow, or says too much."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from p2pregistry.serve.listen import Limits
from p2pregistry.testing.http import RawClient
from p2pregistry.testing.node_process import node_process
from p2pregistry.testing.tracker_process import tracker

#: Seconds until a connection ends on which no whole head comes, and some more for a busy machine.
SLOW = Limits().head_time + 8.0


def listeners(name: str, facts: dict[str, Any]) -> dict[str, str]:
    """Where each listener of a program is: a URL, or the path of a Unix socket."""
    urls = {
        f"{name} {key.removesuffix('url').rstrip('_') or 'main'}": facts[key] for key in facts if key.endswith("url")
    }
    return {**urls, f"{name} admin": str(Path(facts["data_dir"]) / "admin.sock")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("programs")
    with both(folder) as found:
        yield found


@contextmanager
def both(folder: Path) -> Iterator[dict[str, str]]:
    """The tracker's peer listener speaks TLS, the node's does not."""
    with tracker(folder / "tracker", {"peer.plain": "false"}) as one, node_process(folder / "node") as other:
        assert str(one.facts["peer_url"]).startswith("https://")
        yield {**listeners("tracker", one.facts), **listeners("node", other.facts)}


async def connected(place: str) -> RawClient:
    if place.startswith("/"):
        return RawClient(await trio.open_unix_socket(place))
    url = urlsplit(place)
    assert url.hostname is not None
    assert url.port is not None
    stream = await trio.open_tcp_stream(url.hostname, url.port)
    if url.scheme == "http":
        return RawClient(stream)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secure = trio.SSLStream(stream, context, server_hostname=url.hostname, https_compatible=True)
    await secure.do_handshake()
    return RawClient(secure)  # type: ignore[arg-type]  # it is read and written alike


def test_every_listener_is_among_those_that_are_tested(places: dict[str, str]) -> None:
    assert set(places) == {
        "tracker main", "tracker peer", "tracker metrics", "tracker admin",
        "node main", "node peer", "node metrics", "node admin",
    }  # fmt: skip


@pytest.mark.parametrize("beginning", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_head_that_does_not_come_ends_the_connection(places: dict[str, str], beginning: bytes) -> None:
    ended: list[str] = []

    async def wait(name: str, place: str) -> None:
        async with await connected(place) as client:
            await client.send(beginning)
            with trio.move_on_after(SLOW):
                while await client.stream.receive_some(1000):
                    pass
                ended.append(name)

    async with trio.open_nursery() as nursery:
        for name, place in places.items():
            nursery.start_soon(wait, name, place)
    assert sorted(ended) == sorted(places)


async def test_a_head_that_is_too_long_is_refused(places: dict[str, str]) -> None:
    for name, place in places.items():
        async with await connected(place) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (80 << 10) + b"\r\n\r\n")
            assert (await client.response()).status == 431, name


async def test_a_body_that_is_too_long_is_refused_before_it_comes(places: dict[str, str]) -> None:
    for name, place in places.items():
        for path in ("/", "/p2p/v1/announce", "/p2p/v1/have", "/p2p/v1/session", "/v2/a/b/manifests/1", "/status"):
            async with await connected(place) as client:
                await client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
                with trio.fail_after(10):
                    answer = await client.response()
                assert 400 <= answer.status < 500, (name, path)
                assert await client.at_end(), "the rest is not read"


async def test_what_is_refused_says_so_safely(places: dict[str, str]) -> None:
    for place in places.values():
        for start in (b"GET /nothing/here HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00"):
            async with await connected(place) as client:
                await client.send(start)
                answer = await client.response()
                assert answer.status >= 400
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["content-security-policy"] == "default-src 'none'"
