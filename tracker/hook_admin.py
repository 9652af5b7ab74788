"""Webhooks and the audit log on the admin socket."""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec

from p2pregistry.errors import NotFound, RequestError
from p2pregistry.globs import check_glob
from p2pregistry.serve.http import Request
from tracker.admin import Routes, document, invalid, number, operator, wanted
from tracker.catalog.hooks import AuditQuery, Hooks

#: Bytes of a webhook's secret, at least: what HMAC-SHA256 is good for.
_LEAST_SECRET: Final = 16
_MOST: Final = 10_000


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``secret``: base64."""

    url: str
    secret: str
    repositories: list[str] = []
    types: list[str] = []


def routes(hooks: Hooks) -> Routes:
    """``/webhooks``, its deliveries, and ``/audit``."""

    async def add(request: Request) -> object:
        new = await document(request, NewWebhook)
        _check_url(new.url)
        for pattern in (*new.repositories, *new.types):
            _check_glob(pattern)
        return asdict(await hooks.add(new.url, new.repositories, new.types, _secret(new.secret), operator(request)))

    async def listed(_request: Request) -> object:
        return {"webhooks": [asdict(one) for one in await hooks.all()]}

    async def remove(request: Request) -> object:
        return _found(await hooks.remove(_id(request), operator(request)))

    async def enable(request: Request) -> object:
        return _found(await hooks.enable(_id(request), wanted(request, "on") == "true", operator(request)))

    async def deliveries(request: Request) -> object:
        before = number(request, "before", 0, 2**63 - 1) or None
        found = await hooks.deliveries(_id(request), before=before, limit=number(request, "n", 100, _MOST))
        return {"deliveries": [asdict(one) for one in found]}

    async def replay(request: Request) -> object:
        since = _time(request, "since")
        failed = request.param("failed") == "true"
        return {"replayed": await hooks.replay(_id(request), since, failed, operator(request))}

    async def audit(request: Request) -> object:
        repository = request.param("repository")
        if repository is not None:
            _check_glob(repository)
        query = AuditQuery(
            request.param("actor"),
            repository,
            request.param("action"),
            _time(request, "since"),
            _time(request, "until"),
            number(request, "before", 0, 2**63 - 1) or None,
            number(request, "n", 100, _MOST),
            number(request, "account", 0, 2**63 - 1) or None,
        )
        return {"audit": [asdict(line) for line in await hooks.audit(query)]}

    return {
        ("POST", "/webhooks"): add,
        ("GET", "/webhooks"): listed,
        ("DELETE", "/webhooks"): remove,
        ("POST", "/webhooks/enable"): enable,
        ("GET", "/webhooks/deliveries"): deliveries,
        ("POST", "/webhooks/replay"): replay,
        ("GET", "/audit"): audit,
    }


def _found(there: bool) -> object:
    if not there:
        raise NotFound("NAME_UNKNOWN", "there is no such webhook")
    return {}


def _id(request: Request) -> int:
    wanted(request, "id")
    return number(request, "id", 0, 2**63 - 1)


def _time(request: Request, name: str) -> datetime | None:
    text = request.param(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as err:
        raise invalid(f"{name} is a time such as 2026-01-31T12:00:00+00:00") from err
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _secret(text: str) -> bytes:
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise invalid("the secret is not base64") from err
    if len(secret) < _LEAST_SECRET:
        raise invalid(f"a secret has {_LEAST_SECRET} bytes or more")
    return secret


def _check_glob(pattern: str) -> None:
    try:
        check_glob(pattern)
    except ValueError as err:
        raise invalid(f"{pattern}: {err}") from err


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as err:
        raise invalid("this is no URL") from err
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise invalid("a webhook's URL begins with http:// or https:// and has a host")
    if parts.username is not None or parts.password is not None:
        raise RequestError("INVALID", "a URL shows what is in it: sign with the secret instead", status=400)
