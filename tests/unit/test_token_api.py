"""The token endpoint, asked as the clients ask it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.tracker_api import AUTHORIZATION, PASSWORD, SERVICE, USER, Registry, keyring, registry
from p2pregistry.trust.access import MAX_TOKEN, AccessToken, verify_access
from p2pregistry.trust.secret import Kind, is_secret, new_secret
from tracker.catalog.trail import SYSTEM
from tracker.throttle import Logins, MemoryCounters, Most
from tracker.token_api import parse_asked, parse_form

NOW = 1_800_000_000.0
ANN, ANNS = "ann", "correct: horse & co"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
PEER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
EVERY = "repository:ann/x:pull,push,delete"


def basic(name: str, secret: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


@asynccontextmanager
async def endpoint(root: Path, **options: Any) -> AsyncIterator[Registry]:
    """With a user ann, a public repository, and a private one that is not hers."""
    async with registry(root, clock=lambda: NOW, **options) as api:
        await api.accounts.add_user(ANN, ANNS, SYSTEM)
        for name in ("acme/public", "acme/private"):
            await api.push_blob(name, b"x")
        await api.catalog.set_visibility("acme/private", True, SYSTEM)
        yield api


async def get(api: Registry, *scopes: str, headers: Sequence[tuple[str, str]] = (), **more: str) -> Answer:
    query = [("service", SERVICE), *(("scope", scope) for scope in scopes)]
    query = [pair for pair in query if pair[0] not in more] + list(more.items())
    return await call(api.tokens, "GET", f"/token?{urlencode(query)}", headers=headers)


async def post(api: Registry, *scopes: str, form: tuple[str, str] = FORM, **fields: str) -> Answer:
    pairs = [("service", SERVICE), ("scope", " ".join(scopes)), *fields.items()]
    return await call(api.tokens, "POST", "/token", urlencode(pairs).encode(), headers=[form])


def read(answer: Answer, audience: str = SERVICE) -> AccessToken:
    """The access token of an answer, whose form is checked."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["token"] == document["access_token"]
    assert type(document["expires_in"]) is int
    assert document["expires_in"] == 300
    assert datetime.datetime.fromisoformat(document["issued_at"]).timestamp() == NOW
    return verify_access(keyring().keys, document["token"], audience=audience, now=NOW)


def texts(token: AccessToken) -> list[str]:
    return [str(scope) for scope in token.access]


# ------------------------------------------------------------------------------------------------------ what is granted


