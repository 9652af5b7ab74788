"""What the tracker serves to nodes."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.serve.peer_api import Slots
from p2pregistry.sources.peer import read_manifest
from p2pregistry.testing.handlers import call
from p2pregistry.testing.tracker_api import Registry, registry
from tracker.catalog.base import NewManifest
from tracker.peer_endpoints import Swarm, TrackerPeerApi

REPO = "acme/deep/blobs"
SWARM = Swarm("default", ("localhost:5000",), ("/ip4/127.0.0.1/tcp/1/p2p/x",), "k4.public.x", "v4.public.y")


@asynccontextmanager
async def both(root: Path, slots: Slots | None = None) -> AsyncIterator[tuple[Registry, TrackerPeerApi]]:
    async with registry(root) as api:
        yield api, TrackerPeerApi(api.catalog, api.store, slots or Slots(4, 4), lambda: SWARM)


async def test_blobs_of_manifests_and_only_those(tmp_path: Path) -> None:
    layer = os.urandom((2 << 20) + 100)
    async with both(tmp_path) as (api, peer):
        digest = await api.push_blob(REPO, layer)
        assert (await call(peer, "GET", f"/p2p/v1/blobs/{digest}")).code == "BLOB_UNKNOWN"  # no manifest names it yet
        assert (await call(peer, "GET", f"/p2p/v1/blobs/{digest}/table")).status == 404
        await api.push_image(REPO, "1", layer)
        whole = await call(peer, "GET", f"/p2p/v1/blobs/{digest}")
        assert (whole.status, whole.body) == (200, layer)
        part = await call(peer, "GET", f"/p2p/v1/blobs/{digest}", headers=[("Range", "bytes=1048576-2097151")])
        assert (part.status, part.body) == (206, layer[1048576:2097152])
        beyond = await call(peer, "GET", f"/p2p/v1/blobs/{digest}", headers=[("Range", "bytes=9999999-")])
        assert beyond.status == 416
        head = await call(peer, "HEAD", f"/p2p/v1/blobs/{digest}")
        assert (head.status, head.headers["content-length"]) == (200, str(len(layer)))


async def test_the_table_proves_the_pieces(tmp_path: Path) -> None:
    layer = os.urandom((2 << 20) + 100)
    async with both(tmp_path) as (api, peer):
        await api.push_image(REPO, "1", layer)
        answer = await call(peer, "GET", f"/p2p/v1/blobs/{Digest.of(layer)}/table")
        assert answer.headers["content-type"] == "application/vnd.ipld.car"
        ref = next(ref for ref in api.claims[0].blobs if ref.digest == Digest.of(layer))
        assert Metainfo.of_table(ref, read_table(answer.body)) == Metainfo.of_bytes(layer)


async def test_manifests_come_with_their_claims(tmp_path: Path) -> None:
    async with both(tmp_path) as (api, peer):
        digest, body = await api.push_image(REPO, "1", b"layer")
        await api.push_image("acme/copy", "2", b"layer")
        for reference, wanted in (("1", None), (str(digest), digest)):
            answer = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/manifests/{reference}")
            found = read_manifest(answer.body, wanted)
            assert (found.digest, found.body, found.claims) == (digest, body, ("claim 1",))
        anywhere = await call(peer, "GET", f"/p2p/v1/manifests/{digest}")
        assert read_manifest(anywhere.body, digest).claims == ("claim 2", "claim 1")
        assert base64.b64decode(anywhere.json()["manifest"]) == body
        missing = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/manifests/none")
        assert (missing.status, missing.code) == (404, "MANIFEST_UNKNOWN")
        claims = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/blobs/{Digest.of(b'layer')}/claims")
        assert claims.json() == {"claims": ["claim 1"]}
        tags = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=5")
        assert tags.json() == {"tags": ["1"]}
        assert (await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=5&last=1")).json() == {"tags": []}
        assert (await call(peer, "GET", "/p2p/v1/repositories/no/tags")).code == "NAME_UNKNOWN"


async def test_a_node_can_ask_for_one_tag_more_than_its_page(tmp_path: Path) -> None:
    async with both(tmp_path) as (api, peer):
        digest, body = await api.push_image(REPO, "0000", b"layer")
        tags = [f"{number:04}" for number in range(1, 1100)]
        new = NewManifest(digest, OCI_MANIFEST, body, (), ())
        await api.catalog.put_manifest(REPO, new, tags, lambda _blobs: "claim")
        answer = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=1001")
        assert len(answer.json()["tags"]) == 1001


async def test_the_swarm(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, peer):
        answer = (await call(peer, "GET", "/p2p/v1/swarm")).json()
        assert answer["root_key"] == "k4.public.x"
        assert answer["libp2p"] == ["/ip4/127.0.0.1/tcp/1/p2p/x"]
        assert set(answer) == {"swarm", "names", "libp2p", "root_key", "key_set", "version"}


async def test_too_many_transfers_are_turned_away(tmp_path: Path) -> None:
    async with both(tmp_path, Slots(1, 1)) as (api, peer):
        await api.push_image(REPO, "1", b"layer")
        target = f"/p2p/v1/blobs/{Digest.of(b'layer')}"
        slots = peer._slots
        await slots.take()  # a transfer under way
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, peer, "GET", target)
            await trio.testing.wait_all_tasks_blocked(0.05)
            refused = await call(peer, "GET", target)
            assert refused.status == 429
            assert "retry-after" in refused.headers
            slots.give()
        assert (await call(peer, "GET", target)).body == b"layer"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/p2p/v1/", 404),
        ("GET", "/p2p/v1/blobs/x", 400),
        ("GET", "/p2p/v1/manifests/latest", 400),
        ("GET", "/p2p/v1/repositories/manifests/x", 404),
        ("GET", "/p2p/v1/repositories/A/manifests/x", 400),
        ("GET", "/p2p/v1/repositories/../tags", 400),
        ("GET", "/p2p/v1/repositories/a/tags?n=-1", 400),
        ("GET", "/p2p/v1/repositories/a/tags?last=%00", 400),
        ("GET", "/p2p/v1/repositories/a/blobs/x/claims", 400),
        ("POST", "/p2p/v1/swarm", 405),
        ("DELETE", f"/p2p/v1/blobs/{Digest.of(b'')}", 405),
    ],
)
async def test_bad_requests(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with both(tmp_path) as (_, peer):
        answer = await call(peer, method, path)
        assert answer.status == status
        assert answer.code
