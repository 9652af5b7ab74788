"""Which piece of a blob goes out next to a crowd. The counts are this process's own: trackers that share a database do
not share them, so each of them sends every piece about once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from p2pregistry.content.unixfs import piece_count, piece_length
from p2pregistry.digest import Digest
from p2pregistry.pull.pieces import Randrange
from p2pregistry.pull.seeding import Seeding

#: Blobs whose counts are kept; a blob that is asked for again after it was forgotten starts anew.
MAX_BLOBS: Final = 256


class Handout:
    """The counts of what was sent, for the blobs in use."""

    def __init__(self, *, randrange: Randrange, limit: int = MAX_BLOBS) -> None:
        self._randrange = randrange
        self._limit = limit
        self._blobs: OrderedDict[Digest, Seeding] = OrderedDict()

    def choose(self, digest: Digest, size: int, wanted: bytes, now: float) -> tuple[Handed | None, float]:
        """One of the ``wanted`` pieces (one byte each) of a blob of ``size`` bytes; or None and the seconds to wait."""
        seeding = self._blobs.get(digest)
        if seeding is None:
            seeding = self._blobs[digest] = Seeding(piece_count(size), randrange=self._randrange)
            if len(self._blobs) > self._limit:
                self._blobs.popitem(last=False)
        self._blobs.move_to_end(digest)
        index, wait = seeding.choose(wanted, now)
        return (None if index is None else Handed(seeding, index, piece_length(size, index))), wait


class Handed:
    """A piece on its way out: ``length`` bytes."""

    __slots__ = ("_seeding", "index", "length")

    def __init__(self, seeding: Seeding, index: int, length: int) -> None:
        self._seeding = seeding
        self.index = index
        self.length = length

    def sent(self, count: int) -> None:
        """The sending has ended after ``count`` bytes: short of all of them the piece counts as not sent."""
        if count < self.length:
            self._seeding.returned(self.index)
