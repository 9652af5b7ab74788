"""What the tracker tells every node of itself: who it is, its keys, its clock, and whose credentials are revoked.

Nodes ask for it every few seconds, so it is kept ready: the list of revocations is read in the background and signed
when it changes, when the key does, and now and then, so that it does not look old.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from p2pregistry.errors import LocalError
from p2pregistry.observe import logger
from p2pregistry.trust.records import Revocations, sign_revocations
from tracker.keyring import Keyring
from tracker.peer_endpoints import Swarm

#: The number of the latest revocation, and the peer ids of all revoked nodes whose credentials have not expired.
Revoked = Callable[[], Awaitable[tuple[int, frozenset[str]]]]

#: Seconds between two looks for revocations, and the age at which the list is signed again.
REFRESH: Final = 3.0
_OLD: Final = 20.0

_log = logger(__name__)


async def nobody() -> tuple[int, frozenset[str]]:
    """Where no node has a credential."""
    return 0, frozenset()


class Bulletin:
    """``libp2p``: multiaddrs of the tracker's own node, asked for each time. ``token_url``: where clients of a node get
    tokens. ``now``: unix seconds."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        swarm: str,
        names: tuple[str, ...],
        libp2p: Callable[[], tuple[str, ...]],
        token_url: str = "",
        revoked: Revoked = nobody,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keyring, self._swarm, self._names, self._libp2p = keyring, swarm, names, libp2p
        self._token_url, self._revoked, self._now = token_url, revoked, now
        self._known: tuple[int, frozenset[str]] | None = None
        self._signed: tuple[str, Revocations, str] | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.refresh()
            except LocalError as err:
                _log.warning("revocations cannot be read now", error=err.message)
            await trio.sleep(REFRESH)

    async def refresh(self) -> None:
        """Read the revocations. Raises LocalError."""
        self._known = await self._revoked()

    def __call__(self) -> Swarm:
        """What is told now."""
        ring = self._keyring
        return Swarm(
            self._swarm,
            self._names,
            self._libp2p(),
            ring.root_public,
            ring.key_set,
            revocations=self._revocations(),
            time=self._now(),
            token_url=self._token_url,
        )

    def _revocations(self) -> str:
        """The signed list; empty before it was first read, when it would say too little."""
        if self._known is None:
            return ""
        signer, now = self._keyring.signer, self._now()
        if self._signed is not None:
            kid, signed, token = self._signed
            same = (kid, signed.number, signed.nodes) == (signer.kid, *self._known)
            if same and 0 <= now - signed.issued < _OLD:
                return token
        made = Revocations(self._known[0], int(now), self._known[1])
        token = sign_revocations(signer, made)
        self._signed = (signer.kid, made, token)
        return token
