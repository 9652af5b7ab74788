"""What a node says of tags while changes are followed, while they are not, and when only peers are left."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.observe import stale_answers
from p2pregistry.routing.base import Peer
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import Request, Response
from p2pregistry.store.records import TagRecord
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.http import running
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin, peer_id
from p2pregistry.trust.records import (
    Caller,
    RepositoryClaim,
    Stamp,
    TagClaim,
    says_gone,
    sign_repository,
    sign_tag,
)

REPO = "acme/api"
TAG = f"/v2/{REPO}/manifests/1"


class Feed:
    """A feed as a test wants it to be."""

    def __init__(self) -> None:
        self.covers = False
        self.seen = 0.0
        self.used: list[str] = []
        self.went = -1

    def live(self, repository: str, tag: str) -> bool:
        return self.covers

    def confirmed(self, repository: str, tag: str) -> float:
        return self.seen

    def use(self, repository: str) -> None:
        self.used.append(repository)

    def moment(self) -> int:
        return 0

    def went_since(self, repository: str, moment: int) -> bool:
        return self.went > moment


class Clock:
    """Unix seconds, moved by hand from what they are."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@asynccontextmanager
async def both(root: Path, feed: Feed, clock: Clock, **options: object) -> AsyncIterator[tuple[Origin, NodeStack]]:
    (root / "tracker").mkdir()
    async with origin(root / "tracker") as tracker:
        options = {"tracker": tracker.url, "clock": clock, "max_age": 10.0, "feed": feed} | options
        async with node_stack(root / "node", **options) as node:  # type: ignore[arg-type]
            yield tracker, node


async def get(node: NodeStack, target: str = TAG) -> Answer:
    with trio.fail_after(20):
        return await call(node.pull, "GET", target)


def down(_request: Request) -> None:
    raise RequestError("UNSUPPORTED", "the tracker is down", status=502)


def asked(tracker: Origin) -> int:
    return sum("/manifests/" in target for target, _ in tracker.requests)


async def test_live_tags_are_served_without_a_question(tmp_path: Path) -> None:
    feed, clock = Feed(), Clock()
    async with both(tmp_path, feed, clock) as (tracker, node):
        one, _ = await tracker.registry.push_image(REPO, "1", b"one")
        await get(node)
        feed.covers = True
        clock.ahead = 100_000.0
        for _ in range(3):
            answer = await get(node)
            assert answer.headers["docker-content-digest"] == str(one)
            assert "warning" not in answer.headers
        assert asked(tracker) == 1
        assert feed.used[0] == REPO
        # the feed moves it, and what was kept ready counts no more
        two, _ = await tracker.registry.push_image(REPO, "1", b"two")
        record = node.index.tag(REPO, "1")
        assert record is not None
        await node.index.put_tag(REPO, "1", TagRecord(two, clock(), Stamp(1, record.stamp.number + 9)))
        node.index.moves += 1
        assert (await get(node)).headers["docker-content-digest"] == str(two)


async def test_an_unknown_tag_is_asked_for_however_live_its_repository_is(tmp_path: Path) -> None:
    feed = Feed()
    async with both(tmp_path, feed, Clock()) as (tracker, node):
        feed.covers = True
        assert (await get(node)).code == "MANIFEST_UNKNOWN"
        await tracker.registry.push_image(REPO, "1", b"one")
        assert (await get(node)).status == 200


async def test_what_the_feed_confirmed_a_moment_ago_is_fresh(tmp_path: Path) -> None:
    feed, clock = Feed(), Clock()
    async with both(tmp_path, feed, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"one")
        await get(node)
        clock.ahead, feed.seen = 1000.0, clock() + 995.0
        assert (await get(node)).status == 200
        assert asked(tracker) == 1
        clock.ahead += 10.0
        assert (await get(node)).status == 200
        assert asked(tracker) == 2


