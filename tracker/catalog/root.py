"""Which root key a database belongs to: nodes would refuse what a tracker with another one signs."""

from __future__ import annotations

from p2pregistry.errors import SettingsError
from tracker.db import Connection, Db


async def check_root(db: Db, root: str) -> None:
    """Remember the public root key (PASERK) of the first tracker that comes. Raises SettingsError for another one."""
    if await db.tx(_first, root, retry=True) != root:
        raise SettingsError(
            "$.keys.dir: a tracker with other keys uses this database; give this one the same root.key and signing.key."
            " If those are lost for good, empty the table root_key: nodes must then be told the new key"
        )


def _first(connection: Connection, root: str) -> str:
    connection.execute("insert into root_key (public) values (%s) on conflict do nothing", (root,))
    row = connection.execute("select public from root_key").fetchone()
    assert row is not None
    return str(row[0])
