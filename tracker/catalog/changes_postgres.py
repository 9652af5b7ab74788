"""Changes in Postgres: the tables of migrations 0006 and 0007.

What a thing is now is read from where it is, not from the row of its change: tags of a repository that was renamed or
deleted have rows that say nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tracker.catalog.changes import PRUNED_AT_ONCE, Change, Page, Scope, State
from tracker.catalog.keys import key_digest
from tracker.catalog.trail import By, record
from tracker.db import Connection, Db

_STATE: Final = "select epoch, number, pruned from change_state"
# One statement, so one look at counter and changes. What belongs to a change is looked up for each: joins of tables of
# which the planner knows too little may read a million tags for ten changes.
_SINCE: Final = """
select s.epoch, s.number, s.pruned, c.number, c.kind, c.repository, c.name,
    case when c.kind = 'tag' then (
        select m.digest from repositories r join tags t on t.repository_id = r.id
        join manifests m on m.id = t.manifest_id
        where r.name = c.repository and t.name = c.name
    ) end,
    c.gone,
    case when c.kind in ('tag', 'repository') then (select private from repositories where name = c.repository) end,
    case when c.kind = 'tag' then coalesce((
        select rc.number from changes rc where rc.kind = 'repository' and rc.repository = c.repository and rc.name = ''
    ), 0) else 0 end,
    coalesce(c.public_until, 0)
from (select * from change_state limit 1) s left join lateral (
    select * from changes c where c.number > %(after)s and c.kind <> 'access' {scope}
    order by c.number limit %(limit)s
) c on true
order by c.number
"""
_SCOPE: Final = """
and (c.kind in ('node', 'keys') or c.repository = any(%(repositories)s)
    or exists (select from unnest(%(prefixes)s::text[]) p where starts_with(c.repository, p)))
"""
# Each repository gives no more than is asked for, in the order of its index.
_TAGS: Final = """
select t.repository, t.name, (select m.digest from manifests m where m.id = t.manifest_id),
    coalesce((
        select c.number from changes c where c.kind = 'tag' and c.repository = t.repository and c.name = t.name
    ), 0),
    t.private,
    coalesce((
        select c.number from changes c where c.kind = 'repository' and c.repository = t.repository and c.name = ''
    ), 0)
from (
    select r.name as repository, r.private, t.name, t.manifest_id from repositories r cross join lateral (
        select name, manifest_id from tags t
        where t.repository_id = r.id and (r.name > %(repository)s or t.name > %(tag)s) order by t.name limit %(limit)s
    ) t
    where r.name = any(%(repositories)s) and r.name >= %(repository)s
    order by r.name, t.name limit %(limit)s
) t
order by t.repository, t.name
"""
_REPOSITORIES: Final = """
select r.name, r.private, coalesce(c.number, 0), coalesce(c.public_until, 0) from repositories r
left join changes c on c.kind = 'repository' and c.repository = r.name and c.name = ''
where {which} order by r.name
"""
_NAMED: Final = _REPOSITORIES.format(which="r.name = any(%s)").encode()
# DEL comes after every character of a name.
_FROM: Final = _REPOSITORIES.format(which="r.name > %s and r.name >= %s and r.name < %s || E'\\x7f'").encode()
_OLD: Final = """
select c.number from changes c where c.at < now() - %s * interval '1 second' and (
    (c.kind = 'repository' and c.gone)
    or (c.kind = 'tag' and not exists (
        select from repositories r join tags t on t.repository_id = r.id
        where r.name = c.repository and t.name = c.name
    ))
) order by c.number limit %s
"""
# Whoever writes a change holds the counter first and the row then: in the same order here.
_HOLD: Final = "select from change_state for update"
_FORGET: Final = "delete from changes where number = any(%s::bigint[]) returning number"
_PRUNED: Final = "update change_state set pruned = greatest(pruned, %s)"
_EPOCH: Final = "update change_state set epoch = epoch + 1 returning epoch, number, pruned"


class PostgresChanges:
    """``Changes`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def state(self) -> State:
        return await self._db.query(_state)

    async def since(self, after: int, limit: int, scope: Scope | None = None) -> Page:
        return await self._db.query(_since, after, limit, scope)

    async def tags(self, repositories: Sequence[str], after: tuple[str, str], limit: int) -> list[Change]:
        return await self._db.query(_tags, repositories, after, limit)

    async def repositories(self, names: Sequence[str]) -> list[Change]:
        return await self._db.query(_named, names)

    async def repositories_from(self, prefix: str, after: str, limit: int) -> list[Change]:
        return await self._db.query(_from, prefix, after, limit)

    async def prune(self, keep: float) -> int:
        return await self._db.tx(_prune, keep)

    async def new_epoch(self, by: By) -> State:
        return await self._db.tx(_new_epoch, by)


def _state(connection: Connection) -> State:
    row = connection.execute(_STATE).fetchone()
    assert row is not None
    return State(*row)


def _since(connection: Connection, after: int, limit: int, scope: Scope | None) -> Page:
    values: dict[str, object] = {"after": after, "limit": limit}
    if scope is not None:
        values |= {"repositories": list(scope.repositories), "prefixes": list(scope.prefixes)}
    statement = _SINCE.format(scope="" if scope is None else _SCOPE)
    rows = connection.execute(statement.encode(), values).fetchall()
    state = State(*rows[0][:3])
    changes = tuple(_change(row[3:]) for row in rows if row[3] is not None)
    return Page(state, changes, changes[-1].number if len(changes) >= limit else state.number)


def _change(row: Sequence[Any]) -> Change:
    number, kind, repository, name, key, gone, private, since, public_until = row
    digest = None if key is None else key_digest(key)
    return Change(number, kind, repository, name, digest, gone, private, since, public_until)


def _tags(connection: Connection, repositories: Sequence[str], after: tuple[str, str], limit: int) -> list[Change]:
    values = {"repositories": list(repositories), "repository": after[0], "tag": after[1], "limit": limit}
    return [
        Change(number, "tag", repository, name, key_digest(key), private=private, since=since)
        for repository, name, key, number, private, since in connection.execute(_TAGS, values).fetchall()
    ]


def _named(connection: Connection, names: Sequence[str]) -> list[Change]:
    return [_repository(row) for row in connection.execute(_NAMED, (list(names),)).fetchall()]


def _from(connection: Connection, prefix: str, after: str, limit: int) -> list[Change]:
    rows = connection.execute(_FROM + b" limit %s", (after, prefix, prefix, limit)).fetchall()
    return [_repository(row) for row in rows]


def _repository(row: Sequence[Any]) -> Change:
    name, private, number, public_until = row
    return Change(number, "repository", name, private=private, public_until=public_until)


def _prune(connection: Connection, keep: float) -> int:
    found = [number for (number,) in connection.execute(_OLD, (keep, PRUNED_AT_ONCE)).fetchall()]
    if not found:
        return 0
    connection.execute(_HOLD)
    gone = [number for (number,) in connection.execute(_FORGET, (found,)).fetchall()]
    if gone:
        connection.execute(_PRUNED, (max(gone),))
    return len(found)


def _new_epoch(connection: Connection, by: By) -> State:
    row = connection.execute(_EPOCH).fetchone()
    assert row is not None
    state = State(*row)
    record(connection, by, "feed.epoch", detail={"epoch": state.epoch, "number": state.number})
    connection.execute("select pg_notify('p2pregistry_changes', %s)", (str(state.number),))
    return state
