"""How the bytes of a draft lie in S3, and how they become an object: decisions only.

A draft is a row of temporary objects, its parts, each written once:

    uploads/<name>/P<generation>-<offset>-<size>-<token>

Names of objects have no capital letter, so the last component tells a part from a name. Who opens a draft takes a
generation above all that are there, and the time in milliseconds, which is later than any other's as long as clocks
differ by less than a lease lasts. So of two processes that both believe the draft to be theirs the later one's bytes
count, from the first byte that it wrote; the token keeps them from writing to the same key.

That a part is written once is what makes ``identity`` possible: a short name for the bytes of a whole draft, kept with
the object. It tells a repetition of what was done already from another upload's bytes under the same name.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

#: The number of parts that S3 takes in one multipart upload, with room to spare.
PARTS_MOST: Final = 9000

_PART: Final = re.compile(r"P([0-9]{15})-([0-9]{20})-([0-9]{12})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """``size`` bytes from ``offset`` of a draft."""

    generation: int
    offset: int
    size: int
    token: str

    @property
    def name(self) -> str:
        """The last component of its key."""
        return f"P{self.generation:015d}-{self.offset:020d}-{self.size:012d}-{self.token}"

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Slice:
    """``length`` bytes from ``skip`` of a part."""

    part: Part
    skip: int
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a multipart upload. ``copy``: it is one slice that the server can copy by itself."""

    slices: tuple[Slice, ...]
    copy: bool

    @property
    def length(self) -> int:
        return sum(piece.length for piece in self.slices)


def parse_part(name: str) -> Part | None:
    """The part whose ``name`` this is; None for anything else."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    generation, offset, size, token = found.groups()
    return Part(int(generation), int(offset), int(size), token)


def next_generation(parts: Iterable[Part], now: float) -> int:
    """For who opens a draft at ``now``, seconds since 1970."""
    return max([int(now * 1000), *(part.generation + 1 for part in parts)])


def chain(parts: Iterable[Part]) -> list[Part]:
    """The parts that make up the draft, without gap from its first byte on."""
    found: list[Part] = []
    ordered = sorted(parts, key=lambda part: (part.generation, part.token, part.offset, part.size))
    for _, group in groupby(ordered, key=lambda part: (part.generation, part.token)):
        written = list(group)
        kept = _before(found, written[0].offset)
        if kept is None:
            continue  # what came before it is not here: nothing can be made of it
        found = kept
        for part in written:
            if part.offset == (found[-1].end if found else 0):
                found.append(part)
    return found


def _before(parts: list[Part], offset: int) -> list[Part] | None:
    """Those that end at ``offset`` exactly; None if none do."""
    kept = [part for part in parts if part.end <= offset]
    return kept if (kept[-1].end if kept else 0) == offset else None


def identity(parts: Sequence[Part]) -> str:
    """A name for the bytes of these parts together."""
    return hashlib.sha256("\n".join(part.name for part in parts).encode()).hexdigest()[:32]


def cut(size: int, part_size: int) -> list[int]:
    """The lengths in which ``size`` bytes become parts: each from ``part_size`` to twice that, or all of it; none so
    small that it could not be copied later, if it can be helped."""
    count = max(1, size // part_size)
    return [part_size] * (count - 1) + [size - part_size * (count - 1)] if size else []


def slices(parts: Sequence[Part], offset: int, length: int) -> Iterator[Slice]:
    """Where ``length`` bytes from ``offset`` lie."""
    end = offset + length
    at = max(0, bisect_right(parts, offset, key=lambda part: part.offset) - 1)
    while at < len(parts) and parts[at].offset < end:
        part = parts[at]
        first, last = max(offset, part.offset), min(end, part.end)
        if first < last:
            yield Slice(part, first - part.offset, last - first)
        at += 1


def plan(parts: Sequence[Part], least: int) -> list[Segment]:
    """A multipart upload of them, in which as much as possible is copied by the server. ``least``: bytes of a part of
    it, except the last. Small parts go through us with what follows them."""
    total = sum(part.size for part in parts)
    least = max(least, -(-total // PARTS_MOST))
    segments: list[Segment] = []
    small: list[Slice] = []
    for part in parts:
        if part.size:
            small.append(Slice(part, 0, part.size))
        if sum(piece.length for piece in small) >= least:
            segments.append(Segment(tuple(small), copy=len(small) == 1))
            small = []
    if small:
        segments.append(Segment(tuple(small), copy=len(small) == 1))
    return segments


def plan_equal(parts: Sequence[Part], length: int, least: int) -> list[Segment]:
    """The same where all parts of a multipart upload but the last must have one ``length``. The server can copy a slice
    of what is larger than ``least``."""
    total = sum(part.size for part in parts)
    length = max(length, -(-total // PARTS_MOST))
    segments = []
    for offset in range(0, total, length):
        pieces = tuple(slices(parts, offset, min(length, total - offset)))
        whole = pieces[0].length == pieces[0].part.size
        segments.append(Segment(pieces, copy=len(pieces) == 1 and (whole or pieces[0].part.size > least)))
    return segments