async def test_last_known_answers_are_as_old_as_the_last_mark_and_are_counted(tmp_path: Path) -> None:
    feed, clock = Feed(), Clock()
    before = stale_answers()._value.get()  # type: ignore[attr-defined]
    async with both(tmp_path, feed, clock, max_stale=500.0) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"one")
        await get(node)
        tracker.gate = down
        clock.ahead, feed.seen = 1000.0, clock() + 900.0
        answer = await get(node)
        assert answer.status == 200
        assert answer.headers["warning"].startswith(
            '299 - "the tracker does not answer; this tag was last confirmed 10'
        )
        assert stale_answers()._value.get() == before + 1  # type: ignore[attr-defined]
        clock.ahead += 500.0
        assert (await get(node)).status == 503


async def test_never_stale(tmp_path: Path) -> None:
    async with both(tmp_path, Feed(), Clock(), max_stale=0.0, max_age=0.0) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"one")
        assert (await get(node)).status == 200
        tracker.gate = down
        assert (await get(node)).status == 503


async def test_an_answer_does_not_undo_what_the_feed_said_meanwhile(tmp_path: Path) -> None:
    """Asked before the tag moved, answered after the feed has told of it."""
    feed, clock = Feed(), Clock()
    async with both(tmp_path, feed, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"one")
        two, _ = await tracker.registry.push_image(REPO, "2", b"two")
        await get(node)
        await get(node, f"/v2/{REPO}/manifests/2")
        clock.ahead = 100.0
        reached, go = trio.Event(), trio.Event()

        def gate(request: Request) -> trio.Event:
            reached.set()
            return go

        tracker.gate = gate
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await get(node))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await reached.wait()
            await node.index.put_tag(REPO, "1", TagRecord(two, clock(), Stamp(1, 999)))
            tracker.gate = None
            go.set()
        assert answers[0].headers["docker-content-digest"] == str(two)
        record = node.index.tag(REPO, "1")
        assert record is not None
        assert record.digest == two


async def test_an_answer_does_not_bring_back_a_repository_that_went(tmp_path: Path) -> None:
    feed, clock = Feed(), Clock()
    async with both(tmp_path, feed, clock) as (tracker, node):
        digest, _ = await tracker.registry.push_image(REPO, "1", b"one")
        await get(node)
        await node.visible.hide(REPO)
        feed.went = 1  # after each question
        layer = Digest.of(b"one")
        for target in (TAG, f"/v2/{REPO}/manifests/{digest}", f"/v2/{REPO}/blobs/{layer}", f"/v2/{REPO}/tags/list"):
            assert (await get(node, target)).status == 404
        await node.resolver.confirm([REPO])
        assert not node.visible.here(REPO)
        feed.went = -1
        clock.ahead = 100.0
        assert (await get(node)).status == 200


# ---------------------------------------------------------------------------------------------------------------- peers


@asynccontextmanager
async def three(root: Path, clock: Clock, **options: object) -> AsyncIterator[tuple[Origin, NodeStack, NodeStack]]:
    """A tracker that dies after a node has pulled from it, and a node that had only met it."""
    network = MemoryNetwork()
    async with both(root, Feed(), Clock(), network=network, name="holder") as (tracker, holder):
        await tracker.registry.push_image(REPO, "1", b"one")
        await get(holder)  # that it has the manifest is known to nobody
        options = {"tracker": tracker.url, "network": network, "clock": clock, "max_age": 10.0} | options
        async with node_stack(root / "second", **options) as node:  # type: ignore[arg-type]
            assert node.tracker is not None
            await node.trust.learn(await node.tracker.swarm())
            tracker.gate = down
            yield tracker, holder, node


async def test_a_tag_from_a_peer(tmp_path: Path) -> None:
    async with three(tmp_path, Clock()) as (tracker, holder, node):
        mine, theirs = await get(node), await get(holder)
        assert (mine.status, mine.body) == (200, theirs.body)
        assert mine.headers["warning"].startswith('299 - "the tracker does not answer; a peer has this tag as of ')
        assert (await get(node, f"/v2/{REPO}/manifests/2")).status == 503
        record = node.index.tag(REPO, "1")
        assert record is not None
        assert record.token
        tracker.requests.clear()
        assert (await call(holder.peer, "GET", f"/p2p/v1/tags/{REPO}/2")).code == "MANIFEST_UNKNOWN"
        assert tracker.requests == []  # a peer's request makes nobody ask


