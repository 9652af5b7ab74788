"""OCI distribution specification, "Pushing Manifests", and what is listed of a manifest's referrers."""

from __future__ import annotations

import re

import pytest

from p2pregistry.oci.media import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import CONFIG, EMPTY_JSON, LAYER, Api, descriptor, digest_of, encode, says

EXAMPLE = "application/vnd.example.sbom.v1+json"
OTHER = "application/vnd.example.signature.v1"


@says("Upon a successful upload, the registry MUST return response code 201")
@says("The Docker-Content-Digest header returns")
@pytest.mark.parametrize("by_tag", [True, False])
def test_a_manifest_is_pushed(api: Api, by_tag: bool) -> None:
    body = api.manifest()
    answer = api.put(body, "1" if by_tag else None)
    assert (answer.status, answer["docker-content-digest"]) == (201, digest_of(body))
    assert api("GET", answer["location"]).body == body


@says("The uploaded manifest MUST reference any blobs")
@says("it MUST result in one or more MANIFEST_BLOB_UNKNOWN")
def test_a_manifest_whose_blobs_are_not_there_is_refused(api: Api) -> None:
    missing = descriptor(b"missing", LAYER)
    for more in ({"layers": [missing]}, {"config": descriptor(b"no config", CONFIG)}):
        answer = api.put(api.manifest(**more), "1")
        assert answer.status in (400, 404)
        assert answer.codes == ["MANIFEST_BLOB_UNKNOWN"]
    index = api.index(b"no such manifest")
    assert api.put(index, "1", OCI_INDEX).codes == ["MANIFEST_BLOB_UNKNOWN"]
    assert api("GET", "manifests/1").status == 404


@says("A registry MUST initially accept an otherwise valid manifest with a subject")
def test_a_subject_need_not_be_there(api: Api) -> None:
    subject = api.manifest()
    artifact = api.artifact(subject, EXAMPLE)
    assert api.put(artifact).status == 201
    assert [one["digest"] for one in api.referrers(subject).json["manifests"]] == [digest_of(artifact)]
    assert api.put(subject, "1").status == 201
    assert [one["digest"] for one in api.referrers(subject).json["manifests"]] == [digest_of(artifact)]


@says("MUST respond with the response header OCI-Subject")
def test_a_manifest_with_a_subject_is_answered_with_it(api: Api) -> None:
    subject = api.image("1")
    for reference in (None, "tagged"):
        answer = api.put(api.artifact(subject, EXAMPLE), reference)
        assert (answer.status, answer["oci-subject"]) == (201, digest_of(subject))
    index = api.index(subject, subject=descriptor(subject, OCI_MANIFEST))
    assert api.put(index, media_type=OCI_INDEX)["oci-subject"] == digest_of(subject)
    assert api.put(api.manifest(), "2").get("oci-subject") is None


@says("SHOULD support pushing at least 10 tags per request")
@says("MUST include an OCI-Tag response header")
def test_many_tags_with_one_manifest(api: Api) -> None:
    body = api.manifest()
    tags = [f"v{number}" for number in range(20)]
    query = "&".join(f"tag={tag}" for tag in tags)
    answer = api("PUT", f"manifests/{digest_of(body)}?{query}", body, content_type=OCI_MANIFEST)
    assert (answer.status, answer.all("oci-tag")) == (201, tags)
    for tag in tags:
        assert api("GET", f"manifests/{tag}").body == body
    bad = api("PUT", f"manifests/{digest_of(body)}?tag=ok&tag=-no", body, content_type=OCI_MANIFEST)
    assert bad.status == 400
    assert api("GET", "manifests/ok").status == 404


@says("A registry SHOULD enforce some limit on the maximum manifest size")
@says("SHOULD respond to a request to push a manif")
def test_a_manifest_that_is_too_large_is_413(api: Api) -> None:
    answer = api.put(api.manifest(annotations={"large": "A" * (9 << 20)}), "1")
    assert (answer.status, answer.codes) == (413, ["MANIFEST_INVALID"])


@says("SHOULD expect to be able to support manifest pushes of at least 4 megabytes")
def test_a_manifest_of_four_megabytes(api: Api) -> None:
    body = api.manifest(annotations={"large": "A" * (4 << 20)})
    assert api.put(body, "1").status == 201
    assert api("GET", "manifests/1").body == body


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_of_other_bytes_is_refused(api: Api, algorithm: str) -> None:
    body = api.manifest()
    right = digest_of(body, algorithm)
    assert api.put(body, digest_of(b"other", algorithm)).codes == ["DIGEST_INVALID"]
    assert api.put(body, right).status == 201
    assert api("GET", f"manifests/{right}").body == body
    assert api("HEAD", f"manifests/{right}")["docker-content-digest"] == right


