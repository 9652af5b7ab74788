"""How objects and drafts lie in an IPFS daemon's files (MFS): decisions only.

    <directory>/objects/<name>/.bytes             the bytes, a file in our layout
    <directory>/objects/<name>/.made-<ms>         an empty file: when it was published, in its name
    <directory>/uploads/<name>/P.../.bytes        a part of a draft, likewise
    <directory>/uploads/<name>/P.../.token-<hex>  an empty file

MFS keeps no times, so they are in names. No part of an object's name begins with a dot, which tells a directory of ours
from the path to it.

Each of the innermost directories is one block, made here with a time or a token in it, so that its CID is nobody
else's. It is pinned with all that it names, put under its path, and unpinned: at no moment could garbage collection
take the bytes, and no pin that somebody else made of the same bytes is touched.

A part begins at a whole MiB, so that its leaves are those of the object; what is beyond the last whole MiB is a part of
its own, which is written anew, with what follows, at the next flush. Who opens a draft takes a generation above all
that are there (see ``s3_parts``): of two processes that both believe the draft to be theirs the later one's bytes
count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pregistry.content.unixfs import PIECE_SIZE, Child, build, links, piece_count, varint
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from p2pregistry.errors import BadContent

BYTES: Final = ".bytes"
_EMPTY: Final = CID_RAW_PREFIX + hashlib.sha256(b"").digest()
_MADE: Final = re.compile(r"\.made-([0-9]{1,15})")
_PART: Final = re.compile(r"P([0-9]{15})-([0-9]{15})-([0-9]{20})-([0-9]{12})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """``size`` bytes from ``offset`` of a draft, written at ``written`` (milliseconds since 1970)."""

    generation: int
    written: int
    offset: int
    size: int
    token: str

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"P{self.generation:015d}-{self.written:015d}-{self.offset:020d}-{self.size:012d}-{self.token}"

    @property
    def end(self) -> int:
        return self.offset + self.size


def parse_part(name: str) -> Part | None:
    """The part whose ``name`` this is; None for anything else."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    generation, written, offset, size, token = found.groups()
    return Part(int(generation), int(written), int(offset), int(size), token)


def chain(parts: Iterable[Part]) -> list[Part]:
    """The parts that make up the draft, without gap from its first byte on: later ones replace what they begin in."""
    found: list[Part] = []
    for part in sorted(parts):
        kept = [earlier for earlier in found if earlier.end <= part.offset]
        if (kept[-1].end if kept else 0) == part.offset:
            found = [*kept, part]
    return found


@dataclass(frozen=True, slots=True)
class Tree:
    """A file in our layout: its root as a directory links to it, and its inner blocks."""

    root: Child
    blocks: tuple[bytes, ...]


def tree(hashes: bytes, size: int) -> Tree:
    """From the sha256 of each MiB."""
    dag = build(hashes, size)
    return Tree(Child(dag.root, size, size + sum(map(len, dag.blocks))), dag.blocks)


def directory(entries: Mapping[str, Child]) -> bytes:
    """The dag-pb block of a UnixFS directory (https://specs.ipfs.tech/unixfs/): links in the order of their names, each
    with hash, name and the bytes of all below it; then Data with the type 1."""
    out = bytearray()
    for name, child in sorted(entries.items(), key=lambda entry: entry[0].encode()):
        text = name.encode()
        link = b"\x0a" + varint(len(child.cid)) + child.cid + b"\x12" + varint(len(text)) + text
        link += b"\x18" + varint(child.tree_size)
        out += b"\x12" + varint(len(link)) + link
    return bytes(out) + b"\x0a\x02\x08\x01"


def object_directory(root: Child, made: int) -> bytes:
    """The block of an object's directory. ``made``: milliseconds since 1970."""
    return directory({BYTES: root, f".made-{made}": Child(_EMPTY, 0, 0)})


def part_directory(root: Child, token: str) -> bytes:
    """The block of a part's directory."""
    return directory({BYTES: root, f".token-{token}": Child(_EMPTY, 0, 0)})


def made(names: Iterable[str]) -> float:
    """When an object was published whose directory has these names, in seconds since 1970; 0.0 if none says so."""
    return max((int(found[1]) / 1000 for name in names if (found := _MADE.fullmatch(name))), default=0.0)


def dag_pb_cid(block: bytes) -> bytes:
    return CID_DAG_PB_PREFIX + hashlib.sha256(block).digest()


def hashes_of(data: bytes | memoryview) -> bytes:
    """The sha256 of each MiB."""
    return b"".join(
        hashlib.sha256(data[at : at + PIECE_SIZE]).digest() for at in range(0, max(1, len(data)), PIECE_SIZE)
    )


def part_hashes(root: bytes, size: int, block: bytes) -> bytes:
    """The sha256 of each MiB of a part, from its root and, if it has more than one, the root's block. Raises BadContent
    if it is no part of ours."""
    if size <= PIECE_SIZE:
        leaves: Sequence[bytes] = [root]
    else:
        leaves = links(block)
    hashes = b"".join(leaf[4:] for leaf in leaves)
    if len(hashes) // 32 != piece_count(size) or build(hashes, size).root != root:
        raise BadContent("a part of an upload is not as it was written")
    return hashes
