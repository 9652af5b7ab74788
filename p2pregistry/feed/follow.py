"""Follows the tracker's changes: one stream, opened again whenever it ends, and its events written to the index.

All records are verified before anything is written. What came before a mark is written with the mark, in one
transaction; only of a long snapshot parts go ahead of it, which hold by themselves. So a node that dies has the state
of some mark, and the next stream goes on from there.

While a stream is open and has caught up, the tags that it covers are *live*: what the index says is what the tracker
says. A tag that was asked for meanwhile cannot be set back: of two records the one with the higher
stamp stays, whichever comes last.

Where more is wanted a second stream is begun with the whole interest, and the first one ends when the second one has
caught up. All streams that break are opened again after a random time, so that nodes do not come back all at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RegistryError, Unreachable
from p2pregistry.feed.batch import Ending, Forget, Gathering, PutRepository, PutTag, Step
from p2pregistry.feed.interest import Wanted, ask
from p2pregistry.feed_messages import (
    ChangesRequest,
    Event,
    GoneEvent,
    Interest,
    KeysEvent,
    MarkEvent,
    NodeEvent,
    RepositoryEvent,
    ResetEvent,
    RevokedEvent,
    TagEvent,
)
from p2pregistry.observe import logger
from p2pregistry.sources.tracker import SILENCE, Events
from p2pregistry.store.applied import Changed, Known, Table, transact
from p2pregistry.store.index import Index
from p2pregistry.trust.records import RepositoryClaim, Stamp, TagClaim

#: Seconds: the most that is waited before the first attempt to open a stream again, and before any.
FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 60.0
#: Seconds for which more that is wanted is gathered before a second stream is opened, and between two such openings.
GATHER: Final = 0.1
APART: Final = 1.0
#: Seconds between two looks whether more is wanted.
LOOK: Final = 1.0
#: Steps that are written before their mark where there are that many.
PART: Final = 5000
#: Seconds between two writings of a cursor behind which nothing has changed for this node.
KEEP: Final = 5.0
#: Repositories that went of which it is remembered when.
_WENT: Final = 10_000
_log = logger(__name__)


class Source(Protocol):
    """The tracker."""

    def changes(self, request: ChangesRequest) -> AbstractAsyncContextManager[Events]: ...


class Judge(Protocol):
    """Verifies records. Raises BadContent, RemoteError."""

    async def tag(self, token: str) -> TagClaim: ...
    async def repository(self, token: str) -> RepositoryClaim: ...


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called at events. It must return at once.

    ``moved``: a tag points elsewhere now (None: nowhere); a node that dies may miss the call, so who needs each one
    looks at the index when it starts. ``visibility``: somebody may see more, or less. ``keys``: the tracker has other
    keys or revoked nodes. ``grant``: it has something new for this node.
    """

    moved: Callable[[str, str, Digest | None], None] = lambda _repository, _tag, _digest: None
    visibility: Callable[[], None] = _nothing
    keys: Callable[[], None] = _nothing
    grant: Callable[[], None] = _nothing


@dataclass(slots=True, eq=False)
class _Stream:
    """``clocks``: by how many seconds the tracker's clock is ahead of trio's; ``marked``: its interest is written."""

    request: ChangesRequest
    gathering: Gathering
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    clocks: float | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """For an operator. ``lag``: seconds that the tracker's last word is old, while connected; ``age``: seconds since
    what is known was last known to be so (None: it never was)."""

    connected: bool
    cursor: Stamp
    lag: float
    age: float | None
    repositories: int
    patterns: int


