"""The requests of a flight that are out: pieces received into reused buffers, hashed and written in worker threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import NotFound, NotYet, RegistryError, RemoteBusy, RemoteError, Unreachable
from p2pregistry.pull.commands import Cancel, Command, Next, Request
from p2pregistry.pull.plan import Plan
from p2pregistry.rate import Pace
from p2pregistry.sources.base import Incoming, Source
from p2pregistry.spool import Spool
from p2pregistry.surroundings import Buffers, Tracker


class Account(Protocol):
    """Where transfers are counted and held up: ``rank.Rank``."""

    buffers: Buffers

    def fetched(self, kind: str, count: int) -> None:
        """So many bytes have come from a source of this kind."""

    def pace(self, source: Source) -> Pace | None:
        """What to await after bytes from this source."""

    @property
    def step(self) -> int:
        """Bytes to read at once, at most."""


class Transfers:
    """Obeys ``Request``, ``Next`` and ``Cancel``; what comes of them goes to the plan, and its answer to ``obey``."""

    def __init__(
        self,
        nursery: trio.Nursery,
        account: Account,
        plan: Plan,
        spool: Spool,
        obey: Callable[[list[Command]], None],
        arrived: Callable[[int], None],
    ) -> None:
        self._nursery, self._account, self._plan, self._spool = nursery, account, plan, spool
        self._obey, self._arrived = obey, arrived
        self._scopes: dict[int, trio.CancelScope] = {}

    def begin(self, request: Request, source: Source | None) -> None:
        """Fetch what the plan asks for."""
        scope = self._scopes[request.id] = trio.CancelScope()
        self._nursery.start_soon(self._fetch, request, source, scope)

    def begin_next(self, ask: Next, tracker: Tracker | None) -> None:
        """Let the tracker choose a piece, and fetch it."""
        scope = self._scopes[ask.id] = trio.CancelScope()
        self._nursery.start_soon(self._fetch_next, ask, tracker, scope)

    def cancel(self, command: Cancel) -> None:
        scope = self._scopes.pop(command.id, None)
        if scope is not None:
            scope.cancel()

    async def _fetch(self, request: Request, source: Source | None, scope: trio.CancelScope) -> None:
        info = self._spool.info
        offset = request.first * PIECE_SIZE
        length = min(info.size, (request.first + request.count) * PIECE_SIZE) - offset
        try:
            with scope:
                if source is None:
                    raise Unreachable("it is gone")
                async with source.fetch(info.digest, offset, length) as incoming:
                    for index in range(request.first, request.first + request.count):
                        await self._receive(incoming, request.id, index, source)
        except (NotFound, RemoteError) as err:
            self._failed(request.id, request.source, err)
        finally:
            self._scopes.pop(request.id, None)

    async def _fetch_next(self, ask: Next, tracker: Tracker | None, scope: trio.CancelScope) -> None:
        try:
            with scope:
                if tracker is None:
                    raise Unreachable("it does not answer")
                async with tracker.next_piece(self._spool.info.digest, ask.wanted) as chosen:
                    if chosen.index is None:
                        self._obey(self._plan.nothing(ask.id, chosen.wait, trio.current_time()))
                    else:
                        self._obey(self._plan.chosen(ask.id, chosen.index, trio.current_time()))
                        await self._receive(chosen, ask.id, chosen.index, tracker)
        except (NotFound, RemoteError) as err:
            self._failed(ask.id, ask.source, err)
        finally:
            self._scopes.pop(ask.id, None)

    def _failed(self, request: int, source: str, err: RegistryError) -> None:
        plan, now = self._plan, trio.current_time()
        match err:
            case NotYet():
                self._obey(plan.lied(request, now))
            case NotFound():
                self._obey(plan.missing(source, now))
            case RemoteBusy():
                self._obey(plan.failed(request, "it is busy", now, retry_after=err.retry_after))
            case _:
                self._obey(plan.failed(request, err.message, now))

    async def _receive(self, incoming: Incoming, request: int, index: int, source: Source) -> None:
        account, pace = self._account, self._account.pace(source)
        buffer = account.buffers.take()
        handed_over = False
        try:
            view = memoryview(buffer)[: self._spool.info.length(index)]
            at = 0
            while at < len(view):
                count = await incoming.read_into(view[at : at + account.step])
                at += count
                account.fetched(source.kind, count)
                self._plan.heard(request, trio.current_time())
                if pace is not None:
                    await pace(count)
            handed_over = True
            self._nursery.start_soon(self._verify, request, index, buffer, len(view))
        finally:
            if not handed_over:
                account.buffers.give(buffer)

    async def _verify(self, request: int, index: int, buffer: bytearray, length: int) -> None:
        """Hash and write in a worker thread while the next piece arrives."""
        try:
            good = await self._spool.write(index, memoryview(buffer)[:length])
        finally:
            self._account.buffers.give(buffer)
        now = trio.current_time()
        if good:
            self._arrived(index)
            self._obey(self._plan.arrived(request, index, length, now))
        else:
            self._obey(self._plan.bad(request, index, now))
