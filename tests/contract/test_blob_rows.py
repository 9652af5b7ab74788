"""Blobs in Postgres: what is condemned, what is touched, what the audit log says, and locks against a collector."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import trio

from p2pregistry.digest import Digest
from tracker.catalog.check import BY, Signer, blob, manifest
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db

ONE = blob("one")


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[PostgresCatalog, psycopg.Connection[tuple[object, ...]]]]:
    db = Db(dsn)
    try:
        await migrate(db)
        with psycopg.connect(dsn, autocommit=True) as connection:
            yield PostgresCatalog(db), connection
    finally:
        db.close()


def rows(connection: psycopg.Connection[tuple[object, ...]], statement: bytes) -> list[tuple[object, ...]]:
    return connection.execute(statement).fetchall()


async def test_the_object_that_is_not_used_is_condemned_in_the_same_step(database: str) -> None:
    async with opened(database) as (catalog, connection):
        await catalog.add_blob("a", ONE, "u/aa/first", BY)
        assert rows(connection, b"select object from condemned") == []
        await catalog.add_blob("a", ONE, "u/bb/second", BY)
        assert rows(connection, b"select object, size from condemned") == [("u/bb/second", ONE.size)]
        await catalog.add_blob("a", ONE, "u/cc/third", BY, lost="u/aa/first")
        assert rows(connection, b"select object from condemned order by 1") == [("u/aa/first",), ("u/bb/second",)]
        assert rows(connection, b"select object from blobs") == [("u/cc/third",)]


async def test_a_damaged_blob_is_replaced_by_the_next_push(database: str) -> None:
    async with opened(database) as (catalog, connection):
        await catalog.add_blob("a", ONE, "u/aa/first", BY)
        connection.execute("update blobs set damaged = true, scrubbed_at = now()")
        assert await catalog.add_blob("b", ONE, "u/bb/second", BY) == "u/bb/second"
        assert rows(connection, b"select object, damaged, scrubbed_at from blobs") == [("u/bb/second", False, None)]
        assert rows(connection, b"select object from condemned") == [("u/aa/first",)]


async def test_pushes_of_one_blob_at_the_same_time_leave_one_object(database: str) -> None:
    async with opened(database) as (catalog, connection):
        used: set[str] = set()

        async def push(number: int) -> None:
            used.add(await catalog.add_blob(f"r{number % 3}", ONE, f"u/aa/{number}", BY))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(push, number)
        assert len(used) == 1
        condemned = {name for (name,) in rows(connection, b"select object from condemned")}
        assert condemned | used == {f"u/aa/{number}" for number in range(12)}
        assert not condemned & used


async def test_a_push_a_mount_and_a_head_renew_the_grace(database: str) -> None:
    async with opened(database) as (catalog, connection):
        old = "update repository_blobs set touched_at = now() - interval '1 day'"
        fresh = b"select count(*) from repository_blobs where touched_at > now() - interval '1 minute'"
        await catalog.add_blob("a", ONE, "u/aa/first", BY)
        for renew in (
            lambda: catalog.add_blob("a", ONE, "u/bb/second", BY),
            lambda: catalog.mount_blob("a", ONE.digest, None, BY),
            lambda: catalog.blob("a", ONE.digest, renew=True),
        ):
            connection.execute(old.encode())
            await catalog.blob("a", ONE.digest)
            assert rows(connection, fresh) == [(0,)]
            await renew()
            assert rows(connection, fresh) == [(1,)]


async def test_a_promise_waits_for_a_collector_and_then_knows_better(database: str) -> None:
    """While a collector holds the row nothing is promised; once it has removed it, the client pushes again."""
    async with opened(database) as (catalog, connection):
        await catalog.add_blob("a", ONE, "u/aa/first", BY)
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await catalog.blob("a", ONE.digest, renew=True))

        with connection.transaction():
            connection.execute("select from repository_blobs for update")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await waits(connection)
                assert answers == []
                connection.execute("delete from repository_blobs")
                connection.execute("commit")
        assert answers == [None]


async def waits(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Until some other connection waits for a lock."""
    with trio.fail_after(30):
        while rows(connection, b"select count(*) from pg_locks where not granted") == [(0,)]:
            await trio.sleep(0.01)


async def test_who_wrote_what_from_where_is_in_the_audit_log(database: str) -> None:
    async with opened(database) as (catalog, connection):
        await catalog.add_blob("a/one", ONE, "u/aa/first", BY)
        await catalog.add_blob("a/one", ONE, "u/aa/again", BY)  # changes nothing
        await catalog.mount_blob("a/two", ONE.digest, "a/one", BY)
        body = b"a manifest"
        await catalog.put_manifest("a/one", manifest(body, [ONE]), ["1", "2"], Signer(), BY)
        lines = b"select actor, address, request_id, action, repository, digest from audit order by id"
        found = rows(connection, lines)
        who = (BY.actor, BY.address, BY.request_id)
        assert found == [
            (*who, "blob.push", "a/one", str(ONE.digest)),
            (*who, "blob.mount", "a/two", str(ONE.digest)),
            (*who, "manifest.push", "a/one", str(Digest.of(body))),
        ]
        events = rows(connection, b"select type, repository, data->>'action', data->'tags' from events")
        assert events == [("p2pregistry.push", "a/one", "manifest.push", ["1", "2"])]


async def test_a_namespace_counts_each_of_its_blobs_once(database: str) -> None:
    used = b"select name, used from namespaces order by name"
    two = blob("another")
    async with opened(database) as (catalog, connection):
        await catalog.add_blob("a/one", ONE, "u/aa/first", BY)
        await catalog.add_blob("a/one", ONE, "u/aa/again", BY)
        await catalog.mount_blob("a/two", ONE.digest, None, BY)
        await catalog.mount_blob("ab", ONE.digest, None, BY)
        await catalog.add_blob("a", two, "u/aa/second", BY)
        assert rows(connection, used) == [("a", ONE.size + two.size), ("ab", ONE.size)]
        assert await catalog.delete_blob("a/one", ONE.digest, BY)
        assert rows(connection, used)[0] == ("a", ONE.size + two.size)
        assert await catalog.delete_blob("a/two", ONE.digest, BY)
        assert rows(connection, used) == [("a", two.size), ("ab", ONE.size)]


async def test_concurrent_changes_leave_the_right_sum(database: str) -> None:
    blobs = [blob(f"{number}" * 10) for number in range(4)]
    async with opened(database) as (catalog, connection):

        async def work(number: int) -> None:
            for turn in range(6):
                one = blobs[(number + turn) % 4]
                await catalog.add_blob(f"a/r{number % 3}", one, f"u/{number}/{turn}", BY)
                if turn % 2:
                    await catalog.delete_blob(f"a/r{turn % 3}", one.digest, BY)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, number)
        counted = b"select coalesce(sum(size), 0) from blobs where id in (select blob_id from repository_blobs)"
        assert rows(connection, b"select used from namespaces") == rows(connection, counted)
