"""Identity tokens: whose count, and that nothing else does."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import RSAKey

from p2pregistry.errors import LocalError, RemoteError, RequestError, Unreachable
from p2pregistry.testing.issuer import AUDIENCE, NAME, SUBJECT, Issuer, issuing
from tracker.oidc import FRESH, PAUSE, IdTokens, Rules, from_file, from_url, parse_keys

NOW = 1_800_000_000.0
RULES = Rules(NAME, AUDIENCE, ("system:serviceaccount:kube-system:p2pregistry*",))

_PUBLISHER = Issuer()
_PUBLISHER.add("first")
KEYS = _PUBLISHER.key_set()


class Bench:
    """An issuer that is asked in memory, and who verifies its tokens."""

    def __init__(self) -> None:
        self.issuer = Issuer()
        self.issuer.add("first")
        self.fetched = 0
        self.fails = False
        self.tokens = IdTokens(RULES, self.fetch, lambda: NOW)

    async def fetch(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.fetched += 1
        if self.fails:
            raise Unreachable("it is away")
        return self.issuer.key_set()

    async def refusal(self, token: str) -> str:
        with pytest.raises(RequestError) as caught:
            await self.tokens.subject(token)
        assert (caught.value.code, caught.value.status) == ("DENIED", 403)
        assert caught.value.__cause__ is None
        return caught.value.message


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
async def test_a_good_token_says_who_it_is(bench: Bench, alg: str) -> None:
    bench.issuer.add("first", alg)
    assert await bench.tokens.subject(bench.issuer.token(NOW, alg=alg)) == SUBJECT
    assert await bench.tokens.subject(bench.issuer.token(NOW, alg=alg, aud=AUDIENCE, nbf=None)) == SUBJECT
    assert bench.fetched == 1


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://elsewhere"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": ["https://kubernetes.default.svc"]}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": "p2pregistry-else"}, "audience"),
        ({"exp": int(NOW) - 61}, "expired"),
        ({"exp": None}, "expired"),
        ({"nbf": int(NOW) + 61}, "not valid yet"),
        ({"exp": "tomorrow"}, "no number"),
        ({"sub": None}, "whose"),
        ({"sub": "system:serviceaccount:default:p2pregistry"}, "oidc.subjects"),
        ({"sub": "system:serviceaccount:kube-system:other"}, "oidc.subjects"),
    ],
)
async def test_a_token_that_says_something_else_is_refused(bench: Bench, claims: dict[str, Any], why: str) -> None:
    assert why in await bench.refusal(bench.issuer.token(NOW, **claims))


async def test_clocks_may_differ_by_a_minute(bench: Bench) -> None:
    assert await bench.tokens.subject(bench.issuer.token(NOW, exp=int(NOW) - 30, nbf=int(NOW) + 30)) == SUBJECT


def text(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


async def test_other_ways_of_signing_are_refused(bench: Bench) -> None:
    payload = bench.issuer.token(NOW).split(".")[1]
    public = bench.issuer.keys["first"].as_pem(private=False)
    for alg, why in (("none", "not accepted"), ("HS256", "not accepted"), ("RS256", "not signed"), ("ES256", "signed")):
        signed = f"{text({'alg': alg, 'kid': 'first'})}.{payload}"
        mac = base64.urlsafe_b64encode(hmac.digest(public, signed.encode(), "sha256")).decode().rstrip("=")
        assert why in await bench.refusal(f"{signed}.{mac}")
        assert why in await bench.refusal(f"{signed}.")
    assert "not accepted" in await bench.refusal(bench.issuer.token(NOW, alg="PS256"))


async def test_a_changed_token_or_one_of_another_key_is_refused(bench: Bench) -> None:
    head, payload, signature = bench.issuer.token(NOW).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert "not signed" in await bench.refusal(f"{head}.{text({**claims, 'sub': SUBJECT + '2'})}.{signature}")
    stranger = RSAKey.generate_key(2048, {"kid": "first"})
    assert "not signed" in await bench.refusal(jwt.encode({"alg": "RS256", "kid": "first"}, claims, stranger))


async def test_an_unknown_key_is_asked_for_but_not_again_and_again(bench: Bench, autojump_clock: object) -> None:
    await bench.tokens.subject(bench.issuer.token(NOW))
    bench.issuer.add("second")
    token = bench.issuer.token(NOW, key="second")
    for _ in range(5):
        assert "does not publish" in await bench.refusal(token)
    assert bench.fetched == 1
    await trio.sleep(PAUSE)
    assert await bench.tokens.subject(token) == SUBJECT
    assert bench.fetched == 2


async def test_many_at_once_ask_once(bench: Bench) -> None:
    token = bench.issuer.token(NOW)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(bench.tokens.subject, token)
    assert bench.fetched == 1


async def test_a_key_that_is_published_no_more_stops_counting(bench: Bench, autojump_clock: object) -> None:
    token = bench.issuer.token(NOW)
    await bench.tokens.subject(token)
    bench.issuer.keys.clear()
    bench.issuer.add("second")
    await trio.sleep(FRESH + 1)
    assert "does not publish" in await bench.refusal(token)


async def test_while_the_issuer_is_away_its_known_keys_count(bench: Bench, autojump_clock: object) -> None:
    bench.fails = True
    token = bench.issuer.token(NOW)
    with pytest.raises(RemoteError, match="cannot be had"):
        await bench.tokens.subject(token)
    bench.fails = False
    await trio.sleep(PAUSE)
    assert await bench.tokens.subject(token) == SUBJECT
    bench.fails = True
    await trio.sleep(FRESH + 1)
    assert await bench.tokens.subject(token) == SUBJECT


def test_keys_that_cannot_sign_for_us_are_left_out() -> None:
    issuer = Issuer()
    issuer.add("first")
    listed = json.loads(issuer.key_set())["keys"]
    small = {**listed[0], "kid": "small", "n": listed[0]["n"][:171]}
    others = [
        small,
        {"kty": "oct", "kid": "o", "k": "AAAA"},
        {"kty": "new", "kid": "n"},
        {"kty": "RSA", "kid": "broken"},
        {**listed[0], "kid": "enc", "use": "enc"},
        {**listed[0], "kid": None},
        7,
    ]
    assert list(parse_keys(json.dumps({"keys": [*others, *listed]}).encode())) == ["first"]


@given(
    st.one_of(
        st.binary(),
        st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps({"keys": v}).encode()),
    )
)
def test_any_key_set_is_read_or_refused(data: bytes) -> None:
    """Parses or raises RemoteError."""
    with contextlib.suppress(RemoteError):
        parse_keys(data)


@given(st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_any_token_is_refused(token: str) -> None:
    """Is refused (DENIED), whatever it is."""

    async def fetch() -> bytes:
        return KEYS

    async def run() -> None:
        with pytest.raises(RequestError):
            await IdTokens(RULES, fetch, lambda: NOW).subject(token)

    trio.run(run)


async def test_keys_come_over_https_with_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("bearer-secret\n")
    with issuing(tmp_path) as issuer:
        context = ssl.create_default_context(cafile=str(tmp_path / "issuer.pem"))
        tokens = IdTokens(RULES, from_url(issuer.url, context, tmp_path / "token"), time.time)
        assert await tokens.subject(issuer.token(time.time())) == SUBJECT
        assert issuer.requests[0]["Authorization"] == "Bearer bearer-secret"
        with pytest.raises(Unreachable):
            await from_url(issuer.url, ssl.create_default_context(), None)()


async def test_keys_come_from_a_file(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.add("first")
    (tmp_path / "jwks").write_bytes(issuer.key_set())
    assert await IdTokens(RULES, from_file(tmp_path / "jwks"), lambda: NOW).subject(issuer.token(NOW)) == SUBJECT
    with pytest.raises(LocalError):
        await from_file(tmp_path / "none")()
