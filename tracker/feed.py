"""The feed of changes: one reader of the database for a process, and a stream for each node that listens.

The reader has everything up to a number and hands out what comes after it. A stream begins *behind*: it reads the
database for itself until it has everything up to the reader's number, and then, without waiting in between, joins those
that are handed the rest. So nothing is missed, whatever changes meanwhile, and a stream that is behind keeps nothing.
What it was handed and has not sent is bounded: who reads too slowly is cut off, and comes back with its cursor.

Each change is looked at once for each repository and each distinct pattern that somebody is interested in, and signed
and encoded once.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from p2pregistry.errors import LocalError
from p2pregistry.feed_messages import HEARTBEAT, NOTHING, PACE, ChangesRequest, Interest
from p2pregistry.globs import begins, matches, prefix
from p2pregistry.observe import logger
from p2pregistry.trust.records import Caller, Stamp
from tracker.catalog.changes import Change, Changes, State
from tracker.feed_catchup import PAGE, catch_up
from tracker.feed_events import Events, Once
from tracker.signed import SignedRecords

#: Seconds between two looks at the database where nobody says that something changed.
POLL: Final = 1.0
#: Seconds between two tries while the database fails.
_RETRY: Final = 0.5
#: Bytes that were handed to a stream and not sent: beyond that it is cut off.
BACKLOG: Final = 4 << 20
#: Tags of a repository that came into sight that are handed out; of a larger one each stream reads for itself.
MOST_TAGS: Final = 1000
#: Seconds between two rounds that remove what is old.
PRUNE: Final = 86_400.0

#: Who asks, as of now; None: nobody any more. Raises LocalError.
Recheck = Callable[[], Awaitable[Caller | None]]

_log = logger(__name__)


class Subscriber:
    """A stream: whose it is, what it has been told, and what it is to be told next."""

    __slots__ = ("backlog", "behind", "caller", "cursor", "ended", "request", "size", "wake")

    def __init__(self, request: ChangesRequest, caller: Caller) -> None:
        self.request, self.caller = request, caller
        self.cursor = request.cursor
        self.behind = True
        self.ended = False
        self.backlog: list[bytes] = []
        self.size = 0
        self.wake: trio.Event | None = None

    def hand(self, data: bytes) -> None:
        """To be sent next."""
        if self.ended:
            return
        self.backlog.append(data)
        self.size += len(data)
        if self.size > BACKLOG:
            _log.info("a node reads its changes too slowly and is cut off", node=self.caller.peer_id)
            self.backlog.clear()
            self.size = 0
            self.ended = True
        self.rouse()

    def end(self) -> None:
        """What was handed to it is its last."""
        self.ended = True
        self.rouse()

    def rouse(self) -> None:
        if self.wake is not None:
            self.wake.set()

    def taken(self) -> bytes:
        """What is to be sent."""
        data = b"".join(self.backlog)
        self.backlog.clear()
        self.size = 0
        return data

    async def wait(self, until: float) -> None:
        """Until there is something to do, or then."""
        self.wake = trio.Event()
        with trio.move_on_at(until):
            await self.wake.wait()
        self.wake = None


class _Pattern:
    """Who is interested in what a pattern covers."""

    __slots__ = ("of", "pattern", "start")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.start = prefix(pattern)
        self.of: set[Subscriber] = set()

    def covers(self, change: Change) -> bool:
        if change.kind == "tag":
            name = f"{change.repository}:{change.name}"
            return name.startswith(self.start) and matches(self.pattern, name)
        start = change.repository + ":"
        return start.startswith(self.start[: len(start)]) and begins(self.pattern, start)


class Audience:
    """All streams that are handed changes, by what they are interested in."""

    def __init__(self) -> None:
        self.all: set[Subscriber] = set()
        self._repositories: dict[str, set[Subscriber]] = {}
        self._patterns: dict[str, _Pattern] = {}

    def add(self, one: Subscriber) -> None:
        """It is handed what comes from now on."""
        self.all.add(one)
        for name in one.request.interest.repositories:
            self._repositories.setdefault(name, set()).add(one)
        for pattern in one.request.interest.patterns:
            self._patterns.setdefault(pattern, _Pattern(pattern)).of.add(one)

    def remove(self, one: Subscriber) -> None:
        """It is not any more, if it was."""
        if one not in self.all:
            return
        self.all.discard(one)
        for name in one.request.interest.repositories:
            self._repositories[name].discard(one)
            if not self._repositories[name]:
                del self._repositories[name]
        for pattern in one.request.interest.patterns:
            self._patterns[pattern].of.discard(one)
            if not self._patterns[pattern].of:
                del self._patterns[pattern]

    def of(self, change: Change) -> set[Subscriber]:
        """Who is interested in this tag or repository."""
        found = set(self._repositories.get(change.repository, ()))
        for pattern in self._patterns.values():
            if not pattern.of <= found and pattern.covers(change):
                found |= pattern.of
        return found


class Feed:
    """``run`` must be running. ``listen`` calls what it is given when something may have changed, and does not return;
    ``now``: unix seconds; ``keep``: seconds that tombstones are kept."""

    def __init__(
        self,
        changes: Changes,
        signed: SignedRecords,
        *,
        listen: Callable[[Callable[[], None]], Awaitable[None]] | None = None,
        keep: float = math.inf,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._changes, self._listen, self._keep = changes, listen, keep
        self._events = Events(signed, now)
        self._audience = Audience()
        self._wake = trio.Event()
        self._state: State | None = None
        self._seen_at = 0.0
        self._failing = False
        #: Streams that are open, behind or not.
        self.open_streams = 0

    @property
    def ready(self) -> bool:
        """Whether streams can begin."""
        return self._state is not None

    # ---------------------------------------------------------------------------------------------------------- reader

    def changed(self) -> None:
        """Something may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Read and hand out, for ever."""
        async with trio.open_nursery() as nursery:
            if self._listen is not None:
                nursery.start_soon(self._listen, self.changed)
            if self._keep != math.inf:
                nursery.start_soon(prune_daily, partial(self._changes.prune, self._keep))
            await self._read()

    async def _read(self) -> None:
        while True:
            began = trio.current_time()
            self._wake = trio.Event()
            try:
                more = await self._look()
            except LocalError as err:
                if not self._failing:
                    _log.warning("changes cannot be read now", error=err.message)
                self._failing = True
                await trio.sleep(_RETRY)
                continue
            if self._failing:
                _log.info("changes are read again")
            self._failing = False
            if more:
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(POLL):
                await self._wake.wait()
            # what comes together is told together
            await trio.sleep_until(began + PACE)

    async def _look(self) -> bool:
        """Read what changed and hand it out; whether there is more. Raises LocalError."""
        seen_at = self._events.now()
        if self._state is None:
            self._state, self._seen_at = await self._changes.state(), seen_at
            return False
        page = await self._changes.since(self._state.number, PAGE)
        if page.state.epoch != self._state.epoch or page.state.number < self._state.number:
            self._begin_anew(page.state, seen_at)
            return False
        shown = [change.repository for change in page.changes if _in_sight(change)]
        tags = await self._tags(shown)
        after, self._state = self._state, page.state._replace(number=page.upto)
        self._seen_at = seen_at
        self._hand_out(page.changes, tags, after.stamp)
        return page.upto < page.state.number

    def _begin_anew(self, state: State, seen_at: float) -> None:
        """Numbers go back, or another epoch has begun: the database is another one, restored from a backup."""
        if self._state is not None and state.epoch == self._state.epoch:
            _log.warning("the numbers of changes have gone back; was a backup restored without tracker new-epoch?")
        self._state, self._seen_at = state, seen_at
        for one in list(self._audience.all):
            one.cursor = NOTHING
            self._fall_behind(one)

    def _fall_behind(self, one: Subscriber) -> None:
        self._audience.remove(one)
        one.behind = True
        one.rouse()

    async def _tags(self, repositories: list[str]) -> dict[str, list[Change]]:
        """The tags of repositories that came into sight, where somebody listens and they are not too many."""
        tags: dict[str, list[Change]] = {}
        for name in repositories:
            if self._audience.of(Change(0, "repository", name)):
                found = await self._changes.tags([name], ("", ""), MOST_TAGS + 1)
                if len(found) <= MOST_TAGS:
                    tags[name] = found
        return tags

    def _hand_out(self, changes: tuple[Change, ...], tags: dict[str, list[Change]], after: Stamp) -> None:
        """No waiting in here: who joins meanwhile would miss something."""
        assert self._state is not None
        touched: set[Subscriber] = set()
        for change in changes:
            if change.kind not in ("tag", "repository"):
                touched |= self._notify(change)
                continue
            if change.with_repository:
                continue
            if _in_sight(change) and change.repository not in tags:
                # there are too many, or nobody listened when they were read
                for one in self._audience.of(change):
                    one.cursor = max(one.cursor, after)
                    self._fall_behind(one)
            touched |= self._hand(change, change.number, after.number)
            for tag in tags.get(change.repository, ()) if _in_sight(change) else ():
                # they were read later than it, and it may have become public since
                touched |= self._hand(replace(tag, private=change.private), change.number, after.number)
        mark = self._events.mark(self._state.stamp, self._seen_at)
        for one in touched:
            if not one.behind:
                one.hand(mark)

    def _hand(self, change: Change, number: int, after: int) -> set[Subscriber]:
        """To all who are interested and may see it; who they are. ``number``: of the change with which it is told;
        ``after``: of the one before all that are told now."""
        assert self._state is not None
        once = Once(self._events, self._state.epoch, change)
        touched = set()
        for one in self._audience.of(change):
            known = one.cursor.number
            shown = change.shown(one.caller, max(after, known)) if number > known else None
            if shown is not None:
                one.hand(once.shown(shown))
                touched.add(one)
        return touched

    def _notify(self, change: Change) -> set[Subscriber]:
        """Of a node or of the keys. The stream of a node that was given something else, or was revoked, ends."""
        assert self._state is not None
        touched = set()
        for one in list(self._audience.all):
            data = self._events.notice(self._state.epoch, change, one.caller)
            if data and change.number > one.cursor.number:
                one.hand(data)
                touched.add(one)
                if change.kind == "node" and change.name == one.caller.peer_id:
                    one.end()
        return touched

    # --------------------------------------------------------------------------------------------------------- streams

    def stream(
        self, request: ChangesRequest, caller: Caller, recheck: Recheck | None = None
    ) -> AsyncGenerator[bytes, None]:
        """What is to be told, for as long as the caller is who it is. Raises LocalError while nothing is known here."""
        if self._state is None or (self._failing and request.cursor != self._state.stamp):
            raise LocalError("the changes cannot be read now")
        return self._stream(Subscriber(request, caller), recheck)

    async def _stream(self, one: Subscriber, recheck: Recheck | None) -> AsyncGenerator[bytes, None]:
        self.open_streams += 1
        fresh = one.request.fresh
        try:
            while True:
                if not (self._up_to_date(one.cursor) and not fresh):
                    async with aclosing(catch_up(self._changes, self._events, one, fresh)) as pages:
                        async for data, cursor in pages:
                            yield data
                            one.cursor = cursor
                    fresh = Interest()
                if not self._join(one):
                    if self._state is not None and one.cursor.epoch != self._state.epoch:
                        self.changed()
                        await trio.sleep(PACE)
                    continue
                yield self._mark(one)
                async with aclosing(self._live(one, recheck)) as batches:
                    async for data in batches:
                        yield data
                if one.ended:
                    return
        except LocalError as err:
            _log.info("a node cannot be told of changes now", error=err.message, node=one.caller.peer_id)
        finally:
            self._audience.remove(one)
            self.open_streams -= 1

    def _up_to_date(self, cursor: Stamp) -> bool:
        return self._state is not None and cursor == self._state.stamp

    def _join(self, one: Subscriber) -> bool:
        """Have it handed what comes, if it has everything that was handed out before."""
        state = self._state
        if state is None or one.cursor < state.stamp or one.cursor.epoch != state.epoch:
            return False
        one.behind = False
        self._audience.add(one)
        return True

    def _mark(self, one: Subscriber) -> bytes:
        assert self._state is not None
        return self._events.mark(max(self._state.stamp, one.cursor), self._seen_at)

    async def _live(self, one: Subscriber, recheck: Recheck | None) -> AsyncGenerator[bytes, None]:
        """What it is handed, with a mark now and then, until it has fallen behind or has ended."""
        marked = trio.current_time()
        while True:
            if one.backlog:
                marked = trio.current_time()
                yield one.taken()
            elif one.ended or one.behind:
                return
            elif trio.current_time() >= marked + HEARTBEAT:
                if not await _still(one.caller, recheck):
                    one.ended = True
                    return
                marked = trio.current_time()
                yield self._mark(one)
            else:
                await one.wait(marked + HEARTBEAT)


async def prune_daily(prune: Callable[[], Awaitable[int]]) -> None:
    """Remove what is old, some at a time, as long as ``prune`` says that it did; for ever."""
    while True:
        try:
            while await prune():
                await trio.lowlevel.checkpoint()
        except LocalError as err:
            _log.warning("what is old could not be removed", error=err.message)
        await trio.sleep(PRUNE)


def _in_sight(change: Change) -> bool:
    return change.kind == "repository" and change.private is not None


async def _still(caller: Caller, recheck: Recheck | None) -> bool:
    """Whether the caller is still who it was; where that cannot be found out, it is."""
    if recheck is None:
        return True
    try:
        return await recheck() == caller
    except LocalError:
        return True
