"""The client of registries: tokens, passwords, refusals, answers that break off, and what is never sent where."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import (
    BadContent,
    NotFound,
    RegistryError,
    RemoteBusy,
    RequestError,
    SettingsError,
    Unreachable,
)
from p2pregistry.image.credentials import Credentials
from p2pregistry.image.names import parse_image
from p2pregistry.image.registry import Registry

BODY = b"some bytes of a blob"
DIGEST = Digest.of(BODY)
ROOT = cid_text(DIGEST.cid())
ANN = Credentials("ann", "the-password-of-pusher")
BASIC = "Basic " + base64.b64encode(b"ann:the-password-of-pusher").decode()
BEARER = 'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull"'

Answer = Callable[[httpx.Request], httpx.Response]


def registry(answer: Answer, credentials: Credentials | None = None, name: str = "r.example/a/b:1") -> Registry:
    return Registry(parse_image(name), credentials, transport=httpx.MockTransport(answer))


class Sent(httpx.SyncByteStream):
    """A body as it comes from a socket; ``broken``: then the connection breaks off."""

    def __init__(self, data: bytes, *, broken: bool = False) -> None:
        self.data, self.broken = data, broken

    def __iter__(self) -> Iterator[bytes]:
        if self.data:
            yield self.data
        if self.broken:
            raise httpx.ReadError("gone")


def token_registry(seen: list[httpx.Request], *, token: str = "right") -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.host == "auth.example":
            return httpx.Response(200, json={"access_token": token})
        if request.headers.get("authorization") != "Bearer right":
            return httpx.Response(401, headers=[("WWW-Authenticate", "Unknown x"), ("WWW-Authenticate", BEARER)])
        return httpx.Response(
            200, headers={"X-Ipfs-Roots": ROOT}, stream=Sent(b"" if request.method == "HEAD" else BODY)
        )

    return answer


def test_a_token_is_fetched_once_and_anonymously() -> None:
    seen: list[httpx.Request] = []
    with registry(token_registry(seen)) as client:
        assert b"".join(client.blob(DIGEST)) == BODY
        assert client.root(DIGEST) == DIGEST.cid()
    assert [request.url.host for request in seen] == ["r.example", "auth.example", "r.example", "r.example"]
    assert dict(seen[1].url.params) == {"service": "r.example", "scope": "repository:a/b:pull"}
    assert "authorization" not in seen[1].headers


def test_the_password_goes_to_the_place_of_tokens_alone() -> None:
    seen: list[httpx.Request] = []
    with registry(token_registry(seen), ANN) as client:
        assert client.manifest("1").body == BODY
    assert [request.headers.get("authorization") for request in seen] == [None, BASIC, "Bearer right"]


def test_a_refresh_token_is_posted() -> None:
    seen: list[httpx.Request] = []
    with registry(token_registry(seen), Credentials("ann", refresh="a/refresh")) as client:
        client.root(DIGEST)
    assert seen[1].method == "POST"
    assert b"grant_type=refresh_token&refresh_token=a%2Frefresh" in seen[1].content


def test_a_password_is_shown_where_one_is_asked_for() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        right = request.headers.get("authorization") == BASIC
        return httpx.Response(200 if right else 401, headers={"WWW-Authenticate": "Basic realm=x"})

    with registry(answer, ANN) as client:
        assert client.root(DIGEST) is None
    with registry(answer) as client, pytest.raises(RequestError, match="--username"):
        client.root(DIGEST)


def test_no_password_in_the_clear_to_another_place() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "r.example", "asked in the clear"
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://auth.example/token"'})

    with registry(answer, ANN) as client, pytest.raises(RequestError, match="in the clear"):
        client.root(DIGEST)


def test_tokens_that_are_none_or_not_good() -> None:
    with registry(token_registry([], token="wrong")) as client, pytest.raises(RequestError, match="does not give"):
        client.root(DIGEST)

    def refuses(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example":
            return httpx.Response(403)
        return httpx.Response(401, headers={"WWW-Authenticate": BEARER})

    with registry(refuses) as client, pytest.raises(RequestError, match="gives no token"):
        client.root(DIGEST)

    for document in (b"[]", b"{}", b"no", b'{"token": "\xc3\xa9"}', b'"x"'):

        def nonsense(request: httpx.Request, document: bytes = document) -> httpx.Response:
            if request.url.host == "auth.example":
                return httpx.Response(200, content=document)
            return httpx.Response(401, headers={"WWW-Authenticate": BEARER})

        with registry(nonsense) as client, pytest.raises(BadContent, match="cannot be read"):
            client.root(DIGEST)


def test_a_registry_that_wants_tls_is_told_from_one_that_is_broken() -> None:
    name = parse_image("localhost:7443/a/b:1")
    transport = httpx.MockTransport(lambda _: httpx.Response(400))
    with Registry(name, None, plain=True, transport=transport) as client, pytest.raises(Unreachable, match="--tls"):
        client.manifest("1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (403, RequestError), (401, RequestError), (429, RemoteBusy), (500, Unreachable)],
)
def test_refusals_say_who_and_what(status: int, kind: type[RegistryError]) -> None:
    with (
        registry(lambda _: httpx.Response(status)) as client,
        pytest.raises(kind, match=r"r\.example .*a/b manifest 1"),
    ):
        client.manifest("1")


def test_the_manifest_is_that_of_the_digest() -> None:
    with registry(lambda _: httpx.Response(200, stream=Sent(BODY))) as client:
        assert client.manifest(DIGEST).digest == DIGEST
        with pytest.raises(BadContent, match="something else"):
            client.manifest(Digest.of(b"other"))
    with (
        registry(lambda _: httpx.Response(200, stream=Sent(bytes((8 << 20) + 1)))) as client,
        pytest.raises(BadContent),
    ):
        client.manifest("1")
    with registry(lambda _: httpx.Response(200, stream=Sent(b"x", broken=True))) as client, pytest.raises(Unreachable):
        client.manifest("1")


def test_a_stated_root_that_is_none() -> None:
    answer = httpx.Response(200, headers={"X-Ipfs-Roots": "Qm, bafy"})
    with registry(lambda _: answer) as client, pytest.raises(BadContent, match="root CID that is none"):
        client.root(DIGEST)


def test_an_answer_that_breaks_off_is_taken_up() -> None:
    ranges: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("range")
        ranges.append(asked)
        if asked is None:
            return httpx.Response(200, stream=Sent(BODY[:5], broken=True))
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"}
        if start == 5:
            return httpx.Response(206, headers=headers, stream=Sent(BODY[5:9], broken=True))
        return httpx.Response(206, headers=headers, stream=Sent(BODY[start:]))

    with registry(answer) as client:
        assert b"".join(client.blob(DIGEST)) == BODY
    assert ranges == [None, "bytes=5-", "bytes=9-"]


@pytest.mark.parametrize("way", ["from-the-start", "nothing-more"])
def test_one_that_does_not_go_on_is_an_end(way: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if way == "from-the-start" or "range" not in request.headers:
            return httpx.Response(200, stream=Sent(BODY[:5], broken=True))
        return httpx.Response(206, headers={"Content-Range": "bytes 5-9/20"}, stream=Sent(b"", broken=True))

    with registry(answer) as client, pytest.raises(Unreachable):
        b"".join(client.blob(DIGEST))


def test_a_redirect_to_another_host_gets_no_credentials() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.host == "r.example":
            if "authorization" not in request.headers:
                return httpx.Response(401, headers={"WWW-Authenticate": "Basic"})
            return httpx.Response(307, headers={"Location": "https://store.example/x"})
        return httpx.Response(200, stream=Sent(BODY))

    with registry(answer, ANN) as client:
        assert b"".join(client.blob(DIGEST)) == BODY
    assert seen[-1].url.host == "store.example"
    assert "authorization" not in seen[-1].headers


@pytest.mark.parametrize(
    "credentials", [ANN, Credentials("ann", refresh="a-refresh-token")], ids=["password", "refresh"]
)
def test_who_a_redirect_leads_to_names_no_place_for_credentials(credentials: Credentials) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        match request.url.host:
            case "r.example":
                return httpx.Response(307, headers={"Location": "https://files.example/blob"})
            case "files.example":
                return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="https://thief.example/token"'})
            case _:
                return httpx.Response(200, json={"token": "a-token"})

    with registry(answer, credentials) as client, pytest.raises(RequestError, match="401"):
        list(client.blob(DIGEST))
    assert [request.url.host for request in seen] == ["r.example", "files.example"]


def test_an_endless_answer_for_a_token_is_not_read_to_its_end() -> None:
    read = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal read
            for _ in range(100):
                read += 1 << 20
                yield bytes(1 << 20)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example":
            return httpx.Response(200, stream=Endless())
        return httpx.Response(401, headers={"WWW-Authenticate": BEARER})

    with registry(answer, ANN) as client, pytest.raises(BadContent, match="token"):
        client.root(DIGEST)
    assert read <= 4 << 20


def test_a_host_that_is_not_there_and_certificates_that_are_none(tmp_path: Path) -> None:
    with (
        Registry(parse_image("localhost:1/a/b"), plain=True) as client,
        pytest.raises(Unreachable, match="localhost:1"),
    ):
        client.manifest("1")
    for ca in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").write_text("nothing")
        with pytest.raises(SettingsError, match="--ca-file"):
            Registry(parse_image("r.example/a"), ca=ca)
