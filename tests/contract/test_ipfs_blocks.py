"""Which blob a block of an IPFS DAG is of: both catalogs keep every promise; blobs of an older program are found."""

from __future__ import annotations

import pytest

from p2pregistry.content.subdag import BlockOf, Place
from p2pregistry.content.unixfs import PIECE_SIZE
from tracker.catalog.check import BY
from tracker.catalog.ipfs_blocks_check import CASES, large, leaf, put
from tracker.catalog.ipfs_blocks_memory import MemoryIpfsBlocks
from tracker.catalog.ipfs_blocks_postgres import PostgresIpfsBlocks
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    catalog = MemoryCatalog()
    await CASES[case](catalog, MemoryIpfsBlocks(catalog))


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        await CASES[case](PostgresCatalog(db), PostgresIpfsBlocks(db))
    finally:
        db.close()


async def test_blobs_that_an_older_program_has_stored_are_found(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        catalog, blocks = PostgresCatalog(db), PostgresIpfsBlocks(db)
        infos = [large(f"layer {number}", 3 * PIECE_SIZE) for number in range(3)]
        await put(catalog, "acme/api", *infos)
        await db.tx(lambda connection: connection.execute("delete from blob_blocks"))
        await db.tx(lambda connection: connection.execute("update blobs set keyed = false"))
        assert await blocks.find(leaf(infos[0], 1)) is None
        assert await blocks.fill(2) == 2
        assert await blocks.find(leaf(infos[1], 1)) == BlockOf(infos[1].ref, Place(0, 1))
        assert await blocks.find(leaf(infos[2], 1)) is None
        # a client begins with the root, which is found without an index and has the rest indexed
        assert await blocks.find(infos[2].root) == BlockOf(infos[2].ref, Place(1, 0))
        assert await blocks.find(leaf(infos[2], 1)) == BlockOf(infos[2].ref, Place(0, 1))
        assert await blocks.fill() == 0
    finally:
        db.close()


async def test_what_is_damaged_is_not_found_and_what_is_collected_is_gone(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        catalog, blocks = PostgresCatalog(db), PostgresIpfsBlocks(db)
        info = large("layer", 3 * PIECE_SIZE)
        await put(catalog, "acme/api", info)
        await db.tx(lambda connection: connection.execute("update blobs set damaged = true"))
        assert await blocks.find(info.root) is None
        assert await blocks.find(leaf(info, 0)) is None
        assert await catalog.delete_repository("acme/api", BY)
        await db.tx(lambda connection: connection.execute("delete from blobs"))
        assert await db.query(lambda c: c.execute("select count(*) from blob_blocks").fetchone()) == (0,)
    finally:
        db.close()
