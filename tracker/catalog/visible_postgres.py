"""``Visible`` in SQL, and what of repositories as such is asked with it.

A list begins each area at the part of its first glob that is literal, and takes no more names of it than the list is
long: however many repositories there are, a page costs what is on it, except where a glob matches few names of many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from p2pregistry.digest import Digest
from tracker.catalog.base import no_repository
from tracker.catalog.keys import digest_key
from tracker.catalog.trail import By, record
from tracker.catalog.visible import Area, Visible
from tracker.db import Connection

_ALL: Final = "select name from repositories where name > %s order by name limit %s"
# The second half is that of the public ones, of which there is an index.
_SEEN: Final = """
select distinct name from (
    select found.name from unnest(%s::text[], %s::text[], %s::text[]) as area (least, below, re), lateral (
        select r.name from repositories r
        where r.name > %s and r.name >= area.least and r.name < area.below and (area.re is null or r.name ~ area.re)
        order by r.name limit %s
    ) found
    union all
    select found.name from unnest(%s::text[], %s::text[], %s::text[]) as area (least, below, re), lateral (
        select r.name from repositories r
        where not r.private and r.name > %s and r.name >= area.least and r.name < area.below
            and (area.re is null or r.name ~ area.re)
        order by r.name limit %s
    ) found
) seen order by name limit %s
"""
#: A condition on ``repositories r`` with the three parameters of ``admission``.
ADMITTED: Final = """(%s::text[] is null or exists (
    select from unnest(%s::text[], %s::boolean[]) as area (re, public)
    where r.name ~ area.re and not (area.public and r.private)
))"""
_WITH_BLOB: Final = f"""
select distinct r.name from blobs b join manifest_blobs mb on mb.blob_id = b.id
join repositories r on r.id = mb.repository_id where b.digest = %s and {ADMITTED} order by r.name limit %s
"""  # noqa: S608 - constants
_PRIVATE: Final = "select private from repositories where name = %s"
_SET_PRIVATE: Final = "update repositories set private = %s where name = %s and private <> %s"

_STARS: Final = {"*": "[^/]*", "**": ".*"}
#: After every character of a repository's name.
_LAST: Final = "\x7f"

_Areas = tuple[list[str], list[str], list[str | None]]


def expression(glob: str) -> str:
    """What ``globs`` means by it, as a regular expression of Postgres, which does not backtrack for these."""
    return f"^{_body(glob)}$"


def admission(visible: Visible | None) -> tuple[list[str] | None, list[str], list[bool]]:
    """The parameters of ``ADMITTED``."""
    areas = () if visible is None else visible.areas
    expressions = [_expression(area) for area in areas]
    return None if visible is None else expressions, expressions, [area.public for area in areas]


def repositories(connection: Connection, after: str, limit: int, visible: Visible | None) -> list[str]:
    """See Catalog; ``after`` and ``limit`` as the database can take them."""
    if visible is None:
        return [name for (name,) in connection.execute(_ALL, (after, limit)).fetchall()]
    halves = [_ranges(area for area in visible.areas if area.public == public) for public in (False, True)]
    parameters = (*halves[0], after, limit, *halves[1], after, limit, limit)
    return [name for (name,) in connection.execute(_SEEN, parameters).fetchall()]


def repositories_with_blob(connection: Connection, digest: Digest, limit: int, visible: Visible | None) -> list[str]:
    """See Catalog."""
    parameters = (digest_key(digest), *admission(visible), max(0, limit))
    return [name for (name,) in connection.execute(_WITH_BLOB, parameters).fetchall()]


def visibility(connection: Connection, repository: str) -> bool | None:
    """See Catalog."""
    row = connection.execute(_PRIVATE, (repository,)).fetchone()
    return None if row is None else bool(row[0])


def set_visibility(connection: Connection, repository: str, private: bool, by: By) -> None:
    """See Catalog."""
    if connection.execute(_SET_PRIVATE, (private, repository, private)).rowcount:
        record(connection, by, "repository.visibility", repository, detail={"private": private})
    elif visibility(connection, repository) is None:
        raise no_repository(repository)


def _ranges(areas: Iterable[Area]) -> _Areas:
    found = [_range(area) for area in areas]
    return [least for least, _, _ in found], [below for _, below, _ in found], [re for _, _, re in found]


def _range(area: Area) -> tuple[str, str, str | None]:
    """Between which names an area lies, and the expression by which its names are told from the others there."""
    first = max(area.globs, key=lambda glob: len(_literal(glob)), default="**")
    least = _literal(first)
    rest = [glob for glob in area.globs if glob != first and glob != "**"]
    whole = not rest and first.removeprefix(least) in ("", "**")
    return least, least + "\x01" if least == first else _after_all(least), None if whole else _expression(area)


def _after_all(start: str) -> str:
    """What comes after each name that begins so."""
    return start[:-1] + chr(ord(start[-1]) + 1) if start else _LAST


def _literal(glob: str) -> str:
    return glob.partition("*")[0]


def _expression(area: Area) -> str:
    if len(area.globs) == 1:
        return expression(area.globs[0])
    return "^" + "".join(f"(?={_body(glob)}$)" for glob in area.globs)


def _body(glob: str) -> str:
    parts = re.split(r"(\*+)", glob)
    return "".join(_STARS.get(part[:2]) or re.escape(part) for part in parts)
