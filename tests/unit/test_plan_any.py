"""The plan under any events in any order: its invariants hold, its limits are kept, and it ends."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pregistry.pull.bits import Counts, draw, lowest, nth, pack, span, unpack
from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.pieces import Pieces
from p2pregistry.pull.plan import Plan

MIB = 1 << 20
LIMITS = Limits(in_flight=8 * MIB, per_source=4 * MIB, sources=4, crowd_patience=3.0, patience=20.0)


class AnyPlan(RuleBasedStateMachine):
    """A driver that obeys, and a world that does anything."""

    @initialize(count=st.integers(1, 60), seed=st.integers(), rest=st.booleans(), here=st.integers(0, 2**60))
    def begin(self, count: int, seed: int, rest: bool, here: int) -> None:
        have = frozenset(i for i in range(count) if here >> i & 1 and here & 1)
        self.count, self.now, self.over = count, 0.0, False
        self.here = set(have)
        self.plan = Plan(count, now=0.0, randrange=random.Random(seed).randrange, limits=LIMITS, have=have, rest=rest)
        self.open: dict[int, Request] = {}
        self.to_come: dict[int, list[int]] = {}
        self.next: Next | None = None
        self.members: set[str] = set()
        self.banned: set[str] = set()
        self.looking = False
        self.obey(self.plan.begin(0.0))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not self.over, "nothing comes after the end"
            match command:
                case Request():
                    assert command.source in self.members
                    assert 0 <= command.first < command.first + command.count <= self.count
                    assert command.id not in self.open
                    self.open[command.id] = command
                case Next():
                    assert command.source == "tracker"
                    assert self.next is None, "one question at a time"
                    assert len(command.wanted) == self.count
                    assert any(command.wanted)
                    asked = {i for r in self.open.values() for i in range(r.first, r.first + r.count)}
                    assert not any(command.wanted[i] for i in self.here)
                    assert not any(command.wanted[i] for i in asked if self.plan.pieces.asked(i))
                    self.next = command
                case Cancel():
                    self.open.pop(command.id, None)
                    if self.next is not None and self.next.id == command.id:
                        self.next = None
                case Drop():
                    self.gone(command.source)
                    if command.ban:
                        self.banned.add(command.source)
                case LookUp():
                    assert not self.looking
                    self.looking = True
                case Finished() | GiveUp():
                    if isinstance(command, Finished):
                        assert len(self.here) == self.count
                    self.open.clear()
                    self.next, self.over = None, True

    def gone(self, source: str) -> None:
        self.members.discard(source)
        self.open = {id_: r for id_, r in self.open.items() if r.source != source}
        if self.next is not None and self.next.source == source:
            self.next = None

    def some(self, number: int) -> Request:
        return self.open[sorted(self.open)[number % len(self.open)]]

    @rule(step=st.floats(0, 4))
    def time(self, step: float) -> None:
        self.now += step

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 1000))
    def arrive(self, number: int) -> None:
        request = self.some(number)
        to_come = self.to_come.setdefault(request.id, list(range(request.first, request.first + request.count)))
        index = to_come.pop(0)
        if not to_come:
            del self.open[request.id]
        self.here.add(index)
        self.obey(self.plan.arrived(request.id, index, MIB, self.now))

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 1000), how=st.sampled_from(["fail", "busy", "bad", "lied", "missing", "heard"]))
    def trouble(self, number: int, how: str) -> None:
        request = self.some(number)
        match how:
            case "heard":
                self.plan.heard(request.id, self.now)
            case "bad":
                self.obey(self.plan.bad(request.id, request.first, self.now))
                assert request.source not in self.members
            case "missing":
                self.obey(self.plan.missing(request.source, self.now))
                assert request.source not in self.members
            case _:
                del self.open[request.id]
                wait = float(number % 5) if how == "busy" else None
                if how == "lied":
                    self.obey(self.plan.lied(request.id, self.now))
                else:
                    self.obey(self.plan.failed(request.id, how, self.now, retry_after=wait))

    @rule(n=st.integers(0, 9), have=st.none() | st.integers(0, 2**60), near=st.booleans())
    def join(self, n: int, have: int | None, near: bool) -> None:
        name = f"s{n}" if n else "tracker"
        kind = "tracker" if not n else "ipfs" if n > 7 else "peer"
        pieces = None if have is None or kind != "peer" else bytes(have >> i & 1 for i in range(self.count))
        if name not in self.banned and not self.over:
            self.members.add(name)
        self.obey(self.plan.joined(name, kind, self.now, have=pieces, near=near))

    @rule(n=st.integers(0, 9))
    def leave(self, n: int) -> None:
        name = f"s{n}" if n else "tracker"
        self.gone(name)
        self.obey(self.plan.left(name, self.now))

    @rule(n=st.integers(1, 9), indexes=st.lists(st.integers(0, 59), max_size=5), whole=st.booleans())
    def news(self, n: int, indexes: list[int], whole: bool) -> None:
        if whole:
            self.obey(self.plan.complete(f"s{n}", self.now))
        else:
            self.obey(self.plan.has(f"s{n}", [i for i in indexes if i < self.count], self.now))

    @rule(wanting=st.integers(0, 3), holding=st.integers(0, 2))
    def crowd(self, wanting: int, holding: int) -> None:
        self.obey(self.plan.crowd(wanting, holding, self.now))

    @precondition(lambda self: self.next is not None)
    @rule(number=st.integers(0, 59), wait=st.floats(0, 5), chosen=st.booleans())
    def answer(self, number: int, wait: float, chosen: bool) -> None:
        next_, self.next = self.next, None
        assert next_ is not None
        if chosen:
            wanted = [i for i, flag in enumerate(next_.wanted) if flag]
            index = wanted[number % len(wanted)]
            self.open[next_.id] = Request(next_.id, next_.source, index, 1)
            self.obey(self.plan.chosen(next_.id, index, self.now))
        else:
            self.obey(self.plan.nothing(next_.id, wait, self.now))

    @precondition(lambda self: self.next is not None)
    @rule()
    def refuse(self) -> None:
        next_, self.next = self.next, None
        assert next_ is not None
        self.obey(self.plan.failed(next_.id, "busy", self.now, retry_after=1.0))

    @rule(reader=st.integers(0, 2), place=st.integers(0, 59), length=st.none() | st.integers(1, 20))
    def read(self, reader: int, place: int, length: int | None) -> None:
        place %= self.count
        end = None if length is None else min(self.count, place + length)
        self.obey(self.plan.reader(reader, place, self.now, end))

    @rule(reader=st.integers(0, 2), rest=st.booleans())
    def stop_reading(self, reader: int, rest: bool) -> None:
        self.obey(self.plan.reader(reader, None, self.now))
        self.obey(self.plan.follow_rest(rest, self.now))

    @rule()
    def tick(self) -> None:
        self.obey(self.plan.tick(self.now))

    @precondition(lambda self: self.looking)
    @rule()
    def look_up_ends(self) -> None:
        self.looking = False
        self.obey(self.plan.looked_up(self.now))

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "plan"):
            return
        plan = self.plan
        if not self.over:
            plan.check()
            assert set(self.open) == set(plan._asks.outs), "driver and plan agree on what is out"
            assert (self.next is None) == (plan._asks.next_out is None)
            # hedges may pass the limit, by one request for each source in use
            assert plan._asks.flying * MIB <= LIMITS.in_flight + (LIMITS.sources + 2) * MIB
        wake = plan.wake_at(self.now)
        assert wake is None or wake > self.now


AnyPlan.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAnyPlan = AnyPlan.TestCase


# -- the sets they count with -----------------------------------------------------------------------------------


@given(st.binary(max_size=80))
def test_a_set_goes_to_bytes_and_back(flags: bytes) -> None:
    bits = pack(flags)
    assert [bits >> i & 1 for i in range(len(flags))] == [int(flag > 0) for flag in flags]
    assert unpack(bits, len(flags)) == bytes(flag > 0 for flag in flags)


@given(st.sets(st.integers(0, 300), min_size=1), st.integers())
def test_members_are_found_by_their_number_and_drawn(members: set[int], seed: int) -> None:
    bits = sum(1 << i for i in members)
    assert [nth(bits, n) for n in range(len(members))] == sorted(members)
    assert lowest(bits) == min(members)
    assert draw(bits, random.Random(seed).randrange) in members


def test_every_member_is_drawn_as_often_as_the_others() -> None:
    rng = random.Random(1)
    bits = (1 << 3) | (1 << 200) | (1 << 201) | (1 << 399)
    times: dict[int, int] = {}
    for _ in range(4000):
        index = draw(bits, rng.randrange)
        times[index] = times.get(index, 0) + 1
    assert set(times) == {3, 200, 201, 399}
    assert all(850 < n < 1150 for n in times.values())


def test_a_span_has_its_start_and_not_its_end() -> None:
    assert span(2, 5) == 0b11100
    assert span(5, 2) == 0


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 40))), max_size=30), st.sets(st.integers(0, 40)))
def test_counts_side_by_side_are_counts(changes: list[tuple[bool, set[int]]], among: set[int]) -> None:
    counts, expected, added = Counts(), [0] * 41, list[set[int]]()
    for add, members in changes:
        if add or not added:
            added.append(members)
            counts.add(sum(1 << i for i in members))
            for i in members:
                expected[i] += 1
        else:
            members = added.pop()
            counts.subtract(sum(1 << i for i in members))
            for i in members:
                expected[i] -= 1
    assert [counts[i] for i in range(41)] == expected
    least = min((expected[i] for i in among), default=0)
    assert counts.least(sum(1 << i for i in among)) == sum(1 << i for i in among if expected[i] == least)
    assert counts.some() == sum(1 << i for i in range(41) if expected[i])


def test_the_rarest_are_drawn_from_those_that_fewest_have() -> None:
    pieces = Pieces(10, [0], random.Random(1).randrange)
    pieces.seen(0b0011111110)
    pieces.seen(0b0000111110)
    everything = (1 << 10) - 1
    assert {pieces.rarest(pieces.missing) for _ in range(100)} == {8, 9}
    assert {pieces.rarest(0b0011111110) for _ in range(100)} == {6, 7}
    assert pieces.nobodys(everything) == 0b1100000001
