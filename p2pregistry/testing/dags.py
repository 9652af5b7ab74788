"""Files as others put them into IPFS: any chunk size, width, leaves and shape. Only for tests; ours is ``unixfs``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2pregistry.content.unixfs import varint
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX


@dataclass
class MadeDag:
    """Blocks by CID (36 bytes), and the root."""

    root: bytes = b""
    blocks: dict[bytes, bytes] = field(default_factory=dict)

    def put(self, codec: bytes, block: bytes) -> bytes:
        cid = codec + hashlib.sha256(block).digest()
        self.blocks[cid] = block
        return cid


def unixfs_data(data: bytes, sizes: Sequence[int] = (), *, kind: int = 2, size: int | None = None) -> bytes:
    """The Data of a dag-pb block: type, inline data, file size, block sizes."""
    said = len(data) + sum(sizes) if size is None else size
    inline = b"\x12" + varint(len(data)) + data if data else b""
    return b"\x08" + varint(kind) + inline + b"\x18" + varint(said) + b"".join(b"\x20" + varint(n) for n in sizes)


def dag_pb(data: bytes, cids: Sequence[bytes] = (), names: Sequence[str] = (), *, v0: bool = False) -> bytes:
    """A dag-pb block; with ``v0`` its links have CIDs of version 0 where that can be."""
    out = b""
    for at, cid in enumerate(cids):
        raw = cid[2:] if v0 and cid[:4] == CID_DAG_PB_PREFIX else cid
        name = names[at].encode() if names else b""
        link = b"\x0a" + varint(len(raw)) + raw + b"\x12" + varint(len(name)) + name + b"\x18\x05"
        out += b"\x12" + varint(len(link)) + link
    return out + b"\x0a" + varint(len(data)) + data


Leaves = Literal["raw", "file", "typed-raw"]


def make_dag(
    data: bytes,
    *,
    chunk: int = 262_144,
    width: int = 174,
    leaves: Leaves = "raw",
    v0: bool = False,
    inline: int = 0,
) -> MadeDag:
    """A balanced DAG. ``leaves``: bare bytes, dag-pb of the type File (as with CIDv0) or Raw; ``inline``: bytes of the
    file that each inner node holds itself, before those below it."""
    made = MadeDag()

    def leaf(part: bytes) -> bytes:
        if leaves == "raw":
            return made.put(CID_RAW_PREFIX, part)
        kind = 2 if leaves == "file" else 0
        return made.put(CID_DAG_PB_PREFIX, dag_pb(unixfs_data(part, kind=kind)))

    def node(part: bytes) -> bytes:
        if len(part) <= chunk:
            return leaf(part)
        own, rest = part[:inline], part[inline:]
        span = chunk
        while span * width < len(rest):
            span *= width
        below = [rest[at : at + span] for at in range(0, len(rest), span)]
        cids = [node(piece) for piece in below]
        return made.put(CID_DAG_PB_PREFIX, dag_pb(unixfs_data(own, [len(piece) for piece in below]), cids, v0=v0))

    made.root = node(data)
    return made


def depth_first(made: MadeDag, root: bytes | None = None) -> list[bytes]:
    """The CIDs of a DAG in the order of a CAR, duplicates each time."""
    from p2pregistry.content.dag import read_node

    cid = made.root if root is None else root
    found = [cid]
    if cid[:4] == CID_DAG_PB_PREFIX:
        for link, _size in read_node(made.blocks[cid]).links:
            found += depth_first(made, link)
    return found
