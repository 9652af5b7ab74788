"""OCI distribution specification, "Pull"."""

from __future__ import annotations

import pytest

from p2pregistry.oci.media import DOCKER_MANIFEST, OCI_MANIFEST
from p2pregistry.testing.conformance import CONFIG, LAYER, Api, descriptor, digest_of, encode, says


@says("<tag-or-digest> MUST be either")
@says("MUST NOT be in any other format")
@says("the <tag-or-digest> MUST be either a)")
@pytest.mark.parametrize("reference", ["-a", ".a", "a b", "sha256:baddigeststring", "sha256:", "a@b", "x" * 129, "é"])
def test_a_reference_is_a_digest_or_a_tag_and_nothing_else(api: Api, reference: str) -> None:
    body = api.image("1")
    quoted = reference.replace(" ", "%20").replace("é", "%C3%A9")
    assert api("GET", f"manifests/{quoted}").status in (400, 404)
    assert api("PUT", f"manifests/{quoted}", body, content_type=OCI_MANIFEST).status in (400, 404)


@says("<name> MUST match the following regular expression")
@pytest.mark.parametrize("name", ["A/b", "a//b", "a/-b", "a_/b", "a..b", "-a", "a___b", "a/b/", "%2e%2e/a", "a%00b"])
def test_names_outside_the_grammar_are_refused(api: Api, name: str) -> None:
    for method, rest in (("GET", "tags/list"), ("POST", "blobs/uploads/"), ("GET", "manifests/1")):
        assert api(method, f"/v2/{name}/{rest}").status in (400, 404)


@says("<name> MUST match the following regular expression")
@pytest.mark.parametrize("name", ["a", "a/b/c/d/e", "a.b_c__d---e/f0", "blobs", "a/manifests", "tags/list", "x" * 250])
def test_names_within_the_grammar_are_taken(api: Api, name: str) -> None:
    api.repo = name
    body = api.image("1")
    assert api("GET", "manifests/1").body == body


@says("as a tag MUST be at most 128 characters")
@pytest.mark.parametrize("tag", ["a", "_", "0", "A.b-c_d", "x" * 128])
def test_tags_within_the_grammar_are_taken(api: Api, tag: str) -> None:
    body = api.image(tag)
    assert api("GET", f"manifests/{tag}").body == body


@says("The registry SHOULD NOT include parameters on the Content-Type")
@says("The registry SHOULD ignore parameters")
def test_parameters_of_the_content_type_are_ignored_and_not_sent(api: Api) -> None:
    body = api.manifest()
    assert api.put(body, "1", f"{OCI_MANIFEST}; charset=utf-8").status == 201
    assert api("GET", "manifests/1")["content-type"] == OCI_MANIFEST


@says("Content-Type header SHOULD match what the client pushed")
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_the_content_type_is_the_one_that_was_pushed(api: Api, media_type: str) -> None:
    body = api.manifest(mediaType=media_type)
    assert api.put(body, "1", media_type).status == 201
    for method in ("GET", "HEAD"):
        assert api(method, "manifests/1")["content-type"] == media_type


@says("A GET request to an existing manifest URL MUST provide")
@says("A successful response MUST contain the digest (manifest)")
def test_a_manifest_comes_by_tag_and_by_digest(api: Api) -> None:
    body = api.image("1")
    for reference in ("1", digest_of(body)):
        answer = api("GET", f"manifests/{reference}")
        assert (answer.status, answer.body, answer["docker-content-digest"]) == (200, body, digest_of(body))


@says("If the manifest is not found in the repository")
def test_a_manifest_that_is_not_there_is_404(api: Api) -> None:
    api.image("1")
    for reference in ("2", digest_of(b"none")):
        answer = api("GET", f"manifests/{reference}")
        assert (answer.status, answer.codes) == (404, ["MANIFEST_UNKNOWN"])


@says("A GET request to an existing blob URL MUST provide")
@says("A successful response MUST contain the digest (blob)")
@says("If present, the value of this header MUST be a digest matching")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) + 1])
def test_a_blob_comes_by_its_digest(api: Api, size: int, algorithm: str) -> None:
    data = api.fresh(size)
    digest = api.blob(data, algorithm)
    answer = api("GET", f"blobs/{digest}")
    assert (answer.status, answer.body, answer["docker-content-digest"]) == (200, data, digest)


