"""``Publishing`` in Postgres: the tables of migration 0009."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from p2pregistry.digest import Digest
from p2pregistry.globs import matches_any
from tracker.catalog.keys import digest_key, key_digest
from tracker.catalog.publishing import Figure, Job, Pattern, Progress
from tracker.catalog.trail import By, record
from tracker.catalog.visible_postgres import expression
from tracker.db import Connection, Db
from tracker.publishing import Image, Item, block, looked_into, wanted

#: Only one tracker at a time decides what is wanted: two that saw different repositories could each take a root for
#: wanted by nobody, or by somebody.
_ALONE: Final = "select pg_try_advisory_xact_lock(7077331)"
# All that was noted of a repository at once: a garbage collector may have taken thousands of blobs out of it.
_TAKE: Final = """
delete from ipfs_changed where repository_id in (
    select repository_id from ipfs_changed group by repository_id order by min(id) limit %s
) returning repository_id
"""
_MARK_ALL: Final = """
insert into ipfs_changed (repository_id)
select id from repositories where name ~ any(%s::text[]) union select repository_id from ipfs_wanted
"""
# Without the bodies, which may be 4 MiB each: what a push makes us read must not grow with all that was pushed before.
_IMAGES: Final = """
select rm.manifest_id, m.digest, rm.media_type,
    case when get_byte(m.digest, 0) = 18 then substring(m.digest::bytea from 2) else sha256(m.body) end,
    octet_length(m.body), sha256(rm.claim::bytea), octet_length(rm.claim::bytea)
from repository_manifests rm join manifests m on m.id = rm.manifest_id
where rm.repository_id = %s and (%s::bytea is null or m.digest = %s::bytea) order by rm.manifest_id
"""
_BLOBS: Final = """
select mb.manifest_id, b.root, b.digest, b.size from manifest_blobs mb join blobs b on b.id = mb.blob_id
where mb.repository_id = %s and (%s::bigint is null or mb.manifest_id = %s)
"""
# Each blob with one of the manifests that name it: many share their lowest layers.
_BLOBS_ONCE: Final = """
select min(mb.manifest_id), b.root, b.digest, b.size from manifest_blobs mb join blobs b on b.id = mb.blob_id
where mb.repository_id = %s group by b.id
"""
#: Manifests whose bodies are in memory at once.
_BODIES: Final = 16
_HAD: Final = "select cid, kind from ipfs_wanted where repository_id = %s"
# A blob that was published stays so until it is collected.
_STAY: Final = """
select w.cid from ipfs_wanted w join blobs b on b.root = w.cid
join repository_blobs rb on rb.blob_id = b.id and rb.repository_id = w.repository_id
where w.repository_id = %s and w.kind = 'blob'
"""
_WANT: Final = """
insert into ipfs_wanted (repository_id, cid, kind, digest, size)
select %s, * from unnest(%s::bytea[], %s::text[], %s::bytea[], %s::bigint[]) on conflict do nothing
"""
_NO_LONGER: Final = "delete from ipfs_wanted where repository_id = %s and cid = any(%s::bytea[])"
_QUEUE: Final = """
insert into ipfs_jobs (cid, service, kind, digest, size)
select w.cid, s, w.kind, w.digest, w.size from ipfs_wanted w cross join unnest(%s::text[]) s
left join ipfs_jobs j on j.cid = w.cid and j.service = s
where w.repository_id = %s and (j.id is null or j.state in ('unpinning', 'removed'))
on conflict (cid, service) do update
set state = 'queued', attempts = 0, next_at = now(), last_error = null, sent = 0, updated_at = now()
where ipfs_jobs.state in ('unpinning', 'removed')
"""
_UNPIN: Final = """
update ipfs_jobs j set state = 'unpinning', attempts = 0, next_at = now(), last_error = null, updated_at = now()
where cid = any(%s::bytea[]) and state not in ('unpinning', 'removed')
    and not exists (select from ipfs_wanted w where w.cid = j.cid)
