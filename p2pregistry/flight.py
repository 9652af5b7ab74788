"""The driver of ``pull/plan``: runs the one download of a digest, for any number of readers.

The plan decides; this module keeps its sources, hands its requests to ``transfers`` and reports back what comes of
them. Everything that touches the plan happens in plain synchronous code between two checkpoints, so no lock is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import BadContent, RegistryError, RemoteError, Unreachable
from p2pregistry.haves import Haves
from p2pregistry.partial import SpoolPartial
from p2pregistry.piece_table import TablesAhead, TableSearch, learn
from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.pieces import Randrange
from p2pregistry.pull.plan import Plan
from p2pregistry.rank import Rank, Till
from p2pregistry.reading import Reading, Readings, opened
from p2pregistry.sources.base import Source
from p2pregistry.spool import Spool, again
from p2pregistry.store.base import BlobStore
from p2pregistry.store.recover import surviving_pieces
from p2pregistry.surroundings import Finder, Shelf, Tables
from p2pregistry.transfers import Transfers

#: Seconds between two looks at the clock.
TICK = 0.2
#: Pieces given to the digest of the whole at once: trips to a worker thread are not free.
HASH_PIECES = 8


class Service(Till, Protocol):
    """What a flight needs of the service it belongs to: ``flights.Flights``."""

    finder: Finder
    shelf: Shelf
    tables: Tables
    ahead: TablesAhead
    store: BlobStore
    haves: Haves
    randrange: Randrange
    limits: Limits
    announce_wait: float
    linger: float
    rest: bool
    note: Callable[[RegistryError], None]
    finished: Callable[[BlobRef], None]

    @property
    def share(self) -> int:
        """Bytes that one flight may have in flight."""

    @property
    def low_share(self) -> int:
        """The same for one that no client waits for."""

    @property
    def clients(self) -> int:
        """Flights under way that clients have asked for."""

    def paused(self, flight: Flight) -> None:
        """A flight fetches no more for now."""

    def resumed(self) -> None:
        """One that was paused goes on."""


class Flight:
    """One running download."""

    def __init__(self, service: Service, ref: BlobRef, rank: Rank) -> None:
        self.ref, self.rank = ref, rank
        self._service = service
        self._ready = trio.Event()  # the spool exists, or the flight failed before it could
        self._failure: RegistryError | None = None
        self.spool: Spool | None = None
        self._plan: Plan | None = None
        self._transfers: Transfers | None = None
        self._sources: dict[str, Source] = {}
        self._told: dict[str, tuple[bytes | None, bool]] = {}  # of sources that the plan does not know yet
        self._crowd: tuple[int, int] | None = None
        self._tracker_asked = trio.Event()
        self._over = trio.Event()
        self._readers = 0
        self._wants: dict[int, tuple[int, int]] = {}
        self._next_reader = 0
        self._unread_since = trio.current_time()
        self._scope = trio.CancelScope()
        self._looked = False
        self._looking = False
        self._search: TableSearch | None = None
        self.paused = False
        self.held = False
        self._landed = False  # nothing can be asked for any more
        self.done = False
        self.ended = trio.Event()

    # -- readers ------------------------------------------------------------------------------------------------

    async def open(self, offset: int, length: int) -> Reading:
        """Wait until the first byte of this range can be read, then a reading of it, which must be closed.

        Raises RemoteError, NotFound or LocalError: nothing has been promised to anybody yet.
        """
        return await opened(Reading(self, offset, length))

    async def open_ranges(self, ranges: Sequence[tuple[int, int]]) -> Readings:
        """The same for several (offset, length): the pieces of all of them are fetched first."""
        return await opened(Readings(self, ranges))

    async def ready(self) -> None:
        await self._ready.wait()
        if self._failure is not None and self.spool is None:
            raise again(self._failure)

    def enter(self) -> int:
        self._readers += 1
        self._next_reader += 1
        if self.paused:
            self._resume()
        return self._next_reader

    def move(self, reader: int, index: int, end: int) -> None:
        self._wants[reader] = (index, end)  # the plan may not be there yet
        if self._plan is not None:
            self._obey(self._plan.reader(reader, index, trio.current_time(), end))

    def leave(self, reader: int) -> None:
        self._readers -= 1
        self._wants.pop(reader, None)
        self._unread_since = trio.current_time()
        if self._plan is not None:
            self._obey(self._plan.reader(reader, None, trio.current_time()))
        self._let_go()

    def _let_go(self) -> None:
        if self.done and self._readers == 0 and self.spool is not None:
            self.spool.close()

    # -- pausing: what is here stays shared, nothing more is asked for ------------------------------------------

    def _pause(self) -> None:
        assert self._plan is not None
        self.paused = True
        self._obey(self._plan.follow_rest(False, trio.current_time()))
        self._service.paused(self)

    def _resume(self) -> None:
        self.paused = False
        self._unread_since = trio.current_time()
        self._service.resumed()
        if self._plan is not None:
            self._obey(self._plan.follow_rest(self._rest, trio.current_time()))

    @property
    def _rest(self) -> bool:
        """Whether what no reader has asked for is fetched too."""
        return not self.held and (self.rank.ahead or self._service.rest)

    @property
    def failure(self) -> RegistryError | None:
        """Why it has ended without the blob."""
        return self._failure

    @property
    def here(self) -> int:
        """Bytes that are here."""
        return 0 if self.spool is None else self.spool.bytes_here

    def hold(self, held: bool) -> None:
        """Ask for nothing new while others come first; or go on."""
        if held == self.held:
            return
        self.held = held
        if self._plan is not None and not self.paused and not self._landed:
            self._obey(self._plan.follow_rest(self._rest, trio.current_time()))

    def keep(self) -> None:
        """It goes on whether it is read or not."""
        self.rank.ahead = True
        if self.paused:
            self._resume()

    def end(self) -> None:
        """Give up a flight that is paused or that nobody waits for; its partial file stays for a later one."""
        self._scope.cancel()

    # -- the flight ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From nothing to a committed blob. Errors go to the readers, not to the service."""
        try:
            with self._scope, self._service.shelf.pin(self.ref.digest):
                async with self._service.shelf.room(self.ref.digest, self.ref.size, ahead=self.rank.low):
                    with self._service.finder.follow(self.ref, self):
                        await self._fly()
            if self._scope.cancelled_caught:
                self._fail(Unreachable("the download was ended because nobody read it"))
        except RegistryError as err:
            self._fail(err)
        except BaseExceptionGroup as group:
            ours, others = group.split(RegistryError)
            self._fail(Unreachable("the download was interrupted") if ours is None else _first(ours))
            if others is not None:  # a cancellation, or a bug: not ours to keep
                raise others from None
        except BaseException:
            self._fail(Unreachable("the download was interrupted"))
            raise
        finally:
            self.done = True
            self.ended.set()
            self._let_go()

    def _fail(self, failure: RegistryError) -> None:
        self._failure = failure
        self._ready.set()
        self._service.haves.drop(self.ref.digest)
        if self.spool is not None:
            self.spool.fail(failure)

    async def _fly(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._join_tracker)
            if self.ref.size <= PIECE_SIZE and self._service.finder.tracker is not None:
                self._looked = True  # it would be here before a look-up has ended
            else:
                nursery.start_soon(self._look_up)
            info = await self._learn()
            key = str(self.ref.digest).replace(":", "-")
            staged = await self._service.store.stage(key)
            have = await surviving_pieces(staged, info)
            if self.ref.size == 0:
                have = {0}
            spool = self.spool = Spool(info, staged, have)
            if info.count > 1:
                partial = await SpoolPartial.share(spool)
                self._service.haves.begin(self.ref.digest, info.count, have, partial)
            await self._tracker_asked.wait()  # without any source the plan would give up at once
            self._begin_plan(spool, have)
            self._ready.set()
            nursery.start_soon(self._clock)
            if info.count > 1:
                await self._check_whole(spool)
            else:
                await self._until_over()
            await self._finish(spool)
            nursery.cancel_scope.cancel()

    async def _learn(self) -> Metainfo:
        search = self._search = TableSearch(
            self.ref,
            self._service.finder,
            self._sources,
            searched=lambda: self._looked and not self._looking,
            note=self._service.note,
            bad=self.gone,
        )
        service = self._service
        info, new = await learn(service.tables, service.ahead, search, self.ref)
        if new:
            self._nursery.start_soon(service.tables.put_metainfo, info)  # nothing waits for it
        return info

    def _begin_plan(self, spool: Spool, have: set[int]) -> None:
        now, service = trio.current_time(), self._service
        plan = self._plan = Plan(
            spool.info.count,
            now=now,
            randrange=service.randrange,
            limits=service.limits,
            have=frozenset(have),
            looked=self._looked and not self._looking,
            rest=self._rest,
        )
        self._transfers = Transfers(self._nursery, self.rank, plan, spool, self._obey, self._arrived)
        self.share(service.low_share if self.rank.low else service.share)
        if self._crowd is not None:
            self._obey(plan.crowd(*self._crowd, now))
        for name, (pieces, near) in self._told.items():
            source = self._sources[name]
            self._obey(plan.joined(name, source.kind, now, have=_fitting(pieces, spool.info.count), near=near))
        for reader, (index, end) in self._wants.items():
            self._obey(plan.reader(reader, index, now, end))
        self._obey(plan.begin(now))

    def share(self, budget: int) -> None:
        """The flight's part of the bytes that the node may have in flight."""
        if self._plan is not None:
            self._plan.budget = budget

    def _arrived(self, index: int) -> None:
        if self.spool is not None and self.spool.info.count > 1:
            self._service.haves.add(self.ref.digest, index)

    async def _finish(self, spool: Spool) -> None:
        with trio.CancelScope(shield=True):  # between its two names a reader would find neither
            staged = await spool.hold()
            blob = None
            try:
                await staged.commit(self.ref.digest)
                blob = await self._service.store.open(self.ref.digest)
            finally:
                spool.release(blob)
            if self._service.tables.metainfo(self.ref.digest) is None:  # its writing may have been cut off
                await self._service.tables.put_metainfo(spool.info)
            await self._service.shelf.added(self.ref.digest, self.ref.size, ahead=self.rank.low)
            self._service.haves.full(self.ref.digest)
        self._service.finished(self.ref)

    async def _until_over(self) -> None:
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    async def _check_whole(self, spool: Spool) -> None:
        """Follow the verified prefix with the digest of the whole, so that nothing is left to do at the end."""
        whole = hashlib.new(self.ref.digest.algorithm)
        index = 0
        while index < spool.info.count:
            await spool.wait(index)
            count = spool.here_from(index, HASH_PIECES)
            await spool.hash_at(index, count, whole)
            index += count
        if whole.digest() != self.ref.digest.raw:
            staged = await spool.hold()
            await staged.discard()
            raise BadContent("the pieces verify but the whole does not: the piece table is wrong")

    async def _clock(self) -> None:
        try:
            await self._tick()
        finally:  # it lives as long as anything can be asked for
            self._landed = True

    async def _tick(self) -> None:
        assert self._plan is not None
        while True:
            now = trio.current_time()
            wake = self._plan.wake_at(now)
            await trio.sleep(TICK if wake is None else min(TICK, wake - now))
            now = trio.current_time()
            self._obey(self._plan.tick(now))
            if (
                self._readers == 0
                and not (self.paused or self.rank.ahead)
                and now - self._unread_since > self._service.linger
            ):
                self._pause()

    # -- sources ------------------------------------------------------------------------------------------------

    async def _join_tracker(self) -> None:
        # The tracker's answer is some milliseconds away; it says whether the tracker's bytes are wanted at all.
        finder = self._service.finder
        with trio.move_on_after(self._service.announce_wait):
            await finder.announced(self.ref.digest)
        self._have_tracker()
        self._tracker_asked.set()

    def _have_tracker(self) -> None:
        tracker = self._service.finder.tracker
        if tracker is not None:
            self.have(tracker, None, near=True)

    async def _look_up(self) -> None:
        self._looking = True
        try:
            await self._service.finder.look_up(self.ref.digest, need=self._in_need)
        except RemoteError as err:
            # nothing was found this way; the plan decides whether to look again
            self._service.note(err)
        finally:
            self._looking, self._looked = False, True
        self._have_tracker()
        if self._search is not None:
            self._search.news()
        if self._plan is not None:
            self._obey(self._plan.looked_up(trio.current_time()))

    def _in_need(self) -> bool:
        return self._plan is not None and self._plan.in_need(trio.current_time())

    def have(self, source: Source, pieces: bytes | None, near: bool) -> None:
        """See Follower."""
        known = self._sources.get(source.name)
        self._sources[source.name] = source
        if self._plan is None or self.spool is None:
            self._told[source.name] = (pieces, near)
            if self._search is not None:
                self._search.news()
            return
        plan, now = self._plan, trio.current_time()
        if known is None:
            have = _fitting(pieces, self.spool.info.count)
            self._obey(plan.joined(source.name, source.kind, now, have=have, near=near))
        elif pieces is None:
            self._obey(plan.complete(source.name, now))
        else:
            self.more(source.name, [index for index, bit in enumerate(pieces) if bit])

    def more(self, source: str, pieces: Sequence[int]) -> None:
        """See Follower."""
        if self._plan is not None and self.spool is not None:
            good = [index for index in pieces if index < self.spool.info.count]
            self._obey(self._plan.has(source, good, trio.current_time()))
        elif source in self._told:
            before, near = self._told[source]
            if before is not None and pieces:
                grown = bytearray(before.ljust(max(pieces) + 1, b"\0"))
                for index in pieces:
                    grown[index] = 1
                self._told[source] = (bytes(grown), near)

    def gone(self, source: str) -> None:
        """See Follower."""
        self._sources.pop(source, None)
        self._told.pop(source, None)
        if self._plan is not None:
            self._obey(self._plan.left(source, trio.current_time()))

    def crowd(self, wanting: int, holding: int) -> None:
        """See Follower."""
        self._crowd = (wanting, holding)
        if self._plan is not None:
            self._obey(self._plan.crowd(wanting, holding, trio.current_time()))

    # -- obeying the plan ---------------------------------------------------------------------------------------

    def _obey(self, commands: list[Command]) -> None:
        transfers = self._transfers
        for command in commands:
            assert transfers is not None
            match command:
                case Request():
                    transfers.begin(command, self._sources.get(command.source))
                case Next():
                    transfers.begin_next(command, self._service.finder.tracker)
                case Cancel():
                    transfers.cancel(command)
                case Drop():
                    self._sources.pop(command.source, None)
                    if command.ban:
                        self._service.finder.ban(command.source, command.why)
                case LookUp():
                    if not self._looking:
                        self._nursery.start_soon(self._look_up)
                case Finished():
                    self._over.set()
                case GiveUp():
                    self._failure = Unreachable(f"the blob cannot be had now: {command.why}")
                    self._over.set()
                    if self.spool is not None:
                        self.spool.fail(self._failure)


def _fitting(pieces: bytes | None, count: int) -> bytes | None:
    """A have-map of exactly ``count`` pieces, whatever a peer sent."""
    return None if pieces is None else pieces[:count].ljust(count, b"\0")


def _first(group: BaseExceptionGroup[RegistryError]) -> RegistryError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
