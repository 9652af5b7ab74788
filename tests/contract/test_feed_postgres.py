"""The feed on a real Postgres: what one tracker commits nodes of another hear of, whatever becomes of connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import psycopg
import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.feed_messages import EventReader, Interest
from p2pregistry.testing.feed_model import FeedModel
from p2pregistry.testing.tracker_api import SIGNED
from p2pregistry.trust.records import ANYONE
from tracker import feed as feeds
from tracker.catalog.changes_check import push
from tracker.catalog.changes_postgres import PostgresChanges
from tracker.catalog.check import BY
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db
from tracker.feed import Feed
from tracker.notices import Notices

#: Seconds; only a test that fails takes as long.
PATIENCE = 30.0


@asynccontextmanager
async def running(dsn: str, *, notices: bool = True) -> AsyncIterator[tuple[Feed, Db]]:
    db = Db(dsn)
    await migrate(db)
    feed = Feed(PostgresChanges(db), SIGNED, listen=Notices(dsn).run if notices else None)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            while not feed.ready:
                await trio.sleep(0.01)
            yield feed, db
            nursery.cancel_scope.cancel()
    finally:
        db.close()


async def follow(feed: Feed, model: FeedModel) -> AsyncGenerator[float, None]:
    """Applies what comes; the time of each piece."""
    reader = EventReader()
    async with aclosing(feed.stream(model.request(), ANYONE)) as chunks:
        async for chunk in chunks:
            model.apply(reader.feed(chunk))
            yield trio.current_time()


async def until(pieces: AsyncGenerator[float, None], model: FeedModel, tags: dict[tuple[str, str], Digest]) -> float:
    """Until this is known; when that was."""
    with trio.fail_after(PATIENCE):
        at = trio.current_time()
        while model.tags != tags:
            at = await anext(pieces)
        return at


async def test_what_another_tracker_commits_is_heard_at_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "POLL", 60.0)  # so that it was a notice
    model = FeedModel(Interest(frozenset({"a"})))
    async with running(database) as (feed, _), running(database) as (_, other):
        catalog = PostgresCatalog(other, private=False)
        async with aclosing(follow(feed, model)) as pieces:
            await anext(pieces)
            for body in (b"one", b"two", b"three"):
                await push(catalog, "a", body, "1")
                pushed = trio.current_time()
                assert await until(pieces, model, {("a", "1"): Digest.of(body)}) < pushed + 5
            await catalog.set_visibility("a", True, BY)
            await until(pieces, model, {})


async def test_without_notices_it_is_looked_for(database: str) -> None:
    model = FeedModel(Interest(frozenset({"a"})))
    async with running(database, notices=False) as (feed, db), aclosing(follow(feed, model)) as pieces:
        await anext(pieces)
        await push(PostgresCatalog(db, private=False), "a", b"one", "1")
        await until(pieces, model, {("a", "1"): Digest.of(b"one")})


@pytest.mark.parametrize("which", ["application_name = 'p2pregistry-notices'", "true"], ids=["notices", "all"])
async def test_connections_that_are_lost_cost_nothing_but_time(
    database: str, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(feeds, "POLL", 60.0)
    model = FeedModel(Interest(patterns=frozenset({"*"})))
    async with running(database) as (feed, db), aclosing(follow(feed, model)) as pieces:
        catalog = PostgresCatalog(db, private=False)
        await anext(pieces)
        await push(catalog, "a", b"one", "1")
        await until(pieces, model, {("a", "1"): Digest.of(b"one")})
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                f" where datname = current_database() and pid <> pg_backend_pid() and {which}".encode()
            )
        await push(catalog, "a", b"two", "1")
        await until(pieces, model, {("a", "1"): Digest.of(b"two")})
        await push(catalog, "a", b"three", "1")
        await until(pieces, model, {("a", "1"): Digest.of(b"three")})
