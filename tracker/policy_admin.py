"""Quotas and immutable tags on the admin socket."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from p2pregistry.errors import NotFound
from p2pregistry.serve.http import Request
from tracker.admin import Routes, document, invalid, number, operator, wanted
from tracker.catalog.policies import Policies

_MOST = 10_000


class NewQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``quota``: bytes, None for no bound."""

    namespace: str
    quota: int | None


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A glob over ``repository:tag``."""

    pattern: str


def routes(policies: Policies) -> Routes:
    """``/quotas`` and ``/immutable``."""

    async def quotas(request: Request) -> object:
        found = await policies.quotas(after=request.param("after") or "", limit=number(request, "n", 1000, _MOST))
        return {"quotas": [asdict(one) for one in found]}

    async def set_quota(request: Request) -> object:
        new = await document(request, NewQuota)
        if new.quota is not None and not 0 <= new.quota < 2**63:
            raise invalid("a quota is a number of bytes")
        return asdict(await policies.set_quota(new.namespace, new.quota, operator(request)))

    async def patterns(_request: Request) -> object:
        return {"immutable": [asdict(one) for one in await policies.immutable_tags()]}

    async def add(request: Request) -> object:
        new = await document(request, Pattern)
        return {"added": await policies.add_immutable(new.pattern, operator(request))}

    async def remove(request: Request) -> object:
        if not await policies.remove_immutable(wanted(request, "pattern"), operator(request)):
            raise NotFound("NAME_UNKNOWN", "there is no such pattern")
        return {}

    return {
        ("GET", "/quotas"): quotas,
        ("PUT", "/quotas"): set_quota,
        ("GET", "/immutable"): patterns,
        ("POST", "/immutable"): add,
        ("DELETE", "/immutable"): remove,
    }
