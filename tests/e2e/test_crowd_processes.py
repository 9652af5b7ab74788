"""A crowd of real processes that pulls the same image at once, and what happens when some of it dies or hangs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from p2pregistry.testing.cluster import Daemon, Separate, eventually, separate
from p2pregistry.testing.images import MIB, Descriptor, Layout, make_image

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("crowd")]
NAME = "acme/app"
NODES, LAYERS, LAYER_BYTES = 4, 2, 20 * MIB
#: Bytes a second that everyone sends at most, so that a pull takes some seconds and something can happen in the middle.
SLOW = {"peer.egress": str(8 * MIB)}
Pull = Future[bool]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Separate]:
    with separate(tmp_path / "swarm") as found:
        yield found


@pytest.fixture
def image(swarm: Separate, tmp_path: Path) -> Descriptor:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=LAYERS, layer_bytes=LAYER_BYTES, seed=str(tmp_path))
    swarm.push(layout, made, NAME)
    return made


def size(image: Descriptor) -> int:
    return sum(blob.size for blob in image.parts)


def layer(node: Daemon, blob: Descriptor) -> bool:
    """Whether the blob came whole; if it did it must be right, if not the client must have been able to see it."""
    try:
        answer = node.request("GET", f"/v2/{NAME}/blobs/{blob.digest}")
    except (HTTPException, OSError):
        return False
    if answer.status != 200 or len(answer.body) != blob.size:
        assert answer.status in (200, 503)
        return False
    assert "sha256:" + hashlib.sha256(answer.body).hexdigest() == blob.digest
    return True


def start(pool: ThreadPoolExecutor, nodes: list[Daemon], image: Descriptor) -> list[list[Pull]]:
    """All nodes begin in the same moment: the manifest, then every blob of it at once."""
    ready = threading.Barrier(len(nodes))

    def pull(node: Daemon) -> list[Pull]:
        ready.wait(60)
        assert node.request("GET", f"/v2/{NAME}/manifests/1").status == 200
        return [pool.submit(layer, node, blob) for blob in image.parts]

    return [future.result() for future in [pool.submit(pull, node) for node in nodes]]


def whole(pulls: list[Pull]) -> bool:
    return all(pull.result(120) for pull in pulls)


def fetched(node: Daemon) -> int:
    return sum(node.counters().fetched.values())


def some_of_it(node: Daemon, image: Descriptor, part: float) -> Callable[[], bool]:
    return lambda: fetched(node) >= part * size(image)


def test_a_crowd_shares_while_it_fetches(swarm: Separate, image: Descriptor) -> None:
    nodes = [swarm.add_node() for _ in range(NODES)]
    with ThreadPoolExecutor(32) as pool:
        assert all(whole(pulls) for pulls in start(pool, nodes, image))
    counters = [node.counters() for node in nodes]
    assert all(sum(one.fetched.values()) >= size(image) for one in counters)
    assert sum(one.fetched["tracker"] for one in counters) <= 2.5 * size(image), "of four without sharing"
    assert sum(one.fetched["peer"] for one in counters) >= 1.5 * size(image)


def test_a_member_that_dies_and_one_that_hangs_cost_the_others_nothing_but_time(
    swarm: Separate, image: Descriptor
) -> None:
    nodes = [swarm.add_node(SLOW) for _ in range(NODES)]
    with ThreadPoolExecutor(32) as pool:
        pulls = start(pool, nodes, image)
        eventually("the first has a part", some_of_it(nodes[0], image, 0.2))
        nodes[0].kill()
        with nodes[1].hung():
            assert whole(pulls[2])
            assert whole(pulls[3])
        whole(pulls[1])  # it goes on; its clients were kept waiting, no more
        for pull in pulls[0]:
            pull.result(120)


def test_with_the_tracker_dead_half_way_nobody_gets_wrong_bytes_and_all_finish_once_it_is_whole_somewhere(
    swarm: Separate, image: Descriptor
) -> None:
    nodes = [swarm.add_node(SLOW) for _ in range(NODES)]
    holder = nodes[0]
    with ThreadPoolExecutor(32) as pool:
        assert whole(start(pool, [holder], image)[0])
        pulls = start(pool, nodes[1:], image)
        eventually("the second has a part", some_of_it(nodes[1], image, 0.2))
        swarm.tracker.kill()
        assert all(whole(pulled) for pulled in pulls)
    assert all(node.counters().fetched["tracker"] <= 0.2 * size(image) for node in nodes[1:])


def test_with_the_tracker_dead_early_a_pull_fails_cleanly_or_comes_whole(swarm: Separate, image: Descriptor) -> None:
    """Some pieces may be nowhere; what a client is told then is short or an error, never wrong (``layer`` checks)."""
    nodes = [swarm.add_node({**SLOW, "fetch.stall": "1"}) for _ in range(2)]
    with ThreadPoolExecutor(32) as pool:
        pulls = start(pool, nodes, image)
        eventually("the first has something", lambda: fetched(nodes[0]) >= 2 * MIB)
        swarm.tracker.kill()
        for pulled in pulls:
            whole(pulled)
    for node in nodes:
        assert node.status()["pid"] == node.facts["pid"], "it lives on"


def test_a_part_of_a_layer_is_fetched_alone_where_the_rest_is_not_to_follow(swarm: Separate, image: Descriptor) -> None:
    node = swarm.add_node({"fetch.rest": "false"})
    blob = image.parts[-1]
    assert node.request("GET", f"/v2/{NAME}/manifests/1").status == 200
    answer = node.request(
        "GET", f"/v2/{NAME}/blobs/{blob.digest}", headers={"Range": f"bytes=0-99,{10 * MIB}-{10 * MIB + 99}"}
    )
    assert answer.status == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert fetched(node) <= 6 * MIB
    assert layer(node, blob), "all of it, when all of it is asked for"
