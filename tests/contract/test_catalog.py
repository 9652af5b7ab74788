"""Every catalog keeps every promise of ``tracker.catalog.check`` and of the other checks beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tracker.catalog import check, check_blobs, check_lists, check_policies, check_standing, check_visible
from tracker.catalog.base import Catalog
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db

MODULES = (check, check_blobs, check_lists, check_policies, check_standing, check_visible)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}


@asynccontextmanager
async def postgres_catalog(dsn: str, prepare: bool) -> AsyncIterator[Catalog]:
    db = Db(dsn, prepare=prepare)
    try:
        await migrate(db)
        yield PostgresCatalog(db)
    finally:
        db.close()


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    await CASES[case](MemoryCatalog())


@pytest.mark.parametrize("prepare", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, prepare: bool, database: str) -> None:
    async with postgres_catalog(database, prepare) as catalog:
        await CASES[case](catalog)