@says("If the blob is not found in the repository")
def test_a_blob_that_is_not_in_this_repository_is_404(api: Api) -> None:
    elsewhere = api.blob(api.fresh())
    api.repo += "/other"
    api.blob(api.fresh())
    for digest in (elsewhere, digest_of(b"nowhere")):
        answer = api("GET", f"blobs/{digest}")
        assert (answer.status, answer.codes) == (404, ["BLOB_UNKNOWN"])


@says("A registry SHOULD support the Range request header")
@says("implementations SHOULD follow the HTTP semantics")
@pytest.mark.parametrize(
    ("span", "first", "last"),
    [("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047), ("0-0", 0, 0)],
)
def test_a_range_of_a_blob(api: Api, span: str, first: int, last: int) -> None:
    data = api.fresh(2048)
    digest = api.blob(data)
    answer = api("GET", f"blobs/{digest}", range=f"bytes={span}")
    assert (answer.status, answer.body) == (206, data[first : last + 1])
    assert answer["content-range"] == f"bytes {first}-{last}/2048"
    assert answer["content-length"] == str(last - first + 1)


@says("A registry SHOULD support the Range request header")
@pytest.mark.parametrize("span", ["500-0", "5000-10000", "2048-"])
def test_a_range_that_cannot_be_satisfied(api: Api, span: str) -> None:
    digest = api.blob(api.fresh(2048))
    answer = api("GET", f"blobs/{digest}", range=f"bytes={span}")
    assert (answer.status, answer["content-range"]) == (416, "bytes */2048")


@says("A HEAD request to an existing blob or manifest URL MUST return")
@says("in the header Docker-Content-Digest (HEAD)")
@says("A successful response MUST contain the size in bytes")
def test_head_says_what_get_says_without_the_body(api: Api) -> None:
    body = api.image("1")
    data = api.fresh()
    targets = ["manifests/1", f"manifests/{digest_of(body)}", f"blobs/{api.blob(data)}"]
    for target in targets:
        head, got = api("HEAD", target), api("GET", target)
        assert (head.status, head.body) == (200, b"")
        for name in ("content-length", "content-type", "docker-content-digest", "etag"):
            assert head[name] == got[name]
        assert head["content-length"] == str(len(got.body))


@says("If the blob or manifest is not found in the repository (HEAD)")
def test_head_of_what_is_not_there_is_404(api: Api) -> None:
    api.image("1")
    for target in ("manifests/2", f"manifests/{digest_of(b'none')}", f"blobs/{digest_of(b'none')}"):
        answer = api("HEAD", target)
        assert (answer.status, answer.body) == (404, b"")


@says("An attempt to pull a nonexistent repository MUST return")
def test_a_repository_that_does_not_exist_is_404(api: Api) -> None:
    for target in ("manifests/latest", f"manifests/{digest_of(b'x')}", f"blobs/{digest_of(b'x')}", "tags/list"):
        assert api("GET", target).status == 404


@says("The registry MUST store the manifest in the exact byte representation")
def test_a_manifest_comes_back_byte_for_byte(api: Api) -> None:
    config, layer = b"{}", api.fresh()
    api.blob(config)
    api.blob(layer)
    document = {"schemaVersion": 2, "config": descriptor(config, CONFIG), "layers": [descriptor(layer, LAYER)]}
    odd = (
        b" \n"
        + encode({**document, "x-unknown": {"b": 1, "a": [1.50, None]}}).replace(b'"config"', b'\n\t"config"')
        + b"\n\n"
    )
    assert api.put(odd, "odd").status == 201
    assert api("GET", "manifests/odd").body == odd
    assert api("GET", f"manifests/{digest_of(odd)}").body == odd


def test_compressed_answers_are_never_sent(api: Api) -> None:
    body = api.image("1")
    answer = api("GET", "manifests/1", accept_encoding="gzip, br")
    assert (answer.body, answer.get("content-encoding")) == (body, None)


def test_any_accept_gets_the_manifest_as_it_was_pushed(api: Api) -> None:
    body = api.image("1")
    for accept in (OCI_MANIFEST, "*/*", "application/vnd.oci.image.index.v1+json", "text/html"):
        assert api("GET", "manifests/1", accept=accept).body == body
