"""The pool on a real Postgres: transactions, lost connections, cancellation."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from p2pregistry.errors import LocalError, NotFound
from tracker.db import Connection, Db


@pytest.fixture
async def db(database: str) -> AsyncIterator[Db]:
    pool = Db(database, size=4)
    await pool.tx(lambda connection: connection.execute("create table t (n int primary key)"))
    yield pool
    pool.close()


def insert(connection: Connection, n: int) -> int:
    connection.execute("insert into t values (%s)", (n,))
    return n


def rows(connection: Connection) -> list[int]:
    return [n for (n,) in connection.execute("select n from t order by n").fetchall()]


def pid(connection: Connection) -> int:
    return connection.info.backend_pid


async def test_a_transaction_commits_and_gives_its_value(db: Db) -> None:
    assert await db.tx(insert, 1) == 1
    assert await db.query(rows) == [1]


async def test_an_error_rolls_back_and_passes_through(db: Db) -> None:
    def fails(connection: Connection) -> None:
        insert(connection, 1)
        raise NotFound("BLOB_UNKNOWN", "no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        await db.tx(fails)
    assert await db.query(rows) == []
    assert await db.tx(insert, 1) == 1


async def test_a_database_error_becomes_a_local_one_without_row_values(db: Db) -> None:
    await db.tx(insert, 1234567)
    before = await db.query(pid)
    with pytest.raises(LocalError, match="unique constraint") as caught:
        await db.tx(insert, 1234567)
    assert "1234567" not in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert await db.query(pid) == before, "the connection is still good"


async def test_an_error_that_was_swallowed_is_not_taken_for_success(db: Db) -> None:
    def swallows(connection: Connection) -> None:
        insert(connection, 1)
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0")

    with pytest.raises(LocalError, match="rolled back"):
        await db.tx(swallows)
    assert await db.query(rows) == []


async def test_there_are_never_more_connections_than_the_size(db: Db) -> None:
    lock, now, most, pids = threading.Lock(), [0], [0], set()

    def counted(connection: Connection, n: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            pids.add(pid(connection))
        insert(connection, n)
        connection.execute("select pg_sleep(0.002)")
        with lock:
            now[0] -= 1

    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(db.tx, counted, n)
    assert await db.query(rows) == list(range(50))
    assert most[0] <= 4
    assert len(pids) <= 4


async def test_connections_that_died_while_idle_are_replaced_unseen(db: Db) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(db.query, lambda connection: connection.execute("select pg_sleep(0.05)"))
    await db.tx(lambda c: c.execute("set local application_name = 'killer'"))

    def kill_the_others(connection: Connection) -> None:
        connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )

    await db.tx(kill_the_others)
    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(db.tx, insert, n)
    assert await db.query(rows) == list(range(8))


class DiesOnce:
    """Inserts; the first time its connection is killed before the commit."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, connection: Connection, n: int) -> int:
        self.calls += 1
        insert(connection, n)
        if self.calls == 1:
            connection.execute("select pg_terminate_backend(pg_backend_pid())")
        return n


async def test_a_lost_connection_in_the_middle_is_repeated_if_that_is_allowed(db: Db) -> None:
    dies = DiesOnce()
    assert await db.tx(dies, 1, retry=True) == 1
    assert dies.calls == 2
    assert await db.query(rows) == [1]


async def test_and_fails_if_it_is_not(db: Db) -> None:
    dies = DiesOnce()
    with pytest.raises(LocalError, match="the database failed"):
        await db.tx(dies, 1)
    assert dies.calls == 1
    assert await db.query(rows) == []


async def test_what_the_server_rolled_back_is_repeated_once(db: Db) -> None:
    calls: list[int] = []

    def collides(connection: Connection, times: int) -> None:
        insert(connection, times)
        calls.append(times)
        if len(calls) <= times:
            raise psycopg.errors.SerializationFailure("could not serialize access")

    await db.tx(collides, 1)
    assert calls == [1, 1]
    calls.clear()
    with pytest.raises(LocalError, match="could not serialize"):
        await db.tx(collides, 2)
    assert calls == [2, 2]
    assert await db.query(rows) == [1]


async def test_cancelling_ends_the_statement_and_nothing_goes_on_behind(db: Db) -> None:
    started, ended = trio.Event(), threading.Event()

    def long(connection: Connection) -> None:
        try:
            insert(connection, 1)
            trio.from_thread.run_sync(started.set)
            connection.execute("select pg_sleep(60)")
        finally:
            ended.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.tx, long)
            await started.wait()
            nursery.cancel_scope.cancel()
    assert ended.is_set()
    assert await db.query(rows) == []
    busy = "select count(*) from pg_stat_activity where query like '%%pg_sleep(60)' and state = 'active'"
    assert await db.query(lambda connection: connection.execute(busy.encode()).fetchone()) == (0,)


async def test_a_transaction_of_many_statements_is_cancelled_too(db: Db) -> None:
    started = trio.Event()

    def endless(connection: Connection) -> None:
        trio.from_thread.run_sync(started.set)
        while True:
            connection.execute("select pg_sleep(0.001)")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(db.tx, endless)
            await started.wait()
            nursery.cancel_scope.cancel()
    assert await db.tx(insert, 1) == 1


@pytest.mark.parametrize("ticks", range(8))
async def test_cancelling_before_a_thread_has_it_leaves_nothing_to_wait_for(db: Db, ticks: int) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.query, pid)
            for _ in range(ticks):
                await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()
    assert await db.query(pid)


async def test_statements_have_a_time_limit(database: str) -> None:
    db = Db(database, statement_timeout=0.05)
    for call in (db.query, db.tx):
        with pytest.raises(LocalError, match="statement timeout"):
            await call(lambda connection: connection.execute("select pg_sleep(60)"))
    db.close()


async def test_no_server_is_a_local_error_that_shows_no_password(tmp_path: Path) -> None:
    db = Db(make_conninfo(host=str(tmp_path), user="u", password="hunter2"), patience=0)
    with pytest.raises(LocalError, match="the database failed") as caught:
        await db.query(rows)
    assert "hunter2" not in str(caught.value)


async def test_waiting_for_a_server_gives_up(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    db = Db(make_conninfo(host=str(tmp_path), user="u"), patience=3)
    began = trio.current_time()
    with pytest.raises(LocalError):
        await db.tx(insert, 1)
    assert 3 <= trio.current_time() - began < 4


async def test_a_closed_pool_says_so(database: str) -> None:
    db = Db(database)
    db.close()
    with pytest.raises(LocalError, match="closed"):
        await db.query(rows)


async def test_connections_name_the_program(db: Db) -> None:
    show = await db.query(lambda connection: connection.execute("show application_name").fetchone())
    assert show == ("p2pregistry-tracker",)
