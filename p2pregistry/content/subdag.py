"""A block of a blob's DAG, and what hangs below it.

A block has a place: its level, 0 for the leaves, and its number within the level, from the left. Everything else that
an answer about it needs follows from the piece table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, WIDTH, build, in_order, piece_count, piece_length
from p2pregistry.digest import CID_RAW_PREFIX

#: The place of a leaf.
LEAVES: Final = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block is: ``level`` above the leaves, and its ``index`` in it."""

    level: int
    index: int


@dataclass(frozen=True, slots=True)
class BlockOf:
    """A block of the DAG of a blob."""

    ref: BlobRef
    place: Place


@dataclass(frozen=True, slots=True)
class Whole:
    """Bytes that are a leaf by themselves: a manifest, a claim."""

    data: bytes


#: The most that is a leaf by itself: clients take no larger block.
MAX_WHOLE: Final = 2 << 20


def depth(count: int, width: int = WIDTH) -> int:
    """Levels of inner nodes above ``count`` pieces."""
    levels = 0
    while count > 1:
        count = -(-count // width)
        levels += 1
    return levels


def inner_place(count: int, number: int, width: int = WIDTH) -> Place:
    """The place of inner node ``number``, counted as ``build`` has them: the root first, then level by level. Raises
    IndexError."""
    shape: list[int] = []
    while count > 1:
        count = -(-count // width)
        shape.append(count)
    for level in range(len(shape), 0, -1):
        if number < shape[level - 1]:
            return Place(level, number)
        number -= shape[level - 1]
    raise IndexError("the DAG has fewer inner nodes")


def pieces(size: int, place: Place, width: int = WIDTH) -> tuple[int, int]:
    """The first and the last piece below a block of a blob of ``size`` bytes; of a leaf it is itself."""
    span = width**place.level
    return place.index * span, min(piece_count(size), (place.index + 1) * span) - 1


def extent(size: int, place: Place, width: int = WIDTH) -> tuple[int, int]:
    """Where in the blob the bytes below a block begin, and how many they are."""
    first, last = pieces(size, place, width)
    return first * PIECE_SIZE, (last - first) * PIECE_SIZE + piece_length(size, last)


def blocks(info: Metainfo, *, width: int = WIDTH) -> Iterator[tuple[Place, bytes]]:
    """Every block of the DAG with its sha256: the leaves, then the inner nodes as ``build`` has them."""
    for index in range(info.count):
        yield Place(LEAVES, index), info.hash(index)
    for number, block in enumerate(build(info.hashes, info.size, width=width).blocks):
        yield inner_place(info.count, number, width), hashlib.sha256(block).digest()


def walk(
    info: Metainfo, place: Place, part: tuple[int, int] | None = None, *, width: int = WIDTH
) -> Iterator[tuple[bytes, bytes | int]]:
    """The blocks from ``place`` down, depth first, as ``unixfs.in_order`` gives them; the block itself comes first.

    ``part``: only those that are needed for these bytes, counted from where those below ``place`` begin: the first and
    the last, both there.
    """
    first, last = pieces(info.size, place, width)
    if part is not None:
        last = min(last, first + part[1] // PIECE_SIZE)
        first += part[0] // PIECE_SIZE
    if place.level == LEAVES:
        yield CID_RAW_PREFIX + info.hash(first), first
        return
    above = depth(info.count, width) - place.level
    yield from islice(in_order(info.hashes, info.size, first, last, width=width), above, None)


def key_of(sha256: bytes) -> int:
    """What an index finds a block by: the first 64 bits of its hash, as a signed number. Who finds it compares the
    rest."""
    return int.from_bytes(sha256[:8], "big", signed=True)
