"""Accounts in Postgres. The schema and what its tables mean: migrations/0006_identity.sql."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, TypeVar, TypeVarTuple

import trio

from p2pregistry.errors import LocalError, RequestError, SettingsError
from p2pregistry.observe import logger
from p2pregistry.trust.access import Scope
from p2pregistry.trust.secret import hash_secret, is_secret, kind_of, new_secret
from tracker.catalog.trail import By
from tracker.db import Connection, Db
from tracker.identity import account_rows, organization_rows, renaming, token_rows
from tracker.identity.base import (
    HINT,
    PREFIXES,
    SETUP_LIFETIME,
    Account,
    AccountKind,
    Member,
    NewToken,
    Resign,
    Team,
    Token,
    TokenKind,
    check_given,
    check_label,
    check_name,
    check_password,
    is_name,
    not_set_up,
    unknown_account,
    unknown_team,
)
from tracker.identity.passwords import Passwords
from tracker.identity.rights import Identity, Rights, Role, check_actions, check_pattern, check_scopes

#: Seconds for which rights are kept, if nothing has changed, and of how many identities.
KEEP: Final = 5.0
MOST_KEPT: Final = 10_000
#: Seconds between two looks whether another tracker has changed something.
FOLLOW: Final = 1.0

_CHANGED: Final = """
select s.number, exists (select from changes c where c.number > %s and c.kind = 'access') from change_state s
"""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logger(__name__)


class PostgresAccounts:
    """``Accounts`` on a database that ``tracker.catalog.migrate`` has prepared. ``resign`` signs the claims of
    repositories that are renamed, in a worker thread, inside the transaction. ``anonymous_pull``: whether nobody in
    particular may pull what is public."""

    def __init__(
        self, db: Db, resign: Resign, *, passwords: Passwords | None = None, anonymous_pull: bool = True
    ) -> None:
        self._db = db
        self._resign = resign
        self._passwords = passwords or Passwords()
        self._anonymous_pull = anonymous_pull
        self._rights: OrderedDict[Identity, tuple[float, Rights]] = OrderedDict()
        self._generation = 0
        self._seen = 0

    async def run(self) -> None:
        """Follow what the other trackers of the database change, for ever."""
        while True:
            try:
                await self.follow()
            except LocalError as err:
                _log.warning("changes of access cannot be read now", error=err.message)
            await trio.sleep(FOLLOW)

    async def follow(self) -> None:
        """Forget what is kept if somebody has changed access since the last time. Raises LocalError."""
        number, changed = await self._db.query(_changed, self._seen)
        # a database that was restored goes on with lower numbers
        if changed or number < self._seen:
            self.forget()
        self._seen = number

    # ------------------------------------------------------------------------------------------------------ who is it

    async def verify(self, name: str, secret: str) -> Identity | None:
        if kind_of(secret) in ("pat", "robot"):
            return await self._by_token(secret, refresh=False)
        found = await self._db.query(token_rows.password_of, name) if is_name(name) else None
        kept = None if found is None else found[1]
        if not await self._passwords.verify(kept, secret) or found is None or kept is None:
            return None
        if self._passwords.outdated(kept):
            await self._rehash(found[0].account_id, kept, secret)
        return found[0]

    async def _rehash(self, account_id: int, kept: str, password: str) -> None:
        after = await self._passwords.hash(password)
        try:
            await self._db.tx(account_rows.rehash, account_id, kept, after)
        except LocalError as err:
            _log.warning("a password could not be hashed anew", error=err.message)

    async def verify_refresh(self, secret: str) -> Identity | None:
        return await self._by_token(secret, refresh=True) if is_secret("refresh", secret) else None

    async def _by_token(self, secret: str, *, refresh: bool) -> Identity | None:
        found = await self._db.query(token_rows.shown, hash_secret(secret), refresh)
        if found is None:
            return None
        identity, stale = found
        if stale and identity.token_id is not None:
            try:
                await self._db.tx(token_rows.used, identity.token_id)
            except LocalError as err:
                _log.warning("the use of a token could not be noted", error=err.message)
        return identity

    async def identity_of(self, name: str) -> Identity | None:
        return await self._db.query(token_rows.identity_of, name) if is_name(name) else None

    async def rights(self, identity: Identity | None) -> Rights:
        if identity is None:
            await trio.lowlevel.checkpoint()
            return Rights(anonymous_pull=self._anonymous_pull)
        now = trio.current_time()
        kept = self._rights.get(identity)
        if kept is not None and kept[0] > now:
            await trio.lowlevel.checkpoint()
            return kept[1]
        generation = self._generation
        found = await self._db.query(token_rows.rights, identity, self._anonymous_pull)
        if generation == self._generation:  # else it may be older than what made it so
            self._rights[identity] = (now + KEEP, found)
            while len(self._rights) > MOST_KEPT:
                self._rights.popitem(last=False)
        return found

    def forget(self) -> None:
        self._generation += 1
        self._rights.clear()

    # ------------------------------------------------------------------------------------------------------- accounts

    async def account(self, name: str) -> Account | None:
        return await self._db.query(account_rows.account, name) if is_name(name) else None

    async def accounts(self, kind: AccountKind | None = None, *, after: str = "", limit: int = 1000) -> list[Account]:
        after = after.encode("ascii", "ignore").decode().replace("\0", "")
        return await self._db.query(account_rows.accounts, kind, after, max(0, limit))

    async def _change(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        try:
            return await self._db.tx(fn, *args)
        finally:
            self.forget()

    async def _hashed(self, password: str | None) -> str | None:
        return None if password is None else await self._passwords.hash(check_password(password))

    async def add_user(self, name: str, password: str | None, by: By, *, administrator: bool = False) -> Account:
        check_name(name)
        hashed = await self._hashed(password)
        return await self._change(account_rows.add_user, name, hashed, administrator, by)

    async def set_password(self, name: str, password: str | None, by: By) -> None:
        _look_up(name)
        await self._change(account_rows.set_password, name, await self._hashed(password), by)

    async def set_disabled(self, name: str, disabled: bool, by: By) -> None:
        _look_up(name)
        await self._change(account_rows.set_disabled, name, disabled, by)

    async def set_administrator(self, name: str, administrator: bool, by: By) -> None:
        _look_up(name)
        await self._change(account_rows.set_administrator, name, administrator, by)

    async def rename_account(self, name: str, to: str, by: By) -> Account:
        _look_up(name)
        check_name(to)
        return await self._change(renaming.rename_account, name, to, self._resign, by)

    async def delete_account(self, name: str, by: By, *, repositories: bool = False) -> None:
        _look_up(name)
        await self._change(account_rows.delete_account, name, repositories, by)

    # -------------------------------------------------------------------------------------------------- organisations

    async def add_organization(self, name: str, owner: str, by: By) -> Account:
        _look_up(owner)
        check_name(name)
        return await self._change(organization_rows.add_organization, name, owner, by)

    async def members(self, organization: str) -> list[Member]:
        _look_up(organization)
        return await self._db.tx(organization_rows.members, organization)

    async def memberships(self, user: str) -> list[Member]:
        _look_up(user)
        return await self._db.tx(organization_rows.memberships, user)

    async def set_member(self, organization: str, user: str, role: Role, by: By) -> None:
        _look_up(organization, user)
        await self._change(organization_rows.set_member, organization, user, role, by)

    async def remove_member(self, organization: str, user: str, by: By) -> bool:
        _look_up(organization)
        return is_name(user) and await self._change(organization_rows.remove_member, organization, user, by)

    async def teams(self, organization: str) -> list[Team]:
        _look_up(organization)
        return await self._db.tx(organization_rows.teams, organization)

    async def add_team(self, organization: str, team: str, by: By) -> Team:
        _look_up(organization)
        check_name(team)
        return await self._change(organization_rows.add_team, organization, team, by)

    async def rename_team(self, organization: str, team: str, to: str, by: By) -> Team:
        _look_up(organization, team=team)
        check_name(to)
        return await self._change(organization_rows.rename_team, organization, team, to, by)

    async def delete_team(self, organization: str, team: str, by: By) -> None:
        _look_up(organization, team=team)
        await self._change(organization_rows.delete_team, organization, team, by)

    async def add_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        _look_up(organization, user, team=team)
        return await self._change(organization_rows.add_team_member, organization, team, user, by)

    async def remove_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        _look_up(organization, user, team=team)
        return await self._change(organization_rows.remove_team_member, organization, team, user, by)

    async def set_grant(self, organization: str, team: str, pattern: str, actions: Iterable[str], by: By) -> None:
        _look_up(organization, team=team)
        check_pattern(pattern, organization)
        checked = sorted(check_actions(actions))
        await self._change(organization_rows.set_grant, organization, team, pattern, checked, by)

    async def remove_grant(self, organization: str, team: str, pattern: str, by: By) -> bool:
        _look_up(organization, team=team)
        pattern = pattern.replace("\0", "")
        return await self._change(organization_rows.remove_grant, organization, team, pattern, by)

    # --------------------------------------------------------------------------------------------------------- tokens

    async def add_token(
        self,
        kind: TokenKind,
        account: str,
        name: str,
        by: By,
        *,
        scopes: Iterable[Scope | str] | None = None,
        lifetime: float | None = None,
    ) -> NewToken:
        _look_up(account)
        check_label(name)
        checked = None if scopes is None else check_scopes(scopes)
        secret = new_secret(PREFIXES[kind])
        kept = (hash_secret(secret), secret[-HINT:])
        token = await self._change(token_rows.add_token, kind, account, name, kept, checked, lifetime, by)
        return NewToken(token, secret)

    async def add_refresh(self, identity: Identity, name: str, by: By, *, lifetime: float | None = None) -> str:
        check_label(name)
        secret = new_secret("refresh")
        kept = (hash_secret(secret), secret[-HINT:])
        await self._db.tx(token_rows.add_refresh, identity, name, kept, lifetime, by)
        return secret

    async def tokens(self, account: str, *, kind: TokenKind | None = None) -> list[Token]:
        _look_up(account)
        return await self._db.query(token_rows.tokens, account, kind)

    async def revoke_token(self, account: str, token_id: int, by: By) -> bool:
        _look_up(account)
        return await self._change(token_rows.revoke_token, account, token_id, by)

    # ---------------------------------------------------------------------------------------------------------- setup

    async def needs_setup(self) -> bool:
        return await self._db.query(account_rows.needs_setup)

    async def new_setup(self, by: By, *, lifetime: float = SETUP_LIFETIME) -> str:
        secret = new_secret("setup")
        await self._db.tx(account_rows.new_setup, hash_secret(secret), lifetime, by)
        return secret

    async def set_up(self, secret: str, name: str, password: str, by: By) -> Account:
        check_name(name)
        check_password(password)
        if not is_secret("setup", secret):
            raise not_set_up()
        hashed = await self._passwords.hash(password)
        return await self._change(account_rows.set_up, hash_secret(secret), name, hashed, by)

    async def ensure_administrator(self, name: str, password: str) -> None:
        check_given(name, password)
        there = await self.account(name)
        if there is not None and there.kind != "user":
            raise SettingsError(f"auth.username: {name} is an organization")
        found = await self._db.query(token_rows.kept_of, name)
        right = found is not None and await self._passwords.verify(found, password)
        hashed = None if right else await self._passwords.hash(password)
        try:
            await self._change(account_rows.ensure_administrator, name, hashed)
        except RequestError as err:
            raise SettingsError(f"auth.username: {err.message}") from err


def _changed(connection: Connection, since: int) -> tuple[int, bool]:
    """The latest change, and whether one after ``since`` is about access."""
    row = connection.execute(_CHANGED, (since,)).fetchone()
    assert row is not None
    return int(row[0]), bool(row[1])


def _look_up(*names: str, team: str | None = None) -> None:
    """Raises NotFound for names that no account or team can have, which a database may not be able to take."""
    for name in names:
        if not is_name(name):
            raise unknown_account(name)
    if team is not None and not is_name(team):
        raise unknown_team(team)
