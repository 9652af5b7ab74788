"""What the tracker serves to nodes."""

from __future__ import annotations

import base64
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.messages import MAX_ANNOUNCE, Crowd, pack, read_announced
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.serve.http import BlobSlice, Request
from p2pregistry.serve.peer_api import Slots
from p2pregistry.sources.peer import read_manifest
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from p2pregistry.testing.tracker_api import SIGNED, Registry, registry
from tracker.announces import MemoryAnnounces
from tracker.announces_check import node
from tracker.announces_check import peer as peer_id
from tracker.blobs import Blobs
from tracker.board import Pace
from tracker.catalog.base import Naming, NewManifest
from tracker.catalog.check import BY
from tracker.named import Named
from tracker.peer_endpoints import Swarm, TrackerPeerApi

REPO = "acme/deep/blobs"
SWARM = Swarm("default", ("localhost:5000",), ("/ip4/127.0.0.1/tcp/1/p2p/x",), "k4.public.x", "v4.public.y")


@asynccontextmanager
async def both(root: Path, slots: Slots | None = None) -> AsyncIterator[tuple[Registry, TrackerPeerApi]]:
    async with registry(root) as api:
        yield (
            api,
            TrackerPeerApi(api.catalog, Blobs(api.catalog, api.objects), slots or Slots(4, 4), lambda: SWARM, SIGNED),
        )


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
        assert claims.json()["claims"] == ["claim 1"]
        tags = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=5")
        assert tags.json()["tags"] == ["1"]
        assert (await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=5&last=1")).json()["tags"] == []
        assert (await call(peer, "GET", "/p2p/v1/repositories/no/tags")).code == "NAME_UNKNOWN"


async def test_a_node_can_ask_for_one_tag_more_than_its_page(tmp_path: Path) -> None:
    async with both(tmp_path) as (api, peer):
        digest, body = await api.push_image(REPO, "0000", b"layer")
        tags = [f"{number:04}" for number in range(1, 1100)]
        new = NewManifest(digest, OCI_MANIFEST, body, (), ())
        await api.catalog.put_manifest(REPO, new, tags, lambda _blobs: "claim", BY)
        answer = await call(peer, "GET", f"/p2p/v1/repositories/{REPO}/tags?n=1001")
        assert len(answer.json()["tags"]) == 1001


async def test_the_swarm(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, peer):
        answer = (await call(peer, "GET", "/p2p/v1/swarm")).json()
        assert answer["root_key"] == "k4.public.x"
        assert answer["libp2p"] == ["/ip4/127.0.0.1/tcp/1/p2p/x"]
        known = {"swarm", "names", "libp2p", "root_key", "key_set", "version", "revocations", "time", "token_url"}
        assert set(answer) == known


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


async def test_nodes_are_told_of_each_other(tmp_path: Path) -> None:
    async with both(tmp_path) as (api, peer):
        await api.push_image(REPO, "1", b"layer")
        digest, unknown = Digest.of(b"layer"), Digest.of(b"of no image")
        told = Answer(200, {}, b"")
        for number in range(3):
            told = await call(peer, "POST", "/p2p/v1/announce", node(number, (unknown, digest)).encode())
            assert told.status == 200
        document = told.json()
        assert {one["peer_id"] for one in document["peers"]} == {peer_id(0), peer_id(1)}
        assert [(one["want"], one["hold"]) for one in document["peers"]] == [([1], [])] * 2
        assert document["crowd"] == [{"wanting": 0, "holding": 0}, {"wanting": 2, "holding": 0}]
        refused = await call(peer, "POST", "/p2p/v1/announce", b'{"peer_id": "x"}')
        assert (refused.status, refused.code) == (400, "ANNOUNCE_INVALID")
        assert refused.json()["errors"][0]["detail"] == {"field": "peer_id"}
        assert (await call(peer, "POST", "/p2p/v1/announce", b" " * (MAX_ANNOUNCE + 1))).status == 413


async def test_beyond_so_many_nodes_new_ones_are_turned_away(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        randrange = random.Random(1).randrange
        announces = MemoryAnnounces(Named(api.catalog), pace=Pace(), randrange=randrange, limit=2)
        peer = TrackerPeerApi(
            api.catalog, Blobs(api.catalog, api.objects), Slots(4, 4), lambda: SWARM, SIGNED, announces=announces
        )
        told = [(await call(peer, "POST", "/p2p/v1/announce", node(number).encode())).status for number in (0, 1, 2, 0)]
        assert told == [200, 200, 429, 200]
        await call(peer, "POST", "/p2p/v1/announce", node(1, leaving=True).encode())
        assert (await call(peer, "POST", "/p2p/v1/announce", node(2).encode())).status == 200


class AllPublic:
    """A catalog in which some public repository has everything."""

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        return dict.fromkeys(digests, Naming(True))


async def test_beyond_so_many_digests_new_ones_are_turned_away(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        randrange = random.Random(1).randrange
        announces = MemoryAnnounces(Named(AllPublic()), pace=Pace(), randrange=randrange, limit=100)
        peer = TrackerPeerApi(
            api.catalog, Blobs(api.catalog, api.objects), Slots(4, 4), lambda: SWARM, SIGNED, announces=announces
        )
        many = tuple(Digest.of(b"%d" % number) for number in range(1500))
        told = []
        for number, hold in (
            (0, many),
            (1, many),
            (2, many),
            (2, many[:1000]),
            (3, many[:1]),
            (0, many),
            (0, ()),
            (3, many),
        ):
            told.append((await call(peer, "POST", "/p2p/v1/announce", node(number, (), hold).encode())).status)
        assert told == [200, 200, 429, 200, 429, 200, 200, 200]


async def test_a_crowd_of_thousands(tmp_path: Path) -> None:
    async with both(tmp_path) as (api, peer):
        await api.push_image(REPO, "1", b"layer", b"other")
        want = (Digest.of(b"layer"), Digest.of(b"other"))
        for number in range(2000):
            zone = f"rack-{number % 40}"
            announce = node(number, *((want, ()) if number % 20 else ((), want)), zone=zone)
            assert (await call(peer, "POST", "/p2p/v1/announce", announce.encode())).status == 200
        named: Counter[str] = Counter()
        for number in range(1, 2000, 20):
            again = node(number, want, zone=f"rack-{number % 40}")
            told = read_announced((await call(peer, "POST", "/p2p/v1/announce", again.encode())).body, 2)
            assert told.crowd == [Crowd(1899, 100)] * 2
            assert len({one.peer_id for one in told.peers}) == 30
            assert peer_id(number) not in {one.peer_id for one in told.peers}
            assert sum(one.hold == [0, 1] for one in told.peers) == 15
            near = sum(one.zone == f"rack-{number % 40}" for one in told.peers)
            assert near >= 10  # two of three wanters
            named.update(one.peer_id for one in told.peers)
            assert told.interval > 5  # 1900 nodes that came every 3 seconds would be 633 a second
        holders = {peer_id(number) for number in range(0, 2000, 20)}
        assert holders <= set(named)  # nobody has all the work
        assert max(named[one] for one in holders) < 40


async def test_the_piece_that_was_sent_least_goes_out_next(tmp_path: Path) -> None:
    layer = os.urandom((3 << 20) + 100)
    async with both(tmp_path) as (api, peer):
        await api.push_image(REPO, "1", layer)
        target = f"/p2p/v1/blobs/{Digest.of(layer)}/next"
        sent = []
        for _ in range(4):
            answer = await call(peer, "POST", target, pack(b"\1\1\1\1"))
            assert answer.status == 206
            start = int(answer.headers["content-range"].removeprefix("bytes ").partition("-")[0])
            assert answer.body == layer[start : start + (1 << 20)]
            assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.body) - 1}/{len(layer)}"
            sent.append(start >> 20)
        assert sorted(sent) == [0, 1, 2, 3]
        wait = await call(peer, "POST", target, pack(b"\1\0\0\1"))  # both are on their way through the swarm
        assert (wait.status, wait.body) == (204, b"")
        assert 1 <= int(wait.headers["p2p-wait"]) <= 60_000


async def test_a_piece_that_broke_off_goes_out_again(tmp_path: Path) -> None:
    layer = os.urandom(2 << 20)
    async with both(tmp_path, Slots(1, 0)) as (api, peer):
        await api.push_image(REPO, "1", layer)
        target = f"/p2p/v1/blobs/{Digest.of(layer)}/next"
        for count in (0, 1000, (1 << 20) - 1):  # a slot is free each time, and the piece is wanted again
            response = await peer(Request("POST", target, (), ScriptedBody([pack(b"\1\0")])))
            assert isinstance(response.body, BlobSlice)
            assert response.body.sent is not None
            assert (response.body.offset, response.body.length) == (0, 1 << 20)
            response.body.blob.close()
            response.body.sent(count)
        assert (await call(peer, "POST", target, pack(b"\1\0"))).status == 206
        assert (await call(peer, "POST", target, pack(b"\1\0"))).status == 204


@pytest.mark.parametrize("body", [b"", b"\xf0\x00", b"\xf8", b"\xf0" * 900])
async def test_a_bitmap_of_another_blob_is_refused(tmp_path: Path, body: bytes) -> None:
    layer = os.urandom((3 << 20) + 100)
    async with both(tmp_path) as (api, peer):
        await api.push_image(REPO, "1", layer, b"")
        answer = await call(peer, "POST", f"/p2p/v1/blobs/{Digest.of(layer)}/next", body)
        assert (answer.status, answer.code) == (400, "ANNOUNCE_INVALID")
        assert answer.json()["errors"][0]["detail"] == {"field": "bitmap"}
        assert (await call(peer, "POST", f"/p2p/v1/blobs/{Digest.of(layer)}/next", b"\xf0" * 9000)).status == 413
        assert (await call(peer, "POST", f"/p2p/v1/blobs/{Digest.of(b'')}/next", b"\x80")).code == "SIZE_INVALID"


async def test_a_piece_is_chosen_when_its_turn_comes(tmp_path: Path) -> None:
    layer = os.urandom(2 << 20)
    async with both(tmp_path, Slots(1, 8)) as (api, peer):
        await api.push_image(REPO, "1", layer)
        target = f"/p2p/v1/blobs/{Digest.of(layer)}/next"
        await peer._slots.take()  # a transfer under way
        answers: list[Answer] = []

        async def ask(wanted: bytes) -> None:
            answers.append(await call(peer, "POST", target, pack(wanted)))

        async with trio.open_nursery() as nursery:
            for turn, wanted in enumerate((b"\1\0", b"\1\1", b"\1\1"), 1):
                nursery.start_soon(ask, wanted)
                while len(peer._slots._waiting) < turn:
                    await trio.sleep(0.001)
            peer._slots.give()
        # the second had waited while the first took piece 0, the third until there was none left
        ranges = [answer.headers.get("content-range") for answer in answers]
        assert ranges == ["bytes 0-1048575/2097152", "bytes 1048576-2097151/2097152", None]
        # what waited for nothing has given its turn back
        assert (await call(peer, "GET", f"/p2p/v1/blobs/{Digest.of(layer)}")).body == layer


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
        ("GET", "/p2p/v1/announce", 405),
        ("POST", "/p2p/v1/announce", 400),
        ("PUT", f"/p2p/v1/blobs/{Digest.of(b'')}/next", 405),
        ("POST", f"/p2p/v1/blobs/{Digest.of(b'')}/next", 404),
        ("POST", "/p2p/v1/blobs/x/next", 400),
        ("POST", f"/p2p/v1/blobs/{Digest.of(b'')}", 405),
    ],
)
async def test_bad_requests(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with both(tmp_path) as (_, peer):
        answer = await call(peer, method, path)
        assert answer.status == status
        assert answer.code
