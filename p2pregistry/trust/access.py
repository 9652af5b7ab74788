"""Scopes and access tokens of the Docker token flow.

A scope is ``type:name:action,action`` (distribution, "Token Scope Documentation"); the type may carry a class in
parentheses, which says nothing here, and the name may hold the ``:`` of a port. An access token is a PASETO v4.public
token whose ``access`` lists what it allows; its audience is the service it was asked for: a registry's name, or
``node:<peer id>`` for the clients of one node.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pregistry.errors import BadContent, RequestError
from p2pregistry.trust.keys import KeySet, Signer

ACCESS_PURPOSE: Final = b"p2pregistry/v1/access"
#: Most scopes in one request, and the longest one.
MAX_SCOPES: Final = 50
MAX_SCOPE: Final = 400
#: The longest access token that is looked at: headers of 8 KiB must hold it.
MAX_TOKEN: Final = 8000
ACTIONS: Final = frozenset({"pull", "push", "delete", "*"})

_TYPE: Final = re.compile(r"([a-z0-9_-]{1,40})(?:\([a-z0-9_-]{0,40}\))?")
_ACTION: Final = re.compile(r"[a-z*]{0,20}")


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked for, or allowed: ``type`` is "repository" or "registry"."""

    type: str
    name: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """All scopes of a request, each text holding any number of them separated by spaces; the same resource named twice
    is one scope with the actions of both, in the order in which they first came. Empty texts are nothing.

    Raises RequestError (UNSUPPORTED, 400) for what is no scope, naming it.
    """
    found: dict[tuple[str, str], frozenset[str]] = {}
    for text in (part for given in texts for part in given.split()):
        scope = _scope(text)
        key = (scope.type, scope.name)
        found[key] = found.get(key, frozenset()) | scope.actions
        if len(found) > MAX_SCOPES:
            raise RequestError("UNSUPPORTED", f"at most {MAX_SCOPES} scopes", status=400)
    return tuple(Scope(kind, name, actions) for (kind, name), actions in found.items())


def _scope(text: str) -> Scope:
    head, first, rest = text.partition(":")
    name, last, actions = rest.rpartition(":")
    match = _TYPE.fullmatch(head)
    listed = actions.split(",")
    good = first and last and name and match and len(text) <= MAX_SCOPE and name.isprintable()
    if not good or match is None or not all(_ACTION.fullmatch(action) for action in listed):
        raise RequestError("UNSUPPORTED", "this is no scope", status=400, detail={"scope": text[:MAX_SCOPE]})
    return Scope(match[1], name, frozenset(action for action in listed if action))


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a token says; times in unix seconds. ``subject``: who it was given to, as the audit log calls him, "" for
    nobody in particular; ``account``: the number of his account. ``within``: for the registry's catalogue, the scopes
    of the personal or robot token it was asked for with; None: all that the account may."""

    issuer: str
    audience: str
    subject: str
    id: str
    issued: int
    expires: int
    access: tuple[Scope, ...] = ()
    account: int | None = None
    within: tuple[Scope, ...] | None = None

    def allows(self, kind: str, name: str, action: str) -> bool:
        """Whether this action is among those it lists. ``*`` is an action of its own, and does not stand for others."""
        return any(s.type == kind and s.name == name and action in s.actions for s in self.access)


class _Access(msgspec.Struct):
    type: str
    name: str
    actions: list[str]


class _Token(msgspec.Struct, omit_defaults=True):
    iss: str
    aud: str
    sub: str
    jti: str
    iat: str
    nbf: str
    exp: str
    access: list[_Access]
    account: int | None = None
    within: list[_Access] | None = None


def sign_access(signer: Signer, token: AccessToken) -> str:
    """A PASETO v4.public token; its times are written as PASETO wants them (ISO 8601)."""
    issued, expires = _iso(token.issued), _iso(token.expires)
    within = None if token.within is None else _written(token.within)
    raw = _Token(token.issuer, token.audience, token.subject, token.id, issued, issued, expires, _written(token.access))
    raw.account, raw.within = token.account, within
    return signer.sign(msgspec.json.encode(raw), ACCESS_PURPOSE)


def verify_access(
    keys: KeySet, text: str, *, audience: str | Sequence[str], now: float, skew: float = 5.0
) -> AccessToken:
    """Read an access token for one of these audiences at ``now`` (unix seconds; clocks may differ by ``skew``).

    Raises BadContent unless a key of the set signed it for this purpose, it is in form, for us, and has not expired.
    """
    if len(text) > MAX_TOKEN:
        raise BadContent("an access token is too long")
    payload = keys.payload(text, ACCESS_PURPOSE)
    try:
        raw = msgspec.json.decode(payload, type=_Token)
        within = None if raw.within is None else _read(raw.within)
        issued, begins, expires = _unix(raw.iat), _unix(raw.nbf), _unix(raw.exp)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as err:
        raise BadContent("an access token is signed but not in form") from err
    if raw.aud not in ((audience,) if isinstance(audience, str) else audience):
        raise BadContent("an access token is for another service")
    if now + skew < begins or now - skew >= expires:
        raise BadContent("an access token has expired or is not valid yet")
    return AccessToken(raw.iss, raw.aud, raw.sub, raw.jti, issued, expires, _read(raw.access), raw.account, within)


def _written(scopes: Iterable[Scope]) -> list[_Access]:
    return [_Access(scope.type, scope.name, sorted(scope.actions)) for scope in scopes]


def _read(access: Iterable[_Access]) -> tuple[Scope, ...]:
    return tuple(Scope(item.type, item.name, frozenset(item.actions)) for item in access)


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _unix(text: str) -> int:
    found = datetime.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time without a zone")
    return int(found.timestamp())
