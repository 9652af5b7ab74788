"""What follows from who somebody is: plain decisions, without a database.

The actions on a repository are pull, push, delete and admin. Push implies pull, admin implies all. A token with scopes
has of its account's actions those that a scope lists; pulling what is public stays with it only where nobody needs to
be anybody for that, or where a scope says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from p2pregistry.errors import RequestError
from p2pregistry.globs import check_glob, matches
from p2pregistry.trust.access import MAX_SCOPES, Scope, parse_scopes
from tracker.catalog.visible import EVERYTHING_PUBLIC, Area, Visible

Role = Literal["owner", "admin", "member"]

#: All that may be done with a repository.
ACTIONS: Final = frozenset({"pull", "push", "delete", "admin"})
_NOTHING: Final[frozenset[str]] = frozenset()
_PULL: Final = frozenset({"pull"})
_NO_ROLES: Final[Mapping[str, Role]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, once shown. ``scopes`` None: all that the account may; else ``token_id`` is the token's that
    narrows it, and ``administrator`` is False whatever the account is, so that no such token manages anything.

    ``token``: the name of the token that was shown, "" for a password."""

    account_id: int
    name: str
    administrator: bool
    token_id: int | None = None
    scopes: tuple[Scope, ...] | None = None
    token: str = ""

    @property
    def actor(self) -> str:
        """What the audit log calls it: ``acme``, or ``acme+ci`` for its token named ci."""
        return f"{self.name}+{self.token}" if self.token else self.name


@dataclass(frozen=True, slots=True)
class Grant:
    """What a team may do with the repositories that the glob covers."""

    pattern: str
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rights:
    """All that an identity may do.

    ``name``: the account's, "" for nobody. ``everything``: the account is an administrator's. ``roles``: in which
    organisations. ``grants``: through teams. ``scopes``: None, or what the token narrows all this to.
    ``anonymous_pull``: public repositories may be pulled by anybody, whoever asks.
    """

    name: str = ""
    everything: bool = False
    roles: Mapping[str, Role] = field(default_factory=lambda: _NO_ROLES)
    grants: tuple[Grant, ...] = ()
    scopes: tuple[Scope, ...] | None = None
    anonymous_pull: bool = True

    def actions(self, repository: str, *, private: bool) -> frozenset[str]:
        """A subset of ACTIONS. ``private`` is True for a repository that does not exist."""
        found = self._of_account(repository, private)
        if self.scopes is not None and found:
            found &= implied(
                action
                for scope in self.scopes
                if scope.type == "repository" and matches(scope.name, repository)
                for action in scope.actions
            )
        return found if private or not self.anonymous_pull else found | _PULL

    def _of_account(self, repository: str, private: bool) -> frozenset[str]:
        if not self.name:
            return _NOTHING
        if self.everything or self._has(repository.partition("/")[0]):
            return ACTIONS
        found = implied(a for grant in self.grants if matches(grant.pattern, repository) for a in grant.actions)
        return found if private else found | _PULL

    def _has(self, namespace: str) -> bool:
        return namespace == self.name or self.roles.get(namespace) in ("owner", "admin")

    @property
    def administrator(self) -> bool:
        """Whether it manages accounts, keys and nodes: an administrator, and not through a token with scopes."""
        return bool(self.name) and self.everything and self.scopes is None

    def manages(self, namespace: str) -> bool:
        """Whether it changes members, teams, tokens and settings of this user or organisation."""
        return self.scopes is None and bool(self.name) and (self.everything or self._has(namespace))

    def owns(self, namespace: str) -> bool:
        """Whether it may also rename or delete it and say who its owners are."""
        if self.scopes is not None or not self.name:
            return False
        return self.everything or namespace == self.name or self.roles.get(namespace) == "owner"

    def visible(self) -> Visible | None:
        """The repositories that may be pulled, as a filter for lists; None: all of them."""
        if self.administrator:
            return None
        areas = self._areas()
        if self.scopes is not None:
            within = [s.name for s in self.scopes if s.type == "repository" and "pull" in implied(s.actions)]
            areas = [Area((*area.globs, glob), area.public) for area in areas for glob in within]
        return Visible((EVERYTHING_PUBLIC, *areas) if self.anonymous_pull else tuple(areas))

    def _areas(self) -> list[Area]:
        """Of the account, before scopes; with ``anonymous_pull`` without what is public."""
        if not self.name:
            return []
        if self.everything:
            return [Area(("**",))]
        names = [self.name, *(name for name, role in self.roles.items() if role in ("owner", "admin"))]
        found = [Area((glob,)) for name in names for glob in (name, f"{name}/**")]
        found += [Area((grant.pattern,)) for grant in self.grants if "pull" in implied(grant.actions)]
        return found if self.anonymous_pull else [EVERYTHING_PUBLIC, *found]


#: Of somebody who did not say who he is, where public repositories may be pulled so.
NOBODY: Final = Rights()


def implied(actions: Iterable[str]) -> frozenset[str]:
    """With what these actions imply; unknown ones, ``*`` among them, are nothing."""
    found = ACTIONS.intersection(actions)
    if "admin" in found:
        return ACTIONS
    return found | _PULL if "push" in found else found


def check_actions(actions: Iterable[str]) -> frozenset[str]:
    """At least one of ACTIONS and nothing else; without what they imply. Raises RequestError (INVALID)."""
    found = frozenset(actions)
    if not found or found - ACTIONS:
        raise RequestError("INVALID", "the actions are pull, push, delete and admin", status=400)
    return found


def check_scopes(scopes: Iterable[Scope | str]) -> tuple[Scope, ...]:
    """Scopes that a token may have: ``repository:<glob>:<actions>``, each glob once. Raises RequestError (INVALID)."""
    try:
        found = parse_scopes(str(scope) for scope in scopes)
    except RequestError as err:
        raise RequestError("INVALID", f"{err.message}: repository:acme/**:pull,push is one", status=400) from err
    for scope in found:
        if scope.type != "repository":
            raise RequestError("INVALID", "the scopes of a token are repository:<glob>:<actions>", status=400)
        check_actions(scope.actions)
        check_pattern(scope.name)
    if not 0 < len(found) <= MAX_SCOPES:
        raise RequestError("INVALID", f"a token with scopes has 1 to {MAX_SCOPES}", status=400)
    return found


def check_pattern(pattern: str, organization: str | None = None) -> None:
    """Raises RequestError (INVALID) for what is no glob over repositories, of this organisation if one is given."""
    try:
        check_glob(pattern)
    except ValueError as err:
        raise RequestError("INVALID", str(err), status=400) from err
    if ":" in pattern:
        raise RequestError("INVALID", "a pattern over repositories has no ':'", status=400)
    if organization is not None and not pattern.startswith(f"{organization}/") and pattern != organization:
        raise RequestError("INVALID", f"a pattern of this organization begins with {organization}/", status=400)
