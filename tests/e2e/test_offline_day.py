"""Offline day: the tracker and all peers are dead, and a node pulls an image from IPFS alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.image.export import write_car
from p2pregistry.image.inventory import take
from p2pregistry.ipfs.kubo import kubo_config, open_kubo
from p2pregistry.testing.clients import containers
from p2pregistry.testing.cluster import eventually, separate
from p2pregistry.testing.images import MIB, Layout, make_image
from p2pregistry.testing.kubo_process import kubo_process
from p2pregistry.testing.shelf import Shelf

pytestmark = pytest.mark.e2e


def publish(rpc: str, layout: Layout, top: str, car: Path) -> None:
    shelf = Shelf(layout, top)
    write_car(shelf, take(shelf, "1", None).items, car)

    async def go() -> None:
        async def file() -> AsyncIterator[bytes]:
            yield car.read_bytes()

        async with open_kubo(kubo_config(rpc)) as daemon:
            await daemon.dag_import(file())

    trio.run(go)


def test_with_tracker_and_peers_dead_a_node_pulls_from_ipfs_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=3, layer_bytes=2 * MIB + 11)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        kubo_process(tmp_path / "kubo") as rpc,
        separate(tmp_path / "swarm", nodes=1) as swarm,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        publish(rpc, layout, image.digest, tmp_path / "image.car")
        (peer,) = swarm.nodes
        tools.pull(f"{peer.registry}/acme/api:1", tmp_path / "peer")
        node = swarm.add_node({"sync.patterns": "acme/**", "ipfs.use": "fallback", "ipfs.kubo": rpc})
        # it knows the tag and the claim, and has no blob
        eventually("the tag is known", lambda: node.status()["feed_repositories"] == 1)
        eventually("the manifest is here", lambda: node.status()["manifests_waiting"] == 0)
        assert node.request("HEAD", "/v2/acme/api/manifests/1").headers["docker-content-digest"] == image.digest
        assert node.status()["blobs"] == 0
        swarm.tracker.kill()
        peer.kill()
        before = node.counters()
        tools.pull(f"{node.registry}/acme/api:1", tmp_path / "pulled")
        moved = (node.counters() - before).fetched
        assert {kind for kind, count in moved.items() if count} == {"ipfs"}
        assert moved["ipfs"] >= sum(blob.size for blob in image.blobs)
        pulled = Layout(tmp_path / "pulled")
        for part in (image, *image.blobs):
            assert Digest.of(pulled.read(part.digest)) == Digest.parse(part.digest)
        # and has it from now on
        assert node.status()["blobs"] == len(image.blobs)
