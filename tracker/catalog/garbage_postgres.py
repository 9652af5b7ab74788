"""Garbage collection, retention, scrubbing and pull counts in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from psycopg.errors import ForeignKeyViolation, SerializationFailure
from psycopg.types.json import Jsonb

from p2pregistry.digest import Digest
from tracker.catalog.garbage import Forecast, Kind, Run, Stored
from tracker.catalog.keys import digest_key, key_digest
from tracker.catalog.removal import delete_tag
from tracker.catalog.trail import SYSTEM, By, record
from tracker.catalog.usage import released
from tracker.db import Connection, Db
from tracker.retention import Rule, Tagged

# What keeps a manifest: a tag, an index that is there, a subject that is there, and having been used lately.
_UNTAGGED: Final = """
from repository_manifests rm
where greatest(rm.pushed_at, rm.pulled_at, (
        select max(at) from tags_left l where l.repository_id = rm.repository_id and l.manifest_id = rm.manifest_id
    )) < now() - %s * interval '1 second'
    and not exists (select from tags t where t.repository_id = rm.repository_id and t.manifest_id = rm.manifest_id)
    and not exists (
        select from manifest_children c where c.repository_id = rm.repository_id and c.child_id = rm.manifest_id
            and exists (
                select from repository_manifests p
                where p.repository_id = c.repository_id and p.manifest_id = c.parent_id
            )
    )
    and (rm.subject is null or not exists (
        select from manifests m join repository_manifests s on s.manifest_id = m.id
        where m.digest = rm.subject and s.repository_id = rm.repository_id
    ))
"""
_FIND_UNTAGGED: Final = f"""
select rm.repository_id, rm.manifest_id {_UNTAGGED} limit %s for update of rm skip locked
"""
_DROP_UNTAGGED: Final = f"""
delete from repository_manifests where (repository_id, manifest_id) in (
    select rm.repository_id, rm.manifest_id {_UNTAGGED}
        and (rm.repository_id, rm.manifest_id) in (select * from unnest(%s::bigint[], %s::bigint[]))
)
returning (select name from repositories where id = repository_id),
    (select digest_text(digest) from manifests where id = manifest_id)
"""  # noqa: S608 - constants
# An upload that is open in the repository keeps what was pushed before it: its manifest is still to come.
_IDLE: Final = """
from repository_blobs rb
where rb.touched_at < now() - %s * interval '1 second' and not exists (
    select from manifest_blobs mb where mb.repository_id = rb.repository_id and mb.blob_id = rb.blob_id
) and not exists (
    select from uploads u join repositories r on r.name = u.repository where r.id = rb.repository_id
)
"""
_FIND_IDLE: Final = f"select rb.repository_id, rb.blob_id {_IDLE} limit %s for update skip locked"
_UNLINK: Final = f"""
delete from repository_blobs where (repository_id, blob_id) in (
    select rb.repository_id, rb.blob_id {_IDLE}
        and (rb.repository_id, rb.blob_id) in (select * from unnest(%s::bigint[], %s::bigint[]))
)
returning repository_id, blob_id
"""  # noqa: S608 - constants
_SPACES: Final = "select id, split_part(name, '/', 1) from repositories where id = any(%s::bigint[])"
_FIND_LOOSE: Final = """
select id from blobs b where not exists (select from repository_blobs where blob_id = b.id) limit %s
for update skip locked
"""
_CONDEMN: Final = """
with gone as (
    delete from blobs b where id = any(%s::bigint[])
        and not exists (select from repository_blobs where blob_id = b.id) returning object, size
)
insert into condemned (object, size) select object, size from gone
on conflict (object) do update set condemned_at = now() returning object
"""
# One that an index still lists keeps its id: if it is pushed again, that index keeps it.
_LOOSE: Final = """
not exists (select from repository_manifests where manifest_id = m.id)
    and not exists (select from manifest_children where child_id = m.id)