@pytest.mark.parametrize(("ahead", "status"), [(300.0, 200), (700.0, 503)])
async def test_the_record_of_a_peer_may_be_only_so_old(tmp_path: Path, ahead: float, status: int) -> None:
    clock = Clock()
    async with three(tmp_path, clock, peer_stale=600.0) as (_tracker, _holder, node):
        clock.ahead = ahead
        assert (await get(node)).status == status


async def test_private_repositories_go_to_those_who_may_pull_them(tmp_path: Path) -> None:
    async with three(tmp_path, Clock(), own=Caller("me", ("acme/**",))) as (tracker, holder, node):
        signer = tracker.keys.signer
        record = sign_repository(signer, RepositoryClaim(REPO, True, Stamp(1, 500), 1000))
        await holder.visible.take(await holder.trust.repository(record), record, confirmed=True)
        target = f"/p2p/v1/tags/{REPO}/1"
        assert (await call(holder.peer, "GET", target)).status == 404
        granted = Caller("12D3", ("acme/*",))

        async def as_granted(request: Request) -> Response:
            request.caller = granted
            return await holder.peer(request)

        assert (await call(as_granted, "GET", target)).json()["repository"] == record
        await holder.visible.hide(REPO)
        assert (await call(as_granted, "GET", target)).status == 404
        assert (await get(node)).status == 503


async def test_the_newest_of_several_records_and_none_that_is_forged(tmp_path: Path) -> None:
    network = MemoryNetwork()
    (tmp_path / "other").mkdir()
    async with (
        both(tmp_path, Feed(), Clock(), network=network, name="holder") as (tracker, holder),
        origin(tmp_path / "other") as other,
    ):
        one, _ = await tracker.registry.push_image(REPO, "1", b"one")
        await get(holder)
        two, _ = await tracker.registry.push_image(REPO, "2", b"two")
        await get(holder, f"/v2/{REPO}/manifests/2")
        for digest in (one, two):
            network.record(peer_id("holder"), digest, True)
        signer, now = tracker.keys.signer, int(time.time())
        repository = sign_repository(signer, RepositoryClaim(REPO, False, Stamp(1, 900), now))
        said = [
            sign_tag(other.keys.signer, TagClaim(REPO, "1", one, Stamp(1, 999), now)),
            sign_tag(signer, TagClaim(REPO, "2", one, Stamp(1, 999), now)),
            sign_tag(signer, TagClaim(REPO, "1", two, Stamp(1, 950), now)),
            "nonsense",
        ]

        def peer(token: str):  # type: ignore[no-untyped-def]
            async def handle(_request: Request) -> Response:
                return Response(200, [], b'{"tag": "%b", "repository": "%b"}' % (token.encode(), repository.encode()))

            return running(handle, grace=0.0)

        async with peer(said[0]) as a, peer(said[1]) as b, peer(said[2]) as c, peer(said[3]) as d:
            for number, url in enumerate((a, b, c, d)):
                network.router(Peer(peer_id(f"peer{number}"), url))
            async with node_stack(tmp_path / "second", tracker=tracker.url, network=network) as node:
                assert node.tracker is not None
                await node.trust.learn(await node.tracker.swarm())
                tracker.gate = down
                assert (await get(node)).headers["docker-content-digest"] == str(two)


async def test_a_tag_that_is_gone_is_told_by_its_record_alone(tmp_path: Path) -> None:
    async with three(tmp_path, Clock()) as (tracker, holder, node):
        target = f"/p2p/v1/tags/{REPO}/1"
        record = holder.index.tag(REPO, "1")
        assert record is not None
        gone = sign_tag(tracker.keys.signer, TagClaim(REPO, "1", None, Stamp(1, 700), int(time.time())))
        assert (says_gone(gone), says_gone(record.token), says_gone("x")) == (True, False, False)
        await holder.index.put_tag(REPO, "1", TagRecord(None, 0.0, record.stamp, record.token))
        assert (await call(holder.peer, "GET", target)).status == 404
        await holder.index.put_tag(REPO, "1", TagRecord(None, 0.0, Stamp(1, 700), gone))
        assert (await call(holder.peer, "GET", target)).json()["tag"] == gone
        assert (await get(node)).code == "MANIFEST_UNKNOWN"
