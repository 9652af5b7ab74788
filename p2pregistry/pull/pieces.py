"""Which piece next: what is missing, what is in flight, how rare each is.

Pieces are kept in buckets by availability, each a list with the place of every piece in it, so that a piece is moved,
removed or drawn at random in constant time. Sources that hold everything are not counted: they add the same to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: Draws a whole number below its argument; the caller's randomness.
Randrange = Callable[[int], int]
#: How many random draws from one bucket before it is scanned from the start.
_DRAWS = 4


class Pieces:
    """The pieces of one blob: missing and free, missing and asked for, or here."""

    def __init__(self, count: int, have: Iterable[int], randrange: Randrange) -> None:
        self.count = count
        self._randrange = randrange
        self._here = bytearray(count)
        for index in have:
            self._here[index] = 1
        self.left = count - sum(self._here)
        self._asked: dict[int, int] = {}
        self._counts = [0] * count
        self._buckets: list[list[int]] = [[i for i in range(count) if not self._here[i]]]
        self._place = [0] * count
        for place, index in enumerate(self._buckets[0]):
            self._place[index] = place

    def here(self, index: int) -> bool:
        return bool(self._here[index])

    def free(self, index: int) -> bool:
        """Missing and asked of nobody."""
        return not self._here[index] and index not in self._asked

    def asked(self, index: int) -> int:
        """How many requests are out for it."""
        return self._asked.get(index, 0)

    def in_flight(self) -> list[int]:
        """Pieces that are asked for and not here yet."""
        return list(self._asked)

    @property
    def free_left(self) -> int:
        return self.left - len(self._asked)

    def ask(self, index: int) -> None:
        """One more request is out for it."""
        if index not in self._asked:
            self._take(index)
        self._asked[index] = self._asked.get(index, 0) + 1

    def release(self, index: int) -> None:
        """A request for it has ended without it."""
        out = self._asked.get(index, 0)
        if out > 1:
            self._asked[index] = out - 1
        elif out == 1:
            del self._asked[index]
            self._put(index)

    def arrive(self, index: int) -> bool:
        """It is here and verified. False if it was here already."""
        if self._here[index]:
            return False
        if index in self._asked:
            del self._asked[index]
        else:
            self._take(index)
        self._here[index] = 1
        self.left -= 1
        return True

    def seen(self, index: int, change: int) -> None:
        """One more (+1) or one fewer (-1) partial holder has it."""
        listed = self.free(index)
        if listed:
            self._take(index)
        self._counts[index] = max(0, self._counts[index] + change)
        if listed:
            self._put(index)

    def rarest(self, has: Callable[[int], bool]) -> int | None:
        """A free piece that ``has`` accepts: of the rarest there are, any."""
        for bucket in self._buckets:
            if not bucket:
                continue
            for _ in range(_DRAWS):
                index = bucket[self._randrange(len(bucket))]
                if has(index):
                    return index
            start = self._randrange(len(bucket))
            for step in range(len(bucket)):
                index = bucket[(start + step) % len(bucket)]
                if has(index):
                    return index
        return None

    def _take(self, index: int) -> None:
        bucket = self._buckets[self._counts[index]]
        place, last = self._place[index], bucket[-1]
        bucket[place] = last
        self._place[last] = place
        bucket.pop()

    def _put(self, index: int) -> None:
        count = self._counts[index]
        while len(self._buckets) <= count:
            self._buckets.append([])
        self._place[index] = len(self._buckets[count])
        self._buckets[count].append(index)
