"""Users and organisations in Postgres: the table ``accounts`` of migrations/0006_identity.sql.

Each function runs inside a transaction. What must not become empty (administrators, an organisation's owners) is
locked before it is counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tracker.catalog.changing import note_access, note_tags
from tracker.catalog.policies import check_namespace
from tracker.catalog.removal import remove_repository
from tracker.catalog.trail import SYSTEM, By, record
from tracker.db import Connection
from tracker.identity.base import (
    Account,
    AccountKind,
    conflict,
    last_administrator,
    last_owner,
    not_set_up,
    taken,
    unknown_account,
)

_COLUMNS: Final = "id, kind, name, administrator, disabled_at, created_at, password is not null"
_ONE: Final = f"select {_COLUMNS} from accounts where name = %s"  # noqa: S608 - constants
_ONE_LOCKED: Final = f"{_ONE} for no key update"
_LIST: Final = f"""
select {_COLUMNS} from accounts where name > %s and (%s::text is null or kind = %s) order by name limit %s
"""  # noqa: S608 - constants
_INSERT: Final = f"""
insert into accounts (kind, name, password, administrator) values (%s, %s, %s, %s)
on conflict (name) do nothing returning {_COLUMNS}
"""  # noqa: S608 - constants
_FORMER: Final = "select account_id from former_names where name = %s"
ADD_FORMER: Final = """
insert into former_names (name, account_id) values (%s, %s)
on conflict (name) do update set account_id = excluded.account_id, until = now()
"""
_SET_HASH: Final = "update accounts set password = %s where id = %s"
_REHASH: Final = "update accounts set password = %s where id = %s and password = %s"
_DISABLE: Final = "update accounts set disabled_at = case when %s then now() end where id = %s"
_ADMINISTRATOR: Final = "update accounts set administrator = %s where id = %s"
_ADMINISTRATORS: Final = """
select id from accounts where administrator and disabled_at is null
"""
_ANY_ADMINISTRATOR: Final = "select exists (select from accounts where administrator)"
_END_SESSIONS: Final = (
    "update tokens set revoked_at = now() where account_id = %s and kind = 'refresh' and revoked_at is null"
)
_OWNED: Final = """
select o.id, o.name from members m join accounts o on o.id = m.organization_id
where m.user_id = %s and m.role = 'owner' order by o.id for no key update of o
"""
_OWNERS: Final = "select user_id from members where organization_id = %s and role = 'owner'"
_REPOSITORIES: Final = """
select name from repositories where name = %s or (name > %s || '/' and name < %s || '0') order by name for update
"""
_CLEAR_SETUP: Final = "delete from setup"
_NEW_SETUP: Final = "insert into setup (hash, expires_at) values (%s, now() + %s * interval '1 second')"
_USE_SETUP: Final = "delete from setup where hash = %s and expires_at > now() returning true"
#: Taken before any row by whoever may change who the administrators are: one after the other, and never in a circle.
_LOCK_ADMINISTRATORS: Final = "select pg_advisory_xact_lock(hashtext('p2pregistry.administrators'))"


def account(connection: Connection, name: str) -> Account | None:
    """See Accounts."""
    row = connection.execute(_ONE, (name,)).fetchone()
    return None if row is None else Account(*row)


def accounts(connection: Connection, kind: AccountKind | None, after: str, limit: int) -> list[Account]:
    """See Accounts."""
    return [Account(*row) for row in connection.execute(_LIST, (after, kind, kind, limit)).fetchall()]


def held(connection: Connection, name: str, kind: AccountKind | None = None) -> Account:
    """The account, which nobody else changes until the commit. Raises NotFound (ACCOUNT_UNKNOWN)."""
    row = connection.execute(_ONE_LOCKED, (name,)).fetchone()
    if row is None or (kind is not None and row[1] != kind):
        raise unknown_account(name)
    return Account(*row)


def add(connection: Connection, kind: AccountKind, name: str, password: str | None, administrator: bool) -> Account:
    """A new account. Raises RequestError (CONFLICT)."""
    check_namespace(name)
    row = connection.execute(_INSERT, (kind, name, password, administrator)).fetchone()
    # looked at afterwards: whoever gave the name up meanwhile has committed
    if row is None or connection.execute(_FORMER, (name,)).fetchone() is not None:
        raise taken(name)
    return Account(*row)


def noted(
    connection: Connection, by: By, action: str, changed: Account, *, gone: bool = False, **detail: object
) -> None:
    """The audit line and the change; the last thing in the transaction."""
    record(connection, by, action, reference=changed.name, detail={"id": changed.id, **detail})
    note_access(connection, [changed.name], gone=gone)


def add_user(connection: Connection, name: str, password: str | None, administrator: bool, by: By) -> Account:
    """See Accounts; the password is hashed."""
    made = add(connection, "user", name, password, administrator)
    noted(connection, by, "user.add", made, administrator=administrator)
    return made


def set_password(connection: Connection, name: str, password: str | None, by: By) -> None:
    """See Accounts; the password is hashed."""
    user = held(connection, name, "user")
    connection.execute(_SET_HASH, (password, user.id))
    connection.execute(_END_SESSIONS, (user.id,))
    noted(connection, by, "user.password", user)


def rehash(connection: Connection, account_id: int, before: str, after: str) -> None:
    """The same password, kept in another way."""
    connection.execute(_REHASH, (after, account_id, before))


def _keep_administrator(connection: Connection, account_id: int) -> None:
    if connection.execute(_ADMINISTRATORS).fetchall() == [(account_id,)]:
        raise last_administrator()


def set_disabled(connection: Connection, name: str, disabled: bool, by: By) -> None:
    """See Accounts."""
    connection.execute(_LOCK_ADMINISTRATORS)
    user = held(connection, name, "user")
    if disabled == (user.disabled is not None):
        return
    if disabled:
        _keep_administrator(connection, user.id)
        connection.execute(_END_SESSIONS, (user.id,))
    connection.execute(_DISABLE, (disabled, user.id))
    noted(connection, by, "user.disable" if disabled else "user.enable", user)


def set_administrator(connection: Connection, name: str, administrator: bool, by: By) -> None:
    """See Accounts."""
    connection.execute(_LOCK_ADMINISTRATORS)
    user = held(connection, name, "user")
    if user.administrator == administrator:
        return
    if not administrator:
        _keep_administrator(connection, user.id)
    connection.execute(_ADMINISTRATOR, (administrator, user.id))
    noted(connection, by, "user.promote" if administrator else "user.demote", user)


def delete_account(connection: Connection, name: str, repositories: bool, by: By) -> None:
    """See Accounts."""
    connection.execute(_LOCK_ADMINISTRATORS)
    going = held(connection, name)
    _keep_administrator(connection, going.id)
    for organization_id, organization in connection.execute(_OWNED, (going.id,)).fetchall():
        if connection.execute(_OWNERS, (organization_id,)).fetchall() == [(going.id,)]:
            raise last_owner(organization)
    there = [found for (found,) in connection.execute(_REPOSITORIES, (name, name, name)).fetchall()]
    if there and not repositories:
        raise conflict(f"{name} has {len(there)} repositories")
    tags: list[tuple[str, str, bytes | None]] = []
    for repository in there:
        tags += [(repository, tag, None) for tag in remove_repository(connection, repository, by) or ()]
    connection.execute("delete from accounts where id = %s", (going.id,))
    connection.execute(ADD_FORMER, (name, going.id))
    record(connection, by, f"{going.kind}.delete", reference=name, detail={"id": going.id, "repositories": len(there)})
    note_tags(connection, tags)
    note_access(connection, [name], gone=True)


def needs_setup(connection: Connection) -> bool:
    """See Accounts."""
    row = connection.execute(_ANY_ADMINISTRATOR).fetchone()
    return row is not None and not row[0]


def new_setup(connection: Connection, hashed: bytes, lifetime: float, by: By) -> None:
    """See Accounts; ``hashed`` is the secret's."""
    connection.execute(_LOCK_ADMINISTRATORS)
    if not needs_setup(connection):
        raise conflict("there is an administrator")
    connection.execute(_CLEAR_SETUP)
    connection.execute(_NEW_SETUP, (hashed, lifetime))
    record(connection, by, "setup.new", reference="")


def set_up(connection: Connection, hashed: bytes, name: str, password: str, by: By) -> Account:
    """See Accounts; secret and password are hashed."""
    connection.execute(_LOCK_ADMINISTRATORS)
    if connection.execute(_USE_SETUP, (hashed,)).fetchone() is None or not needs_setup(connection):
        raise not_set_up()
    made = add(connection, "user", name, password, True)
    noted(connection, replace(by, actor=name, account_id=made.id), "setup.done", made)
    return made


def ensure_administrator(connection: Connection, name: str, password: str | None) -> None:
    """See Accounts; ``password`` is hashed, None: it is the one that is kept."""
    connection.execute(_LOCK_ADMINISTRATORS)  # several trackers may start at once
    if account(connection, name) is None:
        add_user(connection, name, password, True, SYSTEM)
        return
    if password is not None:
        set_password(connection, name, password, SYSTEM)
    set_administrator(connection, name, True, SYSTEM)
    set_disabled(connection, name, False, SYSTEM)
