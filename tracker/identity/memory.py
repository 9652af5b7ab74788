"""Accounts in memory: for tests, and the plainest statement of what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import trio

from p2pregistry.errors import SettingsError
from p2pregistry.globs import moved
from p2pregistry.trust.access import Scope
from p2pregistry.trust.secret import hash_secret, is_secret, kind_of, new_secret
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.trail import SYSTEM, By
from tracker.identity.base import (
    MOST_TOKENS,
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
    check_token,
    conflict,
    last_administrator,
    last_owner,
    no_identity,
    not_set_up,
    taken,
    unknown_account,
    unknown_team,
)
from tracker.identity.memory_tokens import MemoryTokens
from tracker.identity.passwords import Passwords
from tracker.identity.rights import Grant, Identity, Rights, Role, check_actions, check_pattern, check_scopes


@dataclass(slots=True)
class _Held:
    """An account, and what is kept of its password."""

    account: Account
    password: str | None


@dataclass(slots=True)
class _Group:
    """A team."""

    created: datetime
    members: set[str] = field(default_factory=set)
    grants: dict[str, frozenset[str]] = field(default_factory=dict)


class MemoryAccounts:
    """``Accounts`` without a database. ``anonymous_pull``: whether nobody in particular may pull what is public.
    ``now``: the time, as a database tells it."""

    def __init__(
        self,
        catalog: MemoryCatalog | None = None,
        resign: Resign | None = None,
        *,
        passwords: Passwords | None = None,
        anonymous_pull: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._catalog = MemoryCatalog() if catalog is None else catalog
        self._resign = resign
        self._passwords = passwords or Passwords(memory_cost=8, time_cost=1)
        self._anonymous_pull = anonymous_pull
        self._now = now
        self._held: dict[str, _Held] = {}
        self._former: dict[str, int] = {}
        self._roles: dict[str, dict[str, tuple[Role, datetime]]] = {}
        self._teams: dict[tuple[str, str], _Group] = {}
        self._tokens = MemoryTokens(now)
        self._setup: tuple[bytes, datetime] | None = None
        self._ids = 0
        #: who did what to whom: the actions of the audit log
        self.written: list[tuple[By, str, str]] = []

    def _note(self, by: By, action: str, name: str) -> None:
        self.written.append((by, action, name))

    def _id(self) -> int:
        self._ids += 1
        return self._ids

    def _find(self, name: str, kind: AccountKind | None = None) -> _Held:
        held = self._held.get(name)
        if held is None or (kind is not None and held.account.kind != kind):
            raise unknown_account(name)
        return held

    # ------------------------------------------------------------------------------------------------------ who is it

    async def verify(self, name: str, secret: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        if kind_of(secret) in ("pat", "robot"):
            return self._by_token(secret)
        held = self._held.get(name)
        good = await self._passwords.verify(None if held is None else held.password, secret)
        return await self.identity_of(name) if good else None

    async def verify_refresh(self, secret: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return self._by_token(secret) if is_secret("refresh", secret) else None

    def _by_token(self, secret: str) -> Identity | None:
        given = self._tokens.use(secret)
        held = None if given is None else self._of(given.account_id)
        if given is None or held is None or held.account.disabled is not None:
            return None
        token, account = given.token, held.account
        whole = token.scopes is None
        name = "" if token.kind == "refresh" else token.name
        return Identity(account.id, account.name, account.administrator and whole, token.id, token.scopes, name)

    def _of(self, account_id: int) -> _Held | None:
        return next((held for held in self._held.values() if held.account.id == account_id), None)

    async def identity_of(self, name: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        held = self._held.get(name)
        if held is None or held.account.kind != "user" or held.account.disabled is not None:
            return None
        return Identity(held.account.id, name, held.account.administrator)

    async def rights(self, identity: Identity | None) -> Rights:
        await trio.lowlevel.checkpoint()
        held = None if identity is None else self._of(identity.account_id)
        if identity is None or held is None or held.account.disabled is not None:
            return Rights(anonymous_pull=self._anonymous_pull)
        if identity.token_id is not None and self._tokens.good(identity.token_id) is None:
            return Rights(anonymous_pull=self._anonymous_pull)
        name = held.account.name
        return Rights(
            name,
            held.account.administrator,
            {org: roles[name][0] for org, roles in sorted(self._roles.items()) if name in roles},
            tuple(
                Grant(pattern, actions)
                for _, group in sorted(self._teams.items())
                if name in group.members
                for pattern, actions in sorted(group.grants.items())
            ),
            identity.scopes,
            self._anonymous_pull,
        )

    def forget(self) -> None:
        pass

    # ------------------------------------------------------------------------------------------------------- accounts

    async def account(self, name: str) -> Account | None:
        await trio.lowlevel.checkpoint()
        held = self._held.get(name)
        return None if held is None else held.account

    async def accounts(self, kind: AccountKind | None = None, *, after: str = "", limit: int = 1000) -> list[Account]:
        await trio.lowlevel.checkpoint()
        found = [held.account for name, held in sorted(self._held.items()) if name > after]
        return [one for one in found if kind is None or one.kind == kind][: max(0, limit)]

    def _add(self, kind: AccountKind, name: str, password: str | None, administrator: bool) -> Account:
        if name in self._held or name in self._former:
            raise taken(name)
        account = Account(self._id(), kind, name, administrator, None, self._now(), password is not None)
        self._held[name] = _Held(account, password)
        return account

    async def add_user(self, name: str, password: str | None, by: By, *, administrator: bool = False) -> Account:
        check_name(name)
        hashed = None if password is None else await self._passwords.hash(check_password(password))
        account = self._add("user", name, hashed, administrator)
        self._note(by, "user.add", name)
        return account

    async def set_password(self, name: str, password: str | None, by: By) -> None:
        hashed = None if password is None else await self._passwords.hash(check_password(password))
        await trio.lowlevel.checkpoint()
        held = self._find(name, "user")
        held.password = hashed
        held.account = replace(held.account, has_password=hashed is not None)
        self._tokens.end_sessions(held.account.id)
        self._note(by, "user.password", name)

    def _keep_administrator(self, name: str) -> None:
        """Raises RequestError (CONFLICT) if nobody but ``name`` is an enabled administrator."""
        held = [one.account for one in self._held.values() if one.account.administrator and not one.account.disabled]
        if [one.name for one in held] == [name]:
            raise last_administrator()

    async def set_disabled(self, name: str, disabled: bool, by: By) -> None:
        await trio.lowlevel.checkpoint()
        held = self._find(name, "user")
        if disabled == (held.account.disabled is not None):
            return
        if disabled:
            self._keep_administrator(name)
            self._tokens.end_sessions(held.account.id)
        held.account = replace(held.account, disabled=self._now() if disabled else None)
        self._note(by, "user.disable" if disabled else "user.enable", name)

    async def set_administrator(self, name: str, administrator: bool, by: By) -> None:
        await trio.lowlevel.checkpoint()
        held = self._find(name, "user")
        if held.account.administrator == administrator:
            return
        if not administrator:
            self._keep_administrator(name)
        held.account = replace(held.account, administrator=administrator)
        self._note(by, "user.promote" if administrator else "user.demote", name)

    async def rename_account(self, name: str, to: str, by: By) -> Account:
        await trio.lowlevel.checkpoint()
        held = self._find(name)
        check_name(to)
        if to in self._held or self._former.get(to, held.account.id) != held.account.id:
            raise taken(to)
        if self._catalog.names_in(to):
            raise conflict(f"there are repositories in {to}")
        self._catalog.rename_namespace(name, to, self._resign)
        self._former.pop(to, None)
        self._former[name] = held.account.id
        self._held[to] = self._held.pop(name)
        self._move(name, to)
        held.account = replace(held.account, name=to)
        self._note(by, f"{held.account.kind}.rename", to)
        return held.account

    def _move(self, name: str, to: str) -> None:
        self._roles = {to if org == name else org: roles for org, roles in self._roles.items()}
        for roles in self._roles.values():
            if name in roles:
                roles[to] = roles.pop(name)
        self._teams = {(to if org == name else org, team): group for (org, team), group in self._teams.items()}
        for group in self._teams.values():
            group.members = {to if user == name else user for user in group.members}
            group.grants = {moved(pattern, name, to): actions for pattern, actions in group.grants.items()}
        self._tokens.rename(name, to)

    async def delete_account(self, name: str, by: By, *, repositories: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        account = self._find(name).account
        self._keep_administrator(name)
        for organization in sorted(self._roles):
            self._keep_owner(organization, name)
        there = self._catalog.names_in(name)
        if there and not repositories:
            raise conflict(f"{name} has {len(there)} repositories")
        for repository in there:
            await self._catalog.delete_repository(repository, by)
        del self._held[name]
        self._former[name] = account.id
        self._roles.pop(name, None)
        for roles in self._roles.values():
            roles.pop(name, None)
        self._teams = {key: group for key, group in self._teams.items() if key[0] != name}
        for group in self._teams.values():
            group.members.discard(name)
        self._tokens.drop(account.id)
        self._note(by, f"{account.kind}.delete", name)

    # -------------------------------------------------------------------------------------------------- organisations

    async def add_organization(self, name: str, owner: str, by: By) -> Account:
        await trio.lowlevel.checkpoint()
        self._find(owner, "user")
        account = self._add("organization", check_name(name), None, False)
        self._roles[name] = {owner: ("owner", self._now())}
        self._note(by, "organization.add", name)
        return account

    def _role(self, organization: str, user: str) -> Role | None:
        found = self._roles.get(organization, {}).get(user)
        return None if found is None else found[0]

    def _keep_owner(self, organization: str, user: str) -> None:
        """Raises RequestError (CONFLICT) if nobody but ``user`` owns it."""
        owners = [name for name, (role, _) in self._roles[organization].items() if role == "owner"]
        if owners == [user]:
            raise last_owner(organization)

    async def members(self, organization: str) -> list[Member]:
        await trio.lowlevel.checkpoint()
        self._find(organization, "organization")
        return [Member(organization, user, *found) for user, found in sorted(self._roles[organization].items())]

    async def memberships(self, user: str) -> list[Member]:
        await trio.lowlevel.checkpoint()
        self._find(user, "user")
        return [Member(org, user, *roles[user]) for org, roles in sorted(self._roles.items()) if user in roles]

    async def set_member(self, organization: str, user: str, role: Role, by: By) -> None:
        await trio.lowlevel.checkpoint()
        self._find(organization, "organization")
        self._find(user, "user")
        before = self._role(organization, user)
        if before == role:
            return
        if before == "owner":
            self._keep_owner(organization, user)
        since = self._now() if before is None else self._roles[organization][user][1]
        self._roles[organization][user] = (role, since)
        self._note(by, "member.set", organization)

    async def remove_member(self, organization: str, user: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        self._find(organization, "organization")
        if self._role(organization, user) is None:
            return False
        self._keep_owner(organization, user)
        del self._roles[organization][user]
        for (org, _), group in self._teams.items():
            if org == organization:
                group.members.discard(user)
        self._note(by, "member.remove", organization)
        return True

    def _team(self, organization: str, team: str) -> _Group:
        self._find(organization, "organization")
        found = self._teams.get((organization, team))
        if found is None:
            raise unknown_team(team)
        return found

    async def teams(self, organization: str) -> list[Team]:
        await trio.lowlevel.checkpoint()
        self._find(organization, "organization")
        return [
            Team(
                organization,
                name,
                group.created,
                tuple(sorted(group.members)),
                tuple(Grant(pattern, actions) for pattern, actions in sorted(group.grants.items())),
            )
            for (org, name), group in sorted(self._teams.items())
            if org == organization
        ]

    async def add_team(self, organization: str, team: str, by: By) -> Team:
        await trio.lowlevel.checkpoint()
        self._find(organization, "organization")
        if (organization, check_name(team)) in self._teams:
            raise conflict(f"there is a team {team}")
        group = self._teams[organization, team] = _Group(self._now())
        self._note(by, "team.add", organization)
        return Team(organization, team, group.created)

    async def rename_team(self, organization: str, team: str, to: str, by: By) -> Team:
        await trio.lowlevel.checkpoint()
        group = self._team(organization, team)
        if (organization, check_name(to)) in self._teams:
            raise conflict(f"there is a team {to}")
        del self._teams[organization, team]
        self._teams[organization, to] = group
        self._note(by, "team.rename", organization)
        return next(one for one in await self.teams(organization) if one.name == to)

    async def delete_team(self, organization: str, team: str, by: By) -> None:
        await trio.lowlevel.checkpoint()
        self._team(organization, team)
        del self._teams[organization, team]
        self._note(by, "team.delete", organization)

    async def add_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        group = self._team(organization, team)
        self._find(user, "user")
        if self._role(organization, user) is None:
            raise conflict(f"{user} is not a member of {organization}")
        if user in group.members:
            return False
        group.members.add(user)
        self._note(by, "team.member.add", organization)
        return True

    async def remove_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        group = self._team(organization, team)
        if user not in group.members:
            return False
        group.members.remove(user)
        self._note(by, "team.member.remove", organization)
        return True

    async def set_grant(self, organization: str, team: str, pattern: str, actions: Iterable[str], by: By) -> None:
        await trio.lowlevel.checkpoint()
        group = self._team(organization, team)
        check_pattern(pattern, organization)
        group.grants[pattern] = check_actions(actions)
        self._note(by, "grant.set", organization)

    async def remove_grant(self, organization: str, team: str, pattern: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if self._team(organization, team).grants.pop(pattern, None) is None:
            return False
        self._note(by, "grant.remove", organization)
        return True

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
        await trio.lowlevel.checkpoint()
        held = self._find(account)
        check_label(name)
        check_token(kind, held.account.kind, scopes, lifetime)
        checked = None if scopes is None else check_scopes(scopes)
        if self._tokens.count(held.account.id) >= MOST_TOKENS:
            raise conflict(f"an account has at most {MOST_TOKENS} tokens")
        made = self._tokens.give(kind, held.account, name, by, checked, lifetime)
        self._note(by, "token.add", account)
        return made

    async def add_refresh(self, identity: Identity, name: str, by: By, *, lifetime: float | None = None) -> str:
        await trio.lowlevel.checkpoint()
        check_label(name)
        held = self._of(identity.account_id)
        if held is None or held.account.disabled is not None:
            raise no_identity()
        if identity.token_id is not None:
            parent = self._tokens.good(identity.token_id)
            if parent is None or parent.token.kind == "refresh":
                raise no_identity()
        made = self._tokens.give("refresh", held.account, name, by, identity.scopes, lifetime, identity.token_id)
        self._note(by, "token.refresh", held.account.name)
        return made.secret

    async def tokens(self, account: str, *, kind: TokenKind | None = None) -> list[Token]:
        await trio.lowlevel.checkpoint()
        return self._tokens.of(self._find(account).account.id, kind)

    async def revoke_token(self, account: str, token_id: int, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if not self._tokens.revoke(self._find(account).account.id, token_id):
            return False
        self._note(by, "token.revoke", account)
        return True

    # ---------------------------------------------------------------------------------------------------------- setup

    async def needs_setup(self) -> bool:
        await trio.lowlevel.checkpoint()
        return not any(held.account.administrator for held in self._held.values())

    async def new_setup(self, by: By, *, lifetime: float = SETUP_LIFETIME) -> str:
        if not await self.needs_setup():
            raise conflict("there is an administrator")
        secret = new_secret("setup")
        self._setup = (hash_secret(secret), self._now() + timedelta(seconds=lifetime))
        self._note(by, "setup.new", "")
        return secret

    async def set_up(self, secret: str, name: str, password: str, by: By) -> Account:
        check_name(name)
        hashed = await self._passwords.hash(check_password(password))
        good = self._setup is not None and self._setup[0] == hash_secret(secret) and self._setup[1] > self._now()
        if not good or not await self.needs_setup():
            raise not_set_up()
        account = self._add("user", name, hashed, True)
        self._setup = None
        self._note(replace(by, actor=name, account_id=account.id), "setup.done", name)
        return account

    async def ensure_administrator(self, name: str, password: str) -> None:
        check_given(name, password)
        held = self._held.get(name)
        if held is None:
            if name in self._former:
                raise SettingsError(f"auth.username: the name {name} was in use before")
            self._add("user", name, await self._passwords.hash(password), True)
            self._note(SYSTEM, "user.add", name)
            return
        if held.account.kind != "user":
            raise SettingsError(f"auth.username: {name} is an organization")
        if not await self._passwords.verify(held.password, password):
            held.password = await self._passwords.hash(password)
            held.account = replace(held.account, has_password=True)
            self._tokens.end_sessions(held.account.id)
            self._note(SYSTEM, "user.password", name)
        await self.set_administrator(name, True, SYSTEM)
        await self.set_disabled(name, False, SYSTEM)
