"""What a node asks to be told of, and what follows from what it is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.feed.batch import Forget, Gathering, PutRepository, PutTag, Step
from p2pregistry.feed.interest import Wanted, ask
from p2pregistry.feed_messages import NOTHING, ChangesRequest, Interest
from p2pregistry.trust.records import Stamp

A, B = "acme/a", "acme/b"
ONE = Digest.of(b"one")


def interest(*repositories: str, patterns: tuple[str, ...] = ()) -> Interest:
    return Interest(frozenset(repositories), frozenset(patterns))


def tag(repository: str, name: str, number: int, digest: Digest | None = ONE) -> PutTag:
    return PutTag(repository, name, digest, Stamp(1, number), "token")


def seen(repository: str, number: int = 1) -> PutRepository:
    return PutRepository(repository, False, Stamp(1, number), "token")


def gathered(request: ChangesRequest, *steps: Step) -> Gathering:
    gathering = Gathering(request)
    for step in steps:
        gathering.add(step)
    return gathering


def test_the_repositories_that_were_asked_for_last_are_wanted() -> None:
    wanted = Wanted(lambda: ["x/*:v*"], limit=2, known=["a", "b", "c"])
    assert wanted.repositories == ["b", "c"]
    assert not wanted.use("b")
    assert wanted.use("d")
    assert wanted.repositories == ["b", "d"]
    assert wanted.interest() == interest("b", "d", patterns=("x/*:v*",))


def test_what_an_interest_lacks() -> None:
    wanted = Wanted(lambda: ["x/*:v*"], known=["a"])
    assert not wanted.lacks(interest("a", "b", patterns=("x/*:v*", "y/*:v*")))
    assert wanted.lacks(interest("a"))
    assert wanted.lacks(interest("b", patterns=("x/*:v*",)))


def test_only_what_is_not_known_up_to_the_cursor_is_fresh() -> None:
    wanted, covered = interest("a", "b", patterns=("p", "q")), interest("b", "c", patterns=("q",))
    assert ask(wanted, covered, Stamp(1, 7)) == ChangesRequest(Stamp(1, 7), wanted, interest("a", patterns=("p",)))
    assert ask(wanted, covered, NOTHING) == ChangesRequest(NOTHING, wanted)


@given(st.lists(st.sampled_from("abcdef")), st.integers(1, 4))
def test_the_interest_never_grows_beyond_its_limit(used: list[str], limit: int) -> None:
    wanted = Wanted(limit=limit)
    for name in used:
        wanted.use(name)
    last = list(dict.fromkeys(reversed(used)))[:limit]
    assert wanted.repositories == last[::-1]


def test_live_changes_say_nothing_of_what_they_do_not_name() -> None:
    gathering = gathered(ChangesRequest(Stamp(1, 3), interest(A, B)), tag(A, "v1", 4))
    assert len(gathering.take()) == 1
    ending = gathering.mark(Stamp(1, 4))
    assert not ending.hides(B, Stamp(1, 1))
    assert not ending.listed


def test_of_what_is_fresh_the_unnamed_is_gone() -> None:
    ending = gathered(ChangesRequest(Stamp(1, 3), interest(A, B), interest(B))).mark(Stamp(1, 9))
    assert ending.hides(B, Stamp(1, 9))
    assert not ending.hides(A, Stamp(1, 1))
    assert not ending.hides(B, Stamp(1, 10))  # known by something newer, whose event is still to come
    assert not ending.hides(B, Stamp(2, 1))


def test_fresh_is_so_up_to_the_first_mark_only() -> None:
    gathering = gathered(ChangesRequest(Stamp(1, 3), interest(A), interest(A)), seen(A))
    assert not gathering.mark(Stamp(1, 9)).hides(A, Stamp(1, 1))
    assert not gathering.mark(Stamp(1, 10)).hides(A, Stamp(1, 1))


def test_of_a_repository_that_came_the_unnamed_tags_are_gone() -> None:
    everything = interest(patterns=("acme/*:v*",))
    gathering = gathered(
        ChangesRequest(Stamp(1, 3), everything), tag(A, "v0", 4), seen(A, 5), tag(A, "v1", 5), tag(A, "v2", 6, None)
    )
    ending = gathering.mark(Stamp(1, 6))
    assert not ending.drops(A, "v1", Stamp(1, 5))
    assert ending.drops(A, "v0", Stamp(1, 4))
    assert ending.drops(A, "v2", Stamp(1, 4))
    assert not ending.drops(A, "v3", Stamp(1, 7))
    assert not ending.drops(A, "latest", Stamp(1, 1))  # of which nothing would have been said


def test_a_reset_begins_anew_with_everything() -> None:
    gathering = gathered(ChangesRequest(Stamp(1, 3), interest(A, B)), seen(A), tag(A, "v1", 4))
    gathering.reset()
    assert not gathering.take()
    gathering.add(seen(B, 2))
    ending = gathering.mark(Stamp(2, 9))
    assert ending.hides(A, Stamp(1, 99))
    assert not ending.hides(B, Stamp(1, 1))


def test_who_knows_nothing_is_told_everything() -> None:
    gathering = gathered(ChangesRequest(NOTHING, interest(A, B)), Forget(A, Stamp(1, 2)))
    ending = gathering.mark(Stamp(1, 9))
    assert ending.hides(B, Stamp(1, 1))
    assert not ending.hides(A, Stamp(1, 1))  # said already, with its own stamp


def test_parts_of_a_long_snapshot_are_not_forgotten_by_their_mark() -> None:
    gathering = gathered(ChangesRequest(Stamp(1, 3), interest(A), interest(A)), seen(A), tag(A, "v1", 2))
    assert len(gathering.take()) == 2
    gathering.add(tag(A, "v2", 3))
    assert len(gathering.take()) == 1
    ending = gathering.mark(Stamp(1, 9))
    assert [ending.drops(A, name, Stamp(1, 1)) for name in ("v1", "v2", "v3")] == [False, False, True]


def test_that_something_is_not_there_is_known_at_the_mark_of_a_snapshot() -> None:
    gathering = gathered(ChangesRequest(Stamp(1, 3), interest(A), interest(A)), Forget(A, Stamp(1, 0)))
    assert not gathering.take()
    assert gathering.mark(Stamp(1, 9)).hides(A, Stamp(1, 9))
