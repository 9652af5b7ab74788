"""Garbage collection: every implementation keeps every promise; and whatever happens in between, never a live blob."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.objects.memory import MemoryObjects
from tracker.catalog.check import BY, Signer, manifest
from tracker.catalog.garbage_check import CASES, GRACE, Both
from tracker.catalog.garbage_memory import MemoryGarbage
from tracker.catalog.garbage_postgres import PostgresGarbage
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db
from tracker.sweeper import Pace, Sweeper

AGE = (
    "update repository_blobs set touched_at = touched_at - %s * interval '1 second'",
    "update repository_manifests set pushed_at = pushed_at - %s * interval '1 second'",
    "update repository_manifests set pulled_at = pulled_at - %s * interval '1 second'",
    "update tags_left set at = at - %s * interval '1 second'",
    "update tags set updated_at = updated_at - %s * interval '1 second'",
    "update blobs set scrubbed_at = scrubbed_at - %s * interval '1 second'",
)


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str, mock_clock: trio.testing.MockClock) -> None:
    catalog = MemoryCatalog()

    async def age(seconds: float) -> None:
        mock_clock.jump(seconds)

    await CASES[case](Both(catalog, MemoryGarbage(catalog), age))


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[Db, Both]]:
    db = Db(dsn)
    try:
        await migrate(db)

        async def age(seconds: float) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for statement in AGE:
                    connection.execute(statement.encode(), (seconds,) * statement.count("%s"))

        yield db, Both(PostgresCatalog(db), PostgresGarbage(db), age)
    finally:
        db.close()


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with opened(database) as (_, both):
        await CASES[case](both)


# ------------------------------------------------------------------------------------------------------- interleaving

BLOBS = [Metainfo.of_bytes(b"blob %d" % number) for number in range(3)]
REPOSITORIES = ("a/one", "a/two", "b")


class World:
    """A catalog, its store, and what clients were promised: only ``promised`` blobs may be relied upon."""

    def __init__(self, both: Both) -> None:
        self.both = both
        self.objects = MemoryObjects()
        self.promised: dict[tuple[str, Digest], float] = {}
        #: Manifests that are there as far as clients know, with their blobs, and when each was last used.
        self.images: dict[tuple[str, Digest], tuple[Metainfo, ...]] = {}
        self.used: dict[tuple[str, Digest], float] = {}
        #: The children of an index, the subject of an artifact: what keeps what. Tags: what each repository's names.
        self.children: dict[Digest, tuple[Digest, ...]] = {}
        self.subjects: dict[Digest, Digest] = {}
        self.tags: dict[str, Digest] = {}
        self.clock = 0.0
        self.pushes = 0
        self.deleting: list[str] = []
        self.gone: list[tuple[str, Digest]] = []

    async def step(self, what: str, repository: str, number: int) -> None:
        one = BLOBS[number % 3]
        await getattr(self, what)(repository, one)
        await self.check()

    async def push(self, repository: str, one: Metainfo) -> None:
        self.pushes += 1
        name = f"u/aa/{self.pushes}"
        await self.objects.put(name, b"blob %d" % BLOBS.index(one))
        await self.both.catalog.add_blob(repository, one, name, BY)
        self.promised[repository, one.digest] = self.clock

    async def head(self, repository: str, one: Metainfo) -> None:
        if await self.both.catalog.blob(repository, one.digest, renew=True) is not None:
            self.promised[repository, one.digest] = self.clock

    async def mount(self, repository: str, one: Metainfo) -> None:
        if await self.both.catalog.mount_blob(repository, one.digest, None, BY) is not None:
            self.promised[repository, one.digest] = self.clock

    async def image(self, repository: str, one: Metainfo) -> None:
        new = manifest(b"image of " + one.hashes, [one])
        try:
            await self.both.catalog.put_manifest(repository, new, (), Signer(), BY)
        except RequestError:
            # a promise may fall short by TOUCH seconds
            promised = self.promised.get((repository, one.digest))
            assert promised is None or self.clock - promised > GRACE - 60, "a promise was broken"
        else:
            self._is_there(repository, new.digest, one)

    async def artifact(self, repository: str, one: Metainfo) -> None:
        """About the image of the blob, which need not be there."""
        subject = Digest.of(b"image of " + one.hashes)
        new = replace(manifest(b"about " + one.hashes), subject=subject)
        await self.both.catalog.put_manifest(repository, new, (), Signer(), BY)
        self.subjects[new.digest] = subject
        self._is_there(repository, new.digest)

    async def index(self, repository: str, _one: Metainfo) -> None:
        """Of all images of the repository, in place of the one that had the tag."""
        children = sorted(
            (digest for name, digest in self.images if name == repository and digest not in self.children), key=str
        )
        new = manifest(b"index of " + b"".join(child.raw for child in children), (), children)
        await self.both.catalog.put_manifest(repository, new, ["all"], Signer(), BY)
        self._left(repository)
        self.children[new.digest] = new.manifests
        self.tags[repository] = new.digest
        self._is_there(repository, new.digest)

    async def untag(self, repository: str, _one: Metainfo) -> None:
        await self.both.catalog.delete_tag(repository, "all", BY)
        self._left(repository)

    def _is_there(self, repository: str, digest: Digest, *blobs: Metainfo) -> None:
        self.images[repository, digest] = blobs
        self.used[repository, digest] = self.clock

    def _left(self, repository: str) -> None:
        """The tag is not where it was: what it named is kept for a while from now on."""
        before = self.tags.pop(repository, None)
        if before is not None:
            self.used[repository, before] = self.clock

    async def remove_image(self, repository: str, one: Metainfo) -> None:
        digest = Digest.of(b"image of " + one.hashes)
        await self.both.catalog.delete_manifest(repository, digest, BY)
        self.images.pop((repository, digest), None)

    async def drop(self, _repository: str, _one: Metainfo) -> None:
        """Manifests that nothing keeps go, unless they were used lately."""
        await self.both.garbage.drop_manifests(GRACE, 2, BY)
        for repository, digest in list(self.images):
            if await self.both.catalog.manifest(repository, digest) is None:
                old = self.clock - self.used[repository, digest] >= GRACE
                assert old, "a manifest went that was used lately"
                listed = [
                    one for name, one in self.images if name == repository and digest in self.children.get(one, ())
                ]
                assert not any([await self.both.catalog.manifest(repository, one) is not None for one in listed]), (
                    "a child of an index that is there went"
                )
                subject = self.subjects.get(digest)
                assert subject is None or await self.both.catalog.manifest(repository, subject) is None
                assert self.tags.get(repository) != digest
                self.gone.append((repository, digest))
        for key in self.gone:
            self.images.pop(key, None)
        self.gone = []

    async def remove_blob(self, repository: str, one: Metainfo) -> None:
        with contextlib.suppress(RequestError):
            if await self.both.catalog.delete_blob(repository, one.digest, BY):
                self.promised.pop((repository, one.digest), None)

    async def wait(self, _repository: str, _one: Metainfo) -> None:
        await self.both.age(GRACE / 2)
        self.clock += GRACE / 2

    async def unlink(self, _repository: str, _one: Metainfo) -> None:
        await self.both.garbage.unlink(GRACE, 2)

    async def condemn(self, _repository: str, _one: Metainfo) -> None:
        await self.both.garbage.condemn(2)

    async def look(self, _repository: str, _one: Metainfo) -> None:
        """A collector learns what to delete, and perhaps does it much later, or dies."""
        self.deleting = await self.both.garbage.condemned(10)

    async def delete(self, _repository: str, _one: Metainfo) -> None:
        for name in self.deleting:
            await self.objects.delete(name)

    async def forget(self, _repository: str, _one: Metainfo) -> None:
        await self.delete(_repository, _one)
        await self.both.garbage.forget(self.deleting)
        self.deleting = []

    async def check(self) -> None:
        """Every blob that a manifest refers to can be read; and so can every blob that a client is shown."""
        for (repository, digest), blobs in self.images.items():
            assert await self.both.catalog.manifest(repository, digest) is not None
            for one in blobs:
                assert await self.both.catalog.blob(repository, one.digest) is not None
        for repository in REPOSITORIES:
            for number, one in enumerate(BLOBS):
                here = await self.both.catalog.blob(repository, one.digest)
                if here is not None:
                    opened_ = await self.objects.open(here.object, one.size)
                    assert await opened_.read_at(0, one.size) == b"blob %d" % number


STEPS = (
    "push", "head", "mount", "image", "artifact", "index", "untag", "remove_image", "remove_blob", "wait", "drop",
    "unlink", "condemn", "look", "delete", "forget",
)  # fmt: skip
ANY = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(REPOSITORIES), st.integers(0, 2)), max_size=40)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(steps=ANY)
async def test_never_a_live_blob_in_memory(
    steps: list[tuple[str, str, int]], mock_clock: trio.testing.MockClock
) -> None:
    catalog = MemoryCatalog()

    async def age(seconds: float) -> None:
        mock_clock.jump(seconds)

    world = World(Both(catalog, MemoryGarbage(catalog), age))
    for step in steps:
        await world.step(*step)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(steps=ANY)
async def test_never_a_live_blob_in_postgres(steps: list[tuple[str, str, int]], database: str) -> None:
    async with opened(database) as (db, both):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("truncate repositories, blobs, manifests, condemned, namespaces cascade")
        world = World(both)
        for step in steps:
            await world.step(*step)
        assert db is not None


async def test_collectors_and_clients_at_the_same_time(database: str) -> None:
    """Without any grace, so that every race there is happens: what was taken stays, and the sums are right."""
    async with opened(database) as (_, both):
        objects = MemoryObjects()
        there: dict[tuple[str, Digest], Metainfo] = {}
        refused = 0

        async def client(number: int) -> None:
            nonlocal refused
            rng = random.Random(number)
            for turn in range(25):
                index, repository = rng.randrange(3), f"a/r{number}"
                one, name = BLOBS[index], f"u/{number}/{turn}"
                await objects.put(name, b"blob %d" % index)
                await both.catalog.add_blob(repository, one, name, BY)
                if turn % 3 == 0:
                    await both.catalog.mount_blob(repository, BLOBS[(index + 1) % 3].digest, None, BY)
                new = manifest(b"%d %d" % (number, turn), [one])
                try:
                    await both.catalog.put_manifest(repository, new, ["t"], Signer(), BY)
                except RequestError:
                    refused += 1
                    continue
                there[repository, new.digest] = one
                if rng.random() < 0.5:
                    await both.catalog.delete_manifest(repository, new.digest, BY)
                    del there[repository, new.digest]

        async def collector() -> None:
            sweeper = Sweeper(both.catalog, both.garbage, objects, Pace(grace=-100.0))
            while True:
                await sweeper.collect()

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(collector)
            async with trio.open_nursery() as clients:
                for number in range(6):
                    clients.start_soon(client, number)
            nursery.cancel_scope.cancel()
        assert there
        for (repository, digest), one in there.items():
            assert await both.catalog.manifest(repository, digest) is not None
            here = await both.catalog.blob(repository, one.digest)
            assert here is not None
            opened_ = await objects.open(here.object, one.size)
            assert await opened_.read_at(0, one.size) == b"blob %d" % BLOBS.index(one)
        await Sweeper(both.catalog, both.garbage, objects, Pace(grace=-100.0)).collect()
        with psycopg.connect(database) as connection:
            used = connection.execute("select coalesce(sum(used), 0) from namespaces").fetchone()
            counted = connection.execute(
                "select coalesce(sum(size), 0) from blobs where id in (select blob_id from repository_blobs)"
            ).fetchone()
            assert used == counted


async def test_a_run_that_died_is_finished_by_the_next(database: str) -> None:
    async with opened(database) as (_, both):
        objects = MemoryObjects()
        await objects.put("u/aa/one", b"blob 0")
        await both.catalog.add_blob("a", BLOBS[0], "u/aa/one", BY)
        await both.age(GRACE + 1)
        await both.garbage.unlink(GRACE, 10)
        await both.garbage.condemn(10)
        sweeper = Sweeper(both.catalog, both.garbage, objects, Pace(grace=GRACE))
        assert await sweeper.collect(dry_run=True) == {"manifests": 0, "links": 0, "blobs": 0, "bytes": 0, "orphans": 0}
        done = await sweeper.collect()
        assert done is not None
        assert (done["objects"], done["bytes"]) == (1, BLOBS[0].size)
        with pytest.raises(NotFound):
            await objects.size("u/aa/one")
