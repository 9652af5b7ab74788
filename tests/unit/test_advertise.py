"""What is new reaches the router when the node is quiet, together, and not too late."""

from __future__ import annotations

import trio
import trio.testing

from p2pregistry.digest import Digest
from p2pregistry.routing.advertise import LONGEST, QUIET, TICK, Advertiser
from p2pregistry.routing.base import Peer
from p2pregistry.routing.memory import MemoryNetwork

A, B = Digest.of(b"a"), Digest.of(b"b")


async def found(network: MemoryNetwork, digest: Digest) -> bool:
    peers: list[Peer] = []
    await network.router(Peer("asker", "http://127.0.0.1:1")).find(digest, peers.append)
    return bool(peers)


async def test_it_waits_until_the_node_is_quiet(autojump_clock: trio.testing.MockClock) -> None:
    network, busy = MemoryNetwork(), True
    advertiser = Advertiser(network.router(Peer("me", "http://127.0.0.1:2")), lambda: busy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(advertiser.serve)
        advertiser.hold([A])
        await trio.sleep(5)
        advertiser.hold([B])
        assert advertiser.waiting == 2
        assert not await found(network, A)
        busy = False
        await trio.sleep(QUIET + 2 * TICK)
        assert advertiser.waiting == 0
        assert await found(network, A)
        assert await found(network, B)
        nursery.cancel_scope.cancel()


async def test_a_node_that_is_never_quiet_tells_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    advertiser = Advertiser(network.router(Peer("me", "http://127.0.0.1:2")), lambda: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(advertiser.serve)
        advertiser.hold([A])
        await trio.sleep(LONGEST + 1)
        assert await found(network, A)
        advertiser.hold([B])
        advertiser.drop([A, B])
        await trio.sleep(LONGEST + 1)
        assert not await found(network, A)
        assert not await found(network, B)
        nursery.cancel_scope.cancel()
