"""Announces: every implementation keeps every promise of ``tracker.announces_check``; Postgres with all that can
happen to a database."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import IdleInTransactionSessionTimeout

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.messages import Crowd
from tracker.announces import Desk, MemoryAnnounces
from tracker.announces_check import CASES, ONE, TWO, Rig, names, node, peer
from tracker.announces_postgres import LOCK, TAKE_LOCK, PostgresAnnounces
from tracker.board import Pace
from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, manifest
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Connection, Db
from tracker.named import Named

SOON = 30.0  # seconds; only a test that fails takes as long


async def name(catalog: Catalog, digests: list[Digest]) -> None:
    """A manifest whose claim names these."""
    blobs = []
    for digest in digests:
        blobs.append(Metainfo.of(digest, 1, Digest.of(b"x").raw))
        await add(catalog, "a", blobs[-1])
    await catalog.put_manifest("a", manifest(repr(digests).encode(), blobs), (), Signer(), BY)


def desk(catalog: Catalog) -> Desk:
    return Desk(Named(catalog), pace=Pace(), randrange=random.Random(1).randrange)


@asynccontextmanager
async def postgres_announces(dsn: str) -> AsyncIterator[PostgresAnnounces]:
    """One process."""
    async with AsyncExitStack() as stack:
        db = Db(dsn, size=2, patience=0.1)
        stack.callback(db.close)
        await migrate(db)
        announces = PostgresAnnounces(db, desk(PostgresCatalog(db, private=False)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(announces.run)
        yield announces
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def postgres_rig(dsn: str, clock: trio.testing.MockClock) -> AsyncIterator[tuple[Rig, Db]]:
    """Two processes."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(postgres_announces(dsn))
        second = await stack.enter_async_context(postgres_announces(dsn))
        db = Db(dsn, size=2)
        stack.callback(db.close)
        catalog = PostgresCatalog(db, private=False)

        def older(connection: Connection, seconds: float) -> None:
            moved = "seen_at = seen_at - %(s)s * interval '1 second', gone_at = gone_at - %(s)s * interval '1 second'"
            connection.execute(f"update announces set {moved}".encode(), {"s": seconds})

        async def age(seconds: float) -> None:
            clock.jump(seconds)
            await db.tx(older, seconds)

        async def named(digests: list[Digest]) -> None:
            await name(catalog, digests)

        yield Rig(first, second, named, age), db


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str, mock_clock: trio.testing.MockClock) -> None:
    catalog = MemoryCatalog(private=False)
    one = MemoryAnnounces(Named(catalog), pace=Pace(), randrange=random.Random(1).randrange)

    async def age(seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        mock_clock.jump(seconds)

    async def named(digests: list[Digest]) -> None:
        await name(catalog, digests)

    await CASES[case](Rig(one, one, named, age))


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str, mock_clock: trio.testing.MockClock) -> None:
    async with postgres_rig(database, mock_clock) as (rig, _):
        await CASES[case](rig)


def allow(dsn: str, server: str, connections: bool) -> None:
    """Whether the database of ``dsn`` takes connections; those that are open are ended."""
    database = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"alter database {database} allow_connections {connections}".encode())
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (database,))


async def test_a_database_that_is_away_costs_only_the_news(database: str, postgres_server: str) -> None:
    async with postgres_announces(database) as first, postgres_announces(database) as second:
        await name(PostgresCatalog(first._db, private=False), [ONE])
        await first.announce(node(1, (), (ONE,)))
        assert names(await first.announce(node(4, (ONE,)))) == {peer(1)}
        assert names(await second.announce(node(2, (ONE,)))) == {peer(1), peer(4)}
        await trio.to_thread.run_sync(allow, database, postgres_server, False)
        assert names(await second.announce(node(2, (ONE,)))) == {peer(1), peer(4)}
        assert names(await second.announce(node(3, (ONE,)))) == {peer(1), peer(2), peer(4)}
        unheard_of = await first.announce(node(4, (ONE, TWO)))
        assert (names(unheard_of), unheard_of.crowd[1]) == ({peer(1)}, Crowd())
        await trio.to_thread.run_sync(allow, database, postgres_server, True)
        with trio.fail_after(SOON):
            while names(await first.announce(node(4, (ONE,)))) != {peer(1), peer(2), peer(3)}:
                await trio.sleep(0.02)
        assert names(await second.announce(node(2, (ONE,)))) == {peer(1), peer(3), peer(4)}


