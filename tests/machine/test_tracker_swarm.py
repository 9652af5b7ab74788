"""Announces and the pieces that the tracker chooses, over real sockets: a node's client and the tracker's peer API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pregistry import observe
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RemoteBusy, RemoteError, Unreachable
from p2pregistry.feed_messages import ChangesRequest
from p2pregistry.serve.http import Handler, Request, Response, Stream
from p2pregistry.serve.peer_api import Slots
from p2pregistry.sources.tracker import Chosen, TrackerSource
from p2pregistry.testing.http import PATIENCE, running
from p2pregistry.testing.tracker_api import SIGNED, registry
from tracker.announces_check import names, node, peer
from tracker.blobs import Blobs
from tracker.peer_endpoints import Swarm, TrackerPeerApi

LAYER = os.urandom((5 << 20) + 321)
COUNT = 6
DIGEST = Digest.of(LAYER)
SWARM = Swarm("default", (), (), "", "")


@asynccontextmanager
async def tracker(folder: Path, slots: Slots | None = None) -> AsyncIterator[TrackerSource]:
    """A tracker with an image, as a node sees it."""
    async with registry(folder) as api:
        await api.push_image("acme/api", "1", LAYER)
        handler = TrackerPeerApi(
            api.catalog, Blobs(api.catalog, api.objects), slots or Slots(4, 16), lambda: SWARM, SIGNED
        )
        async with running(handler, grace=0.0) as url:
            source = TrackerSource(url)
            try:
                yield source
            finally:
                source.close()


async def take(source: TrackerSource, wanted: bytes) -> tuple[int | None, bytes]:
    """One piece, whole."""
    with trio.fail_after(PATIENCE):
        async with source.next_piece(DIGEST, wanted) as chosen:
            return chosen.index, await read(chosen)


async def read(chosen: Chosen) -> bytes:
    data, at = bytearray(chosen.length), 0
    while at < chosen.length:
        at += await chosen.read_into(memoryview(data)[at:])
    return bytes(data)


async def test_a_blob_by_pieces_of_the_trackers_choice(tmp_path: Path) -> None:
    async with tracker(tmp_path) as source:
        before = observe.served().labels("peer")._value.get()
        pieces: dict[int, bytes] = {}
        wanted = bytearray(b"\1" * COUNT)
        while len(pieces) < COUNT:
            index, data = await take(source, bytes(wanted))
            assert index is not None
            assert index not in pieces
            pieces[index] = data
            wanted[index] = 0
        assert b"".join(pieces[index] for index in range(COUNT)) == LAYER
        with trio.fail_after(20):  # the last bytes are here a moment before they are counted there
            while observe.served().labels("peer")._value.get() - before < len(LAYER):
                await trio.sleep(0.01)
        with trio.fail_after(PATIENCE):
            async with source.next_piece(DIGEST, b"\1" * COUNT) as chosen:
                assert chosen.index is None
                assert 0 < chosen.wait <= 60
                with pytest.raises(Unreachable):
                    await chosen.read_into(memoryview(bytearray(1)))


async def test_who_leaves_while_it_waits_takes_no_turn(tmp_path: Path) -> None:
    slots = Slots(1, 8)
    async with tracker(tmp_path, slots) as source:
        await slots.take()  # a transfer under way
        with trio.move_on_after(0.05):
            await take(source, b"\1" * COUNT)
        async with trio.open_nursery() as nursery:
            found: list[int | None] = []

            async def wait() -> None:
                found.append((await take(source, b"\1" * COUNT))[0])

            for _ in range(2):
                nursery.start_soon(wait)
            await trio.sleep(0.05)
            slots.give()
        assert None not in found


async def test_what_the_tracker_refuses(tmp_path: Path) -> None:
    slots = Slots(1, 0)
    async with tracker(tmp_path, slots) as source:
        await slots.take()
        with pytest.raises(RemoteBusy):
            await take(source, b"\1" * COUNT)
        slots.give()
        with pytest.raises(RemoteError):
            await take(source, b"\1" * 100)
        with pytest.raises(NotFound):
            async with source.next_piece(Digest.of(b"unknown"), b"\1"):
                pass
        assert (await take(source, b"\1" * COUNT))[0] is not None


async def test_nodes_find_each_other(tmp_path: Path) -> None:
    async with tracker(tmp_path) as source:
        await source.announce(node(1, (DIGEST,)))
        answer = await source.announce(node(2, (DIGEST, Digest.of(b"x"))))
        assert names(answer) == {peer(1)}
        await source.announce(node(1, leaving=True))
        assert names(await source.announce(node(2, (DIGEST,)))) == set()


def scripted(*headers: tuple[str, str], status: int = 206, body: bytes = b"x" * 321) -> Handler:
    async def answer(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(status, list(headers), body)

    return answer


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "bytes */5243201",
        f"bytes 5242880-5243199/{len(LAYER)}",  # one byte less
        f"bytes 5242881-5243200/{len(LAYER)}",  # no piece begins there
        f"bytes 0-320/{len(LAYER)}",  # part of a piece
        "bytes 5242880-5243200/9999999",  # another blob
        f"bytes 4194304-5242879/{len(LAYER)}",  # not what comes
        f"bytes 1048576-1048896/{len(LAYER)}",  # not wanted
        "bytes 9-" + "9" * 30 + "/5",
    ],
)
async def test_a_piece_that_was_not_asked_for_is_not_taken(content_range: str | None) -> None:
    headers = [] if content_range is None else [("Content-Range", content_range)]
    async with running(scripted(*headers), grace=0.0) as url:
        source = TrackerSource(url)
        with pytest.raises(BadContent):
            await take(source, b"\1\0\1\1\1\1")
        source.close()


async def test_a_wait_that_makes_no_sense_is_a_second() -> None:
    for text, wait in (("abc", 1.0), ("", 1.0), ("-5", 1.0), ("250", 0.25), ("99999999", 60.0), ("9" * 400, 1.0)):
        async with running(scripted(("P2P-Wait", text), status=204, body=b""), grace=0.0) as url:
            source = TrackerSource(url)
            async with source.next_piece(DIGEST, b"\1") as chosen:
                assert (chosen.index, chosen.wait) == (None, wait)
            source.close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"", BadContent),
        (200, b"[]", BadContent),
        (404, b"", NotFound),
        (503, b"", Unreachable),
        (429, b"", RemoteBusy),
    ],
)
async def test_an_announce_that_fails_has_a_reason(status: int, body: bytes, error: type[Exception]) -> None:
    async with running(scripted(status=status, body=body), grace=0.0) as url:
        source = TrackerSource(url)
        with pytest.raises(error):
            await source.announce(node(1, (DIGEST,)))
        assert not source.down  # it did answer
        source.close()


async def test_a_tracker_that_hangs_is_left_alone_for_a_while() -> None:
    async def hang(_request: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    async with running(hang, grace=0.0) as url:
        source = TrackerSource(url, timeout=0.1, rest=60.0)
        with pytest.raises(Unreachable):
            await source.announce(node(1))
        assert source.down
        with trio.fail_after(PATIENCE), pytest.raises(Unreachable):
            await take(source, b"\1")
        source.close()


async def test_a_tracker_that_takes_a_stream_of_changes_is_back() -> None:
    """What clients ask for right after the feed has come back need not wait until the tracker is tried again."""
    hangs = True

    async def handler(request: Request) -> Response:
        if hangs:
            await trio.sleep_forever()
        assert request.path == "/p2p/v1/changes"
        return Response(200, [], Stream(silent(), None))

    async def silent() -> AsyncIterator[bytes]:
        yield b": \n"
        await trio.sleep_forever()

    async with running(handler, grace=0.0) as url:
        source = TrackerSource(url, timeout=0.1, rest=60.0)
        with pytest.raises(Unreachable):
            await source.announce(node(1))
        assert source.down
        hangs = False
        with trio.fail_after(PATIENCE):
            async with source.changes(ChangesRequest()):
                assert not source.down
        source.close()
