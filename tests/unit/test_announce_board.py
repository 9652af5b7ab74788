"""Who a node is told of."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.messages import Crowd
from tracker.board import Board, Member, Pace

A, B, C = b"a", b"b", b"c"


def board(seed: int = 1) -> Board:
    return Board(randrange=random.Random(seed).randrange)


def member(name: str, want: bytes | tuple[bytes, ...] = (), hold: tuple[bytes, ...] = (), **more: str) -> Member:
    wanted = frozenset((want,) if isinstance(want, bytes) else want)
    return Member(name, f"http://{name}", more.get("swarm", "s"), more.get("zone", ""), wanted, frozenset(hold))


def full(wanting: int, holding: int, zone: str = "") -> Board:
    on = board()
    for number in range(wanting):
        on.put(member(f"w{number}", A, zone=zone), 100)
    for number in range(holding):
        on.put(member(f"h{number}", (), (A,), zone=zone), 100)
    return on


@pytest.mark.parametrize(
    ("wanting", "holding", "wanters", "holders"),
    [
        (100, 0, 30, 0),
        (0, 100, 0, 30),
        (100, 1, 29, 1),
        (1, 100, 1, 29),
        (100, 100, 15, 15),
        (3, 4, 3, 4),
        (0, 0, 0, 0),
    ],
)
def test_holders_and_wanters_are_both_named(wanting: int, holding: int, wanters: int, holders: int) -> None:
    found = full(wanting, holding).peers("me", "s", "", {A: 0}, 30)
    assert (sum(one.want == [0] for one in found), sum(one.hold == [0] for one in found)) == (wanters, holders)


def test_every_digest_has_its_share() -> None:
    on = full(100, 0)
    for key in (B, C):
        for number in range(3):
            on.put(member(f"{key.decode()}{number}", (), (key,)), 100)
    found = on.peers("me", "s", "", {A: 0, B: 1, C: 2}, 30)
    assert len(found) == 30
    assert Counter(tuple(one.hold) for one in found) == {(): 24, (1,): 3, (2,): 3}


def test_who_has_to_do_with_several_digests_counts_for_each() -> None:
    on = board()
    keys = tuple(bytes([number]) for number in range(20))
    for number in range(40):
        on.put(member(f"both{number}", keys[:10], keys[10:]), 100)
    for number in range(5):
        on.put(member(f"rare{number}", (), keys[:1]), 100)
    found = on.peers("me", "s", "", {key: position for position, key in enumerate(keys)}, 30)
    assert sum(one.peer_id.startswith("rare") for one in found) == 5
    assert all(sorted(one.want) == list(range(10)) for one in found if one.peer_id.startswith("both"))


def test_the_asker_is_never_named() -> None:
    on = full(5, 0)
    assert {one.peer_id for one in on.peers("w3", "s", "", {A: 0}, 30)} == {"w0", "w1", "w2", "w4"}
    assert on.crowd("s", A, "w3") == Crowd(4, 0)
    assert on.crowd("s", A, "me") == Crowd(5, 0)


def test_the_own_zone_comes_first_but_not_alone() -> None:
    on = full(200, 200, zone="far")
    for number in range(200):
        on.put(member(f"nw{number}", A, zone="near"), 100)
        on.put(member(f"nh{number}", (), (A,), zone="near"), 100)
    zones = Counter(one.zone for one in on.peers("me", "s", "near", {A: 0}, 30))
    assert zones["near"] >= 20
    assert zones["far"] >= 1
    # a zone of few is named whole, and the rest come from anywhere
    on = full(200, 0, zone="far")
    for number in range(3):
        on.put(member(f"n{number}", A, zone="near"), 100)
    assert Counter(one.zone for one in on.peers("me", "s", "near", {A: 0}, 30)) == {"near": 3, "far": 27}


def test_equals_are_named_about_equally_often() -> None:
    on = full(90, 0)
    times: Counter[str] = Counter()
    for _ in range(600):
        times.update(one.peer_id for one in on.peers("me", "s", "", {A: 0}, 30))
    assert len(times) == 90
    assert 140 < min(times.values()) <= max(times.values()) < 260  # 200 each on average


def test_who_is_silent_is_gone_and_who_comes_again_stays() -> None:
    on = board()
    on.put(member("one", A), 10)
    on.put(member("two", A), 10)
    on.put(member("one", A), 20)
    on.expire(9.9)
    assert len(on) == on.wanting == 2
    on.expire(10)
    assert (len(on), on.get("two")) == (1, None)
    on.put(member("one", (), (A,)), 12)  # sooner than what it said before
    assert on.wanting == 0
    on.expire(12)
    assert len(on) == 0
    on.remove("one")
    on.put(member("one", A), 30)
    on.expire(20)
    assert len(on) == 1


# ------------------------------------------------------------------------------------------------------------ property

PEERS = st.sampled_from([f"p{number}" for number in range(6)])
KEYS = st.frozensets(st.sampled_from([A, B, C]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PEERS, st.sampled_from("st"), st.sampled_from(["", "x", "y"]), KEYS, KEYS),
        st.tuples(st.just("remove"), PEERS),
        st.tuples(st.just("pass"), st.integers(1, 6)),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 8), st.integers(0, 3))
def test_the_board_agrees_with_a_plain_list(steps: list[tuple], limit: int, seed: int) -> None:  # type: ignore[type-arg]
    on = board(seed)
    plain: dict[str, tuple[Member, float]] = {}
    now = 0.0
    for step in steps:
        if step[0] == "put":
            _, name, swarm, zone, want, hold = step
            one = Member(name, "http://x", swarm, zone, want - hold, hold)
            on.put(one, now + 5)
            plain[name] = (one, now + 5)
        elif step[0] == "remove":
            on.remove(step[1])
            plain.pop(step[1], None)
        else:
            now += step[1]
            on.expire(now)
            plain = {name: entry for name, entry in plain.items() if entry[1] > now}
    assert len(on) == len(plain)
    assert on.wanting == sum(bool(one.want) for one, _ in plain.values())
    assert on.links == sum(len(one.want) + len(one.hold) for one, _ in plain.values())
    others = [one for one, _ in plain.values() if one.swarm == "s" and one.peer_id != "p0"]
    for key in (A, B, C):
        counts = (sum(key in one.want for one in others), sum(key in one.hold for one in others))
        assert on.crowd("s", key, "p0") == Crowd(*counts)
    asked = {A: 0, C: 1}
    found = on.peers("p0", "s", "x", asked, limit)
    able = {one.peer_id: one for one in others if (one.want | one.hold) & set(asked)}
    assert len(found) == len({one.peer_id for one in found}) == min(limit, len(able))
    for one in found:
        said = able[one.peer_id]
        assert one.want == [position for key, position in asked.items() if key in said.want]
        assert one.hold == [position for key, position in asked.items() if key in said.hold]


def test_the_pace_slows_down_when_there_are_many() -> None:
    pace = Pace(3.0, 30.0, 300)
    assert (pace.interval(True, 1, 0), pace.interval(False, 0, 1)) == (3.0, 30.0)
    assert pace.interval(True, 900, 0) == 3.0
    assert pace.interval(True, 9000, 0) == 30.0  # 9000 nodes every 30 s are 300 a second
    slow = pace.interval(False, 9000, 9000)
    assert 9000 / pace.interval(True, 9000, 9000) + 9000 / slow == pytest.approx(300)
    assert [pace.soon(wanting) for wanting in (1, 150, 3000)] == [0.5, 0.5, 10.0]
    assert pace.patience(3.0) == 10.0
    assert pace.patience(30.0) == 90.0
