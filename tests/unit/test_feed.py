"""What nodes are told of changes: all that they may see and want, in order, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
import trio.testing

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.feed_messages import (
    HEARTBEAT,
    ChangesRequest,
    Event,
    EventReader,
    GoneEvent,
    Interest,
    KeysEvent,
    MarkEvent,
    NodeEvent,
    RepositoryEvent,
    ResetEvent,
    RevokedEvent,
    TagEvent,
)
from p2pregistry.testing.feed_model import FeedModel
from p2pregistry.testing.tracker_api import AUTHORITY, SIGNED
from p2pregistry.trust.records import ANYONE, Caller, Stamp, verify_repository, verify_tag
from tracker import feed as feeds
from tracker.catalog.changes import Page, Scope
from tracker.catalog.changes_check import push
from tracker.catalog.changes_memory import MemoryChanges
from tracker.catalog.check import BY
from tracker.catalog.memory import MemoryCatalog
from tracker.feed import Feed

Clock = trio.testing.MockClock
NODE = Caller("n1", ("secret/**",))


class Stream:
    """The events of one stream, as a node gets them."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks
        self._reader = EventReader()

    async def batch(self) -> list[Event]:
        """What comes next, up to a mark; empty: the stream has ended."""
        events: list[Event] = []
        async for chunk in self._chunks:
            events += self._reader.feed(chunk)
            if events and isinstance(events[-1], MarkEvent):
                return events
        return events

    async def news(self) -> list[Event]:
        """The next that is not only a mark, without its mark."""
        while True:
            events = await self.batch()
            if len(events) != 1 or not isinstance(events[0], MarkEvent):
                return [event for event in events if not isinstance(event, MarkEvent)]


@asynccontextmanager
async def running(catalog: MemoryCatalog, changes: MemoryChanges | None = None) -> AsyncIterator[Feed]:
    feed = Feed(changes or catalog.changes, SIGNED, now=trio.current_time)
    catalog.changes.heard = feed.changed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        await trio.testing.wait_all_tasks_blocked()
        yield feed
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(
    feed: Feed, request: ChangesRequest, caller: Caller = ANYONE, recheck: feeds.Recheck | None = None
) -> AsyncIterator[Stream]:
    async with aclosing(feed.stream(request, caller, recheck)) as chunks:
        yield Stream(chunks)


def wants(*repositories: str, patterns: tuple[str, ...] = ()) -> Interest:
    return Interest(frozenset(repositories), frozenset(patterns))


async def test_a_new_node_gets_the_state_then_what_moves(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=False)
    first = await push(catalog, "acme/api", b"one", "1", "2")
    await push(catalog, "other", b"one", "1")
    async with running(catalog) as feed:
        request = ChangesRequest(interest=wants("acme/api", "nothing"))
        async with listening(feed, request) as stream:
            events = await stream.batch()
            assert [type(event) for event in events] == [
                *(ResetEvent, GoneEvent, RepositoryEvent, TagEvent, TagEvent, MarkEvent)
            ]
            assert isinstance(events[3], TagEvent)
            assert (events[3].repository, events[3].tag, events[3].digest) == ("acme/api", "1", first)
            moved = await push(catalog, "acme/api", b"two", "1")
            await push(catalog, "other", b"two", "1")
            (event,) = await stream.news()
            assert isinstance(event, TagEvent)
            assert (event.tag, event.digest) == ("1", moved)
            await catalog.delete_tag("acme/api", "2", BY)
            (event,) = await stream.news()
            assert isinstance(event, TagEvent)
            assert (event.tag, event.digest) == ("2", None)
            record = verify_tag(AUTHORITY.keys, event.record)
            assert (record.repository, record.tag, record.digest) == ("acme/api", "2", None)
            assert record.stamp == catalog.changes.now.stamp
            await catalog.set_visibility("acme/api", True, BY)
            assert [type(event) for event in await stream.news()] == [GoneEvent]
            await push(catalog, "acme/api", b"three", "1")
            await catalog.set_visibility("acme/api", False, BY)
            event, tag = await stream.news()
            assert isinstance(event, RepositoryEvent)
            assert not verify_repository(AUTHORITY.keys, event.record).private
            assert isinstance(tag, TagEvent)
            assert tag.digest == Digest.of(b"three")
            assert verify_tag(AUTHORITY.keys, tag.record).stamp == event.stamp, "it is as new as its repository"
    assert feed.open_streams == 0