def test_everything_named_by_sha512(api: Api) -> None:
    config, layer = b'{"a":1}', api.fresh()
    entries = []
    for data, kind in ((config, CONFIG), (layer, LAYER)):
        api.blob(data, "sha512")
        entries.append({"mediaType": kind, "digest": digest_of(data, "sha512"), "size": len(data)})
    body = encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entries[0], "layers": entries[1:]})
    right = digest_of(body, "sha512")
    assert api("PUT", f"manifests/{right}?tag=long", body, content_type=OCI_MANIFEST).status == 201
    for reference in (right, "long"):
        assert api("GET", f"manifests/{reference}").body == body
    artifact = api.manifest(subject={"mediaType": OCI_MANIFEST, "digest": right, "size": len(body)})
    assert api.put(artifact)["oci-subject"] == right
    assert [one["digest"] for one in api.referrers(right).json["manifests"]] == [digest_of(artifact)]


def test_an_index_of_indexes_and_an_empty_one(api: Api) -> None:
    inner = api.index(api.image(), api.image())
    assert api.put(inner, media_type=OCI_INDEX).status == 201
    entry = descriptor(inner, OCI_INDEX)
    outer = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    for body, tag in ((outer, "outer"), (api.index(), "empty")):
        assert api.put(body, tag, OCI_INDEX).status == 201
        answer = api("GET", f"manifests/{tag}")
        assert (answer.body, answer["content-type"]) == (body, OCI_INDEX)


def test_a_docker_list_of_oci_manifests(api: Api) -> None:
    body = api.index(api.image(), mediaType=DOCKER_LIST)
    assert api.put(body, "list", DOCKER_LIST).status == 201
    assert api("GET", "manifests/list")["content-type"] == DOCKER_LIST


def test_layers_that_are_fetched_from_elsewhere_need_not_be_there(api: Api) -> None:
    kinds = (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    )
    layers = [descriptor(kind.encode(), kind, urls=["https://store.example.com/blob"]) for kind in kinds]
    body = api.manifest(layers=layers)
    assert api.put(body, "1").status == 201
    assert api("GET", "manifests/1").body == body


def test_descriptors_with_data_and_manifests_with_fields_of_their_own(api: Api) -> None:
    api.blob(b"{}")
    empty = {**descriptor(b"{}", EMPTY_JSON), "data": "e30="}
    body = api.manifest(config=empty, layers=[empty], artifactType=EXAMPLE, **{"org.example.field": {"deep": [1, 2]}})
    assert api.put(body, "1").status == 201
    assert api("GET", "manifests/1").body == body


def test_an_image_without_layers(api: Api) -> None:
    body = api.manifest(layers=[])
    assert api.put(body, "1").status == 201


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"schemaVersion":1}', b'{"schemaVersion":2}' + b" " * 10],
)
def test_what_is_no_manifest_is_refused(api: Api, body: bytes) -> None:
    answer = api.put(body, "1")
    assert (answer.status, answer.codes) == (400, ["MANIFEST_INVALID"])


def test_a_tag_moves_when_another_manifest_is_pushed_to_it(api: Api) -> None:
    first, second = api.image("latest"), api.image("latest")
    assert api("GET", "manifests/latest").body == second
    assert api("GET", f"manifests/{digest_of(first)}").body == first


# ---------------------------------------------------------------------------------------------------------- referrers


@says("If the registry supports the referrers API, the registry MUST NOT return a 404")
@says("no matching referrers, an empty")
def test_without_referrers_the_list_is_empty_and_never_404(api: Api) -> None:
    known = api.image("1")
    api_elsewhere = digest_of(b"unknown")
    for repo in (api.repo, api.repo + "/never-made"):
        api.repo = repo
        for digest in (digest_of(known), api_elsewhere):
            answer = api.referrers(digest)
            assert (answer.status, answer.json["manifests"]) == (200, [])


@says("such as a <digest> with an invalid syntax, a 400 Bad Request MUST be returned")
@pytest.mark.parametrize("digest", ["sha256:x", "latest", "sha256", "md5:d41d8cd98f00b204e9800998ecf8427e"])
def test_referrers_of_what_is_no_digest(api: Api, digest: str) -> None:
    api.image("1")
    answer = api.referrers(digest)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])


