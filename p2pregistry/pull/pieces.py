"""The pieces of one blob: here, in flight or free; how rare each is; and where the readers are."""

from __future__ import annotations

from collections.abc import Iterable

from p2pregistry.pull.bits import Counts, Randrange, draw, lowest, span

__all__ = ["Pieces", "Randrange", "Readers"]


class Pieces:
    """Missing and free, missing and asked for, or here. Sources that hold everything are not counted in what makes a
    piece rare: they add the same to all."""

    __slots__ = ("_asked", "_counts", "_randrange", "count", "free_bits", "left", "missing")

    def __init__(self, count: int, have: Iterable[int], randrange: Randrange) -> None:
        self.count = count
        self._randrange = randrange
        self.missing = span(0, count)
        for index in have:
            self.missing &= ~(1 << index)
        self.left = self.missing.bit_count()
        #: missing and asked of nobody
        self.free_bits = self.missing
        self._asked: dict[int, int] = {}
        self._counts = Counts()

    def here(self, index: int) -> bool:
        return not self.missing >> index & 1

    def free(self, index: int) -> bool:
        """Missing and asked of nobody."""
        return bool(self.free_bits >> index & 1)

    def asked(self, index: int) -> int:
        """How many requests are out for it."""
        return self._asked.get(index, 0)

    def in_flight(self) -> list[int]:
        """Pieces that are asked for and not here yet."""
        return list(self._asked)

    def ask(self, index: int) -> None:
        """One more request is out for it."""
        out = self._asked.get(index, 0)
        if not out:
            self.free_bits ^= 1 << index
        self._asked[index] = out + 1

    def release(self, index: int) -> None:
        """A request for it has ended without it."""
        out = self._asked.get(index, 0)
        if out > 1:
            self._asked[index] = out - 1
        elif out == 1:
            del self._asked[index]
            self.free_bits |= 1 << index

    def arrive(self, index: int) -> bool:
        """It is here and verified. False if it was here already."""
        bit = 1 << index
        if not self.missing & bit:
            return False
        self._asked.pop(index, None)
        self.missing ^= bit
        self.free_bits &= ~bit
        self.left -= 1
        return True

    def seen(self, bits: int) -> None:
        """One more source has these."""
        self._counts.add(bits)

    def unseen(self, bits: int) -> None:
        """One source fewer has these."""
        self._counts.subtract(bits)

    def holders(self, index: int) -> int:
        """How many sources that lack something have this piece."""
        return self._counts[index]

    def nobodys(self, bits: int) -> int:
        """Those of these that no source which lacks something has."""
        return bits & ~self._counts.some()

    def draw(self, below: int) -> int:
        """Any whole number from 0 on and below this one; 0 where there is none."""
        return self._randrange(below) if below > 1 else 0

    def rarest(self, bits: int) -> int:
        """Of these, which must be some: any of those that fewest sources have."""
        return draw(self._counts.least(bits), self._randrange)


class Readers:
    """Who reads where. A reader wants the pieces from its position to its end."""

    __slots__ = ("_places", "_turn", "bounded", "wanted")

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, int]] = {}
        self._turn = 0
        #: what any reader wants
        self.wanted = 0
        #: what readers of a part of the blob want
        self.bounded = 0

    def put(self, reader: int, position: int, end: int, count: int) -> bool:
        """Whether that is news."""
        place = (position, end)
        if self._places.get(reader) == place:
            return False
        self._places[reader] = place
        self._sum_up(count)
        return True

    def remove(self, reader: int, count: int) -> None:
        self._places.pop(reader, None)
        self._sum_up(count)

    def _sum_up(self, count: int) -> None:
        self.wanted = self.bounded = 0
        for position, end in self._places.values():
            bits = span(position, end)
            self.wanted |= bits
            if end < count:
                self.bounded |= bits

    @property
    def first(self) -> int:
        """Where the reader that is least far is."""
        return min((position for position, _ in self._places.values()), default=0)

    def next(self, bits: int, window: int) -> int | None:
        """Of these pieces, one in a reader's window: the nearest to its reader; equals take turns."""
        best: int | None = None
        nearest = window
        places = list(self._places.values())
        self._turn = (self._turn + 1) % max(1, len(places))
        for position, end in places[self._turn :] + places[: self._turn]:
            ahead = (bits & span(position, min(position + nearest, end))) >> position
            if ahead:
                nearest = lowest(ahead)
                best = position + nearest
        return best


def next_from(bits: int, start: int) -> int:
    """Of these pieces, which must be some: the first from ``start`` on, else the first of all."""
    ahead = bits >> start
    return start + lowest(ahead) if ahead else lowest(bits)
