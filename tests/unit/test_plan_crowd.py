"""The plan in a crowd: the tracker's role, who is asked, in which order."""

from __future__ import annotations

import random

import pytest

from p2pregistry.pull.commands import Cancel, Command, Drop, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.plan import Plan

MIB = 1 << 20


def plan(count: int, *, limits: Limits | None = None, rest: bool = True, seed: int = 1) -> Plan:
    """A plan whose first look-up is under way."""
    p = Plan(count, now=0.0, randrange=random.Random(seed).randrange, limits=limits, rest=rest)
    assert p.begin(0.0) == ([LookUp()] if rest else [])
    return p


def asks(commands: list[Command], source: str | None = None) -> list[Request]:
    return [c for c in commands if isinstance(c, Request) and source in (None, c.source)]


def nexts(commands: list[Command]) -> list[Next]:
    return [c for c in commands if isinstance(c, Next)]


def alone(p: Plan) -> list[Request]:
    """There is nobody but the tracker, as it says itself or as the look-up ends: the requests that are out then."""
    commands = p.joined("tracker", "tracker", 0.0)
    if not nexts(commands):
        return asks(commands)
    (ask,) = nexts(commands)
    p.chosen(ask.id, 0, 0.0)
    return [Request(ask.id, "tracker", 0, 1), *asks(p.looked_up(0.0))]


def maps(count: int, *indexes: int) -> bytes:
    return bytes(i in indexes for i in range(count))


# -- the tracker's role -----------------------------------------------------------------------------------------


def test_in_a_crowd_the_tracker_chooses_one_piece_at_a_time() -> None:
    p = plan(10)
    p.crowd(5, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(10))
    commands = p.joined("tracker", "tracker", 0.0)
    (ask,) = nexts(commands)
    assert asks(commands) == []
    assert ask.wanted == b"\1" * 10
    assert nexts(p.tick(0.1)) == []
    (again,) = nexts(p.chosen(ask.id, 4, 0.2) + p.arrived(ask.id, 4, MIB, 0.3))
    assert again.wanted == maps(10, *(i for i in range(10) if i != 4))
    p.check()


def test_the_tracker_is_not_asked_for_what_a_neighbour_has() -> None:
    p = plan(4)
    p.crowd(5, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(4, 1, 2))
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0))
    assert ask.wanted == maps(4, 0, 3)


def test_a_piece_that_is_not_wanted_any_more_is_cancelled() -> None:
    p = plan(3)
    p.crowd(5, 0, 0.0)
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0))
    p.joined("a", "peer", 0.0, have=maps(3))
    (request,) = asks(p.has("a", [1], 0.1))
    p.arrived(request.id, 1, MIB, 0.2)
    assert Cancel(ask.id) in p.chosen(ask.id, 1, 0.3)
    p.check()


def test_with_nothing_to_send_the_tracker_is_asked_again_after_the_time_it_says() -> None:
    p = plan(3)
    p.crowd(5, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(3))
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0))
    assert nexts(p.nothing(ask.id, 2.0, 0.1)) == []
    assert nexts(p.tick(2.0)) == []
    assert p.wake_at(2.0) == pytest.approx(2.0 + 0.1, abs=0.05)
    assert nexts(p.tick(2.2))


def test_a_tracker_that_has_never_anything_is_asked_outright_in_the_end() -> None:
    p = plan(3, limits=Limits(starved=5.0))
    p.crowd(5, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(3))
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0))
    p.nothing(ask.id, 100.0, 0.0)
    assert asks(p.tick(4.0)) == []
    assert len(asks(p.tick(6.0), "tracker")) == 1


def test_where_nobody_else_is_the_tracker_is_an_ordinary_source_with_several_requests_out() -> None:
    p = plan(50)
    p.crowd(0, 0, 0.0)
    first = alone(p)
    assert len(first) > 1
    now = 0.01
    for request in first:
        p.arrived(request.id, request.first, MIB, now)
    assert p._asks.flying > len(first), "more, once its rate is known"


def test_a_crowd_that_turns_up_late_ends_the_ordinary_role_and_one_that_goes_brings_it_back() -> None:
    p = plan(50)
    first, *others = alone(p)
    assert others
    commands = p.crowd(3, 0, 0.1)
    assert [c.id for c in commands if isinstance(c, Cancel)] == [r.id for r in others], "it is the tracker's choice now"
    commands = p.joined("a", "peer", 0.1, have=maps(50)) + p.arrived(first.id, first.first, MIB, 0.2)
    assert asks(commands, "tracker") == []
    (ask,) = nexts(commands)
    p.check()
    p.left("a", 0.3)
    assert asks(p.crowd(0, 0, 0.3), "tracker"), "alone again"
    p.nothing(ask.id, 9.0, 0.3)
    p.check()


