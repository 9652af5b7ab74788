"""The area ``Listing`` of a catalog: what people look for and look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from tracker.catalog import visible_postgres
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.visible import Visible
from tracker.db import Connection, Db

_SEARCH: Final = f"""
select r.name, r.private from repositories r
where r.name > %s and strpos(r.name, %s) > 0 and {visible_postgres.ADMITTED} order by r.name limit %s
"""  # noqa: S608 - constants
_PRIVATE: Final = "select name, private from repositories where name = any(%s) order by name"
_FACTS: Final = """
select r.private,
    (select coalesce(sum(b.size), 0)::bigint from repository_blobs rb join blobs b on b.id = rb.blob_id
     where rb.repository_id = r.id),
    (select count(*) from tags t where t.repository_id = r.id)
from repositories r where r.name = %s
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A repository in a list."""

    name: str
    private: bool


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """A repository. ``size``: bytes of its blobs, each counted once."""

    name: str
    private: bool
    size: int
    tags: int


class Listing(Protocol):
    """A failed database raises LocalError."""

    async def search(self, text: str, *, after: str = "", limit: int, visible: Visible | None) -> list[Entry]:
        """Repositories whose names contain ``text``, in ASCII order, those greater than ``after``, and only those that
        are ``visible``."""

    async def facts(self, repository: str) -> RepositoryFacts | None:
        """None if there is no such repository."""


class PostgresListing:
    """``Listing`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def search(self, text: str, *, after: str = "", limit: int, visible: Visible | None) -> list[Entry]:
        return await self._db.tx(_search, text, after, limit, visible, retry=True)

    async def facts(self, repository: str) -> RepositoryFacts | None:
        return await self._db.query(_facts, repository)


def _search(connection: Connection, text: str, after: str, limit: int, visible: Visible | None) -> list[Entry]:
    if text:
        parameters = (after, text, *visible_postgres.admission(visible), limit)
        rows = connection.execute(_SEARCH, parameters).fetchall()
    else:  # of a list without a question a page costs what is on it
        names = visible_postgres.repositories(connection, after, limit, visible)
        rows = connection.execute(_PRIVATE, (names,)).fetchall()
    return [Entry(name, private) for name, private in rows]


def _facts(connection: Connection, repository: str) -> RepositoryFacts | None:
    row = connection.execute(_FACTS, (repository,)).fetchone()
    return None if row is None else RepositoryFacts(repository, *row)


class MemoryListing:
    """``Listing`` of a catalog in memory."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog

    async def search(self, text: str, *, after: str = "", limit: int, visible: Visible | None) -> list[Entry]:
        names = await self._catalog.repositories(after=after, limit=1 << 40, visible=visible)
        content = self._catalog.content
        return [Entry(name, content[name].private) for name in names if text in name][:limit]

    async def facts(self, repository: str) -> RepositoryFacts | None:
        found = self._catalog.content.get(repository)
        if found is None:
            return None
        size = sum(self._catalog.blobs[digest].metainfo.ref.size for digest in found.blobs)
        return RepositoryFacts(repository, found.private, size, len(found.tags))
