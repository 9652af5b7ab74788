"""What goes into the JSON API and comes out of it, as its OpenAPI document describes it.

Times are RFC 3339. A list is a page: ``next`` is where the next one begins (parameter ``after``), null on the last.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from tracker.identity.base import MAX_NAME, MAX_PASSWORD, MIN_PASSWORD, Role, TokenKind

NAME_PATTERN: Final = r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$"
Name = Annotated[
    str,
    Meta(
        max_length=MAX_NAME,
        pattern=NAME_PATTERN,
        description="A user's, organization's or team's name.",
        examples=["acme"],
    ),
]
Password = Annotated[str, Meta(min_length=MIN_PASSWORD, max_length=MAX_PASSWORD)]
Label = Annotated[
    str,
    Meta(
        max_length=100,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._/@:+-]*[A-Za-z0-9])?$",
        description="What the token is for.",
        examples=["ci"],
    ),
]
Secret = Annotated[str, Meta(max_length=200)]
#: A scope or a pattern.
Line = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[!-~]+$")]
After = Annotated[str, Meta(max_length=300, pattern=r"^[ -~]*$", description="Only what comes after this one.")]
Count = Annotated[int, Meta(ge=1, le=1000, description="How many, at most.")]
Action = Literal["pull", "push", "delete", "admin"]
Seconds = Annotated[float, Meta(gt=0, le=100 * 366 * 86400, description="Seconds from now.")]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients send: nothing that is not described."""


class Nothing(Document, frozen=True):
    """No body, or no parameters."""


class Page(Document, frozen=True):
    """Which part of a list."""

    after: After = ""
    n: Count = 100


# -------------------------------------------------------------------------------------------------------------- errors


class Error(msgspec.Struct, frozen=True):
    """One reason. ``detail`` names the ``field`` of the request that is wrong, or what was not found."""

    code: str
    message: str
    detail: Any = None


