"""Renaming an account in Postgres, in one transaction: its namespace goes with it.

Claims name their repository, so all of them are signed anew. Globs that begin with the old name, wherever they are
kept (grants, scopes, policies, webhooks, nodes), begin with the new one afterwards. The old name stays taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from psycopg.errors import UniqueViolation

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.globs import moved
from p2pregistry.oci.reference import MAX_NAME
from tracker.catalog.changing import note_access, note_tags
from tracker.catalog.keys import key_digest
from tracker.catalog.trail import By, record
from tracker.db import Connection
from tracker.identity.account_rows import ADD_FORMER, held
from tracker.identity.base import Account, Resign, conflict, taken

_NAME: Final = "update accounts set name = %s where id = %s"
_FORMER: Final = "select account_id from former_names where name = %s for update"
_REPOSITORIES: Final = """
select id, name from repositories where name = %s or (name > %s || '/' and name < %s || '0') order by name for update
"""
_MOVE: Final = "update repositories set name = %s where id = %s"
_UPLOADS: Final = """
update uploads set repository = %s || substr(repository, length(%s) + 1)
where repository = %s or (repository > %s || '/' and repository < %s || '0')
"""
_TAGS: Final = """
select r.name, t.name, m.digest from repositories r join tags t on t.repository_id = r.id
join manifests m on m.id = t.manifest_id where r.id = any(%s::bigint[])
"""
# Who signs claims again in the background leaves them alone until the commit, and then reads the new names.
_LOCK_CLAIMS: Final = "select pg_advisory_xact_lock(hashtext('p2pregistry.claims'))"
# Blobs in the order in which the manifest names them.
_MANIFESTS: Final = """
select rm.manifest_id, m.digest, array_remove(array_agg(b.digest::bytea order by at.place), null),
    array_remove(array_agg(b.size order by at.place), null), array_remove(array_agg(b.root order by at.place), null)
from repository_manifests rm join manifests m on m.id = rm.manifest_id
left join manifest_blobs mb on mb.repository_id = rm.repository_id and mb.manifest_id = rm.manifest_id
left join blobs b on b.id = mb.blob_id
left join lateral (
    select position(convert_to(encode(substring(b.digest from 2), 'hex'), 'UTF8') in m.body) as place
) at on true
where rm.repository_id = %s group by rm.manifest_id, m.digest
"""
_CLAIMS: Final = """
update repository_manifests rm set claim = c.claim
from unnest(%s::bigint[], %s::text[]) as c (manifest_id, claim)
where rm.repository_id = %s and rm.manifest_id = c.manifest_id
"""
# A quota that somebody set for the new name holds.
_NAMESPACE: Final = """
with gone as (delete from namespaces where name = %s returning quota, used)
insert into namespaces (name, quota, used) select %s, quota, used from gone
on conflict (name) do update set quota = coalesce(namespaces.quota, excluded.quota), used = excluded.used
"""
#: Tables with a glob, or an array of globs, over repositories: what tells a row from others, and the column.
_ONE_GLOB: Final = (
    ("team_grants", "(team_id::text || ' ' || pattern)", "pattern"),
    ("immutable_tags", "pattern", "pattern"),
    ("retention_rules", "id::text", "repositories"),
)
_GLOBS: Final = (
    ("tokens", "id::text", "scopes"),
    ("webhooks", "id::text", "repositories"),
    ("join_tokens", "id::text", "pulls"),
    ("nodes", "peer_id", "pulls"),
)


def rename_account(connection: Connection, name: str, to: str, resign: Resign, by: By) -> Account:
    """See Accounts."""
    connection.execute(_LOCK_CLAIMS)
    account = held(connection, name)
    former = connection.execute(_FORMER, (to,)).fetchone()
    if name == to or (former is not None and former[0] != account.id):
        raise taken(to)
    repositories = connection.execute(_REPOSITORIES, (name, name, name)).fetchall()
    _check_room(connection, name, to, [repository for _, repository in repositories])
    try:
        connection.execute(_NAME, (to, account.id))
    except UniqueViolation as err:
        raise taken(to) from err
    connection.execute("delete from former_names where name = %s", (to,))
    connection.execute(ADD_FORMER, (name, account.id))
    ids = [number for number, _ in repositories]
    before = connection.execute(_TAGS, (ids,)).fetchall()
    for number, repository in repositories:
        after = to + repository[len(name) :]
        connection.execute(_MOVE, (after, number))
        _sign_anew(connection, number, after, resign)
    connection.execute(_UPLOADS, (to, name, name, name, name))
    connection.execute(_NAMESPACE, (name, to))
    _move_globs(connection, name, to)
    detail: dict[str, object] = {"id": account.id, "before": name, "repositories": len(ids)}
    record(connection, by, f"{account.kind}.rename", reference=to, detail=detail)
    tags = [(repository, tag, None) for repository, tag, _ in before]
    note_tags(connection, tags + [(to + repository[len(name) :], tag, digest) for repository, tag, digest in before])
    note_access(connection, [name], gone=True)
    note_access(connection, [to])
    return held(connection, to)


def _check_room(connection: Connection, name: str, to: str, repositories: list[str]) -> None:
    if connection.execute(_REPOSITORIES, (to, to, to)).fetchone() is not None:
        raise conflict(f"there are repositories in {to}")
    if any(len(repository) + len(to) - len(name) > MAX_NAME for repository in repositories):
        raise conflict("the name of one of its repositories would be too long")


def _sign_anew(connection: Connection, repository_id: int, repository: str, resign: Resign) -> None:
    ids, claims = [], []
    for manifest_id, digest, *parts in connection.execute(_MANIFESTS, (repository_id,)).fetchall():
        blobs = [BlobRef(key_digest(key), size, root) for key, size, root in zip(*parts, strict=True)]
        ids.append(manifest_id)
        claims.append(resign(repository, key_digest(digest), blobs))
    connection.execute(_CLAIMS, (ids, claims, repository_id))


def _move_globs(connection: Connection, name: str, to: str) -> None:
    for table, key, column in _ONE_GLOB:
        _move(connection, table, key, column, name, lambda glob: moved(glob, name, to))
    for table, key, column in _GLOBS:
        _move(connection, table, key, column, name, lambda globs: [_moved(glob, name, to) for glob in globs])


def _moved(glob: str, name: str, to: str) -> str:
    """A glob, or a scope with one."""
    kind, colon, rest = glob.partition(":")
    if colon and kind == "repository":
        pattern, _, actions = rest.rpartition(":")
        return f"repository:{moved(pattern, name, to)}:{actions}"
    return moved(glob, name, to)


def _move(
    connection: Connection, table: str, key: str, column: str, name: str, change: Callable[[Any], object]
) -> None:
    """Change the rows of a table in which the name occurs; the names are constants above."""
    found = f"select {key}, {column} from {table} where {column}::text like %s for update"  # noqa: S608 - constants
    for row, value in connection.execute(found.encode(), (f"%{name}%",)).fetchall():
        after = change(value)
        if after != value:
            update = f"update {table} set {column} = %s where {key} = %s"  # noqa: S608 - constants
            connection.execute(update.encode(), (after, row))