def test_when_the_last_holder_leaves_the_tracker_chooses_again() -> None:
    p = plan(20)
    p.crowd(4, 1, 0.0)
    p.joined("holder", "peer", 0.0)
    p.joined("a", "peer", 0.0, have=maps(20))
    assert nexts(p.joined("tracker", "tracker", 0.0)) == []
    assert nexts(p.left("holder", 0.1))
    assert asks(p.complete("a", 0.2), "a")


def test_a_crowd_of_which_nobody_can_be_reached_is_none() -> None:
    p = plan(20, limits=Limits(crowd_grace=1.0))
    p.crowd(4, 0, 0.0)
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0) + p.looked_up(0.0))
    commands = p.chosen(ask.id, 0, 0.5) + p.arrived(ask.id, 0, MIB, 1.5)
    assert len(asks(commands, "tracker")) > 1


def test_before_anything_is_known_the_tracker_sends_a_little() -> None:
    p = plan(20)
    p.reader(1, 5, 0.0)
    commands = p.joined("tracker", "tracker", 0.0)
    (ask,) = nexts(commands)
    assert asks(commands) == []
    assert ask.wanted == maps(20, *range(5, 13)), "one of those that the reader waits for"
    assert p.chosen(ask.id, 5, 0.05) == []
    assert p.tick(0.1) == []
    small = plan(3)
    assert [(r.first, r.count) for r in asks(small.joined("tracker", "tracker", 0.0))] == [(0, 1)]


def test_a_tracker_that_never_answers_a_question_costs_no_more_than_time() -> None:
    p = plan(3, limits=Limits(silence=1.0, crowd_silence=1.0))
    p.crowd(5, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(3))
    (ask,) = nexts(p.joined("tracker", "tracker", 0.0))
    assert asks(p.tick(6.0)) == [], "it may have a long queue"
    assert asks(p.tick(11.0), "tracker"), "asked outright as well"
    assert Cancel(ask.id) in p.tick(31.0)
    assert p.nothing(ask.id, 1.0, 31.1) == []
    p.check()


# -- which piece ------------------------------------------------------------------------------------------------


def test_what_spare_sources_have_makes_a_piece_less_rare() -> None:
    p = plan(40, limits=Limits(sources=1, least=1))
    p.crowd(9, 0, 0.0)
    p.joined("busy", "peer", 0.0, have=maps(40))
    for n in range(4):
        p.joined(f"spare{n}", "peer", 0.0, have=bytes(i != 27 for i in range(40)))
    assert p._asks.pieces.rarest((1 << 40) - 1) == 27


def test_ties_are_drawn_at_random() -> None:
    def first(seed: int) -> int:
        p = plan(100, seed=seed)
        p.crowd(9, 0, 0.0)
        return asks(p.joined("a", "peer", 0.0, have=b"\1" * 100))[0].first

    assert len({first(seed) for seed in range(30)}) > 20


def test_a_reader_gets_what_it_waits_for_first_and_the_rest_of_the_window_stays_small() -> None:
    p = plan(200, limits=Limits(crowd_window=2, crowd_source=6))
    p.crowd(9, 0, 0.0)
    p.reader(1, 50, 0.0)
    order = [request.first for request in asks(p.joined("a", "peer", 0.0, have=b"\1" * 200))]
    assert order[:2] == [50, 51]
    assert sorted(order[2:]) != list(range(52, 52 + len(order) - 2))


def test_readers_at_different_places_are_all_served() -> None:
    p = plan(1000)
    for reader, position in enumerate((100, 500, 900)):
        p.reader(reader, position, 0.0)
    queue = asks(p.joined("a", "peer", 0.0))
    got: list[int] = []
    now = 0.0
    while len(got) < 18:
        request = queue.pop(0)
        for index in range(request.first, request.first + request.count):
            now += 0.2
            got.append(index)
            queue += asks(p.arrived(request.id, index, MIB, now))
    for position in (100, 500, 900):
        assert sum(position <= index < position + 8 for index in got) >= 5


def test_lazy_pulling_fetches_what_readers_want_and_no_more() -> None:
    p = plan(100, rest=False)
    assert p.idle
    assert asks(p.joined("a", "peer", 0.0)) == []
    assert p.wake_at(0.0) is None
    queue = asks(p.reader(1, 30, 0.0, end=33)) + asks(p.reader(2, 70, 0.0, end=72))
    got: set[int] = set()
    while queue:
        request = queue.pop(0)
        for index in range(request.first, request.first + request.count):
            got.add(index)
            queue += asks(p.arrived(request.id, index, MIB, 0.1 * len(got)))
    assert got == {30, 31, 32, 70, 71}
    assert p.idle
    assert not any(isinstance(c, GiveUp) for c in p.left("a", 1.0) + p.tick(500.0)), "nothing is wanted"


