"""The gateway of a real tracker: an image that was pushed can be had block by block and as CARs, while it is public."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.testing.gateway import file_of, read_car
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
LAYER = random.Random(5).randbytes(2 * PIECE_SIZE + 100)
IMAGE = Image.of(b"{}", [LAYER])
INFO = Metainfo.of_bytes(LAYER)


def get(process: TrackerProcess, target: str) -> tuple[int, dict[str, str], bytes]:
    """Without credentials."""
    connection = process.connect()
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_pushed_image_can_be_had_by_ipfs_clients_while_it_is_public(tmp_path: Path) -> None:
    blocks = {
        INFO.root: INFO.dag().blocks[0],
        **{CID_RAW_PREFIX + INFO.hash(i): LAYER[i * PIECE_SIZE : (i + 1) * PIECE_SIZE] for i in range(3)},
        IMAGE.digest.cid(): IMAGE.manifest,
        Digest.of(b"{}").cid(): b"{}",
    }
    with tracker(tmp_path / "tracker") as process:
        Client(process).push("acme/api", "1", IMAGE)
        for cid, block in blocks.items():
            status, headers, body = get(process, f"/ipfs/{cid_text(cid)}?format=raw")
            assert (status, body) == (200, block)
            assert headers["access-control-allow-origin"] == "*"
        status, _, body = get(process, f"/ipfs/{cid_text(INFO.root)}?format=car&car-dups=y")
        assert file_of(INFO.root, read_car(body), dups=True) == LAYER
        host, port = process.facts["url"].removeprefix("http://").split(":")
        for cid in blocks:
            status, _, body = get(process, f"/routing/v1/providers/{cid_text(cid)}")
            (provider,) = json.loads(body)["Providers"]
            assert (provider["ID"], provider["Addrs"]) == (process.facts["peer_id"], [f"/ip4/{host}/tcp/{port}/http"])
        target = "/api/v1/repositories/acme%2Fapi/visibility"
        status, _, body = Client(process).request("PUT", target, b'{"private": true}', Content_Type="application/json")
        assert status in (200, 204), body
        for cid in blocks:
            assert get(process, f"/ipfs/{cid_text(cid)}?format=raw")[0] == 404
            assert get(process, f"/routing/v1/providers/{cid_text(cid)}")[2] == b'{"Providers":[]}'


def test_a_registry_without_anonymous_pulls_is_no_gateway(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", {"auth.anonymous_pull": "false"}) as process:
        Client(process).push("acme/api", "1", IMAGE)
        assert get(process, f"/ipfs/{cid_text(INFO.root)}?format=raw")[0] == 404
        assert get(process, "/ipfs/bafkqaaa?format=raw")[0] == 404
        assert get(process, f"/routing/v1/providers/{cid_text(INFO.root)}")[0] == 404


def pull(node: NodeProcess) -> None:
    """Through the node, as an engine does."""
    for path in ("manifests/1", f"blobs/{INFO.digest}"):
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/v2/acme/api/{path}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.close()


def fetch(url: str, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_node_with_a_gateway_is_named_and_gives_the_blocks(tmp_path: Path) -> None:
    cids = [INFO.root, *(CID_RAW_PREFIX + INFO.hash(index) for index in range(3))]
    with tracker(tmp_path / "tracker", {"gateway.private_addresses": "true"}) as process:
        Client(process).push("acme/api", "1", IMAGE)

        def named(cid: bytes) -> dict[str, str]:
            body = get(process, f"/routing/v1/providers/{cid_text(cid)}")[2]
            return {one["ID"]: one["Addrs"][0] for one in json.loads(body)["Providers"]}

        sets = {"gateway__host": "127.0.0.1", "gateway__port": 0}
        peers = process.facts["peer_url"]
        with node_process(tmp_path / "with", peers, **sets) as one, node_process(tmp_path / "without", peers) as other:
            pull(other)
            pull(one)
            url = str(one.facts["gateway_url"])
            assert "gateway_url" not in other.facts
            eventually(lambda: one.facts["peer_id"] in named(INFO.root))
            for cid in cids:
                eventually(lambda cid=cid: fetch(url, f"/ipfs/{cid_text(cid)}?format=raw")[0] == 200)  # type: ignore[misc]
                found = named(cid)
                assert set(found) == {process.facts["peer_id"], one.facts["peer_id"]}
                assert found[str(one.facts["peer_id"])] == f"/ip4/127.0.0.1/tcp/{url.rpartition(':')[2]}/http"
            car = fetch(url, f"/ipfs/{cid_text(INFO.root)}?format=car&car-dups=y")[1]
            assert file_of(INFO.root, read_car(car), dups=True) == LAYER
        # the same node without a gateway is not named, and with one finds what it has had all the time
        with node_process(tmp_path / "with", peers) as one:
            eventually(lambda: one.facts["peer_id"] not in named(INFO.root))
        with node_process(tmp_path / "without", peers, **sets) as other:
            eventually(lambda: other.facts["peer_id"] in named(INFO.root))
            url = str(other.facts["gateway_url"])
            eventually(lambda: fetch(url, f"/ipfs/{cid_text(INFO.root)}?format=raw")[0] == 200)