@says("Assuming a repository is found, this request MUST return a 200 OK (referrers)")
@says("Upon success, the response MUST be a JSON")
@says("The Content-Type header MUST be set to application/vnd.oci.image.index.v1+json")
@says("an artifactType field that is set to")
@says("the value of artifactType MUST be set to the config descriptor mediaType")
@says("The descriptors MUST include annotations")
@says("Registries MUST include all newly pushed image manifests with a valid subject")
def test_referrers_are_described(api: Api) -> None:
    subject = api.image("1")
    typed = api.artifact(subject, EXAMPLE, note="hello")
    untyped = api.image(subject=descriptor(subject, OCI_MANIFEST))
    for body in (typed, untyped):
        assert api.put(body).status == 201
    answer = api.referrers(subject)
    assert (answer.status, answer["content-type"]) == (200, OCI_INDEX)
    assert (answer.json["schemaVersion"], answer.json["mediaType"]) == (2, OCI_INDEX)
    found = {one["digest"]: one for one in answer.json["manifests"]}
    assert set(found) == {digest_of(typed), digest_of(untyped)}
    for body in (typed, untyped):
        one = found[digest_of(body)]
        assert (one["size"], one["mediaType"]) == (len(body), OCI_MANIFEST)
    assert found[digest_of(typed)]["artifactType"] == EXAMPLE
    assert found[digest_of(typed)]["annotations"]["note"] == "hello"
    assert found[digest_of(untyped)]["artifactType"] == CONFIG


@says("missing in an index, the artifactType MUST be omitted")
def test_referrers_that_are_indexes(api: Api) -> None:
    subject = api.image("1")
    about = descriptor(subject, OCI_MANIFEST)
    plain = api.index(subject, subject=about, annotations={"a": "b"})
    typed = api.index(subject, subject=about, artifactType=EXAMPLE)
    for body in (plain, typed):
        assert api.put(body, media_type=OCI_INDEX).status == 201
    found = {one["digest"]: one for one in api.referrers(subject).json["manifests"]}
    assert "artifactType" not in found[digest_of(plain)]
    assert found[digest_of(plain)]["annotations"] == {"a": "b"}
    assert found[digest_of(typed)]["artifactType"] == EXAMPLE


@says("The registry SHOULD support filtering on artifactType")
@says("MUST include a header OCI-Filters-Applied")
@says("the header MUST contain a comma separated list of applied filters")
def test_referrers_of_one_type(api: Api) -> None:
    subject = api.image("1")
    bodies = {kind: api.artifact(subject, kind) for kind in (EXAMPLE, OTHER)}
    for body in bodies.values():
        api.put(body)
    for kind, body in bodies.items():
        answer = api.referrers(subject, f"?artifactType={kind.replace('+', '%2B')}")
        assert answer["oci-filters-applied"] == "artifactType"
        assert [one["digest"] for one in answer.json["manifests"]] == [digest_of(body)]
    assert api.referrers(subject, "?artifactType=application/none").json["manifests"] == []
    assert api.referrers(subject).get("oci-filters-applied") is None


@says("A Link header MUST be included in the response when the descriptor list cannot be returned")
@says("rel=next (referrers)")
def test_many_referrers_come_in_pages(api: Api) -> None:
    subject = api.image("1")
    empty = descriptor(b"{}", EMPTY_JSON)
    api.blob(b"{}")
    about = descriptor(subject, OCI_MANIFEST)
    wanted = set()
    for number in range(510):
        body = encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": empty,
                "layers": [empty],
                "subject": about,
                "annotations": {"n": str(number)},
            }
        )
        assert api.put(body).status == 201
        wanted.add(digest_of(body))
    seen: list[str] = []
    target, pages = f"referrers/{digest_of(subject)}", 0
    while target:
        answer = api("GET", target)
        seen += [one["digest"] for one in answer.json["manifests"]]
        link = answer.get("link")
        found = None if link is None else re.fullmatch(r'<(\S+)>; *rel="next"', link)
        target, pages = ("" if found is None else found[1]), pages + 1
    assert pages > 1
    assert len(seen) == len(set(seen))
    assert set(seen) == wanted


@says("Registries MUST include preexisting image manifests that are listed in an image index tagged")
def test_what_a_client_listed_under_the_fallback_tag_is_listed(api: Api) -> None:
    subject = api.image("1")
    listed = api.image(subject=descriptor(subject, OCI_MANIFEST))
    entry = {**descriptor(listed, OCI_MANIFEST), "artifactType": EXAMPLE}
    index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    assert api.put(index, digest_of(subject).replace(":", "-"), OCI_INDEX).status == 201
    artifact = api.artifact(subject, EXAMPLE)
    api.put(artifact)
    found = {one["digest"] for one in api.referrers(subject).json["manifests"]}
    assert found == {digest_of(listed), digest_of(artifact)}
