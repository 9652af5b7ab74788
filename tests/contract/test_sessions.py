"""All upload sessions keep every promise of ``tracker.catalog.sessions_check``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from p2pregistry.digest import Digest
from tracker.catalog.migrate import migrate
from tracker.catalog.sessions_check import CASES
from tracker.catalog.sessions_memory import MemorySessions
from tracker.catalog.sessions_postgres import PostgresSessions
from tracker.catalog.trail import By
from tracker.db import Db


@asynccontextmanager
async def postgres_sessions(dsn: str) -> AsyncIterator[PostgresSessions]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield PostgresSessions(db)
    finally:
        db.close()


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    await CASES[case](MemorySessions())


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with postgres_sessions(database) as sessions:
        await CASES[case](sessions)


async def test_what_ends_without_a_blob_is_condemned_but_never_what_a_blob_refers_to(database: str) -> None:
    async with postgres_sessions(database) as sessions:
        for number in ("dropped", "expired", "blob"):
            await sessions.open(number, "a/b", limit=10)
        with psycopg.connect(database, autocommit=True) as connection:
            key = b"\x12" + Digest.of(b"").raw
            connection.execute(
                "insert into blobs (digest, size, root, hashes, object) values (%s, 0, %s, %s, 'u/bl/blob')",
                (key, bytes(36), bytes(32)),
            )
            held = await sessions.take("a/b", "dropped", "p", 60.0)
            assert held is not None
            assert await sessions.drop(held.lease, By("operator", "admin socket"))
            assert set(await sessions.expire(-1.0, 10)) == {"expired", "blob"}
            rows = connection.execute("select object from condemned order by object").fetchall()
            assert rows == [("u/dr/dropped",), ("u/ex/expired",)]
            lines = connection.execute("select actor, action, repository, detail from audit").fetchall()
            assert lines == [("operator", "upload.cancel", "a/b", {"upload": "dropped"})]


async def test_memory_condemns_what_ends_without_a_blob() -> None:
    gone: list[str] = []
    sessions = MemorySessions(lambda name, _size: gone.append(name))
    made = await sessions.open("one", "a/b", limit=10, holder="p", lasts=60.0)
    await sessions.open("two", "a/b", limit=10, holder="p", lasts=60.0)
    assert await sessions.drop(made.lease)
    assert gone == ["u/on/one"]
