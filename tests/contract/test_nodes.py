"""Every ``Nodes`` keeps every promise of ``tracker.catalog.nodes_check``; in Postgres each change leaves a line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from tracker.catalog.hooks import AuditQuery
from tracker.catalog.hooks_postgres import PostgresHooks
from tracker.catalog.migrate import migrate
from tracker.catalog.nodes_check import BY, CASES, DAY, GRANT, NODE
from tracker.catalog.nodes_memory import MemoryNodes
from tracker.catalog.nodes_postgres import PostgresNodes
from tracker.db import Db


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    await CASES[case](MemoryNodes())


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
        await CASES[case](PostgresNodes(db))


async def test_every_change_is_in_the_audit_log(database: str) -> None:
    async with opened(database) as db:
        nodes = PostgresNodes(db)
        token = await nodes.add_token(b"hash", GRANT, 1, 3600.0, BY)
        await nodes.join(b"hash", "peer1", "default", DAY, NODE)
        await nodes.regrant("peer1", ["x/*"], None, BY)
        await nodes.revoke("peer1", True, BY)
        await nodes.revoke("peer1", False, BY)
        await nodes.revoke_token(token.id, BY)
        lines = await PostgresHooks(db).audit(AuditQuery())
        assert [(line.action, line.actor) for line in reversed(lines)] == [
            ("node-token.add", "operator"),
            ("node.enrol", "node"),
            ("node.set", "operator"),
            ("node.revoke", "operator"),
            ("node.restore", "operator"),
            ("node-token.revoke", "operator"),
        ]
        assert lines[-2].detail["node"] == "peer1"
        assert lines[-2].address == "192.0.2.1"


async def test_a_restored_database_lists_revocations_under_higher_numbers(database: str) -> None:
    async with opened(database) as db:
        nodes = PostgresNodes(db)
        await nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE)
        await nodes.revoke("peer1", True, BY)
        before = (await nodes.revoked()).number
        with psycopg.connect(database) as restored:
            restored.execute("update change_state set epoch = epoch + 1, number = 0")
            restored.execute("delete from changes")
        assert (await nodes.revoked()).number > before
