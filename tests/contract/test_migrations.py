"""Migrations on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from tracker.catalog.migrate import Migration, load, migrate
from tracker.db import Connection, Db


@pytest.fixture
async def db(database: str) -> AsyncIterator[Db]:
    pool = Db(database)
    yield pool
    pool.close()


def step(version: int, sql: str, serves: int = 1) -> Migration:
    return Migration.read(f"{version:04}_step.sql", f"-- serves: {serves}\n{sql}")


def tables(connection: Connection) -> set[str]:
    found = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    return {name for (name,) in found}


ONE, TWO = step(1, "create table one (n int); create table two (n int);"), step(2, "alter table two rename to deux;")


async def test_the_programs_own_files_apply_once(db: Db) -> None:
    names = [migration.name for migration in load()]
    assert names[0] == "0001_init"
    assert [migration.version for migration in load()] == list(range(1, len(names) + 1))
    assert await migrate(db) == names
    assert await migrate(db) == []
    assert {"repositories", "blobs", "manifests", "tags"} <= await db.query(tables)


async def test_files_apply_in_order_and_later_ones_later(db: Db) -> None:
    assert await migrate(db, [ONE]) == ["0001_step"]
    assert await migrate(db, [ONE, TWO]) == ["0002_step"]
    assert await db.query(tables) == {"one", "deux", "schema_migrations"}


async def test_of_several_starters_one_applies_the_files(database: str) -> None:
    applied: list[list[str]] = []

    async def start() -> None:
        db = Db(database, size=1)
        applied.append(await migrate(db, [ONE, TWO]))
        db.close()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    assert sorted(applied) == [[], [], [], ["0001_step", "0002_step"]]


async def test_a_file_that_fails_takes_all_with_it(db: Db) -> None:
    with pytest.raises(LocalError, match="nonsense"):
        await migrate(db, [ONE, step(2, "create table three (n int); nonsense;")])
    assert await db.query(tables) == set()
    assert await migrate(db, [ONE, TWO]) == ["0001_step", "0002_step"]


async def test_a_file_that_was_changed_is_refused(db: Db) -> None:
    await migrate(db, [ONE])
    with pytest.raises(LocalError, match="0001_step was changed"):
        await migrate(db, [step(1, "create table one (n bigint);"), TWO])
    assert "deux" not in await db.query(tables)


async def test_a_file_that_was_passed_over_is_refused(db: Db) -> None:
    await migrate(db, [ONE, step(3, "")])
    with pytest.raises(LocalError, match="0002_step is older"):
        await migrate(db, [ONE, TWO, step(3, "")])


async def test_a_database_too_new_for_the_program_is_refused(db: Db) -> None:
    await migrate(db, [ONE, step(2, "", serves=2)])
    with pytest.raises(LocalError, match="newer than this program"):
        await migrate(db, [ONE])


async def test_a_newer_database_that_serves_the_program_is_accepted(db: Db) -> None:
    await migrate(db, [ONE, step(2, "", serves=1)])
    assert await migrate(db, [ONE]) == []


@pytest.mark.parametrize(
    ("name", "sql"),
    [("1_a.sql", "-- serves: 1\n"), ("0001_A.sql", "-- serves: 1\n"), ("0001_a.sql", "select 1"), ("0001_a.txt", "")],
)
def test_a_file_of_another_shape_is_no_migration(name: str, sql: str) -> None:
    with pytest.raises(LocalError, match="is not a migration"):
        Migration.read(name, sql)


async def test_people_can_read_the_digests(db: Db) -> None:
    await migrate(db)
    for algorithm, code in (("sha256", b"\x12"), ("sha512", b"\x13")):
        digest = Digest.of(b"x", algorithm)

        def text(connection: Connection, key: bytes) -> object:
            return connection.execute("select digest_text(%s)", (key,)).fetchone()

        assert await db.query(text, code + digest.raw) == (str(digest),)


@pytest.mark.parametrize("key", [b"", b"\x12", b"\x12" + bytes(31), b"\x13" + bytes(32), b"\x11" + bytes(32)])
async def test_the_schema_takes_no_other_digests(db: Db, key: bytes) -> None:
    await migrate(db)

    def put(connection: Connection) -> None:
        connection.execute("insert into manifests (digest, body) values (%s, '')", (key,))

    with pytest.raises(LocalError, match="violates check constraint"):
        await db.tx(put)
