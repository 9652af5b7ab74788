"""Who really asks, request ids, and the access log."""

from __future__ import annotations

import ipaddress
import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import NotFound
from p2pregistry.observe import configure_logging
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.serve.turnstile import Turnstile, network_of
from p2pregistry.testing.handlers import ScriptedBody
from tracker.face import Face, client_of

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.7, unknown"], "10.0.0.1"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_what_a_proxy_says_counts_only_if_it_is_ours(peer: str, forwarded: list[str], client: str) -> None:
    assert client_of(peer, forwarded, PROXIES) == client


@given(st.lists(st.text()))
def test_any_header_gives_an_address(forwarded: list[str]) -> None:
    ipaddress.ip_address(client_of("10.0.0.1", forwarded, PROXIES))


@given(st.lists(st.ip_addresses().map(str), max_size=5))
def test_a_client_cannot_say_who_it_is(claims: list[str]) -> None:
    assert client_of("10.0.0.1", [", ".join([*claims, "198.51.100.7"])], PROXIES) == "198.51.100.7"


def request(peer: str = "192.0.2.1", *headers: tuple[str, str], target: str = "/v2/?secret=x") -> Request:
    return Request("GET", target, headers, ScriptedBody([]), peer)


async def ok(_request: Request) -> Response:
    return Response(200, [], b"body")


async def test_each_request_has_an_id_which_only_a_proxy_may_choose() -> None:
    numbers = iter(["one", "two", "three"])
    face = Face(ok, listener="registry", trusted=PROXIES, number=lambda: next(numbers), access_log=False)
    chosen = ("x-request-id", "abc-123")
    assert ("X-Request-Id", "one") in (await face(request("192.0.2.1", chosen))).headers
    assert ("X-Request-Id", "abc-123") in (await face(request("10.0.0.1", chosen))).headers
    assert ("X-Request-Id", "two") in (await face(request("10.0.0.1", ("x-request-id", "a\nb" * 40)))).headers


async def test_a_refusal_is_an_answer_with_an_id() -> None:
    async def refuse(_request: Request) -> Response:
        raise NotFound("NAME_UNKNOWN", "no")

    response = await Face(refuse, listener="registry", access_log=False)(request())
    assert response.status == 404
    assert dict(response.headers)["X-Request-Id"]


async def test_the_access_log_has_what_happened_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(True, "info")

    async def named(asked: Request) -> Response:
        asked.account = "pusher"
        return await ok(asked)

    face = Face(named, listener="registry", trusted=PROXIES, number=lambda: "n1")
    headers = [("authorization", "Basic c2VjcmV0"), ("user-agent", "docker/28.2"), ("x-forwarded-for", "198.51.100.7")]
    await face(request("10.0.0.1", *headers))
    said = capsys.readouterr().err
    line = json.loads(said)
    wanted = {"id": "n1", "client": "198.51.100.7", "account": "pusher", "method": "GET", "path": "/v2/", "status": 200}
    assert wanted.items() <= line.items()
    assert (line["bytes"], line["agent"]) == (4, "docker/28.2")
    assert "c2VjcmV0" not in said
    assert "secret" not in said


async def test_who_asks_too_often_is_told_to_wait(autojump_clock: trio.abc.Clock) -> None:
    face = Face(ok, listener="registry", access_log=False, per_address=Turnstile(1, 2), trusted=PROXIES)
    statuses = [(await face(request())).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = await face(request())
    assert dict(refused.headers)["Retry-After"] == "1"
    assert b"TOOMANYREQUESTS" in bytes(refused.body)  # type: ignore[arg-type]
    forwarded = ("x-forwarded-for", "192.0.2.9")
    assert (await face(request("10.0.0.1", forwarded))).status == 200, "each client behind a proxy for itself"
    await trio.sleep(1)
    assert (await face(request())).status == 200


async def test_an_account_is_counted_wherever_it_comes_from(autojump_clock: trio.abc.Clock) -> None:
    async def named(asked: Request) -> Response:
        asked.account = "pusher" if asked.header("authorization") == "Bearer good" else ""
        return await ok(asked)

    face = Face(named, listener="registry", access_log=False, per_account=Turnstile(1, 2))
    good, bad = ("authorization", "Bearer good"), ("authorization", "Bearer bad")
    statuses = [(await face(request(f"192.0.2.{number}", good))).status for number in range(5)]
    assert statuses == [200, 200, 200, 429, 429], "the first one had yet to be looked at"
    assert {(await face(request("192.0.2.1", bad))).status for _ in range(5)} == {200}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_what_counts_as_one_client(address: str, network: str) -> None:
    assert network_of(address) == network


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 3)), max_size=200))
def test_nobody_gets_more_than_the_burst_and_the_rate(asked: list[tuple[str, float]]) -> None:
    turnstile, now = Turnstile(2, 4, keys=3), 0.0
    admitted: list[tuple[str, float]] = []
    for key, pause in asked:
        now += pause
        if not turnstile.wait(key, now):
            admitted.append((key, now))
    if len({key for key, _ in asked}) <= 3:  # who is forgotten begins anew
        for key in {key for key, _ in admitted}:
            times = [at for other, at in admitted if other == key]
            assert len(times) <= 4 + 2 * (times[-1] - times[0]) + 1.5


async def test_browsers_are_told_to_do_nothing_with_an_answer() -> None:
    async def page(_request: Request) -> Response:
        return Response(200, [("Content-Security-Policy", "default-src 'self'")], b"page")

    async def refuse(_request: Request) -> Response:
        raise NotFound("NAME_UNKNOWN", "no")

    for handler, policy in ((ok, "default-src 'none'"), (refuse, "default-src 'none'"), (page, "default-src 'self'")):
        asked = request()
        headers = (await Face(handler, listener="registry", access_log=False)(asked)).headers
        names = [name.lower() for name, _ in headers]
        assert len(names) == len(set(names)), "none is there twice"
        found = {name.lower(): value for name, value in headers}
        assert found["x-content-type-options"] == "nosniff"
        assert found["content-security-policy"] == policy
        assert found["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in found
        asked.scheme = "https"
        headers = (await Face(handler, listener="registry", access_log=False)(asked)).headers
        assert dict(headers)["Strict-Transport-Security"].startswith("max-age=")


async def test_bytes_of_a_stream_are_those_that_went_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(True, "info")

    async def chunks() -> object:
        yield b""

    counted: list[int] = []

    async def stream(_request: Request) -> Response:
        return Response(200, [], Stream(chunks(), 100, sent=counted.append))  # type: ignore[arg-type]

    response = await Face(stream, listener="peer")(request())
    assert capsys.readouterr().err == ""
    assert isinstance(response.body, Stream)
    assert response.body.sent is not None
    response.body.sent(60)  # the client went away
    assert counted == [60]
    assert json.loads(capsys.readouterr().err)["bytes"] == 60
