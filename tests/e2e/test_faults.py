"""Hostile peers over real sockets: a client of the node gets right bytes with a 200, or a prompt and honest refusal."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.routing.base import Peer
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import Request
from p2pregistry.testing.hostile import Asked, HostilePeer, Script, honest, hostile_peer
from p2pregistry.testing.http import Answer, request
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin

REPO = "acme/api"
LAYER = random.Random(4).randbytes((3 << 20) + 4321)
SMALL = random.Random(5).randbytes(5000)
MISS = 1.0  # seconds that a miss may take
Stream = trio.SocketStream


# ---------------------------------------------------------------------------------------------------- what peers may do


async def refuses(stream: Stream, asked: Asked) -> bool:
    return False


async def resets(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + asked.body[: len(asked.body) // 2])
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return False


async def cuts(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + asked.body[: len(asked.body) // 3])
    return False


async def cuts_the_head(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head()[:20])
    return False


async def lies(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + bytes(len(asked.body)))
    return True


async def lies_a_little(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + asked.body[:-1] + bytes([asked.body[-1] ^ 1]))
    return True


async def stalls(stream: Stream, asked: Asked) -> bool:
    await trio.sleep_forever()
    raise AssertionError


async def stalls_in_the_body(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + asked.body[: len(asked.body) // 2])
    return await stalls(stream, asked)


async def dribbles(stream: Stream, asked: Asked) -> bool:
    """A few bytes for ever: never silent, never done."""
    await stream.send_all(asked.head())
    for at in range(len(asked.body)):
        await stream.send_all(asked.body[at : at + 1])
        with trio.move_on_after(0.05):
            await stream.receive_some(1)
    return True


async def whole_instead_of_a_part(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head("200 OK", length=asked.size) + LAYER[:100_000])
    return False


async def another_part(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head(offset=asked.offset + 1) + asked.body)
    return True


async def endless_length(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head(length=10**18) + asked.body)
    return False


async def unreadable_length(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 206 Partial Content\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
    return False


async def garbage(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"\x16\x03\x01\xff\xfe" * 50 + b"\r\n\r\n")
    return False


async def endless_head(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 206 Partial Content\r\n")
    while True:
        await stream.send_all(b"X-More: " + b"x" * 1000 + b"\r\n")


async def chunked(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    return True


async def too_many_bytes(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(asked.head() + asked.body + b"more")
    return True


async def busy_for_ever(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 99999\r\nContent-Length: 0\r\n\r\n")
    return True


async def busy_for_no_number(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n")
    return True


async def breaks_down(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")
    return True


async def redirects(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 307 There\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n")
    return True


async def has_it_no_more(stream: Stream, asked: Asked) -> bool:
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    return True


FAULTS: list[Script] = [
    refuses, resets, cuts, cuts_the_head, lies, lies_a_little, stalls, stalls_in_the_body, dribbles,
    whole_instead_of_a_part, another_part, endless_length, unreadable_length, garbage, endless_head, chunked,
    too_many_bytes, busy_for_ever, busy_for_no_number, breaks_down, redirects, has_it_no_more,
]  # fmt: skip


def after_one_piece(fault: Script) -> Script:
    """Honest for the first piece: the failure comes when the client has bytes already."""
    seen = [0]

    async def script(stream: Stream, asked: Asked) -> bool:
        seen[0] += 1
        return await (honest if seen[0] == 1 else fault)(stream, asked)

    return script


# ------------------------------------------------------------------------------------------------------------ the world


@dataclass
class World:
    origin: Origin
    node: NodeStack
    network: MemoryNetwork
    stack: AsyncExitStack

    async def peer(self, name: str, script: Script, *, tables: bool = True) -> HostilePeer:
        """One more peer, which is said to hold both blobs."""
        made = await self.stack.enter_async_context(hostile_peer(script, LAYER, SMALL, tables=tables))
        self.announce(name, made.url)
        return made

    def announce(self, name: str, url: str) -> None:
        self.network.router(Peer(name, url)).hold([Digest.of(LAYER), Digest.of(SMALL)])

    async def get(self, data: bytes, *headers: tuple[str, str]) -> Answer:
        with trio.fail_after(20):
            return await request(self.node.url, "GET", f"/v2/{REPO}/blobs/{Digest.of(data)}", headers)

    def no_blobs_from_the_tracker(self) -> None:
        """It goes on to answer for tags and claims."""

        def gate(req: Request) -> None:
            if req.path.startswith("/p2p/v1/blobs/"):
                raise RequestError("TOOMANYREQUESTS", "not now")

        self.origin.gate = gate


@asynccontextmanager
async def world(root: Path, *, knows: bool = True) -> AsyncIterator[World]:
    """A tracker with one image, and a node that has seen its manifest (``knows``) but has no blob of it."""
    (root / "tracker").mkdir()
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        tracker = await stack.enter_async_context(origin(root / "tracker"))
        await tracker.registry.push_image(REPO, "1", LAYER, SMALL)
        node = await stack.enter_async_context(node_stack(root / "node", tracker=tracker.url, network=network))
        if knows:
            assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        yield World(tracker, node, network, stack)


async def check_right(world: World, data: bytes) -> None:
    answer = await world.get(data)
    assert (answer.status, len(answer.body)) == (200, len(data)), answer.body[:200]
    assert answer.body == data
    await world.node.landed()
    assert await world.node.store.staged() == []


# ------------------------------------------------------------------------------------------------------------ peers


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("first", [True, False], ids=["at_once", "later"])
async def test_beside_an_honest_peer(tmp_path: Path, fault: Script, first: bool) -> None:
    async with world(tmp_path) as here:
        bad = await here.peer("bad", fault if first else after_one_piece(fault))
        await here.peer("good", honest)
        await check_right(here, LAYER)
        assert bad.requests


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_with_the_tracker_in_the_last_place(tmp_path: Path, fault: Script) -> None:
    async with world(tmp_path) as here:
        await here.peer("bad", after_one_piece(fault))
        await here.peer("worse", fault)
        await check_right(here, LAYER)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_small_blobs(tmp_path: Path, fault: Script) -> None:
    async with world(tmp_path) as here:
        await here.peer("bad", fault)
        await check_right(here, SMALL)


@pytest.mark.parametrize("fault", [refuses, lies, garbage, breaks_down, has_it_no_more, chunked, cuts])
async def test_nobody_has_right_bytes(tmp_path: Path, fault: Script) -> None:
    async with world(tmp_path) as here:
        await here.peer("bad", fault)
        here.no_blobs_from_the_tracker()
        answer = await here.get(SMALL)
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/json"
        await here.node.landed()
        assert await here.node.store.staged() in ([], [str(Digest.of(SMALL)).replace(":", "-")])


async def test_ranges_of_a_blob_that_comes_from_a_liar_and_an_honest_one(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.peer("bad", lies_a_little)
        await here.peer("good", honest)
        for first, last in ((0, 0), (1 << 20, (1 << 20) + 5), (len(LAYER) - 3, len(LAYER) - 1), (5, len(LAYER) - 5)):
            answer = await here.get(LAYER, ("Range", f"bytes={first}-{last}"))
            assert (answer.status, answer.body) == (206, LAYER[first : last + 1])
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(LAYER)}"


async def test_a_liar_is_asked_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        bad = await here.peer("bad", lies)
        await here.peer("good", honest)
        await check_right(here, LAYER)
        asked = len(bad.requests)
        await check_right(here, SMALL)
        assert len(bad.requests) == asked


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:99999", "http://[::1", "http://\u00fc.example/", "https://127.0.0.1:1", "http://", "http://a b/",
     "http://127.0.0.1:1", "ftp://x", "http://x\r\nEvil: y/", "http://user@127.0.0.1:1",
     "http://" + "a" * 250 + ".invalid"],
    ids=range(11),
)  # fmt: skip
async def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    async with world(tmp_path) as here:
        here.announce("bad", url)
        await here.peer("good", honest)
        await check_right(here, LAYER)


async def test_tables_that_do_not_verify(tmp_path: Path) -> None:
    async def wrong_table(stream: Stream, asked: Asked) -> bool:
        if not asked.target.endswith("/table"):
            return await honest(stream, asked)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + bytes(50))
        return True

    async with world(tmp_path) as here:
        await here.peer("bad", wrong_table, tables=False)
        await here.peer("good", honest)
        here.no_blobs_from_the_tracker()
        await check_right(here, LAYER)


async def test_a_client_that_leaves_changes_nothing_for_the_next(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(here.get, LAYER)
            with trio.move_on_after(0.001):
                await here.get(LAYER)
        await check_right(here, LAYER)
        assert sum(here.node.fetched.values()) <= 2 * len(LAYER)


# ------------------------------------------------------------------------------------------------------------ misses


async def refused_tracker(nursery: trio.Nursery) -> str:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    for listener in listeners:
        await listener.aclose()
    return f"http://127.0.0.1:{port}"


async def closing_tracker(nursery: trio.Nursery) -> str:
    async def close(stream: Stream) -> None:
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, close, listeners)
    return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


@pytest.mark.parametrize("tracker", [refused_tracker, closing_tracker], ids=["refused", "closing"])
async def test_a_miss_without_a_tracker_is_prompt(
    tmp_path: Path, tracker: Callable[[trio.Nursery], Awaitable[str]]
) -> None:
    async with trio.open_nursery() as nursery:
        async with node_stack(tmp_path / "node", tracker=await tracker(nursery)) as node:
            for target in (
                f"/v2/{REPO}/manifests/1",
                f"/v2/{REPO}/manifests/{Digest.of(b'm')}",
                f"/v2/{REPO}/blobs/{Digest.of(LAYER)}",
                f"/v2/{REPO}/tags/list",
            ):
                for method in ("HEAD", "GET"):
                    with trio.fail_after(MISS):
                        answer = await request(node.url, method, target)
                    assert answer.status in (404, 503)
        nursery.cancel_scope.cancel()


async def test_a_blob_that_nobody_has_is_a_prompt_503(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.origin.gate = _down
        with trio.fail_after(MISS):
            answer = await here.get(LAYER)
        assert answer.status == 503
        assert "retry-after" in answer.headers
        head = await request(here.node.url, "HEAD", f"/v2/{REPO}/blobs/{Digest.of(LAYER)}")
        assert (head.status, head.headers["content-length"]) == (200, str(len(LAYER)))


async def test_an_image_from_peers_with_the_tracker_down(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.peer("good", honest)
        await here.peer("bad", cuts)
        here.origin.gate = _down
        for data in (LAYER, SMALL):
            await check_right(here, data)


def _down(_request: Request) -> None:
    raise RequestError("UNSUPPORTED", "the tracker is down", status=502)
