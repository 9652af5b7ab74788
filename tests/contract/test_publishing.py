"""Every ``Publishing`` keeps every promise of ``tracker.catalog.publishing_check``."""

from __future__ import annotations

import psycopg
import pytest
import trio
import trio.testing

from tracker.catalog.garbage_memory import MemoryGarbage
from tracker.catalog.garbage_postgres import PostgresGarbage
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.catalog.publishing_check import BY, CASES, World
from tracker.catalog.publishing_memory import MemoryPublishing
from tracker.catalog.publishing_postgres import _CLAIM, PostgresPublishing
from tracker.db import Db


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str, mock_clock: trio.testing.MockClock) -> None:
    catalog = MemoryCatalog()

    async def age(seconds: float) -> None:
        mock_clock.jump(seconds)

    await CASES[case](World(catalog, MemoryGarbage(catalog), MemoryPublishing(catalog), age))


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)

        async def age(seconds: float) -> None:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "update repository_blobs set touched_at = touched_at - %s * interval '1 second'", (seconds,)
                )

        await CASES[case](World(PostgresCatalog(db), PostgresGarbage(db), PostgresPublishing(db), age))
    finally:
        db.close()


async def test_nothing_is_noted_while_nothing_is_published(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        catalog, publishing = PostgresCatalog(db), PostgresPublishing(db)

        async def age(seconds: float) -> None:
            raise AssertionError

        world = World(catalog, PostgresGarbage(db), publishing, age)
        await world.image("acme/api", "v1")
        with psycopg.connect(database) as connection:
            # but that it became public: such changes are few, and must not be missed
            assert connection.execute("select count(*) from ipfs_changed").fetchone() == (1,)
        await publishing.publish("acme/*", BY)
        await world.look()
        await world.image("acme/api", "v2")
        with psycopg.connect(database) as connection:
            found = connection.execute("select count(*) > 0 from ipfs_changed").fetchone()
            assert found == (True,)
            lines = connection.execute("select action, detail->>'pattern' from audit where action like 'ipfs.%'")
            assert lines.fetchall() == [("ipfs.publish", "acme/*")]
    finally:
        db.close()


async def test_a_change_that_is_still_being_committed_is_looked_at_afterwards(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        publishing = PostgresPublishing(db)

        async def age(seconds: float) -> None:
            raise AssertionError

        world = World(PostgresCatalog(db), PostgresGarbage(db), publishing, age)
        await world.image("acme/api", "v1")
        await publishing.publish("acme/*", BY)
        await world.look()
        with psycopg.connect(database) as connection:
            connection.execute("update repositories set private = true")
            await world.look()
            assert await world.all() == {"queued": 4}
            connection.commit()
        await world.look()
        assert await world.all() == {"unpinning": 4}
    finally:
        db.close()


async def test_what_becomes_private_while_it_is_chosen_is_not_missed(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        publishing = PostgresPublishing(db)

        async def age(seconds: float) -> None:
            raise AssertionError

        world = World(PostgresCatalog(db), PostgresGarbage(db), publishing, age)
        await world.image("acme/api", "v1")
        with psycopg.connect(database) as connection:
            connection.execute("update repositories set private = true")
            await publishing.publish("acme/*", BY)
            await world.look()
            assert await world.all() == {"queued": 4}
            connection.commit()
        assert await publishing.claim(["kubo"], 10, 60.0) == []
        await world.look()
        assert await world.all() == {"unpinning": 4}
    finally:
        db.close()


async def test_several_trackers_share_the_work_and_do_nothing_twice(database: str) -> None:
    databases = [Db(database) for _ in range(3)]
    try:
        await migrate(databases[0])
        several = [PostgresPublishing(db) for db in databases]

        async def age(seconds: float) -> None:
            raise AssertionError

        world = World(PostgresCatalog(databases[0]), PostgresGarbage(databases[0]), several[0], age)
        await several[0].publish("**", BY)
        for number in range(4):
            await world.image(f"acme/r{number}", f"v{number}")
        done: list[int] = []

        async def work(publishing: PostgresPublishing) -> None:
            while await publishing.reconcile(1, ["kubo"], encrypted=False):
                pass
            while jobs := await publishing.claim(["kubo"], 2, 60.0):
                for job in jobs:
                    done.append(job.id)
                    await publishing.published(job)

        async with trio.open_nursery() as nursery:
            for publishing in several:
                nursery.start_soon(work, publishing)
        await work(several[0])
        assert len(done) == len(set(done)) == 16
        assert await world.all() == {"published": 16}
    finally:
        for db in databases:
            db.close()


async def test_who_looks_at_changes_looks_alone_and_at_all_of_a_repository(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        publishing = PostgresPublishing(db)
        with psycopg.connect(database) as connection:
            connection.execute("insert into ipfs_changed (repository_id) select 1 from generate_series(1, 1000)")
            connection.execute("insert into ipfs_changed (repository_id) values (2), (1)")
            connection.commit()
            connection.execute("select pg_advisory_xact_lock(7077331)")
            assert await publishing.reconcile(10, ["kubo"], encrypted=False) == 0
        assert await publishing.reconcile(1, ["kubo"], encrypted=False) == 1
        with psycopg.connect(database) as connection:
            assert connection.execute("select repository_id from ipfs_changed").fetchall() == [(2,)]
        assert await publishing.reconcile(1, ["kubo"], encrypted=False) == 1
        assert await publishing.reconcile(1, ["kubo"], encrypted=False) == 0
    finally:
        db.close()


async def test_to_claim_a_few_of_many_jobs_does_not_look_at_all_of_them(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("insert into repositories (name, private) values ('acme/api', false)")
            connection.execute(
                "insert into ipfs_wanted select (select id from repositories), root, 'claim', digest, 1000"
                " from generate_series(1, 5000) number, sha256(number::text::bytea) hash,"
                " lateral (select '\\x01551220'::bytea || hash, '\\x12'::bytea || hash) found (root, digest)"
            )
            connection.execute(
                "insert into ipfs_jobs (cid, service, kind, digest, size) select cid, service, kind, digest, size"
                " from ipfs_wanted, unnest(array['kubo', 'pinning']) service"
            )
            connection.execute("analyze")
            values = (20.0, ["kubo"], ["kubo", "pinning"], 4, 4)
            plan = connection.execute(b"explain (analyze) " + _CLAIM.encode(), values).fetchall()
        lines = "\n".join(line for (line,) in plan)
        assert "ipfs_jobs_due" in lines
        assert "hashed" not in lines
        assert "Seq Scan on ipfs_wanted" not in lines
        assert len(await PostgresPublishing(db).claim(["kubo", "pinning"], 4, 60.0)) == 4
    finally:
        db.close()


async def test_bodies_of_manifests_are_not_read_to_find_what_is_published(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        publishing = PostgresPublishing(db)

        async def age(seconds: float) -> None:
            raise AssertionError

        world = World(PostgresCatalog(db), PostgresGarbage(db), publishing, age)
        digest = await world.image("acme/api", "v1")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("update manifests set body = 'something else'")  # nobody could tell without reading it
        await publishing.publish("acme/*", BY)
        await world.look()
        root = digest.cid()
        assert [one.cid for one in await publishing.states([root])] == [root]
    finally:
        db.close()