def test_ranges_that_readers_want_come_before_the_rest() -> None:
    p = plan(500, limits=Limits(window=1, crowd_window=1, least=4, crowd_source=8))
    p.crowd(3, 0, 0.0)
    p.reader(1, 400, 0.0, end=404)
    first = [request.first for request in asks(p.joined("a", "peer", 0.0, have=b"\1" * 500))]
    assert sorted(first) == [400, 401, 402, 403]


def test_a_flight_that_pauses_asks_for_nothing_more_and_goes_on_when_told() -> None:
    p = plan(50)
    queue = asks(p.joined("a", "peer", 0.0))
    assert p.follow_rest(False, 0.1) == []
    assert [asks(p.arrived(r.id, r.first, MIB, 0.2)) for r in queue] == [[]] * len(queue)
    assert p.wake_at(0.3) is None
    assert p.idle
    assert asks(p.follow_rest(True, 100.0))


# -- who is asked -----------------------------------------------------------------------------------------------


def test_more_sources_may_join_than_are_used_at_a_time() -> None:
    p = plan(400, limits=Limits(least=40))
    p.crowd(30, 0, 0.0)
    for n in range(30):
        p.joined(f"s{n}", "peer", 0.0, have=b"\1" * 400)
    assert len({out.request.source for out in p._asks.outs.values()}) == 10
    p.check()


def test_a_slow_source_is_left_for_a_quicker_one() -> None:
    p = plan(300, limits=Limits(sources=2, least=2, least_tail=2))
    p.crowd(5, 0, 0.0)
    delay = {"slow": 12.0, "quick": 0.4, "other": 0.8}
    for name in delay:
        p.joined(name, "peer", 0.0, have=b"\1" * 300)
    due: list[tuple[float, Request]] = [(delay[o.request.source], o.request) for o in p._asks.outs.values()]
    count = dict.fromkeys(delay, 0)
    while sum(count.values()) < 150:
        due.sort(key=lambda entry: entry[0])
        now, request = due.pop(0)
        count[request.source] += 1
        due += [(now + delay[r.source], r) for r in asks(p.arrived(request.id, request.first, MIB, now))]
    assert count["quick"] > 3 * count["slow"]
    assert count["slow"] >= 1, "each is tried"


def test_a_source_without_anything_that_is_missing_is_of_no_use() -> None:
    p = plan(20, limits=Limits(sources=1))
    p.crowd(5, 0, 0.0)
    assert asks(p.joined("empty", "peer", 0.0, have=maps(20))) == []
    assert asks(p.joined("full", "peer", 0.0, have=b"\1" * 20), "full")


def test_neighbours_are_asked_and_a_far_source_only_for_what_they_lack() -> None:
    p = plan(10)
    p.crowd(5, 0, 0.0)
    p.joined("near", "peer", 0.0, have=bytes(i < 5 for i in range(10)), near=True)
    far = asks(p.joined("far", "peer", 0.0, have=b"\1" * 10), "far")
    assert far
    assert all(request.first >= 5 for request in far)


def test_a_far_source_helps_when_the_neighbours_are_too_slow() -> None:
    p = plan(100, limits=Limits(review=1.0))
    p.crowd(5, 0, 0.0)
    (slow,) = asks(p.joined("near", "peer", 0.0, have=b"\1" * 100, near=True))
    p.joined("far", "peer", 0.0, have=b"\1" * 100)
    (slow,) = asks(p.arrived(slow.id, slow.first, MIB, 10.0), "near")
    (probe,) = asks(p.tick(11.0), "far")  # one now and then, to know what it would be like
    p.arrived(probe.id, probe.first, MIB, 11.1)
    assert asks(p.tick(13.0), "far")
    assert asks(p.arrived(slow.id, slow.first, MIB, 20.0))


def test_a_piece_in_a_long_queue_is_asked_of_a_new_holder_by_some() -> None:
    moved = 0
    for seed in range(40):
        p = plan(50, seed=seed)
        p.crowd(9, 0, 0.0)
        p.joined("a", "peer", 0.0, have=maps(50, 7))
        p.joined("b", "peer", 0.0, have=maps(50))
        commands = p.has("b", [7], 1.0)
        moved += bool(asks(commands, "b"))
        assert len([c for c in commands if isinstance(c, Cancel)]) == len(asks(commands, "b"))
        p.check()
    assert 10 <= moved <= 30, "half of those who wait, so that both queues are alike"


# -- faults -----------------------------------------------------------------------------------------------------


