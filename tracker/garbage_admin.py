"""Collection, retention and scrubbing on the admin socket."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from p2pregistry.errors import NotFound
from p2pregistry.globs import check_glob
from p2pregistry.serve.http import Request
from tracker.admin import Routes, document, invalid, number, operator, wanted
from tracker.catalog.garbage import Garbage, Stored
from tracker.retention import Rule
from tracker.sweeper import Sweeper


class NewRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times in seconds."""

    repositories: str
    tags: str
    keep_last: int | None = None
    pushed_within: float | None = None
    pulled_within: float | None = None


def routes(sweeper: Sweeper, garbage: Garbage) -> Routes:
    """``/gc``, ``/retention``, ``/scrub`` and ``/runs``."""

    async def collect(request: Request) -> object:
        dry_run, most = request.param("dry_run") == "true", request.param("orphans") == "true"
        return {"figures": await sweeper.collect(operator(request), dry_run=dry_run, most=most)}

    async def runs(request: Request) -> object:
        return {"runs": [asdict(run) for run in await garbage.runs(limit=number(request, "n", 20, 1000))]}

    async def retain(request: Request) -> object:
        return {"tags": await sweeper.retain(operator(request), dry_run=request.param("dry_run") == "true")}

    async def rules(_request: Request) -> object:
        return {"rules": [asdict(rule) for rule in await garbage.rules()]}

    async def add_rule(request: Request) -> object:
        new = await document(request, NewRule)
        if (new.keep_last or 0) < 0 or (new.pushed_within or 0) < 0 or (new.pulled_within or 0) < 0:
            raise invalid("numbers and times are not negative")
        try:
            check_glob(new.repositories)
            check_glob(new.tags)
            rule = Rule(0, new.repositories, new.tags, new.keep_last, new.pushed_within, new.pulled_within)
        except ValueError as err:
            raise invalid(str(err)) from err
        return asdict(await garbage.add_rule(rule, operator(request)))

    async def remove_rule(request: Request) -> object:
        wanted(request, "id")
        if not await garbage.remove_rule(number(request, "id", 0, 2**63 - 1), operator(request)):
            raise NotFound("NAME_UNKNOWN", "there is no such rule")
        return {}

    async def scrub(request: Request) -> object:
        figures = await sweeper.scrub(operator(request), age=0.0 if request.param("all") == "true" else None)
        return {"figures": figures, "damaged": [_shown(one) for one in await garbage.damaged()]}

    async def damaged(_request: Request) -> object:
        return {"damaged": [_shown(one) for one in await garbage.damaged()]}

    return {
        ("POST", "/gc"): collect,
        ("GET", "/runs"): runs,
        ("POST", "/retention"): retain,
        ("GET", "/retention/rules"): rules,
        ("POST", "/retention/rules"): add_rule,
        ("DELETE", "/retention/rules"): remove_rule,
        ("POST", "/scrub"): scrub,
        ("GET", "/scrub"): damaged,
    }


def _shown(one: Stored) -> dict[str, object]:
    return {"digest": str(one.digest), "size": one.size, "object": one.object}
