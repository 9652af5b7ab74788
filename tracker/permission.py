"""What a request needs, what may be done, and what an access token is given: decided from values alone.

What may be done in a repository follows from the rights of who asks and from whether the repository is private; one
that does not exist counts as private. So whoever may not see a repository is answered as if there were none, and the
other way round: there is no other place that decides.

An access token is all that its bearer may: it was given what its owner may do, and is not looked up again.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pregistry.errors import RequestError
from p2pregistry.oci.reference import Route, check_name
from p2pregistry.trust.access import AccessToken, Scope
from tracker.catalog.visible import Visible
from tracker.identity.base import Identity, Rights

READS: Final = ("GET", "HEAD")
CATALOG: Final = Scope("registry", "catalog", frozenset({"*"}))
#: What a token can allow in a repository; "admin" is no scope of clients.
_GRANTABLE: Final = frozenset({"pull", "push", "delete"})


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request has shown of who sends it: a name and a password, an access token, or nothing. ``rights`` are
    those of the first, or of nobody."""

    rights: Rights
    identity: Identity | None = None
    token: AccessToken | None = None

    @property
    def actor(self) -> str:
        """What the audit log calls it; empty for nobody in particular."""
        if self.token is not None:
            return self.token.subject
        return "" if self.identity is None else self.identity.actor

    @property
    def account_id(self) -> int | None:
        """The account's."""
        if self.token is not None:
            return self.token.account
        return None if self.identity is None else self.identity.account_id

    def sees(self) -> Visible | None:
        """The repositories that may be pulled; None: all of them."""
        if self.token is None:
            return self.rights.visible()
        names = [scope.name for scope in self.token.access if scope.type == "repository" and "pull" in scope.actions]
        return Visible.of(names, public=self.rights.anonymous_pull)

    @property
    def anything(self) -> bool:
        """Whether it has shown anything that is right."""
        return self.token is not None or self.identity is not None


def needed(route: Route, method: str) -> Scope | None:
    """What a request must be allowed; None: nothing."""
    if route.kind == "base":
        return None
    if route.kind == "catalog":
        return CATALOG
    if route.kind in ("uploads", "upload") or (route.kind == "manifest" and method == "PUT"):
        action = "push"
    elif method == "DELETE":
        action = "delete"
    else:
        action = "pull"
    return Scope("repository", route.repository, frozenset({action}))


def may(shown: Shown, need: Scope, *, private: bool) -> bool:
    """Whether it may. ``private`` counts for repositories, and is true of unknown ones."""
    if shown.token is not None:
        return all(shown.token.allows(need.type, need.name, action) for action in need.actions)
    if need.type == "repository":
        return need.actions <= shown.rights.actions(need.name, private=private)
    return need == CATALOG and lists(shown.rights)


def lists(rights: Rights) -> bool:
    """Whether it may ask for the catalogue, which tells each only what he may pull."""
    return bool(rights.name) or rights.anonymous_pull


def depends(shown: Shown, need: Scope) -> bool:
    """Whether it matters if the repository is private."""
    return may(shown, need, private=True) != may(shown, need, private=False)


def scope_text(*needs: Scope) -> str:
    """Needs as a challenge names them: who pushes asks for pull too, as all clients do, or it could not look."""
    wanted = []
    for need in needs:
        actions = need.actions | {"pull"} if "push" in need.actions else need.actions
        wanted.append(str(Scope(need.type, need.name, actions)))
    return " ".join(dict.fromkeys(wanted))


def unsure(asked: Iterable[Scope], rights: Rights) -> list[str]:
    """Names of repositories of which one must know whether they are private, to say what is granted."""
    needs = [need for need in map(_pull_of, asked) if need is not None]
    return [need.name for need in needs if depends(Shown(rights), need)]


def granted(
    asked: Sequence[Scope], rights: Rights, public: Container[str], *, pull_only: bool = False
) -> tuple[Scope, ...]:
    """What of the scopes that are asked for is given; what cannot be given is left out, which is no error.

    ``public``: those repositories of ``unsure`` that are public. ``pull_only``: for the clients of a node. ``*`` is all
    that one may do in a repository.
    """
    found = []
    for scope in asked:
        need = _pull_of(scope)
        if need is not None:
            allowed = rights.actions(need.name, private=need.name not in public)
            wanted = _GRANTABLE if "*" in scope.actions else scope.actions & _GRANTABLE
            actions = wanted & allowed & (need.actions if pull_only else _GRANTABLE)
            if actions:
                found.append(Scope("repository", need.name, actions))
        elif (scope.type, scope.name) == ("registry", "catalog") and "*" in scope.actions:
            found += [CATALOG] if lists(rights) and not pull_only else []
    return tuple(found)


def _pull_of(scope: Scope) -> Scope | None:
    """Pull of the repository that the scope is about; None for one that is about something else."""
    if scope.type != "repository":
        return None
    try:
        return Scope("repository", check_name(scope.name), frozenset({"pull"}))
    except RequestError:
        return None  # there can be no such repository, so nothing is granted
