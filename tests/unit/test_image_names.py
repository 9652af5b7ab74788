"""Names of images, challenges of registries and the files of container clients: read, or refused in our own words."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.image.credentials import Challenge, Credentials, from_config, parse_challenge
from p2pregistry.image.names import parse_image

DIGEST = Digest.of(b"an image")


@pytest.mark.parametrize(
    ("text", "whole", "server", "loopback"),
    [
        ("acme/api", "localhost:5000/acme/api:latest", "localhost:5000", True),
        ("acme/api:1.4", "localhost:5000/acme/api:1.4", "localhost:5000", True),
        (f"acme/api@{DIGEST}", f"localhost:5000/acme/api@{DIGEST}", "localhost:5000", True),
        (f"acme/api:1.4@{DIGEST}", f"localhost:5000/acme/api@{DIGEST}", "localhost:5000", True),
        ("localhost/api", "localhost/api:latest", "localhost", True),
        ("127.0.0.1:5050/a/b/c:x", "127.0.0.1:5050/a/b/c:x", "127.0.0.1:5050", True),
        ("[::1]:5000/api:1", "[::1]:5000/api:1", "[::1]:5000", True),
        ("registry.example.com/api:1", "registry.example.com/api:1", "registry.example.com", False),
        ("registry:5000/api", "registry:5000/api:latest", "registry:5000", False),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io", False),
        ("docker.io/acme/api", "docker.io/acme/api:latest", "registry-1.docker.io", False),
    ],
)
def test_names_as_people_write_them(text: str, whole: str, server: str, loopback: bool) -> None:
    found = parse_image(text)
    assert (str(found), found.server, found.loopback) == (whole, server, loopback)
    assert parse_image(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "Acme/api", "a/b:", "a/b@", "a@sha256:12", "a:b:c", "host:99999/a", "ho st:1/a", "a/b:sha256:0", "./a"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_image(text)


@given(st.text(alphabet=st.sampled_from("ab.:/@[]1-_ sha256é\n"), max_size=60) | st.text(max_size=80))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = parse_image(text)
    except RequestError:
        return
    assert parse_image(str(found)) == found


def test_challenges() -> None:
    said = 'Bearer realm="https://r.example/token",service="r, example",scope="repository:a/b:pull"'
    assert parse_challenge(said) == Challenge("bearer", "https://r.example/token", "r, example", "repository:a/b:pull")
    assert parse_challenge("bearer realm=https://r.example/token , Service=x") == (
        Challenge("bearer", "https://r.example/token", "x")
    )
    assert parse_challenge('Basic realm="x"') == Challenge("basic")
    assert parse_challenge("Basic") == Challenge("basic")
    for unknown in ("", "Bearer", "Bearer service=x", 'Digest realm="x"', 'Bearer realm="', '="'):
        assert parse_challenge(unknown) is None


@given(st.text(max_size=200))
def test_any_header_is_a_challenge_or_none(text: str) -> None:
    found = parse_challenge(text)
    assert found is None or found.scheme == "basic" or found.realm


def packed(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def test_what_clients_keep() -> None:
    config = {
        "auths": {
            "r.example:5000": {"auth": packed("ann:se:cret")},
            "https://index.docker.io/v1/": {"auth": packed("hub:word")},
            "https://token.example": {"auth": packed("bob:"), "identitytoken": "refresh"},
            "empty.example": {},
            "none.example": None,
        },
        "credsStore": "desktop",
    }
    data = json.dumps(config).encode()
    assert from_config(data, "r.example:5000") == Credentials("ann", "se:cret")
    assert from_config(data, "docker.io") == Credentials("hub", "word")
    assert from_config(data, "token.example") == Credentials("bob", refresh="refresh")
    for host in ("empty.example", "none.example", "r.example", "other"):
        assert from_config(data, host) is None
    assert "se:cret" not in repr(from_config(data, "r.example:5000"))


@given(st.binary(max_size=100) | st.text(max_size=30).map(lambda t: json.dumps({"auths": {"h": {"auth": t}}}).encode()))
def test_any_file_holds_credentials_or_none(data: bytes) -> None:
    found = from_config(data, "h")
    assert found is None or found.username
