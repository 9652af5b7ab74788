"""Join tokens and nodes in Postgres: the tables of migration 0006.

Locks are taken in this order: join token, node, change number. A revocation is numbered as the last thing in its
transaction, as every change is, so a list that has a number has all revocations up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from psycopg.types.json import Jsonb

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
from tracker.catalog.trail import By, record
from tracker.db import Connection, Db

_JOIN: Final = "id, swarm, pulls, labels, uses_left, created_at, created_by, expires_at, revoked_at"
_NODE: Final = "peer_id, swarm, pulls, labels, joined_by, token_id, enrolled_at, renewed_at, expires_at, revoked_at"
_ADD: Final = f"""
insert into join_tokens (hash, swarm, pulls, labels, uses_left, created_by, expires_at)
values (%s, %s, %s, %s, %s, %s, now() + %s * interval '1 second') returning {_JOIN}
"""  # noqa: S608 - constants
_FORGET: Final = "delete from join_tokens where expires_at < now() - %s * interval '1 second'"
_ALL: Final = f"""
select {_JOIN} from join_tokens where expires_at > now() - %s * interval '1 second' order by id
"""  # noqa: S608
_STOP: Final = "update join_tokens set revoked_at = now() where id = %s and revoked_at is null"
_TAKE: Final = f"""
select now(), {_JOIN} from join_tokens where hash = %s for update
"""  # noqa: S608
_SPEND: Final = "update join_tokens set uses_left = uses_left - 1 where id = %s"
_LOCK: Final = f"select {_NODE} from nodes where peer_id = %s for update"  # noqa: S608
_ENROL: Final = f"""
insert into nodes (peer_id, swarm, pulls, labels, joined_by, token_id, expires_at)
values (%s, %s, %s, %s, %s, %s, now() + %s * interval '1 second')
on conflict (peer_id) do update
set swarm = excluded.swarm, pulls = excluded.pulls, labels = excluded.labels, joined_by = excluded.joined_by,
    token_id = excluded.token_id, enrolled_at = now(), renewed_at = now(), expires_at = excluded.expires_at
where nodes.revoked_at is null
returning {_NODE}
"""  # noqa: S608
_RENEW: Final = f"""
update nodes set renewed_at = now(), expires_at = now() + %s * interval '1 second' where peer_id = %s
returning {_NODE}
"""  # noqa: S608
_NODES: Final = f"select {_NODE} from nodes where peer_id > %s order by peer_id limit %s"  # noqa: S608
_ONE: Final = f"select {_NODE} from nodes where peer_id = %s"  # noqa: S608
_REVOKE: Final = """
update nodes set revoked_at = case when %s then now() end where peer_id = %s and (revoked_at is not null) <> %s
"""
_REGRANT: Final = """
update nodes set pulls = coalesce(%s::text[], pulls), labels = coalesce(%s::jsonb, labels) where peer_id = %s
"""
_CHANGE: Final = "select note_change('node', '', %s, null, %s)"
# Who has been away for so long joins anew; the revoked stay.
_FORGET_NODES: Final = "delete from nodes where revoked_at is null and expires_at < now() - %s * interval '1 second'"
# One statement, so one look at all of it.
_REVOKED: Final = """
select (select epoch from change_state),
    (select coalesce(max(number), 0) from changes where kind = 'node'),
    array(select peer_id from nodes where revoked_at is not null and expires_at > now() - %s * interval '1 second')
