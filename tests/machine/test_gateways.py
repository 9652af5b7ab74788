"""A node that fetches from IPFS: who is asked, when, and what becomes of a gateway that lies."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio
from trio.testing import MockClock

from node.settings import Ipfs
from p2pregistry.content.dag import Hint
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.crowd.gateways import Gateways, Hints
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import RequestError, Unreachable
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.pull.commands import Limits
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.sources.ipfs import IpfsSource
from p2pregistry.store.records import StoredManifest, digest_key
from p2pregistry.testing.dags import make_dag
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.ipfs_gateway import Fault, StubGateway, stub_gateway
from p2pregistry.testing.kubo import StubKubo, stub_kubo
from p2pregistry.testing.node_stack import QUICK, NodeStack, Origin, node_stack, origin
from p2pregistry.testing.tracker_api import manifest_of

REPO = "acme/api"
TAG = f"/v2/{REPO}/manifests/1"
LAYER = random.Random(31).randbytes(5 * PIECE_SIZE + 99)
SMALL = random.Random(32).randbytes(70_000)
CONFIG = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
LIMITS = replace(QUICK, starved=0.5)
#: For tests in which nobody is to be in need, however busy the machine is.
PATIENT = Limits(silence=20.0, starved=20.0, tracker_late=20.0, late_floor=20.0)


@asynccontextmanager
async def nodes(
    root: Path,
    use: str = "on",
    *,
    fault: Fault | None = None,
    empty: bool = False,
    limits: Limits = LIMITS,
    **options: Any,
) -> AsyncIterator[tuple[Origin, NodeStack, StubGateway]]:
    """A tracker with an image, a gateway with its blobs, and a node that knows the manifest."""
    (root / "tracker").mkdir()
    stub = StubGateway()
    if not empty:
        stub.add(LAYER, SMALL, CONFIG)
    async with origin(root / "tracker") as tracker, stub_gateway(stub) as (url, _):
        await tracker.registry.push_image(REPO, "1", LAYER, SMALL)
        gateways = () if use == "off" else (url,)
        ipfs = Ipfs(**{"use": use, "gateways": gateways, "timeout": 5.0, **options.pop("ipfs", {})})
        async with node_stack(root / "node", tracker=tracker.url, limits=limits, ipfs=ipfs, **options) as node:
            assert (await get(node, TAG)).status == 200
            with trio.fail_after(5):
                while node.gateways is not None and any(
                    source.health.seen is None for source in node.gateways.all[-1:]
                ):
                    await trio.sleep(0.01)  # until it has been probed
            stub.fault = fault
            yield tracker, node, stub


async def get(node: NodeStack, target: str) -> Answer:
    with trio.fail_after(30):
        return await call(node.pull, "GET", target)


async def blob(node: NodeStack, data: bytes) -> None:
    """Pull it; it is what it should be."""
    answer = await get(node, f"/v2/{REPO}/blobs/{Digest.of(data)}")
    assert (answer.status, answer.body == data) == (200, True)
    await node.landed()


async def image(node: NodeStack) -> None:
    for data in (LAYER, SMALL, CONFIG):
        await blob(node, data)


def state(node: NodeStack) -> object:
    assert node.gateways is not None
    return node.gateways.all[0].health.state


ALL = len(LAYER) + len(SMALL) + len(CONFIG)


async def test_off_nobody_is_asked(tmp_path: Path) -> None:
    async with nodes(tmp_path, "off") as (_, node, stub):
        await image(node)
        assert node.fetched == {"tracker": ALL}
        assert (stub.asked, stub.probes, node.gateways) == ([], 0, None)


async def test_on_a_gateway_and_the_tracker_share_the_work(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (tracker, node, stub), trio.open_nursery() as nursery:
        asked = trio.Event()
        tracker.gate = lambda request: asked if "/blobs/" in request.target and "/table" not in request.target else None

        async def watch() -> None:
            while node.fetched.get("ipfs", 0) < PIECE_SIZE:
                await trio.sleep(0.01)
            asked.set()

        assert stub.asked == []
        nursery.start_soon(watch)
        await image(node)
        assert node.fetched["tracker"] > 0
        assert node.fetched["ipfs"] > 0
        assert sum(node.fetched.values()) >= ALL


async def test_on_with_the_tracker_dead_all_comes_from_the_gateway(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (tracker, node, _):
        tracker.dead = True
        await image(node)
        assert node.fetched == {"ipfs": ALL}


async def test_as_a_last_resort_it_is_not_asked_while_the_tracker_delivers(tmp_path: Path) -> None:
    async with nodes(tmp_path, "fallback", limits=PATIENT) as (_, node, stub):
        await image(node)
        assert node.fetched == {"tracker": ALL}
        assert stub.asked == []
        assert stub.probes == 1, "only whether it is there"


async def test_as_a_last_resort_it_is_asked_when_the_tracker_is_dead(tmp_path: Path) -> None:
    async with nodes(tmp_path, "fallback") as (tracker, node, _):
        tracker.dead = True
        await image(node)
        assert node.fetched == {"ipfs": ALL}


def no_blobs(request: Request) -> None:
    if "/blobs/" in request.target:
        raise RequestError("UNSUPPORTED", "its object store is down", status=502)


async def test_as_a_last_resort_it_is_asked_when_the_tracker_answers_without_delivering(tmp_path: Path) -> None:
    async with nodes(tmp_path, "fallback") as (tracker, node, _):
        tracker.gate = no_blobs
        await image(node)
        assert node.fetched == {"ipfs": ALL}


async def test_as_a_last_resort_it_is_asked_when_the_tracker_hangs(tmp_path: Path) -> None:
    never = trio.Event()

    def hang(request: Request) -> trio.Event | None:
        return never if "/blobs/" in request.target and "/table" not in request.target else None

    async with nodes(tmp_path, "fallback") as (tracker, node, _):
        tracker.gate = hang
        await blob(node, LAYER)
        assert node.fetched == {"ipfs": len(LAYER)}
        never.set()


async def test_as_a_last_resort_it_is_asked_when_the_tracker_takes_questions_and_answers_none(tmp_path: Path) -> None:
    never = trio.Event()
    async with nodes(tmp_path, "fallback") as (tracker, node, _):
        tracker.gate = lambda _request: never
        await blob(node, LAYER)
        await blob(node, SMALL)
        assert node.fetched == {"ipfs": len(LAYER) + len(SMALL)}
        never.set()


async def test_with_nobody_but_a_liar_a_pull_is_refused(tmp_path: Path) -> None:
    async with nodes(tmp_path, fault="wrong block") as (tracker, node, _):
        tracker.dead = True
        for data in (LAYER, SMALL):
            assert (await get(node, f"/v2/{REPO}/blobs/{Digest.of(data)}")).status == 503
        assert state(node) == "banned"


async def test_as_a_last_resort_it_is_not_asked_where_a_peer_has_the_blob(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with nodes(tmp_path, "fallback", network=network, limits=PATIENT) as (tracker, node, stub):
        async with node_stack(tmp_path / "peer", tracker=tracker.url, network=network, name="peer") as peer:
            await get(peer, TAG)
            await blob(peer, LAYER)
            tracker.dead = True
            await blob(node, LAYER)
        assert node.fetched == {"peer": len(LAYER)}
        assert stub.asked == []


@pytest.mark.parametrize("use", ["on", "fallback"])
async def test_private_content_is_asked_of_no_gateway(tmp_path: Path, use: str) -> None:
    async with nodes(tmp_path, use) as (tracker, node, stub):
        await make_private(node)
        tracker.dead = True
        answer = await get(node, f"/v2/{REPO}/blobs/{Digest.of(LAYER)}")
        assert answer.status in (404, 503)
        assert stub.asked == []


async def make_private(node: NodeStack) -> None:
    record = node.index.repository(REPO)
    assert record is not None
    await node.index.put_repository(REPO, replace(record, private=True))


@asynccontextmanager
async def until_banned(node: NodeStack) -> AsyncIterator[trio.Event]:
    """An event that comes when the gateway is banned: others wait for it, so that it is asked for certain."""
    banned = trio.Event()

    async def watch() -> None:
        while state(node) != "banned":
            await trio.sleep(0.01)
        banned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield banned
        nursery.cancel_scope.cancel()


async def test_a_gateway_that_lies_is_banned_and_the_pull_goes_on_without_it(tmp_path: Path) -> None:
    async with nodes(tmp_path, fault="wrong block") as (tracker, node, stub), until_banned(node) as banned:
        tracker.gate = lambda request: banned if "/blobs/" in request.target else None
        await blob(node, LAYER)
        assert state(node) == "banned"
        count = len(stub.asked)
        await image(node)
        assert len(stub.asked) == count


async def test_a_gateway_that_lies_beside_an_honest_peer(tmp_path: Path) -> None:
    network, hold = MemoryNetwork(), list[trio.Event]()

    def held(handler: Handler) -> Handler:
        async def wait(request: Request) -> Response:
            if "/blobs/" in request.target:
                for event in hold:
                    await event.wait()
            return await handler(request)

        return wait

    async with nodes(tmp_path, fault="wrong block", network=network, zone="here") as (tracker, node, _):
        async with node_stack(
            tmp_path / "peer", tracker=tracker.url, network=network, name="peer", zone="there", spoil=held
        ) as peer:
            await get(peer, TAG)
            await blob(peer, LAYER)
            tracker.dead = True
            async with until_banned(node) as banned:
                hold.append(banned)
                await blob(node, LAYER)
        assert state(node) == "banned"
        assert node.fetched["peer"] >= len(LAYER)


@pytest.mark.parametrize("fault", ["broken", "html", "redirect", "dies", "endless", "busy", "unavailable", "gzip"])
async def test_a_gateway_that_is_of_no_use_costs_nothing_but_time(tmp_path: Path, fault: Fault) -> None:
    async with nodes(tmp_path, fault=fault) as (_, node, _stub):
        await image(node)
        assert node.fetched["tracker"] >= ALL
        assert state(node) != "banned"


async def test_what_a_gateway_has_not_got_is_not_asked_for_again_and_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, empty=True) as (_, node, stub):
        await image(node)
        assert node.fetched == {"tracker": ALL}
        cids = [cid for _what, cid, _range in stub.asked]
        assert len(cids) <= 4 * 2, cids


async def test_two_gateways_of_which_one_is_not_there(tmp_path: Path) -> None:
    stub = StubGateway()
    stub.add(LAYER, SMALL, CONFIG)
    async with stub_gateway(stub) as (url, _):
        ipfs = {"gateways": ("http://127.0.0.1:9", url)}
        async with nodes(tmp_path, "fallback", ipfs=ipfs) as (tracker, node, _):
            tracker.dead = True
            await image(node)
            assert node.fetched == {"ipfs": ALL}
            assert node.gateways is not None
            told = node.gateways.status()
            assert [entry["state"] for entry in told] == ["resting", "ok"]
            assert "cannot be reached" in str(told[0]["why"])
            assert node.gateways.left_out == 1


async def test_a_kubo_of_ours(tmp_path: Path) -> None:
    stub = StubKubo()
    for data in (LAYER, SMALL, CONFIG):
        stub.add(data)
    async with (
        stub_kubo(stub) as (url, _),
        nodes(tmp_path, "fallback", ipfs={"gateways": (), "kubo": url}) as (tracker, node, _),
    ):
        tracker.dead = True
        await image(node)
        assert node.fetched == {"ipfs": ALL}


# ----------------------------------------------------------------------------------------------------------- manifests


async def forget_manifest(node: NodeStack, digest: Digest) -> None:
    """The manifest is gone from the index, its claim is there."""

    def op(txn: lmdb.Transaction) -> None:
        txn.delete(digest_key(digest), db=node.index.table("manifests"))

    await node.index.write(op)
    assert node.index.manifest(digest) is None
    assert node.index.claims(REPO, digest)


@pytest.mark.parametrize("use", ["on", "fallback"])
async def test_a_manifest_whose_claim_is_known_comes_by_the_cid_of_its_digest(tmp_path: Path, use: str) -> None:
    async with nodes(tmp_path, use) as (tracker, node, stub):
        body = (await get(node, TAG)).body
        digest = Digest.of(body)
        await forget_manifest(node, digest)
        tracker.dead = True
        assert (await get(node, f"/v2/{REPO}/manifests/{digest}")).status == 503
        stub.add(body)
        answer = await get(node, f"/v2/{REPO}/manifests/{digest}")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, body, OCI_MANIFEST)
        await image(node)
        assert node.fetched == {"ipfs": ALL}


async def test_a_manifest_of_a_private_repository_or_without_a_claim_does_not(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (tracker, node, stub):
        body = (await get(node, TAG)).body
        stub.add(body, b"{}")
        tracker.dead = True
        count = len(stub.asked)
        assert (await get(node, f"/v2/{REPO}/manifests/{Digest.of(b'{}')}")).status == 503
        await make_private(node)
        await forget_manifest(node, Digest.of(body))
        assert (await get(node, f"/v2/{REPO}/manifests/{Digest.of(body)}")).status in (404, 503)
        assert len(stub.asked) == count


# ------------------------------------------------------------------------------------------------------- coming back


class Scripted:
    """A gateway that is there or not."""

    name, ranges = "http://scripted", False

    def __init__(self) -> None:
        self.there, self.probes, self.closed = False, 0, False

    def block(self, cid: bytes) -> Any:
        raise AssertionError("nothing is wanted of it")

    def car(self, cid: bytes, start: int, end: int, most: int) -> Any:
        raise AssertionError("nothing is wanted of it")

    async def probe(self) -> None:
        await trio.lowlevel.checkpoint()
        self.probes += 1
        if not self.there:
            raise Unreachable("not there")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


async def test_one_that_was_left_out_is_probed_less_and_less_often_until_it_answers(autojump_clock: MockClock) -> None:
    place = Scripted()
    gateways = Gateways(lambda common: [IpfsSource(place, common)], info=lambda _digest: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateways.run)
        await trio.sleep(60)  # after 15 and 30 more
        assert (place.probes, gateways.left_out) == (3, 1)
        assert gateways.status()[0]["why"] == "not there"
        place.there = True
        await trio.sleep(60)
        assert (place.probes, gateways.left_out) == (4, 0)
        await trio.sleep(1000)
        assert place.probes == 4, "one that is well is left in peace"
        nursery.cancel_scope.cancel()
    assert place.closed


async def test_one_that_never_ends_its_answer_to_a_probe_keeps_no_other_from_being_probed(
    autojump_clock: MockClock,
) -> None:
    class Endless(Scripted):
        async def probe(self) -> None:
            await trio.sleep(1e6)  # as where a byte comes now and then

    well = Scripted()
    gateways = Gateways(lambda common: [IpfsSource(place, common) for place in (Endless(), well)], info=lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateways.run)
        await trio.sleep(1)
        well.there = True
        await trio.sleep(120)
        assert [entry["state"] for entry in gateways.status()] == ["resting", "ok"]
        nursery.cancel_scope.cancel()


# --------------------------------------------------------------------------------------------------------------- hints


async def push_with_urls(tracker: Origin, urls: dict[bytes, str]) -> None:
    manifest = json.loads(manifest_of(CONFIG, LAYER, SMALL))
    for item in (manifest["config"], *manifest["layers"]):
        for data, url in urls.items():
            if item["digest"] == str(Digest.of(data)):
                item["urls"] = ["https://example.com/elsewhere", url]
    body = json.dumps(manifest).encode()
    answer = await tracker.registry("PUT", f"/v2/{REPO}/manifests/1", body, headers=[("Content-Type", OCI_MANIFEST)])
    assert answer.status == 201, answer


@pytest.mark.parametrize("table", [True, False], ids=["with its table", "without"])
async def test_another_layout_through_a_hint_where_our_root_is_known_to_nobody(tmp_path: Path, table: bool) -> None:
    foreign = make_dag(LAYER, chunk=262_144, width=174, leaves="file", v0=True)
    small = make_dag(SMALL, chunk=10_000, width=3)
    async with nodes(tmp_path, "fallback", empty=True) as (tracker, node, stub):
        stub.blocks = foreign.blocks | small.blocks
        stub.add(CONFIG)
        await push_with_urls(
            tracker, {LAYER: f"ipfs://{cid_text(foreign.root)}", SMALL: f"ipfs://{cid_text(small.root)}"}
        )
        async with node_stack(
            tmp_path / "other",
            tracker=tracker.url,
            limits=LIMITS,
            ipfs=Ipfs(use="fallback", gateways=(stub_url(node),)),
        ) as other:
            assert (await get(other, TAG)).status == 200
            if table:
                await other.index.put_metainfo(Metainfo.of_bytes(LAYER))
            tracker.dead = True
            await image(other)
            assert other.fetched == {"ipfs": ALL}
            assert state(other) == "ok"


def stub_url(node: NodeStack) -> str:
    assert node.gateways is not None
    return node.gateways.all[0].name


def test_hints_are_read_from_manifests_and_bounded() -> None:
    root = make_dag(b"x" * 10).root
    document = json.loads(manifest_of(CONFIG, LAYER))
    document["layers"][0]["urls"] = [f"ipfs://{cid_text(root)}/{n}" for n in range(30)] + ["ipfs://nonsense"]
    hints = Hints()
    for body in (json.dumps(document).encode(), b"{}", b"\xff"):
        hints.learn(StoredManifest(Digest.of(body), OCI_MANIFEST, body))
    assert hints.of(Digest.of(LAYER)) == tuple(Hint(root, (str(n),)) for n in range(4))
    assert hints.of(Digest.of(CONFIG)) == ()
