"""One CARv1 file of many blobs, written in one pass over them.

The order in the file is that of a gateway's CAR with ``order=dfs``, inner nodes before what is below them, although
they are known last: the length of each block follows from the size of its blob alone, so that the place of every block
is known before anything is read. What is verified is given its name at the very end.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from p2pregistry.content.car import header, section
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import in_order, piece_count, piece_length, varint
from p2pregistry.digest import CID_RAW_PREFIX
from p2pregistry.errors import BadContent, LocalError
from p2pregistry.image.inventory import Item, Reads, pieces

_CID = 36
#: Roots in a header.
_MOST = 65_535


@dataclass(frozen=True, slots=True)
class Places:
    """Where in the file the sections of a blob are: of its pieces, and of its inner nodes, depth first. ``end``: of
    the last one."""

    pieces: tuple[int, ...]
    nodes: tuple[int, ...]
    end: int


def places(size: int, start: int, *, width: int | None = None) -> Places:
    """Of a blob of ``size`` bytes whose first section is at ``start``."""
    at, leaves, nodes = start, list[int](), list[int]()
    given = {} if width is None else {"width": width}
    for _cid, block in in_order(bytes(32 * piece_count(size)), size, **given):
        length = piece_length(size, block) if isinstance(block, int) else len(block)
        (leaves if isinstance(block, int) else nodes).append(at)
        at += len(varint(_CID + length)) + _CID + length
    return Places(tuple(leaves), tuple(nodes), at)


def write_car(
    registry: Reads,
    items: Sequence[Item],
    path: Path,
    progress: Callable[[Item, int], None] = lambda _item, _count: None,
) -> list[bytes]:
    """Write the items to the file ``path`` and give their root CIDs, which are also in the header, in this order.

    ``progress`` is told of the bytes as they come. Until all is verified and on the disk, ``path`` is what it was.
    Raises BadContent for bytes, or a stated root, that do not agree with a digest, and LocalError.
    """
    if len(items) > _MOST:
        raise BadContent(f"the image has {len(items)} parts, and a CAR names {_MOST} at most")
    roots: list[bytes] = []
    at = len(header(*[bytes(_CID)] * len(items)))
    with _file(path) as file:
        for item in items:
            where = places(item.size, at)
            roots.append(_write_blob(file, registry, item, where, partial(progress, item)))
            at = where.end
        file.seek(0)
        file.write(header(*roots))
    return roots


def _write_blob(file: BinaryIO, registry: Reads, item: Item, where: Places, progress: Callable[[int], None]) -> bytes:
    parts = iter([item.body]) if item.body is not None else registry.blob(item.digest)
    hashes = bytearray()
    for place, (hash_, piece) in zip(where.pieces, pieces(item, parts, progress), strict=True):
        hashes += hash_
        file.seek(place)
        file.write(section(CID_RAW_PREFIX + hash_, piece))
    inner = ((cid, block) for cid, block in in_order(bytes(hashes), item.size) if isinstance(block, bytes))
    for place, (cid, block) in zip(where.nodes, inner, strict=True):
        file.seek(place)
        file.write(section(cid, block))
    root = Metainfo.of(item.digest, item.size, bytes(hashes)).root
    if item.root not in (None, root):
        raise BadContent(f"the registry states another root CID for {item.digest} than its bytes have")
    return root


@contextmanager
def _file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` if the block ends well, and else is gone."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # process numbers are few in a container
    try:
        with draft.open("xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as err:
        raise LocalError(f"{path} cannot be written: {err.strerror}") from err
