"""Flights that no client has asked for: they make way for clients', and become one of theirs when a client comes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import StorageFull, Unreachable
from p2pregistry.flights import Flights
from p2pregistry.haves import Haves
from p2pregistry.rate import Limiter, Pace
from p2pregistry.sources.memory import Faults, MemorySource
from p2pregistry.store.memory import MemoryStore
from p2pregistry.surroundings import Follower, Tracker

MIB = 1 << 20


def blob(seed: int, size: int) -> tuple[bytes, Metainfo]:
    data = random.Random(seed).randbytes(size)
    return data, Metainfo.of_bytes(data)


AHEAD, AHEAD_INFO = blob(1, 24 * MIB)
PULLED, PULLED_INFO = blob(2, 6 * MIB)
SMALL, SMALL_INFO = blob(3, 1000)


@dataclass
class World:
    """A peer for each blob, and a shelf that remembers how they came."""

    peers: dict[Digest, MemorySource]
    tracker: Tracker | None = None
    full: bool = False
    store: MemoryStore = field(default_factory=MemoryStore)
    added: list[tuple[Digest, bool]] = field(default_factory=list)
    tables: dict[Digest, Metainfo] = field(
        default_factory=lambda: {info.digest: info for info in (AHEAD_INFO, PULLED_INFO, SMALL_INFO)}
    )

    @contextmanager
    def follow(self, ref: BlobRef, follower: Follower) -> Iterator[None]:
        follower.have(self.peers[ref.digest], None, near=True)
        yield

    async def announced(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()

    async def look_up(self, digest: Digest, *, need: object = None) -> None:
        await trio.lowlevel.checkpoint()

    def ban(self, source: str, why: str) -> None:
        raise AssertionError(f"{source}: {why}")

    def metainfo(self, digest: Digest) -> Metainfo | None:
        return self.tables.get(digest)

    async def put_metainfo(self, info: Metainfo) -> None:
        await trio.lowlevel.checkpoint()


class _Shelf:
    def __init__(self, world: World) -> None:
        self._world = world

    @asynccontextmanager
    async def room(self, digest: Digest, size: int, *, ahead: bool = False) -> AsyncIterator[None]:
        if self._world.full and ahead:
            raise StorageFull("no room")
        yield

    def pin(self, digest: Digest) -> AbstractContextManager[None]:
        return nullcontext()

    async def added(self, digest: Digest, size: int, *, ahead: bool = False) -> None:
        self._world.added.append((digest, ahead))


def world(rate: float | None = 4.0 * MIB) -> World:
    blobs = {AHEAD_INFO.digest: AHEAD, PULLED_INFO.digest: PULLED, SMALL_INFO.digest: SMALL}
    return World(
        {digest: MemorySource("peer", {digest: data}, "peer", Faults(rate=rate)) for digest, data in blobs.items()}
    )


@asynccontextmanager
async def flights_in(
    where: World, *, active: int = 16, pace: Pace | None = None, linger: float = 60.0, rest: bool = True
) -> AsyncIterator[Flights]:
    service = Flights(
        where.store,
        _Shelf(where),
        where,
        where,
        randrange=random.Random(3).randrange,
        haves=Haves(),
        active=active,
        rest=rest,
        linger=linger,
        ahead_pace=pace,
    )
    async with service.running():
        yield service


async def pull(flights: Flights, info: Metainfo) -> bytes:
    reading = await flights.join(info.ref).open(0, info.size)
    data = bytearray()
    async for part in reading:
        data += part
    await reading.aclose()
    return bytes(data)


async def until(check: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not check():
            await trio.sleep(0.01)


async def test_it_ends_without_any_reader_and_does_not_pause(autojump_clock: MockClock) -> None:
    where = world(rate=1.0 * MIB)
    async with flights_in(where, linger=0.5, rest=False) as flights:
        flight = flights.fetch_ahead(AHEAD_INFO.ref)
        with trio.fail_after(60):
            await flight.ended.wait()
    assert flight.failure is None
    assert where.added == [(AHEAD_INFO.digest, True)]
    assert flight.rank.got["peer"] >= len(AHEAD)


async def test_it_takes_no_turn_from_a_client(autojump_clock: MockClock) -> None:
    where = world()
    async with flights_in(where, active=1) as flights:
        flights.fetch_ahead(AHEAD_INFO.ref)
        await until(lambda: bool(where.peers[AHEAD_INFO.digest].requests))
        with trio.fail_after(10):
            assert await pull(flights, PULLED_INFO) == PULLED
        assert (AHEAD_INFO.digest, True) not in where.added


async def test_it_asks_for_nothing_while_a_client_waits_and_goes_on_afterwards(autojump_clock: MockClock) -> None:
    where = world()
    peer = where.peers[AHEAD_INFO.digest]
    async with flights_in(where) as flights:
        ahead = flights.fetch_ahead(AHEAD_INFO.ref)
        await until(lambda: ahead.here >= MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, flights, PULLED_INFO)
            await until(lambda: flights.clients == 1)
            asked = sum(length for _offset, length in peer.requests)
            assert asked < len(AHEAD)
            while flights.clients:
                assert sum(length for _offset, length in peer.requests) == asked
                await trio.sleep(0.01)
        with trio.fail_after(60):
            await ahead.ended.wait()
    assert ahead.failure is None
    assert [digest for digest, _ahead in where.added] == [PULLED_INFO.digest, AHEAD_INFO.digest]


async def test_a_client_that_joins_makes_it_one_of_its_own(autojump_clock: MockClock) -> None:
    where = world(rate=None)
    async with flights_in(where, active=1, pace=Limiter(64 << 10).take) as flights:
        ahead = flights.fetch_ahead(AHEAD_INFO.ref)
        await until(lambda: ahead.rank.got.get("peer", 0) > 0)
        await trio.sleep(20)
        assert ahead.here <= 3 * MIB  # 64 KiB a second and what may come at once
        assert not ahead.done
        began = trio.current_time()
        assert await pull(flights, AHEAD_INFO) == AHEAD
        assert trio.current_time() - began < 2  # at the old rate: three minutes
        await until(lambda: len(flights) == 0)
        assert await pull(flights, PULLED_INFO) == PULLED  # the turn was given back
        await until(lambda: len(flights) == 0)
    assert where.added == [(AHEAD_INFO.digest, False), (PULLED_INFO.digest, False)]


async def test_a_slow_rate_holds_and_no_source_is_taken_to_be_silent(autojump_clock: MockClock) -> None:
    where = world(rate=None)
    async with flights_in(where, pace=Limiter(256 << 10).take) as flights:
        began = trio.current_time()
        ahead = flights.fetch_ahead(PULLED_INFO.ref)
        with trio.fail_after(120):
            await ahead.ended.wait()
        took = trio.current_time() - began
    assert ahead.failure is None
    assert 20 < took < 30  # 6 MiB
    assert where.peers[PULLED_INFO.digest].sent <= len(PULLED) + MIB  # nothing is asked twice because it was slow


async def test_one_that_was_paused_goes_on_when_it_is_wanted_ahead(autojump_clock: MockClock) -> None:
    where = world(rate=2.0 * MIB)
    async with flights_in(where, linger=0.5) as flights:
        reading = await flights.join(AHEAD_INFO.ref).open(0, 1)
        await reading.aclose()
        await until(lambda: len(flights) == 0)
        flight = flights.fetch_ahead(AHEAD_INFO.ref)
        assert len(flights) == 1
        with trio.fail_after(60):
            await flight.ended.wait()
    assert where.added == [(AHEAD_INFO.digest, False)]  # a client had asked for it


async def test_letting_go_ends_it_unless_a_client_wants_it(autojump_clock: MockClock) -> None:
    where = world()
    async with flights_in(where) as flights:
        ahead = flights.fetch_ahead(AHEAD_INFO.ref)
        await until(lambda: ahead.here > 0)
        flights.release(ahead)
        await until(lambda: ahead.done)
        assert isinstance(ahead.failure, Unreachable)
        assert await where.store.staged()  # for a later one to go on from
        ahead = flights.fetch_ahead(AHEAD_INFO.ref)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, flights, AHEAD_INFO)
            await until(lambda: not ahead.rank.low)
            flights.release(ahead)
    assert where.added == [(AHEAD_INFO.digest, False)]


async def test_small_ones_and_no_room(autojump_clock: MockClock) -> None:
    where = world()
    async with flights_in(where) as flights:
        small = flights.fetch_ahead(SMALL_INFO.ref)
        with trio.fail_after(10):
            await small.ended.wait()
        assert small.failure is None
        assert small.here == small.rank.got["peer"] == 1000
        where.full = True
        for info in (AHEAD_INFO, PULLED_INFO):
            refused = flights.fetch_ahead(info.ref)
            with trio.fail_after(10):
                await refused.ended.wait()
            assert isinstance(refused.failure, StorageFull)
        assert await pull(flights, PULLED_INFO) == PULLED  # a client's finds room
        await until(lambda: len(flights) == 0)
    assert where.added == [(SMALL_INFO.digest, True), (PULLED_INFO.digest, False)]


async def test_a_small_one_that_is_let_go_ends_too(autojump_clock: MockClock) -> None:
    where = world()
    where.peers[SMALL_INFO.digest].faults.delay = 1000.0
    async with flights_in(where) as flights:
        small = flights.fetch_ahead(SMALL_INFO.ref)
        await trio.sleep(0.1)
        flights.release(small)
        with trio.fail_after(0.1):
            await small.ended.wait()
        assert isinstance(small.failure, Unreachable)
        where.peers[SMALL_INFO.digest].faults.delay = 0.0
        assert await pull_small(flights) == SMALL


async def pull_small(flights: Flights) -> bytes:
    reading = await flights.join(SMALL_INFO.ref).open(0, len(SMALL))
    return b"".join([part async for part in reading])
