"""Brings a database to the schema of this program.

The schema is the sum of the files ``migrations/NNNN_name.sql``, applied in order, forward only. All pending files run
in one transaction under an advisory lock, so any number of trackers may start at once, and a file that fails leaves the
database as it was. Each file is recorded with its sha256: a file that was changed after it was applied is refused.

The first line of a file, ``-- serves: N``, is the number of the oldest program (named by its newest file) that can work
with the schema once the file is applied. An older program refuses to start, a newer schema that serves it is accepted:
that is what lets the trackers of one database be replaced one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from p2pregistry.errors import LocalError
from tracker.db import Connection, Db

#: Any number will do, as long as all trackers use the same; it is "p2preg" in ASCII.
_LOCK = 0x703270726567
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_SERVES = re.compile(r"-- serves: (\d+)\s*\n")

_TABLE = """
create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    sha256 text not null,
    serves integer not null,
    applied_at timestamptz not null default now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without ``.sql``, the oldest program it serves, and its text."""

    version: int
    name: str
    serves: int
    sql: str

    @classmethod
    def read(cls, file_name: str, sql: str) -> Migration:
        """From a file. Raises LocalError if its name or first line is not as described above."""
        name, serves = _NAME.fullmatch(file_name), _SERVES.match(sql)
        if name is None or serves is None:
            raise LocalError(f"{file_name} is not a migration: NNNN_name.sql, beginning with '-- serves: N'")
        return cls(int(name[1]), file_name.removesuffix(".sql"), int(serves[1]), sql)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load() -> list[Migration]:
    """The files that come with this program, in order."""
    found = [
        Migration.read(entry.name, entry.read_text("utf-8"))
        for entry in files("tracker.catalog").joinpath("migrations").iterdir()
        if entry.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrate(db: Db, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is pending and return the names of the files applied.

    Raises LocalError if the database is too new for this program, if an applied file was changed, or if one fails.
    """
    return await db.tx(_apply, load() if migrations is None else migrations, retry=True)


def _apply(connection: Connection, migrations: Sequence[Migration]) -> list[str]:
    # Waiting for another tracker's migration, or rewriting a large table, may take longer than a statement should.
    connection.execute("set local statement_timeout = 0")
    connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
    connection.execute(_TABLE)
    rows = connection.execute("select version, name, sha256, serves from schema_migrations").fetchall()
    pending = _pending(migrations, {version: (name, sha256, serves) for version, name, sha256, serves in rows})
    for migration in pending:
        connection.execute(migration.sql.encode())
        connection.execute(
            "insert into schema_migrations (version, name, sha256, serves) values (%s, %s, %s, %s)",
            (migration.version, migration.name, migration.sha256, migration.serves),
        )
    return [migration.name for migration in pending]


def _pending(migrations: Sequence[Migration], applied: dict[int, tuple[str, str, int]]) -> list[Migration]:
    """What is left to apply. Raises LocalError where program and database do not belong together."""
    own = max((migration.version for migration in migrations), default=0)
    needs = max((serves for _, _, serves in applied.values()), default=0)
    if needs > own:
        raise LocalError(
            f"the database is newer than this program: it needs schema {needs} or later, this program has {own}; "
            "start a newer version"
        )
    pending = []
    for migration in migrations:
        if migration.version not in applied:
            pending.append(migration)
        elif applied[migration.version][1] != migration.sha256:
            raise LocalError(f"migration {migration.name} was changed after it was applied to this database")
    if pending and pending[0].version < max(applied, default=0):
        raise LocalError(f"migration {pending[0].name} is older than what was already applied to this database")
    return pending