"""
_JOB: Final = "id, service, cid, kind, digest, size, state, attempts, generation, remote"
# What was published cannot be taken back: of a repository that has just become private nothing more is, even before
# somebody has looked at the change.
_SEEN: Final = """coalesce((
            select true from ipfs_wanted w join repositories r on r.id = w.repository_id
            where w.cid = j.cid and (
                not r.private or not exists (select from ipfs_changed c where c.repository_id = r.id)
            ) limit 1
        ), false)"""
_CLAIM: Final = f"""
update ipfs_jobs set attempts = attempts + 1, generation = generation + 1, updated_at = now(),
    held_until = now() + %s * interval '1 second', state = case state when 'queued' then 'publishing' else state end
where id in (
    select due.id from unnest(%s::text[]) s cross join lateral (
        select j.id, j.next_at from ipfs_jobs j
        where j.service = s and j.next_at <= now() and (j.held_until is null or j.held_until < now())
            and j.state in ('queued', 'publishing', 'unpinning', 'published')
            and (j.state not in ('queued', 'publishing') or {_SEEN})
            and (j.service <> 'pinning' or j.state = 'unpinning' or not coalesce((
                select k.state in ('queued', 'publishing') from ipfs_jobs k
                where k.cid = j.cid and k.service = 'kubo' and k.service = any(%s::text[])
            ), false))
        order by j.next_at, j.id limit %s for update skip locked
    ) due order by due.next_at, due.id limit %s
)
returning {_JOB}
"""  # noqa: S608 - constants
_MINE: Final = "where id = %s and generation = %s"
_PROGRESS: Final = f"""
update ipfs_jobs set sent = %s, held_until = now() + %s * interval '1 second', updated_at = now()
{_MINE} and state = %s and held_until is not null
"""  # noqa: S608 - constants
_LET_GO: Final = f"update ipfs_jobs set held_until = null {_MINE}"  # noqa: S608 - constants
_RELEASE: Final = f"""
update ipfs_jobs set held_until = null, attempts = greatest(0, attempts - 1),
    state = case when state = 'publishing' and remote is null then 'queued' else state end {_MINE}
"""  # noqa: S608 - constants
_PUBLISHED: Final = f"""
update ipfs_jobs set state = 'published', next_at = now() + %s * interval '1 second', attempts = 0,
    last_error = %s, updated_at = now()
{_MINE} and state in ('publishing', 'published')
"""  # noqa: S608 - constants
_LOST: Final = f"""
update ipfs_jobs set state = 'queued', next_at = now(), attempts = 0, sent = 0, remote = null, last_error = %s,
    updated_at = now()
{_MINE} and state = 'published'
"""  # noqa: S608 - constants
_CHECK_ALL: Final = """
update ipfs_jobs set next_at = now() + random() * %s * interval '1 second' where state = 'published' and next_at is null
"""
_LATER: Final = f"""
update ipfs_jobs set next_at = now() + %s * interval '1 second', attempts = 0, last_error = null, updated_at = now()
{_MINE} and state = 'publishing'
"""  # noqa: S608 - constants
_FAILED: Final = f"""
update ipfs_jobs set last_error = %s, next_at = now() + %s::float * interval '1 second', updated_at = now(),
    attempts = greatest(0, attempts - %s),
    state = case when %s::float is null then 'failed' when state = 'publishing' and remote is null then 'queued'
        else state end
{_MINE} and state = %s
"""  # noqa: S608 - constants
_REMOVED: Final = f"""
update ipfs_jobs set state = 'removed', next_at = null, remote = null, last_error = null, updated_at = now()
{_MINE} and state = 'unpinning'
"""  # noqa: S608 - constants
# Whatever became of the job: who has to unpin it must know what the service calls it.
_REMOTE: Final = f"update ipfs_jobs set remote = %s {_MINE}"  # noqa: S608 - constants
_CLAIM_TEXT: Final = "select claim from repository_manifests where sha256(claim::bytea) = %s limit 1"
_BODY: Final = "select body from manifests where digest = %s"
_STATES: Final = """
select cid, service, state, sent, attempts, next_at, last_error, updated_at from ipfs_jobs
where cid = any(%s::bytea[]) order by cid, service
"""
_OF_REPOSITORY: Final = """
select j.service, j.state, count(*), coalesce(sum(j.size), 0)::bigint from repositories r
join ipfs_wanted w on w.repository_id = r.id join ipfs_jobs j on j.cid = w.cid
where r.name = %s group by j.service, j.state order by j.service, j.state
"""
_FIGURES: Final = """
select service, state, count(*), coalesce(sum(size), 0)::bigint from ipfs_jobs group by service, state
order by service, state
"""
_FAILURES: Final = """
select cid, kind, digest, size, service, state, sent, attempts, next_at, last_error, updated_at from ipfs_jobs
where state = 'failed' or (last_error is not null and state in ('queued', 'publishing', 'unpinning'))
order by updated_at desc limit %s
"""
_RETRY: Final = """
update ipfs_jobs j set next_at = now(), attempts = 0, updated_at = now(), state = case
    when state <> 'failed' then state
    when exists (select from ipfs_wanted w where w.cid = j.cid) then 'queued' else 'unpinning' end
