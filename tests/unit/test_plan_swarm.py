"""Whole swarms of plans on virtual time: each uplink sends one piece after the other, in the order of asking."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, LookUp, Next, Request
from p2pregistry.pull.plan import Plan
from p2pregistry.pull.seeding import Seeding

MIB = 1 << 20
TRACKER = "tracker"
#: Seconds that a piece takes on any link, and that news and requests take.
PIECE, NEWS = 0.2, 0.02


class Swarm:
    def __init__(self, nodes: int, count: int, *, dead: int = 0, seed: int = 1) -> None:
        self.rng, self.now, self.count, self.sent = random.Random(seed), 0.0, count, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.seeding = Seeding(count, randrange=self.rng.randrange)
        self.names = [f"n{i}" for i in range(nodes)]
        self.have = {name: bytearray(count) for name in self.names}
        self.queues: dict[str, deque[tuple[str, Request | Next]]] = {n: deque() for n in [*self.names, TRACKER]}
        self.sending: dict[str, bool] = dict.fromkeys(self.queues, False)
        self.off: set[tuple[str, int]] = set()
        self.done: dict[str, float] = {}
        self.dead: set[str] = set()
        self.plans = {n: Plan(count, now=0.0, randrange=self.rng.randrange, looked=True) for n in self.names}
        for name, plan in self.plans.items():
            plan.crowd(nodes - 1, 0, 0.0)
            plan.joined(TRACKER, "tracker", 0.0)
            for other in self.names:
                if other != name:
                    plan.joined(other, "peer", 0.0, have=bytes(count))
            self.obey(name, plan.begin(0.0))
            self.later(0.2, lambda name=name: self.tick(name))  # type: ignore[misc]
        for name in self.names[:dead]:
            self.later(self.rng.uniform(0.2, 0.5) * count * PIECE, lambda name=name: self.dead.add(name))  # type: ignore[misc]

    def later(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, len(self.events) + self.rng.randrange(1 << 40), do))

    def run(self, until: float) -> None:
        while self.events and len(self.done.keys() | self.dead) < len(self.names) and self.now < until:
            self.now, _, do = heapq.heappop(self.events)
            do()

    def tell(self, name: str, event: Callable[[Plan], list[Command]]) -> None:
        if name not in self.done and name not in self.dead:
            self.obey(name, event(self.plans[name]))

    def tick(self, name: str) -> None:
        self.tell(name, lambda plan: plan.tick(self.now))
        self.later(0.2, lambda: self.tick(name))

    def obey(self, name: str, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Request() | Next():
                    self.later(NEWS, lambda ask=command: self.queue(name, ask))  # type: ignore[misc]
                case Cancel():
                    self.off.add((name, command.id))
                case LookUp():
                    self.later(NEWS, lambda: self.tell(name, lambda plan: plan.looked_up(self.now)))
                case Finished():
                    self.done[name] = self.now
                    for other in self.names:
                        self.later(NEWS, lambda o=other: self.tell(o, lambda p: p.complete(name, self.now)))  # type: ignore[misc]
                case Drop():
                    assert command.source in self.dead, "nobody alive is given up"
                case GiveUp():
                    raise AssertionError(command.why)

    def queue(self, name: str, ask: Request | Next) -> None:
        self.queues[ask.source].append((name, ask))
        self.pump(ask.source)

    def pump(self, source: str) -> None:
        queue = self.queues[source]
        while queue and not self.sending[source] and source not in self.dead:
            name, ask = queue.popleft()
            if (name, ask.id) in self.off or name in self.dead or name in self.done:
                continue
            if isinstance(ask, Next):
                index, wait = self.seeding.choose(ask.wanted, self.now)
                if index is None:
                    self.tell(name, lambda p, id_=ask.id, w=wait: p.nothing(id_, w, self.now))  # type: ignore[misc]
                    continue
                self.tell(name, lambda p, id_=ask.id, i=index: p.chosen(id_, i, self.now))  # type: ignore[misc]
                if (name, ask.id) in self.off:
                    self.seeding.returned(index)
                    continue
                ask = Request(ask.id, TRACKER, index, 1)
            self.sending[source] = True
            self.later(PIECE * ask.count, lambda n=name, a=ask: self.sent_off(n, a))  # type: ignore[misc]

    def sent_off(self, name: str, ask: Request) -> None:
        self.sending[ask.source] = False
        if (name, ask.id) not in self.off and ask.source not in self.dead:
            self.sent += ask.count if ask.source == TRACKER else 0
            for index in range(ask.first, ask.first + ask.count):
                self.have[name][index] = 1
                self.tell(name, lambda p, i=index: p.arrived(ask.id, i, MIB, self.now))  # type: ignore[misc]
                for other in self.names:
                    if other != name and name not in self.dead:
                        self.later(NEWS, lambda o=other, i=index: self.tell(o, lambda p: p.has(name, [i], self.now)))  # type: ignore[misc]
        self.pump(ask.source)


@pytest.mark.parametrize(("nodes", "count", "ratio"), [(2, 60, 1.2), (8, 60, 1.4), (16, 48, 1.6)])
def test_a_crowd_comes_near_the_bound_and_takes_about_one_image(nodes: int, count: int, ratio: float) -> None:
    swarm = Swarm(nodes, count)
    swarm.run(10 * count * PIECE)
    assert len(swarm.done) == nodes
    assert all(all(have) for have in swarm.have.values())
    assert max(swarm.done.values()) <= ratio * count * PIECE
    assert swarm.sent <= 1.2 * count


def test_where_a_third_of_a_crowd_dies_the_others_get_everything() -> None:
    swarm = Swarm(12, 48, dead=4)
    swarm.run(30 * 48 * PIECE)
    assert set(swarm.done) == set(swarm.names[4:])
    assert all(all(swarm.have[name]) for name in swarm.done)
    assert swarm.sent <= 3 * 48
