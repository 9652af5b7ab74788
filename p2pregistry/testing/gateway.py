"""A trustless gateway over a tracker in memory, and what a CAR from one must be."""

from __future__ import annotations

import functools

from p2pregistry.content.car import CarReader
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import links
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.testing.handlers import Answer
from p2pregistry.testing.tracker_api import Registry
from p2pregistry.testing.visibility import IMAGES, Ask, Endpoint, Image
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


def gateway_endpoints(*, routing: bool) -> dict[str, list[Endpoint]]:
    """For the tests of who sees what: ``ipfs`` gives each block of an image, ``routing`` names somebody for it."""

    def block(method: str, query: str, number: int, status: int = 200) -> Endpoint:
        async def ask_(ask: Ask, repository: str) -> tuple[Answer, bool]:
            headers = (("Range", "bytes=5-9"),) if status == 206 else ()
            target = f"/ipfs/{cid_text(cids_of(IMAGES[repository])[number])}?format={query}"
            answer = await ask(method, target, headers=headers)
            return answer, answer.status == status

        return ask_

    def named(number: int) -> Endpoint:
        async def ask_(ask: Ask, repository: str) -> tuple[Answer, bool]:
            answer = await ask("GET", f"/routing/v1/providers/{cid_text(cids_of(IMAGES[repository])[number])}")
            assert answer.status == 200, answer
            return answer, bool(answer.json()["Providers"])

        return ask_

    numbers = range(len(cids_of(IMAGES["acme/public"])))
    asked = [(method, query) for method in ("GET", "HEAD") for query in ("raw", "car", "car&dag-scope=block")]
    found = [block(method, query, number) for number in numbers for method, query in asked]
    ranges = [block("GET", "raw", number, 206) for number in numbers]
    return {"ipfs": [*found, *ranges], **({"routing": [named(number) for number in numbers]} if routing else {})}


@functools.cache
def cids_of(image: Image) -> list[bytes]:
    """Root, first and last leaf of the layer, the config and the manifest."""
    info = Metainfo.of_bytes(image.layer)
    leaves = [CID_RAW_PREFIX + info.hash(index) for index in (0, info.count - 1)]
    return [info.root, *leaves, Digest.of(image.config).cid(), image.digest.cid()]


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
