"""Sets of pieces as whole numbers: bit i stands for piece i.

One `&` tells what a source has of all that is wanted, whatever the size of the blob; and a plan of 400 pieces that
knows 30 sources fits into a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable

#: Draws a whole number below its argument; the caller's randomness.
Randrange = Callable[[int], int]

_TO_DIGITS = bytes([48]) + bytes([49]) * 255
_TO_BYTES = bytes(max(0, i - 48) if i in (48, 49) else 0 for i in range(256))


def pack(flags: bytes) -> int:
    """The set of the places that are not zero."""
    return int(flags.translate(_TO_DIGITS)[::-1], 2) if flags else 0


def unpack(bits: int, count: int) -> bytes:
    """One byte for each of ``count`` places: 1 where the bit is set."""
    return format(bits, f"0{count}b").encode().translate(_TO_BYTES)[::-1] if count else b""


def span(start: int, end: int) -> int:
    """The places ``start`` .. ``end``, without the last."""
    return (1 << end) - (1 << start) if end > start else 0


def lowest(bits: int) -> int:
    """The first place of a set that is not empty."""
    return (bits & -bits).bit_length() - 1


def nth(bits: int, n: int) -> int:
    """The place of member ``n`` (from 0) of a set with more than ``n`` members."""
    at, width = 0, bits.bit_length()
    while width > 1:
        half = width >> 1
        low = bits & ((1 << half) - 1)
        members = low.bit_count()
        if n < members:
            bits, width = low, half
        else:
            n -= members
            bits >>= half
            at += half
            width -= half
    return at


def draw(bits: int, randrange: Randrange) -> int:
    """Any member of a set that is not empty, each as likely as the others."""
    if bits & (bits - 1) == 0:
        return bits.bit_length() - 1
    return nth(bits, randrange(bits.bit_count()))


class Counts:
    """A small count for each place, kept as binary digits side by side: plane k holds digit k of all counts. Adding a
    whole set is one carry through the planes, and the places with the least count are found from the top plane down.
    """

    __slots__ = ("_planes",)

    def __init__(self) -> None:
        self._planes: list[int] = []

    def add(self, bits: int) -> None:
        """One more for each place of this set."""
        planes = self._planes
        for level, plane in enumerate(planes):
            if not bits:
                return
            planes[level], bits = plane ^ bits, plane & bits
        if bits:
            planes.append(bits)

    def subtract(self, bits: int) -> None:
        """One less for each place of this set. All of them must have been added before."""
        planes = self._planes
        for level, plane in enumerate(planes):
            if not bits:
                return
            planes[level], bits = plane ^ bits, bits & ~plane

    def least(self, bits: int) -> int:
        """Those of this set whose count is least."""
        for plane in reversed(self._planes):
            without = bits & ~plane
            if without:
                bits = without
        return bits

    def some(self) -> int:
        """The places whose count is not zero."""
        bits = 0
        for plane in self._planes:
            bits |= plane
        return bits

    def __getitem__(self, index: int) -> int:
        return sum((plane >> index & 1) << level for level, plane in enumerate(self._planes))
