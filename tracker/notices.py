"""Hearing at once when another process has written to the database (LISTEN), on a connection kept for that alone.

What is heard is only that it is worth to look: a notice that is lost, or a server that gives none (behind a PgBouncer
that shares connections by transactions there are none), costs a look that comes a little later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg
import trio

from p2pregistry.errors import LocalError
from p2pregistry.observe import logger
from tracker.db import Connection

#: The channel of migrations/0006_identity.sql.
CHANGES: Final = "p2pregistry_changes"
#: Seconds between two tries to connect, and that one may take.
_RETRY: Final = 1.0
_TIMEOUT: Final = 5
#: Seconds after which a connection that says nothing is asked whether it is still there.
_SILENCE: Final = 30.0

_log = logger(__name__)


class Notices:
    """``dsn``: of the server itself. Calls ``heard`` at each notice, and whenever some may have been lost."""

    def __init__(self, dsn: str, channel: str = CHANGES) -> None:
        self._dsn, self._channel = dsn, channel

    async def run(self, heard: Callable[[], None]) -> None:
        """For ever; connects again where the connection is lost."""
        failing = False
        while True:
            try:
                connection = await trio.to_thread.run_sync(self._connect)
            except psycopg.Error as err:
                if not failing:
                    _log.warning("changes are looked for every second: no notices", error=str(err).partition("\n")[0])
                failing = True
                await trio.sleep(_RETRY)
                continue
            failing = False
            try:
                heard()
                await _hear(connection, heard)
            except LocalError as err:
                _log.info("the connection that brings notices was lost", error=err.message)
            finally:
                connection.close()

    def _connect(self) -> Connection:
        connection = psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=_TIMEOUT,
            application_name="p2pregistry-notices",
            keepalives_idle=15,
            keepalives_interval=5,
            keepalives_count=3,
        )
        try:
            connection.execute(f"listen {self._channel}".encode())
        except BaseException:
            connection.close()
            raise
        return connection


async def _hear(connection: Connection, heard: Callable[[], None]) -> None:
    """Until the connection is lost, which is a LocalError."""
    try:
        while True:
            with trio.move_on_after(_SILENCE) as silence:
                await trio.lowlevel.wait_readable(connection.fileno())
            if silence.cancelled_caught:
                await trio.to_thread.run_sync(connection.execute, b"select 1")
            # what is there is read without waiting; the second look at a closed connection is an error
            if any(True for _ in connection.notifies(timeout=0)):
                heard()
            elif not silence.cancelled_caught:
                await trio.lowlevel.checkpoint()
    except (psycopg.Error, OSError) as err:
        raise LocalError("the database has closed it") from err
