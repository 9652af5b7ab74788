"""The checks of the official suite (opencontainers/distribution-spec, conformance/, level 1.1+dev), in its order and
with its kinds of data, written anew. README.md says which check is where. Where the suite is content with less and only
reports a check as skipped, nothing less will do here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import CONFIG, EMPTY_JSON, LAYER, Api, descriptor, digest_of, encode, with_digest

TYPE_1, TYPE_2 = "application/vnd.example.oci.conformance.v1", "application/vnd.example.oci.conformance.v2"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
#: Bytes of a chunk, as the suite has it where the registry names no least size.
CHUNK = 1024
BOTH = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
#: As the suite takes the kind of challenge and the repository from what it is sent.
CHALLENGE = re.compile(r"(?i).*(bearer|basic).*")
REPOSITORY = re.compile(
    r"/v2/([a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)/blobs/uploads/[^/]*"
)


# -------------------------------------------------------------------------------------------------------------- blobs


def post_only(api: Api, data: bytes, digest: str) -> int:
    return _pullable(api, data, digest, "POST", f"blobs/uploads/?digest={digest.replace(':', '%3A')}", data)


def post_put(api: Api, data: bytes, digest: str) -> int:
    return _pullable(api, data, digest, "PUT", with_digest(api.start(), digest), data)


def stream(api: Api, data: bytes, digest: str) -> int:
    location = api("PATCH", api.start(), [data], content_type="application/octet-stream")["location"]
    return _pullable(api, data, digest, "PUT", with_digest(location, digest), b"")


def chunked(api: Api, data: bytes, digest: str, *, last: str = "PATCH", astray: bool = False) -> int:
    """Three chunks at least one of which is short; ``astray``: before each a wrong one, which must be refused."""
    location, at = api.start(), 0
    while at < len(data):
        wrong = at + CHUNK if at + CHUNK < len(data) else 0
        if astray and wrong != at:
            _refused(api, location, data, wrong, digest, last)
            answer = api("GET", location)
            assert (answer.status, answer["range"]) == (204, f"0-{max(0, at - 1)}")
            location = answer["location"]
        end = min(len(data), at + CHUNK)
        span = f"{at}-{end - 1}"
        if last == "PUT" and end == len(data):
            target = with_digest(location, digest)
            return _pullable(api, data, digest, "PUT", target, data[at:end], content_range=span)
        answer = api("PATCH", location, data[at:end], content_range=span)
        assert (answer.status, answer["range"]) == (202, f"0-{end - 1}")
        location, at = answer["location"], end
    return _pullable(api, data, digest, "PUT", with_digest(location, digest), b"")


def chunked_put(api: Api, data: bytes, digest: str) -> int:
    return chunked(api, data, digest, last="PUT")


def chunked_astray(api: Api, data: bytes, digest: str) -> int:
    return chunked(api, data, digest, astray=True)


def chunked_put_astray(api: Api, data: bytes, digest: str) -> int:
    return chunked(api, data, digest, last="PUT", astray=True)


def _refused(api: Api, location: str, data: bytes, at: int, digest: str, last: str) -> None:
    end = min(len(data), at + CHUNK)
    closing = last == "PUT" and end == len(data)
    target = with_digest(location, digest) if closing else location
    answer = api("PUT" if closing else "PATCH", target, data[at:end], content_range=f"{at}-{end - 1}")
    assert answer.status == 416


def _pullable(api: Api, data: bytes, digest: str, method: str, target: str, body: bytes, **headers: str) -> int:
    """The status; of a 201 the Location must give the blob."""
    answer = api(method, target, body, **headers)
    if answer.status == 201:
        assert answer["docker-content-digest"] == digest
        got = api("GET", answer["location"])
        assert (got.status, got.body) == (200, data)
    return answer.status


Push = Callable[[Api, bytes, str], int]
WAYS: list[Push] = [post_only, post_put, stream, chunked, chunked_put, chunked_astray, chunked_put_astray]
EACH_WAY = pytest.mark.parametrize("push", WAYS, ids=lambda push: push.__name__)


def pulled_and_deleted(api: Api, digest: str, data: bytes) -> None:
    head, got = api("HEAD", f"blobs/{digest}"), api("GET", f"blobs/{digest}")
    assert (head.status, head.body, head["content-length"]) == (200, b"", str(len(data)))
    assert (got.status, got.body, got["content-length"]) == (200, data, str(len(data)))
    assert head["docker-content-digest"] == got["docker-content-digest"] == digest
    assert api("DELETE", f"blobs/{digest}").status == 202
    assert api("HEAD", f"blobs/{digest}").status == 404


@BOTH
@EACH_WAY
@pytest.mark.parametrize("size", [512, 3 * CHUNK - 5])
def test_each_way_to_push_then_head_get_delete(api: Api, push: Push, size: int, algorithm: str) -> None:
    """The suite does not announce sha512 when it begins an upload."""
    data = api.fresh(size)
    digest = digest_of(data, algorithm)
    assert api("GET", f"blobs/{digest}").status == 404
    assert push(api, data, digest) == 201
    pulled_and_deleted(api, digest, data)


@BOTH
@EACH_WAY
def test_each_way_to_push_other_bytes_is_400(api: Api, push: Push, algorithm: str) -> None:
    data = api.fresh(3 * CHUNK - 5)
    assert push(api, data + b"oh no", digest_of(data, algorithm)) == 400


@BOTH
@pytest.mark.parametrize("data", [b"", b"{}"], ids=["empty", "emptyJSON"])
@pytest.mark.parametrize("push", WAYS[:4], ids=lambda push: push.__name__)
def test_well_known_blobs(api: Api, push: Push, data: bytes, algorithm: str) -> None:
    digest = digest_of(data, algorithm)
    assert push(api, data, digest) == 201
    pulled_and_deleted(api, digest, data)


@BOTH
@pytest.mark.parametrize("source", ["named", "anonymous", "missing"])
def test_mounts(api: Api, source: str, algorithm: str) -> None:
    data, other = api.fresh(512), f"{api.repo}/2"
    digest = digest_of(data, algorithm)
    if source != "missing":
        assert api("POST", f"/v2/{other}/blobs/uploads/?digest={digest}", data).status == 201
    query = f"?mount={digest.replace(':', '%3A')}" + (
        "" if source == "anonymous" else f"&from={other.replace('/', '%2F')}"
    )
    answer = api("POST", f"blobs/uploads/{query}")
    assert answer.status == (202 if source == "missing" else 201)
    if source == "missing":
        assert api("PUT", with_digest(answer["location"], digest), data).status == 201
    else:
        assert answer["docker-content-digest"] == digest
        assert api("GET", answer["location"]).body == data
        assert api("DELETE", f"/v2/{other}/blobs/{digest}").status == 202
    pulled_and_deleted(api, digest, data)


def test_an_upload_is_cancelled(api: Api) -> None:
    location = api.start()
    assert api("DELETE", location, content_length="0").status == 204
    assert api("GET", location).status == 404


# ---------------------------------------------------------------------------------------------------------- manifests


@dataclass
class Data:
    """What one test pushes: blobs, then manifests in this order, each with the tags it gets."""

    api: Api
    algorithm: str = "sha256"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    referrers: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def blob(self, content: bytes, media_type: str, **more: object) -> dict[str, object]:
        digest = digest_of(content, self.algorithm)
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def image(self, tag: str = "", layers: int = 4, **more: object) -> dict[str, object]:
        config = encode({"architecture": "amd64", "os": "linux", "x": self.api.fresh(8).hex()})
        listed = [self.blob(self.api.fresh(), LAYER) for _ in range(layers)]
        document = {"config": self.blob(config, CONFIG), "layers": listed, **more}
        return self.manifest(OCI_MANIFEST, tag, **document)

    def artifact(self, tag: str = "", artifact_type: str = TYPE_1, **more: object) -> dict[str, object]:
        document = {
            "config": self.blob(b"{}", EMPTY_JSON),
            "layers": [self.blob(self.api.fresh(), artifact_type)],
            **more,
        }
        return self.manifest(OCI_MANIFEST, tag, artifactType=artifact_type, **document)

    def index(self, tag: str = "", *children: dict[str, object], **more: object) -> dict[str, object]:
        return self.manifest(OCI_INDEX, tag, manifests=list(children), **more)

    def manifest(self, media_type: str, tag: str, **document: object) -> dict[str, object]:
        body = encode({"schemaVersion": 2, "mediaType": media_type, **document})
        digest = digest_of(body, self.algorithm)
        self.manifests[digest] = body
        if tag:
            self.tags[tag] = digest
        found: dict[str, object] = {"mediaType": media_type, "digest": digest, "size": len(body)}
        subject = document.get("subject")
        if isinstance(subject, dict):
            config = document.get("config")
            kind = document.get("artifactType") or (config["mediaType"] if isinstance(config, dict) else None)
            entry = {**found, "annotations": document.get("annotations"), "artifactType": kind}
            self.referrers.setdefault(subject["digest"], []).append(
                {name: value for name, value in entry.items() if value is not None}
            )
        return found


def image(data: Data) -> None:
    data.image("image")


def large_manifest(data: Data) -> None:
    data.image("large", annotations={f"large-annotation-{number}": "A" * 10_000 for number in range(390)})


def index(data: Data) -> None:
    data.index("index", data.image(), data.image())


def nested_index(data: Data) -> None:
    data.index("index-of-index", *(data.index("", data.image(), data.image()) for _ in range(2)))


def empty_index(data: Data) -> None:
    data.index("index")


def artifact(data: Data) -> None:
    data.artifact("artifact")


def artifact_index(data: Data) -> None:
    data.index("artifact-index", data.artifact(), data.artifact(), artifactType=TYPE_1)


def artifact_without_layers(data: Data) -> None:
    empty = data.blob(b"{}", EMPTY_JSON)
    data.manifest(OCI_MANIFEST, "artifact", artifactType=TYPE_1, config=empty, layers=[empty])


def artifacts_with_subject(data: Data) -> None:
    subject = data.image("image")
    data.image(subject=subject)
    for kind, tag in ((TYPE_1, "tagged-artifact1"), (TYPE_2, "tagged-artifact2")):
        data.artifact(tag, kind, subject=subject, annotations={"org.opencontainers.conformance": "hello", "kind": kind})


def index_with_subject(data: Data) -> None:
    subject = data.index("index", data.image())
    child = data.artifact()
    data.index("tagged-artifact", child, artifactType=TYPE_1, subject=subject, annotations={"a": "b"})


def missing_subject(data: Data) -> None:
    data.artifact("tagged-artifact", subject=descriptor(b"missing content", OCI_MANIFEST), annotations={"a": "b"})


def data_field(data: Data) -> None:
    data.manifest(
        OCI_MANIFEST,
        "data-field",
        config=data.blob(b"{}", CONFIG, data="e30="),
        layers=[data.blob(b"layer", LAYER, data="bGF5ZXI=")],
    )


def non_distributable_layers(data: Data) -> None:
    def elsewhere(kind: str) -> dict[str, object]:
        content = data.api.fresh()
        return {**descriptor(content, kind), "size": 123456, "urls": [f"https://store.example.com/{content.hex()}"]}

    layers = [elsewhere(f"{FOREIGN}+gzip"), elsewhere(FOREIGN), data.blob(data.api.fresh(), LAYER)]
    data.manifest(OCI_MANIFEST, "foreign", config=data.blob(data.api.fresh(), CONFIG), layers=layers)


def custom_fields(data: Data) -> None:
    extra = {"org.example.custom": {"a": [1, 2.50, None]}, "x": "y"}
    child = data.image(**extra)
    data.index("custom-fields", {**child, "platform": {"os": "linux", "architecture": "amd64", "x": 1}}, **extra)


def no_layers(data: Data) -> None:
    data.image("no-layers", layers=0)


def sha512(data: Data) -> None:
    data.algorithm = "sha512"
    data.index("", data.image(), data.image())


KINDS = [
    image, large_manifest, index, nested_index, empty_index, artifact, artifact_index, artifact_without_layers,
    artifacts_with_subject, index_with_subject, missing_subject, data_field, non_distributable_layers, custom_fields,
    no_layers, sha512,
]  # fmt: skip


def put_all(data: Data, tag_param: bool) -> None:
    """Blobs in any way, manifests by digest, then by tag; with ``tag_param`` the tags go along with the digest."""
    api = data.api
    for number, (digest, body) in enumerate(data.blobs.items()):
        assert WAYS[number % 4](api, body, digest) == 201
    for digest, body in data.manifests.items():
        tags = [tag for tag, goal in data.tags.items() if goal == digest]
        put_one(api, digest, body, digest, tags if tag_param else [])
        for tag in [] if tag_param else tags:
            put_one(api, tag, body, digest, [])


def put_one(api: Api, reference: str, body: bytes, digest: str, tags: list[str]) -> None:
    document = json.loads(body)
    query = "?" + "&".join(f"tag={tag}" for tag in tags) if tags else ""
    answer = api("PUT", f"manifests/{reference}{query}", body, content_type=document["mediaType"])
    assert answer.status == 201, answer
    assert answer["docker-content-digest"] == digest
    assert {tag.strip() for line in answer.all("oci-tag") for tag in line.split(",")} == set(tags)
    assert answer.get("oci-subject") == document.get("subject", {}).get("digest")
    got = api("GET", answer["location"])
    assert (got.status, got["content-type"], got["content-length"]) == (200, document["mediaType"], str(len(body)))
    assert got.body == body


def read_all(data: Data) -> None:
    """Tags listed and after half of them; manifests and blobs by HEAD and GET; referrers, all and by type."""
    api = data.api
    if data.tags:
        listed = api("GET", "tags/list").json["tags"]
        assert listed == sorted(data.tags)
        half = len(listed) // 2
        if half:
            assert api("GET", f"tags/list?last={listed[half - 1]}").json["tags"] == listed[half:]
    for reference, digest in [*data.tags.items(), *((digest, digest) for digest in data.manifests)]:
        body = data.manifests[digest]
        head, got = api("HEAD", f"manifests/{reference}"), api("GET", f"manifests/{reference}")
        assert (head.status, head.body, got.status, got.body) == (200, b"", 200, body)
        for answer in (head, got):
            assert answer["content-type"] == json.loads(body)["mediaType"]
            assert (answer["content-length"], answer["docker-content-digest"]) == (str(len(body)), digest)
    for digest, body in data.blobs.items():
        assert api.holds(digest, body)
    for subject, goals in data.referrers.items():
        answer = api.referrers(subject)
        assert (answer.status, answer["content-type"]) == (200, OCI_INDEX)
        assert (answer.json["mediaType"], answer.json["schemaVersion"]) == (OCI_INDEX, 2)
        assert sorted(answer.json["manifests"], key=by_digest) == sorted(goals, key=by_digest)
        for kind in {str(goal["artifactType"]) for goal in goals}:
            answer = api.referrers(subject, f"?artifactType={kind.replace('/', '%2F').replace('+', '%2B')}")
            assert answer["oci-filters-applied"] == "artifactType"
            wanted = [goal for goal in goals if goal["artifactType"] == kind]
            assert sorted(answer.json["manifests"], key=by_digest) == sorted(wanted, key=by_digest)


def by_digest(entry: dict[str, object]) -> str:
    return str(entry["digest"])


def delete_all(data: Data) -> None:
    """Tags, then manifests from the last to the first, then blobs: each gone at once."""
    api = data.api
    targets = [f"manifests/{tag}" for tag in data.tags]
    targets += [f"manifests/{digest}" for digest in reversed(data.manifests)]
    targets += [f"blobs/{digest}" for digest in data.blobs]
    for target in targets:
        assert api("DELETE", target).status == 202, target
        assert api("HEAD", target).status == 404
    for subject in data.referrers:
        assert api.referrers(subject).json["manifests"] == []
    assert api("GET", "tags/list").json["tags"] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_data_is_pushed_listed_pulled_and_deleted(api: Api, kind: Callable[[Data], None]) -> None:
    data = Data(api)
    kind(data)
    put_all(data, tag_param=False)
    read_all(data)
    delete_all(data)


@BOTH
def test_tags_go_along_with_a_digest(api: Api, algorithm: str) -> None:
    data = Data(api, algorithm)
    data.index("tag-param", data.image("tag-param-0"), data.image("tag-param-1"))
    data.tags["tag-param-2"] = data.tags["tag-param"]
    put_all(data, tag_param=True)
    read_all(data)
    delete_all(data)


def test_a_manifest_that_does_not_have_its_digest_is_400(api: Api) -> None:
    body = api.manifest()
    answer = api.put(body + b"  ", digest_of(body))
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert api("HEAD", f"manifests/{digest_of(body)}").status == 404


def test_a_digest_that_is_none_is_400(api: Api) -> None:
    assert api.put(api.manifest(), "sha256:baddigeststring").status == 400
    assert api("GET", "manifests/sha256:baddigeststring").status in (400, 404)


def test_missing_manifests_and_an_empty_repository(api: Api) -> None:
    assert api("GET", "tags/list").status == 404
    answer = api.referrers(digest_of(b"anything"))
    assert (answer.status, answer["content-type"], answer.json["manifests"]) == (200, OCI_INDEX, [])
    for reference in ("missing-abc", digest_of(b"missing")):
        assert api("GET", f"manifests/{reference}").status == 404


def test_challenges_and_locations_can_be_read_as_the_suite_reads_them(api: Api) -> None:
    assert api("GET", "/v2/").status == 200
    answer = api("POST", "blobs/uploads/", anonymous=True)
    assert answer.status == 401
    assert CHALLENGE.sub(r"\1", answer["www-authenticate"]).lower() in ("basic", "bearer")
    found = REPOSITORY.match(api.start())
    assert found is not None
    assert found[1] == api.repo
