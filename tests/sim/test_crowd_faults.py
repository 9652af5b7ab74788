"""Crowds with faulty members: real nodes and a real tracker in one process, over real sockets.

Whatever some of them do, everyone else gets right bytes, or, where nobody has them, is told so.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, StorageFull, Unreachable
from p2pregistry.serve.http import BlobSlice, Handler, Request, Response, Stream
from p2pregistry.store.base import FilePart
from p2pregistry.store.files import FileStaged
from p2pregistry.testing.http import request, running
from p2pregistry.testing.node_stack import QUICK, NodeStack, Origin, node_stack, origin

MIB = 1 << 20
REPO = "acme/app"
LAYER = random.Random(8).randbytes(12 * MIB + 99)
OTHER = random.Random(9).randbytes(3 * MIB)
DIGEST, OTHER_DIGEST = Digest.of(LAYER), Digest.of(OTHER)
#: Time enough for a busy machine; nothing waits for it where all is well.
PATIENT = replace(QUICK, patience=60.0)
NODES = 7
BAD = 2  # 30 % of those beside the tracker


# ------------------------------------------------------------------------------------------------------- what they do


def _of_a_blob(asked: Request) -> bool:
    return asked.method == "GET" and "/p2p/v1/blobs/" in asked.path and not asked.path.endswith("/table")


async def _bytes(answer: Response) -> bytes:
    body = answer.body
    if isinstance(body, bytes):
        return body
    if isinstance(body, BlobSlice):
        data = await body.blob.read_at(body.offset, body.length)
        body.blob.close()
        return data
    parts: list[bytes] = []
    async for item in body.chunks:
        if isinstance(item, FilePart):
            parts.append(os.pread(item.fd, item.length, item.offset))
        else:
            parts.append(item)
    await body.chunks.aclose()  # type: ignore[union-attr]
    return b"".join(parts)


def corrupts(peer: Handler) -> Handler:
    """Each answer has one wrong byte."""

    async def handle(asked: Request) -> Response:
        answer = await peer(asked)
        if not _of_a_blob(asked) or answer.status not in (200, 206):
            return answer
        data = bytearray(await _bytes(answer))
        data[len(data) // 2] ^= 1
        return Response(answer.status, answer.headers, bytes(data))

    return handle


def never_answers(peer: Handler) -> Handler:
    """It takes requests for bytes and says nothing."""

    async def handle(asked: Request) -> Response:
        if _of_a_blob(asked):
            await trio.sleep_forever()
        return await peer(asked)

    return handle


class _Broken:
    """Half of the bytes, then the connection goes."""

    def __init__(self, data: bytes) -> None:
        self._parts = [data[: len(data) // 2]]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._parts:
            raise Unreachable("gone")
        return self._parts.pop()

    async def aclose(self) -> None:
        pass


def dies_mid_piece(peer: Handler) -> Handler:
    """Every answer breaks off in the middle."""

    async def handle(asked: Request) -> Response:
        answer = await peer(asked)
        if not _of_a_blob(asked) or answer.status not in (200, 206):
            return answer
        data = await _bytes(answer)
        return Response(answer.status, answer.headers, Stream(_Broken(data), len(data)))

    return handle


class _Claim:
    """One line that says that all is here, and then nothing for ever."""

    def __init__(self, count: int) -> None:
        self._lines = [msgspec.json.encode({"full": list(range(count))}) + b"\n"]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._lines:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self._lines.pop()

    async def aclose(self) -> None:
        pass


class _Read:
    """A body that has been read, to be read again."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield self._data

    async def read(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._data[:limit]


def claims_all(peer: Handler) -> Handler:
    """Its have-stream says that it has everything; asked for what it has not it says that it has it not."""

    async def handle(asked: Request) -> Response:
        if asked.path != "/p2p/v1/have":
            return await peer(asked)
        body = await asked.body.read(1 << 20)
        count = len(msgspec.json.decode(body)["want"])
        asked.body = _Read(body)
        await peer(asked)  # it is watched all the same
        return Response(200, [("Content-Type", "application/x-ndjson")], Stream(_Claim(count), None, endless=True))

    return handle


# ------------------------------------------------------------------------------------------------------------- a crowd


async def pull(node: NodeStack, digest: Digest = DIGEST, data: bytes = LAYER) -> None:
    """As an engine does, and the bytes are right."""
    answer = await request(node.url, "GET", f"/v2/{REPO}/manifests/1")
    assert answer.status == 200, answer
    answer = await request(node.url, "GET", f"/v2/{REPO}/blobs/{digest}")
    assert answer.status == 200
    assert answer.body == data


async def together(*nodes: NodeStack) -> None:
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(pull, node)


async def started(stack: AsyncExitStack, root: Path) -> Origin:
    tracker = await stack.enter_async_context(origin(root / "tracker"))
    await tracker.registry.push_image(REPO, "1", LAYER, OTHER)
    return tracker


async def member(stack: AsyncExitStack, root: Path, name: str, tracker: str, **options: object) -> NodeStack:
    options.setdefault("limits", PATIENT)
    made = node_stack(root / name, name=name, tracker=tracker, **options)  # type: ignore[arg-type]
    return await stack.enter_async_context(made)


@pytest.mark.parametrize("fault", [corrupts, never_answers, dies_mid_piece, claims_all])
async def test_with_a_third_of_the_peers_faulty_all_others_get_right_bytes(
    tmp_path: Path, fault: Callable[[Handler], Handler]
) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        bad = [await member(stack, tmp_path, f"bad{n}", tracker.url, spoil=fault) for n in range(BAD)]
        nodes = [await member(stack, tmp_path, f"n{n}", tracker.url) for n in range(NODES - BAD)]
        await together(*bad, *nodes)
        assert sum(node.fetched.get("peer", 0) for node in nodes) > 0, "the honest ones share"


@pytest.mark.parametrize("fault", [corrupts, never_answers, dies_mid_piece, claims_all])
async def test_faulty_holders_that_had_it_first_do_not_keep_it_from_others(
    tmp_path: Path, fault: Callable[[Handler], Handler]
) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        bad = [await member(stack, tmp_path, f"bad{n}", tracker.url, spoil=fault) for n in range(BAD)]
        for node in bad:
            await pull(node)
            await node.landed()
        nodes = [await member(stack, tmp_path, f"n{n}", tracker.url) for n in range(3)]
        await together(*nodes)


async def test_with_only_liars_left_the_client_is_told_and_nothing_wrong_is_kept(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        bad = await member(stack, tmp_path, "bad", tracker.url, spoil=corrupts)
        await pull(bad)
        await bad.landed()
        node = await member(stack, tmp_path, "n", tracker.url, limits=QUICK)
        assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        tracker.dead = True
        with trio.fail_after(60):
            answer = await request(node.url, "GET", f"/v2/{REPO}/blobs/{DIGEST}")
        assert answer.status in (502, 503)
        assert msgspec.json.decode(answer.body)["errors"]
        assert [held async for held in node.store.blobs()] == []


async def test_a_partition_that_heals(tmp_path: Path) -> None:
    """Zone b loses both the tracker and zone a in the middle of the pull."""
    apart = trio.Event()  # set: nothing goes between the zones
    healed = trio.Event()

    async def cut() -> None:
        if apart.is_set():
            await healed.wait()

    def guarded(zone: str) -> Callable[[Handler], Handler]:
        def spoil(peer: Handler) -> Handler:
            async def handle(asked: Request) -> Response:
                if asked.path == "/p2p/v1/have":
                    body = await asked.body.read(1 << 20)
                    other = msgspec.json.decode(body).get("zone", "")
                    asked.body = _Read(body)
                else:
                    other = asked.header("p2p-zone") or ""
                if other != zone:
                    await cut()
                return await peer(asked)

            return handle

        return spoil

    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)

        async def to_the_tracker(asked: Request) -> Response:
            await cut()
            return await tracker.handle(asked)

        far = await stack.enter_async_context(running(to_the_tracker, grace=0.0))
        near = [await member(stack, tmp_path, f"a{n}", tracker.url, zone="a", spoil=guarded("a")) for n in range(3)]
        away = [await member(stack, tmp_path, f"b{n}", far, zone="b", spoil=guarded("b")) for n in range(3)]

        async def cut_in_the_middle() -> None:
            while not any(node.fetched for node in away):
                await trio.lowlevel.checkpoint()
            apart.set()

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut_in_the_middle)
                for node in away:
                    nursery.start_soon(pull, node)
                await together(*near)
                healed.set()


