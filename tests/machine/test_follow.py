"""A node that follows changes: what it writes, when tags are live, and how streams take turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from p2pregistry.digest import Digest
from p2pregistry.errors import Unreachable
from p2pregistry.feed import follow
from p2pregistry.feed.follow import APART, FIRST_WAIT, LONGEST_WAIT, Follower, Hooks
from p2pregistry.feed.interest import Wanted
from p2pregistry.feed_messages import (
    NOTHING,
    ChangesRequest,
    Event,
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
from p2pregistry.sources.tracker import SILENCE, Events
from p2pregistry.store.applied import read_known
from p2pregistry.store.index import Index, open_index
from p2pregistry.store.records import TagRecord
from p2pregistry.trust.keys import KeySet, TrackerKeys
from p2pregistry.trust.records import (
    RepositoryClaim,
    Stamp,
    TagClaim,
    sign_repository,
    sign_tag,
    verify_repository,
    verify_tag,
)

A, B = "acme/a", "acme/b"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


class Stream:
    """One stream as the tracker sees it."""

    def __init__(self, request: ChangesRequest) -> None:
        self.request = request
        self.open = True
        self.send, self._receive = trio.open_memory_channel[Event](100_000)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise Unreachable("the tracker tells nothing any more") from None

    def say(self, *events: Event) -> None:
        for event in events:
            self.send.send_nowait(event)


class Tracker:
    """Streams are told what a test says; it also signs and verifies."""

    def __init__(self, keys: TrackerKeys) -> None:
        self._signer = keys.signer
        self._keys = KeySet.verify(keys.key_set(), keys.root_public)
        self.streams: list[Stream] = []
        self.opened: list[float] = []
        self.down = False
        self._news = trio.Event()

    @asynccontextmanager
    async def changes(self, request: ChangesRequest) -> AsyncIterator[Events]:
        self.opened.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.down:
            raise Unreachable("down")
        stream = Stream(request)
        self.streams.append(stream)
        self._news.set()
        try:
            yield cast("Events", stream)
        finally:
            stream.open = False

    async def stream(self, number: int) -> Stream:
        """The stream of this number, once it is there."""
        while len(self.streams) <= number:
            self._news = trio.Event()
            await self._news.wait()
        return self.streams[number]

    async def tag(self, token: str) -> TagClaim:
        return verify_tag(self._keys, token)

    async def repository(self, token: str) -> RepositoryClaim:
        return verify_repository(self._keys, token)

    def moved(self, repository: str, tag: str, digest: Digest | None, number: int, epoch: int = 1) -> TagEvent:
        stamp = Stamp(epoch, number)
        return TagEvent(
            stamp, repository, tag, digest, sign_tag(self._signer, TagClaim(repository, tag, digest, stamp, 1000))
        )

    def seen(self, repository: str, number: int, *, private: bool = False, epoch: int = 1) -> RepositoryEvent:
        stamp = Stamp(epoch, number)
        record = sign_repository(self._signer, RepositoryClaim(repository, private, stamp, 1000))
        return RepositoryEvent(stamp, repository, private, record)


def behind(number: int) -> MarkEvent:
    """A mark with more to come at once."""
    return MarkEvent(Stamp(1, number), 0.0)


def mark(number: int, epoch: int = 1, *, late: float = 0.0) -> MarkEvent:
    return MarkEvent(Stamp(epoch, number), 1_000_000 + trio.current_time() - late)


class Node:
    """What follows, and what it has been told to do."""

    def __init__(self, index: Index, tracker: Tracker, follower: Follower, calls: list[object]) -> None:
        self.index, self.tracker, self.follower, self.calls = index, tracker, follower, calls

    async def reach(self, number: int, epoch: int = 1) -> None:
        """Until everything up to there is known."""
        while self.follower.state.cursor != (epoch, number):
            await trio.sleep(0.01)

    def points(self, repository: str, tag: str) -> Digest | None:
        record = self.index.tag(repository, tag)
        return None if record is None else record.digest

    def hidden(self, repository: str) -> bool:
        record = self.index.repository(repository)
        return record is None or record.hidden


@pytest.fixture
def keys(tmp_path: Path) -> TrackerKeys:
    return TrackerKeys.load_or_create(tmp_path / "keys")


@asynccontextmanager
async def running(
    folder: Path, keys: TrackerKeys, *known: str, patterns: tuple[str, ...] = (), limit: int = 100
) -> AsyncIterator[Node]:
    async with open_index(folder / "index.lmdb") as index, trio.open_nursery() as nursery:
        tracker, calls = Tracker(keys), list[object]()
        state = read_known(index)
        follower = Follower(
            tracker,
            tracker,
            index,
            Wanted(lambda: patterns, limit=limit, known=[*state.order, *known]),
            state,
            now=lambda: 2_000_000 + trio.current_time(),
            hooks=Hooks(
                moved=lambda *moved: calls.append(moved),
                visibility=lambda: calls.append("visibility"),
                keys=lambda: calls.append("keys"),
                grant=lambda: calls.append("grant"),
            ),
            uniform=lambda _low, high: high,
        )
        nursery.start_soon(follower.run)
        yield Node(index, tracker, follower, calls)
        nursery.cancel_scope.cancel()


async def test_a_batch_is_written_with_its_mark(tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock) -> None:
    async with running(tmp_path, keys, A) as node:
        stream = await node.tracker.stream(0)
        assert stream.request == ChangesRequest(NOTHING, Interest(frozenset([A])))
        stream.say(ResetEvent(Stamp(1, 7)), node.tracker.seen(A, 1), node.tracker.moved(A, "v1", ONE, 2))
        await trio.sleep(1)
        assert node.index.tag(A, "v1") is None
        assert not node.follower.live(A, "v1")
        stream.say(mark(7))
        await node.reach(7)
        assert node.points(A, "v1") == ONE
        assert node.follower.live(A, "v1")
        assert not node.follower.live(B, "v1")
        assert node.calls == [(A, "v1", ONE), "visibility"]
        assert read_known(node.index).cursor == Stamp(1, 7)
        stream.say(node.tracker.moved(A, "v1", TWO, 8), mark(8))
        await node.reach(8)
        assert node.points(A, "v1") == TWO
        stream.say(node.tracker.moved(A, "v1", None, 9), mark(9))
        await node.reach(9)
        assert node.points(A, "v1") is None
        assert node.calls[2:] == [(A, "v1", TWO), (A, "v1", None)]


async def test_who_comes_back_goes_on_from_its_cursor(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        stream = await node.tracker.stream(0)
        stream.say(node.tracker.seen(A, 1), node.tracker.moved(A, "v1", ONE, 2), mark(5))
        await node.reach(5)
    async with running(tmp_path, keys, B) as node:
        assert node.follower.confirmed(A, "v1") > 0
        assert node.follower.confirmed(B, "v1") == 0
        stream = await node.tracker.stream(0)
        assert stream.request.cursor == Stamp(1, 5)
        assert stream.request.interest.repositories == {A, B}
        assert stream.request.fresh.repositories == {B}
        assert not node.follower.live(A, "v1")  # it may have moved while this one was away
        stream.say(mark(6))
        await node.reach(6)
        assert node.follower.live(A, "v1")
        assert node.calls == []


async def test_gone_repositories_are_forgotten_and_can_come_back_with_the_same_records(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        events = tracker.seen(A, 1), tracker.moved(A, "v1", ONE, 2)
        stream.say(*events, mark(2))
        await node.reach(2)
        before, moment = node.index.changes, node.follower.moment()
        stream.say(GoneEvent(Stamp(1, 3), A), mark(3))
        await node.reach(3)
        assert node.hidden(A)
        assert node.points(A, "v1") is None
        assert node.index.changes > before
        assert node.follower.went_since(A, moment)
        assert not node.follower.went_since(A, node.follower.moment())
        stream.say(*events, mark(4))
        await node.reach(4)
        assert not node.hidden(A)
        assert node.points(A, "v1") == ONE
        assert node.calls == [(A, "v1", ONE), "visibility", (A, "v1", None), "visibility", (A, "v1", ONE), "visibility"]


async def test_what_is_older_than_what_is_known_changes_nothing(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        stream.say(tracker.seen(A, 1), tracker.moved(A, "v1", ONE, 5), mark(5))
        await node.reach(5)
        await node.index.put_tag(A, "v1", TagRecord(TWO, 1.0, Stamp(1, 9)))  # the tracker was asked meanwhile
        stream.say(tracker.moved(A, "v1", ONE, 7), tracker.seen(A, 8), mark(8))
        await node.reach(8)
        assert node.points(A, "v1") == TWO
        kept = await node.index.put_tag(A, "v1", TagRecord(ONE, 1.0, Stamp(1, 2)))
        assert kept.digest == TWO  # nor does an answer that was slow


async def test_a_snapshot_drops_what_it_does_not_name(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A, B) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        stream.say(tracker.seen(A, 1), tracker.moved(A, "v1", ONE, 2), tracker.moved(A, "v2", ONE, 3))
        stream.say(tracker.seen(B, 4), tracker.moved(B, "v1", ONE, 5), mark(5))
        await node.reach(5)
        stream.say(ResetEvent(Stamp(1, 50)), tracker.seen(A, 1), tracker.moved(A, "v2", ONE, 3), mark(50))
        await node.reach(50)
        assert node.points(A, "v1") is None
        assert node.points(A, "v2") == ONE
        assert node.hidden(B)
        assert node.points(B, "v1") is None


async def test_of_a_restored_database_the_new_epoch_holds(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        stream.say(tracker.seen(A, 1), tracker.moved(A, "v1", TWO, 90), tracker.moved(A, "v2", TWO, 91), mark(91))
        await node.reach(91)
        stream.say(ResetEvent(Stamp(2, 4)), tracker.seen(A, 1, epoch=2), tracker.moved(A, "v1", ONE, 2, epoch=2))
        stream.say(mark(4, 2))
        await node.reach(4, 2)
        assert node.points(A, "v1") == ONE
        assert node.points(A, "v2") is None


async def test_more_interest_opens_a_second_stream_before_the_first_one_ends(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        first, tracker = await node.tracker.stream(0), node.tracker
        first.say(tracker.seen(A, 1), tracker.moved(A, "v1", ONE, 2), mark(2))
        await node.reach(2)
        for repository in (B, "acme/c"):
            node.follower.use(repository)
        second = await tracker.stream(1)
        assert second.request.cursor == Stamp(1, 2)
        assert second.request.fresh.repositories == {B, "acme/c"}
        first.say(tracker.moved(A, "v1", TWO, 3), mark(3))
        await node.reach(3)
        assert (node.follower.live(A, "v1"), node.follower.live(B, "v1")) == (True, False)
        second.say(tracker.moved(A, "v1", TWO, 3), tracker.seen(B, 1), tracker.moved(B, "v1", ONE, 2), mark(4))
        await node.reach(4)
        await trio.sleep(1)
        assert (first.open, second.open) == (False, True)
        assert (node.follower.live(A, "v1"), node.follower.live(B, "v1")) == (True, True)
        known = read_known(node.index)
        assert (known.cursor, known.order) == (Stamp(1, 4), (A, B, "acme/c"))
        # they are not opened one for each question
        node.follower.use("acme/d")
        await tracker.stream(2)
        assert tracker.opened[2] - tracker.opened[1] >= APART


async def test_tags_are_live_once_their_stream_has_caught_up(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        first, tracker = await node.tracker.stream(0), node.tracker
        first.say(tracker.seen(A, 1), tracker.moved(A, "v1", ONE, 2), behind(2))
        await node.reach(2)
        assert not node.follower.live(A, "v1")
        assert read_known(node.index).cursor == Stamp(1, 2)
        assert node.follower.confirmed(A, "v1") == 0
        first.say(tracker.moved(A, "v1", TWO, 3), mark(3))
        await node.reach(3)
        assert node.follower.live(A, "v1")
        # a second one that is behind takes nothing from the first one
        node.follower.use(B)
        second = await tracker.stream(1)
        second.say(tracker.seen(B, 1), tracker.moved(B, "v1", ONE, 2), behind(2))
        while node.points(B, "v1") is None:
            await trio.sleep(0.1)
        known = read_known(node.index)
        assert (known.cursor, known.order) == (Stamp(1, 3), (A,))
        assert (node.follower.live(A, "v1"), node.follower.live(B, "v1")) == (True, False)
        first.say(tracker.moved(A, "v1", ONE, 4), mark(4))
        await node.reach(4)
        second.say(mark(5))
        await node.reach(5)
        assert read_known(node.index).order == (A, B)
        assert node.follower.live(B, "v1")


async def test_streams_are_opened_again_after_growing_times(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        first, tracker = await node.tracker.stream(0), node.tracker
        first.say(mark(1))
        await node.reach(1)
        tracker.down = True
        moves = node.index.moves
        first.send.close()
        await trio.sleep(200)
        assert node.index.moves > moves  # what was kept ready while it was live is not any more
        waits = [round(after - before) for before, after in zip(tracker.opened[1:], tracker.opened[2:], strict=False)]
        assert waits[:4] == [2 * FIRST_WAIT, 4 * FIRST_WAIT, 8 * FIRST_WAIT, LONGEST_WAIT]
        state = node.follower.state
        assert not state.connected
        assert state.age is not None
        assert state.age > 100


async def test_a_record_that_the_tracker_did_not_sign_ends_the_stream(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    forger = Tracker(TrackerKeys.load_or_create(tmp_path / "other"))
    async with running(tmp_path, keys, A) as node:
        tracker = node.tracker
        good = tracker.moved(A, "v1", ONE, 2)
        wrong = TagEvent(good.stamp, A, "v2", ONE, good.record)
        other = TagEvent(good.stamp, A, "v1", TWO, good.record)
        public = RepositoryEvent(Stamp(1, 1), A, False, tracker.seen(A, 1, private=True).record)
        for number, event in enumerate((forger.moved(A, "v1", ONE, 2), wrong, other, public)):
            stream = await tracker.stream(number)
            stream.say(tracker.seen(A, 1), event, mark(2))
            while stream.open:
                await trio.sleep(0.1)
        assert node.index.repository(A) is None
        assert node.follower.state.cursor == NOTHING


async def test_a_tracker_that_does_not_know_what_is_new_is_left(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, A) as node:
        stream = await node.tracker.stream(0)
        stream.say(mark(1))
        await node.reach(1)
        stream.say(mark(2, late=SILENCE - 1))
        await node.reach(2)
        assert node.follower.live(A, "v1")
        assert node.follower.state.lag >= SILENCE - 1
        stream.say(mark(3, late=SILENCE + 1))
        while stream.open:
            await trio.sleep(0.1)
        assert not node.follower.live(A, "v1")
        assert node.follower.state.cursor == Stamp(1, 2)


async def test_keys_and_grants(tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock) -> None:
    async with running(tmp_path, keys, A) as node:
        stream = await node.tracker.stream(0)
        stream.say(mark(1), KeysEvent(Stamp(1, 2)), RevokedEvent(Stamp(1, 3)), NodeEvent(Stamp(1, 4)), mark(4))
        await node.reach(4)
        assert node.calls == ["keys", "keys", "grant"]
        node.follower.again()
        second = await node.tracker.stream(1)
        assert second.request == ChangesRequest(Stamp(1, 4), stream.request.interest, stream.request.interest)
        assert node.follower.confirmed(A, "v1") > 0


async def test_a_long_snapshot_is_written_in_parts(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PART", 10)
    async with running(tmp_path, keys, A) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        stream.say(ResetEvent(Stamp(1, 9)), tracker.seen(A, 1))
        stream.say(*(tracker.moved(A, f"v{number}", ONE, number) for number in range(2, 31)))
        while node.points(A, "v25") is None:
            await trio.sleep(0.1)
        assert read_known(node.index).cursor == NOTHING
        assert not node.follower.live(A, "v2")
        stream.say(mark(40))
        await node.reach(40)
        assert [node.points(A, f"v{number}") for number in range(2, 31)] == [ONE] * 29


async def test_patterns_cover_tags_of_repositories_that_nobody_asked_for(
    tmp_path: Path, keys: TrackerKeys, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, keys, patterns=("acme/*:prod-*",)) as node:
        stream, tracker = await node.tracker.stream(0), node.tracker
        assert stream.request.interest.patterns == {"acme/*:prod-*"}
        stream.say(tracker.seen(A, 1), tracker.moved(A, "prod-1", ONE, 2), mark(2))
        await node.reach(2)
        assert node.calls[0] == (A, "prod-1", ONE)
        assert (node.follower.live(A, "prod-1"), node.follower.live(A, "v1")) == (True, False)
