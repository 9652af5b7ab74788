"""Nodes that begin the same pull at the same moment, in one process over real sockets: they share what they have."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.testing.http import request
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin

MIB = 1 << 20
REPO = "acme/app"
LAYER = random.Random(5).randbytes(24 * MIB + 777)
DIGEST = Digest.of(LAYER)
NODES = 5


async def pull(node: NodeStack) -> None:
    """As an engine does: the manifest, then the layer."""
    answer = await request(node.url, "GET", f"/v2/{REPO}/manifests/1")
    assert answer.status == 200, answer
    answer = await request(node.url, "GET", f"/v2/{REPO}/blobs/{DIGEST}")
    assert answer.status == 200
    assert answer.body == LAYER


async def crowd(stack: AsyncExitStack, root: Path, count: int, **options: object) -> list[NodeStack]:
    """So many nodes without a way to each other but the tracker's answers, unless ``options`` has a network."""
    options.setdefault("network", None)
    return [
        await stack.enter_async_context(node_stack(root / f"n{n}", name=f"n{n}", **options))  # type: ignore[arg-type]
        for n in range(count)
    ]


async def together(nodes: list[NodeStack]) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(pull, node)


async def started(stack: AsyncExitStack, root: Path) -> Origin:
    tracker = await stack.enter_async_context(origin(root / "tracker"))
    await tracker.registry.push_image(REPO, "1", LAYER)
    return tracker


async def test_a_crowd_shares_what_it_has_from_the_first_piece(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        nodes = await crowd(stack, tmp_path, NODES, tracker=tracker.url)
        await together(nodes)
        from_tracker = sum(node.fetched.get("tracker", 0) for node in nodes)
        from_peers = sum(node.fetched.get("peer", 0) for node in nodes)
        assert from_tracker + from_peers >= NODES * len(LAYER)
        assert from_tracker <= 2 * len(LAYER), "of five that it would send without sharing"


async def test_with_the_tracker_gone_a_crowd_meets_at_the_holder(tmp_path: Path) -> None:
    """One node holds the layer; the others find it by the router and each other by its have-stream."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        nodes = await crowd(stack, tmp_path, NODES, tracker=tracker.url, network=network)
        await pull(nodes[0])
        await nodes[0].landed()
        for node in nodes[1:]:  # the tag and the claim are known, the layer is not
            assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        tracker.dead = True
        await together(nodes[1:])
        assert all(node.fetched.get("tracker", 0) == 0 for node in nodes[1:])
        assert sum(node.served for node in nodes[1:]) > 0, "they have met and shared"


async def test_a_node_that_was_not_asked_fetches_nothing(tmp_path: Path) -> None:
    """Requests of peers, and crowds they are in, make no node fetch."""
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        nodes = await crowd(stack, tmp_path, 2, tracker=tracker.url)
        assert (await request(nodes[1].url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        await pull(nodes[0])
        answer = await request(nodes[1].peer_url, "GET", f"/p2p/v1/blobs/{DIGEST}")
        assert answer.status == 404
        assert nodes[1].fetched == {}


async def test_what_a_paused_flight_has_is_shared(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        tracker = await started(stack, tmp_path)
        nodes = await crowd(stack, tmp_path, 2, tracker=tracker.url, rest=False)
        for node in nodes:
            assert (await request(node.url, "GET", f"/v2/{REPO}/manifests/1")).status == 200
        part = ("Range", f"bytes=0-{4 * MIB - 1}")
        answer = await request(nodes[0].url, "GET", f"/v2/{REPO}/blobs/{DIGEST}", headers=(part,))
        assert answer.body == LAYER[: 4 * MIB]
        first = dict(nodes[0].fetched)
        assert first["tracker"] < len(LAYER), "the rest does not follow"
        answer = await request(nodes[0].peer_url, "GET", f"/p2p/v1/blobs/{DIGEST}", headers=(part,))
        assert answer.status == 206
        assert answer.body == LAYER[: 4 * MIB]
        beyond = ("Range", f"bytes={20 * MIB}-{21 * MIB - 1}")
        assert (await request(nodes[0].peer_url, "GET", f"/p2p/v1/blobs/{DIGEST}", headers=(beyond,))).status == 416
        assert nodes[0].fetched == first, "a peer's request made it fetch"
        await pull(nodes[1])
