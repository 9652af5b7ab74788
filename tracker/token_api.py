"""The token endpoint: access tokens for the registry and for the clients of a node (distribution, "Token
Authentication" and "OAuth 2").

GET with Basic or nothing, and POST of a form with a password or a refresh token. What clients send, and need:

* docker GETs, with ``account`` and each ``scope`` in a parameter of its own; after ``docker login`` it has a refresh
  token in place of the password and POSTs only. It never replaces the one it has, so refresh tokens do not rotate.
* containerd POSTs where it has credentials, and GETs on 400, 401, 404 and 405; podman, skopeo and buildah GET, and POST
  a refresh token with ``scope`` repeated.
* Each takes either ``token`` or ``access_token``; a form may say which charset it is in; who has no credentials sends
  none, or ``Basic Og==``.

Less than what was asked for is no error: the token then allows less, or nothing. A refresh token is given to whoever
asks for one and came by password: one given for a personal token would outlive it.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from p2pregistry.errors import BadContent, RegistryError, RequestError
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.http import Request, Response
from p2pregistry.trust.access import MAX_TOKEN, AccessToken, Scope, parse_scopes, sign_access
from p2pregistry.trust.keys import Signer
from p2pregistry.trust.proof import public_key_of
from tracker.authentication import Authentication, WrongCredentials
from tracker.catalog.base import Catalog
from tracker.catalog.trail import By
from tracker.identity.base import Accounts, Identity, Rights
from tracker.permission import CATALOG, granted, unsure

#: Bytes of the longest form: a password, and 50 scopes.
_LIMIT: Final = 64 << 10
_FIELDS: Final = 100
_FORM: Final = "application/x-www-form-urlencoded"
_NODE: Final = "node:"
#: Seconds for which a refresh token is good: after that one logs in again.
REFRESH_LASTS: Final = 180 * 86400.0
#: Nobody may keep what is answered here (RFC 6749, 5.1).
_HEADERS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Pragma", "no-cache"))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a token. ``offline``: whether a refresh token is wanted, ``client``: the program that asks."""

    service: str
    scopes: tuple[Scope, ...]
    offline: bool = False
    client: str = ""


Fields = Sequence[tuple[str, str]]


def parse_form(content_type: str | None, body: bytes) -> Fields:
    """The fields of a form. Raises RequestError (UNSUPPORTED, 400)."""
    kind, _, rest = (content_type or "").partition(";")
    if kind.strip().lower() != _FORM:
        raise _unsupported(f"the body is a form ({_FORM})")
    charset = rest.strip().lower().removeprefix("charset=").strip('"')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise _unsupported("the form is in UTF-8")
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError as err:
        raise _unsupported("the form cannot be read") from err


def parse_asked(fields: Fields, ours: str) -> Asked:
    """What a query or a form asks for. Without ``service`` ours is meant. Raises RequestError (UNSUPPORTED, 400)."""
    first = _first(fields)
    service = first.get("service") or ours
    if service != ours:
        try:
            public_key_of(service.removeprefix(_NODE) if service.startswith(_NODE) else "")
        except BadContent as err:
            raise _unsupported("no tokens are given out here for this service") from err
    scopes = parse_scopes(value for key, value in fields if key == "scope")
    offline = first.get("offline_token") in ("true", "1") or first.get("access_type") == "offline"
    client = "".join(c for c in first.get("client_id", "") if c.isascii() and (c.isalnum() or c in "._-/"))
    return Asked(service, scopes, offline, client.strip("._-/")[:60])


def _first(fields: Fields) -> Mapping[str, str]:
    """The first value of each."""
    return dict(reversed(fields))


class TokenApi:
    """The handler of ``/token``. ``issuer``: the root key's id, ``lifetime``: seconds, ``clock``: unix seconds."""

    def __init__(
        self,
        authentication: Authentication,
        accounts: Accounts,
        catalog: Catalog,
        signer: Callable[[], Signer],
        *,
        issuer: str,
        lifetime: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authentication, self._accounts, self._catalog = authentication, accounts, catalog
        self._signer, self._issuer, self._lifetime, self._clock = signer, issuer, lifetime, clock

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            if request.method not in ("GET", "POST"):
                raise RequestError("UNSUPPORTED", "tokens are asked for by GET or POST", headers={"Allow": "GET, POST"})
            answer = await (self._get(request) if request.method == "GET" else self._post(request))
        except WrongCredentials as err:
            err.headers = {"WWW-Authenticate": f'Basic realm="{self._authentication.service}", charset="UTF-8"'}
            return error_response(err)
        except RegistryError as err:
            return error_response(err)
        return Response(200, list(_HEADERS), msgspec.json.encode(answer))

    async def _get(self, request: Request) -> dict[str, object]:
        identity = await self._authentication.authenticate(request)
        asked = parse_asked(request.query, self._authentication.service)
        answer, _ = await self._token(identity, asked)
        return answer | await self._refresh(identity, asked, request)

    async def _post(self, request: Request) -> dict[str, object]:
        fields = parse_form(request.header("content-type"), await request.body.read(_LIMIT))
        asked, first = parse_asked(fields, self._authentication.service), _first(fields)
        match first.get("grant_type"):
            case "password":
                pair = first.get("username", ""), first.get("password", "")
                identity = await self._authentication.login(*pair, request.client)
                more = await self._refresh(identity, asked, request)
            case "refresh_token":
                identity, more = await self._refreshed(first.get("refresh_token", "")), {}
            case _:
                raise _unsupported("grant_type is password or refresh_token")
        request.account = identity.actor
        answer, access = await self._token(identity, asked)
        return answer | more | {"scope": " ".join(map(str, access))}

    async def _refreshed(self, secret: str) -> Identity:
        identity = await self._accounts.verify_refresh(secret)
        if identity is None:
            raise WrongCredentials("the refresh token is not valid")
        return identity

    async def _refresh(self, identity: Identity | None, asked: Asked, request: Request) -> dict[str, object]:
        if identity is None or not asked.offline or identity.token_id is not None:
            return {}
        by = By(identity.actor, request.client, request.id, identity.account_id)
        name = asked.client or "a client"
        return {"refresh_token": await self._accounts.add_refresh(identity, name, by, lifetime=REFRESH_LASTS)}

    async def _token(self, identity: Identity | None, asked: Asked) -> tuple[dict[str, object], tuple[Scope, ...]]:
        """The answer without what only some get, and what is granted."""
        rights = await self._accounts.rights(identity)
        access = await self._granted(rights, asked)
        now = int(self._clock())
        within = identity.scopes if identity is not None and CATALOG in access else None
        token = AccessToken(
            issuer=self._issuer,
            audience=asked.service,
            subject="" if identity is None else identity.actor,
            id=secrets.token_urlsafe(12),
            issued=now,
            expires=now + self._lifetime,
            access=access,
            account=None if identity is None else identity.account_id,
            within=within,
        )
        text = sign_access(self._signer(), token)
        if len(text) > MAX_TOKEN:
            raise _unsupported("a token for so many scopes would be too long; ask for fewer at a time")
        issued = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"token": text, "access_token": text, "expires_in": self._lifetime, "issued_at": issued}, access

    async def _granted(self, rights: Rights, asked: Asked) -> tuple[Scope, ...]:
        public = [name for name in unsure(asked.scopes, rights) if await self._catalog.visibility(name) is False]
        return granted(asked.scopes, rights, public, pull_only=asked.service.startswith(_NODE))


def _unsupported(message: str) -> RequestError:
    return RequestError("UNSUPPORTED", message, status=400)
