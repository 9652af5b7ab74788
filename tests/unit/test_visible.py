"""What a node believes of tags and repositories, what it forgets, and which Host headers it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.joining import Joining
from node.settings import NodeSettings
from node.standing import Standing
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.body import NO_BODY
from p2pregistry.serve.hosts import Hosts, host_of
from p2pregistry.serve.http import Request
from p2pregistry.store.forget import keep_only
from p2pregistry.store.index import open_index
from p2pregistry.store.records import RepositoryRecord, StoredManifest, TagRecord
from p2pregistry.testing.handlers import call
from p2pregistry.testing.members import Authority
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin
from p2pregistry.trust.records import (
    ANYONE,
    Caller,
    RepositoryClaim,
    Stamp,
    TagClaim,
    sign_repository,
    sign_tag,
)
from p2pregistry.trusting import Trust
from p2pregistry.visible import Visible, newer_tag
from tracker.catalog.check import BY
from tracker.signed import read_names

REPO, TAG = "acme/api", "/v2/acme/api/manifests/1"
INSIDE = Caller("N" * 40, ("acme/*",))


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def both(root: Path, clock: Clock) -> AsyncIterator[tuple[Origin, NodeStack]]:
    (root / "tracker").mkdir()
    async with (
        origin(root / "tracker") as tracker,
        node_stack(root / "node", tracker=tracker.url, clock=clock, max_age=10.0) as node,
    ):
        yield tracker, node


async def status(node: NodeStack, target: str = TAG) -> int:
    return (await call(node.pull, "GET", target)).status


async def test_a_repository_that_becomes_private_is_served_no_more(tmp_path: Path) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        digest, _ = await tracker.registry.push_image(REPO, "1", b"layer")
        blob = Digest.of(b"layer")
        targets = (TAG, f"/v2/{REPO}/manifests/{digest}", f"/v2/{REPO}/blobs/{blob}")
        assert [await status(node, target) for target in targets] == [200] * 3
        await node.landed()
        peer = f"/p2p/v1/blobs/{blob}"
        assert (await call(node.peer, "GET", peer)).status == 200
        await tracker.registry.catalog.set_visibility(REPO, True, BY)
        await node.resolver.confirm(node.visible.used())
        assert [await status(node, target) for target in targets] == [404] * 3
        assert (await call(node.peer, "GET", peer)).status == 404
        assert (await call(node.peer, "GET", f"/p2p/v1/manifests/{digest}")).status == 404
        tracker.dead = True
        assert [await status(node, target) for target in targets] == [503] * 3
        tracker.dead = False
        assert node.tracker is not None
        while node.tracker.down:  # it is left alone for a moment after a failure
            await trio.lowlevel.checkpoint()
        await tracker.registry.catalog.set_visibility(REPO, False, BY)
        await node.resolver.confirm([REPO])
        assert [await status(node, target) for target in targets] == [200] * 3


async def test_what_is_public_is_doubted_in_turn_though_nobody_asks(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        for name in ("a", "a/b", "c", "d", "e"):
            await index.put_repository(name, RepositoryRecord(name == "c", Stamp(1, 1), ""))
        visible = Visible(index)
        assert [visible.doubtful(2) for _ in range(4)] == [["a", "a/b"], ["d", "e"], [], ["a", "a/b"]]
        await visible.hide("d")
        assert visible.doubtful(9) == ["e"]
        assert visible.doubtful(9) == ["a", "a/b", "e"]


async def test_a_tag_that_is_not_there_any_more_tells_of_its_repository(tmp_path: Path) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        digest, _ = await tracker.registry.push_image(REPO, "1", b"layer")
        assert await status(node) == 200
        await tracker.registry.catalog.set_visibility(REPO, True, BY)
        clock.now += 11
        assert await status(node) == 404
        assert await status(node, f"/v2/{REPO}/manifests/{digest}") == 404, "at once, not at the next round"


def forged(tracker: Origin, stamp: Stamp, kind: str) -> str:
    """A record of this kind with this stamp, signed by a key that is nobody's, or by the tracker's."""
    signer = Authority().signer if kind == "foreign" else tracker.keys.signer
    return sign_repository(signer, RepositoryClaim(REPO, False, stamp, 1))


@pytest.mark.parametrize("kind", ["none", "foreign", "older", "of another", "a tag's"])
async def test_records_that_are_refused(tmp_path: Path, kind: str) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        assert await status(node) == 200
        digest = Digest.of(b"x")
        token = {
            "none": "",
            "foreign": forged(tracker, Stamp(9, 9), "foreign"),
            "older": forged(tracker, Stamp(0, 1), "own"),
            "of another": sign_repository(tracker.keys.signer, RepositoryClaim("acme/else", False, Stamp(9, 9), 1)),
            "a tag's": sign_tag(tracker.keys.signer, TagClaim(REPO, "1", digest, Stamp(9, 9), 1)),
        }[kind]
        tracker.api._signed.repository = lambda _name, _standing: token  # type: ignore[method-assign]
        clock.now += 11
        assert await status(node) == 503
        known = node.index.repository(REPO)
        assert known is not None
        assert known.token != token


@pytest.mark.parametrize("kind", ["none", "foreign", "older", "of another"])
async def test_tags_that_are_refused(tmp_path: Path, kind: str) -> None:
    clock = Clock()
    async with both(tmp_path, clock) as (tracker, node):
        digest, _ = await tracker.registry.push_image(REPO, "1", b"layer")
        assert await status(node) == 200
        own = tracker.keys.signer
        token = {
            "none": "",
            "foreign": sign_tag(Authority().signer, TagClaim(REPO, "1", digest, Stamp(9, 9), 1)),
            "older": sign_tag(own, TagClaim(REPO, "1", digest, Stamp(0, 1), 1)),
            "of another": sign_tag(own, TagClaim(REPO, "2", digest, Stamp(9, 9), 1)),
        }[kind]
        tracker.api._signed.tag = lambda *_args: token  # type: ignore[method-assign]
        clock.now += 11
        assert await status(node) == 503


def test_of_two_records_of_a_tag_the_higher_stamp_holds() -> None:
    a, b = Digest.of(b"a"), Digest.of(b"b")
    known = TagRecord(a, 1.0, Stamp(1, 5), "known")
    for stamp, digest, confirmed, good in (
        (Stamp(1, 6), b, False, True),
        (Stamp(2, 1), b, False, True),
        (Stamp(1, 5), a, False, True),
        (Stamp(1, 5), b, True, True),  # the tracker itself says so now
        (Stamp(1, 5), b, False, False),
        (Stamp(1, 4), a, False, False),
        (Stamp(1, 4), a, True, False),
        (Stamp(0, 9), b, True, False),
    ):
        found = TagRecord(digest, 2.0, stamp, "found")
        if good:
            assert newer_tag(known, found, confirmed=confirmed) == found
        else:
            with pytest.raises(BadContent):
                newer_tag(known, found, confirmed=confirmed)
    gone = TagRecord(None, 1.0, Stamp(1, 5), "known")
    with pytest.raises(BadContent):  # what was deleted does not come back with a record from before
        newer_tag(gone, TagRecord(a, 2.0, Stamp(1, 5), "known"), confirmed=False)


async def test_decisions_follow_the_newest_record(tmp_path: Path) -> None:
    manifest, blob = StoredManifest(Digest.of(b"{}"), "application/x", b"{}"), Digest.of(b"blob")
    ref = Metainfo.of_bytes(b"blob").ref
    async with open_index(tmp_path / "i") as index:
        visible = Visible(index)
        assert not visible.may_have(INSIDE, blob)
        await index.put_manifest("acme/a", manifest, "claim", [ref])
        assert visible.may_have(INSIDE, blob), "no record: private"
        assert not visible.may_have(ANYONE, blob)
        await visible.take(RepositoryClaim("acme/a", False, Stamp(1, 1), 0), "one", confirmed=False)
        assert visible.may_have(ANYONE, blob)
        assert [claimed.record for claimed in visible.claims(ANYONE, manifest.digest)] == ["one"]
        await visible.take(RepositoryClaim("acme/a", True, Stamp(1, 2), 0), "two", confirmed=False)
        assert not visible.may_have(ANYONE, blob)
        assert visible.claims(ANYONE, manifest.digest) == []
        with pytest.raises(BadContent):
            await visible.take(RepositoryClaim("acme/a", False, Stamp(1, 1), 0), "one", confirmed=True)
        await visible.hide("acme/a")
        assert not visible.may_have(Caller(everything=True), blob)
        with pytest.raises(BadContent):  # a peer's copy of what was known before it was hidden
            await visible.take(RepositoryClaim("acme/a", True, Stamp(1, 2), 0), "two", confirmed=False)
        await visible.take(RepositoryClaim("acme/a", True, Stamp(1, 2), 0), "two", confirmed=True)
        assert visible.may_have(INSIDE, blob)


async def test_what_a_dropped_key_has_signed_is_forgotten_with_its_stamp(tmp_path: Path) -> None:
    good, stolen = Authority().signer, Authority().signer
    async with open_index(tmp_path / "i") as index:
        for name, signer in (("a", good), ("b", stolen)):
            token = sign_repository(signer, RepositoryClaim(name, False, Stamp(1 << 40, 1), 0))
            await index.put_repository(name, RepositoryRecord(False, Stamp(1 << 40, 1), token))
            tag = sign_tag(signer, TagClaim(name, "1", Digest.of(b"x"), Stamp(1, 1), 0))
            await index.put_tag(name, "1", TagRecord(Digest.of(b"x"), 0.0, Stamp(1, 1), tag))
        changes = index.changes
        assert await keep_only(index, {good.kid}) == 2
        assert index.changes > changes
        assert (index.repository("b"), index.tag("b", "1")) == (None, None)
        assert index.repository("a") is not None
        assert index.tag("a", "1") is not None


# --------------------------------------------------------------------------------------------------------------- hosts


def asked(host: str | None) -> Request:
    return Request("GET", "/v2/", () if host is None else (("host", host),), NO_BODY)


@pytest.mark.parametrize(
    "host",
    [None, "localhost", "LOCALHOST:5000", "127.0.0.1", "127.9.9.9:80", "[::1]:5000", "[::1]", "10.0.0.7:5000",
     "node.example.com:5000", "Node.Example.com.", "[0:0:0:0:0:0:0:1]"],
)  # fmt: skip
def test_hosts_that_are_ours(host: str | None) -> None:
    hosts = Hosts(["10.0.0.7", "::1"], ["node.example.com"])
    for _ in range(2):
        hosts.check(asked(host))


@pytest.mark.parametrize(
    "host",
    ["evil.example.com", "evil.example.com:5000", "10.0.0.8", "", ":5000", "localhost.evil.com", "127.0.0.1.evil.com",
     "[::1", "::1", "localhost:x", "node.example.com@evil", "localhost evil", "[::2]", "2130706433", "0.0.0.0"],
)  # fmt: skip
def test_hosts_that_are_somebody_elses(host: str) -> None:
    hosts = Hosts(["10.0.0.7", "::1"], ["node.example.com"])
    for _ in range(2):
        with pytest.raises(RequestError) as refused:
            hosts.check(asked(host))
        assert refused.value.status == 421


def test_a_listener_on_all_addresses_answers_for_any_address_and_for_no_name() -> None:
    hosts = Hosts(["0.0.0.0"])
    hosts.check(asked("10.0.0.8:5000"))
    with pytest.raises(RequestError):
        hosts.check(asked("evil.example.com"))


@given(st.text(max_size=60))
def test_any_text_is_a_host_or_none(text: str) -> None:
    """Never raises; what is accepted is a name that was given, or an address."""
    found = host_of(text)
    assert found == found.lower()
    try:
        Hosts(["10.0.0.7"]).check(asked(text))
    except RequestError:
        return
    assert found in ("localhost", "10.0.0.7") or found.startswith(("127.", "::1", "0", ":", "::ffff:127."))


async def test_a_page_of_another_name_gets_nothing_from_a_node(tmp_path: Path) -> None:
    async with both(tmp_path, Clock()) as (tracker, node):
        await tracker.registry.push_image(REPO, "1", b"layer")
        assert await status(node) == 200
        assert await status(node) == 200
        answer = await call(node.pull, "GET", TAG, headers=[("Host", "evil.example.com:5000")])
        assert (answer.status, answer.code) == (421, "UNSUPPORTED")


@given(st.binary(max_size=200) | st.lists(st.text(max_size=30)).map(lambda names: repr(names).encode()))
def test_any_bytes_are_names_or_an_error(data: bytes) -> None:
    """Parses or raises our error."""
    try:
        names = read_names(data)
    except RequestError:
        return
    assert len(set(names)) == len(names)


async def test_what_a_node_may_pull_itself_follows_from_its_credential(tmp_path: Path) -> None:
    """Until it ends, or is revoked; on a trusted network the operator says."""
    authority = Authority(clock=lambda: 0.0)
    credential = authority.judge(authority.issue("N" * 40, pulls=("acme/*",)), "N" * 40)
    joining = SimpleNamespace(membership=SimpleNamespace(credential=credential))
    standing = Standing(cast("Trust", authority), cast("Joining", joining), None)
    settings = NodeSettings()
    assert standing.own(settings, "N" * 40) == INSIDE
    authority.revoked.add("N" * 40)
    assert standing.own(settings, "N" * 40) == ANYONE
    plain = Standing(cast("Trust", authority), None, None)
    assert plain.own(settings, "N" * 40) == ANYONE
    trusted = NodeSettings(peer=replace(settings.peer, plain=True, plain_private=True))
    assert plain.own(trusted, "N" * 40).may_pull("acme/x", private=True)
    async with open_index(tmp_path / "i") as index:
        visible = Visible(index)
        changes = visible.changes
        visible.become(ANYONE)
        assert visible.changes == changes
        visible.become(INSIDE)
        assert visible.changes > changes
        assert visible.here("acme/x")
