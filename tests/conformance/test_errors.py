"""OCI distribution specification, "Error Codes" and "Warnings": each code with its status, each warning we send."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import (
    CONFIG,
    Answer,
    Api,
    basic,
    descriptor,
    digest_of,
    encode,
    says,
    with_digest,
)
from p2pregistry.testing.tracker_api import registry
from tracker.catalog.trail import SYSTEM

UNKNOWN = digest_of(b"nobody has pushed this")


def blob_unknown(api: Api) -> Answer:
    return api("GET", f"blobs/{UNKNOWN}")


def blob_upload_invalid(api: Api) -> Answer:
    return api("PATCH", api.start(), b"x", content_range="bytes 0-0/1")


def blob_upload_unknown(api: Api) -> Answer:
    location = api.start()
    api("DELETE", location)
    return api("PUT", with_digest(location, digest_of(b"x")), b"x")


def digest_invalid(api: Api) -> Answer:
    return api("PUT", with_digest(api.start(), UNKNOWN), b"x")


def manifest_blob_unknown(api: Api) -> Answer:
    return api.put(encode({"schemaVersion": 2, "config": {**descriptor(b"", CONFIG), "digest": UNKNOWN}, "layers": []}))


def manifest_invalid(api: Api) -> Answer:
    return api.put(b'{"schemaVersion": 2}', "1")


def manifest_unknown(api: Api) -> Answer:
    return api("GET", f"manifests/{UNKNOWN}")


def name_invalid(api: Api) -> Answer:
    return api("POST", "/v2/Acme/blobs/uploads/")


def name_unknown(api: Api) -> Answer:
    return api("GET", "/v2/nobody/pushed/this/tags/list")


def size_invalid(api: Api) -> Answer:
    return api("PATCH", api.start(), b"five5", content_range="0-9")


def unauthorized(api: Api) -> Answer:
    return api("POST", "blobs/uploads/", anonymous=True)


def unsupported(api: Api) -> Answer:
    return api("DELETE", "tags/list")


@says("The code field MUST be one of the following")
@pytest.mark.parametrize(
    ("provoke", "status"),
    [
        (blob_unknown, 404),
        (blob_upload_invalid, 400),
        (blob_upload_unknown, 404),
        (digest_invalid, 400),
        (manifest_blob_unknown, 404),
        (manifest_invalid, 400),
        (manifest_unknown, 404),
        (name_invalid, 400),
        (name_unknown, 404),
        (size_invalid, 400),
        (unauthorized, 401),
        (unsupported, 405),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_code_has_its_status_and_form(api: Api, provoke: object, status: int) -> None:
    assert callable(provoke)
    answer = provoke(api)
    assert (answer.status, answer.codes) == (status, [provoke.__name__.upper()])
    assert answer["content-type"] == "application/json"
    assert answer["docker-distribution-api-version"] == "registry/2.0"
    assert answer["content-length"] == str(len(answer.body))
    assert set(answer.json) == {"errors"}


async def test_denied_where_a_tag_does_not_move(tmp_path: Path) -> None:
    """What no other credentials would help with; clients give up there."""
    async with registry(tmp_path) as api:
        await api.catalog.policies.add_immutable("a:v*", SYSTEM)
        await api.push_image("a", "v1", b"one")
        _, other = await api.push_image("a", "x", b"two")
        answer = await api("PUT", "/v2/a/manifests/v1", other, headers=[("Content-Type", OCI_MANIFEST)])
        assert (answer.status, answer.code) == (403, "DENIED")


async def test_too_many_requests_says_when_to_come_back(tmp_path: Path) -> None:
    async with registry(tmp_path, limit=1) as api:
        assert (await api("POST", "/v2/a/blobs/uploads/")).status == 202
        answer = await api("POST", "/v2/a/blobs/uploads/")
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a client come from all of 127.0.0.0/8")
def test_who_guesses_passwords_is_sent_away_and_nobody_else(api: Api) -> None:
    """Also what keeps the tests here apart: each client of one comes from an address of its own."""
    with Api.connected(api.address, f"{api.repo}/guesser") as guesser:
        for number in range(100):
            answer = guesser("GET", "/v2/", anonymous=True, authorization=basic(api.repo, str(number)))
            if answer.status != 401:
                break
        assert (answer.status, answer.codes) == (429, ["TOOMANYREQUESTS"])
        assert int(answer["retry-after"]) > 0
    assert api("GET", "/v2/").status == 200
    assert api("GET", "/v2/", anonymous=True, authorization=basic("someone", "else")).status == 401


@says("Warning headers MUST specify a warn-code of 299")
def test_what_will_surprise_somebody_is_warned_of(api: Api) -> None:
    config = b"{}"
    api.blob(config)
    body = encode({"schemaVersion": 2, "config": descriptor(config, CONFIG), "layers": []})
    answer = api.put(body, "1")
    assert answer.all("warning") == [f'299 - "the manifest has no mediaType; it is taken for {OCI_MANIFEST}"']
    typed = api.manifest()
    assert api.put(typed, "1").all("warning") == []
    (warning,) = api("PUT", "manifests/1?tag=2", typed, content_type=OCI_MANIFEST).all("warning")
    assert warning.startswith('299 - "tag parameters')
    assert api("GET", "tags/list").json["tags"] == ["1"], "as it says"
    api.repo = (api.repo + "/" + "n" * 255)[:250]
    assert api.put(api.index(), "1", OCI_INDEX).get("warning") == (
        '299 - "many clients cannot pull this: host and name are longer than 255 characters"'
    )
    assert api("GET", "manifests/1").status == 200
