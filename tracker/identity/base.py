"""The seam ``Accounts``: users, organisations, teams and tokens, whichever database keeps them.

An account is a user or an organisation. Its name is a namespace: the first part of a repository's name. Each change is
a line of the audit log and, in the table ``changes``, a change of kind 'access' of that account.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError, SettingsError
from p2pregistry.trust.access import Scope
from p2pregistry.trust.secret import Kind
from tracker.catalog.trail import By
from tracker.identity.rights import NOBODY, Grant, Identity, Rights, Role

__all__ = ["NOBODY", "Accounts", "Grant", "Identity", "Rights", "Role"]

AccountKind = Literal["user", "organization"]
TokenKind = Literal["personal", "robot", "refresh"]

MAX_NAME: Final = 64
NAME_FORM: Final = (
    f"a name is up to {MAX_NAME} lower-case letters and digits, with single '.' and '_' or '-' between them"
)
#: Characters of a password.
MIN_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1000
#: Seconds for which the one-time secret of the first administrator is good.
SETUP_LIFETIME: Final = 24 * 3600.0
#: Seconds between two notes that a token was used.
USED_EVERY: Final = 60
#: Refresh tokens of an account that are good at once: each login of a client makes one, and the oldest goes.
MOST_REFRESH: Final = 100
#: Personal and robot tokens of an account that are good at once.
MOST_TOKENS: Final = 500
#: The prefix of each kind of token.
PREFIXES: Final[Mapping[TokenKind, Kind]] = {"personal": "pat", "robot": "robot", "refresh": "refresh"}
#: Characters of a secret's end by which it is told from others.
HINT: Final = 4

# One part of a repository's name (oci.reference).
_NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._/@:+-]{0,98}[A-Za-z0-9])?")

#: Signs a claim for a manifest of a repository, of which these blobs may be named, anew.
Resign = Callable[[str, Digest, Sequence[BlobRef]], str]


@dataclass(frozen=True, slots=True)
class Account:
    """A user or an organisation. ``has_password``: whether one can be shown; never for an organisation."""

    id: int
    kind: AccountKind
    name: str
    administrator: bool
    disabled: datetime | None
    created: datetime
    has_password: bool


@dataclass(frozen=True, slots=True)
class Member:
    """Of an organisation."""

    organization: str
    user: str
    role: Role
    since: datetime


@dataclass(frozen=True, slots=True)
class Team:
    """Of an organisation: its users and what they may do, both in the order of their names."""

    organization: str
    name: str
    created: datetime
    members: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a secret that was given out. ``hint``: its last characters. ``scopes`` None: all that the
    account may. A token that was revoked or has expired is good for nothing and stays in the list."""

    id: int
    kind: TokenKind
    account: str
    name: str
    hint: str
    scopes: tuple[Scope, ...] | None
    created: datetime
    created_by: str
    expires: datetime | None
    last_used: datetime | None
    revoked: datetime | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """``secret`` is told this once."""

    token: Token
    secret: str = field(repr=False)


