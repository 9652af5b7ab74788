"""``GET /status`` of the admin socket: whether all is well, in one document."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from p2pregistry import __version__
from p2pregistry.errors import RegistryError
from p2pregistry.objects.base import ObjectStore
from p2pregistry.serve.http import Request
from tracker.admin import Routes
from tracker.catalog.sessions import Sessions


def routes(sessions: Sessions, objects: ObjectStore, database: Callable[[], str | None]) -> Routes:
    """``database``: why it does not answer, None if it does. The tracker counts as started now."""
    started = time.monotonic()

    async def status(_request: Request) -> object:
        failing = database()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - started, 1),
            "database": failing or "ok",
            "store": await _store(objects),
            "free": await _free(objects),
            "uploads": await sessions.count() if failing is None else None,
        }

    return {("GET", "/status"): status}


async def _store(objects: ObjectStore) -> str:
    try:
        await objects.check()
    except RegistryError as err:
        return err.message
    return "ok"


async def _free(objects: ObjectStore) -> int | None:
    """Bytes that can still be written, None where there is no bound or it is not known now."""
    try:
        return await objects.room()
    except RegistryError:
        return None
