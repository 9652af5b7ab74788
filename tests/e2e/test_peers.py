"""What moves between nodes: nearly all of an image comes from peers, also with the tracker dead."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pregistry.testing.clients import Containers, containers
from p2pregistry.testing.cluster import Answer, Daemon, Separate, separate
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


def pushed(swarm: Separate, image: Descriptor, layout: Layout, name: str) -> None:
    """Push as a client does, one request for a blob."""

    def ask(method: str, target: str, status: int, body: bytes | None = None, kind: str = "") -> Answer:
        answer = swarm.tracker.request(method, target, body, swarm.authorization | {"Content-Type": kind})
        assert answer.status == status, answer.body
        return answer

    for blob in image.blobs:
        place = ask("POST", f"/v2/{name}/blobs/uploads/", 202).headers["location"]
        ask("PUT", f"{place}?digest={blob.digest}", 201, layout.read(blob.digest), "application/octet-stream")
    ask("PUT", f"/v2/{name}/manifests/1", 201, layout.read(image.digest), image.media_type)


def read(node: Daemon, name: str, blob: Descriptor) -> None:
    answer = node.request("GET", f"/v2/{name}/blobs/{blob.digest}")
    assert answer.status == 200, answer.body
    assert "sha256:" + hashlib.sha256(answer.body).hexdigest() == blob.digest


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


def test_a_killed_node_does_not_show_in_the_answers_of_another(swarm: Separate, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=3, layer_bytes=3 * MIB)
    pushed(swarm, image, layout, "some/image")
    first, second = swarm.nodes
    third = swarm.add_node()
    for node in (first, second):
        assert node.request("GET", "/v2/some/image/manifests/1").status == 200
        for blob in image.blobs:
            read(node, "some/image", blob)
        node.all_provided()
    first.kill()
    assert third.request("GET", "/v2/some/image/manifests/1").status == 200
    with ThreadPoolExecutor(len(image.blobs)) as readers:
        list(readers.map(lambda blob: read(third, "some/image", blob), image.blobs))


def test_looking_at_a_cold_blob_fetches_nothing(swarm: Separate, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=2, layer_bytes=2 * MIB)
    pushed(swarm, image, layout, "cold/image")
    node = swarm.nodes[0]
    assert node.request("HEAD", "/v2/cold/image/manifests/1").status == 200
    for blob in image.blobs:
        answer = node.request("HEAD", f"/v2/cold/image/blobs/{blob.digest}")
        assert answer.status == 200
        assert answer.headers["content-length"] == str(blob.size)
        assert answer.headers["docker-content-digest"] == blob.digest
    assert set(node.counters().fetched.values()) == {0}
    assert node.status()["downloads"] == 0
    assert node.status()["blobs"] == 0
