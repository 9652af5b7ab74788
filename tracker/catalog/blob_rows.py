"""Blobs in Postgres: which object holds one, and which repositories have it.

A repository has a blob through a row of ``repository_blobs``. A collector removes rows that no manifest refers to once
nobody has touched them for the grace time; it takes them ``for update``, so a key-share lock, held while a row is
answered for or referred to, keeps it away.
"""

from __future__ import annotations

from typing import Final

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from tracker.catalog.base import TOUCH, BlobHere, no_repository
from tracker.catalog.ipfs_blocks_postgres import add_keys
from tracker.catalog.keys import digest_key, key_digest
from tracker.catalog.policies import Quota, check_room
from tracker.catalog.sessions import Lease, unknown
from tracker.catalog.sessions_postgres import end_upload
from tracker.catalog.trail import By, record
from tracker.catalog.usage import linked
from tracker.catalog.visible import Visible
from tracker.catalog.visible_postgres import ADMITTED, admission
from tracker.db import Connection

_GIVEN_UP: Final = "select from former_names where name = split_part(%s, '/', 1)"
_MAKE: Final = """
insert into repositories (name, private)
select %s, %s where not exists (select from former_names where name = split_part(%s, '/', 1))
on conflict (name) do nothing returning id
"""
_HERE: Final = """
select b.digest, b.size, b.root, b.object from blobs b
join repository_blobs rb on rb.blob_id = b.id join repositories r on r.id = rb.repository_id
where r.name = %s and b.digest = %s
"""
_HERE_LOCKED: Final = """
select b.digest, b.size, b.root, b.object, rb.repository_id, rb.blob_id,
    rb.touched_at < now() - %s * interval '1 second'
from blobs b join repository_blobs rb on rb.blob_id = b.id join repositories r on r.id = rb.repository_id
where r.name = %s and b.digest = %s and not b.damaged for key share of rb
"""
_TOUCH: Final = "update repository_blobs set touched_at = now() where repository_id = %s and blob_id = %s"
_NAMED: Final = """
select digest, size, root, object from blobs b
where digest = %s and exists (select from manifest_blobs where blob_id = b.id)
"""
_HOLDER: Final = "select object from blobs where digest = %s"
_FIND: Final = "select id, object, damaged from blobs where digest = %s for key share"
_INSERT: Final = """
insert into blobs (digest, size, root, hashes, object, keyed) values (%s, %s, %s, %s, %s, true)
on conflict (digest) do nothing returning id
"""
_REPLACE: Final = """
update blobs set object = %s, damaged = false, scrubbed_at = null
where id = %s and object = %s and (damaged or object = %s)
"""
_CONDEMN: Final = """
insert into condemned (object, size) values (%s, %s) on conflict (object) do nothing
"""
_LINK: Final = """
insert into repository_blobs (repository_id, blob_id) values (%s, %s)
on conflict (repository_id, blob_id) do update set touched_at = now() returning xmax = 0
"""
_SOURCE: Final = f"""
select b.id, b.digest, b.size, b.root from blobs b
join repository_blobs rb on rb.blob_id = b.id join repositories r on r.id = rb.repository_id
where b.digest = %s and not b.damaged and (%s::text is null or r.name = %s) and {ADMITTED} limit 1
for key share of b, rb
"""  # noqa: S608 - constants


def repository_id(connection: Connection, name: str, private: bool) -> int:
    """The id of a repository, which is made if it is not there, private or not; it stays until the commit. Raises
    NotFound (NAME_UNKNOWN) for a new one in a namespace that was given up: nobody has it, or ever will."""
    # The plain look-up first: an insert that meets a row still uses up an id and writes to the log.
    for _ in range(3):
        row = connection.execute("select id from repositories where name = %s for key share", (name,)).fetchone()
        if row is None:
            row = connection.execute(_MAKE, (name, private, name)).fetchone()
            if row is None and connection.execute(_GIVEN_UP, (name,)).fetchone() is not None:
                raise no_repository(name)
        if row is not None:
            return int(row[0])
        # Another transaction made it, or removed it, while this one waited; the next statement sees it.
    raise RuntimeError("a repository was removed while it was being made")


