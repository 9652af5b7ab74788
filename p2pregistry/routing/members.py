"""Who belongs to the swarm, among the peers a DHT node is connected to.

Noise proves a peer id, a credential in its hello that this peer id belongs to the swarm. A peer is *introduced* while a
connection is open on which each has shown the other its credential; before that nothing but hello is said to it or
taken from it. What a credential said is remembered longer, and judged anew whenever it is used.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

import trio

from p2pregistry.errors import BadContent
from p2pregistry.routing.identity import base58
from p2pregistry.sessions import Judge
from p2pregistry.trust.records import Credential

#: Seconds after which peers show each other their credentials again: those are renewed from time to time.
AGAIN: Final = 600.0
#: Peers whose credentials are remembered.
_KEPT: Final = 10_000


class Members:
    """Peer ids are bytes, times seconds of trio's clock."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._credentials: OrderedDict[bytes, Credential] = OrderedDict()
        self._introduced: dict[bytes, float] = {}
        self._waiting: dict[bytes, trio.Event] = {}

    async def admit(self, peer_id: bytes, credential: str) -> None:
        """Take the credential of a peer that has proved its id. Raises BadContent where it does not count; RemoteError
        where that cannot be found out now."""
        found = await self._judge.credential(credential, base58(peer_id))
        self._credentials[peer_id] = found
        self._credentials.move_to_end(peer_id)
        while len(self._credentials) > _KEPT:
            self._credentials.popitem(last=False)
        self._introduced[peer_id] = trio.current_time()
        event = self._waiting.pop(peer_id, None)
        if event is not None:
            event.set()

    def holds(self, peer_id: bytes) -> bool:
        """Whether what the peer showed, perhaps on an earlier connection, still counts."""
        credential = self._credentials.get(peer_id)
        if credential is None:
            return False
        try:
            self._judge.check(credential, base58(peer_id))
        except BadContent:
            del self._credentials[peer_id]
            return False
        return True

    def introduced(self, peer_id: bytes) -> bool:
        """Whether it may be listened to."""
        return peer_id in self._introduced and self.holds(peer_id)

    def fresh(self, peer_id: bytes) -> bool:
        """Whether it may be talked to without another hello."""
        since = self._introduced.get(peer_id, -math.inf)
        return trio.current_time() < since + AGAIN and self.holds(peer_id)

    def doubt(self, peer_id: bytes) -> None:
        """It refused something: perhaps it has forgotten, so it is greeted again before the next question."""
        if peer_id in self._introduced:
            self._introduced[peer_id] = -math.inf

    def left(self, peer_id: bytes) -> None:
        """Its last connection has ended."""
        self._introduced.pop(peer_id, None)

    def expelled(self) -> list[bytes]:
        """Those who are connected and do not belong here any more: expired, or revoked."""
        return [peer_id for peer_id in list(self._introduced) if not self.holds(peer_id)]

    async def wait(self, peer_id: bytes) -> None:
        """Until it has been admitted."""
        if not self.introduced(peer_id):
            await self._waiting.setdefault(peer_id, trio.Event()).wait()

    def give_up(self, peer_id: bytes) -> None:
        """Nobody waits for it any longer."""
        self._waiting.pop(peer_id, None)
