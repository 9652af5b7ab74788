"""A tracker and nodes that speak TLS with their own keys, as processes."""

from __future__ import annotations

import random
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.demo import counters
from p2pregistry.digest import Digest
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
PATIENCE = 60.0
IMAGE = Image.of(b"{}", [random.Random(3).randbytes(12_345_678)])


def read(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Accept": "*/*"})
    with opener.open(request, timeout=PATIENCE) as answer:
        return bytes(answer.read())


def node(folder: Path, process: TrackerProcess, peer_id: str) -> AbstractContextManager[NodeProcess]:
    folder.mkdir()
    token = process.invite(folder / "join-token", 1)
    sets = {"peer__plain": False, "tracker__peer_id": peer_id, "tracker__join_file": token, "tags__max_age": 60}
    return node_process(folder, process.facts["peer_url"], **sets)


def test_an_image_goes_over_tls_from_the_tracker_to_a_node_and_from_node_to_node(tmp_path: Path) -> None:
    blob = IMAGE.blobs[1]
    path = f"/v2/acme/api/blobs/{Digest.of(blob)}"
    with tracker(tmp_path / "tracker", {"peer.plain": "false"}) as process:
        Client(process).push("acme/api", "1", IMAGE)
        assert process.facts["peer_url"].startswith("https://")
        known = process.facts["peer_id"]
        with node(tmp_path / "one", process, known) as one, node(tmp_path / "two", process, known) as two:
            for each in (one, two):
                assert each.peer_url.startswith("https://")
                assert read(f"{each.url}/v2/acme/api/manifests/1") == IMAGE.manifest
                assert read(each.url + path) == blob
            page = read(f"{two.facts['metrics_url']}/metrics").decode()
            fetched = counters(page, "p2pregistry_fetched_bytes_total", "source")
            assert fetched.get("peer", 0) > len(blob) // 2
        stranger = base58(peer_id_of(Ed25519PrivateKey.generate()))
        with pytest.raises(AssertionError, match="another one"), node(tmp_path / "three", process, stranger):
            pass
