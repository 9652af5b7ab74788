"""Gateways of IPFS in a plan: one more source, that nobody counts on."""

from __future__ import annotations

import random

from p2pregistry.pull.commands import Cancel, Command, Limits, LookUp, Next, Request
from p2pregistry.pull.plan import Plan

MIB = 1 << 20


def plan(count: int, *, limits: Limits | None = None) -> Plan:
    return Plan(count, now=0.0, randrange=random.Random(1).randrange, limits=limits, looked=True)


def asked(commands: list[Command]) -> dict[str, list[int]]:
    """The pieces that are asked of each source."""
    found: dict[str, list[int]] = {}
    for command in commands:
        if isinstance(command, Request):
            found.setdefault(command.source, []).extend(range(command.first, command.first + command.count))
    return found


def test_a_gateway_does_not_keep_the_tracker_from_sending() -> None:
    p = plan(40)
    p.joined("https://gateway", "ipfs", 0.0)
    p.joined("tracker", "tracker", 0.0)
    pieces = asked(p.begin(0.0))
    p.check()
    assert pieces["tracker"][0] == 0, "what the reader waits for is asked of the tracker"
    assert pieces["https://gateway"], "and the gateway has a part in it"
    assert not set(pieces["tracker"]) & set(pieces["https://gateway"])


def test_a_gateway_alone_serves_everything() -> None:
    p = plan(3)
    p.joined("https://gateway", "ipfs", 0.0)
    out = [command for command in p.begin(0.0) if isinstance(command, Request)]
    now = 0.0
    while p.pieces.left:
        request = out.pop(0)
        now += 0.1
        for index in range(request.first, request.first + request.count):
            out += [c for c in p.arrived(request.id, index, MIB, now) if isinstance(c, Request)]
        p.check()


def test_where_a_neighbour_has_everything_a_gateway_is_not_asked_until_the_neighbour_is_late() -> None:
    p = plan(8)
    p.joined("neighbour", "peer", 0.0, near=True)
    p.joined("https://gateway", "ipfs", 0.0)
    p.joined("tracker", "tracker", 0.0)
    assert set(asked(p.begin(0.0))) == {"neighbour"}
    commands = p.tick(1.6)
    assert "https://gateway" in asked(commands)
    p.check()


def test_in_a_crowd_a_gateway_makes_no_piece_less_wanted_of_the_tracker() -> None:
    p = plan(40)
    p.joined("other", "peer", 0.0, have=bytes(40), near=True)
    p.joined("https://gateway", "ipfs", 0.0)
    p.crowd(3, 0, 0.0)
    p.begin(0.0)
    commands = p.joined("tracker", "tracker", 0.0)
    (ask,) = [command for command in commands if isinstance(command, Next)]
    assert any(ask.wanted), "the tracker chooses among those that nobody has"


def test_a_gateway_that_looks_for_a_block_is_given_time() -> None:
    limits = Limits(silence=3.0, gateway=15.0)
    p = plan(1, limits=limits)
    p.joined("https://gateway", "ipfs", 0.0)
    (ask,) = p.begin(0.0)
    assert isinstance(ask, Request)
    for at in range(1, 15):
        assert Cancel(ask.id) not in p.tick(float(at))
    assert Cancel(ask.id) in p.tick(15.5)
    p.check()


def test_a_gateway_that_lied_about_a_piece_is_asked_for_others() -> None:
    p = plan(4, limits=Limits(least=1))
    p.joined("https://gateway", "ipfs", 0.0)
    first = next(command for command in p.begin(0.0) if isinstance(command, Request))
    again = asked(p.lied(first.id, 0.1))
    p.check()
    assert first.first not in again.get("https://gateway", [])
    p.left("https://gateway", 0.2)
    p.check()


def test_need() -> None:
    p = plan(10)
    p.joined("tracker", "tracker", 0.0)
    ask = next(command for command in p.begin(0.0) if isinstance(command, Request))
    assert not p.in_need(0.0)
    assert p.in_need(6.0), "nothing has come for long"
    p.arrived(ask.id, ask.first, MIB, 6.0)
    assert not p.in_need(6.1)
    p.failed(ask.id, "it broke", 6.2)
    assert p.in_need(6.2), "the tracker has failed"
    p.joined("holder", "peer", 6.3)
    assert not p.in_need(6.3)
    p.left("holder", 6.4)
    assert p.in_need(6.4)
    p.left("tracker", 6.5)
    assert p.in_need(6.5)
    p.follow_rest(False, 7.0)
    assert not p.in_need(7.0), "nothing is wanted"


def test_a_peer_that_has_everything_and_gives_it_in_drops_keeps_nobody_from_those_in_need() -> None:
    p = plan(1)
    p.joined("holder", "peer", 0.0)
    (ask,) = p.begin(0.0)
    assert isinstance(ask, Request)
    looked, wakes, now = False, 0, 0.0
    while now < 10.0:
        wake = p.wake_at(now)
        assert wake is not None
        now, wakes = min(wake, now + 1.0), wakes + 1
        p.heard(ask.id, now)  # a byte
        looked = looked or LookUp() in p.tick(now)
        assert looked <= (now >= p.limits.starved)
    assert looked
    assert p.in_need(now)
    assert wakes < 200, "it is not looked after all the time"