"""
_FIND_LOOSE_MANIFESTS: Final = f"select id from manifests m where {_LOOSE} limit %s for update skip locked"  # noqa: S608 - constants
_DROP_LOOSE_MANIFESTS: Final = f"delete from manifests m where id = any(%s::bigint[]) and {_LOOSE}"  # noqa: S608 - constants
# An object that holds a blob is never given out, however it came to be condemned.
# Nobody keeps untagged manifests for longer.
_FORGET_TAGS: Final = "delete from tags_left where at < now() - interval '400 days'"
_CONDEMNED: Final = """
select object from condemned c
where not exists (select from blobs b where b.object = c.object) and object <> all(%s::text[])
order by condemned_at limit %s
"""
_FORGET: Final = "delete from condemned where object = any(%s::text[]) returning size"
_FORECAST: Final = f"""
with leaving as (select rm.repository_id, rm.manifest_id {_UNTAGGED}), doomed as (
    select rb.repository_id, rb.blob_id from repository_blobs rb
    where rb.touched_at < now() - %s * interval '1 second' and not exists (
        select from manifest_blobs mb where mb.repository_id = rb.repository_id and mb.blob_id = rb.blob_id
            and not exists (
                select from leaving l where l.repository_id = mb.repository_id and l.manifest_id = mb.manifest_id
            )
    ) and not exists (
        select from uploads u join repositories r on r.name = u.repository where r.id = rb.repository_id
    )
), loose as (
    select b.id, b.size from blobs b where not exists (
        select from repository_blobs rb where rb.blob_id = b.id
            and not exists (select from doomed d where d.repository_id = rb.repository_id and d.blob_id = rb.blob_id)
    )
)
select (select count(*) from leaving), (select count(*) from doomed), (select count(*) from loose),
    (select coalesce(sum(size), 0) from loose)
"""  # noqa: S608 - constants
#: Seconds; nothing is as old.
_NEVER: Final = 1e9
_UNKNOWN: Final = """
select name from unnest(%s::text[]) as asked (name)
where not exists (select from blobs where object = name) and not exists (select from condemned where object = name)
    and not exists (select from uploads where id = split_part(name, '/', 3))
"""
_LOCK_RUNS: Final = "select pg_advisory_xact_lock(hashtext('p2pregistry.runs'))"
_START: Final = """
insert into runs (kind, dry_run) select %s, %s where %s::float8 is null or not exists (
    select from runs where kind = %s and not dry_run and started_at > now() - %s * interval '1 second'
) returning id
"""
_END: Final = "update runs set ended_at = now(), figures = %s, error = %s where id = %s"
_RUNS: Final = """
select id, kind, dry_run, started_at, ended_at, figures, error from runs order by id desc limit %s
"""
_TO_SCRUB: Final = """
select digest, size, object from blobs
where not damaged and (scrubbed_at is null or scrubbed_at < now() - %s * interval '1 second')
order by scrubbed_at nulls first limit %s
"""
_SCRUBBED: Final = "update blobs set scrubbed_at = now(), damaged = %s where digest = %s and object = %s"
_DAMAGED: Final = "select digest, size, object from blobs where damaged order by id limit %s"
_PULLED: Final = """
update repository_manifests rm set pulls = rm.pulls + p.count, pulled_at = now()
from (
    select r.id as repository_id, m.id as manifest_id, sum(asked.count)::bigint as count
    from unnest(%s::text[], %s::bytea[], %s::bigint[]) as asked (name, digest, count)
    join repositories r on r.name = asked.name join manifests m on m.digest = asked.digest group by 1, 2
) p where rm.repository_id = p.repository_id and rm.manifest_id = p.manifest_id
"""
_PULLED_TAGS: Final = """
update tags t set pulled_at = now() from (
    select distinct r.id as repository_id, asked.tag from unnest(%s::text[], %s::text[]) as asked (name, tag)
    join repositories r on r.name = asked.name
) p where t.repository_id = p.repository_id and t.name = p.tag
"""
_RULES: Final = """
select id, repositories, tags, keep_last, extract(epoch from pushed_within)::float8,
    extract(epoch from pulled_within)::float8 from retention_rules order by id
