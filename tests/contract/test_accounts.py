"""Every ``Accounts`` keeps every promise of ``tracker.identity.check``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Connection, Db
from tracker.identity.check import CASES, Subject
from tracker.identity.memory import MemoryAccounts
from tracker.identity.passwords import Passwords
from tracker.identity.postgres import PostgresAccounts


def resign(repository: str, digest: Digest, blobs: Sequence[BlobRef]) -> str:
    return " ".join([repository, str(digest), *(str(one.digest) for one in blobs)])


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    passed = 0.0
    catalog = MemoryCatalog()
    accounts = MemoryAccounts(catalog, resign, now=lambda: datetime.now(UTC) + timedelta(seconds=passed))

    async def age(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    async def audit() -> list[tuple[str, str, str]]:
        return [(by.actor, action, name) for by, action, name in accounts.written]

    await CASES[case](Subject(accounts, catalog, age, audit))


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Db]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield db
    finally:
        db.close()


def quick() -> Passwords:
    return Passwords(memory_cost=8, time_cost=1)


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with opened(database) as db:

        async def age(seconds: float) -> None:
            await db.tx(_age, seconds)

        async def audit() -> list[tuple[str, str, str]]:
            return await db.query(_audit)

        accounts = PostgresAccounts(db, resign, passwords=quick())
        await CASES[case](Subject(accounts, PostgresCatalog(db), age, audit))


def _age(connection: Connection, seconds: float) -> None:
    for table in ("tokens", "setup"):
        connection.execute(
            f"update {table} set expires_at = expires_at - %s * interval '1 second'".encode(),
            (seconds,),
        )


def _audit(connection: Connection) -> list[tuple[str, str, str]]:
    return connection.execute("select actor, action, reference from audit order by id").fetchall()
