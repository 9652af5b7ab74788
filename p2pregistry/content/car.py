"""CARv1: blocks one after another, each behind its length and CID (https://ipld.io/specs/transport/car/carv1/).

A piece table travels as a CAR of the inner nodes. The reader trusts nothing in it: the header is skipped, and every
block is hashed against its own CID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from p2pregistry.content.unixfs import varint
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from p2pregistry.errors import BadContent

#: The largest block that IPFS networks move, bytes.
MAX_BLOCK = 2 << 20


def header(*roots: bytes) -> bytes:
    """The header section of a CAR with these roots (binary CIDs, of 36 bytes as a rule), at least one: a map in
    DAG-CBOR."""
    count = len(roots)
    if not 0 < count < 1 << 16:
        raise ValueError("a CAR has from 1 to 65,535 roots here")
    length = (
        bytes([0x80 | count]) if count < 24 else bytes([0x98, count]) if count < 256 else b"\x99" + count.to_bytes(2)
    )
    links = b"".join(_link(root) for root in roots)
    body = b"\xa2\x65roots" + length + links + b"\x67version\x01"
    return varint(len(body)) + body


def _link(cid: bytes) -> bytes:
    """A CID in DAG-CBOR: tag 42 over a byte string that begins with 0."""
    length = len(cid) + 1
    return b"\xd8\x2a" + bytes([0x40 | length] if length < 24 else [0x58, length]) + b"\x00" + cid


def section(cid: bytes, block: bytes) -> bytes:
    """One block with its length and CID in front."""
    return section_head(cid, len(block)) + block


def section_head(cid: bytes, size: int) -> bytes:
    """What stands in front of a block of ``size`` bytes."""
    return varint(len(cid) + size) + cid


def write_table(root: bytes, blocks: Iterable[bytes]) -> bytes:
    """A CAR of dag-pb blocks."""
    return header(root) + b"".join(section(CID_DAG_PB_PREFIX + hashlib.sha256(b).digest(), b) for b in blocks)


class NotTaken(BadContent):
    """A section that may be what it should, but is not taken here: its CID is of another kind, or it is too large."""


class CarReader:
    """Feed bytes as they come; get verified blocks. ``close()`` raises BadContent if a block is left unfinished."""

    def __init__(self, max_block: int = MAX_BLOCK) -> None:
        self._buffer = bytearray()
        self._header = True
        self._limit = max_block + 64

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The (CID, block) pairs that are now whole. Raises BadContent at the first wrong one."""
        self._buffer += data
        while (found := self._next()) is not None:
            begin, end = found
            if self._header:
                self._header = False
                del self._buffer[:end]
                continue
            with memoryview(self._buffer) as view:  # each block is copied once
                if bytes(view[begin : begin + 2]) == b"\x12\x20":  # version 0, as most of what others made has it
                    cid, block = CID_DAG_PB_PREFIX + bytes(view[begin + 2 : begin + 34]), bytes(view[begin + 34 : end])
                else:
                    cid, block = bytes(view[begin : begin + 36]), bytes(view[begin + 36 : end])
            del self._buffer[:end]
            if cid[:4] not in (CID_RAW_PREFIX, CID_DAG_PB_PREFIX):
                raise NotTaken("a block of the CAR has a CID of a kind that is not taken here")
            if hashlib.sha256(block).digest() != cid[4:]:
                raise BadContent("a block of the CAR does not match its CID")
            yield cid, block

    def _next(self) -> tuple[int, int] | None:
        """Where the next section begins and ends, behind its length, if it is whole."""
        length = used = 0
        for byte in self._buffer:
            length |= (byte & 0x7F) << 7 * used
            used += 1
            if byte < 0x80:
                break
            if used > 4:
                raise BadContent("a section of the CAR has a broken length")
        else:
            return None
        if length > self._limit:
            raise NotTaken("a section of the CAR is too large")
        if length == 0:
            raise BadContent("a section of the CAR is empty")
        end = used + length
        return None if len(self._buffer) < end else (used, end)

    def close(self) -> None:
        """Call at the end of the input."""
        if self._buffer or self._header:
            raise BadContent("the CAR is cut short")


def read_table(data: bytes) -> dict[bytes, bytes]:
    """The blocks of a whole CAR by CID. Raises BadContent."""
    reader = CarReader()
    blocks = dict(reader.feed(data))
    reader.close()
    return blocks
