"""The catalog in Postgres. The schema and what its tables mean: migrations/0001_init.sql."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from psycopg.types.json import Jsonb

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from tracker.catalog import blob_rows, removal, standing, visible_postgres
from tracker.catalog.base import (
    BlobHere,
    ManifestRecord,
    Naming,
    NewManifest,
    Placed,
    Referrer,
    Resolved,
    Sign,
    Standing,
    no_repository,
)
from tracker.catalog.keys import digest_key as _key
from tracker.catalog.keys import key_digest as _digest
from tracker.catalog.policies import QuotaExceeded, never_moves
from tracker.catalog.policies_postgres import PostgresPolicies, immutable
from tracker.catalog.sessions import Lease
from tracker.catalog.sessions_postgres import PostgresSessions
from tracker.catalog.trail import By, record
from tracker.catalog.visible import Visible
from tracker.db import Connection, Db

_MANIFEST_BY_TAG: Final = """
select m.digest, rm.media_type, m.body, rm.claim from repositories r
join tags t on t.repository_id = r.id
join repository_manifests rm on rm.repository_id = r.id and rm.manifest_id = t.manifest_id
join manifests m on m.id = rm.manifest_id
where r.name = %s and t.name = %s
"""
_MANIFEST_BY_DIGEST: Final = """
select m.digest, rm.media_type, m.body, rm.claim from repositories r
join manifests m on m.digest = %s
join repository_manifests rm on rm.repository_id = r.id and rm.manifest_id = m.id
where r.name = %s
"""
_CLAIMS: Final = """
select rm.claim from repositories r join blobs b on b.digest = %s
join manifest_blobs mb on mb.blob_id = b.id and mb.repository_id = r.id
join repository_manifests rm on rm.repository_id = r.id and rm.manifest_id = mb.manifest_id
where r.name = %s order by rm.claim_number desc limit 3
"""
_METAINFO: Final = """
select digest, size, root, hashes from blobs b
where digest = %s and exists (select from manifest_blobs where blob_id = b.id)
"""
_TAGS: Final = """
select t.name from repositories r left join tags t on t.repository_id = r.id and t.name > %s
where r.name = %s order by t.name limit %s
"""
_REFERRERS: Final = """
select m.digest, rm.media_type, octet_length(m.body), rm.artifact_type, rm.annotations from repositories r
join repository_manifests rm on rm.repository_id = r.id and rm.subject = %s
join manifests m on m.id = rm.manifest_id
where r.name = %s and (%s::text is null or rm.artifact_type = %s) and (%s::bytea is null or m.digest > %s::bytea)
order by m.digest limit %s
"""
# The key-share lock keeps a garbage collector from removing the rows before this transaction refers to them.
_BLOBS_HERE: Final = """
select b.id, b.digest, b.size, b.root from blobs b join repository_blobs rb on rb.blob_id = b.id
where rb.repository_id = %s and b.digest = any(%s::bytea[]) for key share of rb
"""
_MANIFESTS_HERE: Final = """
select m.id, m.digest from manifests m join repository_manifests rm on rm.manifest_id = m.id
where rm.repository_id = %s and m.digest = any(%s::bytea[]) for key share of rm
"""
_PUT_MANIFEST: Final = """
insert into repository_manifests (
    repository_id, manifest_id, media_type, claim, claim_number, subject, artifact_type, annotations
) values (%s, %s, %s, %s, nextval('claim_numbers'), %s, %s, %s)
on conflict (repository_id, manifest_id) do update
set claim = excluded.claim, claim_number = excluded.claim_number, pushed_at = now()
returning media_type
"""
_PUT_TAG: Final = """
insert into tags (repository_id, name, manifest_id) values (%s, %s, %s)
on conflict (repository_id, name) do update set manifest_id = excluded.manifest_id, updated_at = now()
"""
# Whoever comes second with another manifest finds no row, also if the first one is being committed only now.
_PUT_IMMUTABLE_TAG: Final = """
insert into tags (repository_id, name, manifest_id) values (%s, %s, %s)
on conflict (repository_id, name) do update set updated_at = now() where tags.manifest_id = excluded.manifest_id
"""


def _after(text: str) -> str:
    """``text`` with what Postgres cannot take (NUL, lone surrogates) removed, and the same ASCII tags after it.

    Nothing sorts between ``a`` and ``a`` NUL; all ASCII sorts before any other character, hence DEL in its place.
    """
    text = text.partition("\0")[0]
    for i, character in enumerate(text):
        if not character.isascii():
            return text[:i] + "\x7f"
    return text


class PostgresCatalog:
    """``Catalog`` on a database that ``tracker.catalog.migrate`` has prepared.

    ``sign`` is called in a worker thread, inside the transaction. ``private``: whether new repositories are.
    """

    def __init__(self, db: Db, *, private: bool = True) -> None:
        self._db = db
        self._private = private
        self.sessions = PostgresSessions(db)
        self.policies = PostgresPolicies(db)

    async def add_blob(
        self,
        repository: str,
        blob: Metainfo,
        name: str,
        by: By,
        *,
        upload: Lease | None = None,
        lost: str | None = None,
    ) -> str:
        try:
            return await self._db.tx(
                blob_rows.add_blob, repository, self._private, blob, name, by, upload, lost, retry=True
            )
        except QuotaExceeded as err:
            await self.policies.exceeded(repository, err, by)
            raise

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, by: By, *, visible: Visible | None = None
    ) -> BlobRef | None:
        try:
            return await self._db.tx(
                blob_rows.mount_blob, repository, self._private, digest, source, visible, by, retry=True
            )
        except QuotaExceeded as err:
            await self.policies.exceeded(repository, err, by)
            raise

    async def blob(self, repository: str, digest: Digest, *, renew: bool = False) -> BlobHere | None:
        if renew:
            return await self._db.tx(blob_rows.renew_blob, repository, digest, retry=True)
        return await self._db.query(blob_rows.blob_here, repository, digest)

    async def named_blob(self, digest: Digest) -> BlobHere | None:
        return await self._db.query(blob_rows.named_blob, digest)

    async def holder(self, digest: Digest) -> str | None:
        return await self._db.query(blob_rows.holder, digest)

    async def metainfo(self, digest: Digest) -> Metainfo | None:
        return await self._db.query(_metainfo, digest)

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        return await self._db.query(standing.naming, digests)

    async def put_manifest(
        self, repository: str, manifest: NewManifest, tags: Sequence[str], sign: Sign, by: By
    ) -> ManifestRecord:
        return await self._db.tx(_put_manifest, repository, self._private, manifest, tags, sign, by, retry=True)

    async def manifest(self, repository: str, reference: str | Digest) -> ManifestRecord | None:
        return await self._db.query(_manifest, repository, reference)

    async def claims_for_blob(self, repository: str, digest: Digest) -> list[str]:
        return await self._db.query(_claims_for_blob, repository, digest)

    async def resolve(self, repository: str, reference: str | Digest) -> Resolved | None:
        return await self._db.query(standing.resolve, repository, reference)

    async def standings(self, repositories: Sequence[str]) -> dict[str, Standing]:
        return await self._db.query(standing.standings, repositories)

    async def manifest_anywhere(self, digest: Digest, may: Callable[[str, bool], bool]) -> list[Placed]:
        return await self._db.query(standing.manifest_anywhere, digest, may)

    async def tags(self, repository: str, *, after: str = "", limit: int = 1000) -> list[str]:
        return await self._db.query(_tags, repository, after, limit)

    async def repositories(self, *, after: str = "", limit: int = 1000, visible: Visible | None = None) -> list[str]:
        return await self._db.query(visible_postgres.repositories, _after(after), max(0, limit), visible)

    async def repositories_with_blob(
        self, digest: Digest, limit: int = 20, *, visible: Visible | None = None
    ) -> list[str]:
        return await self._db.query(visible_postgres.repositories_with_blob, digest, limit, visible)

    async def visibility(self, repository: str) -> bool | None:
        return await self._db.query(visible_postgres.visibility, repository)

    async def set_visibility(self, repository: str, private: bool, by: By) -> None:
        await self._db.tx(visible_postgres.set_visibility, repository, private, by)

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None = None,
        after: Digest | None = None,
        limit: int,
    ) -> list[Referrer]:
        return await self._db.query(_referrers, repository, subject, artifact_type, after, limit)

    async def delete_tag(self, repository: str, tag: str, by: By) -> bool:
        return await self._db.tx(removal.delete_tag, repository, tag, by)

    async def delete_manifest(self, repository: str, digest: Digest, by: By) -> bool:
        return await self._db.tx(removal.delete_manifest, repository, digest, by)

    async def delete_blob(self, repository: str, digest: Digest, by: By) -> bool:
        return await self._db.tx(removal.delete_blob, repository, digest, by)

    async def delete_repository(self, repository: str, by: By) -> bool:
        return await self._db.tx(removal.delete_repository, repository, by)


def _metainfo(connection: Connection, digest: Digest) -> Metainfo | None:
    row = connection.execute(_METAINFO, (_key(digest),)).fetchone()
    return None if row is None else Metainfo(_digest(row[0]), row[1], row[2], row[3])


def _put_manifest(
    connection: Connection,
    repository: str,
    private: bool,
    manifest: NewManifest,
    tags: Sequence[str],
    sign: Sign,
    by: By,
) -> ManifestRecord:
    repository_id = blob_rows.repository_id(connection, repository, private)
    blobs, children = _references(connection, repository_id, manifest)
    manifest_id = _store_body(connection, manifest)
    claim = sign([ref for _, ref in blobs])
    about = (
        None if manifest.subject is None else _key(manifest.subject),
        manifest.artifact_type,
        None if manifest.annotations is None else Jsonb(dict(manifest.annotations)),
    )
    row = connection.execute(_PUT_MANIFEST, (repository_id, manifest_id, manifest.media_type, claim, *about)).fetchone()
    assert row is not None
    _replace(
        connection, "manifest_blobs", "manifest_id", "blob_id", (repository_id, manifest_id), [i for i, _ in blobs]
    )
    _replace(connection, "manifest_children", "parent_id", "child_id", (repository_id, manifest_id), children)
    # In one order everywhere, so that two pushes of the same tags cannot wait for each other.
    fixed = immutable(connection, repository, tags)
    for tag in sorted(set(tags)):
        statement = _PUT_IMMUTABLE_TAG if tag in fixed else _PUT_TAG
        if connection.execute(statement.encode(), (repository_id, tag, manifest_id)).rowcount == 0:
            raise never_moves(repository, tag)
    detail = {"media_type": row[0], "size": len(manifest.body), "tags": sorted(set(tags))}
    one = next(iter(tags)) if len(tags) == 1 else None
    record(connection, by, "manifest.push", repository, reference=one, digest=str(manifest.digest), detail=detail)
    return ManifestRecord(manifest.digest, row[0], manifest.body, claim)


def _references(
    connection: Connection, repository_id: int, manifest: NewManifest
) -> tuple[list[tuple[int, BlobRef]], list[int]]:
    """What the manifest refers to, in its order, without duplicates. Raises RequestError naming all that is missing."""
    blobs, children = _unique(manifest.blobs), _unique(manifest.manifests)
    have_blobs: dict[Digest, tuple[int, BlobRef]] = {}
    have_children: dict[Digest, int] = {}
    if blobs:
        rows = connection.execute(_BLOBS_HERE, (repository_id, [_key(digest) for digest in blobs])).fetchall()
        for blob_id, key, size, root in rows:
            have_blobs[_digest(key)] = (blob_id, BlobRef(_digest(key), size, root))
    if children:
        rows = connection.execute(_MANIFESTS_HERE, (repository_id, [_key(digest) for digest in children])).fetchall()
        have_children = {_digest(key): manifest_id for manifest_id, key in rows}
    missing = [str(digest) for digest in blobs if digest not in have_blobs]
    missing += [str(digest) for digest in children if digest not in have_children]
    if missing:
        raise RequestError(
            "MANIFEST_BLOB_UNKNOWN",
            "the manifest refers to content that this repository does not have",
            detail={"digests": missing},
        )
    return [have_blobs[digest] for digest in blobs], [have_children[digest] for digest in children]


def _unique(digests: Iterable[Digest]) -> list[Digest]:
    return list(dict.fromkeys(digests))


def _store_body(connection: Connection, manifest: NewManifest) -> int:
    key = _key(manifest.digest)
    for _ in range(2):
        connection.execute(
            "insert into manifests (digest, body) values (%s, %s) on conflict (digest) do nothing", (key, manifest.body)
        )
        row = connection.execute("select id from manifests where digest = %s for key share", (key,)).fetchone()
        if row is not None:
            return int(row[0])
        # Collected just before it was locked.
    raise RuntimeError("a manifest was removed while it was being stored")


def _replace(
    connection: Connection, table: str, owner: str, member: str, key: tuple[int, int], members: Sequence[int]
) -> None:
    """Make the rows of ``key`` in a table of references be exactly ``members``; the names are constants above."""
    connection.execute(
        f"delete from {table} where repository_id = %s and {owner} = %s and {member} <> all(%s::bigint[])".encode(),  # noqa: S608 - constants
        (*key, list(members)),
    )
    if members:
        connection.execute(
            f"insert into {table} (repository_id, {owner}, {member}) "
            f"select %s, %s, unnest(%s::bigint[]) on conflict do nothing".encode(),
            (*key, list(members)),
        )


def _manifest(connection: Connection, repository: str, reference: str | Digest) -> ManifestRecord | None:
    if isinstance(reference, Digest):
        row = connection.execute(_MANIFEST_BY_DIGEST, (_key(reference), repository)).fetchone()
    else:
        row = connection.execute(_MANIFEST_BY_TAG, (repository, reference)).fetchone()
    return None if row is None else ManifestRecord(_digest(row[0]), row[1], row[2], row[3])


def _claims_for_blob(connection: Connection, repository: str, digest: Digest) -> list[str]:
    return [claim for (claim,) in connection.execute(_CLAIMS, (_key(digest), repository)).fetchall()]


def _tags(connection: Connection, repository: str, after: str, limit: int) -> list[str]:
    rows = connection.execute(_TAGS, (_after(after), repository, max(1, limit))).fetchall()
    if not rows:
        raise no_repository(repository)
    # One row without a name: the repository is there, a tag is not.
    return [name for (name,) in rows if name is not None][: max(0, limit)]


def _referrers(
    connection: Connection,
    repository: str,
    subject: Digest,
    artifact_type: str | None,
    after: Digest | None,
    limit: int,
) -> list[Referrer]:
    last = None if after is None else _key(after)
    parameters = (_key(subject), repository, artifact_type, artifact_type, last, last, max(0, limit))
    rows = connection.execute(_REFERRERS, parameters).fetchall()
    return [Referrer(_digest(key), media_type, size, kind, notes) for key, media_type, size, kind, notes in rows]
