"""The driver of ``pull/plan``: runs the one download of a digest, for any number of readers.

A flight lives in the nursery of ``Flights``, not in that of a request: a client that leaves cancels nothing. The plan
decides; this module opens sources, receives pieces into reused buffers, hashes and writes them in worker threads, and
reports back. Everything that touches the plan happens in plain synchronous code between two checkpoints, so no lock is
needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteBusy, RemoteError, Unreachable
from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Request
from p2pregistry.pull.pieces import Randrange
from p2pregistry.pull.plan import Plan
from p2pregistry.reading import Reading
from p2pregistry.sources.base import Incoming, Source
from p2pregistry.spool import Spool, again
from p2pregistry.store.base import BlobStore
from p2pregistry.store.recover import surviving_pieces
from p2pregistry.surroundings import Buffers, Finder, Shelf, Tables

#: Seconds between two looks at the clock.
TICK = 0.2
#: Seconds before peers are asked for a piece table that the tracker has not given yet.
TABLE_HEDGE = 0.3
TABLE_TIMEOUT = 10.0
#: Pieces given to the digest of the whole at once: trips to a worker thread are not free.
HASH_PIECES = 8


class Flight:
    """One running download."""

    def __init__(self, service: Flights, ref: BlobRef) -> None:
        self.ref = ref
        self._service = service
        self._ready = trio.Event()  # the spool exists, or the flight failed before it could
        self._failure: RegistryError | None = None
        self.spool: Spool | None = None
        self._plan: Plan | None = None
        self._sources: dict[str, Source] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._over = trio.Event()
        self._readers = 0
        self._next_reader = 0
        self._unread_since = trio.current_time()
        self._scope = trio.CancelScope()
        self._new_source = trio.Event()
        self._first_look = trio.Event()
        self._looking = False
        self.done = False

    # -- readers ------------------------------------------------------------------------------------------------

    async def open(self, offset: int, length: int) -> Reading:
        """Wait until the first byte of this range can be read, then a reading of it, which must be closed.

        Raises RemoteError, NotFound or LocalError: nothing has been promised to anybody yet.
        """
        reading = Reading(self, offset, length)
        try:
            await self._ready.wait()
            if self._failure is not None and self.spool is None:
                raise again(self._failure)
            await reading.first()
        except BaseException:
            reading.close()
            raise
        return reading

    def enter(self) -> int:
        self._readers += 1
        self._next_reader += 1
        return self._next_reader

    def move(self, reader: int, index: int) -> None:
        if self._plan is not None:
            self._obey(self._plan.reader(reader, index, trio.current_time()))

    def leave(self, reader: int) -> None:
        self._readers -= 1
        self._unread_since = trio.current_time()
        if self._plan is not None:
            self._obey(self._plan.reader(reader, None, trio.current_time()))
        self._let_go()

    def _let_go(self) -> None:
        if self.done and self._readers == 0 and self.spool is not None:
            self.spool.close()

    # -- the flight ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From nothing to a committed blob. Errors go to the readers, not to the service."""
        try:
            with self._scope, self._service.shelf.pin(self.ref.digest):
                async with self._service.shelf.room(self.ref.digest, self.ref.size):
                    await self._fly()
            if self._scope.cancelled_caught:
                self._fail(Unreachable("the download was paused because nobody read it"))
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
            self._let_go()

    def _fail(self, failure: RegistryError) -> None:
        self._failure = failure
        self._ready.set()
        if self.spool is not None:
            self.spool.fail(failure)

    async def _fly(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._join_tracker)
            nursery.start_soon(self._look_up)
            info = await self._learn()
            key = str(self.ref.digest).replace(":", "-")
            staged = await self._service.store.stage(key)
            have = await surviving_pieces(staged, info)
            if self.ref.size == 0:
                have = {0}
            spool = self.spool = Spool(info, staged, have)
            self._begin_plan(info, have)
            self._ready.set()
            nursery.start_soon(self._clock)
            if info.count > 1:
                await self._check_whole(spool)
            else:
                await self._until_over()
            await self._finish(spool)
            nursery.cancel_scope.cancel()

    def _begin_plan(self, info: Metainfo, have: set[int]) -> None:
        now = trio.current_time()
        service = self._service
        plan = self._plan = Plan(
            info.count,
            now=now,
            randrange=service.randrange,
            limits=service.limits,
            have=frozenset(have),
            looked=self._first_look.is_set() and not self._looking,
        )
        self.share(service.share)
        for source in list(self._sources.values()):
            self._obey(plan.joined(source.name, source.kind, now))
        self._obey(plan.begin(now))

    def share(self, budget: int) -> None:
        """The flight's part of the bytes that the node may have in flight."""
        if self._plan is not None:
            self._plan.budget = budget

    async def _finish(self, spool: Spool) -> None:
        with trio.CancelScope(shield=True):  # between its two names a reader would find neither
            staged = await spool.hold()
            blob = None
            try:
                await staged.commit(self.ref.digest)
                blob = await self._service.store.open(self.ref.digest)
            finally:
                spool.release(blob)
            await self._service.shelf.added(self.ref.digest, self.ref.size)
        self._service.finished(self.ref.digest)

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

    async def _join_tracker(self) -> None:
        # A look-up is usually answered within milliseconds; where holders turn up the tracker need not send a byte.
        with trio.move_on_after(self._service.lookup_wait):
            await self._first_look.wait()
        tracker = self._service.finder.tracker
        if tracker is not None:
            self._join(tracker)

    async def _look_up(self) -> None:
        self._looking = True
        try:
            await self._service.finder.find(self.ref.digest, self._join)
        except RemoteError as err:
            # nothing was found this way; the plan decides whether to look again
            self._service.note(err)
        finally:
            self._looking = False
            self._first_look.set()
        tracker = self._service.finder.tracker
        if tracker is not None:
            self._join(tracker)
        self._wake()
        if self._plan is not None:
            self._obey(self._plan.looked_up(trio.current_time()))

    def _join(self, source: Source) -> None:
        if source.name not in self._sources:
            self._sources[source.name] = source
            self._wake()
        if self._plan is not None:
            self._obey(self._plan.joined(source.name, source.kind, trio.current_time()))

    def _wake(self) -> None:
        self._new_source.set()
        self._new_source = trio.Event()

    async def _clock(self) -> None:
        assert self._plan is not None
        while True:
            now = trio.current_time()
            wake = self._plan.wake_at(now)
            await trio.sleep(TICK if wake is None else min(TICK, wake - now))
            now = trio.current_time()
            self._obey(self._plan.tick(now))
            if self._readers == 0 and now - self._unread_since > self._service.linger:
                self._scope.cancel()

    # -- the piece table ----------------------------------------------------------------------------------------

    async def _learn(self) -> Metainfo:
        info = Metainfo.of_small(self.ref) or self._service.tables.metainfo(self.ref.digest)
        if info is not None and info.root == self.ref.root:
            return info
        found: list[Metainfo] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_all_for_table, found, nursery.cancel_scope)
        if not found:
            raise Unreachable("no source gave the blob's piece table")
        await self._service.tables.put_metainfo(found[0])
        return found[0]

    async def _ask_all_for_table(self, found: list[Metainfo], scope: trio.CancelScope) -> None:
        tracker = self._service.finder.tracker
        tried: set[str] = set()
        async with trio.open_nursery() as nursery:
            if tracker is not None:
                tried.add(tracker.name)
                done = trio.Event()
                nursery.start_soon(self._ask_for_table, tracker, found, scope, done)
                with trio.move_on_after(TABLE_HEDGE):
                    await done.wait()
            while True:
                for source in list(self._sources.values()):
                    if source.name not in tried and len(tried) < 10:
                        tried.add(source.name)
                        nursery.start_soon(self._ask_for_table, source, found, scope, trio.Event())
                if self._first_look.is_set() and not self._looking:
                    return
                await self._new_source.wait()

    async def _ask_for_table(
        self, source: Source, found: list[Metainfo], scope: trio.CancelScope, done: trio.Event
    ) -> None:
        try:
            with trio.move_on_after(TABLE_TIMEOUT):
                blocks = await source.table(self.ref)
                found.append(Metainfo.of_table(self.ref, blocks))
                scope.cancel()
        except BadContent as err:
            self._service.finder.ban(source.name, err.message)
            self._sources.pop(source.name, None)
        except (RemoteError, NotFound) as err:
            self._service.note(err)  # others may have it
        finally:
            done.set()

    # -- obeying the plan ---------------------------------------------------------------------------------------

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Request():
                    scope = self._scopes[command.id] = trio.CancelScope()
                    self._nursery.start_soon(self._fetch, command, scope)
                case Cancel():
                    scope_ = self._scopes.pop(command.id, None)
                    if scope_ is not None:
                        scope_.cancel()
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

    async def _fetch(self, request: Request, scope: trio.CancelScope) -> None:
        plan, source = self._plan, self._sources.get(request.source)
        assert plan is not None
        if source is None:
            self._obey(plan.failed(request.id, "it is gone", trio.current_time()))
            return
        assert self.spool is not None
        info = self.spool.info
        offset = request.first * PIECE_SIZE
        length = min(info.size, (request.first + request.count) * PIECE_SIZE) - offset
        try:
            with scope:
                async with source.fetch(self.ref.digest, offset, length) as incoming:
                    for index in range(request.first, request.first + request.count):
                        await self._receive(incoming, request, index, source)
        except NotFound:
            self._obey(plan.missing(request.source, trio.current_time()))
        except RemoteBusy as busy:
            self._obey(plan.failed(request.id, "it is busy", trio.current_time(), retry_after=busy.retry_after))
        except RemoteError as err:
            self._obey(plan.failed(request.id, err.message, trio.current_time()))
        finally:
            self._scopes.pop(request.id, None)

    async def _receive(self, incoming: Incoming, request: Request, index: int, source: Source) -> None:
        assert self._plan is not None
        assert self.spool is not None
        buffer = self._service.buffers.take()
        handed_over = False
        try:
            view = memoryview(buffer)[: self.spool.info.length(index)]
            at = 0
            while at < len(view):
                count = await incoming.read_into(view[at:])
                at += count
                self._service.fetched(source.kind, count)
                self._plan.heard(request.id, trio.current_time())
            handed_over = True
            self._nursery.start_soon(self._verify, request, index, buffer, len(view))
        finally:
            if not handed_over:
                self._service.buffers.give(buffer)

    async def _verify(self, request: Request, index: int, buffer: bytearray, length: int) -> None:
        """Hash and write in a worker thread while the next piece arrives."""
        plan, spool = self._plan, self.spool
        assert plan is not None
        assert spool is not None
        try:
            good = await spool.write(index, memoryview(buffer)[:length])
        finally:
            self._service.buffers.give(buffer)
        now = trio.current_time()
        if good:
            self._obey(plan.arrived(request.id, index, length, now))
        else:
            self._obey(plan.bad(request.id, index, now))


