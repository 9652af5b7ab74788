"""kill -9 of a node during a pull: nothing unverified is ever served, and nothing that is held is fetched again."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.serve.http import Request
from p2pregistry.testing.http import raw_client, request
from p2pregistry.testing.node_process import NodeProcess, blob_files, node_process, partial_file
from p2pregistry.testing.node_stack import Origin, origin

ROUNDS = 20
REPO = "crash/image"
WINDOW = 3  # pieces in flight
PIECES = re.compile(r"bytes=(\d+)-(\d+)")


@asynccontextmanager
async def started(folder: Path, tracker: str) -> AsyncIterator[NodeProcess]:
    """A node; starting and stopping it do not hold up the tracker, which lives in this process."""
    manager = node_process(folder, tracker, fetch__in_flight=WINDOW * PIECE_SIZE)
    node = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield node
    except BaseException as err:
        if not manager.__exit__(type(err), err, err.__traceback__):
            raise
    else:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE_SIZE] for at in range(0, len(data), PIECE_SIZE)]


class Watched:
    """The tracker's requests for pieces of one blob; after ``allow`` pieces of a round it sends no more."""

    def __init__(self, tracker: Origin) -> None:
        self.allow = 0
        self.asked: list[tuple[str, int]] = []
        self.reached = trio.Event()
        self._never = trio.Event()
        tracker.gate = self.gate

    def begin(self, allow: int) -> None:
        self.allow, self.asked, self.reached = allow, [], trio.Event()

    def gate(self, asked: Request) -> trio.Event | None:
        found = PIECES.fullmatch(asked.header("range") or "")
        if found is None or not asked.path.startswith("/p2p/v1/blobs/"):
            return None
        digest = asked.path.rsplit("/", 1)[1]
        first, last = int(found[1]) // PIECE_SIZE, int(found[2]) // PIECE_SIZE
        for index in range(first, last + 1):
            self.asked.append((digest, index))
        if len(self.asked) > self.allow:
            self.reached.set()
            return self._never
        return None


async def read(node: NodeProcess, data: bytes, got: bytearray) -> None:
    """Pull a blob until its end or the node's; every byte that comes is right."""
    async with await raw_client(node.url) as client:
        await client.send(f"GET /v2/{REPO}/blobs/{Digest.of(data)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = await client.receive()
            if not more:
                return
            head += more
        assert head.startswith(b"HTTP/1.1 200 "), head
        got += head.partition(b"\r\n\r\n")[2]
        while len(got) < len(data):
            more = await client.receive()
            if not more:
                break
            got += more
    assert got == data[: len(got)]


async def check_after_restart(node: NodeProcess, images: list[bytes], rng: random.Random) -> None:
    """What is visible is whole, on disk and through both APIs, and the records are those of the files."""
    files = blob_files(Path(node.facts["data_dir"]))
    assert all(Digest.of(body) == digest for digest, body in files.items())
    status = await trio.to_thread.run_sync(node.status)
    assert (status["blobs"], status["blob_bytes"]) == (len(files), sum(map(len, files.values())))
    for data in images:
        target = f"/p2p/v1/blobs/{Digest.of(data)}"
        first = rng.randrange(len(data))
        last = min(len(data) - 1, first + rng.randrange(3 * PIECE_SIZE))
        answer = await request(node.peer_url, "GET", target, (("Range", f"bytes={first}-{last}"),))
        assert answer.status == (206 if Digest.of(data) in files else 404)
        assert answer.status == 404 or answer.body == data[first : last + 1]


class Crashes:
    """Rounds of pull and kill over one data directory, and what they came to."""

    def __init__(self, folder: Path, tracker: Origin, layers: list[bytes], rng: random.Random) -> None:
        self.folder, self.tracker, self.layers, self.rng = folder, tracker, layers, rng
        self.watched = Watched(tracker)
        self.layer = 0  # the one that is pulled
        self.asked = 0  # pieces, in all rounds
        self.interrupted = 0

    def held(self, layer: bytes) -> set[int]:
        """Pieces of it that are on disk and right."""
        there = partial_file(self.folder / "data", Digest.of(layer))
        return {i for i, piece in enumerate(pieces(layer)) if there[i * PIECE_SIZE :][: len(piece)] == piece}

    async def round(self) -> None:
        """Start, look at what the last round left, pull, kill."""
        rng, layer = self.rng, self.layers[self.layer % len(self.layers)]
        held = self.held(layer)
        # every few rounds the blob comes to its end, where commits happen
        self.watched.begin(10_000 if rng.random() < 0.35 else rng.randrange(1, 5))
        async with started(self.folder, self.tracker.url) as node:
            await check_after_restart(node, self.layers, rng)
            assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
            got = bytearray()
            with trio.fail_after(60):
                await _until_killed(node, layer, got, self.watched, rng)
        again = {index for _, index in self.watched.asked} & held
        assert not again, "a piece that was here was fetched again"
        self.asked += len(self.watched.asked)
        self.interrupted += len(got) < len(layer)
        self.layer += len(got) == len(layer)

    async def last(self) -> None:
        """Pull everything."""
        self.watched.begin(10_000)
        async with started(self.folder, self.tracker.url) as node:
            await check_after_restart(node, self.layers, self.rng)
            for layer in self.layers:
                got = bytearray()
                with trio.fail_after(60):
                    await read(node, layer, got)
                assert got == layer
        self.asked += len(self.watched.asked)


@pytest.mark.slow
@pytest.mark.e2e
async def test_a_pull_goes_on_after_kill_9_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(9)
    layers = [rng.randbytes(rng.choice([3, 6, 9]) * PIECE_SIZE + rng.randrange(1, PIECE_SIZE)) for _ in range(8)]
    (tmp_path / "tracker").mkdir()
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image(REPO, "1", *layers)
        crashes = Crashes(tmp_path / "node", tracker, layers, rng)
        for _ in range(ROUNDS):
            await crashes.round()
        await crashes.last()
    assert crashes.interrupted >= 3, "the kills came too late to interrupt anything"
    # what is fetched twice is at most what was on its way when the node died
    assert crashes.asked <= sum(len(pieces(layer)) for layer in layers) + ROUNDS * (WINDOW + 1)
    data = tmp_path / "node" / "data"
    files = blob_files(data)
    assert all(Digest.of(body) == name for name, body in files.items())
    assert {Digest.of(layer) for layer in layers} <= files.keys()
    assert list((data / "partial").iterdir()) == []
    log = (tmp_path / "node" / "log").read_text("utf-8")
    assert "Traceback" not in log
    assert "damaged" not in log


async def _until_killed(node: NodeProcess, data: bytes, got: bytearray, watched: Watched, rng: random.Random) -> None:
    """Pull, and kill the node when the tracker stops sending or, some work later, when all has come."""
    async with trio.open_nursery() as nursery:

        async def pull() -> None:
            await read(node, data, got)
            watched.reached.set()

        nursery.start_soon(pull)
        await watched.reached.wait()
        for _ in range(rng.randrange(4)):  # somewhere between the last byte and the commit, or a piece and its write
            await trio.to_thread.run_sync(lambda: Digest.of(bytes(rng.randrange(2 << 20))))
        await trio.to_thread.run_sync(node.kill)
