"""Helia, which knows nothing of us, fetches public images from a tracker that it finds by Delegated Routing; and nodes
pull from Helia's gateway when nobody else is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import cid_text
from p2pregistry.ports import free_ports
from p2pregistry.testing.clients import containers
from p2pregistry.testing.cluster import eventually, separate
from p2pregistry.testing.helia import Helia
from p2pregistry.testing.images import MIB, Layout, make_image

pytestmark = [pytest.mark.interop, pytest.mark.e2e]


def test_helia_fetches_a_pushed_image_through_routing_and_gateway(
    tmp_path: Path, helia_asking: Callable[..., AbstractContextManager[Helia]]
) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=3 * MIB + 11)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        separate(tmp_path / "swarm") as swarm,
        helia_asking(str(swarm.tracker.facts["url"])) as helia,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        for part in (image, *image.parts):
            data = layout.read(part.digest)
            root = cid_text(Metainfo.of_bytes(data).root)
            assert helia.fetch(root, tmp_path / "fetched") == len(data)
            assert (tmp_path / "fetched").read_bytes() == data
        # what nobody has is not found: the tracker does not send its clients to itself for it
        nothing = cid_text(Metainfo.of_bytes(b"nothing").root)
        with pytest.raises(AssertionError):
            helia.fetch(nothing, tmp_path / "fetched")


def test_helia_is_told_of_a_node_that_has_the_image_and_fetches_from_it(
    tmp_path: Path, helia_asking: Callable[..., AbstractContextManager[Helia]]
) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=1, layer_bytes=6 * MIB + 11)
    layer = image.parts[1]
    root = cid_text(Metainfo.of_bytes(layout.read(layer.digest)).root)
    (port,) = free_ports(1)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        separate(tmp_path / "swarm", tracker={"gateway.private_addresses": "true"}) as swarm,
        # of those who have it Helia takes the first; so it asks for addresses of a kind that only the node has
        helia_asking(str(swarm.tracker.facts["url"]), "dns") as helia,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        gateway = {"gateway.host": "127.0.0.1", "gateway.port": str(port)}
        node = swarm.add_node({**gateway, "gateway.advertise": f"http://localhost:{port}"})
        tools.pull(f"{node.registry}/acme/api:1", tmp_path / "pulled")
        told = f"/routing/v1/providers/{root}?filter-addrs=dns"
        eventually("the node is named", lambda: b"localhost" in swarm.tracker.request("GET", told).body)
        assert helia.fetch(root, tmp_path / "fetched") == layer.size
        assert (tmp_path / "fetched").read_bytes() == layout.read(layer.digest)
        assert node.counters().served["gateway"] >= layer.size
        assert swarm.tracker.counters().served["gateway"] == 0


def test_nodes_pull_from_helias_gateway_with_tracker_and_peers_dead(tmp_path: Path, helia_node: Helia) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=5 * MIB + 11)
    with containers("skopeo", tmp_path / "skopeo") as tools, separate(tmp_path / "swarm") as swarm:
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        car = tmp_path / "image.car"
        name = f"{swarm.tracker.registry}/acme/api:1"
        command = [sys.executable, "-m", "p2pregistry", "image", "export", name, "--car", str(car)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        helia_node.take_car(car)
        nodes = {}
        for mode in ("raw", "car"):
            ipfs = {"ipfs.use": "fallback", "ipfs.mode": mode, "ipfs.gateways": helia_node.gateway}
            nodes[mode] = swarm.add_node({"sync.patterns": "acme/**", **ipfs})
        for node in nodes.values():
            eventually("the tag is known", lambda node=node: node.status()["feed_repositories"] == 1)
            eventually("the manifest is here", lambda node=node: node.status()["manifests_waiting"] == 0)
            assert node.request("HEAD", "/v2/acme/api/manifests/1").headers["docker-content-digest"] == image.digest
            assert node.status()["blobs"] == 0
        swarm.tracker.kill()
        for mode, node in nodes.items():
            before = node.counters()
            tools.pull(f"{node.registry}/acme/api:1", tmp_path / mode)
            moved = (node.counters() - before).fetched
            assert {kind for kind, count in moved.items() if count} == {"ipfs"}
            assert moved["ipfs"] >= sum(blob.size for blob in image.blobs)
            pulled = Layout(tmp_path / mode)
            assert all(pulled.read(part.digest) == layout.read(part.digest) for part in (image, *image.blobs))
            node.kill()  # so that the next one has nobody but the gateway