def _first(group: BaseExceptionGroup[RegistryError]) -> RegistryError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


class Flights:
    """All flights of a node."""

    def __init__(
        self,
        store: BlobStore,
        shelf: Shelf,
        tables: Tables,
        finder: Finder,
        *,
        randrange: Randrange,
        limits: Limits | None = None,
        lookup_wait: float = 0.1,
        linger: float = 60.0,
        fetched: Callable[[str, int], None] = lambda _kind, _count: None,
        finished: Callable[[Digest], None] = lambda _digest: None,
        note: Callable[[RegistryError], None] = lambda _err: None,
    ) -> None:
        self.store, self.shelf, self.tables, self.finder = store, shelf, tables, finder
        self.randrange, self.lookup_wait = randrange, lookup_wait
        self.linger = linger  # seconds a flight goes on without readers before it pauses; its partial file stays
        self.limits = limits or Limits()
        self.fetched, self.finished, self.note = fetched, finished, note
        self.buffers = Buffers()
        self._flights: dict[Digest, Flight] = {}
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The nursery in which flights live. On leaving they are cancelled; partial files stay."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def join(self, ref: BlobRef) -> Flight:
        """The flight of this blob, started if there is none. Call where the blob is known not to be in the store."""
        flight = self._flights.get(ref.digest)
        if flight is None or flight.done:
            if self._nursery is None:
                raise Unreachable("the node is shutting down")
            flight = self._flights[ref.digest] = Flight(self, ref)
            self._divide()
            self._nursery.start_soon(self._run, flight)
        return flight

    def active(self, digest: Digest) -> bool:
        """Whether a flight of this digest is under way."""
        return digest in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    async def _run(self, flight: Flight) -> None:
        try:
            await flight.run()
        finally:
            if self._flights.get(flight.ref.digest) is flight:
                del self._flights[flight.ref.digest]
            self._divide()

    @property
    def share(self) -> int:
        """Bytes that one flight may have in flight, bytes."""
        return max(self.limits.piece, self.limits.in_flight // max(1, len(self._flights)))

    def _divide(self) -> None:
        for flight in self._flights.values():
            flight.share(self.share)
