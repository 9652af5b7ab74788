"""OCI distribution specification, "Push": blobs."""

from __future__ import annotations

import re

import pytest

from p2pregistry.testing.conformance import Api, digest_of, says, with_digest

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BAD = [
    "sha256:baddigeststring",
    "sha256:",
    "sha256:" + "A" * 64,
    "sha512:" + "0" * 64,
    "md5:d41d8cd98f00b204e9800998ecf8427e",
    "nothing",
    "",
]


@says("the registry SHOULD respond with a response code 400 Bad Request")
@pytest.mark.parametrize("digest", BAD)
def test_a_digest_that_is_none_is_refused(api: Api, digest: str) -> None:
    data = api.fresh()
    answers = [api("PUT", with_digest(api.start(), digest), data), api("GET", f"blobs/{digest or 'x'}")]
    if digest:
        answers.append(api("POST", f"blobs/uploads/?digest={digest}", data))
    for answer in answers:
        assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])


@says("the registry SHOULD respond with a response code 400 Bad Request")
@says("Likewise, the <digest> MUST match")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_of_other_bytes_is_refused_and_leaves_nothing(api: Api, algorithm: str) -> None:
    data, wrong = api.fresh(), digest_of(b"others", algorithm)
    for answer in (
        api("PUT", with_digest(api.start(), wrong), data),
        api("POST", f"blobs/uploads/?digest={wrong}", data),
    ):
        assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert api("HEAD", f"blobs/{wrong}").status == 404
    assert api("HEAD", f"blobs/{digest_of(data, algorithm)}").status == 404


@says("Upon success, the response MUST have a code of 202 Accepted")
@says("<blob-push-location> MUST contain a UUID")
def test_a_new_upload_has_a_location_with_a_uuid(api: Api) -> None:
    answers = [api("POST", "blobs/uploads/") for _ in range(2)]
    found = [UUID.search(answer["location"]) for answer in answers]
    assert [answer.status for answer in answers] == [202, 202]
    assert all(found)
    assert answers[0]["location"] != answers[1]["location"]
    assert answers[0]["location"].startswith(f"/v2/{api.repo}/blobs/uploads/")


@says("Upon successful completion of the request, the response MUST have code 201")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 2, 1000])
def test_post_then_put(api: Api, size: int, algorithm: str) -> None:
    data = api.fresh(size)
    digest = digest_of(data, algorithm)
    answer = api("PUT", with_digest(api.start(), digest), data, content_type="application/octet-stream")
    assert answer.status == 201
    assert answer["docker-content-digest"] == digest
    assert api("GET", answer["location"]).body == data
    assert api.holds(digest, data)


@says("The Content-Length header MUST match the blob's actual content length")
@says("Successful completion of the request MUST")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_single_post(api: Api, algorithm: str) -> None:
    data = api.fresh()
    digest = digest_of(data, algorithm)
    answer = api("POST", f"blobs/uploads/?digest={digest}", data)
    assert (answer.status, answer["docker-content-digest"]) == (201, digest)
    assert api("GET", answer["location"]).body == data


@says("except that the post request MUST include")
@says("The response for each successful chunk upload MUST be 202")
@says("MUST be inclusive on both ends")
@says("The first chunk's range MUST begin with 0")
@says("Each consecutive chunk upload SHOULD use")
@says("the session MUST be closed with a PUT")
@says("The closing PUT request MUST")
@says("The response to a successful closing of the session MUST be 201")
@pytest.mark.parametrize("closing", [0, 300])
def test_a_blob_in_chunks(api: Api, closing: int) -> None:
    data = api.fresh(1300)
    location, last = api.start(), len(data) - closing
    for at in range(0, last, 500):
        end = min(last, at + 500)
        answer = api("PATCH", location, data[at:end], content_range=f"{at}-{end - 1}")
        assert (answer.status, answer["range"]) == (202, f"0-{end - 1}")
        location = answer["location"]
    rest = {"content_range": f"{last}-{len(data) - 1}"} if closing else {}
    answer = api("PUT", with_digest(location, digest_of(data)), data[last:], **rest)
    assert (answer.status, answer["docker-content-digest"]) == (201, digest_of(data))
    assert api("GET", answer["location"]).body == data


@says("It MUST match the following regular expression")
@pytest.mark.parametrize("span", ["x", "5-", "-5", "5-1", "bytes 0-99/100", ""])
def test_a_content_range_that_is_none_is_refused(api: Api, span: str) -> None:
    location = api.start()
    assert api("PATCH", location, api.fresh(), content_range=span).status in (400, 416)
    assert api("GET", location)["range"] == "0-0"


