"""How often somebody got the password wrong, counted by all trackers of a database together.

A wrong password is counted under the client's address (of IPv6 the network of 64 bits, which one client may have all
of). Who has too many in a while is turned away before the password is looked at; nobody else is, so that guessing does
not lock the owner out. A right password costs no question to the database.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, Protocol

import trio

from p2pregistry.errors import LocalError, RequestError
from p2pregistry.observe import logger
from p2pregistry.serve.turnstile import network_of
from tracker.db import Connection, Db

#: Wrong passwords that an address may send in so many seconds.
MOST: Final = 20
WINDOW: Final = 60.0
#: Addresses that this process remembers as turned away.
_REMEMBERED: Final = 10_000

_log = logger(__name__)

_COUNT: Final = """
insert into throttles as t (key, count, until) values (%s, 1, now() + %s * interval '1 second')
on conflict (key) do update set count = case when t.until <= now() then 1 else t.count + 1 end,
    until = case when t.until <= now() then excluded.until else t.until end
returning count, extract(epoch from until - now())::float8
"""
_FORGET: Final = "delete from throttles where until < now() - interval '1 hour'"


class Counters(Protocol):
    """Counts that begin anew after a while."""

    async def count(self, key: str, window: float) -> tuple[int, float]:
        """One more; how many there are now, and in how many seconds they are forgotten. Raises LocalError."""


class PostgresCounters:
    """In the table ``throttles`` of migrations/0003_registry.sql."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def count(self, key: str, window: float) -> tuple[int, float]:
        return await self._db.tx(_count, key, window)


def _count(connection: Connection, key: str, window: float) -> tuple[int, float]:
    row = connection.execute(_COUNT, (key, window)).fetchone()
    assert row is not None
    if row[0] == 1:
        connection.execute(_FORGET)
    return int(row[0]), float(row[1])


class MemoryCounters:
    """For tests and for a tracker whose database is away."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}

    async def count(self, key: str, window: float) -> tuple[int, float]:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        count, until = self._counts.get(key, (0, now))
        count, until = (1, now + window) if until <= now else (count + 1, until)
        self._counts[key] = (count, until)
        return count, until - now


class Logins:
    """Who may still try."""

    def __init__(self, counters: Counters, *, most: int = MOST, window: float = WINDOW) -> None:
        self._counters, self._most, self._window = counters, most, window
        self._away: OrderedDict[str, float] = OrderedDict()

    def check(self, address: str) -> None:
        """Before the password is looked at. Raises RequestError (TOOMANYREQUESTS)."""
        left = self._away.get(_key(address), 0.0) - trio.current_time()
        if left > 0:
            raise _too_many(left)

    async def failed(self, address: str) -> None:
        """The password was wrong. Raises RequestError (TOOMANYREQUESTS) if it was one too many."""
        key = _key(address)
        try:
            count, left = await self._counters.count(key, self._window)
        except LocalError as err:
            _log.warning("a wrong password could not be counted", error=err.message)
            return
        if count > self._most:
            self._away[key] = trio.current_time() + left
            while len(self._away) > _REMEMBERED:
                self._away.popitem(last=False)
            raise _too_many(left)


def _key(address: str) -> str:
    return f"login:{network_of(address)}"


def _too_many(left: float) -> RequestError:
    after = str(max(1, math.ceil(left)))
    return RequestError("TOOMANYREQUESTS", "too many wrong passwords came from there", headers={"Retry-After": after})
