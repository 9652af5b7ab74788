"""One iterative look-up as a state machine: answers and silences in, peers to ask out.

A request that takes long gives its place to another (``late``) but may still answer; one that failed is left out. The
look-up ends when the ``width`` nearest peers that have not failed have all answered, or enough providers are known.
Source: Kademlia (2002) section 2.3; libp2p specification "kad-dht", "Peer routing" and "Content provider discovery".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto

from p2pregistry.routing.kad.table import position
from p2pregistry.routing.kad.wire import Contact

#: New peers taken from one answer at most: a lying peer cannot make a look-up ask the whole world.
_TAKEN_FROM_ANSWER = 32


class _State(Enum):
    HEARD_OF = auto()
    ASKED = auto()
    LATE = auto()
    ANSWERED = auto()
    FAILED = auto()


class Lookup:
    """Finds the ``width`` peers nearest to ``target`` and the providers they know.

    ``own`` is never asked. ``want`` providers end it early (0: never).
    """

    def __init__(
        self, target: int, own: bytes, seeds: Iterable[Contact], *, width: int, alpha: int = 3, want: int = 0
    ) -> None:
        self._target = target
        self._own = own
        self._width = width
        self._alpha = alpha
        self._want = want
        self._state: dict[bytes, _State] = {}
        self._contacts: dict[bytes, Contact] = {}
        self._order: list[tuple[int, bytes]] = []
        self._asked = 0
        self.providers: dict[bytes, Contact] = {}
        self._learn(seeds)

    def _learn(self, contacts: Iterable[Contact]) -> None:
        fresh = False
        for contact in contacts:
            if contact.peer_id == self._own or not contact.addrs or contact.peer_id in self._state:
                continue
            self._state[contact.peer_id] = _State.HEARD_OF
            self._contacts[contact.peer_id] = contact
            self._order.append((position(contact.peer_id) ^ self._target, contact.peer_id))
            fresh = True
        if fresh:
            self._order.sort()

    def _front(self) -> list[bytes]:
        """The nearest ``width`` peers that have not failed."""
        front: list[bytes] = []
        for _, peer_id in self._order:
            if self._state[peer_id] is not _State.FAILED:
                front.append(peer_id)
                if len(front) == self._width:
                    break
        return front

    @property
    def done(self) -> bool:
        """Nothing is left to ask or to wait for."""
        if self._want and len(self.providers) >= self._want:
            return True
        return all(self._state[peer_id] is _State.ANSWERED for peer_id in self._front())

    def next(self) -> list[Contact]:
        """The peers to ask now; each is named once."""
        ask: list[Contact] = []
        if self._want and len(self.providers) >= self._want:
            return ask
        for peer_id in self._front():
            if self._asked >= self._alpha:
                break
            if self._state[peer_id] is _State.HEARD_OF:
                self._state[peer_id] = _State.ASKED
                self._asked += 1
                ask.append(self._contacts[peer_id])
        return ask

    def _leave(self, peer_id: bytes, state: _State) -> bool:
        """Move a peer that is being asked to another state; False if it is not being asked."""
        before = self._state.get(peer_id)
        if before not in (_State.ASKED, _State.LATE):
            return False
        if before is _State.ASKED:
            self._asked -= 1
        self._state[peer_id] = state
        return True

    def answered(self, peer_id: bytes, closer: Sequence[Contact], providers: Iterable[Contact] = ()) -> list[Contact]:
        """An answer came; returns the providers in it that are new."""
        if not self._leave(peer_id, _State.ANSWERED):
            return []
        self._learn(closer[:_TAKEN_FROM_ANSWER])
        return self.provided(providers)

    def provided(self, providers: Iterable[Contact]) -> list[Contact]:
        """Providers are known, from an answer or this node's own store; returns the new ones."""
        new: list[Contact] = []
        for contact in providers:
            if contact.peer_id != self._own and contact.peer_id not in self.providers:
                self.providers[contact.peer_id] = contact
                new.append(contact)
        return new

    def failed(self, peer_id: bytes) -> None:
        """The peer did not answer, or with nonsense."""
        self._leave(peer_id, _State.FAILED)

    def late(self, peer_id: bytes) -> None:
        """The answer takes long: another may be asked meanwhile."""
        if self._state.get(peer_id) is _State.ASKED:
            self._leave(peer_id, _State.LATE)

    def nearest(self) -> list[Contact]:
        """The nearest peers that answered, nearest first, at most ``width``."""
        answered = (p for _, p in self._order if self._state[p] is _State.ANSWERED)
        return [self._contacts[peer_id] for peer_id, _ in zip(answered, range(self._width), strict=False)]
