"""Who really asks, request ids, and the access log."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import NotFound
from p2pregistry.observe import configure_logging
from p2pregistry.serve.http import Request, Response, Stream
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
