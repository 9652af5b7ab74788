"""How many bytes a namespace holds: ``namespaces.used``, kept right by everyone who adds or removes links.

A namespace is the first part of a repository's name. A blob counts once in it, in however many of its repositories it
is linked. The row of the namespace is locked first and the links are looked at in a later statement, which therefore
sees what every other transaction that changed the sum has committed. All locks on links are taken before: who holds a
namespace waits for nothing any more, so nobody can wait in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tracker.db import Connection

_OF: Final = "select split_part(name, '/', 1) from repositories where id = %s"
_MAKE: Final = "insert into namespaces (name) values (%s) on conflict (name) do nothing"
_LOCK: Final = "select used, quota from namespaces where name = %s for update"
# Of these blobs, those that no other repository of the namespace has. A namespace's names are those from "a/" to
# before "a0", the character that follows the slash, and "a" itself.
_ONLY: Final = """
select coalesce(sum(b.size), 0)::bigint from blobs b
where b.id = any(%s::bigint[]) and not exists (
    select from repository_blobs rb join repositories r on r.id = rb.repository_id
    where rb.blob_id = b.id and rb.repository_id <> %s
        and (r.name = %s or (r.name > %s || '/' and r.name < %s || '0'))
)
"""
# Of these blobs, those that no repository of the namespace has.
_NONE: Final = """
select coalesce(sum(b.size), 0)::bigint from blobs b
where b.id = any(%s::bigint[]) and not exists (
    select from repository_blobs rb join repositories r on r.id = rb.repository_id
    where rb.blob_id = b.id and (r.name = %s or (r.name > %s || '/' and r.name < %s || '0'))
)
"""
_ADD: Final = "update namespaces set used = greatest(0, used + %s) where name = %s returning used"
_RECOUNT: Final = """
update namespaces set used = (
    select coalesce(sum(b.size), 0) from blobs b where b.id in (
        select rb.blob_id from repositories r join repository_blobs rb on rb.repository_id = r.id
        where r.name = %s or (r.name > %s || '/' and r.name < %s || '0')
    )
) where name = %s returning used
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a namespace after a change; ``used``, ``quota`` (None: no bound) and ``change`` are bytes. Its row is locked
    until the transaction ends."""

    namespace: str
    used: int
    quota: int | None
    change: int


def linked(connection: Connection, repository_id: int, blob_id: int) -> Usage:
    """To be called once the row of ``repository_blobs`` has been inserted (not where it was there already), as late in
    the transaction as can be."""
    return _changed(connection, repository_id, [blob_id], 1)


def unlinked(connection: Connection, repository_id: int, blob_ids: Iterable[int]) -> Usage:
    """To be called once these rows of ``repository_blobs`` have been deleted, and before the repository or the blobs
    are. Of one repository in a transaction; of several see ``released``."""
    return _changed(connection, repository_id, list(blob_ids), -1)


def released(connection: Connection, namespace: str, blob_ids: Iterable[int]) -> Usage:
    """To be called once links of these blobs to any repositories of the namespace have been deleted, each blob named
    once, and before the blobs are. Of several namespaces in one transaction: in the order of their names."""
    used, quota = _locked(connection, namespace)
    found = connection.execute(_NONE, (list(blob_ids), namespace, namespace, namespace)).fetchone()
    assert found is not None
    return _add(connection, Usage(namespace, used, quota, -int(found[0])))


def recount(connection: Connection, namespace: str) -> Usage:
    """Count it anew, whatever the row says."""
    used, quota = _locked(connection, namespace)
    row = connection.execute(_RECOUNT, (namespace, namespace, namespace, namespace)).fetchone()
    assert row is not None
    return Usage(namespace, int(row[0]), quota, int(row[0]) - used)


def _changed(connection: Connection, repository_id: int, blob_ids: list[int], sign: int) -> Usage:
    row = connection.execute(_OF, (repository_id,)).fetchone()
    if row is None:
        raise RuntimeError("usage of a repository that is not there")
    namespace = str(row[0])
    used, quota = _locked(connection, namespace)
    found = connection.execute(_ONLY, (blob_ids, repository_id, namespace, namespace, namespace)).fetchone()
    assert found is not None
    return _add(connection, Usage(namespace, used, quota, sign * int(found[0])))


def _add(connection: Connection, usage: Usage) -> Usage:
    """The usage after its change."""
    if usage.change == 0:
        return usage
    after = connection.execute(_ADD, (usage.change, usage.namespace)).fetchone()
    assert after is not None
    return Usage(usage.namespace, int(after[0]), usage.quota, usage.change)


def _locked(connection: Connection, namespace: str) -> tuple[int, int | None]:
    """The row's sum and quota; a namespace that is not there is made."""
    row = connection.execute(_LOCK, (namespace,)).fetchone()
    if row is None:
        connection.execute(_MAKE, (namespace,))
        row = connection.execute(_LOCK, (namespace,)).fetchone()
        if row is None:
            raise RuntimeError("a namespace was removed while it was being made")
    return int(row[0]), None if row[1] is None else int(row[1])
