"""Streams kept open from one request to the next.

Opening a stream costs several messages each way before the first question; on one that is open a request is one message
and its answer another. A stream serves one request at a time, so a peer may have several.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")

#: Seconds without a request after which a stream is closed: less than the 10 s after which the peer would do it.
IDLE = 6.0
#: Seconds a stream is used in all: less than the 120 s that a peer lets one live.
LIFE = 90.0
PER_PEER = 3
IN_ALL = 512


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """An open stream to a peer. ``born`` and ``since`` (its last request) are in seconds of a clock."""

    peer_id: bytes
    stream: S
    born: float
    since: float


class Streams(Generic[S]):
    """The idle streams of a node. What is taken out or given back belongs to the caller: nothing is closed here."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Kept[S]] = OrderedDict()  # the one used longest ago in front
        self._of: dict[bytes, list[int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, peer_id: bytes, now: float) -> Kept[S] | None:
        """An idle stream to the peer, the one used last; None if there is none that is good."""
        numbers = self._of.get(peer_id)
        if not numbers:
            return None
        kept = self._kept[numbers[-1]]
        if now >= kept.since + IDLE or now >= kept.born + LIFE:
            return None
        return self._remove(numbers[-1])

    def give(self, kept: Kept[S]) -> list[S]:
        """The request on it is done; returns streams to close."""
        surplus: list[S] = []
        if len(self._of.get(kept.peer_id, ())) >= PER_PEER or kept.since >= kept.born + LIFE:
            return [kept.stream]
        if len(self._kept) >= IN_ALL:
            surplus.append(self._remove(next(iter(self._kept))).stream)
        self._number += 1
        self._kept[self._number] = kept
        self._of.setdefault(kept.peer_id, []).append(self._number)
        return surplus

    def old(self, now: float) -> list[S]:
        """The streams that were idle for too long: they are to be closed."""
        out: list[S] = []
        while self._kept:
            number, kept = next(iter(self._kept.items()))
            if now < kept.since + IDLE:
                break
            out.append(self._remove(number).stream)
        return out

    def _remove(self, number: int) -> Kept[S]:
        kept = self._kept.pop(number)
        numbers = self._of[kept.peer_id]
        numbers.remove(number)
        if not numbers:
            del self._of[kept.peer_id]
        return kept
