"""Offline day: the tracker and all peers are dead, and a node pulls an image from IPFS alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pregistry.digest import Digest
from p2pregistry.testing.clients import containers
from p2pregistry.testing.cluster import eventually, separate
from p2pregistry.testing.images import MIB, Layout, make_image
from p2pregistry.testing.kubo_process import kubo_process

pytestmark = pytest.mark.e2e


def test_with_tracker_and_peers_dead_a_node_pulls_from_ipfs_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=3, layer_bytes=2 * MIB + 11)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        kubo_process(tmp_path / "kubo") as rpc,
        separate(tmp_path / "swarm", nodes=1, tracker={"kubo.url": rpc, "ipfs.services": "kubo"}) as swarm,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        published = swarm.publish("acme/api", "1")
        assert sorted(item["kind"] for item in published) == ["blob"] * 4 + ["claim", "manifest"]
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
        eventually("all of it is kept", lambda: node.status()["blobs"] == len(image.blobs))
