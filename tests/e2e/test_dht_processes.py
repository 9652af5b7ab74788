"""The DHT between separate processes, some of which are stopped or killed."""

import signal
from pathlib import Path

import pytest
import trio

from p2pregistry.routing.dht import KAD_PROTOCOL
from p2pregistry.testing.dht_nodes import DhtProcess, dht_processes

pytestmark = pytest.mark.e2e


async def provide(node: DhtProcess, first: int, count: int) -> float:
    """Have the node provide these, and wait until others have the records; the seconds it took."""
    start = trio.current_time()
    await node.tell("hold", first, count)
    with trio.fail_after(60):
        while not await node.tell("provided"):
            await trio.lowlevel.checkpoint()
    return trio.current_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_third_hung_or_killed_slows_no_lookup_beyond_the_first(tmp_path: Path, how: signal.Signals) -> None:
    async with dht_processes(tmp_path, 9, protocol=KAD_PROTOCOL) as nodes:
        provider, asker, alive = nodes[1], nodes[2], nodes[:6]
        await provide(provider, 0, 1000)
        for number in range(0, 1000, 40):
            for node in (nodes[0], nodes[3]):
                assert (await node.tell("find", number, 10))["peers"] == [provider.peer_id]
        for node in nodes[6:]:
            node.signal(how)
        assert (await asker.tell("find", 0, 10))["peers"] == [provider.peer_id]  # this one may be slow
        times: list[float] = []
        for number in range(1000 if how == signal.SIGSTOP else 200):
            answer = await asker.tell("find", number, 1)
            assert answer["peers"] == [provider.peer_id], number
            times.append(answer["seconds"])
        for number in range(1000, 1010):  # these ask everybody who is near, for nothing
            answer = await asker.tell("find", number, 10)
            assert answer["peers"] == []
            times.append(answer["seconds"])
        assert sum(seconds > 1.0 for seconds in times) <= 5, sorted(times)[-10:]
        await provide(alive[3], 5000, 10)
        for number in range(5000, 5010):
            assert (await asker.tell("find", number, 10))["peers"] == [alive[3].peer_id]


async def test_records_of_dropped_blobs_are_withdrawn(tmp_path: Path) -> None:
    async with dht_processes(tmp_path, 3, protocol=KAD_PROTOCOL) as nodes:
        await provide(nodes[1], 0, 20)
        assert (await nodes[2].tell("find", 3, 10))["peers"] == [nodes[1].peer_id]
        await nodes[1].tell("drop", 0, 10)
        with trio.fail_after(20):
            while (await nodes[2].tell("find", 3, 10))["peers"]:
                await trio.lowlevel.checkpoint()
        assert (await nodes[2].tell("find", 13, 10))["peers"] == [nodes[1].peer_id]


async def test_nodes_find_each_other_after_the_one_they_joined_through_has_gone(tmp_path: Path) -> None:
    async with dht_processes(tmp_path, 4, protocol=KAD_PROTOCOL) as nodes:
        nodes[0].signal(signal.SIGKILL)
        await provide(nodes[1], 0, 5)
        for number in range(5):
            assert (await nodes[3].tell("find", number, 10))["peers"] == [nodes[1].peer_id]
