"""Runs over a catalog and objects in memory; and which tags rules let go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.objects.memory import MemoryObjects
from tracker.catalog.check import BY, Signer, manifest
from tracker.catalog.garbage_memory import MemoryGarbage
from tracker.catalog.memory import MemoryCatalog
from tracker.retention import Rule, Tagged, to_go
from tracker.sweeper import FEW, ORPHAN, Pace, Pulls, Sweeper

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = 86400.0


def tag(name: str, days: float, pulled: float | None = None) -> Tagged:
    return Tagged(name, NOW - timedelta(days=days), None if pulled is None else NOW - timedelta(days=pulled))


TAGS = [tag("v1", 30), tag("v2", 20, 1), tag("v3", 10), tag("latest", 40), tag("dev-1", 5), tag("dev-2", 1)]


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ([], []),
        ([Rule(1, "**", "v*", keep_last=2)], ["v1"]),
        ([Rule(1, "**", "v*", keep_last=0)], ["v1", "v2", "v3"]),
        ([Rule(1, "**", "v*", pushed_within=15 * DAY)], ["v1", "v2"]),
        ([Rule(1, "**", "v*", pulled_within=2 * DAY)], ["v1", "v3"]),
        ([Rule(1, "**", "*", keep_last=1, pushed_within=15 * DAY, pulled_within=2 * DAY)], ["latest", "v1"]),
        ([Rule(1, "other/**", "*", keep_last=0)], []),
        ([Rule(1, "**", "*", keep_last=0), Rule(2, "**", "latest", keep_last=1)], ["dev-1", "dev-2", "v1", "v2", "v3"]),
        (
            [Rule(1, "acme/*", "dev-*", keep_last=1), Rule(2, "acme/*", "v*", pushed_within=DAY)],
            ["dev-1", "v1", "v2", "v3"],
        ),
    ],
)
def test_rules_say_what_to_keep(rules: list[Rule], gone: list[str]) -> None:
    assert to_go("acme/api", TAGS, rules, NOW) == gone


def test_a_rule_without_a_condition_is_none() -> None:
    with pytest.raises(ValueError, match="what to keep"):
        Rule(1, "**", "*")


@given(
    ages=st.lists(st.floats(0, 100), max_size=12),
    keep=st.integers(0, 12),
    within=st.none() | st.floats(0, 100),
)
def test_the_newest_are_always_kept(ages: list[float], keep: int, within: float | None) -> None:
    tags = [tag(f"t{number:02}", age) for number, age in enumerate(ages)]
    seconds = None if within is None else within * DAY
    gone = to_go("a", tags, [Rule(1, "a", "**", keep_last=keep, pushed_within=seconds)], NOW)
    newest = sorted(tags, key=lambda one: (one.pushed_at, one.name), reverse=True)[:keep]
    assert not {one.name for one in newest} & set(gone)
    assert all((NOW - one.pushed_at).total_seconds() > (seconds or -1) for one in tags if one.name in gone)
    assert len(gone) <= max(0, len(tags) - keep)


ON_DEMAND = Pace(every=None, scrub_every=None)


class Registry:
    def __init__(self, pace: Pace = ON_DEMAND) -> None:
        self.catalog = MemoryCatalog()
        self.garbage = MemoryGarbage(self.catalog)
        self.objects = MemoryObjects(now=lambda: 1e9 + trio.current_time())
        self.sweeper = self.process(pace)
        self.count = 0

    def process(self, pace: Pace) -> Sweeper:
        clock = lambda: 1e9 + trio.current_time()  # noqa: E731
        return Sweeper(self.catalog, self.garbage, self.objects, pace, now=clock, draw=lambda: 0.5)

    async def push(self, repository: str, data: bytes, *tags: str) -> Metainfo:
        """A blob, and with tags an image of it."""
        self.count += 1
        one, name = Metainfo.of_bytes(data), f"u/aa/{self.count}"
        await self.objects.put(name, data)
        await self.catalog.add_blob(repository, one, name, BY)
        if tags:
            await self.catalog.put_manifest(repository, manifest(b"of " + data, [one]), tags, Signer(), BY)
        return one


async def test_a_collection_frees_what_nothing_refers_to(mock_clock: trio.testing.MockClock) -> None:
    registry = Registry()
    await registry.push("a", b"kept", "1")
    await registry.push("a", b"garbage")
    mock_clock.jump(2 * DAY)
    await registry.push("a", b"fresh")
    dry = await registry.sweeper.collect(dry_run=True)
    assert dry == {"manifests": 0, "links": 1, "blobs": 1, "bytes": 7, "orphans": 0}
    assert len(registry.objects.held.objects) == 3
    done = await registry.sweeper.collect()
    assert done == {"manifests": 0, "links": 1, "blobs": 1, "objects": 1, "bytes": 7, "orphans": 0}
    assert sorted(registry.objects.held.objects.values()) == [b"fresh", b"kept"]
    runs = await registry.garbage.runs()
    assert [(run.kind, run.dry_run, run.figures) for run in runs] == [("collect", False, done), ("collect", True, dry)]


async def test_who_asks_for_a_run_is_written_down_and_nobody_where_it_comes_by_itself() -> None:
    registry = Registry(Pace(every=100.0, scrub_every=100.0))
    sweeper = registry.sweeper
    await sweeper.collect(BY, dry_run=True)
    await sweeper.retain(BY, dry_run=True)
    await sweeper.collect(every=1.0)
    await sweeper.retain(every=1.0)
    await sweeper.scrub(every=1.0)
    assert registry.garbage.asked == []
    await sweeper.collect(BY, most=True)
    await sweeper.retain(BY)
    await sweeper.scrub(BY)
    assert registry.garbage.asked == [
        (BY, "collect.start", {"orphans": True}),
        (BY, "retention.start", {}),
        (BY, "scrub.start", {}),
    ]


async def test_objects_that_nothing_knows_of_go_after_a_day(mock_clock: trio.testing.MockClock) -> None:
    registry = Registry()
    await registry.objects.put("u/aa/lost", b"x")
    mock_clock.jump(ORPHAN + 1)
    await registry.objects.put("u/aa/new", b"y")
    assert (await registry.sweeper.collect() or {})["orphans"] == 1
    assert list(registry.objects.held.objects) == ["u/aa/new"]


async def test_a_store_that_the_database_does_not_know_is_left_alone(mock_clock: trio.testing.MockClock) -> None:
    """A tracker that was started with another database must not empty somebody's bucket."""
    registry = Registry()
    await registry.push("a", b"kept", "1")
    for number in range(FEW + 1):
        await registry.objects.put(f"u/bb/{number}", b"x")
    mock_clock.jump(ORPHAN + 1)
    for dry_run in (True, False):
        done = await registry.sweeper.collect(dry_run=dry_run) or {}
        assert (done["orphans"], done["spared"]) == (0, FEW + 1)
    assert len(registry.objects.held.objects) == FEW + 2
    done = await registry.sweeper.collect(most=True) or {}
    assert (done["orphans"], done.get("spared")) == (FEW + 1, None)
    assert list(registry.objects.held.objects.values()) == [b"kept"]


