"""The handler of the JSON API: finds the route, asks its rule, reads what was sent, and writes the answer.

The same routes are behind two doors: the registry's listener, where callers show credentials, and the admin socket,
where the operator may do everything.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from p2pregistry.errors import NotFound, RequestError
from p2pregistry.serve.http import Request, Response
from p2pregistry.trust.secret import kind_of
from tracker.admin import operator
from tracker.api import documents as d
from tracker.api.asked import EVERYTHING, Asked, Services, Who
from tracker.api.routes import PREFIX, ROUTES, Route
from tracker.authentication import Authentication
from tracker.catalog.trail import By
from tracker.identity.base import NAME_FORM, Accounts, Identity

#: Bytes of the longest body.
LIMIT: Final = 64 << 10
_HEADERS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="p2pregistry", charset="UTF-8"'}
_FIELD: Final = re.compile(r"at `\$\.([A-Za-z_]+)|field `([A-Za-z_]+)`|field `(.{1,100})`")

#: Says who sends a request. Raises RequestError.
Identify = Callable[[Request], Awaitable[Who]]


class Api:
    """The handler."""

    def __init__(self, services: Services, identify: Identify) -> None:
        self._services = services
        self._identify = identify

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises RegistryError."""
        try:
            who = await self._identify(request)
            route, path = _find(request)
            query = _query(request, route.query)
            # who may not do it hears of that first, not of what is wrong with what he sent
            early = Asked(self._services, who, path, d.Nothing(), query)
            await route.rule.check(early)
            body = await _body(request, route.body)
        except RequestError as err:
            if err.status == 401:
                err.headers = _CHALLENGE
            raise
        asked: Asked[Any, Any] = Asked(self._services, who, path, body, query, early.found)
        answer = await route.handle(asked)
        if route.answer is None:
            return Response(204, [("Cache-Control", "no-store")])
        return Response(route.status, list(_HEADERS), msgspec.json.encode(answer))


def by_credentials(authentication: Authentication, accounts: Accounts) -> Identify:
    """Of the registry's listener. Access tokens of docker's clients are no credentials here."""

    async def shown(request: Request) -> Identity | None:
        scheme, _, value = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            return await authentication.authenticate(request)
        if kind_of(value.strip()) not in ("pat", "robot"):
            raise _wrong()
        return await authentication.login("", value.strip(), request.client)

    async def identify(request: Request) -> Who:
        identity = await shown(request)
        rights = await accounts.rights(identity)
        if identity is None:
            return Who(rights, By("", request.client, request.id))
        if not rights.name:
            raise _wrong()  # disabled, deleted or revoked just now
        request.account = identity.actor
        return Who(rights, By(identity.actor, request.client, request.id, identity.account_id), identity)

    return identify


async def by_operator(request: Request) -> Who:
    """Of the admin socket."""
    return Who(EVERYTHING, operator(request), operator=True)


def _wrong() -> RequestError:
    return RequestError("UNAUTHORIZED", "the credentials are not valid")


def _find(request: Request) -> tuple[Route, Mapping[str, str]]:
    raw = request.target.partition("?")[0]
    # slashes within a name are %2F, so that the path is taken apart before it is decoded
    segments = tuple(_name(unquote(part)) for part in raw.removeprefix(PREFIX).split("/")[1:])
    found = [(route, path) for route in ROUTES if (path := route.match(segments)) is not None]
    if not raw.startswith(PREFIX + "/") or not found:
        raise NotFound("NAME_UNKNOWN", f"there is no such endpoint; see {PREFIX}/openapi.json")
    for route, path in found:
        if route.method == request.method:
            return route, path
    allowed = ", ".join(sorted({route.method for route, _ in found}))
    raise RequestError("UNSUPPORTED", "this cannot be done here", headers={"Allow": allowed})


def _name(text: str) -> str:
    """What could be a name; else one that nothing has, so that it is as unknown as others."""
    return text if text.isascii() and text.isprintable() and len(text) <= 300 else "?"


def _query(request: Request, kind: type[d.Document]) -> d.Document:
    given = dict(request.query)
    if len(given) != len(request.query):
        twice = next(name for name in given if len(request.params(name)) > 1)
        raise RequestError("INVALID", "a parameter is there twice", status=400, detail={"field": twice[:100]})
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as err:
        raise _invalid("parameter", err) from err


async def _body(request: Request, kind: type[d.Document]) -> d.Document:
    """Raises RequestError: 400 that names the field, 413, or 415: a form on somebody's page cannot send JSON."""
    if kind is d.Nothing:
        return d.Nothing()
    media_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError("UNSUPPORTED", "the body must be application/json", status=415)
    data = await request.body.read(LIMIT)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise _invalid("document", err) from err


def _invalid(what: str, err: Exception) -> RequestError:
    """Says which field is wrong; the words of the decoder hold names and types, never a value."""
    text = str(err)
    match = _FIELD.search(text)
    field = None if match is None else match[1] or match[2] or match[3]
    detail = None if field is None else {"field": field}
    said = f"the {what} is not as described: {text[:300]}"
    if repr(d.NAME_PATTERN) in text:
        said = f"{field}: {NAME_FORM}"
    elif "matching regex" in text:
        said = f"{field} is not in form"
    return RequestError("INVALID", said, status=400, detail=detail)
