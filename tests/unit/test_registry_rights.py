"""Who may do what at the registry API, through the API: the same answers for what is not there and what may not be
seen, down to the headers."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.tracker_api import AUTHORIZATION, PASSWORD, SERVICE, USER, Registry, keyring, registry
from p2pregistry.trust.access import AccessToken, parse_scopes, sign_access
from tracker.catalog.trail import SYSTEM
from tracker.throttle import Logins, MemoryCounters, Most

REALM = "http://localhost/token"
PUBLIC, PRIVATE, UNKNOWN = "acme/public", "acme/private", "acme/unknown"
ANN, ANNS = "ann", "correct horse"


def basic(name: str, secret: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


def bearer(*scopes: str, subject: str = ANN, **fields: Any) -> tuple[str, str]:
    """An access token for these scopes, as if the token endpoint had given it."""
    values: dict[str, Any] = {"issuer": "i", "audience": SERVICE, "subject": subject, "id": "1", "issued": 1000}
    values |= {"expires": 1300, "access": parse_scopes(scopes), **fields}
    return "Authorization", f"Bearer {sign_access(keyring().signer, AccessToken(**values))}"


def rights_registry(root: Path, **options: Any) -> Any:
    return registry(root, clock=lambda: 1100.0, **options)


async def fill(api: Registry) -> tuple[Digest, Digest]:
    """ann has ann/own; in acme, which is not hers, is a public and a private repository. A blob and a manifest that are
    in all three."""
    await api.accounts.add_user(ANN, ANNS, SYSTEM)
    for name in (PUBLIC, PRIVATE, "ann/own"):
        manifest, _ = await api.push_image(name, "1", b"layer")
    for name in (PRIVATE, "ann/own"):
        await api.catalog.set_visibility(name, True, SYSTEM)
    return Digest.of(b"layer"), manifest


def requests(blob: Digest, manifest: Digest) -> list[tuple[str, str]]:
    """One of each kind, below a repository."""
    upload = "blobs/uploads/5d5bd2ee-28ee-4cd9-b346-4e8a5c6b1ee2"
    return [
        *((method, f"manifests/{ref}") for method in ("GET", "HEAD", "PUT", "DELETE") for ref in ("1", manifest)),
        *((method, f"manifests/{ref}") for method in ("GET", "PUT", "DELETE") for ref in ("none", "md5:0")),
        *((method, f"blobs/{blob}") for method in ("GET", "HEAD", "DELETE")),
        ("GET", "tags/list"),
        ("GET", "tags/list?n=x"),
        ("GET", f"referrers/{manifest}"),
        ("POST", "blobs/uploads/"),
        ("POST", f"blobs/uploads/?digest={blob}"),
        ("POST", f"blobs/uploads/?mount={blob}&from={PUBLIC}"),
        ("POST", f"blobs/uploads/?mount={blob}"),
        *((method, upload) for method in ("GET", "PATCH", "PUT", "DELETE")),
    ]


#: Who may do nothing in acme but pull what is public.
STRANGERS: dict[str, Sequence[tuple[str, str]]] = {
    "nobody": (),
    "empty": [("Authorization", "Basic Og==")],
    "ann": [basic(ANN, ANNS)],
    "ann's token": [bearer("repository:ann/own:pull,push,delete", f"repository:{PUBLIC}:pull")],
    "nobody's token": [bearer(subject="")],
}


@pytest.mark.parametrize("who", STRANGERS)
async def test_what_is_private_is_answered_as_what_is_not_there(tmp_path: Path, who: str) -> None:
    headers = STRANGERS[who]
    async with rights_registry(tmp_path) as api:
        blob, manifest = await fill(api)
        for method, path in requests(blob, manifest):
            private, unknown = [
                await call(api.api, method, f"/v2/{name}/{path}", b"x", headers=headers) for name in (PRIVATE, UNKNOWN)
            ]
            assert private.status == 401, (method, path)
            if method != "HEAD":
                assert private.code == ("UNAUTHORIZED" if who in ("nobody", "empty") else "DENIED")
            assert same(private, PRIVATE) == same(unknown, UNKNOWN), (method, path)
            error = "" if who in ("nobody", "empty") else ',error="insufficient_scope"'
            assert private.headers["www-authenticate"].startswith(f'Bearer realm="{REALM}",service="{SERVICE}",scope="')
            assert private.headers["www-authenticate"].endswith(f'"{error}')
        assert await api.catalog.sessions.count() == 0


def same(answer: Answer, name: str) -> tuple[object, ...]:
    """An answer without the name of the repository that was asked for."""
    return answer.status, [(key, value.replace(name, "?")) for key, value in answer.lines], answer.body


@pytest.mark.parametrize("who", STRANGERS)
async def test_what_is_public_is_pulled_by_all_and_pushed_by_none(tmp_path: Path, who: str) -> None:
    headers = STRANGERS[who]
    async with rights_registry(tmp_path) as api:
        blob, manifest = await fill(api)
        for method, path in requests(blob, manifest):
            answer = await call(api.api, method, f"/v2/{PUBLIC}/{path}", b"x", headers=headers)
            reading = method in ("GET", "HEAD") and "uploads" not in path
            allowed = reading and who != "nobody's token"  # a token is good for what it lists
            assert (answer.status != 401) == allowed, (method, path, answer)


@pytest.mark.parametrize("who", ["ann", "token"])
async def test_the_owner_may_do_all_in_his_own(tmp_path: Path, who: str) -> None:
    headers = [basic(ANN, ANNS) if who == "ann" else bearer("repository:ann/own:pull,push,delete", account=2)]
    async with rights_registry(tmp_path) as api:
        blob, manifest = await fill(api)
        for method, path in requests(blob, manifest):
            answer = await call(api.api, method, f"/v2/ann/own/{path}", b"x", headers=headers)
            assert answer.status not in (401, 403), (method, path, answer)
        answer = await call(api.api, "GET", "/v2/ann/nothing/tags/list", headers=headers)
        assert answer.status == (404 if who == "ann" else 401)
        by = {by for by, _, name in api.catalog.written if name == "ann/own" and by.actor != USER}
        assert {(one.actor, one.account_id) for one in by} == {(ANN, 2), ("system", None)}


async def test_scopes_are_checked_one_by_one(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        blob, manifest = await fill(api)
        actions = ("pull", "push", "delete")
        for chosen in itertools.chain.from_iterable(itertools.combinations(actions, n) for n in (1, 2, 3)):
            headers = [bearer(f"repository:{PRIVATE}:{','.join(chosen)}")]
            for action, (method, path) in (
                ("pull", ("GET", "manifests/1")),
                ("pull", ("GET", f"referrers/{manifest}")),
                ("push", ("POST", "blobs/uploads/")),
                ("delete", ("DELETE", f"blobs/{blob}")),
            ):
                answer = await call(api.api, method, f"/v2/{PRIVATE}/{path}", headers=headers)
                assert (answer.status != 401) == (action in chosen)
                if answer.status == 401:
                    wanted = "pull,push" if action == "push" else action
                    assert answer.headers["www-authenticate"] == (
                        f'Bearer realm="{REALM}",service="{SERVICE}",scope="repository:{PRIVATE}:{wanted}",'
                        'error="insufficient_scope"'
                    )


async def test_challenges_name_what_is_needed(tmp_path: Path) -> None:
    async with rights_registry(tmp_path, public_url="https://registry.example.com/") as api:
        for method, target, scope in (
            ("GET", "/v2/", ""),
            ("GET", "/v2/_catalog", ""),
            ("GET", "/v2/a/b/tags/list", "repository:a/b:pull"),
            ("PUT", "/v2/a/manifests/x", "repository:a:pull,push"),
            ("DELETE", "/v2/a/manifests/x", "repository:a:delete"),
            ("POST", "/v2/a/blobs/uploads/?mount=sha256:x&from=b", "repository:a:pull,push repository:b:pull"),
            ("POST", "/v2/a/blobs/uploads/?mount=sha256:x&from=B", "repository:a:pull,push"),
            ("POST", "/v2/a/blobs/uploads/?from=b", "repository:a:pull,push"),
        ):
            answer = await call(api.api, method, target)
            if target == "/v2/_catalog":
                assert answer.json() == {"repositories": []}
                continue
            part = f',scope="{scope}"' if scope else ""
            assert answer.headers["www-authenticate"] == (
                f'Bearer realm="https://registry.example.com/token",service="{SERVICE}"{part}'
            )


@pytest.mark.parametrize(
    ("host", "realm"),
    [
        ("r.example:5000", "http://r.example:5000/token"),
        ("[::1]:5000", "http://[::1]:5000/token"),
        ('x",error="y', REALM),
        ("", REALM),
    ],
)
async def test_the_realm_is_where_the_client_found_us(tmp_path: Path, host: str, realm: str) -> None:
    async with rights_registry(tmp_path) as api:
        answer = await call(api.api, "GET", "/v2/", headers=[("Host", host)])
        assert answer.headers["www-authenticate"] == f'Bearer realm="{realm}",service="{SERVICE}"'


async def test_the_ping_always_challenges(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        for headers in ((), [("Authorization", "Basic Og==")]):
            ping = await call(api.api, "GET", "/v2/", headers=headers)
            assert (ping.status, ping.code) == (401, "UNAUTHORIZED")
            assert ping.headers["docker-distribution-api-version"] == "registry/2.0"
        for header in (AUTHORIZATION, bearer(), bearer(subject="")):
            assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 200


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !!!",
        "Basic cHVzaGVyOng=",
        "Basic cHVzaGVyOmE=",
        "Basic cHVzaGVy",
        "Digest x",
        "",
        AUTHORIZATION[1][:-4] + "====",
        AUTHORIZATION[1] + "\u00e9",
        basic("", PASSWORD)[1],
        basic(USER, "")[1],
        basic(USER.upper(), PASSWORD)[1],
        basic(USER, PASSWORD + "x")[1],
        basic("nobody", PASSWORD)[1],
    ],
)
async def test_wrong_credentials_are_refused_everywhere(tmp_path: Path, value: str) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        for method, target in (
            ("GET", "/v2/"),
            ("GET", "/v2/nonsense"),
            ("GET", f"/v2/{PUBLIC}/manifests/1"),
            ("POST", f"/v2/{PUBLIC}/blobs/uploads/"),
        ):
            answer = await call(api.api, method, target, headers=[("Authorization", value)])
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
            assert "error=" not in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer x.y.z"),
        ("Authorization", "Bearer"),
        ("Authorization", bearer(f"repository:{PUBLIC}:pull")[1][:-3] + "AAA"),
        bearer(f"repository:{PUBLIC}:pull", expires=1090),
        bearer(f"repository:{PUBLIC}:pull", issued=1200, expires=1500),
        bearer(f"repository:{PUBLIC}:pull", audience="another"),
        bearer(f"repository:{PUBLIC}:pull", audience="node:12D3KooW"),
    ],
)
async def test_what_is_wrong_with_a_token_is_said_so_that_clients_get_another(
    tmp_path: Path, header: tuple[str, str]
) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        answer = await call(api.api, "GET", f"/v2/{PUBLIC}/manifests/1", headers=[header])
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == (
            f'Bearer realm="{REALM}",service="{SERVICE}",scope="repository:{PUBLIC}:pull",error="invalid_token"'
        )
        assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 401


async def test_a_token_that_was_good_expires(tmp_path: Path) -> None:
    now = [1100.0]
    async with registry(tmp_path, clock=lambda: now[0]) as api:
        header = bearer()
        assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 200
        assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 200
        now[0] = 1306.0
        answer = await call(api.api, "GET", "/v2/", headers=[header])
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_secrets_of_another_kind_are_no_credentials(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        identity = await api.accounts.identity_of(ANN)
        assert identity is not None
        refresh = await api.accounts.add_refresh(identity, "docker", SYSTEM)
        personal = (await api.accounts.add_token("personal", ANN, "laptop", SYSTEM)).secret
        access = bearer()[1].removeprefix("Bearer ")
        for header in (
            basic(ANN, refresh), basic("", refresh), basic(ANN, access), ("Authorization", f"Bearer {refresh}"),
            ("Authorization", f"Bearer {personal}"),
        ):  # fmt: skip
            assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 401
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, personal)])).status == 200


async def test_pulling_can_be_closed_to_strangers(tmp_path: Path) -> None:
    async with rights_registry(tmp_path, anonymous_pull=False) as api:
        await fill(api)
        for name in (PUBLIC, UNKNOWN):
            answer = await call(api.api, "GET", f"/v2/{name}/manifests/1")
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert (await call(api.api, "GET", "/v2/_catalog")).status == 401
        ann = [basic(ANN, ANNS)]
        assert (await call(api.api, "GET", f"/v2/{PUBLIC}/manifests/1", headers=ann)).status == 200
        assert (await call(api.api, "GET", f"/v2/{PRIVATE}/manifests/1", headers=ann)).status == 401


async def test_the_catalogue_shows_each_what_he_may_pull(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        robot = await api.accounts.add_token(
            "robot", ANN, "ci", SYSTEM, scopes=["repository:ann/other:pull"], lifetime=None
        )
        await api.accounts.add_organization("acme", USER, SYSTEM)
        acmes = await api.accounts.add_token("robot", "acme", "ci", SYSTEM, scopes=["repository:acme/p*:pull"])
        account, organization = await api.accounts.identity_of(ANN), await api.accounts.account("acme")
        assert account is not None
        assert organization is not None
        catalog, number = "registry:catalog:*", account.account_id
        for header, seen in (
            (None, [PUBLIC]),
            (AUTHORIZATION, [PRIVATE, PUBLIC, "ann/own"]),
            (basic(ANN, ANNS), [PUBLIC, "ann/own"]),
            (basic("anything", robot.secret), [PUBLIC]),
            (basic("anything", acmes.secret), [PRIVATE, PUBLIC]),
            (
                bearer(catalog, subject="acme+ci", account=organization.id, within=acmes.token.scopes),
                [PRIVATE, PUBLIC],
            ),
            (bearer(catalog, account=number), [PUBLIC, "ann/own"]),
            (bearer(catalog, account=number, within=parse_scopes(["repository:ann/x:pull"])), [PUBLIC]),
            (bearer(catalog, account=number + 99), [PUBLIC]),
            (bearer(catalog, subject=""), [PUBLIC]),
        ):
            answer = await call(api.api, "GET", "/v2/_catalog", headers=[header] if header else [])
            assert answer.json() == {"repositories": seen}, header
        answer = await call(api.api, "GET", "/v2/_catalog", headers=[bearer(f"repository:{PUBLIC}:pull")])
        assert (answer.status, answer.code) == (401, "DENIED")
        assert 'scope="registry:catalog:*",error="insufficient_scope"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("source", [f"&from={PRIVATE}", f"&from={UNKNOWN}", ""])
async def test_nothing_is_mounted_that_may_not_be_pulled(tmp_path: Path, source: str) -> None:
    async with rights_registry(tmp_path) as api:
        await api.accounts.add_user(ANN, ANNS, SYSTEM)
        secret = await api.push_blob(PRIVATE, b"secret")
        await api.catalog.set_visibility(PRIVATE, True, SYSTEM)
        target = f"/v2/ann/own/blobs/uploads/?mount={secret}{source}"
        mine = "repository:ann/own:pull,push"
        for header in (basic(ANN, ANNS), bearer(mine), bearer(mine, f"repository:{UNKNOWN}:pull")):
            answer = await call(api.api, "POST", target, headers=[header])
            assert answer.status == 202, "as if it were not there"
            assert sorted(answer.headers) == sorted(
                ["location", "range", "docker-upload-uuid", "docker-distribution-api-version"]
            )
        if UNKNOWN not in source:
            both = bearer(mine, f"repository:{PRIVATE}:pull")
            assert (await call(api.api, "POST", target, headers=[both])).status == 201
        await api.push_blob(PUBLIC, b"open")
        target = f"/v2/ann/own/blobs/uploads/?mount={Digest.of(b'open')}"
        for header in (basic(ANN, ANNS), bearer(mine)):
            assert (await call(api.api, "POST", target, headers=[header])).status == 201


async def test_a_manifest_takes_no_blob_from_elsewhere(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        body = (await call(api.api, "GET", f"/v2/{PUBLIC}/manifests/1")).body
        headers = [basic(ANN, ANNS), ("Content-Type", OCI_MANIFEST)]
        answer = await call(api.api, "PUT", "/v2/ann/new/manifests/1", body, headers=headers)
        assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")


async def test_a_password_that_was_changed_is_wrong_at_once(tmp_path: Path) -> None:
    async with rights_registry(tmp_path) as api:
        await fill(api)
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, ANNS)])).status == 200
        await api.accounts.set_password(ANN, "something else", SYSTEM)
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, ANNS)])).status == 401
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, "something else")])).status == 200
        token = await api.accounts.add_token("personal", ANN, "x", SYSTEM)
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, token.secret)])).status == 200
        await api.accounts.revoke_token(ANN, token.token.id, SYSTEM)
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, token.secret)])).status == 401


async def test_guessing_stops_the_guesser_and_neither_the_owner_nor_his_robots(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    logins = Logins(MemoryCounters(), most=Most(pair=5, address=8, account=12))
    async with rights_registry(tmp_path, logins=logins) as api:
        await fill(api)
        token = (await api.accounts.add_token("personal", ANN, "x", SYSTEM)).secret
        await api.accounts.add_user("bob", "another one", SYSTEM)
        assert (await call(api.api, "GET", "/v2/", headers=[basic(ANN, ANNS)])).status == 200
        seen = [(await call(api.api, "GET", "/v2/", headers=[basic(ANN, f"guess {n}")])).status for n in range(8)]
        assert seen == [401] * 5 + [429] * 3
        for n in range(6):
            await call(api.api, "GET", "/v2/", headers=[basic(f"user{n}", "x")])
        assert (await call(api.api, "GET", "/v2/", headers=[basic("bob", "another one")])).status == 429
        for header in (basic(ANN, ANNS), basic(ANN, token), AUTHORIZATION, bearer()):
            assert (await call(api.api, "GET", "/v2/", headers=[header])).status == 200
        mock_clock.jump(61)
        assert (await call(api.api, "GET", "/v2/", headers=[basic("bob", "another one")])).status == 200


async def test_of_one_address_few_passwords_are_looked_at_at_once(tmp_path: Path) -> None:
    logins = Logins(MemoryCounters(), most=Most(pair=2, address=100, account=100))
    async with rights_registry(tmp_path, logins=logins) as api:
        await fill(api)
        seen: list[int] = []

        async def guess() -> None:
            seen.append((await call(api.api, "GET", "/v2/", headers=[basic(ANN, "guess")])).status)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(guess)
        assert sorted(seen)[:2] == [401, 401]
        assert seen.count(401) <= 2
        assert seen.count(429) >= 28
