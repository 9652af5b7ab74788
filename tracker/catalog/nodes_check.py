"""What every ``Nodes`` must do. A test runs each of ``CASES`` on a fresh, empty one of each implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import trio

from p2pregistry.errors import RequestError
from tracker.catalog.nodes import Grant, NodeRow, Nodes
from tracker.catalog.trail import By

Case = Callable[[Nodes], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}
BY = By("operator", "admin socket", "r1")
NODE = By("node", "192.0.2.1", "r2")
GRANT = Grant("default", ("acme/**",), {"zone": "a"})
DAY = 86400.0


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _refusal(attempt: Awaitable[object]) -> str:
    """Why it was refused."""
    try:
        await attempt
    except RequestError as err:
        failure = err
    else:
        raise AssertionError("it was not refused")
    assert (failure.code, failure.status) == ("DENIED", 403)
    return failure.message


async def _join(nodes: Nodes, secret: bytes, peer_id: str) -> NodeRow:
    return await nodes.join(secret, peer_id, "default", DAY, NODE)


@_case
async def a_token_is_kept_without_its_secret_and_gives_its_grant(nodes: Nodes) -> None:
    made = await nodes.add_token(b"hash", GRANT, 2, 3600.0, BY)
    assert (made.grant, made.uses_left, made.created_by) == (GRANT, 2, "operator")
    assert made.expires_at - made.created_at == timedelta(hours=1)
    assert await nodes.tokens() == [made]
    node = await _join(nodes, b"hash", "peer1")
    assert (node.peer_id, node.grant, node.joined_by, node.token_id) == ("peer1", GRANT, f"join token {made.id}", 1)
    assert node.expires_at - node.renewed_at == timedelta(days=1)
    assert await nodes.node("peer1") == node
    assert await nodes.node("peer2") is None
    assert [token.uses_left for token in await nodes.tokens()] == [1]


@_case
async def a_single_use_token_lets_one_node_in(nodes: Nodes) -> None:
    await nodes.add_token(b"hash", GRANT, 1, 3600.0, BY)
    admitted: list[str] = []
    turned_away: list[str] = []

    async def attempt(peer_id: str) -> None:
        try:
            admitted.append((await _join(nodes, b"hash", peer_id)).peer_id)
        except RequestError as err:
            turned_away.append(err.message)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(attempt, f"peer{number}")
    assert len(turned_away) == 5
    assert all("used" in message for message in turned_away)
    assert [node.peer_id for node in await nodes.nodes()] == admitted


@_case
async def the_same_node_may_show_its_token_again(nodes: Nodes) -> None:
    await nodes.add_token(b"hash", GRANT, 1, 3600.0, BY)
    first = await _join(nodes, b"hash", "peer1")
    await nodes.regrant("peer1", ["other/*"], None, BY)
    second = await _join(nodes, b"hash", "peer1")
    assert second.grant == Grant("default", ("other/*",), {"zone": "a"})
    assert (second.enrolled_at, second.joined_by) == (first.enrolled_at, first.joined_by)
    assert "used" in await _refusal(_join(nodes, b"hash", "peer2"))
    await nodes.add_token(b"another", Grant("default"), None, 3600.0, BY)
    third = await _join(nodes, b"another", "peer1")
    assert (third.grant, third.joined_by) == (Grant("default"), "join token 2")
    assert "used" in await _refusal(_join(nodes, b"hash", "peer1"))


@_case
async def a_token_that_is_unknown_expired_revoked_or_of_another_swarm_is_refused(nodes: Nodes) -> None:
    assert "does not know" in await _refusal(_join(nodes, b"none", "peer1"))
    await nodes.add_token(b"old", GRANT, None, -1.0, BY)
    assert "expired" in await _refusal(_join(nodes, b"old", "peer1"))
    gone = await nodes.add_token(b"gone", GRANT, None, 3600.0, BY)
    await _join(nodes, b"gone", "peer2")
    assert await nodes.revoke_token(gone.id, BY)
    assert not await nodes.revoke_token(gone.id, BY)
    assert not await nodes.revoke_token(999, BY)
    assert "revoked" in await _refusal(_join(nodes, b"gone", "peer1"))
    assert "revoked" in await _refusal(_join(nodes, b"gone", "peer2"))
    await nodes.add_token(b"elsewhere", Grant("prod"), None, 3600.0, BY)
    assert "prod" in await _refusal(_join(nodes, b"elsewhere", "peer1"))
    assert [node.peer_id for node in await nodes.nodes()] == ["peer2"]


@_case
async def a_token_for_many_lets_many_in_until_it_is_revoked(nodes: Nodes) -> None:
    await nodes.add_token(b"hash", GRANT, None, 3600.0, BY)
    for number in range(5):
        await _join(nodes, b"hash", f"peer{number}")
    assert [node.peer_id for node in await nodes.nodes(limit=2)] == ["peer0", "peer1"]
    assert [node.peer_id for node in await nodes.nodes(after="peer2")] == ["peer3", "peer4"]
    assert [token.uses_left for token in await nodes.tokens()] == [None]


@_case
async def a_revoked_node_neither_renews_nor_comes_back(nodes: Nodes) -> None:
    await nodes.add_token(b"hash", GRANT, None, 3600.0, BY)
    await _join(nodes, b"hash", "peer1")
    await nodes.enrol(GRANT, "somebody", "peer2", DAY, NODE)
    assert await nodes.revoke("peer1", True, BY)
    assert await nodes.revoke("peer2", True, BY)
    assert not await nodes.revoke("peer1", True, BY)
    assert not await nodes.revoke("peer3", True, BY)
    for attempt in (
        nodes.renew("peer1", "default", DAY),
        _join(nodes, b"hash", "peer1"),
        nodes.enrol(GRANT, "somebody", "peer2", DAY, NODE),
    ):
        assert "revoked" in await _refusal(attempt)
    assert await nodes.revoke("peer1", False, BY)
    assert not await nodes.revoke("peer1", False, BY)
    assert (await nodes.renew("peer1", "default", DAY)).revoked_at is None


@_case
async def each_change_of_the_list_has_a_higher_number(nodes: Nodes) -> None:
    seen = [await nodes.revoked()]
    assert seen[0].peer_ids == frozenset()
    for peer_id in ("peer1", "peer2"):
        await nodes.enrol(GRANT, "somebody", peer_id, DAY, NODE)
        await nodes.revoke(peer_id, True, BY)
        seen.append(await nodes.revoked())
    await nodes.revoke("peer1", False, BY)
    seen.append(await nodes.revoked())
    assert [one.peer_ids for one in seen[1:]] == [{"peer1"}, {"peer1", "peer2"}, {"peer2"}]
    assert sorted({one.number for one in seen}) == [one.number for one in seen]


@_case
async def a_node_is_listed_no_longer_than_its_credential_can_be_believed(nodes: Nodes) -> None:
    await nodes.enrol(GRANT, "somebody", "peer1", -40 * DAY, NODE)
    await nodes.revoke("peer1", True, BY)
    assert (await nodes.revoked()).peer_ids == frozenset()
    assert "revoked" in await _refusal(nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE))


@_case
async def who_a_node_is_lets_it_in_and_back(nodes: Nodes) -> None:
    first = await nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE)
    assert (first.grant, first.joined_by, first.token_id) == (GRANT, "somebody", None)
    await nodes.regrant("peer1", [], None, BY)
    assert (await nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE)).grant.pulls == ()
    assert (await nodes.enrol(GRANT, "somebody else", "peer1", DAY, NODE)).grant == GRANT


@_case
async def what_a_node_was_given_since_is_in_its_next_credential(nodes: Nodes) -> None:
    assert not await nodes.regrant("peer1", [], None, BY)
    await nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE)
    assert await nodes.changed(DAY) == {}
    assert await nodes.regrant("peer1", ["other/*"], None, BY)
    assert (await nodes.renew("peer1", "default", DAY)).grant == Grant("default", ("other/*",), {"zone": "a"})
    assert await nodes.regrant("peer1", None, {"zone": "b"}, BY)
    renewed = await nodes.renew("peer1", "default", 2 * DAY)
    assert renewed.grant == Grant("default", ("other/*",), {"zone": "b"})
    assert renewed.expires_at - renewed.renewed_at == timedelta(days=2)
    changed = await nodes.changed(DAY)
    assert list(changed) == ["peer1"]
    assert changed["peer1"] <= renewed.renewed_at


@_case
async def a_node_that_is_unknown_or_of_another_swarm_cannot_renew(nodes: Nodes) -> None:
    await nodes.enrol(GRANT, "somebody", "peer1", DAY, NODE)
    assert "join again" in await _refusal(nodes.renew("peer2", "default", DAY))
    assert "join again" in await _refusal(nodes.renew("peer1", "prod", DAY))