async def test_docker_login_and_pull_with_a_password(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        login = await get(
            api, headers=[basic(ANN, ANNS)], account=ANN, client_id="docker", offline_token="true"
        )  # fmt: skip
        token = read(login)
        assert (token.subject, token.access, token.issuer) == (ANN, (), "k4.pid.test")
        assert is_secret("refresh", login.json()["refresh_token"])
        assert "scope" not in login.json()
        pulled = await get(api, "repository:ann/x:pull", "repository:ann/y:pull,push", headers=[basic(ANN, ANNS)])
        assert texts(read(pulled)) == ["repository:ann/x:pull", "repository:ann/y:pull,push"]
        assert "refresh_token" not in pulled.json()


async def test_docker_with_an_identity_token(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        login = await get(api, headers=[basic(ANN, ANNS)], client_id="docker", offline_token="true")
        refresh = login.json()["refresh_token"]
        for _ in range(3):  # docker keeps the first one for ever
            answer = await post(
                api, EVERY, "repository:acme/private:pull", grant_type="refresh_token", client_id="docker",
                refresh_token=refresh, access_type="offline",
            )  # fmt: skip
            token = read(answer)
            assert (token.subject, texts(token)) == (ANN, ["repository:ann/x:delete,pull,push"])
            assert answer.json()["scope"] == "repository:ann/x:delete,pull,push"
            assert answer.json().get("refresh_token") in (None, refresh), "it does not rotate"
        (kept,) = await api.accounts.tokens(ANN, kind="refresh")
        assert kept.name == "docker"
        await api.accounts.revoke_token(ANN, kept.id, SYSTEM)
        answer = await post(api, EVERY, grant_type="refresh_token", refresh_token=refresh)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")


async def test_containerd_posts_a_password_and_overlapping_scopes(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        answer = await post(
            api, "repository:ann/x:pull", "repository:ann/x:pull,push", "repository:acme/public:pull",
            grant_type="password", client_id="containerd-client", username=ANN, password=ANNS,
            form=("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
        )  # fmt: skip
        assert texts(read(answer)) == ["repository:ann/x:pull,push", "repository:acme/public:pull"]
        assert answer.json()["scope"] == "repository:ann/x:pull,push repository:acme/public:pull"
        assert "refresh_token" not in answer.json()


async def test_podman_repeats_the_field(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        refresh = (await post(api, grant_type="password", username=ANN, password=ANNS, access_type="offline")).json()
        body = urlencode(
            [("grant_type", "refresh_token"), ("refresh_token", refresh["refresh_token"]), ("service", SERVICE),
             ("client_id", "containers/image"), ("scope", "repository:ann/x:pull"), ("scope", "repository:ann/y:pull")]
        ).encode()  # fmt: skip
        answer = await call(api.tokens, "POST", "/token", body, headers=[FORM])
        assert texts(read(answer)) == ["repository:ann/x:pull", "repository:ann/y:pull"]


async def test_nobody_gets_a_token_too(tmp_path: Path) -> None:
    asked = ("repository:acme/public:pull,push", "repository:acme/private:pull", "repository:acme/none:pull")
    async with endpoint(tmp_path) as api:
        for headers in ((), [("Authorization", "Basic Og==")]):
            token = read(await get(api, *asked, headers=headers, offline_token="true"))
            assert (token.subject, token.account, texts(token)) == ("", None, ["repository:acme/public:pull"])
    async with endpoint(tmp_path / "closed", anonymous_pull=False) as api:
        assert read(await get(api, *asked, "registry:catalog:*")).access == ()


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("repository:acme/private:pull", []),
        ("repository:acme/none:pull", []),
        ("repository:acme/public:pull,push,delete", ["repository:acme/public:pull"]),
        ("repository:acme/public:*", ["repository:acme/public:pull"]),
        ("repository:ann/x:*", ["repository:ann/x:delete,pull,push"]),
        ("repository(plugin):ann/x:pull", ["repository:ann/x:pull"]),
        ("repository:ann/x:pull  repository:ann/x:push", ["repository:ann/x:pull,push"]),
        ("repository:host:5000/ann/x:pull", []),
        ("repository:ann/x:", []),
        ("repository:ann/x:admin", []),
        ("repository:Ann:pull", []),
        ("registry:catalog:*", ["registry:catalog:*"]),
        ("registry:catalog:pull", []),
        ("plugin:ann/x:pull", []),
        ("", []),
    ],
)
async def test_less_than_what_was_asked_for_is_no_error(tmp_path: Path, asked: str, given: list[str]) -> None:
    async with endpoint(tmp_path) as api:
        assert texts(read(await get(api, asked, headers=[basic(ANN, ANNS)]))) == given
        assert texts(read(await post(api, asked, grant_type="password", username=ANN, password=ANNS))) == given


async def test_a_robot_gets_what_its_scopes_allow_and_no_refresh_token(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        robot = await api.accounts.add_token("robot", ANN, "ci", SYSTEM, scopes=["repository:ann/x:pull"])
        for name in (ANN, "anything"):
            answer = await get(
                api, EVERY, "repository:ann/y:pull", "registry:catalog:*", headers=[basic(name, robot.secret)],
                offline_token="true",
            )  # fmt: skip
            token = read(answer)
            assert (token.subject, texts(token)) == ("ann+ci", ["repository:ann/x:pull", "registry:catalog:*"])
            assert token.within == robot.token.scopes
            assert "refresh_token" not in answer.json(), "it would outlive the robot's"
        posted = await post(api, grant_type="password", username=ANN, password=robot.secret, access_type="offline")
        assert "refresh_token" not in posted.json()
        await api.accounts.revoke_token(ANN, robot.token.id, SYSTEM)
        assert (await get(api, EVERY, headers=[basic(ANN, robot.secret)])).status == 401


async def test_tokens_for_the_clients_of_a_node_are_for_pulling(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        answer = await get(api, EVERY, "registry:catalog:*", headers=[basic(ANN, ANNS)], service=f"node:{PEER}")
        assert texts(read(answer, f"node:{PEER}")) == ["repository:ann/x:pull"]
        header = ("Authorization", f"Bearer {answer.json()['token']}")
        assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 401, "and good nowhere else"


@pytest.mark.parametrize("service", ["another", "node:", "node:x", f"node:{PEER}x", PEER, f"node: {PEER}"])
async def test_other_services_are_refused(tmp_path: Path, service: str) -> None:
    async with endpoint(tmp_path) as api:
        answer = await get(api, EVERY, headers=[AUTHORIZATION], service=service)
        assert (answer.status, answer.code) == (400, "UNSUPPORTED")


async def test_the_registry_takes_what_the_endpoint_gives(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        answer = await get(api, "repository:ann/new:pull,push", headers=[basic(ANN, ANNS)])
        header = ("Authorization", f"Bearer {answer.json()['token']}")
        digest = Digest.of(b"mine")
        target = f"/v2/ann/new/blobs/uploads/?digest={digest}"
        assert (await call(api.api, "POST", target, b"mine", headers=[header])).status == 201
        assert (await call(api.api, "GET", f"/v2/ann/new/blobs/{digest}", headers=[header])).body == b"mine"
        by = next(by for by, _, name in api.catalog.written if name == "ann/new")
        assert (by.actor, by.account_id) == (ANN, (await api.accounts.identity_of(ANN)).account_id)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- what is not


async def test_what_is_wrong_is_401(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        access = (await get(api, EVERY, headers=[basic(ANN, ANNS)])).json()["token"]
        refresh = (await post(api, grant_type="password", username=ANN, password=ANNS, access_type="offline")).json()
        for header in (
            basic(ANN, "x"), basic("nobody", ANNS), basic(ANN, ""), basic(ANN, access), ("Authorization", "Basic !"),
            ("Authorization", f"Bearer {access}"), basic(ANN, refresh["refresh_token"]),
            basic("", refresh["refresh_token"]),
        ):  # fmt: skip
            answer = await get(api, EVERY, headers=[header])
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
            assert answer.headers["www-authenticate"].startswith("Basic realm=")
        for fields in (
            {"grant_type": "password", "username": ANN, "password": "x"},
            {"grant_type": "password", "username": ANN},
            {"grant_type": "password", "username": ANN, "password": refresh["refresh_token"]},
            {"grant_type": "refresh_token", "refresh_token": access},
            {"grant_type": "refresh_token", "refresh_token": ANNS},
            {"grant_type": "refresh_token"},
        ):
            answer = await post(api, EVERY, form=FORM, **fields)
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), fields


@pytest.mark.parametrize(
    ("method", "target", "body", "kind", "status"),
    [
        ("POST", "/token", b"grant_type=x", FORM[1], 400),
        ("POST", "/token", b"", FORM[1], 400),
        ("POST", "/token", b"{}", "application/json", 400),
        ("POST", "/token", b"grant_type=password&username=%ff", FORM[1], 400),
        ("POST", "/token", b"grant_type=password&username=\xff", FORM[1], 400),
        ("POST", "/token", b"grant_type=password", FORM[1] + "; charset=utf-16", 400),
        ("POST", "/token", b"x=1&" * 200, FORM[1], 400),
        ("POST", "/token", b"x" * 70_000, FORM[1], 413),
        ("GET", "/token?scope=nonsense", b"", "", 400),
        ("GET", "/token?" + "scope=repository:a:pull&" * 99, b"", "", 200),
        ("GET", "/token?scope=" + "+".join(f"repository:a{n}:pull" for n in range(51)), b"", "", 400),
        ("PUT", "/token", b"", "", 405),
        ("HEAD", "/token", b"", "", 405),
    ],
)
async def test_bad_requests(tmp_path: Path, method: str, target: str, body: bytes, kind: str, status: int) -> None:
    async with endpoint(tmp_path) as api:
        answer = await call(api.tokens, method, target, body, headers=[("Content-Type", kind)])
        assert answer.status == status
        assert status != 405 or answer.headers["allow"] == "GET, POST"
        assert status == 200 or method == "HEAD" or answer.code in ("UNSUPPORTED", "SIZE_INVALID")


async def test_a_token_that_headers_could_not_hold_is_not_given(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as api:
        many = [f"repository:pusher/{n}-{'x' * 200}:pull,push" for n in range(45)]
        answer = await get(api, *many, headers=[AUTHORIZATION])
        assert (answer.status, answer.code) == (400, "UNSUPPORTED")
        few = await get(api, *many[:15], headers=[AUTHORIZATION])
        assert len(few.json()["token"]) < MAX_TOKEN


async def test_guessing_is_counted_whichever_way(tmp_path: Path) -> None:
    logins = Logins(MemoryCounters(), most=Most(pair=4))
    async with endpoint(tmp_path, logins=logins) as api:
        await get(api, headers=[basic(ANN, "1")])
        await post(api, grant_type="password", username=ANN, password="2")
        await call(api.api, "GET", "/v2/", headers=[basic(ANN, "3")])
        assert (await get(api, headers=[basic(ANN, "4")])).status == 401
        assert (await get(api, headers=[basic(ANN, "5")])).status == 429
        answer = await post(api, grant_type="password", username=ANN, password=ANNS)
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["retry-after"]) > 0
        assert (await get(api, headers=[basic(USER, PASSWORD)])).status == 200


@pytest.mark.parametrize("kind", ["refresh", "join", "setup"])
async def test_a_password_that_looks_like_a_secret_is_counted_too(tmp_path: Path, kind: Kind) -> None:
    """Else anybody could have passwords hashed for ever, and nobody could log in meanwhile."""
    logins = Logins(MemoryCounters(), most=Most(pair=2))
    async with endpoint(tmp_path, logins=logins) as api:
        seen = [(await get(api, headers=[basic(ANN, new_secret(kind))])).status for _ in range(4)]
        assert seen == [401, 401, 429, 429]


# ------------------------------------------------------------------------------------------------------- what is parsed


@given(st.one_of(st.none(), st.text(max_size=60)), st.binary(max_size=300))
def test_any_form_is_read_or_refused(content_type: str | None, body: bytes) -> None:
    for kind in (content_type, FORM[1]):
        with contextlib.suppress(RequestError):
            parse_asked(parse_form(kind, body), SERVICE)


fields = st.tuples(
    st.sampled_from(["service", "scope", "offline_token", "access_type", "client_id", "x"]),
    st.one_of(st.text(max_size=80), st.sampled_from([SERVICE, EVERY, "true", "offline", f"node:{PEER}"])),
)


@given(st.lists(fields, max_size=12))
def test_any_fields_are_understood_or_refused(given_: list[tuple[str, str]]) -> None:
    try:
        asked = parse_asked(given_, SERVICE)
    except RequestError:
        return
    assert asked.service in (SERVICE, f"node:{PEER}")
    assert len({(scope.type, scope.name) for scope in asked.scopes}) == len(asked.scopes)
    assert len(asked.client) <= 60
    assert json.dumps(asked.client).strip('"') == asked.client
