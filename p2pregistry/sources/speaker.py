"""A node's side of sessions: it shows its credential to each server once, and then the session it was given.

One session for each server, whatever the number of connections to it: it is made once even when many requests begin at
the same moment, made again shortly before it ends, and again when the server says that it does not know it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.errors import RemoteError, Unreachable
from p2pregistry.sessions import (
    NONCE_PATH,
    REQUIRED,
    SCHEME,
    SESSION_PATH,
    Granted,
    Opening,
    encode_opening,
    read_granted,
    read_nonce,
)
from p2pregistry.trust.proof import sign_proof

#: Servers whose sessions are remembered.
MAX_SERVERS: Final = 2000
#: A session is made again when this share of its time is over.
_RENEW: Final = 0.9

#: Sends a POST without a session, with a body; the body of a 200. Raises RemoteError, NotFound.
Post = Callable[[str, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _Session:
    token: str
    until: float  # seconds of trio's clock
    credential: str  # what it was made with: it is worth as much


class _Making:
    """A session that is being made, for all who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: RemoteError | None = None


class Speaker:
    """Who this node is. ``key``: its identity; ``credential``: gives the current one, None while there is none."""

    def __init__(
        self, key: Ed25519PrivateKey, credential: Callable[[], str | None], *, limit: int = MAX_SERVERS
    ) -> None:
        self._key, self._credential = key, credential
        self._limit = limit
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._making: dict[str, _Making] = {}

    async def authorization(self, server: str, post: Post, *, stale: str | None = None) -> str:
        """What a request to the server with this peer id has in Authorization.

        ``stale``: what the server has just refused; it is not given again. Raises RemoteError where the server cannot
        be reached, or does not believe this node.
        """
        while True:
            session = self._sessions.get(server)
            if session is not None:
                value = SCHEME + session.token
                current = session.credential == self._credential() and trio.current_time() < session.until
                if value != stale and current:
                    self._sessions.move_to_end(server)
                    return value
            making = self._making.get(server)
            if making is None:
                await self._make(server, post)
                continue
            await making.done.wait()
            if making.failure is not None:
                raise copy.copy(making.failure) from making.failure  # one exception is not for several tasks

    async def _make(self, server: str, post: Post) -> None:
        making = self._making[server] = _Making()
        try:
            granted, credential = await self._handshake(server, post)
        except RemoteError as err:
            making.failure = err
            raise
        else:
            until = trio.current_time() + granted.expires_in * _RENEW
            self._sessions[server] = _Session(granted.token, until, credential)
            self._sessions.move_to_end(server)
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)
        finally:  # where this one was cancelled, the next who waits makes it
            del self._making[server]
            making.done.set()

    async def _handshake(self, server: str, post: Post) -> tuple[Granted, str]:
        nonce = read_nonce(await post(NONCE_PATH, b""))
        credential = self._credential()
        if credential is None:
            raise Unreachable("this node has no credential to show")
        proof = sign_proof(self._key, nonce, server)
        return read_granted(await post(SESSION_PATH, encode_opening(Opening(credential, proof)))), credential


def wants_session(status: int, headers: dict[str, str]) -> bool:
    """Whether an answer says that its request had no good session."""
    return status == 401 and headers.get(REQUIRED[0].lower()) == REQUIRED[1]
