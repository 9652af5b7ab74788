"""Where repositories stand - private or public, and since which change - in Postgres.

The stamp of a tag is the later one of its own change and its repository's: a repository that got another name has
brought its tags along, and they are older under that name than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pregistry.digest import Digest
from p2pregistry.trust.records import Stamp
from tracker.catalog.base import MANY, ManifestRecord, Naming, Placed, Resolved, Standing
from tracker.catalog.keys import digest_key, key_digest
from tracker.db import Connection

#: Repositories with the same manifest of which the peer API is told.
_PLACES: Final = 20
# The epoch and the number stand behind everything else that a statement selects; of one snapshot, as the rest.
_STANDING: Final = """
r.private, (select epoch from change_state),
coalesce((select number from changes c where c.kind = 'repository' and c.repository = r.name and c.name = ''), 0)
"""
_BY_TAG: Final = f"""
select m.digest, rm.media_type, m.body, rm.claim,
    coalesce((select number from changes c where c.kind = 'tag' and c.repository = r.name and c.name = t.name), 0),
    (select number from change_state), {_STANDING}
from repositories r join tags t on t.repository_id = r.id
join repository_manifests rm on rm.repository_id = r.id and rm.manifest_id = t.manifest_id
join manifests m on m.id = rm.manifest_id
where r.name = %s and t.name = %s
"""  # noqa: S608 - constants
_BY_DIGEST: Final = f"""
select m.digest, rm.media_type, m.body, rm.claim, null, (select number from change_state), {_STANDING}
from repositories r join manifests m on m.digest = %s
join repository_manifests rm on rm.repository_id = r.id and rm.manifest_id = m.id
where r.name = %s
"""  # noqa: S608 - constants
_STANDINGS: Final = f"select r.name, {_STANDING} from repositories r where r.name = any(%s)"  # noqa: S608 - constants
_PLACED: Final = f"""
select r.id, r.name, {_STANDING} from manifests m
join repository_manifests rm on rm.manifest_id = m.id join repositories r on r.id = rm.repository_id
where m.digest = %s order by rm.claim_number desc limit %s
"""  # noqa: S608 - constants
_CLAIMS: Final = """
select rm.repository_id, m.digest, rm.media_type, m.body, rm.claim
from manifests m join repository_manifests rm on rm.manifest_id = m.id
where m.digest = %s and rm.repository_id = any(%s)
"""
_NAMING: Final = """
select b.digest, p.public, case when p.public then '{}' else array(
    select distinct r.name from manifest_blobs mb join repositories r on r.id = mb.repository_id
    where mb.blob_id = b.id limit %s
) end
from blobs b, lateral (select exists (
    select from manifest_blobs mb join repositories r on r.id = mb.repository_id
    where mb.blob_id = b.id and not r.private
) as public) p
where b.digest = any(%s::bytea[]) and exists (select from manifest_blobs where blob_id = b.id)
"""


def resolve(connection: Connection, repository: str, reference: str | Digest) -> Resolved | None:
    """See Catalog."""
    if isinstance(reference, Digest):
        row = connection.execute(_BY_DIGEST.encode(), (digest_key(reference), repository)).fetchone()
    else:
        row = connection.execute(_BY_TAG.encode(), (repository, reference)).fetchone()
    if row is None:
        return None
    standing = _standing(row[6:])
    epoch = standing.stamp.epoch
    tag = None if row[4] is None else max(standing.stamp, Stamp(epoch, row[4]))
    record = ManifestRecord(key_digest(row[0]), row[1], row[2], row[3])
    return Resolved(record, standing, tag, Stamp(epoch, row[5]))


def standings(connection: Connection, repositories: Sequence[str]) -> dict[str, Standing]:
    """See Catalog."""
    rows = connection.execute(_STANDINGS.encode(), (list(repositories),)).fetchall()
    return {row[0]: _standing(row[1:]) for row in rows}


def manifest_anywhere(connection: Connection, digest: Digest, may: Callable[[str, bool], bool]) -> list[Placed]:
    """See Catalog."""
    key = digest_key(digest)
    found: dict[int, tuple[str, Standing]] = {}
    for row in connection.execute(_PLACED.encode(), (key, MANY)).fetchall():
        standing = _standing(row[2:])
        if len(found) < _PLACES and may(row[1], standing.private):
            found[row[0]] = row[1], standing
    if not found:
        return []
    rows = connection.execute(_CLAIMS, (key, list(found))).fetchall()
    records = {row[0]: ManifestRecord(key_digest(row[1]), row[2], row[3], row[4]) for row in rows}
    return [Placed(*place, records[number]) for number, place in found.items() if number in records]


def naming(connection: Connection, digests: Sequence[Digest]) -> dict[Digest, Naming]:
    """See Catalog."""
    rows = connection.execute(_NAMING, (MANY, [digest_key(digest) for digest in digests])).fetchall()
    return {key_digest(key): Naming(public, tuple(names)) for key, public, names in rows}


def _standing(row: Sequence[Any]) -> Standing:
    private, epoch, number = row
    return Standing(private, Stamp(epoch, number))
