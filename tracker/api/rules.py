"""Who may: one rule for each route, decided before anything is done.

Whoever may not know that something is there is told the same as if it were not (404). Who may know it and may not do
what he asks for is told so (403). Without credentials it is always 401 where they are needed at all, whatever is there.
A token with scopes does with repositories what they say, and manages nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from p2pregistry.errors import NotFound, RequestError
from p2pregistry.oci.reference import check_name
from tracker.api.asked import Asked, Who
from tracker.catalog.base import no_repository
from tracker.identity.base import unknown_account


class Refusal(NamedTuple):
    """An answer other than what was asked for."""

    status: int
    code: str
    when: str


UNAUTHORIZED: Final = Refusal(401, "UNAUTHORIZED", "Credentials are needed, or are wrong.")
WRONG: Final = Refusal(401, "UNAUTHORIZED", "The credentials are wrong.")
DENIED: Final = Refusal(403, "DENIED", "These credentials may not do this.")
NO_ACCOUNT: Final = Refusal(404, "ACCOUNT_UNKNOWN", "There is none, or none that these credentials may see.")
NO_REPOSITORY: Final = Refusal(404, "NAME_UNKNOWN", "There is none, or none that these credentials may see.")

Check = Callable[[Asked[Any, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rule:
    """``text`` says who may; ``check`` raises one of the ``refusals``."""

    text: str
    check: Check
    refusals: tuple[Refusal, ...]


def _wanted(who: Who) -> None:
    if not who.known:
        raise RequestError("UNAUTHORIZED", "credentials are needed")


def denied(message: str = "these credentials may not do this") -> RequestError:
    """The refusal of what is known to be there."""
    return RequestError("DENIED", message)


async def _anybody(_asked: Asked[Any, Any]) -> None:
    pass


async def _account(asked: Asked[Any, Any]) -> None:
    _wanted(asked.who)


async def _administrator(asked: Asked[Any, Any]) -> None:
    _wanted(asked.who)
    if not asked.who.rights.administrator:
        raise denied("only administrators may do this, and not with a token that has scopes")


def _of_account(parameter: str, may: Callable[[Who, str], bool]) -> Check:
    """``parameter`` of the path names a user or an organisation."""

    async def check(asked: Asked[Any, Any]) -> None:
        who, name = asked.who, asked.path[parameter]
        _wanted(who)
        if not may(who, name):
            raise denied() if sees(who, name) else unknown_account(name)

    return check


def sees(who: Who, name: str) -> bool:
    """Whether it may know that there is such a user or organisation."""
    return who.rights.administrator or name == who.rights.name or name in who.rights.roles


def _is_member(who: Who, name: str) -> bool:
    return who.rights.scopes is None and sees(who, name)


def _manages(who: Who, name: str) -> bool:
    return who.rights.manages(name)


def _owns(who: Who, name: str) -> bool:
    return who.rights.owns(name)


def _of_repository(action: str) -> Check:
    async def check(asked: Asked[Any, Any]) -> None:
        name = asked.path["repository"]
        private = await asked.services.catalog.visibility(_repository(name))
        may = asked.who.rights.actions(name, private=private is not False)
        if private is None or "pull" not in may:
            raise no_repository(name)
        if action not in may:
            _wanted(asked.who)
            raise denied()
        asked.found["private"] = private

    return check


def _repository(name: str) -> str:
    try:
        return check_name(name)
    except RequestError as err:
        raise no_repository(name[:255]) from err


def unknown(what: str, message: str) -> NotFound:
    """``what`` as in TOKEN_UNKNOWN."""
    return NotFound(f"{what}_UNKNOWN", message)


_THREE: Final = (UNAUTHORIZED, DENIED, NO_ACCOUNT)

ANYBODY: Final = Rule("Anybody.", _anybody, (WRONG,))
ACCOUNT: Final = Rule("Whoever has an account.", _account, (UNAUTHORIZED,))
ADMINISTRATOR: Final = Rule("Administrators.", _administrator, (UNAUTHORIZED, DENIED))
SELF: Final = Rule("The user and administrators.", _of_account("user", _manages), _THREE)
MEMBER: Final = Rule("Members and administrators.", _of_account("organization", _is_member), _THREE)
MANAGER: Final = Rule(
    "Owners and admins of the organization, and administrators.", _of_account("organization", _manages), _THREE
)
OWNER: Final = Rule("Owners of the organization, and administrators.", _of_account("organization", _owns), _THREE)
KEEPER: Final = Rule(
    "The user, or owners and admins of the organization; and administrators.",
    _of_account("account", _manages),
    _THREE,
)
PULL: Final = Rule("Who may pull it.", _of_repository("pull"), (WRONG, NO_REPOSITORY))
DELETE: Final = Rule("Who may delete it.", _of_repository("delete"), (*_THREE[:2], NO_REPOSITORY))
ADMIN: Final = Rule("Who has the right admin on it.", _of_repository("admin"), (*_THREE[:2], NO_REPOSITORY))
