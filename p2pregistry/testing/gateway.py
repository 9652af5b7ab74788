"""A trustless gateway over a tracker in memory, and what a CAR from one must be."""

from __future__ import annotations

from p2pregistry.content.car import CarReader
from p2pregistry.content.unixfs import links
from p2pregistry.digest import CID_DAG_PB_PREFIX
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.testing.tracker_api import Registry
from tracker.blobs import Blobs
from tracker.catalog.ipfs_blocks_memory import MemoryIpfsBlocks
from tracker.public_blocks import PublicBlocks


def public_blocks(made: Registry) -> PublicBlocks:
    """What of a tracker in memory is for everybody."""
    return PublicBlocks(MemoryIpfsBlocks(made.catalog), made.catalog, Blobs(made.catalog, made.objects))


def gateway_of(made: Registry, slots: Slots | None = None, served: list[int] | None = None) -> IpfsGateway:
    """Its gateway; ``served`` is told how much went out."""
    counted = [] if served is None else served
    return IpfsGateway(public_blocks(made), slots or Slots(4, 16), served=counted.append)


def read_car(data: bytes) -> list[tuple[bytes, bytes]]:
    """The blocks of a whole CAR, each compared with its CID."""
    reader = CarReader()
    found = list(reader.feed(data))
    reader.close()
    return found


def file_of(root: bytes, car: list[tuple[bytes, bytes]], *, dups: bool) -> bytes:
    """The file under ``root``, by a client that takes exactly the blocks that it needs, in their order."""
    blocks, at, whole, stack = dict(car), 0, b"", [root]
    seen: set[bytes] = set()
    while stack:
        cid = stack.pop()
        if dups or cid not in seen:
            assert car[at][0] == cid, f"block {at} is another one"
            at += 1
            seen.add(cid)
        if cid[:4] == CID_DAG_PB_PREFIX:
            stack += reversed(links(blocks[cid]))
        else:
            whole += blocks[cid]
    assert at == len(car), "there are more blocks than were needed"
    return whole
