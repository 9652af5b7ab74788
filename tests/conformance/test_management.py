"""OCI distribution specification, "Content Management", "Error Codes" and "Warnings"."""

from __future__ import annotations

import pytest

from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import Api, basic, digest_of, says

#: The table "Error Codes".
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip


@says("Upon success, the registry MUST respond with a 202 Accepted code (tag)")
def test_a_tag_is_deleted_and_its_manifest_stays(api: Api) -> None:
    body = api.manifest()
    for tag in ("a", "b"):
        api.put(body, tag)
    assert api("DELETE", "manifests/a").status == 202
    assert api("GET", "manifests/a").codes == ["MANIFEST_UNKNOWN"]
    assert api("GET", "manifests/b").body == body
    assert api("GET", f"manifests/{digest_of(body)}").body == body
    assert api("GET", "tags/list").json["tags"] == ["b"]
    assert api("DELETE", "manifests/a").status == 404


@says("Upon success, the registry MUST respond with a 202 Accepted code (manifest)")
def test_a_manifest_is_deleted_with_its_tags(api: Api) -> None:
    body, other = api.manifest(), api.image("other")
    for tag in ("a", "b"):
        api.put(body, tag)
    target = f"manifests/{digest_of(body)}"
    assert api("DELETE", target).status == 202
    for reference in (target, "manifests/a", "manifests/b"):
        assert api("GET", reference).status == 404
    assert api("GET", "tags/list").json["tags"] == ["other"]
    assert api("GET", "manifests/other").body == other
    assert api("DELETE", target).status == 404


@says("If the repository does not exist, the response MUST return 404")
def test_nothing_can_be_deleted_from_a_repository_that_does_not_exist(api: Api) -> None:
    for target in ("manifests/1", f"manifests/{digest_of(b'x')}", f"blobs/{digest_of(b'x')}"):
        assert api("DELETE", target).status == 404


@says("Upon success, the registry MUST respond with code 202 Accepted")
@says("If the blob is not found, a 404 Not Found code MUST")
def test_a_blob_is_deleted(api: Api) -> None:
    digest = api.blob(api.fresh())
    assert api("DELETE", f"blobs/{digest}").status == 202
    for method in ("GET", "HEAD", "DELETE"):
        assert api(method, f"blobs/{digest}").status == 404


@says("If blob deletion is disabled, the registry MUST respond with either a 400 Bad Request or a 405")
def test_a_blob_that_a_manifest_needs_is_kept(api: Api) -> None:
    data = api.fresh()
    digest = api.blob(data)
    body = api.image("1", layers=[{"mediaType": "application/x", "digest": digest, "size": len(data)}])
    answer = api("DELETE", f"blobs/{digest}")
    assert (answer.status, answer.codes) == (405, ["UNSUPPORTED"])
    assert api("GET", f"blobs/{digest}").body == data
    assert api("DELETE", f"manifests/{digest_of(body)}").status == 202
    assert api("DELETE", f"blobs/{digest}").status == 202


def test_deleting_in_one_repository_leaves_others_alone(api: Api) -> None:
    base, data = api.repo, api.fresh()
    bodies = {}
    for name in ("one", "two"):
        api.repo = f"{base}/{name}"
        api.blob(data)
        bodies[name] = api.image("latest")
    api.repo = f"{base}/one"
    assert api("DELETE", "manifests/latest").status == 202
    assert api("DELETE", f"blobs/{digest_of(data)}").status == 202
    api.repo = f"{base}/two"
    assert api("GET", "manifests/latest").body == bodies["two"]
    assert api("GET", f"blobs/{digest_of(data)}").body == data


def test_a_deleted_referrer_is_listed_no_more(api: Api) -> None:
    subject = api.image("1")
    artifact = api.artifact(subject, "application/x")
    api.put(artifact)
    assert len(api.referrers(subject).json["manifests"]) == 1
    assert api("DELETE", f"manifests/{digest_of(artifact)}").status == 202
    assert api.referrers(subject).json["manifests"] == []


def test_a_child_of_an_index_can_be_deleted(api: Api) -> None:
    child = api.image()
    index = api.index(child)
    api.put(index, "index", OCI_INDEX)
    assert api("DELETE", f"manifests/{digest_of(child)}").status == 202
    assert api("GET", "manifests/index").body == index


def test_what_was_deleted_can_be_pushed_again(api: Api) -> None:
    body = api.image("1")
    api("DELETE", f"manifests/{digest_of(body)}")
    assert api.put(body, "1").status == 201
    assert api("GET", "manifests/1").body == body


# ------------------------------------------------------------------------------------------------------------- errors


@says("If the response body is in JSON format, it MUST")
@says("The code field MUST be a unique identifier")
@says("it SHOULD be a human readable string")
@says("The code field MUST be one of the following")
@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "blobs/sha256:" + "0" * 64, "BLOB_UNKNOWN"),
        ("GET", "blobs/uploads/none", "BLOB_UPLOAD_UNKNOWN"),
        ("GET", "blobs/sha256:x", "DIGEST_INVALID"),
        ("GET", "manifests/none", "MANIFEST_UNKNOWN"),
        ("PUT", "manifests/1", "MANIFEST_INVALID"),
        ("GET", "/v2/UPPER/manifests/1", "NAME_INVALID"),
        ("GET", "/v2/never/made/tags/list", "NAME_UNKNOWN"),
        ("POST", "manifests/1", "UNSUPPORTED"),
        ("PATCH", "/v2/", "UNSUPPORTED"),
        ("GET", "/v2/a/b/c", "NAME_UNKNOWN"),
        ("GET", "/elsewhere", "NAME_UNKNOWN"),
    ],
)
def test_every_refusal_has_a_body_that_says_why(api: Api, method: str, target: str, code: str) -> None:
    api.image("1")
    answer = api(method, target)
    assert 400 <= answer.status < 500
    assert answer.codes == [code]
    assert set(answer.codes) <= CODES
    assert answer.json["errors"][0]["message"]
    if answer.status == 405:
        assert answer["allow"]


def test_writing_needs_credentials_and_wrong_ones_never_count_as_none(api: Api) -> None:
    body = api.image("1")
    for method, target in (
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/2"),
        ("DELETE", "manifests/1"),
        ("DELETE", f"blobs/{digest_of(b'x')}"),
    ):
        answer = api(method, target, body if method == "PUT" else b"", anonymous=True)
        assert (answer.status, answer.codes) == (401, ["UNAUTHORIZED"])
        assert answer["www-authenticate"]
    answer = api("GET", "manifests/1", anonymous=True, authorization=basic("pusher", "wrong"))
    assert (answer.status, answer.codes) == (401, ["UNAUTHORIZED"])
    assert api("GET", "manifests/1", anonymous=True).body == body


@says("Warning headers MUST specify a warn-code of 299")
@says("MUST NOT send more than 4096 bytes")
def test_warnings_if_there_are_any_have_the_form(api: Api) -> None:
    api.image("1")
    for target in ("manifests/1", "tags/list", "/v2/"):
        warnings = api("GET", target).all("warning")
        assert sum(map(len, warnings)) <= 4096
        assert all(text.startswith('299 - "') and text.endswith('"') for text in warnings)


def test_garbage_gets_an_answer_and_hurts_nobody(api: Api) -> None:
    assert api("GET", "/v2/%ff%fe/tags/list").status == 400
    assert api("GET", "tags/list?n=1&n=2&last=%00").status in (400, 404)
    assert api("BREW", "/v2/").status in (405, 501)
    body = api.image("1")
    assert api("GET", "manifests/1", content_type=OCI_MANIFEST).body == body
