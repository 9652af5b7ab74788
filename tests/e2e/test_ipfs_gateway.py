"""The gateway of a real tracker: an image that was pushed can be had block by block and as CARs, while it is public."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.testing.gateway import file_of, read_car
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
