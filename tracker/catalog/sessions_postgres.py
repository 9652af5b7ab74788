"""Upload sessions in Postgres: the table ``uploads`` of migrations/0003_registry.sql.

Which process may work on one is decided by the row's generation alone; ``held_until`` only says how long others wait.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from p2pregistry.digest import Digest
from tracker.catalog.keys import digest_key, key_digest
from tracker.catalog.sessions import Lease, Session, object_name, too_many, unknown
from tracker.catalog.trail import By, record
from tracker.db import Connection, Db

_COLUMNS: Final = (
    "id, repository, size, algorithm, digest, generation, actor, coalesce(held_until > clock_timestamp(), false),"
    " extract(epoch from clock_timestamp() - touched_at)::float8"
)
# Counting stops at the limit, so that it costs the same however many there are.
_OPEN: Final = f"""
insert into uploads (id, repository, algorithm, actor, holder, held_until, generation)
select %s, %s, %s, %s, %s::text, case when %s::text is null then null else clock_timestamp() + %s * interval '1 second'
    end, 1
where (select count(*) from (select from uploads limit %s) as open_already) < %s
on conflict (id) do update set touched_at = clock_timestamp()
returning {_COLUMNS}
"""  # noqa: S608 - constants
_GET: Final = f"select {_COLUMNS} from uploads where id = %s and repository = %s"  # noqa: S608 - constants
_TAKE: Final = f"""
update uploads set holder = %s, held_until = clock_timestamp() + %s * interval '1 second', generation = generation + 1,
    touched_at = clock_timestamp()