async def test_a_database_that_is_stuck_costs_only_the_news(database: str, mock_clock: trio.testing.MockClock) -> None:
    async with postgres_rig(database, mock_clock) as (rig, _):
        await rig.name([ONE])
        await rig.first.announce(node(1, (), (ONE,)))
        await rig.second.announce(node(2, (ONE,)))
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("select pg_advisory_lock(%s)", (LOCK,))
            for number, known in ((3, {peer(1)}), (4, {peer(1), peer(3)})):
                async with trio.open_nursery() as nursery:
                    found: list[set[str]] = []

                    async def ask(number: int, found: list[set[str]] = found) -> None:
                        found.append(names(await rig.first.announce(node(number, (ONE,)))))

                    nursery.start_soon(ask, number)
                    await trio.testing.wait_all_tasks_blocked(0.1)
                    mock_clock.jump(1.5)
                assert found == [known]
        told: set[str] = set()
        for _ in range(1000):
            told = names(await rig.second.announce(node(2, (ONE,))))
            if len(told) == 3:
                break
        assert told == {peer(1), peer(3), peer(4)}


async def test_a_process_stopped_with_the_lock_does_not_hold_up_the_others(database: str) -> None:
    async with postgres_announces(database) as first, postgres_announces(database) as second:
        await name(PostgresCatalog(first._db, private=False), [ONE])
        await second.announce(node(1, (), (ONE,)))
        with psycopg.connect(database, autocommit=True) as stopped:
            stopped.execute("begin")
            stopped.execute(TAKE_LOCK)
            await first.announce(node(2, (ONE,)))  # answered, but not told of to the other
            with trio.fail_after(SOON):
                while names(await second.announce(node(3, (ONE,)))) != {peer(1), peer(2)}:
                    await first.announce(node(2, (ONE,)))
                    await trio.sleep(0.02)
            with pytest.raises(IdleInTransactionSessionTimeout):
                stopped.execute("select 1")


async def test_a_table_emptied_by_a_crash_fills_again(database: str) -> None:
    async with postgres_announces(database) as first, postgres_announces(database) as second:
        await name(PostgresCatalog(first._db, private=False), [ONE])
        await first.announce(node(1, (), (ONE,)))
        await second.announce(node(2, (ONE,)))
        await first._db.tx(lambda connection: connection.execute("truncate announces") and None)
        assert names(await second.announce(node(2, (ONE,)))) == {peer(1)}  # not forgotten before its time
        async with postgres_announces(database) as third:
            assert names(await third.announce(node(3, (ONE,)))) == {peer(2)}
            await first.announce(node(1, (), (ONE,)))
            assert names(await third.announce(node(3, (ONE,)))) == {peer(1), peer(2)}


async def test_numbers_that_go_back_are_noticed(database: str) -> None:
    async with postgres_announces(database) as first, postgres_announces(database) as second:
        await name(PostgresCatalog(first._db, private=False), [ONE])
        for _ in range(5):
            await first.announce(node(1, (ONE,)))
        await second.announce(node(2, (ONE,)))

        def restore(connection: Connection) -> None:
            connection.execute("truncate announces; alter sequence announce_changes restart")

        await first._db.tx(restore)
        await first.announce(node(3, (ONE,)))
        await second.announce(node(2, (ONE,)))
        assert peer(3) in names(await second.announce(node(2, (ONE,))))


async def test_rows_of_nodes_that_are_gone_are_removed(database: str, mock_clock: trio.testing.MockClock) -> None:
    async with postgres_rig(database, mock_clock) as (rig, db):
        await rig.name([ONE])
        await rig.first.announce(node(1, (ONE,)))
        await rig.first.announce(node(2, (ONE,), leaving=True))
        await rig.age(65)
        await rig.first.announce(node(3, (ONE,)))
        process = rig.first
        assert isinstance(process, PostgresAnnounces)

        def rows(connection: Connection) -> set[tuple[str, str]]:
            return set(connection.execute("select peer_id, digest_text(want[1]) from announces").fetchall())

        async def left() -> set[tuple[str, str]]:
            await process.sweep()
            return await db.query(rows)

        for _ in range(100):
            if (peer(2), None) not in await left():
                break
        # the second left 65 seconds ago, the first has been gone for 55
        assert await left() == {(peer(1), str(ONE)), (peer(3), str(ONE))}
        await rig.age(10)
        for _ in range(100):
            if len(await left()) == 1:
                break
        assert await left() == {(peer(3), str(ONE))}
        assert (await rig.second.announce(node(4, (ONE,)))).crowd == [Crowd(0, 0)]
