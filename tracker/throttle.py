"""How often somebody got a password wrong, counted by all trackers of a database together.

A wrong password counts three times: for this account from this address, for the address (of IPv6 the network of 64
bits, which one client may have all of), and for the account from wherever. Each count has its limit a minute, the first
the lowest; who is above one is turned away before the password is looked at.

A limit on an account is a way to lock its owner out, so the owner passes where there is reason to believe it is him:

* A name and password that were right in this process within some minutes (``Recent``) are looked at whatever the counts
  say, so who is at work is not stopped by anybody.
* Where an account was logged in to within a day, only the count of this account from this address holds.
* Personal, robot and refresh tokens have 256 random bits. Nobody guesses one, so neither are they counted, nor do they
  wait for those who guess passwords.

What remains: while an account is guessed at from many addresses, or others guess from the same address, its owner
cannot log in *by password* from an address that this process has not seen him at within a day (or that somebody
guesses this very account from), for as long as the guessing lasts and a minute more. A personal token always works.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import trio

from p2pregistry.errors import LocalError, RequestError
from p2pregistry.observe import logger
from p2pregistry.serve.turnstile import network_of
from tracker.db import Connection, Db

#: Seconds after which a count begins anew.
WINDOW: Final = 60.0
#: Seconds for which a name and password that were right are known, and for which an address at which an account was
#: logged in to is.
LASTS: Final = 300.0
KNOWN: Final = 86400.0
#: What this process remembers of each kind, at most.
_REMEMBERED: Final = 10_000
#: A name that an account can have; all others are counted as one.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_log = logger(__name__)

_COUNT: Final = """
insert into throttles as t (key, count, until)
select key, 1, now() + %s * interval '1 second' from unnest(%s::text[]) as key order by key
on conflict (key) do update set count = case when t.until <= now() then 1 else t.count + 1 end,
    until = case when t.until <= now() then excluded.until else t.until end
returning key, count, extract(epoch from until - now())::float8
"""
_FORGET: Final = "delete from throttles where until < now() - interval '1 hour'"


class Counters(Protocol):
    """Counts that begin anew after a while."""

    async def count(self, keys: Sequence[str], window: float) -> list[tuple[int, float]]:
        """One more of each key, which are different ones; of each how many there are now, and in how many seconds they
        are forgotten. Raises LocalError."""


class PostgresCounters:
    """In the table ``throttles`` of migrations/0003_registry.sql."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def count(self, keys: Sequence[str], window: float) -> list[tuple[int, float]]:
        return await self._db.tx(_count, list(keys), window)


def _count(connection: Connection, keys: list[str], window: float) -> list[tuple[int, float]]:
    rows = connection.execute(_COUNT, (window, keys)).fetchall()
    found = {str(key): (int(count), float(left)) for key, count, left in rows}
    if any(count == 1 for count, _ in found.values()):
        connection.execute(_FORGET)
    return [found[key] for key in keys]


class MemoryCounters:
    """For tests and for a tracker whose database is away."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}

    async def count(self, keys: Sequence[str], window: float) -> list[tuple[int, float]]:
        await trio.lowlevel.checkpoint()
        now, found = trio.current_time(), []
        for key in keys:
            count, until = self._counts.get(key, (0, now))
            count, until = (1, now + window) if until <= now else (count + 1, until)
            self._counts[key] = (count, until)
            found.append((count, until - now))
        return found


@dataclass(frozen=True, slots=True)
class Most:
    """Wrong passwords that are looked at in a while: for an account from one address, from one address, and for an
    account from anywhere."""

    pair: int = 20
    address: int = 60
    account: int = 200


class Logins:
    """Who may still try."""

    def __init__(self, counters: Counters, *, most: Most = Most(), window: float = WINDOW) -> None:
        self._counters, self._most, self._window = counters, most, window
        self._away: Remembered[str, None] = Remembered()
        self._known: Remembered[str, None] = Remembered()

    def check(self, address: str, account: str) -> None:
        """Before a password is looked at. Raises RequestError (TOOMANYREQUESTS)."""
        left = max(self._away.left(key) for key in self._holding(address, account))
        if left > 0:
            raise _too_many(left)

    async def failed(self, address: str, account: str) -> None:
        """The password was wrong. Raises RequestError (TOOMANYREQUESTS) if it was one too many."""
        keys = _keys(address, account)
        try:
            counts = await self._counters.count(keys, self._window)
        except LocalError as err:
            _log.warning("a wrong password could not be counted", error=err.message)
            return
        limits = (self._most.pair, self._most.address, self._most.account)
        for key, (count, left), most in zip(keys, counts, limits, strict=True):
            if count > most:
                self._away.put(key, None, left)
        self.check(address, account)

    def passed(self, address: str, account: str) -> None:
        """The password was right."""
        self._known.put(_keys(address, account)[0], None, KNOWN)

    def _holding(self, address: str, account: str) -> tuple[str, ...]:
        """The counts that can turn this client away."""
        keys = _keys(address, account)
        return keys[:1] if self._known.left(keys[0]) > 0 else keys


class Recent:
    """Names and passwords that were right a while ago, kept only as a hash under a key that this process alone has.
    That they are still right is not said."""

    def __init__(self, *, lasts: float = LASTS, most: int = _REMEMBERED) -> None:
        self._lasts, self._key = lasts, secrets.token_bytes(32)
        self._found: Remembered[bytes, None] = Remembered(most)

    def knows(self, name: str, secret: str) -> bool:
        """Whether they were right."""
        return self._found.left(self._hash(name, secret)) > 0

    def add(self, name: str, secret: str) -> None:
        """They are right."""
        self._found.put(self._hash(name, secret), None, self._lasts)

    def forget(self, name: str, secret: str) -> None:
        """They are not right any more."""
        self._found.drop(self._hash(name, secret))

    def _hash(self, name: str, secret: str) -> bytes:
        # a client may send what is no text; the hash must not fail on it
        text = f"{len(name)}:{name}{secret}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)


K = TypeVar("K")
T = TypeVar("T")


class Remembered(Generic[K, T]):
    """Values that are forgotten after a while each, and the oldest of them once there are too many."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._kept: OrderedDict[K, tuple[T, float]] = OrderedDict()

    def put(self, key: K, value: T, lasts: float) -> None:
        """Remember it for so many seconds."""
        self._kept[key] = (value, trio.current_time() + lasts)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def get(self, key: K) -> T | None:
        """The value, if it is not forgotten."""
        found = self._kept.get(key)
        return None if found is None or found[1] <= trio.current_time() else found[0]

    def left(self, key: K) -> float:
        """For how many seconds it is remembered; 0 if it is not."""
        found = self._kept.get(key)
        return 0.0 if found is None else max(0.0, found[1] - trio.current_time())

    def drop(self, key: K) -> None:
        """Forget it."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def _keys(address: str, account: str) -> tuple[str, str, str]:
    """What a wrong password counts for: the account from the address, the address, the account."""
    network = network_of(address)
    name = account if _NAME.fullmatch(account) else ""
    return f"login:{network} {name}", f"login:{network}", f"login-of:{name}"


def _too_many(left: float) -> RequestError:
    after = str(max(1, math.ceil(left)))
    return RequestError("TOOMANYREQUESTS", "too many wrong passwords came from there", headers={"Retry-After": after})
