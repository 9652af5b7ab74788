"""What a node says of tags and manifests: fresh, last known, or refused; never without a claim of the pinned root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.routing.base import Peer
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import Request
from p2pregistry.sources.tracker import Swarm
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin, peer_id
from p2pregistry.trust.keys import TrackerKeys

REPO = "acme/api"
TAG = f"/v2/{REPO}/manifests/1"


class Clock:
    """Unix seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def both(root: Path, clock: Clock, **options: object) -> AsyncIterator[tuple[Origin, NodeStack]]:
    (root / "tracker").mkdir()
    async with origin(root / "tracker") as tracker:
        options = {"tracker": tracker.url, "clock": clock, "max_age": 10.0} | options
        async with node_stack(root / "node", **options) as node:  # type: ignore[arg-type]
            yield tracker, node


async def get(node: NodeStack, target: str = TAG, method: str = "GET") -> Answer:
    with trio.fail_after(20):
        return await call(node.pull, method, target)


def down(_request: Request) -> None:
    raise RequestError("UNSUPPORTED", "the tracker is down", status=502)


def gone_from_the_tracker(_request: Request) -> None:
    raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest")


def asked(tracker: Origin) -> int:
    return sum("/manifests/" in target for target, _ in tracker.requests)


async def test_a_fresh_tag_is_not_asked_for_again(tmp_path: Path) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        digest, body = await tracker.registry.push_image(REPO, "1", b"layer")
        for _ in range(3):
            for method in ("HEAD", "GET"):
                answer = await get(node, method=method)
                assert (answer.status, answer.headers["docker-content-digest"]) == (200, str(digest))
        assert answer.body == body
        assert asked(tracker) == 1
        clock.now += 11
        assert (await get(node)).status == 200
        assert asked(tracker) == 2


async def test_a_tag_that_moved_and_one_that_is_gone(tmp_path: Path) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"one")
        await get(node)
        moved, body = await tracker.registry.push_image(REPO, "1", b"two")
        clock.now += 11
        assert (await get(node)).body == body
        tracker.gate = gone_from_the_tracker
        clock.now += 11
        gone = await get(node)
        assert (gone.status, gone.code) == (404, "MANIFEST_UNKNOWN")
        tracker.gate = down
        assert (await get(node)).status == 503  # forgotten, not last known
        assert (await get(node, f"/v2/{REPO}/manifests/{moved}")).body == body


async def test_unknown_tags_and_repositories(tmp_path: Path) -> None:
    async with both(tmp_path, Clock()) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        for target in (f"/v2/{REPO}/manifests/2", "/v2/no/manifests/1", f"/v2/{REPO}/manifests/{Digest.of(b'x')}"):
            assert (await get(node, target)).code == "MANIFEST_UNKNOWN"
        assert (await get(node, "/v2/no/tags/list")).code == "NAME_UNKNOWN"
        assert (await get(node, f"/v2/{REPO}/blobs/{Digest.of(b'x')}")).code == "BLOB_UNKNOWN"


async def test_many_who_want_an_unknown_tag_are_each_told(tmp_path: Path) -> None:
    async with both(tmp_path, Clock()) as (tracker, node):
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await get(node))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert [answer.code for answer in answers] == ["MANIFEST_UNKNOWN"] * 5
        assert asked(tracker) == 1


@pytest.mark.parametrize("max_stale", [None, 100.0])
async def test_the_last_known_tag_goes_out_with_a_warning(tmp_path: Path, max_stale: float | None) -> None:
    clock = Clock()
    async with both(tmp_path, clock, max_stale=max_stale) as (tracker, node):
        _, body = await tracker.registry.push_image(REPO, "1", b"layer")
        await get(node)
        tracker.gate = down
        clock.now += 50
        known = await get(node)
        assert (known.status, known.body) == (200, body)
        assert known.headers["warning"].startswith('299 - "')
        assert "50 seconds" in known.headers["warning"]
        tags = await get(node, f"/v2/{REPO}/tags/list")
        assert tags.json() == {"name": REPO, "tags": ["1"]}
        assert "warning" in tags.headers
        clock.now += 51
        assert (await get(node)).status == (200 if max_stale is None else 503)
        tracker.gate = None
        with trio.fail_after(10):  # it is left alone for a moment after a failure
            while (again := await get(node)).status != 200 or "warning" in again.headers:
                await trio.lowlevel.checkpoint()


async def test_a_tracker_that_hangs(tmp_path: Path) -> None:
    """It is waited for once; then pulls are answered at once from what is known."""
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        await get(node)
        clock.now += 11
        tracker.gate = lambda _request: trio.Event()
        with trio.fail_after(5):
            assert "warning" in (await get(node)).headers
        with trio.fail_after(0.4):
            assert "warning" in (await get(node)).headers
            assert (await get(node, "/v2/other/manifests/1")).status == 503


async def test_another_root_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    root_key = TrackerKeys.load_or_create(tmp_path / "other").root_public
    async with both(tmp_path, Clock(), root_key=root_key) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        assert (await get(node)).status == 503
        assert node.index.manifest_digests() == []
        assert node.trust.root_key == root_key


async def test_the_first_root_key_seen_stays_pinned(tmp_path: Path) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        await get(node)
        pinned = node.trust.root_key
        assert pinned == tracker.keys.root_public
    (tmp_path / "other").mkdir()
    clock.now += 11
    async with origin(tmp_path / "other") as other:
        await other.registry.push_image(REPO, "1", b"evil")
        async with node_stack(tmp_path / "node", tracker=other.url, clock=clock, max_age=10.0) as node:
            assert (await get(node)).status == 503
            assert node.trust.root_key == pinned


async def test_a_claim_for_another_repository_gives_nothing(tmp_path: Path) -> None:
    clock, network = Clock(), MemoryNetwork()
    async with both(tmp_path, clock, network=network, name="holder") as (tracker, holder):
        digest, body = await tracker.registry.push_image(REPO, "1", b"layer")
        await get(holder)
        network.record(peer_id("holder"), digest, True)
        async with node_stack(tmp_path / "second", tracker=tracker.url, network=network, clock=clock) as node:
            await node.trust.learn(await _swarm(node))
            tracker.gate = down
            assert (await get(node, f"/v2/acme/other/manifests/{digest}")).status == 503
            assert (await get(node, f"/v2/acme/other/blobs/{Digest.of(b'layer')}")).status in (404, 503)
            # from a peer, for the repository that its claim names, with the tracker down
            assert (await get(node, f"/v2/{REPO}/manifests/{digest}")).body == body


async def _swarm(node: NodeStack) -> Swarm:
    assert node.tracker is not None
    return await node.tracker.swarm()


async def test_peers_with_bad_addresses_do_not_hide_a_good_one(tmp_path: Path) -> None:
    clock, network = Clock(), MemoryNetwork()
    async with both(tmp_path, clock, network=network, name="holder") as (tracker, holder):
        digest, body = await tracker.registry.push_image(REPO, "1", b"layer")
        await get(holder)
        for number, url in enumerate(("ftp://x", "http://127.0.0.1:99999", "http://127.0.0.1:1")):
            network.router(Peer(f"bad{number}", url)).hold([digest])
        network.record(peer_id("holder"), digest, True)
        async with node_stack(tmp_path / "second", tracker=tracker.url, network=network, clock=clock) as node:
            await node.trust.learn(await _swarm(node))
            tracker.gate = down
            assert (await get(node, f"/v2/{REPO}/manifests/{digest}")).body == body
