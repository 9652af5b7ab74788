"""What every ``Announces`` must do. A test runs each of ``CASES`` on a fresh rig of each implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from p2pregistry.digest import Digest
from p2pregistry.messages import MAX_PEERS, Announce, Announced, Crowd
from tracker.announces import Announces


@dataclass(frozen=True)
class Rig:
    """Two processes of one tracker (or one, twice), whose pace is the usual.

    ``name`` makes some manifest's claim name digests; ``age`` lets seconds pass everywhere.
    """

    first: Announces
    second: Announces
    name: Callable[[list[Digest]], Awaitable[None]]
    age: Callable[[float], Awaitable[None]]


Case = Callable[[Rig], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}

ONE, TWO, THREE = (Digest.of(text) for text in (b"one", b"two", b"three"))
LONG = Digest.of(b"long", "sha512")
_LETTERS = "abcdefghijkmnopqrstuvwxyz"


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


def peer(number: int) -> str:
    """A peer id."""
    text = _LETTERS[number // 625 % 25] + _LETTERS[number // 25 % 25] + _LETTERS[number % 25]
    return "12D3KooW" + 41 * "x" + text


def node(
    number: int,
    want: tuple[Digest, ...] = (),
    hold: tuple[Digest, ...] = (),
    *,
    swarm: str = "default",
    zone: str = "",
    url: str | None = None,
    leaving: bool = False,
    gateway: str = "",
) -> Announce:
    """An announce of node ``number``."""
    return Announce(
        peer_id=peer(number),
        url=url or f"http://192.0.2.{number % 250}:5001",
        swarm=swarm,
        zone=zone,
        want=want,
        hold=hold,
        leaving=leaving,
        gateway=gateway,
    )


def names(answer: Announced) -> set[str]:
    """Who was named."""
    return {one.peer_id for one in answer.peers}


@_case
async def who_wants_the_same_is_told_of_each_other(rig: Rig) -> None:
    await rig.name([ONE, TWO])
    alone = await rig.first.announce(node(1, (ONE, TWO), zone="rack-1"))
    assert (alone.peers, alone.crowd) == ([], [Crowd(), Crowd()])
    (seen,) = (await rig.first.announce(node(2, (TWO, ONE)))).peers
    assert (seen.peer_id, seen.url, seen.zone) == (peer(1), "http://192.0.2.1:5001", "rack-1")
    assert (sorted(seen.want), seen.hold) == ([0, 1], [])
    again = await rig.first.announce(node(1, (ONE, TWO)))
    assert names(again) == {peer(2)}
    assert again.crowd == [Crowd(1, 0), Crowd(1, 0)]


@_case
async def positions_are_those_of_the_list_that_was_asked_about(rig: Rig) -> None:
    await rig.name([ONE, TWO, LONG])
    await rig.first.announce(node(1, (ONE,), (TWO, LONG, THREE)))
    answer = await rig.first.announce(node(2, (LONG, THREE, ONE, TWO)))
    (seen,) = answer.peers
    assert (seen.want, sorted(seen.hold)) == ([2], [0, 3])
    assert answer.crowd == [Crowd(0, 1), Crowd(), Crowd(1, 0), Crowd(0, 1)]


@_case
async def the_last_announce_replaces_the_one_before(rig: Rig) -> None:
    await rig.name([ONE, TWO])
    await rig.first.announce(node(1, (ONE,)))
    await rig.first.announce(node(1, (TWO,), (ONE,), url="http://198.51.100.1:5001"))
    answer = await rig.first.announce(node(2, (ONE,)))
    (seen,) = answer.peers
    assert (seen.want, seen.hold, seen.url) == ([], [0], "http://198.51.100.1:5001")
    assert answer.crowd == [Crowd(0, 1)]
    await rig.first.announce(node(1))
    assert (await rig.first.announce(node(2, (ONE,)))).peers == []


@_case
async def what_a_node_holds_it_does_not_want(rig: Rig) -> None:
    await rig.name([ONE])
    await rig.first.announce(node(1, (ONE,), (ONE,)))
    assert (await rig.first.announce(node(2, (ONE,)))).crowd == [Crowd(0, 1)]


@_case
async def it_does_not_matter_which_process_is_told_and_which_is_asked(rig: Rig) -> None:
    await rig.name([ONE])
    await rig.first.announce(node(1, (), (ONE,), zone="a", url="https://[2001:db8::1]:5001"))
    (seen,) = (await rig.second.announce(node(2, (ONE,)))).peers
    assert (seen.peer_id, seen.url, seen.zone, seen.hold) == (peer(1), "https://[2001:db8::1]:5001", "a", [0])
    assert names(await rig.first.announce(node(3, (ONE,)))) == {peer(1), peer(2)}
    # a node may come to another process each time
    await rig.second.announce(node(1))
    assert names(await rig.first.announce(node(3, (ONE,)))) == {peer(2)}


@_case
async def who_leaves_is_gone_at_once(rig: Rig) -> None:
    await rig.name([ONE])
    await rig.first.announce(node(1, (), (ONE,)))
    await rig.second.announce(node(2, (ONE,)))
    left = await rig.second.announce(node(1, (ONE,), leaving=True))
    assert left.peers == []
    for asked in (rig.first, rig.second):
        answer = await asked.announce(node(2, (ONE,)))
        assert (answer.peers, answer.crowd) == ([], [Crowd()])
    await rig.first.announce(node(1, (), (ONE,)))
    assert names(await rig.second.announce(node(2, (ONE,)))) == {peer(1)}


@_case
async def swarms_never_meet(rig: Rig) -> None:
    await rig.name([ONE])
    await rig.first.announce(node(1, (ONE,), swarm="other"))
    for asked in (rig.first, rig.second):
        assert await _unseen(asked, node(2, (ONE,)))
    assert await _unseen(rig.second, node(3, (ONE,), swarm="third"))
    # a node that moves to another swarm is not seen in the first any more
    await rig.second.announce(node(2, (ONE,), swarm="other"))
    assert names(await rig.first.announce(node(1, (ONE,), swarm="other"))) == {peer(2)}
    assert await _unseen(rig.first, node(4, (ONE,)))


async def _unseen(asked: Announces, announce: Announce) -> bool:
    answer = await asked.announce(announce)
    return (answer.peers, answer.crowd) == ([], [Crowd()])


@_case
async def nothing_is_told_of_what_no_claim_names(rig: Rig) -> None:
    await rig.name([TWO])
    await rig.first.announce(node(1, (ONE,), (THREE,)))
    assert (await rig.first.announce(node(2, (ONE, THREE, TWO)))).crowd == [Crowd()] * 3
    await rig.name([ONE])
    await rig.age(5)
    await rig.first.announce(node(1, (ONE,), (THREE,)))
    answer = await rig.first.announce(node(2, (ONE, THREE, TWO)))
    assert answer.crowd == [Crowd(1, 0), Crowd(), Crowd()]
    assert [(one.want, one.hold) for one in answer.peers] == [([0], [])]


@_case
async def the_silent_are_gone_and_the_others_stay(rig: Rig) -> None:
    await rig.name([ONE])
    await rig.first.announce(node(1, (ONE,)))
    await rig.first.announce(node(2, (), (ONE,)))
    for _ in range(2):
        await rig.age(6)
        await rig.second.announce(node(3, (ONE,)))
    await rig.age(6)
    answer = await rig.second.announce(node(3, (ONE,)))
    assert answer.crowd == [Crowd(0, 1)]  # a holder comes less often, so it may be silent for longer
    assert names(answer) == {peer(2)}
    await rig.age(80)
    assert (await rig.first.announce(node(4, (ONE,)))).crowd == [Crowd()]
    await rig.first.announce(node(1, (ONE,)))
    assert (await rig.second.announce(node(4, (ONE,)))).crowd == [Crowd(1, 0)]


@_case
async def of_many_some_of_each_kind_are_named(rig: Rig) -> None:
    await rig.name([ONE, TWO])
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(rig.first.announce, node(number, (ONE, TWO)))
        for number in range(40, 80):
            nursery.start_soon(rig.second.announce, node(number, (ONE,), (TWO,)))
    answer = await rig.first.announce(node(99, (TWO,)))
    assert answer.crowd == [Crowd(40, 40)]
    assert len(names(answer)) == len(answer.peers) == MAX_PEERS
    assert sum(bool(one.hold) for one in answer.peers) == MAX_PEERS // 2


@_case
async def a_crowd_that_starts_at_once_finds_itself(rig: Rig) -> None:
    await rig.name([ONE])
    answers: dict[int, Announced] = {}

    async def come(number: int) -> None:
        asked = rig.first if number % 2 else rig.second
        answers[number] = await asked.announce(node(number, (ONE,)))

    for turn in range(2):
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(come, number)
        if turn:
            continue
        # those that came to the same process are there before any of them is answered
        for number, answer in answers.items():
            assert names(answer) >= {peer(other) for other in range(number % 2, 16, 2) if other != number}
            assert answer.interval < 1
    for number, answer in answers.items():
        assert names(answer) == {peer(other) for other in range(16) if other != number}
        assert answer.crowd == [Crowd(15, 0)]


@_case
async def who_wants_something_comes_again_soon_and_who_only_holds_does_not(rig: Rig) -> None:
    await rig.name([ONE, TWO, THREE])
    assert 0.4 <= (await rig.first.announce(node(1, (ONE,)))).interval <= 0.6
    assert 2.5 <= (await rig.first.announce(node(1, (ONE,)))).interval <= 3.5
    assert 25 <= (await rig.first.announce(node(1, (), (ONE,)))).interval <= 35
    assert 0.4 <= (await rig.first.announce(node(1, (TWO,), (ONE,)))).interval <= 0.6
    assert 0.4 <= (await rig.first.announce(node(1, (TWO, THREE), (ONE,)))).interval <= 0.6
    assert 2.5 <= (await rig.first.announce(node(1, (THREE,), (ONE, TWO)))).interval <= 3.5
    assert 2.5 <= (await rig.first.announce(node(2, (LONG,)))).interval <= 3.5, "nobody has heard of it yet"


@_case
async def who_holds_and_has_a_gateway_is_named_by_every_process(rig: Rig) -> None:
    await rig.name([ONE, TWO])

    async def named(announces: Announces, digest: Digest = ONE, swarm: str = "default") -> dict[str, str]:
        return {found.peer_id: found.gateway for found in await announces.gateways(swarm, digest, 10)}

    await rig.first.announce(node(1, (), (ONE,), gateway="https://one.example.com"))
    await rig.first.announce(node(2, (), (ONE,)))
    await rig.first.announce(node(3, (ONE,), (TWO,), gateway="https://three.example.com"))
    await rig.first.announce(node(4, (), (ONE,), gateway="https://four.example.com", swarm="other"))
    await rig.age(3)  # a process looks every two seconds at what the others were told
    for process in (rig.first, rig.second):
        assert await named(process) == {peer(1): "https://one.example.com"}
        assert await named(process, TWO) == {peer(3): "https://three.example.com"}
        assert await named(process, THREE) == {}
        assert await named(process, ONE, "other") == {peer(4): "https://four.example.com"}
    await rig.second.announce(node(1, (), (ONE,)))  # it has none any more
    await rig.second.announce(node(3, leaving=True))
    await rig.age(3)
    for process in (rig.second, rig.first):
        assert await named(process) == await named(process, TWO) == {}


@_case
async def of_many_gateways_some_are_named(rig: Rig) -> None:
    await rig.name([ONE])
    for number in range(8):
        await rig.first.announce(node(number, (), (ONE,), gateway=f"https://g{number}.example.com"))
    found = await rig.first.gateways("default", ONE, 5)
    assert len({one.peer_id for one in found}) == 5
