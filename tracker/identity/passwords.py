"""Passwords: kept as argon2id, which costs 64 MiB and a tenth of a second each time, and so cannot be guessed fast.

That work is done in a few worker threads: logins queue for them, and past a length of the queue are turned away, so
that they never take the machine from pushes and pulls. A password that was right is remembered for a few minutes by a
keyed hash of it and of what it was right for, because some clients show theirs with each request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import argon2
import trio

from p2pregistry.errors import RequestError
from tracker.identity.base import MAX_PASSWORD

#: Threads that hash at once, and logins that may wait for them.
WORKERS: Final = 2
MOST_WAITING: Final = 100
#: Seconds for which a right password is remembered, and how many are.
REMEMBER: Final = 300.0
MOST_REMEMBERED: Final = 10_000
#: Kibibytes and passes of argon2id; one lane, because several logins at once use the processors as well.
MEMORY_COST: Final = 64 << 10
TIME_COST: Final = 3


class Passwords:
    """``memory_cost`` (KiB) and ``time_cost`` are less in tests only. What was hashed with others still verifies."""

    def __init__(self, *, memory_cost: int = MEMORY_COST, time_cost: int = TIME_COST, workers: int = WORKERS) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=time_cost, memory_cost=memory_cost, parallelism=1)
        self._turn = trio.Semaphore(workers)
        self._threads = trio.CapacityLimiter(workers)
        self._waiting = 0
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._nobodys: str | None = None

    async def hash(self, password: str) -> str:
        """What to keep of it. Raises RequestError (TOOMANYREQUESTS)."""
        async with self._place():
            return await trio.to_thread.run_sync(self._hasher.hash, _bytes(password), limiter=self._threads)

    async def verify(self, kept: str | None, password: str) -> bool:
        """Whether it is the one that was kept; None (there is no such user, or no password) takes as long as any that
        is wrong. Raises RequestError (TOOMANYREQUESTS)."""
        if not 0 < len(password) <= MAX_PASSWORD:
            return False
        if self._remembered(kept, password):
            return True
        async with self._place():
            if self._remembered(kept, password):
                return True  # found right while this one waited
            good = await trio.to_thread.run_sync(self._verify, kept, _bytes(password), limiter=self._threads)
        if good and kept is not None:
            self._right[self._proof(kept, password)] = trio.current_time() + REMEMBER
            while len(self._right) > MOST_REMEMBERED:
                self._right.popitem(last=False)
        return good

    def outdated(self, kept: str) -> bool:
        """Whether it was hashed with other costs than are used now."""
        try:
            return self._hasher.check_needs_rehash(kept)
        except argon2.exceptions.InvalidHashError:
            return False

    def _verify(self, kept: str | None, password: bytes) -> bool:
        if self._nobodys is None:
            self._nobodys = self._hasher.hash(secrets.token_bytes(32))
        try:
            self._hasher.verify(self._nobodys if kept is None else kept, password)
            return kept is not None
        except argon2.exceptions.InvalidHashError:
            return self._verify(None, password)
        except argon2.exceptions.VerificationError:
            return False

    def _proof(self, kept: str, password: str) -> bytes:
        return hmac.digest(self._key, hashlib.sha256(kept.encode()).digest() + _bytes(password), "sha256")

    def _remembered(self, kept: str | None, password: str) -> bool:
        if kept is None:
            return False
        proof = self._proof(kept, password)
        until = self._right.get(proof)
        if until is None or until <= trio.current_time():
            self._right.pop(proof, None)
            return False
        return True

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._waiting >= MOST_WAITING:
            raise RequestError("TOOMANYREQUESTS", "too many logins are waiting", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()


def _bytes(password: str) -> bytes:
    """The same for the same characters, however a keyboard composed them."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
