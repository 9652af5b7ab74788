"""What every ``IpfsBlocks`` must do, with the catalog it is over."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.subdag import MAX_WHOLE, BlockOf, Place, Whole, inner_place
from p2pregistry.content.unixfs import PIECE_SIZE, WIDTH
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest
from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest
from tracker.catalog.ipfs_blocks import IpfsBlocks

Case = Callable[[Catalog, IpfsBlocks], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


def large(name: str, size: int) -> Metainfo:
    """A blob of ``size`` bytes of which there is only the piece table; its pieces are all different."""
    count = max(1, -(-size // PIECE_SIZE))
    hashes = b"".join(hashlib.sha256(f"{name} {index}".encode()).digest() for index in range(count))
    return Metainfo.of(Digest.of(name.encode()), size, hashes)


async def put(catalog: Catalog, repository: str, *layers: Metainfo, private: bool = False, body: bytes = b"m") -> str:
    """An image in a repository, public unless it is to be ``private``; gives its claim."""
    for layer in layers:
        await add(catalog, repository, layer)
    record = await catalog.put_manifest(repository, manifest(body, layers), ["1"], Signer(), BY)
    await catalog.set_visibility(repository, private, BY)
    return record.claim


def leaf(info: Metainfo, index: int) -> bytes:
    """The CID of a piece."""
    return CID_RAW_PREFIX + info.hash(index)


def node(info: Metainfo, number: int) -> bytes:
    """The CID of an inner node."""
    return CID_DAG_PB_PREFIX + hashlib.sha256(info.dag().blocks[number]).digest()


@_case
async def a_small_blob_is_found_by_its_digest(catalog: Catalog, blocks: IpfsBlocks) -> None:
    for info in (blob("layer"), blob("")):
        await put(catalog, "acme/api", info, body=str(info.digest).encode())
        assert await blocks.find(info.digest.cid()) == BlockOf(info.ref, Place(0, 0))
    assert await blocks.find(blob("another").digest.cid()) is None


@_case
async def each_block_of_a_large_blob_is_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    info = large("layer", 5 * PIECE_SIZE - 10)
    await put(catalog, "acme/api", info)
    for index in range(5):
        assert await blocks.find(leaf(info, index)) == BlockOf(info.ref, Place(0, index))
    assert await blocks.find(info.root) == BlockOf(info.ref, Place(1, 0))
    assert await blocks.find(info.digest.cid()) is None, "no block, though it is a name of the blob"
    assert await blocks.find(CID_RAW_PREFIX + info.root[4:]) is None
    assert await blocks.find(CID_DAG_PB_PREFIX + info.hash(1)) is None


@_case
async def inner_nodes_below_the_root_are_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    info = large("huge", (2 * WIDTH + 3) * PIECE_SIZE)
    await put(catalog, "acme/api", info)
    for number in range(4):
        assert await blocks.find(node(info, number)) == BlockOf(info.ref, inner_place(info.count, number))
    for index in (0, WIDTH, 2 * WIDTH + 2):
        assert await blocks.find(leaf(info, index)) == BlockOf(info.ref, Place(0, index))


@_case
async def blobs_with_other_digests_have_blocks_too(catalog: Catalog, blocks: IpfsBlocks) -> None:
    data = b"layer of sha512"
    info = Metainfo.of(Digest.of(data, "sha512"), len(data), hashlib.sha256(data).digest())
    await put(catalog, "acme/api", info)
    assert await blocks.find(info.root) == BlockOf(info.ref, Place(0, 0))


@_case
async def only_what_a_public_claim_names_is_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    info, small = large("layer", 3 * PIECE_SIZE), blob("config")
    cids = [info.root, leaf(info, 2), small.digest.cid()]
    for one in (info, small):
        await add(catalog, "acme/api", one)
    await catalog.set_visibility("acme/api", False, BY)
    assert [await blocks.find(cid) for cid in cids] == [None] * 3, "no manifest names it"
    await put(catalog, "acme/secret", info, small, private=True)
    assert [await blocks.find(cid) for cid in cids] == [None] * 3, "nor one of everybody's"
    await put(catalog, "acme/api", info, small)
    assert None not in [await blocks.find(cid) for cid in cids]
    await catalog.set_visibility("acme/api", True, BY)
    assert [await blocks.find(cid) for cid in cids] == [None] * 3, "at once"
    await catalog.set_visibility("acme/api", False, BY)
    assert await catalog.delete_manifest("acme/api", Digest.of(b"m"), BY)
    assert [await blocks.find(cid) for cid in cids] == [None] * 3, "deleted"


@_case
async def a_block_of_several_blobs_is_found_while_one_of_them_is_public(catalog: Catalog, blocks: IpfsBlocks) -> None:
    secret = large("layer", 3 * PIECE_SIZE)
    shared = Metainfo.of(Digest.of(b"other"), 4 * PIECE_SIZE, secret.hashes + Digest.of(b"more").raw)
    await put(catalog, "acme/secret", secret, private=True)
    await put(catalog, "acme/api", shared)
    assert await blocks.find(leaf(secret, 1)) == BlockOf(shared.ref, Place(0, 1))
    assert await blocks.find(secret.root) is None
    assert await catalog.delete_repository("acme/api", BY)
    assert await blocks.find(leaf(secret, 1)) is None


@_case
async def a_piece_that_occurs_twice_is_found_once(catalog: Catalog, blocks: IpfsBlocks) -> None:
    one = Digest.of(b"piece").raw
    info = Metainfo.of(Digest.of(b"layer"), 3 * PIECE_SIZE, one + one + Digest.of(b"last").raw)
    await put(catalog, "acme/api", info)
    assert await blocks.find(CID_RAW_PREFIX + one) == BlockOf(info.ref, Place(0, 0))


@_case
async def what_only_looks_like_a_block_in_the_index_is_not_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    info = large("layer", 3 * PIECE_SIZE)
    await put(catalog, "acme/api", info)
    for prefix, sha256 in ((CID_RAW_PREFIX, info.hash(1)), (CID_DAG_PB_PREFIX, info.root[4:])):
        assert await blocks.find(prefix + sha256[:8] + bytes(24)) is None


@_case
async def manifests_and_claims_of_public_repositories_are_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    body = b'{"a manifest": true}'
    claim = await put(catalog, "acme/api", blob("layer"), body=body)
    cids = [Digest.of(data).cid() for data in (body, claim.encode())]
    assert [await blocks.find(cid) for cid in cids] == [Whole(body), Whole(claim.encode())]
    await catalog.set_visibility("acme/api", True, BY)
    assert [await blocks.find(cid) for cid in cids] == [None, None]
    await catalog.set_visibility("acme/api", False, BY)
    assert await catalog.delete_manifest("acme/api", Digest.of(body), BY)
    assert [await blocks.find(cid) for cid in cids] == [None, None]


@_case
async def a_manifest_larger_than_a_block_may_be_is_not_found(catalog: Catalog, blocks: IpfsBlocks) -> None:
    for size in (MAX_WHOLE, MAX_WHOLE + 1):
        body = bytes(size)
        await put(catalog, "acme/api", body=body)
        assert (await blocks.find(Digest.of(body).cid()) is None) == (size > MAX_WHOLE)


@_case
async def nothing_is_left_to_be_indexed(catalog: Catalog, blocks: IpfsBlocks) -> None:
    await put(catalog, "acme/api", blob("small"), large("layer", 3 * PIECE_SIZE))
    assert await blocks.fill() == 0
