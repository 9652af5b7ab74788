"""Tells the tracker what this node wants and holds, and hears who else does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RemoteError
from p2pregistry.messages import Announce, Announced
from p2pregistry.observe import logger
from p2pregistry.pull.pieces import Randrange
from p2pregistry.sources.tracker import TrackerSource

#: Digests named in one announce, at most.
MOST_WANTED = 100
MOST_HELD = 100
#: Seconds to the next try after one that failed; the least and the most that the tracker may set.
RETRY = 3.0
SHORTEST, LONGEST = 0.25, 300.0
#: Seconds within which a change that is not urgent is told.
SOON = 1.0
#: Seconds that the last announce, at shutdown, may take.
FAREWELL = 1.0
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Me:
    """This node as others see it: peer id (base58), base URL of its peer API, zone ("" if unset), swarm, base URL of
    its gateway for IPFS clients ("": it has none)."""

    peer_id: str
    url: str
    zone: str = ""
    swarm: str = "default"
    gateway: str = ""


class Announcer:
    """``wanted`` is asked for the digests that are wanted; ``heard`` is told the answer with the list it is about."""

    def __init__(
        self,
        me: Me,
        tracker: TrackerSource | None,
        wanted: Callable[[], list[Digest]],
        heard: Callable[[list[Digest], Announced], None],
        randrange: Randrange,
    ) -> None:
        self._me, self._tracker, self._wanted, self._heard, self._randrange = me, tracker, wanted, heard, randrange
        self._held: OrderedDict[Digest, None] = OrderedDict()
        self._answered: dict[Digest, trio.Event] = {}
        self._wake = trio.Event()
        self._at = 0.0
        self._told = False

    def want(self) -> None:
        """There are new digests among those wanted: say so at once."""
        self._at = 0.0
        self._wake.set()

    def hold(self, digests: Iterable[Digest]) -> None:
        """These are complete here; the most recent ones are told of."""
        before = set(self._held)
        for digest in digests:
            self._held[digest] = None
            self._held.move_to_end(digest)
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        if self._held.keys() != before:
            self._soon()

    def drop(self, digest: Digest) -> None:
        """It is not here any more."""
        if digest in self._held:
            del self._held[digest]
            self._soon()

    def _soon(self) -> None:
        self._at = min(self._at, trio.current_time() + SOON)
        self._wake.set()

    async def answered(self, digest: Digest) -> None:
        """Wait until an announce that named ``digest`` has been answered, or the tracker is known not to answer."""
        if self._tracker is not None and not self._tracker.down:
            await self._answered.setdefault(digest, trio.Event()).wait()

    async def serve(self) -> None:
        """Announce: at once when something new is wanted, else as often as the tracker says; at the end a farewell."""
        if self._tracker is None:
            return
        try:
            while True:
                await self._due()
                await self._announce(self._tracker)
        finally:
            if self._told:
                with trio.move_on_after(FAREWELL, shield=True):
                    await self._leave(self._tracker)

    async def _due(self) -> None:
        while (now := trio.current_time()) < self._at:
            self._wake = trio.Event()
            with trio.move_on_at(min(now + LONGEST, self._at)):
                await self._wake.wait()

    async def _announce(self, tracker: TrackerSource) -> None:
        want = [digest for digest in self._wanted() if digest not in self._held][-MOST_WANTED:]
        held = list(self._held)
        self._at = trio.current_time() + LONGEST
        if not want and not held and not self._told:
            return
        try:
            answer = await tracker.announce(self._message(want, held))
        except (RemoteError, NotFound) as err:
            _log.debug("the tracker took no announce", why=err.message)
            self._next(RETRY)
        else:
            self._told = bool(want or held)
            self._next(min(max(answer.interval, SHORTEST), LONGEST))
            self._heard(want, answer)
        for digest in want:
            self._answered.setdefault(digest, trio.Event()).set()
        for digest in self._answered.keys() - set(want):  # waited for, but no longer wanted, or too many
            self._answered.pop(digest).set()

    def _next(self, interval: float) -> None:
        spread = 0.8 + 0.4 * self._randrange(1 << 16) / (1 << 16)  # so that a crowd does not come in step
        self._at = min(self._at, trio.current_time() + interval * spread)

    async def _leave(self, tracker: TrackerSource) -> None:
        try:
            await tracker.announce(self._message([], [], leaving=True))
        except (RemoteError, NotFound) as err:
            _log.debug("the tracker took no farewell", why=err.message)

    def _message(self, want: list[Digest], held: list[Digest], *, leaving: bool = False) -> Announce:
        me = self._me
        return Announce(
            peer_id=me.peer_id,
            url=me.url,
            zone=me.zone,
            swarm=me.swarm,
            want=tuple(want),
            hold=tuple(held),
            leaving=leaving,
            gateway=me.gateway,
        )