class Errors(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    errors: list[Error]


# --------------------------------------------------------------------------------------------------------------- users


class Setup(Document, frozen=True):
    """The one-time secret, and the first administrator."""

    secret: Secret
    name: Name
    password: Password


class User(msgspec.Struct, frozen=True):
    """A user. ``disabled_at``: since when he is nobody, null if he is not disabled."""

    name: str
    administrator: bool
    has_password: bool
    created_at: datetime
    disabled_at: datetime | None


class Users(msgspec.Struct, frozen=True):
    """By name."""

    users: list[User]
    next: str | None


class NewUser(Document, frozen=True):
    """Without a password nobody logs in as this user until one is set."""

    name: Name
    password: Password | None = None
    administrator: bool = False


class NewPassword(Document, frozen=True):
    """``password`` null: none is good. ``current``: the one that he has, where somebody changes his own."""

    password: Password | None
    current: Annotated[str, Meta(max_length=MAX_PASSWORD)] | None = None


class Disabled(Document, frozen=True):
    """A user who is disabled is nobody until enabled again; logins of docker end for good."""

    disabled: bool


class Administrator(Document, frozen=True):
    """Whether a user may do everything."""

    administrator: bool


class NewName(Document, frozen=True):
    """Repositories are renamed too. The old name stays taken."""

    name: Name


class Deletion(Document, frozen=True):
    """``repositories``: those of the namespace are deleted too; without it an account that has some is kept."""

    repositories: bool = False


class Membership(msgspec.Struct, frozen=True):
    """In which organization, as what."""

    organization: str
    role: Role


class Me(msgspec.Struct, frozen=True):
    """Who asks. ``token``: the name of the token that was shown, null for a password; ``scopes``: what it narrows his
    rights to, null for nothing."""

    name: str
    administrator: bool
    token: str | None
    scopes: list[str] | None
    organizations: list[Membership]


# ------------------------------------------------------------------------------------------------------- organizations


class Organization(msgspec.Struct, frozen=True):
    """``role``: that of who asks, null if he is no member."""

    name: str
    created_at: datetime
    role: Role | None


class Organizations(msgspec.Struct, frozen=True):
    """By name."""

    organizations: list[Organization]
    next: str | None


class NewOrganization(Document, frozen=True):
    """``owner``: a user; null for the one who asks."""

    name: Name
    owner: Name | None = None


class Member(msgspec.Struct, frozen=True):
    """Of an organization."""

    user: str
    role: Role
    since: datetime


class Members(msgspec.Struct, frozen=True):
    """By name."""

    members: list[Member]


class NewRole(Document, frozen=True):
    """Owners and admins may do everything with repositories; owners also rename and delete the organization and say who
    its owners are. Members may do what their teams may."""

    role: Role


class Grant(Document, frozen=True):
    """What a team may do with the repositories that the glob covers; it begins with the organization's name."""

    pattern: Annotated[Line, Meta(examples=["acme/**"])]
    actions: Annotated[list[Action], Meta(min_length=1, max_length=4)]


class Pattern(Document, frozen=True):
    """Of which grant."""

    pattern: Line


class Team(msgspec.Struct, frozen=True):
    """Users of an organization and what they may do."""

    name: str
    created_at: datetime
    members: list[str]
    grants: list[Grant]


class Teams(msgspec.Struct, frozen=True):
    """By name."""

    teams: list[Team]


class TeamName(Document, frozen=True):
    """Members and grants stay. The old name is free."""

    name: Name


class NewTeam(Document, frozen=True):
    """Without members and grants."""

    name: Name


# -------------------------------------------------------------------------------------------------------- repositories


class Search(Page, frozen=True):
    """``q``: what the names contain."""

    q: After = ""


class RepositoryName(msgspec.Struct, frozen=True):
    """Of a list."""

    name: str
    private: bool


class Repositories(msgspec.Struct, frozen=True):
    """Those that may be pulled, by name."""

    repositories: list[RepositoryName]
    next: str | None


class Repository(msgspec.Struct, frozen=True):
    """``size``: bytes of its blobs, each counted once. ``actions``: what the one who asks may do with it."""

    name: str
    private: bool
    size: int
    tags: int
    actions: list[Action]


class Visibility(Document, frozen=True):
    """What is not private can be pulled by everybody, also by those without an account where the registry lets them."""

    private: bool


class Tags(msgspec.Struct, frozen=True):
    """By name."""

    tags: list[str]
    next: str | None


# -------------------------------------------------------------------------------------------------------------- tokens


class OfKind(Document, frozen=True):
    """Only tokens of this kind."""

    kind: TokenKind | None = None


class Token(msgspec.Struct, frozen=True):
    """What is known of a secret that was given out. ``hint``: its last characters. ``scopes`` null: all that its
    account may. One that was revoked or has expired is good for nothing and stays in the list."""

    id: int
    kind: TokenKind
    name: str
    hint: str
    scopes: list[str] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class Tokens(msgspec.Struct, frozen=True):
    """Newest first."""

    tokens: list[Token]


class NewToken(Document, frozen=True):
    """``scopes``: null for all that the account may, which a robot cannot have; ``lifetime``: null for ever."""

    kind: Literal["personal", "robot"]
    name: Label
    scopes: Annotated[list[Line], Meta(max_length=50, examples=[["repository:acme/**:pull,push"]])] | None = None
    lifetime: Seconds | None = None


class MadeToken(msgspec.Struct, frozen=True):
    """``secret`` is told this once."""

    token: Token
    secret: str


# ---------------------------------------------------------------------------------------------------- nodes and keys


class JoinToken(msgspec.Struct, frozen=True):
    """Lets nodes in. ``uses_left`` null: any number."""

    id: int
    swarm: str
    pulls: list[str]
    labels: dict[str, str]
    uses_left: int | None
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None


class JoinTokens(msgspec.Struct, frozen=True):
    """By id; those that have long expired are forgotten."""

    tokens: list[JoinToken]


class NewJoinToken(Document, frozen=True):
    """``uses`` null: any number of nodes. ``pulls``: globs of private repositories that they may pull."""

    uses: Annotated[int, Meta(ge=1, le=1_000_000)] | None = 1
    lifetime: Annotated[float, Meta(gt=0, le=90 * 86400, description="Seconds from now.")] = 3600.0
    swarm: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    pulls: Annotated[list[Line], Meta(max_length=50)] = []
    labels: dict[str, str] = {}


class MadeJoinToken(msgspec.Struct, frozen=True):
    """``secret``, what a node is started with, is told this once."""

    token: JoinToken
    secret: str


class Node(msgspec.Struct, frozen=True):
    """``joined_by``: which join token, or who it was by its identity token. ``expires_at``: of its credential."""

    peer_id: str
    swarm: str
    pulls: list[str]
    labels: dict[str, str]
    joined_by: str
    enrolled_at: datetime
    renewed_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class Nodes(msgspec.Struct, frozen=True):
    """By peer id."""

    nodes: list[Node]
    next: str | None


class Revoked(Document, frozen=True):
    """Whether a node is turned away."""

    revoked: bool


class Key(msgspec.Struct, frozen=True):
    """A public signing key."""

    kid: str
    public: str


class Keys(msgspec.Struct, frozen=True):
    """The keys that nodes verify with. ``key_set``: a PASETO over them, signed with ``root_key``."""

    root_key: str
    version: int
    key_set: str
    keys: list[Key]
