"""What to provide when, to whom.

A round begins with one look-up near the first key that is due. The look-up's result is the complete list of the peers
in a *region* of the key space (all positions sharing a prefix), so every other due key in that region is given to its
own nearest peers of that list without a look-up: the work grows with the number of peers, not of keys. What goes to
one peer goes in one batch.

A peer that appears later and lies nearer to a key than the peers it was given to is handed the key. Keys dropped are
withdrawn from the peers they were given to.

Keys are provided in the order they were held. All times are seconds of a clock that only goes forward; random numbers
are from 0 to 1.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from p2pregistry.routing.kad.table import common_prefix, nearest, position
from p2pregistry.routing.kad.wire import Contact

#: Most keys of one round.
ROUND = 2000
_RETRY_FIRST = 1.0
_RETRY_MOST = 60.0


@dataclass(slots=True)
class _Held:
    position: int
    due: float
    given: dict[bytes, Contact] = field(default_factory=dict)
    tries: int = 0
    under_way: bool = False


class Announcer:
    """``replicas``: how many peers each key is given to. ``interval``: seconds until it is given again."""

    def __init__(self, *, replicas: int = 10, interval: float = 2400.0) -> None:
        self._replicas = replicas
        self._interval = interval
        self._held: dict[bytes, _Held] = {}
        self._queue: list[tuple[float, int, bytes]] = []
        self._sequence = 0
        self._withdrawals: dict[bytes, tuple[Contact, dict[bytes, None]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def waiting(self) -> int:
        """How many keys no peer has taken yet."""
        return sum(not held.given for held in self._held.values())

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def hold(self, keys: Iterable[bytes], now: float, *, within: float = 0.0, random: Callable[[], float]) -> None:
        """These keys are held from now on. ``within``: spread their first round over so many seconds (a restart, after
        which the records others keep are still good)."""
        for key in keys:
            if key not in self._held:
                held = self._held[key] = _Held(position(key), now)
                self._schedule(key, held, now + within * random() if within else now)
                for _, pending in self._withdrawals.values():
                    pending.pop(key, None)

    def drop(self, keys: Iterable[bytes]) -> None:
        """These keys are no longer held."""
        for key in keys:
            held = self._held.pop(key, None)
            if held is not None:
                for contact in held.given.values():
                    self._withdraw(key, contact)

    def _withdraw(self, key: bytes, contact: Contact) -> None:
        self._withdrawals.setdefault(contact.peer_id, (contact, {}))[1][key] = None

    def withdrawals(self) -> list[tuple[Contact, list[bytes]]]:
        """What to withdraw from whom; asked once, then forgotten: the records expire in any case."""
        batches = [(contact, list(keys)) for contact, keys in self._withdrawals.values() if keys]
        self._withdrawals = {}
        return batches

    def _schedule(self, key: bytes, held: _Held, due: float) -> None:
        held.due = due
        self._sequence += 1
        heapq.heappush(self._queue, (due, self._sequence, key))

    def next_due(self) -> tuple[float, bytes] | None:
        """When the next round begins, and the key to look up for it."""
        while self._queue:
            due, _, key = self._queue[0]
            held = self._held.get(key)
            if held is not None and held.due == due and not held.under_way:
                return due, key
            heapq.heappop(self._queue)
        return None

    def round(
        self, key: bytes, found: Sequence[Contact], others: Iterable[Contact], *, width: int, now: float
    ) -> tuple[list[bytes], list[tuple[Contact, list[bytes]]]]:
        """After the look-up near ``key``: the keys of this round, and which of them go to whom.

        ``found`` are the look-up's ``width`` nearest peers; fewer than that means that they are all there are.
        ``others`` are further peers known to be alive.
        """
        centre = position(key)
        region = 0
        if found and len(found) >= width:
            region = min(common_prefix(position(c.peer_id), centre) for c in found) + 1
        known = {c.peer_id: (position(c.peer_id), c) for c in [*others, *found]}
        candidates = [(position(c.peer_id), c) for c in nearest(known.values(), centre, 2 * width)]
        batches: dict[bytes, tuple[Contact, list[bytes]]] = {}
        keys: list[bytes] = []
        for other, held in self._held.items():
            if held.under_way or held.due > now or (other != key and common_prefix(held.position, centre) < region):
                continue
            held.under_way = True
            keys.append(other)
            for contact in nearest(candidates, held.position, self._replicas):
                batches.setdefault(contact.peer_id, (contact, []))[1].append(other)
            if len(keys) == ROUND:
                break
        return keys, list(batches.values())

    def given(self, contact: Contact, keys: Iterable[bytes]) -> None:
        """The peer has taken the records of these keys."""
        for key in keys:
            held = self._held.get(key)
            if held is None:
                self._withdraw(key, contact)  # dropped while it was on its way
                continue
            held.given.pop(contact.peer_id, None)
            held.given[contact.peer_id] = contact
            while len(held.given) > 2 * self._replicas:
                del held.given[next(iter(held.given))]

    def finished(self, keys: Iterable[bytes], taken: dict[bytes, int], asked: int, now: float, random: float) -> None:
        """The round is over. ``taken``: by how many peers each key was taken; ``asked``: how many peers were tried.

        A key that fewer than half of its peers took is tried again soon. ``random`` spreads the next round so that
        keys held together do not come due together with everybody else's.
        """
        enough = max(1, min(self._replicas, asked) // 2)
        for key in keys:
            held = self._held.get(key)
            if held is None:
                continue
            held.under_way = False
            if taken.get(key, 0) >= enough:
                held.tries = 0
                self._schedule(key, held, now + self._interval * (0.8 + 0.2 * random))
            else:
                held.tries += 1
                wait = min(_RETRY_FIRST * 2 ** min(held.tries - 1, 10), _RETRY_MOST)
                self._schedule(key, held, now + wait * (0.5 + 0.5 * random))

    def joined(self, contact: Contact, now: float) -> list[bytes]:
        """A peer is new: the keys it should be handed. Keys that nobody took yet become due at once."""
        where = position(contact.peer_id)
        hand_over: list[bytes] = []
        for key, held in self._held.items():
            if contact.peer_id in held.given or held.under_way:
                continue
            if not held.given:
                if held.tries and held.due > now:
                    self._schedule(key, held, now)
            elif where ^ held.position < self._reach(held):
                hand_over.append(key)
        return hand_over

    def _reach(self, held: _Held) -> float:
        """The distance of the farthest of the nearest peers the key was given to; any, while there are too few."""
        if len(held.given) < self._replicas:
            return math.inf
        distances = sorted(position(peer_id) ^ held.position for peer_id in held.given)
        return distances[self._replicas - 1]