where id = %s and repository = %s and (holder is null or holder = %s or held_until <= clock_timestamp())
returning {_COLUMNS}
"""  # noqa: S608 - constants
_RENEW: Final = """
update uploads as u set held_until = clock_timestamp() + %s * interval '1 second', touched_at = clock_timestamp()
from unnest(%s::text[], %s::bigint[]) as mine (id, generation)
where u.id = mine.id and u.generation = mine.generation and u.holder is not null
returning u.id
"""
_RECORD: Final = "update uploads set size = %s, touched_at = clock_timestamp() where id = %s and generation = %s"
_VERIFY: Final = """
update uploads set size = %s, digest = %s, touched_at = clock_timestamp() where id = %s and generation = %s
"""
_RELEASE: Final = """
update uploads set size = %s, holder = null, held_until = null, touched_at = clock_timestamp()
where id = %s and generation = %s
"""
_END: Final = "delete from uploads where id = %s and generation = %s returning repository"
_IDLE: Final = """
delete from uploads where id in (
    select id from uploads
    where touched_at < clock_timestamp() - %s * interval '1 second'
        and (held_until is null or held_until <= clock_timestamp())
    order by touched_at limit %s for update skip locked
) returning id, size
"""
# Whether it was published is not known for certain; removing what is not there is no error.
_CONDEMN: Final = """
insert into condemned (object, size) select name, size from unnest(%s::text[], %s::bigint[]) as gone (name, size)
where not exists (select from blobs where object = name) on conflict (object) do nothing
"""
_KNOWN: Final = "select id from uploads where id = any(%s::text[])"
_ALL: Final = f"select {_COLUMNS} from uploads where id > %s order by id limit %s"  # noqa: S608 - constants
_COUNT: Final = "select count(*) from uploads"


class PostgresSessions:
    """``Sessions`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def open(
        self,
        session: str,
        repository: str,
        *,
        algorithm: str = "sha256",
        actor: str = "",
        limit: int,
        holder: str | None = None,
        lasts: float = 0.0,
    ) -> Session:
        row = (session, repository, algorithm, actor, holder, holder, lasts, limit, limit)
        return await self._db.tx(_open, row, retry=True)

    async def get(self, repository: str, session: str) -> Session | None:
        return await self._db.query(_get, repository, session)

    async def take(self, repository: str, session: str, holder: str, lasts: float) -> Session | None:
        return await self._db.tx(_take, repository, session, holder, lasts, retry=True)

    async def renew(self, leases: Collection[Lease], lasts: float) -> set[str]:
        return await self._db.tx(_renew, leases, lasts, retry=True)

    async def record(self, lease: Lease, size: int) -> bool:
        return await self._db.tx(_update, _RECORD, (size, lease.id, lease.generation), retry=True)

    async def verify(self, lease: Lease, size: int, digest: Digest) -> bool:
        row = (size, digest_key(digest), lease.id, lease.generation)
        return await self._db.tx(_update, _VERIFY, row, retry=True)

    async def release(self, lease: Lease, size: int) -> bool:
        return await self._db.tx(_update, _RELEASE, (size, lease.id, lease.generation), retry=True)

    async def drop(self, lease: Lease, by: By | None = None) -> bool:
        return await self._db.tx(_drop, lease, by, retry=True)

    async def expire(self, idle: float, limit: int) -> list[str]:
        return await self._db.tx(_expire, idle, limit)

    async def known(self, sessions: Sequence[str]) -> set[str]:
        return await self._db.query(_known, list(sessions))

    async def all(self, *, after: str = "", limit: int = 1000) -> list[Session]:
        return await self._db.query(_all, after, limit)

    async def count(self) -> int:
        return await self._db.query(_count)


def end_upload(connection: Connection, lease: Lease) -> bool:
    """Remove the session in the transaction that records its blob: one that has lost its lease must not, because its
    object may be condemned already. False if the lease is lost, or this was done before."""
    return _ended(connection, lease) is not None


def _ended(connection: Connection, lease: Lease) -> str | None:
    row = connection.execute(_END, (lease.id, lease.generation)).fetchone()
    return None if row is None else str(row[0])


def _session(row: Sequence[object]) -> Session:
    number, repository, size, algorithm, digest, generation, actor, held, idle = row
    assert isinstance(size, int)
    assert isinstance(generation, int)
    assert isinstance(idle, float)
    verified = key_digest(digest) if isinstance(digest, bytes) else None
    return Session(
        str(number), str(repository), size, str(algorithm), verified, generation, str(actor), bool(held), max(0.0, idle)
    )


def _open(connection: Connection, values: tuple[object, ...]) -> Session:
    row = connection.execute(_OPEN, values).fetchone()
    if row is None:
        raise too_many()
    return _session(row)


def _get(connection: Connection, repository: str, session: str) -> Session | None:
    row = connection.execute(_GET, (_text(session), repository)).fetchone()
    return None if row is None else _session(row)


def _take(connection: Connection, repository: str, session: str, holder: str, lasts: float) -> Session | None:
    row = connection.execute(_TAKE, (holder, lasts, _text(session), repository, holder)).fetchone()
    if row is not None:
        return _session(row)
    if _get(connection, repository, session) is None:
        raise unknown(session)
    return None


def _renew(connection: Connection, leases: Collection[Lease], lasts: float) -> set[str]:
    # in one order everywhere: two processes may each think that they have the same ones
    ordered = sorted(leases, key=lambda lease: lease.id)
    ids, generations = [lease.id for lease in ordered], [lease.generation for lease in ordered]
    return {row[0] for row in connection.execute(_RENEW, (lasts, ids, generations)).fetchall()}


def _update(connection: Connection, statement: str, values: tuple[object, ...]) -> bool:
    return connection.execute(statement.encode(), values).rowcount == 1


def _drop(connection: Connection, lease: Lease, by: By | None) -> bool:
    repository = _ended(connection, lease)
    if repository is None:
        return False
    if by is not None:
        record(connection, by, "upload.cancel", repository, detail={"upload": lease.id})
    connection.execute(_CONDEMN, ([object_name(lease.id)], [0]))
    return True


def _expire(connection: Connection, idle: float, limit: int) -> list[str]:
    rows = connection.execute(_IDLE, (idle, limit)).fetchall()
    if rows:
        connection.execute(_CONDEMN, ([object_name(row[0]) for row in rows], [row[1] for row in rows]))
    return [row[0] for row in rows]


def _known(connection: Connection, sessions: Sequence[str]) -> set[str]:
    return {row[0] for row in connection.execute(_KNOWN, (sessions,)).fetchall()}


def _all(connection: Connection, after: str, limit: int) -> list[Session]:
    return [_session(row) for row in connection.execute(_ALL, (_text(after), limit)).fetchall()]


def _count(connection: Connection) -> int:
    row = connection.execute(_COUNT).fetchone()
    assert row is not None
    return int(row[0])


def _text(text: str) -> str:
    """As Postgres can take it. Ids are made here, so no id has NUL, and whoever asks for one that does finds none."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
