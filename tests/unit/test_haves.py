"""Who is told what of the pieces that are here: each piece once, and nothing queued for those who are slow."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.haves import LINE_BUDGET, Haves, Partial, Watcher
from p2pregistry.messages import MAX_PEERS, unpack
from p2pregistry.store.base import Blob

A, B, C = (Digest.of(bytes([n])) for n in range(3))


def watch(number: int = 0, *want: Digest, zone: str = "") -> Watch:
    return Watch(f"{number + 1:x}".replace("0", "g").rjust(40, "A"), f"http://10.0.0.{number}:1", zone, want or (A, B))


@dataclass(slots=True)
class Told:
    """What a watcher makes of the lines it gets: pieces by digest, and how often it was told of each."""

    count: dict[int, int]
    pieces: dict[int, set[int]] = field(default_factory=dict)
    full: set[int] = field(default_factory=set)

    def take(self, news: HaveNews) -> None:
        for place, bitmap in news.have:
            flags = unpack(bitmap, self.count[place])
            self.pieces[place] = {index for index, flag in enumerate(flags) if flag}
            self.full.discard(place)
        for place, indexes in news.add:
            assert self.pieces[place].isdisjoint(indexes), "each piece is told once"
            assert len(set(indexes)) == len(indexes)
            self.pieces[place].update(indexes)
        for place in news.full:
            assert place not in self.full
            self.full.add(place)
            self.pieces.pop(place, None)
        for place in news.gone:
            assert place in self.full or place in self.pieces
            self.full.discard(place)
            self.pieces.pop(place, None)


def test_the_state_first_then_what_changes() -> None:
    haves = Haves()
    haves.begin(A, 20, [0, 9])
    watcher = haves.watch(watch(0, A, B))
    assert watcher.news() == HaveNews([(0, b"\x80\x40\x00")])
    assert watcher.news() == HaveNews()
    haves.add(A, 5)
    haves.add(A, 5)
    haves.add(A, 9)
    haves.begin(B, 1)
    haves.add(A, 3)
    assert watcher.news() == HaveNews([(1, b"\x00")], [(0, [5, 3])])
    haves.full(A)
    haves.drop(B)
    assert watcher.news() == HaveNews(full=[0], gone=[1])
    haves.drop(A)
    haves.begin(A, 20)
    assert watcher.news() == HaveNews([(0, bytes(3))])
    watcher.leave()
    haves.add(A, 1)
    assert haves.watchers == 0
    assert haves.watching(A) == set()


def test_what_nobody_began_or_what_is_complete_takes_no_pieces() -> None:
    haves = Haves()
    watcher = haves.watch(watch())
    haves.add(A, 1)
    haves.full(B)
    haves.add(B, 1)
    assert watcher.news() == HaveNews(full=[1])


class Index:
    """What claims name and what is complete."""

    def __init__(self, named: set[Digest], held: set[Digest]) -> None:
        self.named, self.held = named, held

    def ref(self, digest: Digest) -> BlobRef | None:
        return BlobRef(digest, 1, b"") if digest in self.named else None

    def blob(self, digest: Digest) -> object | None:
        return digest if digest in self.held else None


def test_complete_blobs_are_told_and_those_that_no_claim_names_are_not() -> None:
    index = Index({A, B}, {A, C})
    haves = Haves(index)
    haves.begin(C, 3)
    watcher = haves.watch(watch(0, A, B, C))
    assert watcher.news() == HaveNews(full=[0])
    haves.add(C, 1)
    index.held.add(B)
    haves.full(B)
    assert watcher.news() == HaveNews(full=[1])
    haves.drop(A)  # it is about to be evicted: others are told before it goes
    assert watcher.news() == HaveNews(gone=[0])
    index.held.remove(A)
    haves.drop(A)
    assert watcher.news() == HaveNews()
    index.held.add(A)
    haves.full(A)
    assert watcher.news() == HaveNews(full=[0])
    haves.drop(A)
    watcher.leave()
    assert haves.watch(watch(0, A)).news() == HaveNews(full=[0]), "nothing is kept for those who are not there"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 1), st.integers(0, 11)),
        st.tuples(st.sampled_from(["begin", "full", "drop"]), st.integers(0, 1), st.integers(0, 11)),
        st.tuples(st.just("line"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("join"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_whatever_happens_a_watcher_that_reads_on_knows_what_is_here(script: list[tuple[str, int, int]]) -> None:
    haves = Haves()
    digests = (A, B)
    truth: dict[int, set[int] | str] = {}
    followers: list[tuple[Watcher, Told]] = []
    for what, which, index in script:
        digest = digests[which % 2]
        now = truth.get(which)
        match what:
            case "begin":
                haves.begin(digest, 12, [index])
                truth[which] = {index}
            case "add":
                haves.add(digest, index)
                if isinstance(now, set):
                    now.add(index)
            case "full":
                haves.full(digest)
                truth[which] = "full"
            case "drop":
                haves.drop(digest)
                truth.pop(which, None)
            case "line" if which < len(followers):
                follower, told = followers[which]
                told.take(follower.news())
            case "join":
                followers.append((haves.watch(watch(len(followers))), Told({0: 12, 1: 12})))
            case _:
                pass
    for follower, told in followers:
        while follower.pending:
            told.take(follower.news())
        assert told.pieces == {which: have for which, have in truth.items() if isinstance(have, set)}
        assert told.full == {which for which, have in truth.items() if have == "full"}


def test_a_slow_watcher_catches_up_in_lines_of_bounded_length() -> None:
    haves = Haves()
    count = 150_000
    haves.begin(A, count)
    haves.begin(B, count)
    watcher = haves.watch(watch())
    told = Told({0: count, 1: count})
    told.take(watcher.news())
    order = list(range(count))
    random.Random(1).shuffle(order)
    for index in order:
        haves.add(A, index)
        haves.add(B, index)
    lines = 0
    while watcher.pending:
        line = watcher.news()
        assert len(line.encode()) <= 2 * LINE_BUDGET
        told.take(line)
        lines += 1
    assert told.pieces == {0: set(range(count)), 1: set(range(count))}
    assert lines > 1


# ------------------------------------------------------------------------------------------------------------- others


def met(watcher: Watcher) -> list[str]:
    return [peer.url for peer in watcher.news().peers]


def test_watchers_of_the_same_digests_hear_of_each_other() -> None:
    haves = Haves()
    first = haves.watch(watch(0, A, B))
    second = haves.watch(watch(1, B, C))
    stranger = haves.watch(watch(2, C, zone="x"))
    (peer,) = first.news().peers
    assert (peer.peer_id, peer.url, peer.zone, peer.want, peer.hold) == (
        second.watch.peer_id, "http://10.0.0.1:1", "", [1], [])  # fmt: skip
    assert [(peer.url, peer.zone, peer.want) for peer in second.news().peers] == [
        ("http://10.0.0.0:1", "", [0]),
        ("http://10.0.0.2:1", "x", [1]),
    ]
    assert met(stranger) == ["http://10.0.0.1:1"]
    again = haves.watch(watch(1, B))  # the same node, with another list
    assert met(again) == ["http://10.0.0.0:1"]
    assert met(second) == []


def test_those_who_left_before_the_line_are_not_named_and_many_come_in_several_lines_the_near_ones_first() -> None:
    haves = Haves()
    others = [haves.watch(watch(n, A, zone="near" if n % 2 else "far")) for n in range(50)]
    newest = haves.watch(watch(60, A, zone="near"))
    for other in others[::5]:
        other.leave()
    lines = []
    while newest.pending:
        lines.append(newest.news().peers)
    assert [len(line) for line in lines] == [MAX_PEERS, 10]
    assert [peer.zone for line in lines for peer in line] == ["near"] * 20 + ["far"] * 20


def test_nothing_is_kept_of_those_who_came_and_went() -> None:
    haves = Haves()
    stuck = haves.watch(watch(0))
    stuck.news()
    for n in range(1, 200):
        haves.watch(watch(n)).leave()
    assert not stuck.pending
    assert haves.watchers == 1


# -------------------------------------------------------------------------------------------------------------- waking


async def test_a_watcher_wakes_for_news_and_for_the_end(autojump_clock: trio.testing.MockClock) -> None:
    haves = Haves()
    watcher = haves.watch(watch())
    assert watcher.pending  # there may be something to say of each digest
    assert watcher.news() == HaveNews()
    woken: list[str] = []

    async def wait() -> None:
        await watcher.wait()
        woken.append("news" if watcher.pending else "end")

    events: list[Callable[[], None]] = [
        lambda: haves.begin(A, 3),
        lambda: haves.add(A, 2),
        lambda: haves.full(A),
        haves.close,
    ]
    for happens in events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            happens()
        watcher.news()
    assert woken == ["news", "news", "news", "end"]
    assert haves.watch(watch(1)).ended.is_set()


@pytest.mark.parametrize("how", ["full", "drop", "begin", "close"])
def test_a_partial_is_closed_when_it_is_needed_no_more(how: str) -> None:
    closed: list[int] = []

    class Open:
        size = 5

        def has(self, index: int) -> bool:
            return index == 0

        async def open(self) -> Blob:
            raise NotFound("BLOB_UNKNOWN", "nobody opens it here")

        def close(self) -> None:
            closed.append(1)

    haves = Haves()
    partial: Partial = Open()
    haves.begin(A, 5, [0], partial)
    assert haves.partial(A) is partial
    assert haves.partial(B) is None
    endings: dict[str, Callable[[], None]] = {
        "full": lambda: haves.full(A),
        "drop": lambda: haves.drop(A),
        "begin": lambda: haves.begin(A, 5),
        "close": haves.close,
    }
    endings[how]()
    assert haves.partial(A) is None
    assert closed == [1]


def test_when_who_may_have_what_has_changed_each_watcher_is_told() -> None:
    haves, allowed = Haves(), {A, B}
    haves.begin(A, 20, [0])
    haves.begin(B, 20, [0])
    watcher = haves.watch(watch(0, A, B), lambda digest: digest in allowed)
    told = Told({0: 20, 1: 20})
    told.take(watcher.news())
    assert set(told.pieces) == {0, 1}
    allowed.remove(A)
    assert not watcher.pending
    haves.look_again()
    told.take(watcher.news())
    assert set(told.pieces) == {1}
    allowed.add(A)
    haves.look_again()
    told.take(watcher.news())
    assert told.pieces == {0: {0}, 1: {0}}