where state = 'failed' or (state in ('queued', 'publishing', 'unpinning') and next_at > now())
"""
_PRUNE: Final = "delete from ipfs_jobs where state = 'removed' and updated_at < now() - %s * interval '1 second'"


class PostgresPublishing:
    """``Publishing`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def patterns(self) -> list[Pattern]:
        return await self._db.query(_patterns)

    async def publish(self, pattern: str, by: By) -> bool:
        return await self._db.tx(_publish, pattern, by)

    async def unpublish(self, pattern: str, by: By) -> bool:
        return await self._db.tx(_unpublish, pattern, by)

    async def mark_all(self) -> None:
        await self._db.tx(_mark_all, retry=True)

    async def reconcile(self, limit: int, services: Sequence[str], *, encrypted: bool) -> int:
        return await self._db.tx(_reconcile, limit, list(services), encrypted, retry=True)

    async def claim(self, services: Sequence[str], limit: int, lasts: float, *, only: str | None = None) -> list[Job]:
        return await self._db.tx(_claim, list(services), limit, lasts, only)

    async def progress(self, job: Job, sent: int, lasts: float) -> bool:
        values = (sent, lasts, job.id, job.generation, job.state)
        return await self._db.tx(_run, _PROGRESS, values, retry=True) > 0

    async def published(self, job: Job, note: str | None = None, check: float | None = None) -> None:
        await self._db.tx(_finish, job, _PUBLISHED, (check, _text(note)), retry=True)

    async def lost(self, job: Job, error: str) -> None:
        await self._db.tx(_finish, job, _LOST, (_text(error),), retry=True)

    async def check_all(self, within: float) -> None:
        await self._db.tx(_run, _CHECK_ALL, (within,), retry=True)

    async def later(self, job: Job, remote: str, after: float) -> None:
        await self._db.tx(_later, job, remote, after, retry=True)

    async def failed(
        self, job: Job, error: str, again: float | None, *, counts: bool = True, forget: bool = False
    ) -> None:
        await self._db.tx(_failed, job, error, again, counts, forget, retry=True)

    async def removed(self, job: Job) -> None:
        await self._db.tx(_finish, job, _REMOVED, (), retry=True)

    async def release(self, job: Job) -> None:
        await self._db.tx(_run, _RELEASE, (job.id, job.generation), retry=True)

    async def block(self, item: Item) -> bytes | None:
        return await self._db.query(_block, item)

    async def image(self, repository: str, digest: Digest) -> Image | None:
        return await self._db.query(_image, repository, digest)

    async def chosen(self, repository: str) -> bool:
        return await self._db.query(_chosen, repository)

    async def states(self, cids: Sequence[bytes]) -> list[Progress]:
        return await self._db.query(_states, list(cids))

    async def repository(self, repository: str) -> list[Figure]:
        return await self._db.query(_figures, _OF_REPOSITORY, (repository,))

    async def failures(self, limit: int) -> list[tuple[Item, Progress]]:
        return await self._db.query(_failures, limit)

    async def retry(self, by: By) -> int:
        return await self._db.tx(_retry, by)

    async def figures(self) -> list[Figure]:
        return await self._db.query(_figures, _FIGURES, ())

    async def prune(self, age: float) -> int:
        return await self._db.tx(_run, _PRUNE, (age,), retry=True)


def _run(connection: Connection, statement: str, values: tuple[object, ...]) -> int:
    return connection.execute(statement.encode(), values).rowcount


def _text(text: str | None) -> str | None:
    return None if text is None else text.replace("\0", "")[:500]


def _patterns(connection: Connection) -> list[Pattern]:
    rows = connection.execute("select pattern, created_at, actor from ipfs_patterns order by pattern").fetchall()
    return [Pattern(*row) for row in rows]


def _globs(connection: Connection) -> list[str]:
    return [pattern for (pattern,) in connection.execute("select pattern from ipfs_patterns").fetchall()]


def _mark_all(connection: Connection) -> None:
    connection.execute(_MARK_ALL, ([expression(pattern) for pattern in _globs(connection)],))


def _chosen(connection: Connection, repository: str) -> bool:
    return matches_any(_globs(connection), repository)


def _publish(connection: Connection, pattern: str, by: By) -> bool:
    statement = "insert into ipfs_patterns (pattern, actor) values (%s, %s) on conflict do nothing"
    if connection.execute(statement, (pattern, by.actor)).rowcount == 0:
        return False
    _mark_all(connection)
    record(connection, by, "ipfs.publish", detail={"pattern": pattern})
    return True


def _unpublish(connection: Connection, pattern: str, by: By) -> bool:
    if connection.execute("delete from ipfs_patterns where pattern = %s", (pattern,)).rowcount == 0:
        return False
    _mark_all(connection)
    record(connection, by, "ipfs.unpublish", detail={"pattern": pattern})
    return True


def _reconcile(connection: Connection, limit: int, services: list[str], encrypted: bool) -> int:
    row = connection.execute(_ALONE).fetchone()
    taken = connection.execute(_TAKE, (limit,)).fetchall() if row is not None and row[0] else []
    repositories = sorted({repository for (repository,) in taken})
    patterns = _globs(connection) if repositories else []
    gone: set[bytes] = set()
    for number in repositories:
        gone |= _look_at(connection, number, patterns, services, encrypted)
    if gone:
        connection.execute(_UNPIN, (list(gone),))
    return len(repositories)


def _look_at(
    connection: Connection, number: int, patterns: list[str], services: list[str], encrypted: bool
) -> set[bytes]:
    """Compare what a repository is to have published with what it had; what it wants no more."""
    row = connection.execute("select name, private from repositories where id = %s", (number,)).fetchone()
    now: dict[bytes, Item] = {}
    stay: set[bytes] = set()
    if row is not None and matches_any(patterns, row[0]) and (encrypted or not row[1]):
        now = wanted(_images(connection, number, look=bool(row[1])), private=row[1], encrypted=encrypted)
        if not row[1]:
            stay = {cid for (cid,) in connection.execute(_STAY, (number,)).fetchall()}
    had = {cid for cid, _ in connection.execute(_HAD, (number,)).fetchall()}
    fresh = [item for cid, item in now.items() if cid not in had]
    if fresh:
        columns = ([item.cid for item in fresh], [item.kind for item in fresh])
        rest = ([digest_key(item.digest) for item in fresh], [item.size for item in fresh])
        connection.execute(_WANT, (number, *columns, *rest))
    if now:
        connection.execute(_QUEUE, (services, number))
    gone = had - now.keys() - stay
    if gone:
        connection.execute(_NO_LONGER, (number, list(gone)))
    return gone


def _images(connection: Connection, number: int, *, look: bool, digest: Digest | None = None) -> list[Image]:
    """``look``: into the manifests, for what says whether they are encrypted and what they list. Otherwise all of them
    are wanted, and a blob is given with one of those that name it only."""
    key = None if digest is None else digest_key(digest)
    rows = connection.execute(_IMAGES, (number, key, key)).fetchall()
    only = rows[0][0] if digest is not None and rows else None
    blobs: dict[int, list[Item]] = {}
    each = connection.execute(_BLOBS, (number, only, only)) if look else connection.execute(_BLOBS_ONCE, (number,))
    for manifest, root, of_blob, size in each.fetchall():
        blobs.setdefault(manifest, []).append(Item(bytes(root), "blob", key_digest(of_blob), size))
    inside = _inside(connection, {row[0]: row[2] for row in rows}) if look else {}
    return [_image_of(row, blobs.get(row[0], []), inside.get(row[0], (False, ()))) for row in rows]


def _inside(connection: Connection, media_types: dict[int, str]) -> dict[int, tuple[bool, tuple[Digest, ...]]]:
    """What ``looked_into`` says of manifests."""
    found = {}
    numbers = list(media_types)
    for at in range(0, len(numbers), _BODIES):
        statement = "select id, body from manifests where id = any(%s)"
        for number, body in connection.execute(statement, (numbers[at : at + _BODIES],)).fetchall():
            found[number] = looked_into(bytes(body), media_types[number])
    return found


def _image_of(row: Sequence[Any], blobs: list[Item], inside: tuple[bool, tuple[Digest, ...]]) -> Image:
    _, key, _, body_hash, body_size, claim_hash, claim_size = row
    digest = key_digest(key)
    encrypted, children = inside
    return Image(
        digest,
        block(bytes(body_hash), "manifest", digest, body_size),
        block(bytes(claim_hash), "claim", digest, claim_size),
        tuple(blobs),
        children,
        encrypted,
    )


def _image(connection: Connection, repository: str, digest: Digest) -> Image | None:
    row = connection.execute("select id from repositories where name = %s", (repository,)).fetchone()
    found = [] if row is None else _images(connection, row[0], look=True, digest=digest)
    return found[0] if found else None


def _claim(connection: Connection, services: list[str], limit: int, lasts: float, only: str | None) -> list[Job]:
    these = services if only is None else [only]
    rows = connection.execute(_CLAIM, (lasts, these, services, limit, limit)).fetchall()
    jobs = [
        Job(number, service, Item(bytes(cid), kind, key_digest(digest), size), state, attempts, generation, remote)
        for number, service, cid, kind, digest, size, state, attempts, generation, remote in rows
    ]
    return sorted(jobs, key=lambda job: job.id)


def _finish(connection: Connection, job: Job, statement: str, values: tuple[object, ...]) -> None:
    connection.execute(statement.encode(), (*values, job.id, job.generation))
    connection.execute(_LET_GO, (job.id, job.generation))


def _later(connection: Connection, job: Job, remote: str, after: float) -> None:
    connection.execute(_REMOTE, (remote, job.id, job.generation))
    _finish(connection, job, _LATER, (after,))


def _failed(connection: Connection, job: Job, error: str, again: float | None, counts: bool, forget: bool) -> None:
    if forget:
        connection.execute(_REMOTE, (None, job.id, job.generation))
    values = (_text(error), again, 0 if counts else 1, again, job.id, job.generation, job.state)
    connection.execute(_FAILED, values)
    connection.execute(_LET_GO, (job.id, job.generation))


def _block(connection: Connection, item: Item) -> bytes | None:
    if item.kind == "claim":
        row = connection.execute(_CLAIM_TEXT, (item.cid[4:],)).fetchone()
        return None if row is None else row[0].encode()
    row = connection.execute(_BODY, (digest_key(item.digest),)).fetchone()
    return None if row is None else bytes(row[0])


def _states(connection: Connection, cids: list[bytes]) -> list[Progress]:
    return [Progress(bytes(row[0]), *row[1:]) for row in connection.execute(_STATES, (cids,)).fetchall()]


def _figures(connection: Connection, statement: str, values: tuple[object, ...]) -> list[Figure]:
    return [Figure(*row) for row in connection.execute(statement.encode(), values).fetchall()]


def _failures(connection: Connection, limit: int) -> list[tuple[Item, Progress]]:
    rows = connection.execute(_FAILURES, (limit,)).fetchall()
    return [
        (Item(bytes(row[0]), row[1], key_digest(row[2]), row[3]), Progress(bytes(row[0]), *row[4:])) for row in rows
    ]


def _retry(connection: Connection, by: By) -> int:
    count = connection.execute(_RETRY).rowcount
    if count:
        record(connection, by, "ipfs.retry", detail={"jobs": count})
    return count
