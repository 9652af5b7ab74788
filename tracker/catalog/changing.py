"""Changes that the triggers of migrations/0006_identity.sql do not see: numbered and told of by hand.

To be called as the last thing in a transaction: who has taken a number holds back every other writer until the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracker.db import Connection

_TAGS: Final = """
with taken as (
    update change_state set number = number + cardinality(%s::text[]) returning number
)
insert into changes (number, kind, repository, name, digest, gone, at)
select taken.number - cardinality(%s::text[]) + t.place, 'tag', t.repository, t.name, t.digest, t.digest is null,
    clock_timestamp()
from taken, unnest(%s::text[], %s::text[], %s::bytea[]) with ordinality as t (repository, name, digest, place)
on conflict (kind, repository, name) do update
set number = excluded.number, digest = excluded.digest, gone = excluded.gone, at = excluded.at
"""
_ACCESS: Final = "select note_change('access', '', %s, null, %s)"


def note_tags(connection: Connection, tags: Sequence[tuple[str, str, bytes | None]]) -> None:
    """That these tags (repository, tag, key of the digest or None) are so since their repository was deleted or
    renamed; a change of the repository, which wakes up the listeners, comes with them."""
    if tags:
        repositories, names, digests = ([one[i] for one in tags] for i in range(3))
        connection.execute(_TAGS, (names, names, repositories, names, digests))


def note_access(connection: Connection, names: Sequence[str], *, gone: bool = False) -> None:
    """That what these accounts are or may do has changed."""
    for name in sorted(names):
        connection.execute(_ACCESS, (name, gone))
