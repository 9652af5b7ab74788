"""Removing tags, manifests and blobs from a repository, in Postgres.

Bytes stay: what nothing refers to any more is for the garbage collector.
"""

from __future__ import annotations

from typing import Final

from psycopg.errors import ForeignKeyViolation

from p2pregistry.digest import Digest
from tracker.catalog.base import still_referred_to
from tracker.catalog.changing import note_tags
from tracker.catalog.keys import digest_key
from tracker.catalog.policies_postgres import refuse_immutable
from tracker.catalog.trail import By, record
from tracker.catalog.usage import unlinked
from tracker.db import Connection

_TAG: Final = """
delete from tags t using repositories r, manifests m
where r.id = t.repository_id and m.id = t.manifest_id and r.name = %s and t.name = %s
returning digest_text(m.digest)
"""
_TAGS_OF: Final = """
delete from tags t using repositories r, manifests m
where r.id = t.repository_id and m.id = t.manifest_id and r.name = %s and m.digest = %s
returning t.name
"""
_MANIFEST: Final = """
delete from repository_manifests rm using repositories r, manifests m
where r.id = rm.repository_id and m.id = rm.manifest_id and r.name = %s and m.digest = %s
"""
_BLOB: Final = """
delete from repository_blobs rb using repositories r, blobs b
where r.id = rb.repository_id and b.id = rb.blob_id and r.name = %s and b.digest = %s
returning rb.repository_id, rb.blob_id
"""
_LOCK: Final = "select id from repositories where name = %s for update"
_ALL_TAGS: Final = "delete from tags where repository_id = %s returning name"
_ALL_MANIFESTS: Final = "delete from repository_manifests where repository_id = %s"
_ALL_BLOBS: Final = "delete from repository_blobs where repository_id = %s returning blob_id"
_ALL_LEFT: Final = "delete from tags_left where repository_id = %s"
_REPOSITORY: Final = "delete from repositories where id = %s"


def delete_tag(connection: Connection, repository: str, tag: str, by: By) -> bool:
    """See Catalog."""
    row = connection.execute(_TAG, (repository, tag)).fetchone()
    if row is None:
        return False
    refuse_immutable(connection, repository, [tag])
    record(connection, by, "tag.delete", repository, reference=tag, digest=row[0])
    return True


def delete_manifest(connection: Connection, repository: str, digest: Digest, by: By) -> bool:
    """See Catalog. A tag that another transaction points at the manifest meanwhile makes one of the two fail."""
    tags = sorted(name for (name,) in connection.execute(_TAGS_OF, (repository, digest_key(digest))).fetchall())
    refuse_immutable(connection, repository, tags)
    if connection.execute(_MANIFEST, (repository, digest_key(digest))).rowcount == 0:
        return False
    record(connection, by, "manifest.delete", repository, digest=str(digest), detail={"tags": tags})
    return True


def delete_blob(connection: Connection, repository: str, digest: Digest, by: By) -> bool:
    """See Catalog."""
    try:
        gone = connection.execute(_BLOB, (repository, digest_key(digest))).fetchone()
    except ForeignKeyViolation as err:
        raise still_referred_to(digest) from err
    if gone is None:
        return False
    unlinked(connection, gone[0], [gone[1]])
    record(connection, by, "blob.delete", repository, digest=str(digest))
    return True


def delete_repository(connection: Connection, repository: str, by: By) -> bool:
    """See Catalog. Pushes to it that are under way are waited for, later ones make it anew."""
    tags = remove_repository(connection, repository, by)
    if tags is None:
        return False
    note_tags(connection, [(repository, tag, None) for tag in tags])
    return True


def remove_repository(connection: Connection, repository: str, by: By) -> list[str] | None:
    """The same without ``note_tags``, which comes last in a transaction: the tags it had, None if it is not there."""
    row = connection.execute(_LOCK, (repository,)).fetchone()
    if row is None:
        return None
    number = int(row[0])
    tags = [name for (name,) in connection.execute(_ALL_TAGS, (number,)).fetchall()]
    refuse_immutable(connection, repository, tags)
    manifests = connection.execute(_ALL_MANIFESTS, (number,)).rowcount
    blobs = [blob_id for (blob_id,) in connection.execute(_ALL_BLOBS, (number,)).fetchall()]
    unlinked(connection, number, blobs)
    connection.execute(_ALL_LEFT, (number,))
    connection.execute(_REPOSITORY, (number,))
    detail: dict[str, object] = {"tags": len(tags), "manifests": manifests, "blobs": len(blobs)}
    record(connection, by, "repository.delete", repository, detail=detail)
    return tags
