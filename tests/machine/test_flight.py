"""Flights over scripted sources: whatever a source does, readers get the right bytes or a clear refusal."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

import pytest
import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RemoteError
from p2pregistry.flights import Flights
from p2pregistry.haves import Haves
from p2pregistry.pull.commands import Limits
from p2pregistry.sources.memory import Faults, MemorySource
from p2pregistry.store.memory import MemoryStore
from p2pregistry.surroundings import Follower
from p2pregistry.testing.seeder import MemoryTracker

MIB = 1 << 20
DATA = random.Random(7).randbytes(9 * MIB + 12_345)
INFO = Metainfo.of_bytes(DATA)
QUICK = Limits(silence=0.3, late_floor=0.1, expected=0.1, tracker_late=0.3, back_off=0.05, patience=3.0)


@dataclass
class World:
    """What a flight meets: peers, perhaps a tracker, a store, a place for tables."""

    peers: list[MemorySource] = field(default_factory=list)
    tracker: MemoryTracker | None = None
    others: tuple[int, int] | None = None
    followers: list[Follower] = field(default_factory=list)
    partial: dict[str, bytes] = field(default_factory=dict)
    haves: Haves = field(default_factory=Haves)
    store: MemoryStore = field(default_factory=MemoryStore)
    tables: dict[Digest, Metainfo] = field(default_factory=dict)
    banned: list[str] = field(default_factory=list)
    added: list[Digest] = field(default_factory=list)
    fetched: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def follow(self, ref: BlobRef, follower: Follower) -> Iterator[None]:
        self.followers.append(follower)
        if self.others is not None:
            follower.crowd(*self.others)
        yield
        self.followers.remove(follower)

    async def announced(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()

    async def look_up(self, digest: Digest, *, need: object = None) -> None:
        await trio.lowlevel.checkpoint()
        for peer in self.peers:
            if peer.name not in self.banned:
                for follower in self.followers:
                    follower.have(peer, self.partial.get(peer.name), near=True)

    def ban(self, source: str, why: str) -> None:
        self.banned.append(source)

    @asynccontextmanager
    async def room(self, digest: Digest, size: int, *, ahead: bool = False) -> AsyncIterator[None]:
        yield

    def pin(self, digest: Digest) -> AbstractContextManager[None]:
        return nullcontext()

    async def put(self, digest: Digest, size: int, *, ahead: bool = False) -> None:
        self.added.append(digest)

    def metainfo(self, digest: Digest) -> Metainfo | None:
        return self.tables.get(digest)

    async def put_metainfo(self, info: Metainfo) -> None:
        self.tables[info.digest] = info

    def count(self, kind: str, number: int) -> None:
        self.fetched[kind] = self.fetched.get(kind, 0) + number

    @asynccontextmanager
    async def flights(self, active: int = 16) -> AsyncIterator[Flights]:
        shelf = _Shelf(self)
        service = Flights(
            self.store,
            shelf,
            self,
            self,
            randrange=random.Random(3).randrange,
            haves=self.haves,
            active=active,
            limits=QUICK,
            fetched=self.count,
        )
        async with service.running():
            yield service


class _Shelf:
    def __init__(self, world: World) -> None:
        self.room, self.pin, self.added = world.room, world.pin, world.put


def source(name: str, kind: str = "peer", data: bytes = DATA, **faults: object) -> MemorySource:
    return MemorySource(name, {INFO.digest: data}, kind, Faults(**faults))  # type: ignore[arg-type]


def seeder(**faults: object) -> MemoryTracker:
    return MemoryTracker("tracker", {INFO.digest: DATA}, faults=Faults(**faults))  # type: ignore[arg-type]


async def pull(flights: Flights, offset: int = 0, length: int | None = None) -> bytes:
    reading = await flights.join(INFO.ref).open(offset, len(DATA) - offset if length is None else length)
    try:
        return b"".join([chunk async for chunk in reading])
    finally:
        await reading.aclose()


async def whole(world: World) -> None:
    """A pull of everything gives the right bytes, and the blob is then in the store."""
    with trio.fail_after(20):
        async with world.flights() as flights:
            assert await pull(flights) == DATA
            while len(flights):
                await trio.lowlevel.checkpoint()
    blob = await world.store.open(INFO.digest)
    assert await blob.read_at(0, len(DATA)) == DATA
    blob.close()
    assert world.added == [INFO.digest]
    assert await world.store.staged() == []


async def test_from_the_tracker_alone() -> None:
    world = World(tracker=seeder())
    await whole(world)
    assert world.fetched == {"tracker": len(DATA)}


async def test_from_peers_alone() -> None:
    world = World(peers=[source("a"), source("b"), source("c")])
    await whole(world)
    assert all(peer.sent for peer in world.peers)


async def test_where_a_peer_has_it_the_tracker_sends_nothing() -> None:
    world = World(peers=[source("a")], tracker=seeder())
    await whole(world)
    assert world.fetched == {"peer": len(DATA)}


@pytest.mark.parametrize(
    "faults",
    [
        {"refuse": True},
        {"cut_after": 300_000},
        {"hang_after": 300_000},
        {"hang_after": 0},
        {"corrupt": frozenset({5})},
        {"corrupt": frozenset(range(0, len(DATA), 999_999))},
        {"busy": 60.0},
        {"rate": 100_000.0},
        {"delay": 5.0},
    ],
    ids=lambda faults: "-".join(faults),
)
@pytest.mark.parametrize("rescuer", ["peer", "tracker"])
async def test_a_bad_peer_is_replaced_without_the_reader_noticing(faults: dict[str, object], rescuer: str) -> None:
    bad = source("bad", **faults)
    world = World(peers=[bad, source("good")]) if rescuer == "peer" else World(peers=[bad], tracker=seeder())
    await whole(world)
    assert ("bad" in world.banned) == ("corrupt" in faults)


async def test_of_three_liars_and_one_honest_peer_the_honest_one_wins() -> None:
    liars = [source(f"liar{i}", corrupt=frozenset(range(0, len(DATA), 700_000))) for i in range(3)]
    world = World(peers=[*liars, source("honest")])
    await whole(world)
    assert set(world.banned) <= {"liar0", "liar1", "liar2"}
    assert world.banned


async def test_with_nobody_who_has_it_the_reader_is_told_at_once() -> None:
    async with World().flights() as flights:
        with trio.fail_after(2), pytest.raises(RemoteError):
            await pull(flights)


async def test_only_liars_is_a_refusal_and_leaves_no_blob() -> None:
    world = World(peers=[source("liar", corrupt=frozenset(range(0, len(DATA), 500_000)))])
    world.tables[INFO.digest] = INFO
    async with world.flights() as flights:
        with trio.fail_after(10), pytest.raises(RemoteError):
            await pull(flights)
    assert world.added == []


async def test_a_reader_gets_its_range_first_and_the_first_byte_before_the_last_has_come() -> None:
    slow = source("slow", rate=4.0 * MIB)
    world = World(peers=[slow])
    world.tables[INFO.digest] = INFO
    with trio.fail_after(10):
        async with world.flights() as flights:
            assert await pull(flights, 6 * MIB + 10, 100) == DATA[6 * MIB + 10 :][:100]
            assert slow.sent < len(DATA), "the range came before the rest"
            assert await pull(flights) == DATA


async def test_any_number_of_readers_share_one_download() -> None:
    world = World(peers=[source("a", rate=20.0 * MIB)])
    results: list[bool] = []

    async def read(flights: Flights, offset: int) -> None:
        results.append(await pull(flights, offset) == DATA[offset:])

    with trio.fail_after(10):
        async with world.flights() as flights, trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(read, flights, i * 400_000)
    assert results == [True] * 20
    assert world.fetched["peer"] < 1.5 * len(DATA)


async def test_a_reader_that_leaves_cancels_nothing() -> None:
    world = World(peers=[source("a", rate=20.0 * MIB)])
    with trio.fail_after(10):
        async with world.flights() as flights:
            reading = await flights.join(INFO.ref).open(0, len(DATA))
            await reading.aclose()
            while len(flights):
                await trio.sleep(0)
    assert world.added == [INFO.digest]


async def test_a_flight_that_nobody_reads_pauses_and_goes_on_where_it_was() -> None:
    world = World(peers=[source("a", rate=3.0 * MIB)])
    world.tables[INFO.digest] = INFO
    with trio.fail_after(20):
        async with world.flights() as flights:
            flights.linger = 0.5
            reading = await flights.join(INFO.ref).open(0, len(DATA))
            await reading.aclose()
            while len(flights):
                await trio.sleep(0)
            assert world.added == []
            assert await world.store.staged()
            flights.linger = 60.0
            got_before = world.peers[0].sent
            world.peers[0].faults.rate = None
            assert await pull(flights) == DATA
    # at most the pieces that were on their way when it paused are fetched twice
    assert world.peers[0].sent <= len(DATA) + 4 * MIB
    assert got_before > 0


async def test_a_wrong_table_is_refused_and_its_source_banned() -> None:
    other = bytes(len(DATA))
    world = World(peers=[source("liar", data=other)], tracker=seeder())
    await whole(world)


async def test_small_and_empty_blobs() -> None:
    for data in (b"", b"x", random.Random(1).randbytes(MIB)):
        info = Metainfo.of_bytes(data)
        peer = MemorySource("a", {info.digest: data})
        world = World(peers=[peer])
        with trio.fail_after(5):
            async with world.flights() as flights:
                if data:
                    reading = await flights.join(info.ref).open(0, len(data))
                    assert b"".join([chunk async for chunk in reading]) == data
                    await reading.aclose()
                else:
                    flights.join(info.ref)
                while len(flights):
                    await trio.sleep(0)
        blob = await world.store.open(info.digest)
        assert blob.size == len(data)
        blob.close()


async def test_in_a_crowd_the_tracker_chooses_and_peers_give_the_rest() -> None:
    world = World(tracker=seeder(), peers=[source("a")], others=(5, 0))
    world.partial = {"a": bytes(i % 2 for i in range(INFO.count))}
    await whole(world)
    assert world.tracker is not None
    assert world.tracker.chosen
    assert world.fetched["peer"] >= (INFO.count // 2 - 1) * MIB
    assert len(set(world.tracker.chosen)) >= INFO.count - INFO.count // 2


async def test_a_partial_holder_that_gets_more_is_asked_for_it() -> None:
    """Its have-map grows while the flight goes on; nobody else has anything."""
    world = World(peers=[source("a")])
    world.partial = {"a": bytes(INFO.count)}
    world.tables[INFO.digest] = INFO
    with trio.fail_after(20):
        async with world.flights() as flights, trio.open_nursery() as nursery:
            nursery.start_soon(pull, flights)
            while not world.followers:
                await trio.sleep(0)
            for index in range(INFO.count):
                await trio.sleep(0.01)
                for follower in world.followers:
                    follower.more("a", [index])
            while len(flights):
                await trio.sleep(0)
    assert world.added == [INFO.digest]


async def test_what_a_flight_has_is_shown_to_watchers_and_no_more_than_that() -> None:
    world = World(peers=[source("a", rate=6.0 * MIB)])
    world.tables[INFO.digest] = INFO
    with trio.fail_after(20):
        async with world.flights() as flights:
            reading = await flights.join(INFO.ref).open(0, len(DATA))
            partial = world.haves.partial(INFO.digest)
            assert partial is not None
            assert partial.has(0)
            blob = await partial.open()
            shown = [index for index in range(INFO.count) if partial.has(index)]
            assert len(shown) < INFO.count
            for index in shown:
                assert await blob.read_at(index * MIB, MIB) == DATA[index * MIB :][:MIB]
            blob.close()
            await reading.aclose()
            while len(flights):
                await trio.sleep(0)
            assert world.haves.partial(INFO.digest) is None


async def test_flights_wait_their_turn() -> None:
    blobs = [random.Random(n).randbytes(MIB + n) for n in range(6)]
    infos = [Metainfo.of_bytes(data) for data in blobs]
    peer = MemorySource("a", {info.digest: data for info, data in zip(infos, blobs, strict=True)})
    world = World(peers=[peer])
    world.tables = {info.digest: info for info in infos}
    most = 0
    with trio.fail_after(20):
        async with world.flights(active=2) as flights, trio.open_nursery() as nursery:

            async def read(info: Metainfo, data: bytes) -> None:
                nonlocal most
                reading = await flights.join(info.ref).open(0, len(data))
                most = max(most, sum(world.haves.partial(other.digest) is not None for other in infos))
                assert b"".join([chunk async for chunk in reading]) == data
                await reading.aclose()

            for info, data in zip(infos, blobs, strict=True):
                nursery.start_soon(read, info, data)
    assert 1 <= most <= 2
    assert len(world.added) == 6