"""
_CHANGED: Final = """
select name, at from changes where kind = 'node' and not gone and at > now() - %s * interval '1 second'
"""


class PostgresNodes:
    """``Nodes`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def add_token(self, secret_hash: bytes, grant: Grant, uses: int | None, lasts: float, by: By) -> JoinTokenRow:
        return await self._db.tx(_add, secret_hash, grant, uses, lasts, by)

    async def tokens(self) -> list[JoinTokenRow]:
        return await self._db.query(_tokens)

    async def revoke_token(self, token: int, by: By) -> bool:
        return await self._db.tx(_revoke_token, token, by)

    async def join(self, secret_hash: bytes, peer_id: str, swarm: str, lasts: float, by: By) -> NodeRow:
        return await self._db.tx(_join, secret_hash, peer_id, swarm, lasts, by, retry=True)

    async def enrol(self, grant: Grant, joined_by: str, peer_id: str, lasts: float, by: By) -> NodeRow:
        return await self._db.tx(_enrol, grant, joined_by, peer_id, lasts, by, retry=True)

    async def renew(self, peer_id: str, swarm: str, lasts: float) -> NodeRow:
        return await self._db.tx(_renew, peer_id, swarm, lasts, retry=True)

    async def node(self, peer_id: str) -> NodeRow | None:
        return await self._db.query(_one, peer_id)

    async def nodes(self, *, after: str = "", limit: int = 100) -> list[NodeRow]:
        return await self._db.query(_nodes, after, limit)

    async def revoke(self, peer_id: str, on: bool, by: By) -> bool:
        return await self._db.tx(_revoke, peer_id, on, by)

    async def regrant(
        self, peer_id: str, pulls: Sequence[str] | None, labels: Mapping[str, str] | None, by: By
    ) -> bool:
        return await self._db.tx(_regrant, peer_id, pulls, labels, by)

    async def revoked(self) -> Revoked:
        return await self._db.query(_revoked)

    async def changed(self, within: float) -> dict[str, datetime]:
        return await self._db.query(_changed, within)


def _token(row: Sequence[Any]) -> JoinTokenRow:
    number, swarm, pulls, labels, uses, created, creator, expires, revoked = row
    return JoinTokenRow(number, Grant(swarm, tuple(pulls), labels), uses, created, creator, expires, revoked)


def _node(row: Sequence[Any]) -> NodeRow:
    peer_id, swarm, pulls, labels, joined_by, token, enrolled, renewed, expires, revoked = row
    grant = Grant(swarm, tuple(pulls), labels)
    return NodeRow(peer_id, grant, joined_by, token, enrolled, renewed, expires, revoked)


def _add(
    connection: Connection, secret_hash: bytes, grant: Grant, uses: int | None, lasts: float, by: By
) -> JoinTokenRow:
    connection.execute(_FORGET, (REMEMBERED,))
    values = (secret_hash, grant.swarm, list(grant.pulls), Jsonb(dict(grant.labels)), uses, by.actor, lasts)
    row = connection.execute(_ADD.encode(), values).fetchone()
    assert row is not None
    made = _token(row)
    detail: dict[str, object] = {"token": made.id, "uses": uses, "expires": made.expires_at.isoformat()}
    record(connection, by, "node-token.add", detail=detail | _shown(grant))
    return made


def _shown(grant: Grant) -> dict[str, object]:
    return {"swarm": grant.swarm, "pulls": list(grant.pulls), "labels": dict(grant.labels)}


def _tokens(connection: Connection) -> list[JoinTokenRow]:
    return [_token(row) for row in connection.execute(_ALL.encode(), (REMEMBERED,)).fetchall()]


def _revoke_token(connection: Connection, token: int, by: By) -> bool:
    if connection.execute(_STOP, (token,)).rowcount == 0:
        return False
    record(connection, by, "node-token.revoke", detail={"token": token})
    return True


def _join(connection: Connection, secret_hash: bytes, peer_id: str, swarm: str, lasts: float, by: By) -> NodeRow:
    row = connection.execute(_TAKE.encode(), (secret_hash,)).fetchone()
    token, node = None if row is None else _token(row[1:]), _locked(connection, peer_id)
    now = datetime.min if row is None else row[0]
    spend = admit(token, node, swarm, now)
    assert token is not None
    if not spend:
        return _renewed(connection, peer_id, lasts)
    if token.uses_left is not None:
        connection.execute(_SPEND, (token.id,))
    return _enrolled(connection, token.grant, f"join token {token.id}", token.id, peer_id, lasts, by)


def _enrol(connection: Connection, grant: Grant, joined_by: str, peer_id: str, lasts: float, by: By) -> NodeRow:
    node = _locked(connection, peer_id)
    if node is not None:
        check_not_revoked(node)
        if node.token_id is None and (node.joined_by, node.grant.swarm) == (joined_by, grant.swarm):
            return _renewed(connection, peer_id, lasts)
    return _enrolled(connection, grant, joined_by, None, peer_id, lasts, by)


def _locked(connection: Connection, peer_id: str) -> NodeRow | None:
    row = connection.execute(_LOCK.encode(), (peer_id,)).fetchone()
    return None if row is None else _node(row)


def _enrolled(
    connection: Connection, grant: Grant, joined_by: str, token: int | None, peer_id: str, lasts: float, by: By
) -> NodeRow:
    connection.execute(_FORGET_NODES, (REMEMBERED,))
    values = (peer_id, grant.swarm, list(grant.pulls), Jsonb(dict(grant.labels)), joined_by, token, lasts)
    row = connection.execute(_ENROL.encode(), values).fetchone()
    if row is None:  # another transaction enrolled and revoked it since this one looked
        raise refused("this node has been revoked")
    record(connection, by, "node.enrol", detail={"node": peer_id, "by": joined_by} | _shown(grant))
    return _node(row)


def _renewed(connection: Connection, peer_id: str, lasts: float) -> NodeRow:
    row = connection.execute(_RENEW.encode(), (lasts, peer_id)).fetchone()
    assert row is not None
    return _node(row)


def _renew(connection: Connection, peer_id: str, swarm: str, lasts: float) -> NodeRow:
    node = _locked(connection, peer_id)
    if node is None or node.grant.swarm != swarm:
        raise refused("the tracker does not know this node; it must join again")
    check_not_revoked(node)
    return _renewed(connection, peer_id, lasts)


def _one(connection: Connection, peer_id: str) -> NodeRow | None:
    row = connection.execute(_ONE.encode(), (peer_id,)).fetchone()
    return None if row is None else _node(row)


def _nodes(connection: Connection, after: str, limit: int) -> list[NodeRow]:
    return [_node(row) for row in connection.execute(_NODES.encode(), (after, limit)).fetchall()]


def _revoke(connection: Connection, peer_id: str, on: bool, by: By) -> bool:
    if connection.execute(_REVOKE, (on, peer_id, on)).rowcount == 0:
        return False
    record(connection, by, "node.revoke" if on else "node.restore", detail={"node": peer_id})
    connection.execute(_CHANGE, (peer_id, on))
    return True


def _regrant(
    connection: Connection,
    peer_id: str,
    pulls: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    by: By,
) -> bool:
    new_pulls, new_labels = None if pulls is None else list(pulls), None if labels is None else Jsonb(dict(labels))
    if connection.execute(_REGRANT, (new_pulls, new_labels, peer_id)).rowcount == 0:
        return False
    detail: dict[str, object] = {"node": peer_id}
    if pulls is not None:
        detail["pulls"] = list(pulls)
    if labels is not None:
        detail["labels"] = dict(labels)
    record(connection, by, "node.set", detail=detail)
    connection.execute(_CHANGE, (peer_id, False))
    return True


def _revoked(connection: Connection) -> Revoked:
    row = connection.execute(_REVOKED, (REMEMBERED,)).fetchone()
    assert row is not None
    return Revoked(list_number(row[0], row[1]), frozenset(row[2]))


def _changed(connection: Connection, within: float) -> dict[str, datetime]:
    return {str(name): at for name, at in connection.execute(_CHANGED, (within,)).fetchall()}