@says("Chunks MUST be uploaded in order")
@says("If a chunk is uploaded out of order")
@says("If the final chunk is uploaded out of")
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("span", ["0-99", "50-149", "101-200"])
def test_a_chunk_out_of_order_is_416_and_changes_nothing(api: Api, method: str, span: str) -> None:
    data = api.fresh(200)
    location = api("PATCH", api.start(), data[:100], content_range="0-99")["location"]
    target = with_digest(location, digest_of(data)) if method == "PUT" else location
    answer = api(method, target, data[100:], content_range=span)
    assert (answer.status, answer["range"]) == (416, "0-99")
    assert api("GET", answer["location"])["range"] == "0-99"
    answer = api("PUT", with_digest(location, digest_of(data)), data[100:], content_range="100-199")
    assert answer.status == 201
    assert api.holds(digest_of(data), data)


@says("The first chunk's range MUST begin with 0")
def test_a_first_chunk_that_does_not_begin_with_zero_is_416(api: Api) -> None:
    assert api("PATCH", api.start(), api.fresh(10), content_range="10-19").status == 416


@says("The response to an active upload <blob-push-location> MUST be a 204")
@says("chunk upload SHOULD use the <blob-push-loc")
def test_the_state_of_an_upload(api: Api) -> None:
    data = api.fresh(100)
    location = api.start()
    assert api("GET", location)["range"] == "0-0"
    api("PATCH", location, data[:60])
    answer = api("GET", location)
    assert (answer.status, answer.body, answer["range"]) == (204, b"", "0-59")
    assert api("PUT", with_digest(answer["location"], digest_of(data)), data[60:]).status == 201


@says("If successful, the response SHOULD be a 204 No Content")
def test_an_upload_can_be_cancelled(api: Api) -> None:
    data = api.fresh()
    location = api.start()
    api("PATCH", location, data)
    assert api("DELETE", location).status == 204
    for method in ("GET", "PATCH", "DELETE"):
        answer = api(method, location)
        assert (answer.status, answer.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])
    assert api("PUT", with_digest(location, digest_of(data))).status == 404


@says("the post request SHOULD include the digest-algorithm parameter")
def test_chunks_of_a_blob_named_by_sha512(api: Api) -> None:
    data = api.fresh(300)
    location = api.start("?digest-algorithm=sha512")
    location = api("PATCH", location, data[:200])["location"]
    digest = digest_of(data, "sha512")
    assert api("PUT", with_digest(location, digest), data[200:]).status == 201
    assert api.holds(digest, data)
    refused = api("POST", "blobs/uploads/?digest-algorithm=md5")
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])


def test_a_blob_in_one_stream_without_a_length(api: Api) -> None:
    """As docker pushes."""
    data = api.fresh(70_000)
    answer = api("PATCH", api.start(), [data[:1], data[1:65_000], data[65_000:]])
    assert (answer.status, answer["range"]) == (202, "0-69999")
    assert api("PUT", with_digest(answer["location"], digest_of(data)), content_length="0").status == 201
    assert api.holds(digest_of(data), data)


def test_a_stream_without_bytes_has_a_range_that_can_be_read(api: Api) -> None:
    answer = api("PATCH", api.start(), [])
    assert (answer.status, answer["range"]) == (202, "0-0")
    assert api("PUT", with_digest(answer["location"], digest_of(b""))).status == 201


@says("The response to a successful mount MUST be 201")
@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_is_mounted_with_and_without_its_repository(api: Api, source: bool, algorithm: str) -> None:
    data = api.fresh()
    digest = api.blob(data, algorithm)
    query = f"?mount={digest}" + (f"&from={api.repo}" if source else "")
    api.repo += "/target"
    assert api("HEAD", f"blobs/{digest}").status == 404
    answer = api("POST", f"blobs/uploads/{query}")
    assert (answer.status, answer["docker-content-digest"]) == (201, digest)
    assert api("GET", answer["location"]).body == data


@says("or is unable to mount the requested blob, it SHOULD return a 202")
@pytest.mark.parametrize("source", ["", "&from=conformance/nowhere"])
def test_a_mount_of_what_is_not_there_begins_an_upload(api: Api, source: str) -> None:
    data = api.fresh()
    answer = api("POST", f"blobs/uploads/?mount={digest_of(data)}{source}")
    assert answer.status == 202
    assert api("PUT", with_digest(answer["location"], digest_of(data)), data).status == 201


def test_an_upload_belongs_to_its_repository(api: Api) -> None:
    location = api.start()
    assert api("GET", location.replace(api.repo, api.repo + "/other")).status == 404


def test_an_upload_that_nobody_began_is_unknown(api: Api) -> None:
    answer = api("PATCH", "blobs/uploads/00000000-0000-0000-0000-000000000000", b"x")
    assert (answer.status, answer.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])


def test_what_was_pushed_can_be_pushed_again(api: Api) -> None:
    data = api.fresh()
    assert api.blob(data) == api.blob(data)
    assert api("POST", f"blobs/uploads/?digest={digest_of(data)}", data).status == 201
