"""Which piece the tracker sends next to a crowd."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.pull.seeding import FORGET, LOST, Seeding


def seeding(count: int, seed: int = 1) -> Seeding:
    return Seeding(count, randrange=random.Random(seed).randrange)


def wants(count: int, *, without: set[int] | None = None) -> bytes:
    return bytes(i not in (without or set()) for i in range(count))


def test_each_piece_is_sent_once_before_any_is_sent_again() -> None:
    s = seeding(50)
    sent = [s.choose(wants(50), i / 10)[0] for i in range(50)]
    assert sorted(i for i in sent if i is not None) == list(range(50))


def test_the_first_pieces_go_first_so_that_readers_can_follow() -> None:
    s = seeding(400)
    sent = [s.choose(wants(400), i / 10)[0] for i in range(100)]
    assert all(index is not None and index < place + 8 for place, index in enumerate(sent))


def test_only_wanted_pieces_are_sent() -> None:
    s = seeding(4)
    assert s.choose(bytes([0, 0, 1, 0]), 0.0) == (2, 0.0)
    index, wait = s.choose(bytes(4), 0.0)
    assert index is None
    assert wait > 0


def test_what_was_just_sent_is_on_its_way() -> None:
    s = seeding(1)
    assert s.choose(b"\1", 0.0) == (0, 0.0)
    index, wait = s.choose(b"\1", 1.0)
    assert index is None
    assert 0 < wait <= LOST


def test_a_piece_that_nobody_shows_any_more_is_sent_again() -> None:
    """It was sent to a node that died: all the others want it still."""
    s = seeding(3)
    for _ in range(3):
        s.choose(wants(3), 0.0)
    have: set[int] = {0, 1}  # the others have what they were sent; 2 is lost
    now = 0.0
    while True:
        now += 1.0
        index, _ = s.choose(wants(3, without=have), now)
        if index is not None:
            break
    assert index == 2
    assert LOST <= now <= 3 * LOST


def test_a_piece_that_somebody_shows_is_left_to_the_crowd() -> None:
    s = seeding(2)
    s.choose(bytes([1, 0]), 0.0)
    for second in range(1, 60):
        s.choose(bytes([0, 0]), float(second))  # one who has it
        assert s.choose(bytes([1, 0]), second + 0.5)[0] is None  # and one who waits for a neighbour


def test_a_sending_that_broke_off_does_not_count() -> None:
    s = seeding(2)
    (first, _), (second, _) = s.choose(wants(2), 0.0), s.choose(wants(2), 0.0)
    assert {first, second} == {0, 1}
    assert first is not None
    s.returned(first)
    assert s.choose(wants(2), 0.1) == (first, 0.0)
    s.returned(first)
    s.returned(first)  # told twice: no harm
    assert s.choose(wants(2), 0.2) == (first, 0.0)


def test_a_crowd_that_comes_later_gets_everything_again() -> None:
    s = seeding(10)
    for now in (1.0, 2.0 + FORGET):
        assert {s.choose(wants(10), now)[0] for _ in range(10)} == set(range(10))


def crowd(nodes: int, count: int, seed: int, dead: int = 0) -> tuple[int, list[set[int]]]:
    """Nodes that ask one after the other in a random order, get what they are sent, and pass on one piece each in every
    round; ``dead`` of them die with what they have. How many pieces the tracker sent, and what each node has."""
    rng = random.Random(seed)
    s = Seeding(count, randrange=rng.randrange)
    have: list[set[int]] = [set() for _ in range(nodes)]
    alive = list(range(nodes))
    ready = [0.0] * nodes
    sent, now = 0, 0.0
    while any(len(have[node]) < count for node in alive) and now < 10_000:
        now += 0.2
        if dead and now > count * 0.1:
            dead -= 1
            alive.pop(rng.randrange(len(alive)))
        rng.shuffle(alive)
        for node in alive:  # the tracker's link carries one piece in this time
            if ready[node] <= now and len(have[node]) < count:
                index, wait = s.choose(wants(count, without=have[node]), now)
                ready[node] = now + wait
                if index is not None:
                    assert index not in have[node]
                    have[node].add(index)
                    sent += 1
                    break
        for node in alive:
            other = have[rng.choice(alive)] - have[node]
            if other:
                have[node].add(rng.choice(sorted(other)))
    return sent, [have[node] for node in alive]


@pytest.mark.parametrize("nodes", [2, 5, 16, 50])
def test_a_crowd_that_passes_on_takes_about_one_image(nodes: int) -> None:
    count = 100
    sent, have = crowd(nodes, count, seed=3)
    assert all(len(pieces) == count for pieces in have)
    assert sent <= 1.2 * count


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(1, 40), st.integers(), st.integers(0, 5))
def test_whatever_the_order_and_whoever_dies_every_node_gets_everything(
    nodes: int, count: int, seed: int, dead: int
) -> None:
    dead = min(dead, nodes - 1)
    sent, have = crowd(nodes, count, seed, dead)
    assert all(len(pieces) == count for pieces in have)
    assert sent <= 2 * count + (dead + 1) * count


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(0, 2**70), st.floats(0, 8), st.integers(0, 3)), max_size=60),
    st.integers(),
)
def test_any_questions_get_a_wanted_piece_or_a_time_to_wait(
    count: int, questions: list[tuple[int, float, int]], seed: int
) -> None:
    s, now, last = seeding(count, seed), 0.0, None
    for bits, step, broke in questions:
        now += step
        wanted = bytes(bits >> i & 1 for i in range(count))
        index, wait = s.choose(wanted, now)
        if index is None:
            assert wait > 0
        else:
            assert wanted[index]
            assert wait == 0.0
            last = index
        if broke == 0 and last is not None:
            s.returned(last)


def test_a_bitmap_that_is_too_long_or_too_short_is_no_error() -> None:
    s = seeding(3)
    assert s.choose(b"\1\1\1\1\1", 0.0)[0] in (0, 1, 2)
    assert s.choose(b"", 0.0)[0] is None
