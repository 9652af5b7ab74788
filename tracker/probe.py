"""Whether the parts that a tracker needs answer: asked again and again, for ``/readyz`` and the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from p2pregistry import observe
from p2pregistry.errors import LocalError
from p2pregistry.objects.base import ObjectStore
from tracker.db import Connection, Db

#: Seconds between two questions to the database whether it is there.
PROBE: Final = 1.0

_UNASKED: Final = "it has not been asked yet"
_log = observe.logger(__name__)


class Probe:
    """Whether the parts answer; ``reason`` is why the tracker cannot work, None if it can. With a full disk it still
    serves what it has, so that is said but is no reason to take it away."""

    def __init__(self, db: Db, objects: ObjectStore, min_free: int) -> None:
        self.parts = {"database": "not asked yet", "store": "not asked yet", "disk": "not asked yet"}
        self.database: str | None = _UNASKED
        self._store: str | None = _UNASKED
        self._db, self._objects, self._min_free = db, objects, min_free

    @property
    def reason(self) -> str | None:
        return self.database or self._store

    async def run(self) -> None:
        """Ask again and again, for ever."""
        while True:
            self.database = self._changed("database", self.database, await self._ask(self._db.query, _select_one))
            self._store = self._changed("store", self._store, await self._ask(self._objects.check))
            await self._look_at_room()
            await trio.sleep(PROBE)

    async def _ask(self, call: Callable[..., Awaitable[object]], *args: object) -> str | None:
        try:
            await call(*args)
        except LocalError as err:
            return err.message
        return None

    def _changed(self, part: str, before: str | None, failure: str | None) -> str | None:
        self.parts[part] = failure or "ok"
        if failure is None:
            if before not in (None, _UNASKED):
                _log.info(f"the {part} answers again")
            return None
        if before is None:
            _log.warning(f"the {part} does not answer", error=failure)
        return f"the {part} does not answer"

    async def _look_at_room(self) -> None:
        try:
            free = await self._objects.room()
        except LocalError as err:
            self.parts["disk"] = err.message
            return
        figures = observe.tracker_figures()
        used, size = self._db.figures()
        figures.connections.labels("used").set(used)
        figures.connections.labels("idle").set(size - used)
        if free is None:
            self.parts["disk"] = "no bound is known"
            return
        figures.free.set(free)
        few = free < self._min_free
        self.parts["disk"] = f"{free} bytes are free" + ("; pushes are refused" if few else "")


def _select_one(connection: Connection) -> None:
    connection.execute("select 1")
