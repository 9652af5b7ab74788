"""All ``Changes`` keep every promise of ``tracker.catalog.changes_check``; in Postgres nothing is missed and nothing is
out of order, however many write at once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pregistry.digest import Digest
from tracker.catalog.changes import Page
from tracker.catalog.changes_check import CASES, push
from tracker.catalog.changes_postgres import PostgresChanges
from tracker.catalog.check import BY
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Connection, Db

WRITERS = 16
ROUNDS = 12
REPOSITORIES = ("a", "acme/api", "acme/web")


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Db]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield db
    finally:
        db.close()


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    catalog = MemoryCatalog()
    await CASES[case](catalog, catalog.changes)


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with opened(database) as db:
        await CASES[case](PostgresCatalog(db), PostgresChanges(db))


async def write(catalog: PostgresCatalog, chance: random.Random) -> None:
    """Push and delete tags, and hide and show repositories."""
    for _ in range(ROUNDS):
        name, tag = chance.choice(REPOSITORIES), f"t{chance.randrange(8)}"
        what = chance.random()
        if what < 0.7:
            await push(catalog, name, b"%d" % chance.randrange(5), tag, f"t{chance.randrange(8)}")
        elif what < 0.9:
            await catalog.delete_tag(name, tag, BY)
        elif await catalog.visibility(name) is not None:
            await catalog.set_visibility(name, chance.random() < 0.5, BY)


class Reader:
    """What a reader with a cursor knows of tags, from changes alone."""

    def __init__(self) -> None:
        self.at = 0
        self.tags: dict[tuple[str, str], Digest] = {}
        self.seen: list[int] = []

    def take(self, page: Page) -> None:
        for change in page.changes:
            assert change.number > self.at
            self.seen.append(change.number)
            if change.kind == "tag" and change.digest is None:
                self.tags.pop((change.repository, change.name), None)
            elif change.kind == "tag" and change.digest is not None:
                self.tags[change.repository, change.name] = change.digest
        assert page.upto >= self.at
        self.at = page.upto


def every_tag(connection: Connection) -> dict[tuple[str, str], bytes]:
    rows = connection.execute(
        "select r.name, t.name, m.digest from tags t join repositories r on r.id = t.repository_id"
        " join manifests m on m.id = t.manifest_id"
    ).fetchall()
    return {(repository, tag): key[1:] for repository, tag, key in rows}


async def test_a_reader_misses_nothing_while_many_write_through_two_trackers(database: str) -> None:
    """A number that is seen has all lower ones before it: a reader who goes on after it never has to look back."""
    async with opened(database) as one, opened(database) as two:
        catalogs = [PostgresCatalog(one), PostgresCatalog(two)]
        changes = PostgresChanges(two)
        reader, small = Reader(), Reader()
        done = trio.Event()

        async def read(by: Reader, limit: int) -> None:
            while not done.is_set() or by.at < (await changes.state()).number:
                by.take(await changes.since(by.at, limit))

        async def every_number() -> None:
            # each commit is seen at once or not at all, and never out of turn: what the counter says is what there is
            while not done.is_set():
                page = await changes.since(0, 100_000)
                numbers = [change.number for change in page.changes]
                assert not numbers or numbers[-1] == page.state.number

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reader, 1000)
            nursery.start_soon(read, small, 3)
            nursery.start_soon(every_number)
            async with trio.open_nursery() as writers:
                for number in range(WRITERS):
                    writers.start_soon(write, catalogs[number % 2], random.Random(number))
            done.set()
        expected = await one.query(every_tag)
        assert expected
        for by in (reader, small):
            assert {place: digest.raw for place, digest in by.tags.items()} == expected
            assert by.seen == sorted(set(by.seen))
        assert reader.at == (await changes.state()).number > len(expected)


async def test_pruning_and_writing_take_turns(database: str) -> None:
    """Tombstones are removed while tags of the same names come back: nothing is lost, nobody waits for ever."""
    async with opened(database) as db:
        catalog, changes = PostgresCatalog(db), PostgresChanges(db)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as writers:
                for number in range(6):
                    writers.start_soon(write, catalog, random.Random(number))

                async def prune() -> None:
                    while True:
                        await changes.prune(-1.0)

                nursery.start_soon(prune)
            nursery.cancel_scope.cancel()
        expected = await db.query(every_tag)
        page = await changes.since(0, 100_000)
        known = {(one.repository, one.name): one.digest for one in page.changes if one.digest is not None}
        assert {place: digest.raw for place, digest in known.items()} == expected