class Accounts(Protocol):
    """Each method is one transaction. Names that nobody has: NotFound (ACCOUNT_UNKNOWN); of teams NotFound
    (TEAM_UNKNOWN). What is not in form: RequestError (INVALID, 400). What contradicts what is there, by a name that is
    or was in use, the last owner or the last administrator: RequestError (CONFLICT, 409). A failed database raises
    LocalError. Who may call what is the caller's to decide.
    """

    # ------------------------------------------------------------------------------------------------------- who is it

    async def verify(self, name: str, secret: str) -> Identity | None:
        """By a password, or by a personal or robot token, with which any name is good. None for anything else; how long
        that takes does not tell whether there is such a user. Accounts that are disabled are nobody."""

    async def verify_refresh(self, secret: str) -> Identity | None:
        """By a refresh token. It carries the scopes of the token it was asked for with, and ends with it."""

    async def identity_of(self, name: str) -> Identity | None:
        """The user of this name as if it had shown its password; None if there is none or it is disabled."""

    async def rights(self, identity: Identity | None) -> Rights:
        """Loaded anew every few seconds, at once after ``forget``. Those of nobody for None, and for an identity whose
        account is gone or disabled or whose token was revoked or has expired."""

    def forget(self) -> None:
        """Something has changed, as a change of kind 'access' says: keep nothing that was loaded before."""

    # ------------------------------------------------------------------------------------------------------- accounts

    async def account(self, name: str) -> Account | None:
        """A user or an organisation."""

    async def accounts(self, kind: AccountKind | None = None, *, after: str = "", limit: int = 1000) -> list[Account]:
        """By name, those greater than ``after``."""

    async def add_user(self, name: str, password: str | None, by: By, *, administrator: bool = False) -> Account:
        """A new user. Raises RequestError (INVALID, CONFLICT)."""

    async def set_password(self, name: str, password: str | None, by: By) -> None:
        """None: no password is good. Refresh tokens that the old one had are revoked."""

    async def set_disabled(self, name: str, disabled: bool, by: By) -> None:
        """A disabled user is nobody until enabled; refresh tokens are gone for good."""

    async def set_administrator(self, name: str, administrator: bool, by: By) -> None:
        """Make a user administrator, or no longer."""

    async def rename_account(self, name: str, to: str, by: By) -> Account:
        """With all its repositories. The old name stays taken, except for the account itself."""

    async def delete_account(self, name: str, by: By, *, repositories: bool = False) -> None:
        """The name stays taken. Raises RequestError (CONFLICT) while its namespace has repositories, unless
        ``repositories``: then they go too; and where it is the last owner of an organisation."""

    # -------------------------------------------------------------------------------------------------- organisations

    async def add_organization(self, name: str, owner: str, by: By) -> Account:
        """Owned by this user."""

    async def members(self, organization: str) -> list[Member]:
        """By name."""

    async def memberships(self, user: str) -> list[Member]:
        """The organisations that the user is in, by name."""

    async def set_member(self, organization: str, user: str, role: Role, by: By) -> None:
        """Let somebody in, or change the role."""

    async def remove_member(self, organization: str, user: str, by: By) -> bool:
        """From its teams too. False if he is not in."""

    async def teams(self, organization: str) -> list[Team]:
        """By name."""

    async def add_team(self, organization: str, team: str, by: By) -> Team:
        """A new one without members and grants."""

    async def rename_team(self, organization: str, team: str, to: str, by: By) -> Team:
        """With its members and grants. Another team may have the old name later."""

    async def delete_team(self, organization: str, team: str, by: By) -> None:
        """With all it grants."""

    async def add_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        """False if he is in already. Raises RequestError (CONFLICT) if he is not in the organisation."""

    async def remove_team_member(self, organization: str, team: str, user: str, by: By) -> bool:
        """False if he is not in."""

    async def set_grant(self, organization: str, team: str, pattern: str, actions: Iterable[str], by: By) -> None:
        """The glob begins with the organisation's name and a slash; the actions replace those it had."""

    async def remove_grant(self, organization: str, team: str, pattern: str, by: By) -> bool:
        """False if there is none."""

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
        """A personal token of a user, or a robot's of a user or an organisation, which always has scopes.
        ``lifetime``: seconds, None for ever. Refresh tokens are made by ``add_refresh``."""

    async def add_refresh(self, identity: Identity, name: str, by: By, *, lifetime: float | None = None) -> str:
        """The secret of a refresh token, with the scopes of ``identity``; ``name``: the client's. Raises RequestError
        (DENIED) if the identity is nobody's any more, or was itself shown by a refresh token."""

    async def tokens(self, account: str, *, kind: TokenKind | None = None) -> list[Token]:
        """Newest first."""

    async def revoke_token(self, account: str, token_id: int, by: By) -> bool:
        """Of any kind, with the refresh tokens that were asked for with it. False if the account has no such token, or
        it was revoked before."""

    # ---------------------------------------------------------------------------------------------------------- setup

    async def needs_setup(self) -> bool:
        """Whether there is no administrator."""

    async def new_setup(self, by: By, *, lifetime: float = SETUP_LIFETIME) -> str:
        """A secret with which the first administrator can be made, once; earlier ones are good no longer. Raises
        RequestError (CONFLICT) if there is an administrator."""

    async def set_up(self, secret: str, name: str, password: str, by: By) -> Account:
        """Make the first administrator. Raises RequestError (DENIED) unless the secret is good."""

    async def ensure_administrator(self, name: str, password: str) -> None:
        """At start: whatever was there before, this user is an enabled administrator with this password. Raises
        SettingsError (auth.username) for a name that cannot be one."""


def is_name(name: str) -> bool:
    """Whether an account may have this name."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """An account's or a team's name. Raises RequestError (INVALID)."""
    if not is_name(name):
        raise RequestError("INVALID", NAME_FORM, status=400)
    return name


def check_label(name: str) -> str:
    """A token's name. Raises RequestError (INVALID)."""
    if not _LABEL.fullmatch(name):
        raise RequestError("INVALID", "a token's name is up to 100 letters, digits, spaces and ._/@:+-", status=400)
    return name


def check_password(password: str) -> str:
    """Raises RequestError (INVALID)."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise RequestError("INVALID", f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters", status=400)
    return password


def unknown_account(name: str) -> NotFound:
    """That nobody has this name."""
    return NotFound("ACCOUNT_UNKNOWN", "there is no such user or organization", detail={"name": name[:MAX_NAME]})


def unknown_team(team: str) -> NotFound:
    """That the organisation has no such team."""
    return NotFound("TEAM_UNKNOWN", "the organization has no such team", detail={"name": team[:MAX_NAME]})


def conflict(message: str) -> RequestError:
    """That it contradicts what is there."""
    return RequestError("CONFLICT", message, status=409)


def taken(name: str) -> RequestError:
    """That a name is or was in use."""
    return conflict(f"the name {name} is or was in use")


def check_token(kind: TokenKind, of: AccountKind, scopes: object, lifetime: float | None) -> None:
    """Whether such an account may have such a token. Raises RequestError (INVALID)."""
    if kind == "refresh" or (kind == "personal" and of != "user"):
        raise RequestError("INVALID", "a token is personal and a user's, or a robot's", status=400)
    if kind == "robot" and scopes is None:
        raise RequestError("INVALID", "a robot's token has scopes", status=400)
    if lifetime is not None and not 0 < lifetime <= 100 * 366 * 86400:
        raise RequestError("INVALID", "a token is good for some seconds, or for ever", status=400)


def not_set_up() -> RequestError:
    """The refusal of ``set_up``, whatever is wrong."""
    return RequestError("DENIED", "this secret is not good for making the first administrator", status=403)


def no_identity() -> RequestError:
    """The refusal of ``add_refresh``."""
    return RequestError("DENIED", "this account or token is not good any more", status=403)


def last_administrator() -> RequestError:
    """The refusal to be left without."""
    return conflict("this is the last administrator; make another one first")


def last_owner(organization: str) -> RequestError:
    """The refusal to be left without."""
    return conflict(f"this is the last owner of {organization}; make another one first")


def check_given(name: str, password: str) -> None:
    """What the settings say of the administrator; his password may be as short as it was. Raises SettingsError."""
    if not is_name(name):
        raise SettingsError(f"auth.username: {name!r} is no name for an account: lower-case letters and digits")
    if not 0 < len(password) <= MAX_PASSWORD:
        raise SettingsError(f"auth.password_file: a password has at most {MAX_PASSWORD} characters")