def test_a_source_that_has_not_what_it_says_is_not_believed_and_dropped_after_a_few() -> None:
    p = plan(30, limits=Limits(lies=3))
    p.crowd(3, 0, 0.0)
    (request,) = asks(p.joined("liar", "peer", 0.0, have=b"\1" * 30))
    p.joined("other", "peer", 0.0, have=maps(30))
    asked = {request.first}
    for _ in range(2):
        (request,) = asks(p.lied(request.id, 0.1), "liar")
        assert request.first not in asked
        asked.add(request.first)
        p.check()
    (drop,) = [c for c in p.lied(request.id, 0.2) if isinstance(c, Drop)]
    assert drop.source == "liar"
    assert not drop.ban
    p.check()


def test_a_holder_that_lacks_a_piece_is_a_holder_no_more() -> None:
    p = plan(5)
    p.crowd(3, 1, 0.0)
    first = asks(p.joined("a", "peer", 0.0))[0]
    p.joined("tracker", "tracker", 0.0)
    assert nexts(p.lied(first.id, 0.1)), "the tracker is needed"
    p.check()


def test_a_peer_that_left_may_come_again_and_one_that_is_banned_may_not() -> None:
    p = plan(9)
    p.joined("a", "peer", 0.0, have=maps(9, 1))
    assert p.left("a", 0.1) == []
    p.check()
    (request,) = asks(p.joined("a", "peer", 0.2, have=maps(9, 1, 2)))[:1]
    p.check()
    assert any(isinstance(c, Drop) and c.ban for c in p.bad(request.id, request.first, 0.3))
    assert p.joined("a", "peer", 0.4) == []
    assert "a" not in p._asks.pool.all


def test_news_of_sources_that_are_not_known_is_no_error() -> None:
    p = plan(4)
    assert p.has("nobody", [1], 0.0) == []
    assert p.complete("nobody", 0.0) == []
    p.joined("a", "peer", 0.0, have=maps(4))
    assert asks(p.complete("a", 0.1), "a")
    assert p.complete("a", 0.2) == []
    assert p.has("a", [1], 0.2) == []
    p.heard(99, 0.3)
    assert p.chosen(99, 1, 0.3) == [Cancel(99)]
    p.check()


def test_a_tracker_with_a_long_queue_is_not_given_up_before_the_first_byte() -> None:
    p = plan(30)
    (request, *_) = alone(p)
    for second in range(1, 30):
        assert not any(isinstance(c, Cancel | GiveUp) for c in p.tick(float(second)))
    p.arrived(request.id, request.first, MIB, 30.0)
    assert "tracker" in p._asks.pool.all


def test_a_crowded_server_is_given_time() -> None:
    """Whole pieces in a queue: silence is no fault there, but nobody waits for ever."""
    p = plan(40, limits=Limits(silence=3.0, crowd_silence=4.0))
    p.crowd(9, 0, 0.0)
    (request,) = asks(p.joined("a", "peer", 0.0, have=maps(40, 7)))
    assert Cancel(request.id) not in p.tick(6.0)
    assert Cancel(request.id) in p.tick(13.0)


def test_the_loss_of_the_last_full_source_is_answered_with_a_look_up_at_once_and_only_one() -> None:
    p = plan(9)
    (request, *_) = asks(p.joined("tracker", "tracker", 0.0) + p.looked_up(0.0))
    p.arrived(request.id, request.first, MIB, 0.1)
    out = next(iter(p._asks.outs))
    commands = p.failed(out, "broken", 0.2)
    assert LookUp() in commands
    assert LookUp() not in p.tick(0.25)
    assert not any(isinstance(c, GiveUp | LookUp) for c in p.looked_up(0.3) + p.tick(0.4))


def test_a_crowd_without_any_source_gives_up_in_the_end() -> None:
    p = plan(9, limits=Limits(crowd_patience=10.0))
    p.crowd(3, 0, 0.0)
    p.joined("a", "peer", 0.0, have=maps(9))
    p.looked_up(0.0)
    assert not any(isinstance(c, GiveUp) for c in p.tick(5.0) + p.looked_up(5.1))
    assert any(isinstance(c, GiveUp) for c in p.looked_up(11.0) + p.tick(11.0))


def test_a_lone_node_fills_the_line_before_it_knows_how_fast_it_is() -> None:
    told, found = plan(100), plan(100)
    told.crowd(0, 0, 0.0)
    assert [request.count for request in alone(told)] == [4, 4], "the tracker says so: two runs at once"
    out = alone(found)
    assert [request.count for request in out[1:]] == [4, 3], "with the piece the tracker chose, two runs"
    assert {i for request in out for i in range(request.first, request.first + request.count)} == set(range(8))
