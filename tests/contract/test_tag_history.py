"""Where tags have pointed is kept, with who moved them, and a tag can be put back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.changes_check import push
from tracker.catalog.changes_postgres import PostgresChanges
from tracker.catalog.check import BY
from tracker.catalog.history import TagHistory
from tracker.catalog.hooks import AuditQuery
from tracker.catalog.hooks_postgres import PostgresHooks
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.catalog.trail import By
from tracker.db import Db

OPERATOR = By("operator:eve", "admin socket")


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[Db, PostgresCatalog, TagHistory]]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield db, PostgresCatalog(db), TagHistory(db)
    finally:
        db.close()


async def digests(history: TagHistory, tag: str = "1") -> list[Digest | None]:
    return [one.digest for one in await history.of("a", tag)]


async def refusal(attempt: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await attempt  # type: ignore[misc]
    return caught.value


async def test_every_move_is_kept_with_who_made_it(database: str) -> None:
    async with opened(database) as (_, catalog, history):
        one = await push(catalog, "a", b"one", "1", "2")
        await push(catalog, "a", b"one", "1")
        two = await push(catalog, "a", b"two", "1")
        await catalog.delete_tag("a", "1", OPERATOR)
        found = await history.of("a", "1")
        assert [(line.digest, line.actor, line.here) for line in found] == [
            (None, "operator:eve", False),
            (two, BY.actor, True),
            (one, BY.actor, True),
        ]
        assert found[0].at > found[1].at > found[2].at
        assert await history.of("a", "1", before=found[0].id, limit=1) == [found[1]]
        assert await digests(history, "2") == [one]
        assert await digests(history, "3") == []
        assert (await refusal(history.of("no", "1"))).code == "NAME_UNKNOWN"
        await catalog.delete_repository("a", BY)
        await push(catalog, "a", b"one", "1")
        assert await digests(history) == [one], "of another repository of that name"


async def test_a_tag_is_moved_and_put_back(database: str) -> None:
    async with opened(database) as (db, catalog, history):
        one, two = await push(catalog, "a", b"one", "1"), await push(catalog, "a", b"two", "1")
        before = (await PostgresChanges(db).state()).number
        assert await history.rollback("a", "1", OPERATOR) == one
        (change,) = (await PostgresChanges(db).since(before, 10)).changes
        assert (change.name, change.digest) == ("1", one), "nodes hear of it"
        assert await history.rollback("a", "1", OPERATOR) == two, "it was there before"
        assert await history.move("a", "1", one, OPERATOR) == two
        assert await history.move("a", "1", one, OPERATOR) == one
        assert await history.move("a", "new", two, OPERATOR) is None
        await catalog.delete_tag("a", "1", BY)
        assert await history.rollback("a", "1", OPERATOR) == one, "a deleted tag comes back"
        assert await digests(history) == [one, None, one, two, one, two, one]
        resolved = await catalog.manifest("a", "1")
        assert resolved is not None
        assert resolved.digest == one
        lines = await PostgresHooks(db).audit(AuditQuery(repository="a"))
        assert [line.action for line in lines if line.actor == "operator:eve"] == [
            "tag.rollback",
            "tag.move",
            "tag.move",
            "tag.rollback",
            "tag.rollback",
        ]


async def test_what_cannot_be_put_back_says_why(database: str) -> None:
    async with opened(database) as (_, catalog, history):
        one = await push(catalog, "a", b"one", "1")
        assert (await refusal(history.rollback("a", "1", BY))).status == 404
        two = await push(catalog, "a", b"two", "1")
        await catalog.delete_manifest("a", one, BY)
        gone = await refusal(history.rollback("a", "1", BY))
        assert isinstance(gone, NotFound)
        assert "collected" in gone.message
        assert [line.here for line in await history.of("a", "1")] == [True, False]
        three = await push(catalog, "a", b"three", "v1")
        await catalog.policies.add_immutable("a:v*", BY)
        assert (await refusal(history.move("a", "v1", two, BY))).code == "DENIED"
        assert await history.move("a", "v1", three, BY) == three
        assert await history.move("a", "v2", two, BY) is None, "it is new"
        assert (await refusal(history.move("a", "v2", three, BY))).code == "DENIED"


async def test_old_lines_are_forgotten_but_not_where_a_tag_points(database: str) -> None:
    async with opened(database) as (_, catalog, history):
        for body in (b"one", b"two", b"three"):
            last = await push(catalog, "a", body, "1")
        assert await history.prune(3600.0) == 0
        assert await history.prune(-1.0) == 2
        assert await digests(history) == [last]
