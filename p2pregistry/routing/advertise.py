"""When a node tells the DHT what it holds: not while it pulls.

Providing a blob takes messages to several peers, and in a pull of many layers that was most of what the node did;
nobody needs it then, for announces and have-streams say it sooner. So what is new waits until the node has been quiet
for a moment, and goes out together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Router

#: Seconds without a download after which the node counts as quiet, and for which what is new waits at most.
QUIET = 1.0
LONGEST = 20.0
#: Seconds between two looks.
TICK = 0.25


class Advertiser:
    """``busy`` says whether a download is under way."""

    def __init__(self, router: Router, busy: Callable[[], bool]) -> None:
        self._router, self._busy = router, busy
        self._new: dict[Digest, None] = {}
        self._since = 0.0
        self._news = trio.Event()

    @property
    def waiting(self) -> int:
        """How many blobs the router has not been told of yet."""
        return len(self._new)

    def hold(self, digests: Iterable[Digest]) -> None:
        """These are complete here."""
        if not self._new:
            self._since = trio.current_time()
            self._news.set()
        self._new.update(dict.fromkeys(digests))

    def drop(self, digests: Iterable[Digest]) -> None:
        """These are not here any more."""
        gone = list(digests)
        for digest in gone:
            self._new.pop(digest, None)
        self._router.drop(gone)

    async def serve(self) -> None:
        """Pass on what is new whenever the time has come."""
        while True:
            await self._news.wait()
            quiet = trio.current_time()
            while (now := trio.current_time()) - quiet < QUIET and now - self._since < LONGEST:
                await trio.sleep(TICK)
                if self._busy():
                    quiet = trio.current_time()
            new, self._new, self._news = list(self._new), {}, trio.Event()
            self._router.hold(new)
