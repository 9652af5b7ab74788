"""Thousands of nodes with the real core and driver of the DHT, on virtual time; ``scripts/bench lookup --simulated N``.

The tables of most nodes are filled as they are after a long time; they answer and do nothing by themselves. A provider
and the askers run whole. Messages pass through the wire format; a request and its answer take 20 ms together.
"""

from __future__ import annotations

from random import Random

import trio
from measure import say
from report import Report
from trio.testing import MockClock
from usage import percentile

from p2pregistry.routing.driver import KadDriver
from p2pregistry.routing.kad.wire import Contact, blob_key
from p2pregistry.testing.simnet import SimNetwork

RTT = 0.02
ASKERS = 20
KEYS = 300
RESTARTING = 200
EACH = 50


def simulate(count: int, report: Report) -> None:
    """Both parts, each with a clock of its own."""
    trio.run(_look_ups, count, report, clock=MockClock(autojump_threshold=0))
    trio.run(_restart, report, clock=MockClock(autojump_threshold=0))


async def _look_ups(count: int, report: Report) -> None:
    network, random = SimNetwork(Random(1), rtt=RTT), Random(2)
    nodes = [network.node(number) for number in range(count)]
    say(f"{count} nodes get to know each other")
    network.acquaint()
    provider, rest = nodes[0], nodes[1 + 3 * ASKERS :]
    keys = [blob_key(random.randbytes(32)) for _ in range(KEYS)]
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        began = trio.current_time()
        provider.hold(keys)
        while provider.announcer.waiting():  # noqa: ASYNC110 - virtual, and no event of the announcer's
            await trio.sleep(0.5)
        report.value(f"{KEYS} provides, virtual time", [trio.current_time() - began], "s")
        report.value("messages of a provide", [sum(network.streams.values()) / KEYS], "")
        third = {node.own.peer_id for node in random.sample(rest, count // 3)}
        for turn, state in enumerate(("all well", "a third hung", "a third killed")):
            network.hung = third if turn == 1 else set()
            network.dead = third if turn == 2 else set()
            askers = nodes[1 + turn * ASKERS : 1 + (turn + 1) * ASKERS]
            for asker in askers:
                await nursery.start(asker.run)
            await trio.sleep(5)
            await _ask(network, askers, keys, report, state, random)
        nursery.cancel_scope.cancel()


async def _ask(
    network: SimNetwork, askers: list[KadDriver], keys: list[bytes], report: Report, state: str, random: Random
) -> None:
    say(f"look-ups: {state}")
    times: list[float] = []
    missed = 0
    network.streams.clear()
    for key in keys:
        start = trio.current_time()
        first: list[float] = []

        def found(_: Contact, start: float = start, first: list[float] = first) -> None:
            first.append(trio.current_time() - start)

        await random.choice(askers).find_providers(key, found, want=1)
        times += first[:1]
        missed += not first
    report.value(f"{state}: look-up, mean", [1000 * sum(times) / len(times)], "ms")
    report.value(f"{state}: look-up, p95", [1000 * percentile(times, 0.95)], "ms")
    report.value(f"{state}: look-up, slowest", [1000 * max(times)], "ms")
    report.value(f"{state}: hops, median", [percentile(times, 0.5) / RTT], "")
    report.value(f"{state}: requests of a look-up", [network.streams["GET_PROVIDERS"] / len(keys)], "")
    report.limit(f"{state}: not found", [float(missed)], f"of {len(keys)}", most=0.5)


async def _restart(report: Report) -> None:
    say(f"{RESTARTING} nodes restart at once")
    network, random = SimNetwork(Random(3), rtt=RTT), Random(4)
    nodes = [network.node(number) for number in range(RESTARTING)]
    keys = [[blob_key(random.randbytes(32)) for _ in range(EACH)] for _ in nodes]
    async with trio.open_nursery() as nursery:
        for node, held in zip(nodes, keys, strict=True):
            node.seed(neighbour.own for neighbour in nodes[:3])
            node.hold(held, within=30)
            nursery.start_soon(node.run)
        while any(node.announcer.waiting() for node in nodes):  # noqa: ASYNC110 - virtual, and no event of theirs
            await trio.sleep(1)
        report.value("restart: until all is provided", [trio.current_time()], "s")
        report.value("restart: most requests in flight, a node", [network.most_in_flight / RESTARTING], "")
        report.value("restart: requests, a node", [sum(network.streams.values()) / RESTARTING], "")
        missed = 0
        for place, held in enumerate(keys):
            found: list[Contact] = []
            await nodes[place - 1].find_providers(random.choice(held), found.append, want=1)
            missed += not found
        report.limit("restart: not found", [float(missed)], f"of {len(keys)}", most=0.5)
        nursery.cancel_scope.cancel()
