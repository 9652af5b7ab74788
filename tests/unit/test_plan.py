"""The plan, told scripts of events."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.plan import Plan

MIB = 1 << 20


def plan(count: int, *, limits: Limits | None = None, have: frozenset[int] = frozenset()) -> Plan:
    return Plan(count, now=0.0, randrange=random.Random(1).randrange, limits=limits, have=have)


def asks(commands: list[Command], source: str | None = None) -> list[Request]:
    return [c for c in commands if isinstance(c, Request) and source in (None, c.source)]


def test_a_lone_tracker_is_asked_one_piece_while_nobody_knows_of_holders_and_freely_after() -> None:
    p = plan(100)
    assert p.begin(0.0) == [LookUp()]
    (ask,) = p.joined("tracker", "tracker", 0.0)
    assert isinstance(ask, Next), "it chooses, so that those who start together begin with different pieces"
    assert p.chosen(ask.id, 0, 0.0) == []
    more = asks(p.looked_up(0.01))
    assert more, "with no holders the tracker is an ordinary source"
    # once its rate is known it gets runs of pieces
    fast = asks(p.arrived(ask.id, 0, MIB, 0.02))
    assert any(r.count > 1 for r in fast)


def test_with_a_holder_the_tracker_is_not_asked_at_all() -> None:
    p = plan(50)
    p.begin(0.0)
    p.joined("peer-a", "peer", 0.0)
    p.looked_up(0.0)
    assert asks(p.joined("tracker", "tracker", 0.0)) == []
    now, open_requests = 0.0, [out.request for out in p._asks.pool.all["peer-a"].out.values()]
    tracker_pieces = 0
    while p.pieces.left:
        request = open_requests.pop(0)
        for index in range(request.first, request.first + request.count):
            now += 0.01
            commands = p.arrived(request.id, index, MIB, now)
            open_requests += asks(commands, "peer-a")
            tracker_pieces += sum(r.count for r in asks(commands, "tracker"))
            p.check()
    assert tracker_pieces == 0


def test_a_piece_that_a_holder_fails_to_deliver_is_taken_over_by_the_tracker() -> None:
    p = plan(2, limits=Limits(silence=10.0))
    p.begin(0.0)
    p.joined("peer-a", "peer", 0.0)
    p.looked_up(0.0)
    p.joined("tracker", "tracker", 0.0)
    assert asks(p.tick(1.0), "tracker") == []
    assert asks(p.tick(5.0), "tracker"), "late by any measure"


def test_a_silent_source_is_set_back_and_dropped_after_its_strikes() -> None:
    p = plan(4, limits=Limits(strikes=2))
    p.begin(0.0)
    p.joined("peer-a", "peer", 0.0)
    p.looked_up(0.0)
    request = next(iter(p._asks.pool.all["peer-a"].out))
    p.arrived(request, 0, MIB, 0.1)  # somebody has begun to read, so the plan is patient
    commands = p.tick(3.5)
    assert any(isinstance(c, Cancel) for c in commands)
    assert asks(commands) == []
    now = 10.0
    assert asks(p.tick(now), "peer-a"), "it gets a second chance"
    assert any(isinstance(c, Drop) for c in p.tick(now + 3.5))


def test_a_bad_piece_bans_the_source_that_sent_it_and_only_that_one() -> None:
    p = plan(10)
    p.begin(0.0)
    a = asks(p.joined("peer-a", "peer", 0.0))
    p.joined("peer-b", "peer", 0.0)
    commands = p.bad(a[0].id, a[0].first, 0.1)
    assert [c.source for c in commands if isinstance(c, Drop) and c.ban] == ["peer-a"]
    assert p.pieces.free(a[0].first), "it may be asked for elsewhere at once"
    assert "peer-a" not in p._asks.pool.all
    p.check()


def test_a_busy_source_is_left_alone_for_as_long_as_it_says_without_a_strike() -> None:
    p = plan(4)
    p.begin(0.0)
    (request, *_) = asks(p.joined("peer-a", "peer", 0.0))
    p.looked_up(0.0)
    p.failed(request.id, "busy", 0.0, retry_after=5.0)
    assert p._asks.pool.all["peer-a"].strikes == 0
    assert p._asks.pool.all["peer-a"].resume == 5.0


def test_a_miss_is_told_at_once() -> None:
    p = plan(3)
    p.begin(0.0)
    assert [type(c) for c in p.looked_up(0.05)] == [GiveUp]


def test_once_bytes_have_flowed_a_reader_gets_patience() -> None:
    p = plan(3, limits=Limits(patience=60))
    p.begin(0.0)
    (request, *_) = asks(p.joined("peer-a", "peer", 0.0))
    p.looked_up(0.0)
    p.arrived(request.id, request.first, MIB, 0.1)
    assert not any(isinstance(c, GiveUp) for c in p.left("peer-a", 0.2))
    p.looked_up(0.3)
    assert any(isinstance(c, GiveUp) for c in p.tick(70.0) + p.looked_up(70.0))


def test_readers_are_served_in_order_just_ahead_of_them() -> None:
    p = plan(1000)
    p.begin(0.0)
    p.reader(1, 500, 0.0)
    first = asks(p.joined("peer-a", "peer", 0.0))
    assert [r.first for r in first] == [500, 501]


def test_partial_holders_are_asked_for_the_rarest_piece() -> None:
    p = plan(40)
    p.begin(0.0)
    most = bytes(i != 27 for i in range(40))
    for name in ("a", "b"):
        p.joined(name, "peer", 0.0, have=most)
        p.check()
    lone = asks(p.joined("c", "peer", 0.0, have=bytes([1] * 40)), "c")
    assert lone[0].first == 27


def test_the_end_is_told_once_and_what_is_out_is_cancelled() -> None:
    p = plan(1)
    p.begin(0.0)
    (a,) = asks(p.joined("peer-a", "peer", 0.0))
    (b,) = asks(p.joined("peer-b", "peer", 0.0))
    assert b.first == a.first == 0, "the last piece is asked of an idle source too"
    commands = p.arrived(a.id, 0, MIB, 0.1)
    assert Finished() in commands
    assert Cancel(b.id) in commands
    assert p.arrived(b.id, 0, MIB, 0.2) == []


EVENTS = ["arrive", "fail", "busy", "bad", "missing", "join", "leave", "tick", "looked", "read", "have"]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 40), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 10**6)), max_size=120), st.integers()
)
def test_whatever_happens_the_invariants_hold_and_limits_are_kept(
    count: int, events: list[tuple[str, int]], seed: int
) -> None:
    limits = Limits(in_flight=8 * MIB, per_source=4 * MIB)
    p = Plan(count, now=0.0, randrange=random.Random(seed).randrange, limits=limits)
    out: dict[int, Request] = {}
    now = 0.0

    def obey(commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Request):
                assert command.first >= 0
                assert command.first + command.count <= count
                out[command.id] = command
            elif isinstance(command, Cancel):
                out.pop(command.id, None)
            elif isinstance(command, Drop):
                for id_ in [i for i, r in out.items() if r.source == command.source]:
                    del out[id_]

    obey(p.begin(now))
    for event, number in events:
        now += (number % 1000) / 500
        request = out[sorted(out)[number % len(out)]] if out else None
        match event:
            case "arrive" if request:
                obey(p.arrived(request.id, request.first + number % request.count, MIB, now))
            case "fail" if request:
                del out[request.id]
                obey(p.failed(request.id, "broken", now))
            case "busy" if request:
                del out[request.id]
                obey(p.failed(request.id, "busy", now, retry_after=number % 7))
            case "bad" if request:
                obey(p.bad(request.id, request.first, now))
            case "missing" if request:
                obey(p.missing(request.source, now))
            case "join":
                have = None if number % 3 else bytes((number >> i) & 1 for i in range(count))
                kind = "tracker" if number % 5 == 0 else "peer"
                obey(p.joined(f"s{number % 8}", kind, now, have=have))
            case "leave":
                obey(p.left(f"s{number % 8}", now))
                for id_ in [i for i, r in out.items() if r.source == f"s{number % 8}"]:
                    del out[id_]
            case "tick":
                obey(p.tick(now))
            case "looked":
                obey(p.looked_up(now))
            case "read":
                obey(p.reader(number % 3, number % count, now))
            case "have":
                obey(p.has(f"s{number % 8}", [number % count], now))
        p.check()
        flying = sum(source.pieces_out for source in p._asks.pool.all.values())
        assert flying * MIB <= limits.in_flight + limits.per_source
        wake = p.wake_at(now)
        assert wake is None or wake > now


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers())
def test_with_one_honest_source_left_every_piece_arrives(count: int, liars: int, seed: int) -> None:
    rng = random.Random(seed)
    p = Plan(count, now=0.0, randrange=rng.randrange)
    now, queue, finished = 0.0, [], False
    commands = p.begin(now)
    for n in range(liars):
        commands += p.joined(f"liar{n}", "peer", now)
    commands += p.joined("honest", "tracker", now) + p.looked_up(now)
    for _ in range(20_000):
        for command in commands:
            if isinstance(command, Request):
                queue.append(command)
            elif isinstance(command, Cancel):
                queue = [r for r in queue if r.id != command.id]
            finished = finished or isinstance(command, Finished)
        if finished:
            break
        now += 0.05
        if not queue:
            commands = p.tick(now) + (p.looked_up(now) if rng.random() < 0.1 else [])
            continue
        request = queue.pop(rng.randrange(len(queue)))
        commands = []
        if request.source.startswith("liar"):
            commands += (
                p.bad(request.id, request.first, now) if rng.random() < 0.5 else p.failed(request.id, "cut", now)
            )
        else:
            for index in range(request.first, request.first + request.count):
                commands += p.arrived(request.id, index, MIB, now)
    assert finished