"""
_ADD_RULE: Final = """
insert into retention_rules (repositories, tags, keep_last, pushed_within, pulled_within)
values (%s, %s, %s, %s, %s) returning id
"""
_REMOVE_RULE: Final = "delete from retention_rules where id = %s"
_TAGGED: Final = """
select t.name, t.updated_at, t.pulled_at from tags t join repositories r on r.id = t.repository_id
where r.name = %s order by t.name
"""


_TAG_LOCKED: Final = """
select t.updated_at, t.pulled_at from tags t join repositories r on r.id = t.repository_id
where r.name = %s and t.name = %s for update of t
"""


class PostgresGarbage:
    """``Garbage`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def drop_manifests(self, untagged: float, limit: int, by: By) -> int:
        return await self._db.tx(_drop_manifests, untagged, limit, by)

    async def unlink(self, grace: float, limit: int) -> int:
        return await self._db.tx(_unlink, grace, limit)

    async def condemn(self, limit: int) -> int:
        return await self._db.tx(_condemn, limit)

    async def condemned(self, limit: int, but: Sequence[str] = ()) -> list[str]:
        return await self._db.query(_condemned, limit, list(but))

    async def forget(self, objects: Sequence[str]) -> int:
        return await self._db.tx(_forget, list(objects), retry=True)

    async def forecast(self, grace: float, untagged: float | None) -> Forecast:
        return await self._db.tx(_forecast, grace, untagged)

    async def unknown(self, objects: Sequence[str]) -> set[str]:
        return await self._db.query(_unknown, list(objects))

    async def start(
        self, kind: Kind, dry_run: bool, every: float | None, by: By | None = None, asked: Mapping[str, object] = {}
    ) -> int | None:
        return await self._db.tx(_start, kind, dry_run, every, by, asked)

    async def end(self, run: int, figures: dict[str, int], error: str | None) -> None:
        await self._db.tx(_execute, _END, (Jsonb(figures), error, run), retry=True)

    async def runs(self, *, limit: int = 50) -> list[Run]:
        return await self._db.query(_runs, limit)

    async def to_scrub(self, limit: int, older: float) -> list[Stored]:
        return await self._db.query(_stored, _TO_SCRUB, (older, limit))

    async def scrubbed(self, digest: Digest, name: str, sound: bool) -> None:
        await self._db.tx(_scrubbed, digest, name, sound, retry=True)

    async def damaged(self, *, limit: int = 1000) -> list[Stored]:
        return await self._db.query(_stored, _DAMAGED, (limit,))

    async def pulled(self, pulls: Sequence[tuple[str, str | None, Digest, int]]) -> None:
        await self._db.tx(_pulled, pulls)

    async def rules(self) -> list[Rule]:
        return await self._db.query(_rules)

    async def add_rule(self, rule: Rule, by: By) -> Rule:
        return await self._db.tx(_add_rule, rule, by)

    async def remove_rule(self, rule: int, by: By) -> bool:
        return await self._db.tx(_remove_rule, rule, by)

    async def tagged(self, repository: str) -> list[Tagged]:
        return await self._db.query(_tagged, repository)

    async def let_go(self, repository: str, tag: Tagged, by: By) -> bool:
        return await self._db.tx(_let_go, repository, tag, by)


def _execute(connection: Connection, statement: str, values: tuple[object, ...]) -> int:
    return connection.execute(statement.encode(), values).rowcount


def _columns(rows: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    return [row[0] for row in rows], [row[1] for row in rows]


def _drop_manifests(connection: Connection, untagged: float, limit: int, by: By) -> int:
    found = connection.execute(_FIND_UNTAGGED.encode(), (untagged, limit)).fetchall()
    if not found:
        return 0
    gone = connection.execute(_DROP_UNTAGGED.encode(), (untagged, *_columns(found))).fetchall()
    for name, digest in gone:
        record(connection, by, "manifest.delete", name, digest=digest, detail={"tags": [], "untagged": True})
    return len(gone)


def _unlink(connection: Connection, grace: float, limit: int) -> int:
    found = connection.execute(_FIND_IDLE.encode(), (grace, limit)).fetchall()
    if not found:
        return 0
    try:
        gone = connection.execute(_UNLINK.encode(), (grace, *_columns(found))).fetchall()
    except ForeignKeyViolation as err:
        # a manifest came between the two looks of this statement: the next round sees it
        raise SerializationFailure("a manifest came between") from err
    spaces: dict[int, str] = dict(connection.execute(_SPACES, (sorted({row[0] for row in gone}),)).fetchall())
    left: dict[str, set[int]] = {}
    for number, blob_id in gone:
        left.setdefault(spaces[number], set()).add(blob_id)
    for namespace in sorted(left):
        released(connection, namespace, left[namespace])
    return len(gone)


def _condemn(connection: Connection, limit: int) -> int:
    connection.execute(_FORGET_TAGS)
    loose = [row[0] for row in connection.execute(_FIND_LOOSE_MANIFESTS.encode(), (limit,)).fetchall()]
    if loose:
        connection.execute(_DROP_LOOSE_MANIFESTS.encode(), (loose,))
    found = [row[0] for row in connection.execute(_FIND_LOOSE, (limit,)).fetchall()]
    return len(connection.execute(_CONDEMN, (found,)).fetchall()) if found else 0


def _condemned(connection: Connection, limit: int, but: list[str]) -> list[str]:
    return [name for (name,) in connection.execute(_CONDEMNED, (but, limit)).fetchall()]


def _forget(connection: Connection, objects: list[str]) -> int:
    return sum(size for (size,) in connection.execute(_FORGET, (objects,)).fetchall())


def _forecast(connection: Connection, grace: float, untagged: float | None) -> Forecast:
    row = connection.execute(_FORECAST.encode(), (_NEVER if untagged is None else untagged, grace)).fetchone()
    assert row is not None
    return Forecast(int(row[0]), int(row[1]), int(row[2]), int(row[3]))


def _unknown(connection: Connection, objects: list[str]) -> set[str]:
    return {name for (name,) in connection.execute(_UNKNOWN, (objects,)).fetchall()}


def _start(
    connection: Connection,
    kind: Kind,
    dry_run: bool,
    every: float | None,
    by: By | None,
    asked: Mapping[str, object],
) -> int | None:
    connection.execute(_LOCK_RUNS)  # two processes that ask at the same time
    row = connection.execute(_START, (kind, dry_run, every, kind, every or 0.0)).fetchone()
    if row is None:
        return None
    if by is not None and not dry_run:
        record(connection, by, f"{kind}.start", detail={"run": row[0], **asked})
    return int(row[0])


def _runs(connection: Connection, limit: int) -> list[Run]:
    return [Run(*row) for row in connection.execute(_RUNS, (limit,)).fetchall()]


def _stored(connection: Connection, statement: str, values: tuple[object, ...]) -> list[Stored]:
    rows = connection.execute(statement.encode(), values).fetchall()
    return [Stored(key_digest(key), size, name) for key, size, name in rows]


def _scrubbed(connection: Connection, digest: Digest, name: str, sound: bool) -> None:
    if connection.execute(_SCRUBBED, (not sound, digest_key(digest), name)).rowcount and not sound:
        record(connection, SYSTEM, "scrub.damaged", digest=str(digest), detail={"object": name})


def _pulled(connection: Connection, pulls: Sequence[tuple[str, str | None, Digest, int]]) -> None:
    ordered = sorted(pulls, key=lambda pull: (pull[0], pull[1] or "", str(pull[2])))
    names, digests = [pull[0] for pull in ordered], [digest_key(pull[2]) for pull in ordered]
    connection.execute(_PULLED, (names, digests, [pull[3] for pull in ordered]))
    tags = [(pull[0], pull[1]) for pull in ordered if pull[1] is not None]
    if tags:
        connection.execute(_PULLED_TAGS, _columns(tags))


def _rules(connection: Connection) -> list[Rule]:
    return [Rule(*row) for row in connection.execute(_RULES).fetchall()]


def _add_rule(connection: Connection, rule: Rule, by: By) -> Rule:
    def interval(seconds: float | None) -> timedelta | None:
        return None if seconds is None else timedelta(seconds=seconds)

    what = (rule.repositories, rule.tags, rule.keep_last)
    row = connection.execute(_ADD_RULE, (*what, interval(rule.pushed_within), interval(rule.pulled_within))).fetchone()
    assert row is not None
    made = Rule(int(row[0]), *what, rule.pushed_within, rule.pulled_within)
    detail: dict[str, object] = {"rule": made.id, "repositories": made.repositories, "tags": made.tags}
    record(connection, by, "retention.add", detail=detail)
    return made


def _remove_rule(connection: Connection, rule: int, by: By) -> bool:
    if connection.execute(_REMOVE_RULE, (rule,)).rowcount == 0:
        return False
    record(connection, by, "retention.remove", detail={"rule": rule})
    return True


def _let_go(connection: Connection, repository: str, tag: Tagged, by: By) -> bool:
    row = connection.execute(_TAG_LOCKED, (repository, tag.name)).fetchone()
    unchanged = row is not None and (row[0], row[1]) == (tag.pushed_at, tag.pulled_at)
    return unchanged and delete_tag(connection, repository, tag.name, by)


def _tagged(connection: Connection, repository: str) -> list[Tagged]:
    return [Tagged(*row) for row in connection.execute(_TAGGED, (repository,)).fetchall()]
