"""The JSON API is what its OpenAPI document says: each answer is as described, what is not described is refused, and
each refusal that is described happens."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import LocalError
from p2pregistry.testing.handlers import Answer
from p2pregistry.testing.json_api import PASSWORD, World, basic, bearer
from tracker.api import documents as d
from tracker.api import ipfs_documents as i
from tracker.api import openapi
from tracker.api.asked import Asked
from tracker.api.routes import ALWAYS, PREFIX, ROUTES, Route, described
from tracker.catalog.nodes import Grant
from tracker.catalog.trail import SYSTEM

ROOT, ANN, BOB, CARL = basic("root"), basic("ann"), basic("bob"), basic("carl")
API = "/repositories/acme%2Fapi"
PEER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
FILLED = {
    "user": "ann", "organization": "acme", "account": "ann", "team": "devs", "repository": "acme%2Fapi", "id": "999",
    "peer_id": PEER, "reference": "v1",
}  # fmt: skip
BODIES: dict[type[d.Document], dict[str, Any]] = {
    d.Setup: {"secret": "s", "name": "x", "password": PASSWORD},
    d.NewUser: {"name": "x", "password": PASSWORD, "administrator": False},
    d.NewPassword: {"password": PASSWORD, "current": PASSWORD},
    d.Disabled: {"disabled": True},
    d.Administrator: {"administrator": False},
    d.NewName: {"name": "x"},
    d.NewOrganization: {"name": "x", "owner": "ann"},
    d.NewRole: {"role": "member"},
    d.Grant: {"pattern": "acme/**", "actions": ["pull"]},
    d.NewTeam: {"name": "x"},
    d.TeamName: {"name": "crew"},
    d.Visibility: {"private": True},
    d.NewToken: {"kind": "robot", "name": "ci", "scopes": ["repository:ann/**:pull"], "lifetime": 60.0},
    d.NewJoinToken: {"uses": 1, "lifetime": 60.0, "swarm": "s", "pulls": ["acme/**"], "labels": {"zone": "a"}},
    d.Revoked: {"revoked": True},
    i.IpfsPattern: {"pattern": "acme/**"},
}


async def world() -> World:
    """root: an administrator. ann: owner of acme, which has a private repository; bob: in no organisation; carl: a
    member of acme whose team may pull."""
    made = World()
    await made.accounts.add_user("root", PASSWORD, SYSTEM, administrator=True)
    for name in ("ann", "bob", "carl"):
        await made.accounts.add_user(name, PASSWORD, SYSTEM)
    await made.accounts.add_organization("acme", "ann", SYSTEM)
    await made.accounts.set_member("acme", "carl", "member", SYSTEM)
    await made.accounts.add_team("acme", "devs", SYSTEM)
    await made.accounts.add_team_member("acme", "devs", "carl", SYSTEM)
    await made.accounts.set_grant("acme", "devs", "acme/**", ["pull"], SYSTEM)
    await made.repository("acme/api")
    await made.nodes.enrol(Grant("default", ("acme/**",), {"zone": "a"}), "a test", PEER, 3600.0, SYSTEM)
    return made


def path_of(route: Route, **other: str) -> str:
    return route.path.format_map({**FILLED, **other})


def query_of(route: Route) -> str:
    return "?pattern=acme/**" if route.query in (d.Pattern, i.IpfsPattern) else ""


def body_of(route: Route) -> dict[str, Any] | None:
    return None if route.body is d.Nothing else BODIES[route.body]


def field_of(answer: Answer) -> str:
    assert (answer.status, answer.code) == (400, "INVALID"), answer
    field: str = answer.json()["errors"][0]["detail"]["field"]
    return field


async def token(here: World, account: str, *scopes: str) -> tuple[str, str]:
    made = await here.accounts.add_token("personal", account, "test", SYSTEM, scopes=scopes or None)
    return bearer(made.secret)


# ------------------------------------------------------------------------------------------------------------ documents


def test_the_document_is_one() -> None:
    document = described()
    assert json.loads(json.dumps(document)) == document
    components = document["components"]["schemas"]
    for name, schema in components.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], name
        assert not schema["description"].startswith(f"{name}("), f"{name} says nothing of itself"
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations) == len(ROUTES)
    references = set(_references(document))
    assert references == {f"#/components/schemas/{name}" for name in components}
    for operation in operations:
        for parameter in operation.get("parameters", ()):
            jsonschema.Draft202012Validator.check_schema(parameter["schema"])


def _references(document: object) -> list[str]:
    if isinstance(document, dict):
        own = [document["$ref"]] if "$ref" in document else []
        return own + [one for value in document.values() for one in _references(value)]
    return [one for value in document for one in _references(value)] if isinstance(document, list) else []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_table_says_what_the_handlers_take_and_give(route: Route) -> None:
    hints = typing.get_type_hints(route.handle)
    (asked,) = [hint for name, hint in hints.items() if name != "return"]
    assert typing.get_origin(asked) is Asked
    assert typing.get_args(asked) == (route.body, route.query)
    assert hints["return"] == (type(None) if route.answer is None else route.answer)


def test_the_page_for_people_is_of_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    assert openapi.table(ROUTES) in page, "mend it with scripts/api-docs"
    assert openapi.documents() in page, "mend it with scripts/api-docs"


# ----------------------------------------------------------------------------------------------------------- refusals


async def test_each_refusal_that_is_described_happens_and_no_other() -> None:
    """Each answer is held against the document by World; here is seen to it that there are all of them."""
    seen = set()
    for case in (_everything_done, _strangers, _malformed, _overloaded, _specific):
        here = await world()
        await case(here)
        seen |= here.seen
    wanted = {(r.method, r.path, one.status, one.code) for r in ROUTES for one in r.refusals}
    wanted |= {(r.method, r.path, r.status, "") for r in ROUTES}
    assert seen == wanted, sorted(wanted ^ seen)


async def _everything_done(here: World) -> None:
    """Each route once as it is meant."""
    empty = World()
    secret = await empty.accounts.new_setup(SYSTEM)
    made = await empty("POST", "/setup", {"secret": secret, "name": "root", "password": PASSWORD})
    assert made.json()["administrator"]
    here.seen |= empty.seen
    for route in ROUTES:
        if route.method == "GET":
            answer = await here("GET", path_of(route), who=ROOT)
            assert answer.status == 200
    await here("POST", "/users", {"name": "dora", "password": PASSWORD}, who=ROOT)
    await here("PUT", "/users/dora/password", {"password": PASSWORD + "2"}, who=ROOT)
    await here("PUT", "/users/dora/disabled", {"disabled": False}, who=ROOT)
    await here("PUT", "/users/dora/administrator", {"administrator": False}, who=ROOT)
    await here("PUT", "/users/dora/name", {"name": "dorothea"}, who=ROOT)
    await here("DELETE", "/users/dorothea", who=ROOT)
    await here("POST", "/organizations", {"name": "lab"}, who=ROOT)
    await here("PUT", "/organizations/lab/name", {"name": "labs"}, who=ROOT)
    await here("DELETE", "/organizations/labs", who=ROOT)
    await here("PUT", "/organizations/acme/members/bob", {"role": "admin"}, who=ANN)
    await here("DELETE", "/organizations/acme/members/bob", who=BOB)
    await here("POST", "/organizations/acme/teams", {"name": "ops"}, who=ANN)
    await here("PUT", "/organizations/acme/teams/ops/members/carl", who=ANN)
    await here("DELETE", "/organizations/acme/teams/ops/members/carl", who=ANN)
    await here("PUT", "/organizations/acme/teams/ops/grants", {"pattern": "acme/x", "actions": ["push"]}, who=ANN)
    await here("DELETE", "/organizations/acme/teams/ops/grants?pattern=acme/x", who=ANN)
    await here("PUT", "/organizations/acme/teams/ops/name", {"name": "sre"}, who=ANN)
    await here("DELETE", "/organizations/acme/teams/sre", who=ANN)
    await here("PUT", f"{API}/visibility", {"private": False}, who=ANN)
    await here("PUT", "/ipfs/patterns", {"pattern": "acme/**"}, who=ROOT)
    await here("POST", "/ipfs/retry", who=ROOT)
    await here("DELETE", "/ipfs/patterns?pattern=acme/**", who=ROOT)
    await here("DELETE", API, who=ANN)
    made = await here("POST", "/accounts/ann/tokens", {"kind": "personal", "name": "laptop"}, who=ANN)
    await here("DELETE", f"/accounts/ann/tokens/{made.json()['token']['id']}", who=ANN)
    made = await here("POST", "/join-tokens", {"pulls": ["acme/**"]}, who=ROOT)
    await here("DELETE", f"/join-tokens/{made.json()['token']['id']}", who=ROOT)
    await here("PUT", f"/nodes/{PEER}/revoked", {"revoked": True}, who=ROOT)


async def _strangers(here: World) -> None:
    scoped = await token(here, "ann", "repository:ann/**:pull")
    for number, route in enumerate(ROUTES):
        body, query = body_of(route), query_of(route)
        codes = {(one.status, one.code) for one in route.refusals}
        wrong = await here(
            route.method, path_of(route) + query, body, who=basic("ann", "no"), client=f"10.0.0.{number}"
        )
        assert (wrong.status, wrong.code) == (401, "UNAUTHORIZED")
        assert wrong.headers["www-authenticate"].startswith("Basic ")
        if route.name in ("users.show", "users.set_password") or "{account}" in route.path:
            assert (await here(route.method, path_of(route) + query, body, who=scoped)).status == 403
        needs = any("needed" in one.when for one in route.refusals if one.status == 401)
        if needs and "{repository}" not in route.path:
            assert (await here(route.method, path_of(route) + query, body)).status == 401
        if "{repository}" in route.path:
            await _hidden(here, route, BOB, body, query, repository="acme%2Fnone")
            if (403, "DENIED") in codes:
                assert (await here(route.method, path_of(route), body, who=CARL)).status == 403
        elif "{organization}" in route.path:
            await _hidden(here, route, BOB, body, query, organization="nobody")
            await _hidden(here, route, ANN, body, query, organization="nobody", other="bob")
            narrowed = await token(here, "ann", "repository:acme/**:pull,push")
            assert (await here(route.method, path_of(route) + query, body, who=narrowed)).status == 403
        elif (403, "DENIED") in codes and route.name != "users.set_up":
            assert (await here(route.method, path_of(route, user="root") + query, body, who=BOB)).status in (403, 404)
        if "{account}" in route.path or route.name in ("users.show", "users.set_password"):
            await _hidden(here, route, BOB, body, query, account="nobody", user="nobody")


async def _hidden(
    here: World, route: Route, who: tuple[str, str], body: Any, query: str, *, other: str = "", **unknown: str
) -> None:
    """What may not be seen is answered as what is not there, word for word but for the name that was asked for."""
    names = {key: value for key, value in unknown.items() if "{" + key + "}" in route.path}
    there = await here(
        route.method, path_of(route, **(dict.fromkeys(names, other) if other else {})) + query, body, who=who
    )
    absent = await here(route.method, path_of(route, **names) + query, body, who=who)
    assert there.status == absent.status == 404
    assert there.lines == absent.lines
    said = [one.json()["errors"][0] for one in (there, absent)]
    assert said[0]["message"] == said[1]["message"]
    assert said[0]["code"] == said[1]["code"]
    assert said[0]["detail"].keys() == said[1]["detail"].keys()


async def _malformed(here: World) -> None:
    for route in ROUTES:
        path, body = path_of(route), body_of(route)
        assert field_of(await here(route.method, path + "?nothing=1", body, who=ROOT)) == "nothing"
        if body is None:
            continue
        for raw in (b"", b"[]", b"{", b"\xff", b"null", b"[" * 60_000):
            answer = await here(route.method, path, raw=raw or b" ", who=ROOT)
            assert (answer.status, answer.code) == (400, "INVALID"), (route.name, raw[:20])
        longer = await here(route.method, path, raw=b" " * (65 << 10), who=ROOT)
        assert (longer.status, longer.code) == (413, "SIZE_INVALID")
        form = await here(route.method, path, body, who=ROOT, content_type="text/plain")
        assert (form.status, form.code) == (415, "UNSUPPORTED")
        assert field_of(await here(route.method, path, {**body, "nothing": 1}, who=ROOT)) == "nothing"
        for name in body:
            assert field_of(await here(route.method, path, {**body, name: 2.5e300}, who=ROOT)) == name
        required = msgspec.structs.fields(route.body)
        for field in (one for one in required if one.required):
            without = {key: value for key, value in body.items() if key != field.name}
            assert field_of(await here(route.method, path, without, who=ROOT)) == field.name
    assert field_of(await here("GET", "/users?n=0", who=ROOT)) == "n"
    assert field_of(await here("GET", "/users?n=1&n=2", who=ROOT)) == "n"
    assert field_of(await here("GET", "/users?after=%00", who=ROOT)) == "after"
    assert field_of(await here("DELETE", "/users/ann?repositories=perhaps", who=ROOT)) == "repositories"
    assert field_of(await here("POST", "/users", {"name": "a\n"}, who=ROOT)) == "name"
    assert field_of(await here("POST", "/users", {"name": "Ann"}, who=ROOT)) == "name"
    assert field_of(await here("POST", "/users", {"name": "x", "password": "short"}, who=ROOT)) == "password"
    grants = "/organizations/acme/teams/devs/grants"
    assert field_of(await here("PUT", grants, {"pattern": "other/**", "actions": ["pull"]}, who=ANN)) == "pattern"
    assert field_of(await here("DELETE", grants + "?pattern=other/**", who=ANN)) == "pattern"
    robot = {"kind": "robot", "name": "ci"}
    assert field_of(await here("POST", "/accounts/ann/tokens", robot, who=ANN)) == "scopes"
    robot["scopes"] = ["registry:catalog:*"]  # type: ignore[assignment]
    assert field_of(await here("POST", "/accounts/ann/tokens", robot, who=ANN)) == "scopes"
    personal = {"kind": "personal", "name": "x"}
    assert field_of(await here("POST", "/accounts/acme/tokens", personal, socket=True)) == "kind"
    assert field_of(await here("POST", "/organizations", {"name": "lab"}, socket=True)) == "owner"
    assert field_of(await here("POST", "/join-tokens", {"pulls": ["a b"]}, who=ROOT)) == "pulls"
    assert field_of(await here("POST", "/join-tokens", {"swarm": "a\n"}, who=ROOT)) == "swarm"
    assert field_of(await here("PUT", "/ipfs/patterns", {"pattern": "a?b"}, who=ROOT)) == "pattern"
    assert field_of(await here("POST", "/join-tokens", {"pulls": ["a?b"]}, who=ROOT)) == "pulls"
    assert field_of(await here("POST", "/join-tokens", {"labels": {"zone": "?"}}, who=ROOT)) == "labels"
    assert field_of(await here("PUT", "/users/root/password", {"password": PASSWORD}, who=ROOT)) == "current"


async def _overloaded(here: World) -> None:
    for _ in range(70):
        await here("GET", "/me", who=basic("ann", "not hers"), client="192.0.2.9")
    for route in ROUTES:
        turned = await here(route.method, path_of(route), body_of(route), who=basic("ann", "x"), client="192.0.2.9")
        assert (turned.status, turned.code) == (429, "TOOMANYREQUESTS")
        assert int(turned.headers["retry-after"]) > 0
    here.failing = LocalError("the database does not answer")
    for route in ROUTES:
        failed = await here(route.method, path_of(route), body_of(route), who=ROOT)
        assert (failed.status, failed.code) == (503, "UNAVAILABLE")
        assert "retry-after" in failed.headers


async def _specific(here: World) -> None:
    async def refused(status: int, code: str, *arguments: Any, **options: Any) -> None:
        answer = await here(*arguments, **options)
        assert (answer.status, answer.code) == (status, code), answer

    await refused(403, "DENIED", "POST", "/setup", BODIES[d.Setup])
    empty = World()
    await empty.accounts.add_user("ann", PASSWORD, SYSTEM)
    secret = await empty.accounts.new_setup(SYSTEM)
    taken = await empty("POST", "/setup", {"secret": secret, "name": "ann", "password": PASSWORD})
    assert (taken.status, taken.code) == (409, "CONFLICT")
    here.seen |= empty.seen
    await refused(409, "CONFLICT", "POST", "/users", {"name": "ann"}, who=ROOT)
    change = {"password": PASSWORD + "2", "current": "not hers"}
    await refused(403, "DENIED", "PUT", "/users/ann/password", change, who=ANN)
    for what, body in (("disabled", {"disabled": True}), ("administrator", {"administrator": False})):
        await refused(409, "CONFLICT", "PUT", f"/users/root/{what}", body, who=ROOT)
        await refused(404, "ACCOUNT_UNKNOWN", "PUT", f"/users/nobody/{what}", body, who=ROOT)
    await refused(404, "ACCOUNT_UNKNOWN", "PUT", "/users/acme/name", {"name": "x"}, who=ROOT)
    await refused(409, "CONFLICT", "PUT", "/users/ann/name", {"name": "acme"}, who=ROOT)
    await refused(404, "ACCOUNT_UNKNOWN", "DELETE", "/users/acme", who=ROOT)
    await refused(409, "CONFLICT", "DELETE", "/users/ann", who=ROOT)
    await refused(404, "ACCOUNT_UNKNOWN", "POST", "/organizations", {"name": "lab", "owner": "none"}, who=ROOT)
    await refused(409, "CONFLICT", "POST", "/organizations", {"name": "acme"}, who=ROOT)
    await refused(409, "CONFLICT", "PUT", "/organizations/acme/name", {"name": "ann"}, who=ANN)
    await refused(409, "CONFLICT", "DELETE", "/organizations/acme", who=ANN)
    await refused(404, "ACCOUNT_UNKNOWN", "PUT", "/organizations/acme/members/none", {"role": "member"}, who=ANN)
    await refused(409, "CONFLICT", "PUT", "/organizations/acme/members/ann", {"role": "member"}, who=ANN)
    await refused(409, "CONFLICT", "DELETE", "/organizations/acme/members/ann", who=ANN)
    await refused(404, "MEMBER_UNKNOWN", "DELETE", "/organizations/acme/members/bob", who=ANN)
    teams = "/organizations/acme/teams"
    await refused(409, "CONFLICT", "POST", teams, {"name": "devs"}, who=ANN)
    await refused(404, "TEAM_UNKNOWN", "GET", f"{teams}/none", who=ANN)
    await refused(404, "TEAM_UNKNOWN", "DELETE", f"{teams}/none", who=ANN)
    await refused(404, "TEAM_UNKNOWN", "PUT", f"{teams}/none/name", {"name": "x"}, who=ANN)
    await refused(409, "CONFLICT", "PUT", f"{teams}/devs/name", {"name": "devs"}, who=ANN)
    await refused(404, "TEAM_UNKNOWN", "PUT", f"{teams}/none/members/carl", who=ANN)
    await refused(409, "CONFLICT", "PUT", f"{teams}/devs/members/bob", who=ANN)
    await refused(404, "TEAM_UNKNOWN", "DELETE", f"{teams}/none/members/carl", who=ANN)
    await refused(404, "MEMBER_UNKNOWN", "DELETE", f"{teams}/devs/members/ann", who=ANN)
    await refused(404, "TEAM_UNKNOWN", "PUT", f"{teams}/none/grants", BODIES[d.Grant], who=ANN)
    await refused(404, "TEAM_UNKNOWN", "DELETE", f"{teams}/none/grants?pattern=acme/**", who=ANN)
    await refused(404, "GRANT_UNKNOWN", "DELETE", f"{teams}/devs/grants?pattern=acme/x", who=ANN)
    await refused(404, "TOKEN_UNKNOWN", "DELETE", "/accounts/ann/tokens/none", who=ANN)
    await refused(404, "TOKEN_UNKNOWN", "DELETE", "/join-tokens/999", who=ROOT)
    await refused(404, "NODE_UNKNOWN", "GET", "/nodes/none", who=ROOT)
    await refused(404, "NODE_UNKNOWN", "PUT", "/nodes/none/revoked", {"revoked": True}, who=ROOT)
    await refused(404, "PATTERN_UNKNOWN", "DELETE", "/ipfs/patterns?pattern=none", who=ROOT)
    for reference in ("none", f"sha256:{'0' * 64}", "sha256:none"):
        await refused(404, "MANIFEST_UNKNOWN", "GET", f"{API}/ipfs/{reference}", who=ANN)
    await refused(401, "UNAUTHORIZED", "PUT", f"{API}/visibility", {"private": True}, who=bearer("p2pr_pat_none"))
    await here.catalog.set_visibility("acme/api", False, SYSTEM)
    await refused(401, "UNAUTHORIZED", "PUT", f"{API}/visibility", {"private": True})
    await refused(401, "UNAUTHORIZED", "DELETE", API)
    await here.catalog.policies.add_immutable("acme/*:v*", SYSTEM)
    await here.repository("dora/app")
    await refused(403, "DENIED", "DELETE", API, who=ANN)
    await refused(403, "DENIED", "DELETE", "/organizations/acme?repositories=true", who=ANN)
    await here.accounts.add_user("dora", PASSWORD, SYSTEM)
    await here.catalog.policies.add_immutable("dora/*:v*", SYSTEM)
    await refused(403, "DENIED", "DELETE", "/users/dora?repositories=true", who=ROOT)
    for number in range(500):
        await here.accounts.add_token("personal", "bob", f"t{number}", SYSTEM)
    await refused(409, "CONFLICT", "POST", "/accounts/bob/tokens", {"kind": "personal", "name": "x"}, who=BOB)


async def test_what_is_no_endpoint() -> None:
    here = await world()
    for method, path in (
        ("GET", "/nothing"), ("GET", "/users/ann/more"), ("GET", "/repositories/acme/api"), ("GET", "//users"),
        ("GET", ""), ("GET", "/"),
    ):  # fmt: skip
        answer = await here(method, path, who=ROOT)
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN"), path
    for name in ("%00", "a%0ab", "%C3%A9", "", "a" * 400):
        answer = await here("GET", f"/users/{name}", who=ROOT)
        assert (answer.status, answer.code) == (404, "ACCOUNT_UNKNOWN"), name
    answer = await here("PATCH", "/users", who=ROOT)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
    assert set(ALWAYS) <= set(ROUTES[0].refusals)
    assert PREFIX == "/api/v1"


TEXT = st.text(max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
async def test_whatever_is_sent_is_answered_as_described(data: Any) -> None:
    """Nothing is foreseen badly enough to be 503."""
    here = await world()
    route = data.draw(st.sampled_from(ROUTES))
    body = body_of(route)
    sent = {} if body is None else {**body, **data.draw(st.dictionaries(st.sampled_from(list(body)), VALUES))}
    quoted: str = data.draw(st.sampled_from(["ann", "acme", "devs", "999", "%2f", "..", "acme%2F", "%F0%9F%90%B3"]))
    path = path_of(route, **dict.fromkeys(FILLED, quoted))
    raw = json.dumps(sent).encode() if body is not None else b""
    answer = await here(route.method, path + query_of(route), raw=raw, who=ROOT)
    assert answer.status < 500
