"""Where tags have pointed, in Postgres (migrations/0007_feed.sql), and moving them by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.base import no_repository
from tracker.catalog.keys import digest_key, key_digest
from tracker.catalog.policies import never_moves
from tracker.catalog.policies_postgres import immutable
from tracker.catalog.trail import By, record
from tracker.db import Connection, Db

_REPOSITORY: Final = "select id from repositories where name = %s for key share"
_HISTORY: Final = """
select h.id, h.digest, h.at, h.actor, exists (
    select from manifests m join repository_manifests rm on rm.manifest_id = m.id
    where m.digest = h.digest and rm.repository_id = h.repository_id
) from tag_history h where h.repository_id = %s and h.tag = %s and h.id < %s order by h.id desc limit %s
"""
_NOW: Final = """
select m.digest from tags t join manifests m on m.id = t.manifest_id
where t.repository_id = %s and t.name = %s for update of t
"""
_BEFORE: Final = """
select digest from tag_history
where repository_id = %s and tag = %s and digest is not null and digest is distinct from %s
order by id desc limit 1
"""
# The lock keeps a garbage collector from removing it meanwhile.
_TARGET: Final = """
select m.id from manifests m join repository_manifests rm on rm.manifest_id = m.id
where rm.repository_id = %s and m.digest = %s for key share of rm
"""
_PUT: Final = """
insert into tags (repository_id, name, manifest_id) values (%s, %s, %s)
on conflict (repository_id, name) do update set manifest_id = excluded.manifest_id, updated_at = now()
"""
_PUT_IMMUTABLE: Final = "insert into tags (repository_id, name, manifest_id) values (%s, %s, %s) on conflict do nothing"
# Where a tag pointed at the end of that time is kept.
_PRUNE: Final = """
delete from tag_history where id in (
    select h.id from tag_history h where h.at < now() - %(keep)s * interval '1 second' and exists (
        select from tag_history n where n.repository_id = h.repository_id and n.tag = h.tag and n.id > h.id
            and n.at < now() - %(keep)s * interval '1 second'
    ) limit 1000
)
"""
_LAST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Pointed:
    """Where a tag pointed from some time on; ``digest`` None: nowhere. ``here``: the repository still has the
    manifest. ``actor``: who moved it, as the audit log names them."""

    id: int
    digest: Digest | None
    at: datetime
    actor: str
    here: bool


class TagHistory:
    """On a database that ``tracker.catalog.migrate`` has prepared. Each method is one transaction."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def of(self, repository: str, tag: str, *, before: int | None = None, limit: int = 100) -> list[Pointed]:
        """Newest first; those before the one with this id. Raises NotFound (NAME_UNKNOWN)."""
        return await self._db.tx(_of, repository, tag, _LAST if before is None else before, limit)

    async def move(self, repository: str, tag: str, digest: Digest, by: By) -> Digest | None:
        """Let the tag point at a manifest that the repository has; where it pointed before.

        Raises NotFound (NAME_UNKNOWN, or MANIFEST_UNKNOWN where the manifest is not there or not any more) and
        RequestError (DENIED) if the tag is immutable."""
        return await self._db.tx(_move, repository, tag, digest, by)

    async def rollback(self, repository: str, tag: str, by: By) -> Digest:
        """Let the tag, also a deleted one, point where it pointed before; where that is. Done twice, it is
        where it was. Raises as ``move``."""
        return await self._db.tx(_rollback, repository, tag, by)

    async def prune(self, keep: float) -> int:
        """Forget what was so longer than ``keep`` seconds ago, 1000 lines at most; how many."""
        return await self._db.tx(_prune, keep)


def _repository(connection: Connection, name: str) -> int:
    row = connection.execute(_REPOSITORY, (name,)).fetchone()
    if row is None:
        raise no_repository(name)
    return int(row[0])


def _of(connection: Connection, repository: str, tag: str, before: int, limit: int) -> list[Pointed]:
    values = (_repository(connection, repository), tag, before, limit)
    return [_pointed(row) for row in connection.execute(_HISTORY, values).fetchall()]


def _pointed(row: Sequence[Any]) -> Pointed:
    number, key, at, actor, here = row
    return Pointed(number, None if key is None else key_digest(key), at, actor, here)


def _move(connection: Connection, repository: str, tag: str, digest: Digest, by: By) -> Digest | None:
    return _put(connection, _repository(connection, repository), repository, tag, digest, "tag.move", by)


def _rollback(connection: Connection, repository: str, tag: str, by: By) -> Digest:
    number = _repository(connection, repository)
    now = connection.execute(_NOW, (number, tag)).fetchone()
    row = connection.execute(_BEFORE, (number, tag, None if now is None else now[0])).fetchone()
    if row is None:
        raise NotFound("MANIFEST_UNKNOWN", "it is not known that this tag pointed anywhere else before")
    digest = key_digest(row[0])
    _put(connection, number, repository, tag, digest, "tag.rollback", by)
    return digest


def _put(
    connection: Connection, number: int, repository: str, tag: str, digest: Digest, action: str, by: By
) -> Digest | None:
    target = connection.execute(_TARGET, (number, digest_key(digest))).fetchone()
    if target is None:
        raise _not_here(digest)
    now = connection.execute(_NOW, (number, tag)).fetchone()
    before = None if now is None else key_digest(now[0])
    if before == digest:
        return before
    fixed = bool(immutable(connection, repository, [tag]))
    if fixed and before is not None:
        raise never_moves(repository, tag)
    put = _PUT_IMMUTABLE if fixed else _PUT
    if connection.execute(put, (number, tag, target[0])).rowcount == 0:
        raise never_moves(repository, tag)
    detail: dict[str, object] = {"before": None if before is None else str(before)}
    record(connection, by, action, repository, reference=tag, digest=str(digest), detail=detail)
    return before


def _not_here(digest: Digest) -> RequestError:
    return NotFound(
        "MANIFEST_UNKNOWN",
        f"the repository does not have {digest}: it was deleted or collected as garbage, or never was there",
        detail={"digest": str(digest)},
    )


def _prune(connection: Connection, keep: float) -> int:
    return connection.execute(_PRUNE, {"keep": keep}).rowcount
