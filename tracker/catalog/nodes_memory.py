"""Join tokens and nodes in memory: for tests, and the plainest statement of what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import trio

from tracker.catalog.nodes import (
    REMEMBERED,
    Grant,
    JoinTokenRow,
    NodeRow,
    Revoked,
    admit,
    check_not_revoked,
    list_number,
    refused,
)
from tracker.catalog.trail import By


class MemoryNodes:
    """``Nodes`` without a database. ``actions``: what the audit log would say."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._tokens: dict[bytes, JoinTokenRow] = {}
        self._nodes: dict[str, NodeRow] = {}
        self._changed: dict[str, datetime] = {}
        self._change = 0
        self.actions: list[tuple[str, str]] = []

    async def add_token(self, secret_hash: bytes, grant: Grant, uses: int | None, lasts: float, by: By) -> JoinTokenRow:
        await trio.lowlevel.checkpoint()
        now = self._now()
        made = JoinTokenRow(len(self._tokens) + 1, grant, uses, now, by.actor, now + timedelta(seconds=lasts))
        self._tokens[secret_hash] = made
        self.actions.append(("node-token.add", by.actor))
        return made

    async def tokens(self) -> list[JoinTokenRow]:
        await trio.lowlevel.checkpoint()
        oldest = self._now() - timedelta(seconds=REMEMBERED)
        return [token for token in self._tokens.values() if token.expires_at > oldest]

    async def revoke_token(self, token: int, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        for key, one in self._tokens.items():
            if one.id == token and one.revoked_at is None:
                self._tokens[key] = replace(one, revoked_at=self._now())
                self.actions.append(("node-token.revoke", by.actor))
                return True
        return False

    async def join(self, secret_hash: bytes, peer_id: str, swarm: str, lasts: float, by: By) -> NodeRow:
        await trio.lowlevel.checkpoint()
        token, node = self._tokens.get(secret_hash), self._nodes.get(peer_id)
        spend = admit(token, node, swarm, self._now())
        assert token is not None
        if not spend:
            assert node is not None
            return self._renewed(node, lasts)
        if token.uses_left is not None:
            self._tokens[secret_hash] = replace(token, uses_left=token.uses_left - 1)
        return self._enrolled(token.grant, f"join token {token.id}", token.id, peer_id, lasts, by)

    async def enrol(self, grant: Grant, joined_by: str, peer_id: str, lasts: float, by: By) -> NodeRow:
        await trio.lowlevel.checkpoint()
        node = self._nodes.get(peer_id)
        if node is not None:
            check_not_revoked(node)
            if node.token_id is None and (node.joined_by, node.grant.swarm) == (joined_by, grant.swarm):
                return self._renewed(node, lasts)
        return self._enrolled(grant, joined_by, None, peer_id, lasts, by)

    def _enrolled(self, grant: Grant, joined_by: str, token: int | None, peer_id: str, lasts: float, by: By) -> NodeRow:
        now = self._now()
        made = NodeRow(peer_id, grant, joined_by, token, now, now, now + timedelta(seconds=lasts))
        self._nodes[peer_id] = made
        self.actions.append(("node.enrol", by.actor))
        return made

    def _renewed(self, node: NodeRow, lasts: float) -> NodeRow:
        now = self._now()
        made = replace(node, renewed_at=now, expires_at=now + timedelta(seconds=lasts))
        self._nodes[node.peer_id] = made
        return made

    async def renew(self, peer_id: str, swarm: str, lasts: float) -> NodeRow:
        await trio.lowlevel.checkpoint()
        node = self._nodes.get(peer_id)
        if node is None or node.grant.swarm != swarm:
            raise refused("the tracker does not know this node; it must join again")
        check_not_revoked(node)
        return self._renewed(node, lasts)

    async def node(self, peer_id: str) -> NodeRow | None:
        await trio.lowlevel.checkpoint()
        return self._nodes.get(peer_id)

    async def nodes(self, *, after: str = "", limit: int = 100) -> list[NodeRow]:
        await trio.lowlevel.checkpoint()
        return [self._nodes[peer_id] for peer_id in sorted(self._nodes) if peer_id > after][:limit]

    async def revoke(self, peer_id: str, on: bool, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        node = self._nodes.get(peer_id)
        if node is None or (node.revoked_at is not None) == on:
            return False
        self._nodes[peer_id] = replace(node, revoked_at=self._now() if on else None)
        self._change += 1
        self.actions.append(("node.revoke" if on else "node.restore", by.actor))
        return True

    async def regrant(
        self, peer_id: str, pulls: Sequence[str] | None, labels: Mapping[str, str] | None, by: By
    ) -> bool:
        await trio.lowlevel.checkpoint()
        node = self._nodes.get(peer_id)
        if node is None:
            return False
        grant = replace(
            node.grant,
            pulls=node.grant.pulls if pulls is None else tuple(pulls),
            labels=node.grant.labels if labels is None else dict(labels),
        )
        self._nodes[peer_id] = replace(node, grant=grant)
        self._change += 1
        self._changed[peer_id] = self._now()
        self.actions.append(("node.set", by.actor))
        return True

    async def revoked(self) -> Revoked:
        await trio.lowlevel.checkpoint()
        oldest = self._now() - timedelta(seconds=REMEMBERED)
        found = (node.peer_id for node in self._nodes.values() if node.revoked_at and node.expires_at > oldest)
        return Revoked(list_number(1, self._change), frozenset(found))

    async def changed(self, within: float) -> dict[str, datetime]:
        await trio.lowlevel.checkpoint()
        oldest = self._now() - timedelta(seconds=within)
        return {peer_id: at for peer_id, at in self._changed.items() if at > oldest}
