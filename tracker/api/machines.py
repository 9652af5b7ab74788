"""Join tokens, the nodes that joined, and the keys that nodes verify with."""

from __future__ import annotations

import re
from typing import Final

from tracker import node_admin
from tracker.api import documents as d
from tracker.api.asked import Asked, naming, page
from tracker.api.rules import unknown
from tracker.catalog.nodes import JoinTokenRow, NodeRow

_PEER: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,100}")


async def join_tokens(asked: Asked[d.Nothing, d.Nothing]) -> d.JoinTokens:
    return d.JoinTokens([_token(one) for one in await asked.services.nodes.tokens()])


async def add_join_token(asked: Asked[d.NewJoinToken, d.Nothing]) -> d.MadeJoinToken:
    new = asked.body
    if new.swarm is not None:
        with naming("swarm"):
            node_admin.check_swarm(new.swarm)
    with naming("pulls"):
        node_admin.check_pulls(new.pulls)
    with naming("labels"):
        node_admin.check_labels(new.labels)
    wanted = node_admin.NewToken(new.uses, new.lifetime, new.swarm, new.pulls, new.labels)
    made, text = await node_admin.make_token(asked.services.nodes, asked.services.facts(), wanted, asked.by)
    return d.MadeJoinToken(_token(made), text)


async def revoke_join_token(asked: Asked[d.Nothing, d.Nothing]) -> None:
    number = asked.path["id"]
    known = number.isascii() and number.isdecimal() and len(number) < 19
    if not known or not await asked.services.nodes.revoke_token(int(number), asked.by):
        raise unknown("TOKEN", "there is no such join token, or it was revoked before")


async def nodes(asked: Asked[d.Nothing, d.Page]) -> d.Nodes:
    n = asked.query.n
    found = await asked.services.nodes.nodes(after=asked.query.after, limit=n + 1)
    some, following = page(found, n, lambda one: one.peer_id)
    return d.Nodes([_node(one) for one in some], following)


async def show_node(asked: Asked[d.Nothing, d.Nothing]) -> d.Node:
    return _node(await _found(asked))


async def set_revoked(asked: Asked[d.Revoked, d.Nothing]) -> None:
    """Repeating is no error."""
    node = await _found(asked)
    await asked.services.nodes.revoke(node.peer_id, asked.body.revoked, asked.by)


async def _found(asked: Asked[d.Nothing, d.Nothing] | Asked[d.Revoked, d.Nothing]) -> NodeRow:
    peer_id = asked.path["peer_id"]
    found = await asked.services.nodes.node(peer_id) if _PEER.fullmatch(peer_id) else None
    if found is None:
        raise unknown("NODE", "there is no such node")
    return found


async def keys(asked: Asked[d.Nothing, d.Nothing]) -> d.Keys:
    ring = asked.services.keyring
    known = [d.Key(kid, key.to_paserk()) for kid, key in sorted(ring.keys.keys.items())]
    return d.Keys(ring.root_public, ring.keys.version, ring.key_set, known)


def _token(row: JoinTokenRow) -> d.JoinToken:
    grant = row.grant
    return d.JoinToken(
        row.id,
        grant.swarm,
        list(grant.pulls),
        dict(grant.labels),
        row.uses_left,
        row.created_at,
        row.created_by,
        row.expires_at,
        row.revoked_at,
    )


def _node(row: NodeRow) -> d.Node:
    grant = row.grant
    return d.Node(
        row.peer_id,
        grant.swarm,
        list(grant.pulls),
        dict(grant.labels),
        row.joined_by,
        row.enrolled_at,
        row.renewed_at,
        row.expires_at,
        row.revoked_at,
    )
