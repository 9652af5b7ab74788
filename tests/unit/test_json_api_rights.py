"""Who may do what over the JSON API, beyond what the table of routes says of all of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.json_api import PASSWORD, World, basic, bearer
from p2pregistry.testing.tracker_api import SERVICE, keyring
from p2pregistry.trust.access import AccessToken, parse_scopes, sign_access
from tracker.api.setup_page import SetupPage
from tracker.catalog.trail import SYSTEM

MEMBERS = "/organizations/acme/members"


def who(name: str) -> tuple[str, str]:
    return basic(name)


async def world() -> World:
    """acme is owned by ann; adam is an admin of it, carl a member; root is an administrator, bob nobody there."""
    made = World()
    await made.accounts.add_user("root", PASSWORD, SYSTEM, administrator=True)
    for name in ("ann", "adam", "carl", "bob"):
        await made.accounts.add_user(name, PASSWORD, SYSTEM)
    await made.accounts.add_organization("acme", "ann", SYSTEM)
    await made.accounts.set_member("acme", "adam", "admin", SYSTEM)
    await made.accounts.set_member("acme", "carl", "member", SYSTEM)
    for name in ("acme/api", "acme/web", "bob/app"):
        await made.repository(name)
    return made


@pytest.mark.parametrize(
    ("actor", "changes"),
    [
        # who, and what may be done: (user, role) or (user, None) for a removal
        ("ann", {("bob", "member"): 204, ("bob", "owner"): 204, ("adam", "owner"): 204, ("adam", None): 204}),
        ("root", {("bob", "member"): 204, ("bob", "owner"): 204, ("carl", None): 204}),
        ("adam", {("bob", "admin"): 204, ("bob", "owner"): 403, ("adam", "owner"): 403, ("carl", None): 204}),
        ("adam", {("ann", "member"): 403, ("ann", None): 403, ("adam", "member"): 204}),
        ("carl", {("bob", "member"): 403, ("adam", None): 403, ("carl", "admin"): 403, ("carl", None): 204}),
        ("bob", {("bob", "member"): 404, ("carl", None): 404, ("bob", None): 404}),
    ],
)
async def test_roles(actor: str, changes: dict[tuple[str, str | None], int]) -> None:
    for (user, role), wanted in changes.items():
        here = await world()
        if role is None:
            answer = await here("DELETE", f"{MEMBERS}/{user}", who=who(actor))
        else:
            answer = await here("PUT", f"{MEMBERS}/{user}", {"role": role}, who=who(actor))
        assert answer.status == wanted, (actor, user, role)
        before = {"ann": "owner", "adam": "admin", "carl": "member", "bob": None}[user]
        after = {one.user: one.role for one in await here.accounts.members("acme")}.get(user)
        assert after == (role if wanted == 204 else before)


async def test_nobody_makes_a_personal_token_of_somebody_else() -> None:
    here = await world()
    new = {"kind": "personal", "name": "x"}
    for actor, account in (("root", "ann"), ("ann", "acme"), ("adam", "ann"), ("bob", "ann"), ("root", "acme")):
        answer = await here("POST", f"/accounts/{account}/tokens", new, who=who(actor))
        assert answer.status == (404 if actor in ("bob", "adam") else 403), (actor, account)
    assert await here.accounts.tokens("ann") == []
    assert (await here("POST", "/accounts/ann/tokens", new, socket=True)).status == 201
    robot = {"kind": "robot", "name": "ci", "scopes": ["repository:acme/**:pull"]}
    for actor, wanted in (("ann", 201), ("adam", 201), ("root", 201), ("carl", 403), ("bob", 404)):
        assert (await here("POST", "/accounts/acme/tokens", robot, who=who(actor))).status == wanted


async def test_a_token_is_shown_once_and_is_good_until_it_is_revoked() -> None:
    here = await world()
    made = (await here("POST", "/accounts/ann/tokens", {"kind": "personal", "name": "x"}, who=who("ann"))).json()
    secret, number = made["secret"], made["token"]["id"]
    for shown in (bearer(secret), basic("ann", secret), basic("whoever", secret)):
        answer = (await here("GET", "/me", who=shown)).json()
        assert (answer["name"], answer["token"], answer["scopes"]) == ("ann", "x", None)
    listed = await here("GET", "/accounts/ann/tokens", who=bearer(secret))
    assert secret not in listed.body.decode()
    assert listed.json()["tokens"][0]["last_used_at"] is not None
    assert (await here("DELETE", f"/accounts/bob/tokens/{number}", who=who("bob"))).status == 404
    assert (await here("DELETE", f"/accounts/ann/tokens/{number}", who=bearer(secret))).status == 204
    assert (await here("GET", "/me", who=bearer(secret))).status == 401
    assert (await here("DELETE", f"/accounts/ann/tokens/{number}", who=who("ann"))).status == 404


async def test_a_token_with_scopes_does_what_they_say_and_manages_nothing() -> None:
    here = await world()
    made = await here.accounts.add_token("personal", "root", "x", SYSTEM, scopes=["repository:acme/web:pull"])
    narrow = bearer(made.secret)
    me = (await here("GET", "/me", who=narrow)).json()
    assert (me["administrator"], me["scopes"]) == (False, ["repository:acme/web:pull"])
    names = [one["name"] for one in (await here("GET", "/repositories", who=narrow)).json()["repositories"]]
    assert names == ["acme/web"]
    assert (await here("GET", "/repositories/acme%2Fapi", who=narrow)).status == 404
    assert (await here("PUT", "/repositories/acme%2Fweb/visibility", {"private": False}, who=narrow)).status == 403
    for method, path, body in (
        ("GET", "/users", None), ("POST", "/users", {"name": "x"}), ("GET", "/nodes", None),
        ("POST", "/join-tokens", {}), ("PUT", "/users/root/password", {"password": PASSWORD, "current": PASSWORD}),
        ("POST", "/accounts/root/tokens", {"kind": "personal", "name": "y"}),
    ):  # fmt: skip
        assert (await here(method, path, body, who=narrow)).status == 403, path


@pytest.mark.parametrize("scheme", ["Bearer {}", "Basic {}"])
async def test_access_tokens_are_no_credentials_here(scheme: str) -> None:
    here = await world()
    scopes = parse_scopes(["repository:acme/api:pull,push"])
    token = sign_access(keyring().signer, AccessToken("i", SERVICE, "root", "1", 1, 1 << 33, scopes))
    for text in (token, "", "p2pr_pat_x", "\u00e9"):
        answer = await here("GET", "/me", who=("Authorization", scheme.format(text)))
        assert answer.status == 401


async def test_a_refresh_token_is_none_either() -> None:
    here = await world()
    identity = await here.accounts.identity_of("ann")
    assert identity is not None
    secret = await here.accounts.add_refresh(identity, "docker", SYSTEM)
    for shown in (bearer(secret), basic("ann", secret)):
        assert (await here("GET", "/me", who=shown)).status == 401


async def test_whose_password_it_is_changes_it_by_the_one_that_there_was() -> None:
    here = await world()
    made = await here.accounts.add_token("personal", "ann", "x", SYSTEM)
    new = "another horse"
    for current in (None, "wrong horse", made.secret):
        body = {"password": new, "current": current}
        answer = await here("PUT", "/users/ann/password", body, who=bearer(made.secret))
        assert answer.status == (400 if current is None else 403)
    assert (await here("GET", "/me", who=basic("ann", new))).status == 401
    body = {"password": new, "current": PASSWORD}
    assert (await here("PUT", "/users/ann/password", body, who=who("ann"))).status == 204
    assert (await here("GET", "/me", who=basic("ann", new))).status == 200
    assert (await here("GET", "/me", who=who("ann"))).status == 401
    assert (await here("PUT", "/users/ann/password", {"password": PASSWORD}, who=who("root"))).status == 204
    assert (await here("GET", "/me", who=who("ann"))).status == 200


async def test_lists_come_in_pages_and_tell_each_what_he_may_see() -> None:
    here = await world()
    await here.catalog.set_visibility("acme/web", False, SYSTEM)

    async def names(path: str, actor: str | None) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            query = urlencode({"n": 1, "after": after})
            answer = await here(
                "GET", f"{path}{'&' if '?' in path else '?'}{query}", who=(actor and who(actor)) or None
            )
            (items,) = (value for key, value in answer.json().items() if key != "next")
            found += [one["name"] for one in items]
            after = answer.json()["next"]
            if after is None:
                return found

    assert await names("/repositories", None) == ["acme/web"]
    assert await names("/repositories", "carl") == ["acme/web"]
    assert await names("/repositories", "bob") == ["acme/web", "bob/app"]
    assert await names("/repositories", "adam") == ["acme/api", "acme/web"]
    assert await names("/repositories?q=ap", "root") == ["acme/api", "bob/app"]
    assert await names("/users", "root") == ["adam", "ann", "bob", "carl", "root"]
    assert await names("/organizations", "carl") == ["acme"]
    assert await names("/organizations", "root") == ["acme"]
    assert (await here("GET", "/organizations", who=who("bob"))).json()["organizations"] == []


async def test_what_is_done_is_written_down_by_who_did_it() -> None:
    here = await world()
    await here("PUT", f"{MEMBERS}/bob", {"role": "member"}, who=who("ann"), client="192.0.2.7")
    by, action, name = here.accounts.written[-1]
    assert (by.actor, by.address, action, name) == ("ann", "192.0.2.7", "member.set", "acme")
    identity = await here.accounts.identity_of("ann")
    assert identity is not None
    assert by.account_id == identity.account_id
    await here("DELETE", f"{MEMBERS}/bob", socket=True)
    assert here.accounts.written[-1][0].actor == "operator"


# ----------------------------------------------------------------------------------------------------------- the page


async def test_the_page_makes_the_first_administrator_once() -> None:
    here = World()
    page = SetupPage(here.accounts)
    secret = await here.accounts.new_setup(SYSTEM)
    form = ("Content-Type", "application/x-www-form-urlencoded")

    async def post(**fields: str) -> Answer:
        return await call(page, "POST", "/setup", urlencode(fields).encode(), headers=[form])

    shown = await call(page, "GET", "/setup")
    assert (shown.status, shown.headers["cache-control"]) == (200, "no-store")
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    wrong: list[tuple[dict[str, Any], int]] = [
        ({}, 403),
        ({"secret": "p2pr_setup_<script>", "name": "root", "password": PASSWORD}, 403),
        ({"secret": secret, "name": "<script>", "password": PASSWORD}, 400),
        ({"secret": secret, "name": "root", "password": "short"}, 400),
    ]
    for fields, status in wrong:
        answer = await post(**fields)
        assert answer.status == status
        assert b"<script>\x22" not in answer.body
        assert secret.encode() not in answer.body
        assert b"<script>" not in answer.body.replace(b"<script>\ndocument", b"")
    assert (await post(secret=f" {secret} ", name="root", password=PASSWORD)).status == 201
    assert (await here("GET", "/me", who=who("root"))).json()["administrator"] is True
    assert (await post(secret=secret, name="other", password=PASSWORD)).status == 403
    assert b"already" in (await call(page, "GET", "/setup")).body
    assert (await call(page, "PUT", "/setup")).status == 405
    assert (await call(page, "POST", "/setup", b"{}", headers=[("Content-Type", "application/json")])).status == 400


async def test_how_publishing_to_ipfs_fares_is_for_who_may_pull_and_why_it_fails_for_who_may_administer() -> None:
    here = await world()
    await here.publishing.publish("acme/**", SYSTEM)
    await here.catalog.set_visibility("acme/api", False, SYSTEM)
    await here.publishing.reconcile(10, ["kubo"], encrypted=False)
    (job, *_) = await here.publishing.claim(["kubo"], 10, 60.0)
    await here.publishing.failed(job, "no answer from 10.0.0.1", None)
    errors = {}
    for name in ("ann", "carl", "bob", "root"):
        answer = await here("GET", "/repositories/acme%2Fapi/ipfs/v1", who=who(name))
        assert answer.status == 200
        states = [state for item in answer.json()["items"] for state in item["services"]]
        assert sorted(state["state"] for state in states) == ["failed", *["publishing"] * 3]
        errors[name] = {state["error"] for state in states}
    assert errors["ann"] == errors["root"] == {None, "no answer from 10.0.0.1"}
    assert errors["carl"] == errors["bob"] == {None}
    assert (await here("GET", "/ipfs", who=who("root"))).json()["failures"][0]["services"][0]["state"] == "failed"
    await here.catalog.set_visibility("acme/api", True, SYSTEM)
    for path in ("/repositories/acme%2Fapi/ipfs", "/repositories/acme%2Fapi/ipfs/v1"):
        assert (await here("GET", path, who=who("bob"))).status == 404
        assert (await here("GET", path)).status == 404
    for method, path, body in (
        ("GET", "/ipfs", None),
        ("PUT", "/ipfs/patterns", {"pattern": "acme/**"}),
        ("DELETE", "/ipfs/patterns?pattern=acme/**", None),
        ("POST", "/ipfs/retry", None),
    ):
        assert (await here(method, path, body, who=who("ann"))).status == 403
        assert (await here(method, path, body)).status == 401
        assert (await here(method, path, body, socket=True)).status < 300