class Follower:
    """See the module. ``known``: what the index holds; ``now``: unix seconds by the tracker's clock; ``uniform``: draws
    a number between two. Only ``run`` opens streams; all else is for the tasks that serve."""

    def __init__(
        self,
        tracker: Source,
        judge: Judge,
        index: Index,
        wanted: Wanted,
        known: Known,
        *,
        now: Callable[[], float],
        hooks: Hooks | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._tracker, self._judge, self._index = tracker, judge, index
        self._wanted, self._now, self._uniform = wanted, now, uniform
        self._hooks = Hooks() if hooks is None else hooks
        self._cursor, self._seen, self._covered = known.cursor, known.seen, known.interest
        self._current: _Stream | None = None
        self._opening: _Stream | None = None
        self._wake, self._hurry = trio.Event(), trio.Event()
        self._wait, self._opened = 0.0, -APART
        self._kept = 0.0
        self._heard = 0.0
        self._anew = False
        self._applying = trio.Lock()
        self._went: dict[str, int] = {}
        self._moments = 0

    # -------------------------------------------------------------------------------------------------------- for tags

    def live(self, repository: str, tag: str) -> bool:
        """Whether the index says of the tag what the tracker says."""
        return self._current is not None and self._current.request.interest.covers(repository, tag)

    def confirmed(self, repository: str, tag: str) -> float:
        """Unix seconds by the tracker's clock at which what the index says of the tag was last known to be so; 0: this
        has nothing to say of it."""
        return self._seen if self._covered.covers(repository, tag) else 0.0

    def use(self, repository: str) -> None:
        """A tag of the repository was asked for."""
        if self._wanted.use(repository):
            self._wake.set()

    def moment(self) -> int:
        """For ``went_since``."""
        return self._moments

    def went_since(self, repository: str, moment: int) -> bool:
        """Whether the repository was taken out of sight since then, so that an answer to a question of that time does
        not bring it back."""
        return self._went.get(repository, 0) > moment

    @property
    def state(self) -> State:
        """As it is now."""
        covered, connected = self._covered, self._current is not None
        return State(
            connected,
            self._cursor,
            max(0.0, trio.current_time() - self._heard) if connected else 0.0,
            max(0.0, self._now() - self._seen) if self._seen else None,
            len(covered.repositories),
            len(covered.patterns),
        )

    # -------------------------------------------------------------------------------------------------------- streams

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                if self._opening is None and (self._current is None or self._lacking()):
                    await self._pause()
                    covered = Interest() if self._anew else self._covered
                    self._anew = False
                    request = ask(self._wanted.interest(), covered, self._cursor)
                    self._opened = trio.current_time()
                    self._opening = _Stream(request, Gathering(request))
                    nursery.start_soon(self._one, self._opening)
                else:
                    with trio.move_on_after(LOOK):  # patterns change without a word
                        await self._wake.wait()

    def again(self) -> None:
        """What this node may see has changed, or what is known was dropped: begin with the whole state, at once."""
        self._anew = True
        for stream in (self._opening, self._current):
            if stream is not None:
                stream.scope.cancel()
        self._wait = 0.0
        self._hurry.set()

    def _lacking(self) -> bool:
        return self._current is not None and self._wanted.lacks(self._current.request.interest)

    async def _pause(self) -> None:
        """Before a stream is opened."""
        pause = self._uniform(0.0, self._wait)
        if self._current is not None:
            pause = max(pause, GATHER, self._opened + APART - trio.current_time())
        self._hurry = trio.Event()
        with trio.move_on_after(pause):
            await self._hurry.wait()

    async def _one(self, stream: _Stream) -> None:
        """One stream, to its end."""
        try:
            with stream.scope:
                async with self._tracker.changes(stream.request) as events:
                    async for event in events:
                        await self._take(stream, event)
        except RegistryError as err:
            _log.info("changes are not followed now", why=err.message)
            self._wait = min(max(FIRST_WAIT, 2 * self._wait), LONGEST_WAIT)
        finally:
            if self._opening is stream:
                self._opening = None
            if self._current is stream:
                self._current = None
                self._index.moves += 1
            self._wake.set()

    # --------------------------------------------------------------------------------------------------------- events

    async def _take(self, stream: _Stream, event: Event) -> None:
        gathering = stream.gathering
        match event:
            case MarkEvent():
                await self._mark(stream, event)
            case ResetEvent():
                gathering.reset()
            case KeysEvent() | RevokedEvent():
                self._hooks.keys()
            case NodeEvent():
                self._hooks.grant()
            case _:
                gathering.add(await self._verified(event))
                if len(gathering) >= PART:
                    async with self._applying:
                        await self._write(stream, gathering.take(), None)

    async def _verified(self, event: TagEvent | RepositoryEvent | GoneEvent) -> Step:
        """Raises BadContent unless the tracker signed what it says."""
        match event:
            case TagEvent():
                claim = await self._judge.tag(event.record)
                if (claim.repository, claim.tag, claim.digest) != (event.repository, event.tag, event.digest):
                    raise BadContent("the record of a tag is another's")
                return PutTag(claim.repository, claim.tag, claim.digest, claim.stamp, event.record)
            case RepositoryEvent():
                said = await self._judge.repository(event.record)
                if (said.repository, said.private) != (event.repository, event.private):
                    raise BadContent("the record of a repository is another's")
                return PutRepository(said.repository, said.private, said.stamp, event.record)
        return Forget(event.repository, event.stamp)

    async def _mark(self, stream: _Stream, mark: MarkEvent) -> None:
        steps = stream.gathering.take()
        ending = stream.gathering.mark(mark.stamp)
        async with self._applying:
            whole = mark.time > 0  # else there is more to come at once
            heard, seen = self._heard, self._seen
            if whole:
                heard = _measure(stream, mark)
                seen = self._now() - (trio.current_time() - heard)
            # a cursor holds for one interest: while another stream is the current one, for that one's
            keep = whole or self._current in (None, stream)
            if steps or ending.whole or (keep and not stream.marked) or trio.current_time() >= self._kept + KEEP:
                await self._write(stream, steps, ending, seen if keep else None)
            if keep:
                stream.marked = True
                self._cursor, self._covered = mark.stamp, stream.request.interest
            if whole:
                self._seen, self._heard = seen, heard
                if self._current is not stream:
                    self._switch(stream)

    def _switch(self, stream: _Stream) -> None:
        """The stream tells all of its interest from now on: it takes the place of the one before."""
        before, self._current, self._opening = self._current, stream, None
        self._wait = 0.0
        self._index.moves += 1
        if before is not None:
            before.scope.cancel()
        self._wake.set()

    async def _write(
        self, stream: _Stream, steps: list[Step], ending: Ending | None, kept: float | None = None
    ) -> None:
        """``kept``: the cursor too, as of then."""
        order = None if stream.marked else self._wanted.repositories
        gone = [step.repository for step in steps if isinstance(step, Forget)]
        if ending is not None:
            gone += ending.whole.repositories - ending.named
        for repository in gone:  # before it is written: an answer that comes meanwhile must not undo it
            self._note_gone(repository)

        def work(table: Table) -> None:
            for step in steps:
                _apply(table, step)
            if ending is not None:
                _finish(table, ending)
                if kept is not None:
                    table.put_cursor(ending.stamp, kept)
                    if order is not None:
                        table.put_interest(order, ending.interest)

        await transact(self._index, work, self._now(), self._tell)
        if kept is not None:
            self._kept = trio.current_time()

    def _note_gone(self, repository: str) -> None:
        self._moments += 1
        self._went.pop(repository, None)
        self._went[repository] = self._moments
        while len(self._went) > _WENT:
            del self._went[next(iter(self._went))]

    def _tell(self, changed: Changed) -> None:
        for repository, tag, digest in changed.tags:
            self._hooks.moved(repository, tag, digest)
        if changed.repositories:
            self._hooks.visibility()


def _measure(stream: _Stream, mark: MarkEvent) -> float:
    """When, by trio's clock, the tracker knew what it says. Clocks may differ: the best mark of a stream shows by how
    much. Raises Unreachable if that is long ago."""
    now = trio.current_time()
    stream.clocks = mark.time - now if stream.clocks is None else max(stream.clocks, mark.time - now)
    heard = mark.time - stream.clocks
    if heard < now - SILENCE:
        raise Unreachable("the tracker does not know what is new")
    return heard


def _apply(table: Table, step: Step) -> None:
    match step:
        case PutTag():
            table.put_tag(step.repository, step.tag, step.digest, step.stamp, step.token)
        case PutRepository():
            table.put_repository(step.repository, step.private, step.stamp, step.token)
        case Forget():
            table.hide(step.repository, step.stamp)


def _finish(table: Table, ending: Ending) -> None:
    """Drop what was not named although all that is was."""
    if ending.whole:
        for repository, stamp in table.repositories():
            if ending.hides(repository, stamp):
                table.hide(repository, ending.stamp)
    for repository in ending.listed:

        def gone(tag: str, stamp: Stamp, repository: str = repository) -> bool:
            return ending.drops(repository, tag, stamp)

        table.drop_tags(repository, gone, ending.stamp)
