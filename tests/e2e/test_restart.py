"""A node that comes back keeps its promises, also while the tracker is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pregistry.testing.cluster import Separate, eventually, separate
from p2pregistry.testing.images import MIB, Layout, make_image

pytestmark = pytest.mark.e2e


def pull(swarm: Separate, node: int, blobs: list[str]) -> None:
    for digest in blobs:
        assert swarm.nodes[node].request("GET", f"/v2/a/b/blobs/{digest}").status == 200


def test_with_the_tracker_dead_a_restarted_node_finds_the_others_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=2, layer_bytes=3 * MIB, seed="restart")
    blobs = [blob.digest for blob in image.blobs]
    with separate(tmp_path / "swarm", nodes=2) as swarm:
        swarm.push(layout, image, "a/b")
        for node in swarm.nodes:
            assert node.request("GET", "/v2/a/b/manifests/1").status == 200
        pull(swarm, 0, blobs)
        swarm.nodes[0].all_provided()
        # the second node has met the first when it was ready; the tracker's death is then nothing to it
        eventually("the nodes know each other", lambda: swarm.nodes[1].status()["peers"] >= 1)
        swarm.tracker.kill()

        second = swarm.restart_node(1)
        answer = second.request("GET", "/v2/a/b/manifests/1")
        assert answer.status == 200
        assert "last confirmed" in answer.headers["warning"]
        pull(swarm, 1, blobs)
        fetched = second.counters().fetched
        assert fetched["peer"] >= sum(blob.size for blob in image.blobs)
        assert fetched["tracker"] == 0

        # and once more: what it holds it serves without anybody
        second.all_provided()
        swarm.nodes[0].kill()
        again = swarm.restart_node(1)
        pull(swarm, 1, blobs)
        assert again.counters().fetched["peer"] == 0