async def test_retention_removes_tags_and_spares_what_is_refused(mock_clock: trio.testing.MockClock) -> None:
    registry = Registry()
    for number in range(4):
        await registry.push("acme/api", b"image %d" % number, f"v{number}")
        mock_clock.jump(DAY)
    await registry.garbage.add_rule(Rule(0, "acme/**", "v*", keep_last=1), BY)
    assert await registry.sweeper.retain(BY, dry_run=True) == {"acme/api": ["v0", "v1", "v2"]}
    assert await registry.catalog.tags("acme/api") == ["v0", "v1", "v2", "v3"]
    assert await registry.sweeper.retain(BY) == {"acme/api": ["v0", "v1", "v2"]}
    assert await registry.catalog.tags("acme/api") == ["v3"]


async def test_scrubbing_finds_damage_and_loss_at_its_pace(autojump_clock: trio.testing.MockClock) -> None:
    registry = Registry(Pace(every=None, scrub_every=None, scrub_rate=1000.0))
    blobs = [await registry.push("a", b"%d" % number * 1000) for number in range(3)]
    names = {one.digest: kept.object for one, kept in zip(blobs, registry.catalog.blobs.values(), strict=True)}
    registry.objects.held.objects[names[blobs[0].digest]] = b"x" * 1000
    del registry.objects.held.objects[names[blobs[1].digest]]
    start = trio.current_time()
    assert await registry.sweeper.scrub() == {"blobs": 3, "bytes": 3000, "damaged": 2}
    assert trio.current_time() - start >= 2.0
    assert {one.digest for one in await registry.garbage.damaged()} == {blobs[0].digest, blobs[1].digest}
    assert await registry.sweeper.scrub() == {"blobs": 0, "bytes": 0, "damaged": 0}
    await trio.sleep(1)
    assert await registry.sweeper.scrub(age=0.0) == {"blobs": 1, "bytes": 1000, "damaged": 0}


async def test_it_runs_by_itself_once_for_all_processes(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(every=100.0, grace=50.0, scrub_every=100.0)
    registry = Registry(pace)
    await registry.push("a", b"garbage")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(registry.process(pace).run)
        await trio.sleep(450)
        nursery.cancel_scope.cancel()
    kinds = [run.kind for run in await registry.garbage.runs()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"collect": 4, "retention": 4, "scrub": 4}
    assert not registry.objects.held.objects


async def test_pulls_are_counted_together_and_not_lost_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    registry = Registry()
    await registry.push("a", b"layer", "1")
    digest = Digest.of(b"of layer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.sweeper.run)
        for _ in range(5):
            registry.sweeper.pulls.count("a", "1", digest, True)
        registry.sweeper.pulls.count("a", None, digest, True)
        registry.sweeper.pulls.count("a", "1", digest, False)
        await trio.sleep(15)
        assert registry.garbage.counts == {("a", digest): 6}
        registry.sweeper.pulls.count("a", "1", digest, True)
        nursery.cancel_scope.cancel()
    assert registry.garbage.counts == {("a", digest): 7}


def test_pulls_take_no_more_memory_than_that() -> None:
    pulls = Pulls()
    for number in range(30_000):
        pulls.count("a", str(number), Digest.of(b"x"), True)
    assert len(pulls.take()) == 20_000
    assert pulls.take() == []


def test_a_rule_is_a_value() -> None:
    assert replace(Rule(0, "a", "b", 1), id=5) == Rule(5, "a", "b", 1)
