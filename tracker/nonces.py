"""Nonces that any tracker of a database accepts, once: a MAC says that they are ours, a table which were used."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

from p2pregistry.sessions import USED_LIFE, Nonces
from tracker.db import Connection, Db

_USE: Final = """
insert into used_nonces (nonce, until) values (%s, now() + %s * interval '1 second')
on conflict (nonce) do nothing
"""
_FORGET: Final = "delete from used_nonces where until < now()"
#: One of so many uses tidies up.
_TIDY: Final = 64


class HasNonceKey(Protocol):
    """The part of a Keyring that is used here."""

    @property
    def nonce_key(self) -> bytes: ...


class TrackerNonces:
    """``clock``: unix seconds, which all trackers of a database share, roughly."""

    def __init__(self, db: Db, keyring: HasNonceKey, clock: Callable[[], float] = time.time) -> None:
        self._db, self._keyring, self._clock = db, keyring, clock

    def _nonces(self) -> Nonces:
        return Nonces(self._keyring.nonce_key, secrets.token_bytes)  # anew each time: the key may change

    def issue(self) -> str:
        """A new one."""
        return self._nonces().issue(self._clock())

    async def take(self, nonce: str) -> bool:
        """Whether it is one of ours, young, and was not used before; now it is. Raises LocalError."""
        return self._nonces().good(nonce, self._clock()) and await self._db.tx(_take, nonce)


def _take(connection: Connection, nonce: str) -> bool:
    if secrets.randbelow(_TIDY) == 0:
        connection.execute(_FORGET)
    return connection.execute(_USE, (nonce, USED_LIFE)).rowcount == 1