def add_blob(
    connection: Connection,
    repository: str,
    private: bool,
    blob: Metainfo,
    name: str,
    by: By,
    upload: Lease | None,
    lost: str | None,
) -> str:
    """See Catalog."""
    if upload is not None and not end_upload(connection, upload):
        there = blob_here(connection, repository, blob.digest)
        if there is None:
            raise unknown(upload.id)
        return there.object  # this very call, or another process, has done it before
    blob_id, used = _store(connection, blob, name, lost)
    if _link(connection, repository, private, blob_id):
        record(connection, by, "blob.push", repository, digest=str(blob.digest), detail={"size": blob.size})
    return used


def _store(connection: Connection, blob: Metainfo, name: str, lost: str | None) -> tuple[int, str]:
    """The blob's row, held against removal, and the object that it names."""
    key = digest_key(blob.digest)
    row = connection.execute(_FIND, (key,)).fetchone()
    if row is None:
        made = connection.execute(_INSERT, (key, blob.size, blob.root, blob.hashes, name)).fetchone()
        if made is not None:
            add_keys(connection, int(made[0]), blob)
            return int(made[0]), name
        # Another transaction made it while this one waited; the next statement sees it.
        row = connection.execute(_FIND, (key,)).fetchone()
        if row is None:
            raise RuntimeError("a blob was removed while it was being made")
    blob_id, held, damaged = int(row[0]), str(row[1]), bool(row[2])
    if held == name:
        return blob_id, name
    if (damaged or held == lost) and connection.execute(_REPLACE, (name, blob_id, held, lost)).rowcount:
        connection.execute(_CONDEMN, (held, blob.size))
        return blob_id, name
    connection.execute(_CONDEMN, (name, blob.size))
    return blob_id, held


def _link(connection: Connection, repository: str, private: bool, blob_id: int) -> bool:
    """Put the blob in the repository, with a new grace time; whether it was not there. Raises QuotaExceeded."""
    number = repository_id(connection, repository, private)
    row = connection.execute(_LINK, (number, blob_id)).fetchone()
    assert row is not None
    if row[0]:
        usage = linked(connection, number, blob_id)
        check_room(Quota(usage.namespace, usage.quota, usage.used - usage.change), usage.change)
    return bool(row[0])


def mount_blob(
    connection: Connection,
    repository: str,
    private: bool,
    digest: Digest,
    source: str | None,
    visible: Visible | None,
    by: By,
) -> BlobRef | None:
    """See Catalog."""
    parameters = (digest_key(digest), source, source, *admission(visible))
    row = connection.execute(_SOURCE.encode(), parameters).fetchone()
    if row is None:
        return None
    if _link(connection, repository, private, row[0]):
        record(connection, by, "blob.mount", repository, reference=source, digest=str(digest), detail={"size": row[2]})
    return BlobRef(key_digest(row[1]), row[2], row[3])


def blob_here(connection: Connection, repository: str, digest: Digest) -> BlobHere | None:
    """See Catalog.blob."""
    row = connection.execute(_HERE, (repository, digest_key(digest))).fetchone()
    return None if row is None else BlobHere(BlobRef(key_digest(row[0]), row[1], row[2]), row[3])


def renew_blob(connection: Connection, repository: str, digest: Digest) -> BlobHere | None:
    """See Catalog.blob, ``renew``."""
    row = connection.execute(_HERE_LOCKED, (TOUCH, repository, digest_key(digest))).fetchone()
    if row is None:
        return None
    if row[6]:
        connection.execute(_TOUCH, (row[4], row[5]))
    return BlobHere(BlobRef(key_digest(row[0]), row[1], row[2]), row[3])


def named_blob(connection: Connection, digest: Digest) -> BlobHere | None:
    """See Catalog.named_blob."""
    row = connection.execute(_NAMED, (digest_key(digest),)).fetchone()
    return None if row is None else BlobHere(BlobRef(key_digest(row[0]), row[1], row[2]), row[3])


def holder(connection: Connection, digest: Digest) -> str | None:
    """See Catalog.holder."""
    row = connection.execute(_HOLDER, (digest_key(digest),)).fetchone()
    return None if row is None else str(row[0])
