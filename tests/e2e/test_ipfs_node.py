"""A node process with a gateway of IPFS: with its tracker dead it pulls from there, says so, and ends in order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.testing.http import request
from p2pregistry.testing.ipfs_gateway import StubGateway, stub_gateway
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.node_stack import origin

LAYER = random.Random(41).randbytes(5 * PIECE_SIZE + 7)
SMALL = random.Random(42).randbytes(40_000)


@asynccontextmanager
async def started(folder: Path, tracker: str, **sets: object) -> AsyncIterator[NodeProcess]:
    """A node; starting and stopping it do not hold up what lives in this process."""
    manager = node_process(folder, tracker, **sets)
    node = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield node
    except BaseException as err:
        if not manager.__exit__(type(err), err, err.__traceback__):
            raise
    else:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


async def get(base: str, target: str) -> tuple[int, bytes]:
    with trio.fail_after(30):
        answer = await request(base, "GET", target)
        return answer.status, answer.body


async def test_a_node_without_a_tracker_pulls_from_a_gateway(tmp_path: Path) -> None:
    stub = StubGateway()
    stub.add(LAYER, SMALL)
    (tmp_path / "tracker").mkdir()
    async with origin(tmp_path / "tracker") as tracker, stub_gateway(stub) as (gateway, _):
        await tracker.registry.push_image("acme/api", "1", LAYER, SMALL)
        sets = {"ipfs__use": "fallback", "ipfs__gateways": f"{gateway},http://127.0.0.1:9"}
        async with started(tmp_path / "node", tracker.url, **sets) as node:
            assert (await get(node.url, "/v2/acme/api/manifests/1"))[0] == 200
            assert stub.asked == []
            tracker.dead = True
            for data in (LAYER, SMALL):
                assert await get(node.url, f"/v2/acme/api/blobs/{Digest.of(data)}") == (200, data)
            status = await trio.to_thread.run_sync(node.status)
            assert [(entry["url"], entry["state"]) for entry in status["gateways"]] == [
                (gateway, "ok"),
                ("http://127.0.0.1:9", "resting"),
            ]
            metrics = (await get(str(node.facts["metrics_url"]), "/metrics"))[1].decode()
            counted = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
            assert float(counted['p2pregistry_fetched_bytes_total{source="ipfs"}']) >= len(LAYER) + len(SMALL)
            assert float(counted['p2pregistry_fetched_bytes_total{source="tracker"}']) == 0
            assert float(counted["p2pregistry_gateways_left_out"]) == 1
    log = (tmp_path / "node" / "log").read_text("utf-8")
    assert "a gateway is left out" in log