async def test_the_tracker_dead_for_a_while_in_the_middle(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        nodes = [await member(stack, tmp_path, f"n{n}", tracker.url) for n in range(3)]
        refused: list[str] = []

        def gate(asked: Request) -> None:
            some = sum(sum(node.fetched.values()) for node in nodes)
            # not the manifest of a node that comes late: without it there is nothing to pull
            if some > 4 * MIB and len(refused) < 9 and asked.path.startswith("/p2p/v1/blobs/"):
                refused.append(asked.path)
                raise LocalError("out of order")

        tracker.gate = gate
        await together(*nodes)
        assert refused


async def test_a_disk_that_stands_still_harms_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = trio.Event()
    slow: list[NodeStack] = []
    write = FileStaged.write_verified

    async def held_up(self: FileStaged, offset: int, data: bytes, sha256: bytes) -> bool:
        if offset >= 3 * MIB and any(self._store is node.store for node in slow):
            await goes_on.wait()
        return await write(self, offset, data, sha256)

    monkeypatch.setattr(FileStaged, "write_verified", held_up)
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        slow.append(await member(stack, tmp_path, "slow", tracker.url))
        nodes = [await member(stack, tmp_path, f"n{n}", tracker.url) for n in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, slow[0])
            await together(*nodes)
            goes_on.set()


async def test_a_full_disk_fails_that_pull_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full: list[NodeStack] = []
    write = FileStaged.write_verified

    async def no_room(self: FileStaged, offset: int, data: bytes, sha256: bytes) -> bool:
        if DIGEST.hex in self.key and any(self._store is node.store for node in full):
            raise StorageFull("cannot write: no space left on device")
        return await write(self, offset, data, sha256)

    monkeypatch.setattr(FileStaged, "write_verified", no_room)
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        node = await member(stack, tmp_path, "full", tracker.url)
        other = await member(stack, tmp_path, "other", tracker.url)
        full.append(node)
        assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, other)
            nursery.start_soon(pull, node, OTHER_DIGEST, OTHER)
            answer = await request(node.url, "GET", f"/v2/{REPO}/blobs/{DIGEST}")
        assert answer.status == 429
        assert msgspec.json.decode(answer.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert [digest async for digest, _ in node.store.blobs() if digest == DIGEST] == []
        full.clear()  # room was made
        await pull(node)
