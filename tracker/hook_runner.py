"""Tells webhooks what happened, again and again until they have heard it. Any number of trackers share the work."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from p2pregistry import __version__
from p2pregistry.errors import LocalError, RemoteError, Unreachable
from p2pregistry.observe import logger
from tracker.catalog.hooks import Due, Hooks
from tracker.webhooks import CONTENT_TYPE, SIGNATURE, cloud_event, outcome, pause, sign

#: Seconds between two looks for something to do, and between two rounds of forgetting.
POLL: Final = 1.0
_PRUNE: Final = 3600.0
#: Deliveries that are under way at once; those of one webhook from which on no more of it are begun, so that one which
#: hangs does not keep the others from being told; events that are fanned out in one transaction.
_AT_ONCE: Final = 64
_EACH: Final = 4
_EVENTS: Final = 500
#: Seconds that nobody else tries what was claimed: more than a request may take.
_CLAIM: Final = 120.0
#: Seconds that a request may take whatever the settings say, so that it ends while the claim lasts.
_LONGEST: Final = 100.0

_log = logger(__name__)


class Post(Protocol):
    """How a request is sent: ``WebhookClient.post``."""

    async def __call__(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int: ...


class HookRunner:
    """``source``: this registry's name in events. ``attempts``: tries of a delivery. ``keep``: seconds that events are
    kept to be replayed. ``keep_audit``: seconds, None: for ever."""

    def __init__(
        self,
        hooks: Hooks,
        post: Post,
        *,
        source: str,
        attempts: int = 20,
        keep: float = 30 * 86400.0,
        keep_audit: float | None = None,
        now: Callable[[], float] = time.time,
        draw: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000,
    ) -> None:
        self._hooks, self._post, self._source = hooks, post, source
        self._attempts, self._keep, self._keep_audit = attempts, keep, keep_audit
        self._now, self._draw = now, draw
        self._under_way: Counter[int] = Counter()
        self._ended = trio.Event()

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver_for_ever)
            nursery.start_soon(self._prune_for_ever)

    async def _deliver_for_ever(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._ended = trio.Event()
                try:
                    busy = await self._begin(nursery)
                except LocalError as err:
                    _log.warning("webhooks must wait", error=err.message)
                    await trio.sleep(POLL)
                    continue
                if not busy:
                    with trio.move_on_after(POLL):
                        await self._ended.wait()

    async def _prune_for_ever(self) -> None:
        while True:
            await trio.sleep(_PRUNE * (0.5 + self._draw()))
            try:
                await self._hooks.prune(self._keep, self._keep_audit)
            except LocalError as err:
                _log.warning("old events could not be forgotten", error=err.message)

    async def once(self) -> bool:
        """Fan out, and try some of what there is to its end; whether there was anything. Raises LocalError."""
        async with trio.open_nursery() as nursery:
            return await self._begin(nursery)

    async def _begin(self, nursery: trio.Nursery) -> bool:
        """Fan out, and begin with some of what there is."""
        events = await self._hooks.fan_out(_EVENTS)
        room = min(_EACH, _AT_ONCE - self._under_way.total())
        full = [webhook for webhook, count in self._under_way.items() if count >= _EACH]
        due = await self._hooks.claim(room, _CLAIM, full) if room > 0 else []
        for one in due:
            self._under_way[one.webhook] += 1
            nursery.start_soon(self._one, one)
        return bool(events or due)

    async def _one(self, due: Due) -> None:
        try:
            await self._try(due)
        finally:
            self._under_way[due.webhook] -= 1
            if not self._under_way[due.webhook]:
                del self._under_way[due.webhook]
            self._ended.set()

    async def _try(self, due: Due) -> None:
        status: int | None = None
        error: str | None = None
        try:
            status = await self._send(due)
        except RemoteError as err:
            error = err.message
        try:
            await self._record(due, status, error)
        except LocalError as err:
            # tried again when the claim has run out: at least once
            _log.warning("the outcome of a delivery could not be recorded", delivery=due.id, error=err.message)

    async def _send(self, due: Due) -> int:
        body = cloud_event(due.event, self._source)
        headers = [
            ("Content-Type", CONTENT_TYPE),
            ("User-Agent", f"p2pregistry/{__version__}"),
            (SIGNATURE, sign(due.secret, int(self._now()), body)),
        ]
        with trio.move_on_after(_LONGEST):
            return await self._post(due.url, headers, body)
        raise Unreachable(f"no answer within {_LONGEST:g} seconds")

    async def _record(self, due: Due, status: int | None, error: str | None) -> None:
        result = "again" if status is None else outcome(status)
        if result == "delivered":
            assert status is not None
            await self._hooks.delivered(due.id, status)
            return
        again = None if result == "never" else pause(due.attempts, self._draw(), self._attempts)
        if again is None:
            _log.warning("a webhook is not told of an event any more", delivery=due.id, status=status, error=error)
        await self._hooks.failed(due.id, status, error, again)
