"""What moves between nodes: nearly all of an image comes from peers, also with the tracker dead."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pregistry.testing.clients import Containers, containers
from p2pregistry.testing.cluster import Daemon, Separate, separate
from p2pregistry.testing.images import MIB, Descriptor, Layout, make_image

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("peers")]
LAYERS, LAYER_BYTES = 6, 50 * MIB


@pytest.fixture(scope="module")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with containers("skopeo", tmp_path_factory.mktemp("skopeo")) as found:
        yield found


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Separate]:
    with separate(tmp_path / "swarm", nodes=2) as found:
        yield found
    for left in tmp_path.iterdir():  # gigabytes that pytest would keep for three runs
        shutil.rmtree(left)


def read(node: Daemon, name: str, blob: Descriptor) -> None:
    answer = node.request("GET", f"/v2/{name}/blobs/{blob.digest}")
    assert answer.status == 200, answer.body
    check(blob, answer.body)


def check(blob: Descriptor, body: bytes) -> None:
    assert len(body) == blob.size
    assert "sha256:" + hashlib.sha256(body).hexdigest() == blob.digest


@pytest.mark.slow
def test_300_mb_come_from_peers_and_all_of_it_once_the_tracker_is_dead(
    swarm: Separate, skopeo: Containers, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=LAYERS, layer_bytes=LAYER_BYTES, seed=str(tmp_path))
    layers = sum(blob.size for blob in image.blobs[1:])
    everything = layers + image.blobs[0].size
    skopeo.push(layout, f"{swarm.tracker.registry}/big/image:1", swarm)

    # "at least": what two sources sent of one piece near the end is counted twice
    first, second = swarm.nodes
    skopeo.pull(f"{first.registry}/big/image:1", tmp_path / "first")
    fetched = first.counters().fetched
    assert fetched["tracker"] >= everything
    assert fetched["peer"] == 0
    first.all_provided()
    skopeo.pull(f"{second.registry}/big/image:1", tmp_path / "second")
    fetched = second.counters().fetched
    assert fetched["peer"] + fetched["tracker"] >= everything
    assert fetched["peer"] >= 0.95 * layers
    assert fetched["tracker"] <= 0.05 * layers
    assert first.counters().served["peer"] >= 0.95 * layers

    second.all_provided()
    third = swarm.add_node()
    assert third.request("HEAD", "/v2/big/image/manifests/1").headers["docker-content-digest"] == image.digest
    assert set(third.counters().fetched.values()) == {0}
    swarm.tracker.kill()
    skopeo.pull(f"{third.registry}/big/image:1", tmp_path / "third")
    fetched = third.counters().fetched
    assert fetched["peer"] >= everything
    assert fetched["tracker"] == 0


@pytest.mark.slow
def test_a_peer_that_hangs_or_dies_in_the_middle_is_not_noticed(swarm: Separate, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=2, layer_bytes=64 * MIB, seed=str(tmp_path))
    swarm.push(layout, image, "some/image")
    first, second = swarm.nodes
    for node in (first, second):
        assert node.request("GET", "/v2/some/image/manifests/1").status == 200
        for blob in image.blobs:
            read(node, "some/image", blob)
        node.all_provided()
    third = swarm.add_node({"fetch.stall": "1s"})
    assert third.request("GET", "/v2/some/image/manifests/1").status == 200
    swarm.tracker.kill()

    _, hanging, dying = image.blobs
    with third.reading(f"/v2/some/image/blobs/{hanging.digest}") as answer:
        begin = answer.read(1)
        with first.hung():
            check(hanging, begin + answer.read())
    with third.reading(f"/v2/some/image/blobs/{dying.digest}") as answer:
        begin = answer.read(1)
        first.kill()
        check(dying, begin + answer.read())
