"""Every ``Hooks`` keeps every promise of ``tracker.catalog.hooks_check``; in Postgres no event is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from p2pregistry.globs import matches
from tracker.catalog.hooks import AuditQuery
from tracker.catalog.hooks_check import BY, CASES, PUSH, URL
from tracker.catalog.hooks_memory import MemoryHooks
from tracker.catalog.hooks_postgres import PostgresHooks
from tracker.catalog.migrate import migrate
from tracker.catalog.trail import record
from tracker.db import Connection, Db

ACTIONS = {"p2pregistry.push": "manifest.push", "p2pregistry.delete": "tag.delete"}


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    hooks = MemoryHooks()

    async def tell(kind: str, repository: str) -> None:
        hooks.tell(kind, repository, {"action": ACTIONS[kind]})

    await CASES[case](hooks, tell)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Db]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield db
    finally:
        db.close()


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with opened(database) as db:

        async def tell(kind: str, repository: str) -> None:
            # as another writer does, whose line in the audit log is not what these cases look at
            def write(connection: Connection) -> None:
                record(connection, BY, ACTIONS[kind], repository, reference="1")
                connection.execute("delete from audit where repository is not null")

            await db.tx(write)

        await CASES[case](PostgresHooks(db), tell)


async def test_an_event_that_is_committed_after_a_later_one_is_not_lost(database: str) -> None:
    async with opened(database) as db:
        hooks = PostgresHooks(db)
        await hooks.add(URL, [], [], b"s", BY)
        with psycopg.connect(database) as slow:
            record(slow, BY, "manifest.push", "first")
            await db.tx(record, BY, "manifest.push", "second")
            assert await hooks.fan_out(10) == 1
            slow.commit()
        assert await hooks.fan_out(10) == 1
        assert {one.event.repository for one in await hooks.claim(10, 60.0)} == {"first", "second"}


async def test_many_processes_share_the_work_and_nothing_is_done_twice(database: str) -> None:
    async with opened(database) as db:
        hooks = PostgresHooks(db)
        made = await hooks.add(URL, [], [], b"s", BY)
        for number in range(60):
            await db.tx(record, BY, "manifest.push", f"r{number}")
        fanned: list[int] = []
        claimed: list[int] = []

        async def work() -> None:
            while count := await hooks.fan_out(7):
                fanned.append(count)
            while due := await hooks.claim(5, 60.0):
                claimed.extend(one.id for one in due)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(work)
        await work()
        assert sum(fanned) == 60
        assert len(claimed) == len(set(claimed)) == 60
        assert {one.type for one in await hooks.deliveries(made.id)} == {PUSH}


async def test_the_audit_log_is_searched_by_the_globs_that_are_used_everywhere(database: str) -> None:
    names = ["acme", "acme/api", "acme/api/old", "acme-x/api", "a.me/api", "other"]
    async with opened(database) as db:
        hooks = PostgresHooks(db)
        await hooks.add(URL, [], [], b"s", BY)
        for name in names:
            await db.tx(record, BY, "manifest.push", name)
        for glob in ("acme/*", "acme/**", "acme*", "**", "*", "*/api", "a.me/*", "a***i", "acme", "acme/a*i", "none*"):
            found = await hooks.audit(AuditQuery(repository=glob))
            assert [line.repository for line in found] == [name for name in reversed(names) if matches(glob, name)], (
                glob
            )
