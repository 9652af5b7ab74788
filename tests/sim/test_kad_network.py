"""Hundreds of nodes with the real core and driver, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pregistry.routing.driver import KadDriver
from p2pregistry.routing.kad.table import position
from p2pregistry.routing.kad.wire import Contact, blob_key
from p2pregistry.testing.simnet import SimNetwork

NODES = 150


@asynccontextmanager
async def network_of(count: int) -> AsyncIterator[tuple[SimNetwork, list[KadDriver]]]:
    """Nodes that have joined through the first one, one tenth of a second apart, and know their surroundings."""
    network = SimNetwork(Random(7))
    nodes = [network.node(i) for i in range(count)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            node.seed([nodes[0].own])
            await nursery.start(node.run)
            await settle(0.1)
        await settle(60)
        yield network, nodes
        nursery.cancel_scope.cancel()


async def settle(seconds: float) -> None:
    """Let virtual time pass."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


async def look(node: KadDriver, key: bytes) -> tuple[set[bytes], float]:
    """Who provides the key, and how long the look-up took in virtual seconds."""
    found: list[Contact] = []
    start = trio.current_time()
    await node.find_providers(key, found.append)
    return {c.peer_id for c in found}, trio.current_time() - start


@pytest.mark.slow
async def test_a_thousand_blobs_at_once_are_all_findable_even_with_a_third_hung(autojump_clock: MockClock) -> None:
    rng = Random(11)
    async with network_of(NODES) as (network, nodes):
        provider = nodes[1]
        keys = [blob_key(rng.randbytes(32)) for _ in range(1000)]
        network.streams.clear()
        start = trio.current_time()
        provider.hold(keys)
        while any(h.under_way or not h.given for h in provider.announcer._held.values()):
            assert trio.current_time() - start < 60
            await settle(0.5)
        assert network.streams["FIND_NODE"] < 3 * len(keys), "look-ups are shared by the keys of a region"
        for key in keys:
            assert (await look(rng.choice(nodes[2:]), key))[0] == {provider.own.peer_id}

        network.hung |= {n.own.peer_id for n in rng.sample(nodes[2:], NODES // 3)}
        alive = [n for n in nodes[2:] if n.own.peer_id not in network.hung]
        asker = alive[0]
        for key in keys[:40]:  # these meet the hung ones
            assert (await look(asker, key))[0] == {provider.own.peer_id}
        slow = 0
        for key in keys[40:440]:
            found, seconds = await look(asker, key)
            assert found == {provider.own.peer_id}
            slow += seconds > 1.0
        assert slow <= 10, "a hung peer is waited for once, not again and again"

        withdrawn = keys[:100]
        provider.drop(withdrawn)
        await settle(10)
        for key in withdrawn:
            assert (await look(rng.choice(alive), key))[0] == set()


async def test_records_are_renewed_before_they_expire_and_end_with_their_provider(autojump_clock: MockClock) -> None:
    async with network_of(6) as (network, nodes):
        keys = [blob_key(bytes([n]) * 32) for n in range(20)]
        nodes[1].hold(keys)
        await settle(3 * 3600)
        for key in keys:
            assert (await look(nodes[2], key))[0] == {nodes[1].own.peer_id}
        network.dead.add(nodes[1].own.peer_id)
        network.hung.add(nodes[1].own.peer_id)
        await settle(3601)
        for key in keys:
            assert (await look(nodes[2], key))[0] == set()


async def test_a_blob_provided_to_an_almost_empty_network_is_found_after_it_has_grown(
    autojump_clock: MockClock,
) -> None:
    network = SimNetwork(Random(3))
    nodes = [network.node(i) for i in range(60)]
    keys = [blob_key(bytes([n]) * 32) for n in range(50)]
    async with trio.open_nursery() as nursery:
        nodes[0].hold(keys)
        await nursery.start(nodes[0].run)
        for node in nodes[1:]:
            node.seed([nodes[0].own])
            await nursery.start(node.run)
        await settle(60)
        for key in keys:
            assert (await look(nodes[-1], key))[0] == {nodes[0].own.peer_id}
        nursery.cancel_scope.cancel()


async def test_a_partition_heals(autojump_clock: MockClock) -> None:
    async with network_of(10) as (network, nodes):
        stopped = nodes[5]
        stopped.hold([blob_key(b"k" * 32)])
        network.hung.add(stopped.own.peer_id)
        await settle(1000)
        assert all(stopped.own.peer_id not in n.table for n in nodes if n is not stopped)
        network.hung.clear()
        await settle(1000)
        assert all(stopped.own.peer_id in n.table for n in nodes if n is not stopped)
        assert (await look(nodes[1], blob_key(b"k" * 32)))[0] == {stopped.own.peer_id}


async def test_tables_hold_the_nearest_peers(autojump_clock: MockClock) -> None:
    async with network_of(60) as (_, nodes):
        for node in nodes:
            where = position(node.own.peer_id)
            others = sorted((n for n in nodes if n is not node), key=lambda n: position(n.own.peer_id) ^ where)
            assert sum(n.own.peer_id in node.table for n in others[:10]) >= 9


async def test_among_five_hundred_every_blob_is_found_with_a_third_hung_and_with_a_third_killed(
    autojump_clock: MockClock,
) -> None:
    network, random = SimNetwork(Random(5)), Random(13)
    nodes = [network.node(i) for i in range(500)]
    network.acquaint()
    provider, asker, other = nodes[:3]
    keys = [blob_key(random.randbytes(32)) for _ in range(60)]
    async with trio.open_nursery() as nursery:
        for node in (provider, asker, other):
            await nursery.start(node.run)
        provider.hold(keys)
        while provider.announcer.waiting():
            await settle(0.5)
        network.hung |= {node.own.peer_id for node in random.sample(nodes[3:], 166)}
        network.streams.clear()
        for key in keys:
            assert (await look(asker, key))[0] == {provider.own.peer_id}
        assert network.streams["GET_PROVIDERS"] < 60 * len(keys)
        network.dead, network.hung = network.hung, set()
        for key in keys:
            assert (await look(other, key))[0] == {provider.own.peer_id}
        nursery.cancel_scope.cancel()


async def test_nodes_that_all_restart_at_once_neither_storm_nor_lose_anything(autojump_clock: MockClock) -> None:
    network, random = SimNetwork(Random(9)), Random(17)
    nodes = [network.node(i) for i in range(60)]
    keys = [[blob_key(random.randbytes(32)) for _ in range(20)] for _ in nodes]
    async with trio.open_nursery() as nursery:
        for node, held in zip(nodes, keys, strict=True):  # nothing is known but three neighbours
            node.seed(neighbour.own for neighbour in nodes[:3])
            node.hold(held, within=10)
            nursery.start_soon(node.run)
        await settle(60)
        assert network.most_in_flight < 25 * len(nodes)
        assert all(node.announcer.waiting() == 0 for node in nodes)
        for node, held in zip(nodes, keys, strict=True):
            key = random.choice(held)
            assert (await look(random.choice([n for n in nodes if n is not node]), key))[0] == {node.own.peer_id}
        nursery.cancel_scope.cancel()


async def test_a_node_that_was_stopped_finds_back_without_look_ups(autojump_clock: MockClock) -> None:
    async with network_of(8) as (network, nodes):
        stopped = nodes[5]
        network.hung.add(stopped.own.peer_id)
        for number in range(20):
            await stopped.find_providers(blob_key(bytes([number]) * 32), lambda _: None)
        assert len(stopped.table) == 0
        network.hung.clear()
        await settle(60)
        assert len(stopped.table) == 7
