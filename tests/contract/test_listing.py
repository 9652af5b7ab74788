"""Both listings keep every promise of ``tracker.catalog.listing_check``."""

from __future__ import annotations

import pytest

from tracker.catalog.listing import MemoryListing, PostgresListing
from tracker.catalog.listing_check import CASES
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    catalog = MemoryCatalog()
    await CASES[case](catalog, MemoryListing(catalog))


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        await CASES[case](PostgresCatalog(db), PostgresListing(db))
    finally:
        db.close()