async def test_a_cursor_goes_on_where_it_was_and_marks_pass_what_is_left_out(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1", "2")
    model = FeedModel(wants("a"))
    async with running(catalog) as feed:
        async with listening(feed, model.request()) as stream:
            model.apply(await stream.batch())
        await push(catalog, "a", b"two", "1")
        await push(catalog, "b", b"two", "1")
        async with listening(feed, model.request()) as stream:
            (event,) = await stream.news()
            assert isinstance(event, TagEvent)
            model.apply([event])
            began = trio.current_time()
            await push(catalog, "b", b"three", "1")
            while model.cursor != catalog.changes.now.stamp:
                model.apply(await stream.batch())
            assert trio.current_time() <= began + 2 * HEARTBEAT
    assert model.tags == {("a", "1"): Digest.of(b"two"), ("a", "2"): Digest.of(b"one")}


async def test_nobody_hears_of_what_is_not_for_them(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=True)
    async with running(catalog) as feed:
        everything = ChangesRequest(interest=wants("secret/b", patterns=("**",)))
        async with listening(feed, everything) as stranger, listening(feed, everything, NODE) as node:
            await stranger.batch()
            await node.batch()
            await push(catalog, "secret/a", b"one", "1")
            await push(catalog, "secret/b", b"one", "1")
            assert {event.repository for event in await node.news() if isinstance(event, TagEvent)} == {
                *("secret/a", "secret/b")
            }
            await catalog.delete_repository("secret/a", BY)
            assert [type(event) for event in await node.news()] == [GoneEvent]
            await push(catalog, "public", b"one", "1")
            await catalog.set_visibility("public", False, BY)
            told = await stranger.news()
            assert {getattr(event, "repository", "") for event in told} == {"public"}


async def test_a_node_hears_of_itself_and_then_comes_again(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog()
    other = Caller("n2")
    async with running(catalog) as feed:
        request = ChangesRequest(catalog.changes.now.stamp, wants("a"))
        async with listening(feed, request, NODE) as mine, listening(feed, request, other) as others:
            await mine.batch()
            await others.batch()
            catalog.changes.note("keys")
            assert [type(event) for event in await mine.news()] == [KeysEvent]
            assert [type(event) for event in await others.news()] == [KeysEvent]
            catalog.changes.note("node", "", "n1", gone=True)
            assert [type(event) for event in await mine.news()] == [NodeEvent, RevokedEvent]
            assert await mine.batch() == [], "its stream has ended"
            assert [type(event) for event in await others.news()] == [RevokedEvent]
            catalog.changes.note("node", "", "n2")
            assert [type(event) for event in await others.news()] == [NodeEvent]


async def test_a_stream_ends_when_its_caller_is_somebody_else(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog()
    now: list[Caller | None] = [NODE]

    async def recheck() -> Caller | None:
        if not now:
            raise LocalError("the database is away")
        return now[0]

    async with running(catalog) as feed:
        request = ChangesRequest(catalog.changes.now.stamp, wants("a"))
        async with listening(feed, request, NODE, recheck) as stream:
            for _ in range(3):
                assert await stream.batch()
            now.clear()
            assert await stream.batch(), "nobody knows better"
            now.append(Caller("n1"))
            assert await stream.batch() == []


async def test_another_epoch_and_numbers_that_go_back_begin_anew(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1")
    model = FeedModel(wants("a"))
    async with running(catalog) as feed, listening(feed, model.request()) as stream:
        model.apply(await stream.batch())
        model.apply(await stream.batch())
        # the node knows what the backup does not
        model.tags["a", "lost"] = Digest.of(b"lost")
        await catalog.changes.new_epoch(BY)
        events: list[Event] = []
        while model.cursor.epoch == 1:
            events = await stream.batch()
            model.apply(events)
        assert isinstance(events[0], ResetEvent)
        assert model.tags == {("a", "1"): Digest.of(b"one")}
        await push(catalog, "a", b"two", "1")
        model.apply(await stream.news())
        assert model.tags == {("a", "1"): Digest.of(b"two")}
    beyond = ChangesRequest(Stamp(2, 1000), wants("a"))
    async with running(catalog) as feed, listening(feed, beyond) as stream:
        assert isinstance((await stream.batch())[0], ResetEvent)


async def test_who_was_away_for_longer_than_tombstones_are_kept_begins_anew(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1", "2")
    model = FeedModel(wants("a"))
    async with running(catalog) as feed:
        async with listening(feed, model.request()) as stream:
            model.apply(await stream.batch())
        await catalog.delete_tag("a", "1", BY)
        await trio.sleep(61)
        assert await catalog.changes.prune(60)
        async with listening(feed, model.request()) as stream:
            events = await stream.batch()
            assert isinstance(events[0], ResetEvent)
            model.apply(events)
    assert model.tags == {("a", "2"): Digest.of(b"one")}


async def test_old_tombstones_are_removed_now_and_then(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "PRUNE", 10.0)
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1")
    await catalog.delete_tag("a", "1", BY)
    feed = Feed(catalog.changes, SIGNED, keep=60, now=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        await trio.sleep(59)
        assert catalog.changes.now.pruned == 0
        await trio.sleep(12)
        assert catalog.changes.now.pruned == catalog.changes.now.number
        nursery.cancel_scope.cancel()


async def test_who_reads_too_slowly_is_cut_off(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BACKLOG", 3000)
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1")
    model = FeedModel(wants("a"))
    async with running(catalog) as feed:
        async with listening(feed, model.request()) as stream:
            for _ in range(4):  # up to a heartbeat, so it is handed what comes
                model.apply(await stream.batch())
            for number in range(10):
                await push(catalog, "a", b"%d" % number, "1")
                await trio.sleep(1)
            assert await stream.batch() == []
        async with listening(feed, model.request()) as stream:
            model.apply(await stream.batch())
    assert model.tags == {("a", "1"): Digest.of(b"9")}


async def test_of_a_large_repository_each_stream_reads_for_itself(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MOST_TAGS", 3)
    catalog = MemoryCatalog(private=True)
    await push(catalog, "a", b"one", *(f"t{n}" for n in range(8)))
    model = FeedModel(wants(patterns=("*:t*",)))
    async with running(catalog) as feed, listening(feed, model.request()) as stream:
        model.apply(await stream.batch())
        model.apply(await stream.batch())
        await catalog.set_visibility("a", False, BY)
        while len(model.tags) < 8:
            model.apply(await stream.batch())
        model.apply(await stream.batch())
        await push(catalog, "a", b"two", "t1")
        model.apply(await stream.news())
        assert model.tags["a", "t1"] == Digest.of(b"two")


class FailingChanges(MemoryChanges):
    """Whose database is away while ``away`` is set."""

    away = False

    async def since(self, after: int, limit: int, scope: Scope | None = None) -> Page:
        if self.away:
            raise LocalError("the database is away")
        return await super().since(after, limit, scope)


async def test_while_the_database_is_away_streams_stay_and_say_how_old_they_are(autojump_clock: Clock) -> None:
    catalog = MemoryCatalog(private=False)
    await push(catalog, "a", b"one", "1")
    changes = catalog.changes = FailingChanges(catalog.content)
    await push(catalog, "a", b"two", "1")
    async with running(catalog, changes) as feed:
        request = ChangesRequest(changes.now.stamp, wants("a"))
        async with listening(feed, request) as stream:
            await stream.batch()
            await trio.sleep(10)
            changes.away = True
            await stream.batch()
            since = trio.current_time()
            await trio.sleep(60)
            await stream.batch()
            (mark,) = await stream.batch()
            assert isinstance(mark, MarkEvent)
            assert mark.time <= since, "nobody knows whether it is still so"
            with pytest.raises(LocalError):
                feed.stream(ChangesRequest(interest=wants("a")), ANYONE)
            await push(catalog, "a", b"three", "1")
            changes.away = False
            (event,) = await stream.news()
            assert isinstance(event, TagEvent)
            assert event.digest == Digest.of(b"three")


def truth(catalog: MemoryCatalog, model: FeedModel, caller: Caller) -> dict[tuple[str, str], Digest]:
    return {
        (name, tag): digest
        for name, found in catalog.content.items()
        for tag, digest in found.tags.items()
        if caller.may_pull(name, found.private) and model.interest.covers(name, tag)
    }


NAMES = ("acme/api", "acme/web", "secret/a", "b", "x/y/z")
PARTS = (wants("acme/api"), wants("b", "secret/a"), wants(patterns=("acme/*:t*",)), wants(patterns=("**",)))


async def change(catalog: MemoryCatalog, chance: random.Random) -> None:
    name, tag, what = chance.choice(NAMES), f"{chance.choice('tu')}{chance.randrange(3)}", chance.random()
    if what < 0.55:
        await push(catalog, name, b"%d" % chance.randrange(5), tag)
    elif what < 0.75:
        await catalog.delete_tag(name, tag, BY)
    elif what < 0.93 and name in catalog.content:
        await catalog.set_visibility(name, chance.random() < 0.5, BY)
    elif what < 0.98:
        await catalog.delete_repository(name, BY)
    else:
        await catalog.changes.prune(chance.choice([0.2, 100.0]))


async def node(feed: Feed, model: FeedModel, caller: Caller, chance: random.Random, stop: trio.Event) -> None:
    """Listens, breaks off at any place, comes back, is interested in more; at the end it listens for long enough."""
    while True:
        over = stop.is_set()
        async with listening(feed, model.request(), caller) as stream:
            with trio.move_on_after(20.0 if over else chance.random() * 2):
                while True:
                    model.apply(await stream.batch())
        if over:
            return
        if chance.random() < 0.2:
            model.widen(chance.choice(PARTS))
        await trio.sleep(chance.random())


@pytest.mark.parametrize("seed", range(8))
async def test_every_node_knows_what_is_whatever_happened_meanwhile(autojump_clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    catalog = MemoryCatalog(private=seed % 2 == 0)
    callers = [ANYONE, NODE, Caller("n2", ("acme/*",)), Caller(everything=True)]
    models = [(FeedModel(chance.choice(PARTS)), caller) for caller in callers * 2]
    stop = trio.Event()
    async with running(catalog) as feed, trio.open_nursery() as nursery:
        for model, caller in models:
            nursery.start_soon(node, feed, model, caller, chance, stop)
        for _ in range(200):
            await change(catalog, chance)
            await trio.sleep(chance.choice([0.0, 0.0, 0.02, 0.3]))
        stop.set()
    for model, caller in models:
        assert model.tags == truth(catalog, model, caller)
        assert model.private == {
            name: found.private
            for name, found in catalog.content.items()
            if caller.may_pull(name, found.private) and model.interest.touches(name)
        }
        assert model.cursor == catalog.changes.now.stamp
