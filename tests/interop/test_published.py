"""What a tracker publishes to an IPFS daemon that is not ours, a node gets back from it when nobody else is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pregistry.testing.clients import containers
from p2pregistry.testing.cluster import eventually, separate
from p2pregistry.testing.images import MIB, Layout, make_image
from p2pregistry.testing.js_ipfs import JsIpfs

pytestmark = [pytest.mark.interop, pytest.mark.e2e]


def test_an_image_survives_its_tracker_in_a_daemon(tmp_path: Path, daemon: JsIpfs) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=3 * MIB + 11)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        separate(tmp_path / "swarm", tracker={"kubo.url": daemon.url, "ipfs.services": "kubo"}) as swarm,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        swarm.publish("acme/api", "1")
        node = swarm.add_node({"sync.patterns": "acme/**", "ipfs.use": "on", "ipfs.kubo": daemon.url})
        eventually("the tag is known", lambda: node.status()["feed_repositories"] == 1)
        eventually("the manifest is here", lambda: node.status()["manifests_waiting"] == 0)
        assert node.request("HEAD", "/v2/acme/api/manifests/1").headers["docker-content-digest"] == image.digest
        swarm.tracker.kill()
        before = node.counters()
        tools.pull(f"{node.registry}/acme/api:1", tmp_path / "pulled")
        moved = (node.counters() - before).fetched
        assert {kind for kind, count in moved.items() if count} == {"ipfs"}
        pulled = Layout(tmp_path / "pulled")
        assert all(pulled.read(part.digest) == layout.read(part.digest) for part in (image, *image.blobs))
