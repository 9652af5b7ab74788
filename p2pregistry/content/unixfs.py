"""The UnixFS DAG of a blob in the ``unixfs-v1-2025`` profile.

The profile (IPIP-499): CIDv1, sha2-256, fixed 1 MiB chunks, balanced tree, 1024 links a node, raw leaves, no mode or
mtime. A leaf is the bare bytes of a piece, so the hash of a leaf *is* the sha256 of the piece, and the inner nodes are
the piece table, self-verifying from the root CID.

Two rules that are easy to get wrong: levels are grouped 1024 at a time and *a lone last child also gets its parent*, so
that all leaves are equally deep; and in a node the Links (field 2) come before Data (field 1), each link carrying an
empty Name.

Only this profile is read here: ``parse_table`` refuses any other layout, because what we verify with it was built by a
tracker of ours. Foreign layouts are walked by the IPFS source, not by this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from p2pregistry.errors import BadContent

#: Size of a piece and of a leaf, bytes.
PIECE_SIZE = 1 << 20
#: Links in one inner node.
WIDTH = 1024
_EMPTY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Child:
    """What a parent says of a child: its CID, the file bytes below it, and the block bytes of its whole sub-DAG."""

    cid: bytes
    file_size: int
    tree_size: int


@dataclass(frozen=True, slots=True)
class Dag:
    """A built DAG: the root CID (36 bytes) and the inner blocks, root first, then level by level."""

    root: bytes
    blocks: tuple[bytes, ...]


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _parent(children: Sequence[Child]) -> tuple[Child, bytes]:
    size = sum(child.file_size for child in children)
    data = b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(child.file_size) for child in children)
    out = bytearray()
    for child in children:
        link = b"\x0a" + varint(len(child.cid)) + child.cid + b"\x12\x00\x18" + varint(child.tree_size)
        out += b"\x12" + varint(len(link)) + link
    out += b"\x0a" + varint(len(data)) + data
    block = bytes(out)
    cid = CID_DAG_PB_PREFIX + hashlib.sha256(block).digest()
    return Child(cid, size, len(block) + sum(child.tree_size for child in children)), block


def piece_count(size: int) -> int:
    """How many pieces a blob of ``size`` bytes has; an empty blob has one, empty."""
    return max(1, -(-size // PIECE_SIZE))


def piece_length(size: int, index: int) -> int:
    """Length in bytes of piece ``index``."""
    return min(PIECE_SIZE, size - index * PIECE_SIZE)


def build(hashes: bytes, size: int, *, width: int = WIDTH) -> Dag:
    """The DAG of a blob from its piece hashes (32 bytes each, in order) and its size in bytes.

    ``width`` is a parameter so that deep trees can be tested on small input.
    """
    count = piece_count(size)
    if len(hashes) != 32 * count:
        raise ValueError("one hash of 32 bytes for each piece")
    level = [
        Child(CID_RAW_PREFIX + hashes[32 * i : 32 * i + 32], piece_length(size, i), piece_length(size, i))
        for i in range(count)
    ]
    levels: list[list[bytes]] = []
    while len(level) > 1:
        made = [_parent(level[i : i + width]) for i in range(0, len(level), width)]
        level = [child for child, _ in made]
        levels.append([block for _, block in made])
    return Dag(level[0].cid, tuple(block for blocks in reversed(levels) for block in blocks))


def in_order(
    hashes: bytes, size: int, first: int = 0, last: int | None = None, *, width: int = WIDTH
) -> Iterator[tuple[bytes, bytes | int]]:
    """The DAG of ``build`` depth first, as a CAR with ``order=dfs`` has it: (CID, block) of an inner node, (CID, index)
    of a piece. Of pieces only ``first`` to ``last``, both included, and of inner nodes those above them."""
    count = piece_count(size)
    last = count - 1 if last is None else min(last, count - 1)
    blocks = iter(build(hashes, size, width=width).blocks)
    # nodes of each level from the root down, and how many pieces one of them spans
    shape: list[int] = []
    nodes = count
    while nodes > 1:
        nodes = -(-nodes // width)
        shape.append(nodes)
    levels = [[next(blocks) for _ in range(nodes)] for nodes in reversed(shape)]

    def below(level: int, index: int) -> Iterator[tuple[bytes, bytes | int]]:
        if level == len(levels):
            yield CID_RAW_PREFIX + hashes[32 * index : 32 * index + 32], index
            return
        block = levels[level][index]
        yield CID_DAG_PB_PREFIX + hashlib.sha256(block).digest(), block
        span = width ** (len(levels) - level - 1)
        begin, end = max(index * width, first // span), min((index + 1) * width, last // span + 1)
        for child in range(begin, end):
            yield from below(level + 1, child)

    yield from below(0, 0)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BadContent("the piece table has a broken number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The protobuf fields of ``data``: (number, value); only varints and byte strings occur in dag-pb."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            number, at = _read_varint(data, at)
            yield key >> 3, number
        elif key & 7 == 2:
            length, at = _read_varint(data, at)
            if at + length > len(data):
                raise BadContent("the piece table is cut short")
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise BadContent("the piece table holds a field that dag-pb does not have")


def links(block: bytes) -> list[bytes]:
    """The CIDs that a dag-pb block points at, in order. Raises BadContent for anything that is not such a block."""
    found: list[bytes] = []
    for number, value in _fields(block):
        if number != 2:
            continue
        if not isinstance(value, bytes):
            raise BadContent("a link of the piece table is not a message")
        cid = next((v for n, v in _fields(value) if n == 1), None)
        if not isinstance(cid, bytes) or len(cid) != 36 or cid[:4] not in (CID_RAW_PREFIX, CID_DAG_PB_PREFIX):
            raise BadContent("a link of the piece table is not a CIDv1 of 36 bytes")
        found.append(cid)
    return found


def parse_table(root: bytes, size: int, blocks: Mapping[bytes, bytes]) -> bytes:
    """The piece hashes (32 bytes each) of the blob whose DAG has this root.

    ``blocks`` maps a 36-byte CID to the bytes of an inner node; they may come from anyone. The hashes are read from
    them and the DAG is then built anew: only a table that gives exactly ``root`` for exactly ``size`` bytes passes.
    Raises BadContent otherwise.
    """
    count = piece_count(size)
    level = [root]
    # A tree over `count` leaves has this many levels; a deeper one is not ours, and a cycle ends here too.
    depth = 0
    reach = 1
    while reach < count:
        reach *= WIDTH
        depth += 1
    for _ in range(depth):
        below: list[bytes] = []
        for cid in level:
            block = blocks.get(cid)
            if block is None:
                raise BadContent("the piece table lacks a block")
            below += links(block)
            if len(below) > count:
                raise BadContent("the piece table names too many pieces")
        level = below
    if len(level) != count or any(cid[:4] != CID_RAW_PREFIX for cid in level):
        raise BadContent("the piece table does not fit the size of the blob")
    hashes = b"".join(cid[4:] for cid in level)
    if build(hashes, size).root != root:
        raise BadContent("the piece table does not give the root CID that was signed")
    return hashes


def empty_root() -> bytes:
    """The root CID of the empty blob."""
    return CID_RAW_PREFIX + _EMPTY
