"""What real clients send beyond the specification's letter, and what they break on: each named by its client."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pregistry.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import (
    CONFIG,
    EMPTY_JSON,
    LAYER,
    Api,
    descriptor,
    digest_of,
    encode,
    with_digest,
)
from p2pregistry.testing.tracker_process import AUTHORIZATION

NO_DIGEST = "sha256:totallywrong"


def raw(api: Api, *parts: bytes, until: bytes = b"", close: bool = True) -> bytes:
    """What comes back for these bytes: all of it, or as much as ends with ``until``, before the next part goes out."""
    host, _, port = api.address.partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), 30, api.source) as connection:
        for number, part in enumerate(parts):
            connection.sendall(part)
            while (until and not answer.endswith(until)) or (number == len(parts) - 1 and close):
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
    return answer


def head(method: str, target: str, *fields: str) -> bytes:
    """The head of a request with credentials, after whose answer the connection ends."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: {AUTHORIZATION}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


# ------------------------------------------------------------------------------------------- how each client pushes


def push_as_docker(api: Api, data: bytes) -> None:
    location = api("POST", "blobs/uploads/", content_length="0")["location"]
    answer = api("PATCH", location, [data[:10], data[10:]])
    assert (answer.status, answer["range"]) == (202, f"0-{len(data) - 1}")
    assert answer["docker-upload-uuid"] in location
    answer = api("PUT", with_digest(answer["location"], digest_of(data)), content_length="0")
    assert answer.status == 201
    assert api("HEAD", f"blobs/{digest_of(data)}").status == 200, "docker looks at once"


def push_as_skopeo(api: Api, data: bytes) -> None:
    api("HEAD", f"blobs/{digest_of(data)}")
    location = api("POST", "blobs/uploads/", docker_distribution_api_version="registry/2.0")["location"]
    location = api("PATCH", location, data, content_type="application/octet-stream")["location"]
    quoted = digest_of(data).replace(":", "%3A")
    assert api("PUT", f"{location}?digest={quoted}", content_type="application/octet-stream").status == 201


def push_as_containerd(api: Api, data: bytes) -> None:
    answer = api("POST", f"blobs/uploads/?mount={digest_of(data)}&from={api.repo}/none")
    assert answer.status == 202
    answer = api(
        "PUT", with_digest(answer["location"], digest_of(data)), [data], content_type="application/octet-stream"
    )
    assert (answer.status, answer["docker-content-digest"]) == (201, digest_of(data)), "containerd wants it there"


def push_as_kaniko(api: Api, data: bytes) -> None:
    """And crane and ko, which share go-containerregistry."""
    answer = api("POST", f"blobs/uploads/?from={api.repo}/none&mount={digest_of(data)}&origin=registry.example")
    answer = api("PATCH", answer["location"], [data], content_type="application/octet-stream")
    assert api("PUT", with_digest(answer["location"], digest_of(data))).status == 201


def push_as_oras(api: Api, data: bytes) -> None:
    """And helm, which uses its library."""
    location = api("POST", "blobs/uploads/")["location"]
    answer = api("PUT", with_digest(location, digest_of(data)), data, content_type="application/octet-stream")
    assert answer.status == 201


def push_in_one_request(api: Api, data: bytes) -> None:
    answer = api("POST", f"blobs/uploads/?digest={digest_of(data)}", data, content_type="application/octet-stream")
    assert answer.status == 201


@pytest.mark.parametrize(
    "push",
    [push_as_docker, push_as_skopeo, push_as_containerd, push_as_kaniko, push_as_oras, push_in_one_request],
    ids=lambda push: push.__name__,
)
def test_a_blob_can_be_pushed(api: Api, push: object) -> None:
    data = api.fresh(3000)
    assert callable(push)
    push(api, data)
    assert api.holds(digest_of(data), data)


def test_an_upload_begins_with_and_without_the_last_slash(api: Api) -> None:
    assert [api("POST", f"blobs/uploads{end}").status for end in ("", "/")] == [202, 202]


def test_locations_are_relative_whatever_host_and_scheme_a_proxy_names(api: Api) -> None:
    answer = api("POST", "blobs/uploads/", host="elsewhere.example:444", x_forwarded_proto="https")
    assert answer["location"].startswith(f"/v2/{api.repo}/blobs/uploads/")
    data = api.fresh()
    answer = api("PUT", with_digest(answer["location"], digest_of(data)), data)
    assert answer["location"] == f"/v2/{api.repo}/blobs/{digest_of(data)}"
    assert api.put(api.manifest(), "1")["location"].startswith(f"/v2/{api.repo}/manifests/sha256:")


def test_a_mount_as_containerd_writes_it_unescaped(api: Api) -> None:
    data = api.fresh()
    digest, source = api.blob(data), api.repo
    api.repo += "/b"
    answer = api("POST", f"blobs/uploads/?mount={digest}&from={source}")
    assert (answer.status, answer["docker-content-digest"]) == (201, digest)


def test_manifest_digests_are_in_the_answer_to_a_push(api: Api) -> None:
    """containerd fails without."""
    body = api.manifest()
    for reference in ("1", digest_of(body)):
        assert api.put(body, reference)["docker-content-digest"] == digest_of(body)


def test_many_clients_push_the_same_blobs_at_once_into_a_new_repository(api: Api) -> None:
    data = api.fresh(50_000)

    def push(number: int) -> list[int]:
        with Api.connected(api.address, f"{api.repo}/new") as one:
            first = one("PUT", with_digest(one.start(), digest_of(data)), data).status
            one.blob(b"{}")
            document = {"schemaVersion": 2, "config": descriptor(b"{}", CONFIG), "layers": [descriptor(data, LAYER)]}
            return [first, one.put(encode(document), f"t{number}").status]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(push, range(8))) == [[201, 201]] * 8


# ------------------------------------------------------------------------------------------------------------- types


def test_an_image_without_media_type(api: Api) -> None:
    """Legal in OCI; podman wrote them for years."""
    config, layer = b"{}", api.fresh()
    api.blob(config)
    api.blob(layer)
    body = encode({"schemaVersion": 2, "config": descriptor(config, CONFIG), "layers": [descriptor(layer, LAYER)]})
    assert api.put(body, "1").status == 201
    answer = api("GET", "manifests/1")
    assert (answer["content-type"], answer.body) == (OCI_MANIFEST, body)


def test_docker_and_oci_types_in_one_index(api: Api) -> None:
    children = [api.image(), api.manifest(mediaType=DOCKER_MANIFEST)]
    assert api.put(children[1], None, DOCKER_MANIFEST).status == 201
    entries = [descriptor(children[0], OCI_MANIFEST), descriptor(children[1], DOCKER_MANIFEST)]
    for name, kind in (("oci", OCI_INDEX), ("docker", DOCKER_LIST)):
        body = encode({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
        assert api.put(body, name, kind).status == 201
        assert (api("HEAD", f"manifests/{name}")["content-type"], api("GET", f"manifests/{name}").body) == (kind, body)


def test_the_cache_of_buildkit_is_an_index_over_blobs(api: Api) -> None:
    layer, config = api.fresh(), api.fresh()
    entries = [descriptor(layer, LAYER), descriptor(config, "application/vnd.buildkit.cacheconfig.v0")]
    body = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    answer = api.put(body, "cache", OCI_INDEX)
    assert (answer.status, answer.codes) == (404, ["MANIFEST_BLOB_UNKNOWN"])
    api.blob(layer)
    api.blob(config)
    assert api.put(body, "cache", OCI_INDEX).status == 201
    assert api("GET", "manifests/cache").body == body
    assert api("DELETE", f"blobs/{digest_of(layer)}").status == 405, "the cache needs it"


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        ("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
        ("application/vnd.buildkit.cacheconfig.v0", LAYER),
        ("application/vnd.oci.image.config.v1+json", "application/vnd.dev.cosign.simplesigning.v1+json"),
        ("application/vnd.wasm.config.v0+json", "application/wasm"),
        (EMPTY_JSON, EMPTY_JSON),
    ],
)
def test_artifacts_of_any_type(api: Api, config: str, layer: str) -> None:
    """helm, buildkit, cosign, wasm, oras."""
    data = b"{}" if layer == EMPTY_JSON else api.fresh()
    for blob in (b"{}", data):
        api.blob(blob)
    body = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(b"{}", config),
            "layers": [descriptor(data, layer)],
        }
    )
    assert api.put(body, "1").status == 201
    assert api("GET", "manifests/1").body == body


# ------------------------------------------------------------------------------------------------------------- reads


def test_accept_on_several_lines_in_any_order(api: Api) -> None:
    """docker, podman and skopeo send one line for each type."""
    body = api.image("1")
    types = [DOCKER_LIST, "*/*", OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST]
    for order in (types, types[::-1]):
        fields = [f"Accept: {kind}" for kind in order]
        answer = raw(api, head("GET", f"/v2/{api.repo}/manifests/1", *fields, "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(body)


def test_nothing_is_compressed_on_the_way(api: Api) -> None:
    data = b"a" * 10_000
    answer = api("GET", f"blobs/{api.blob(data)}", accept_encoding="gzip, deflate, br, zstd")
    assert (answer.body, answer.get("content-encoding"), answer["content-length"]) == (data, None, "10000")


def test_a_mirror_parameter_is_of_no_account(api: Api) -> None:
    """containerd adds ?ns= to what it asks of a mirror."""
    body = api.image("1")
    for method in ("HEAD", "GET"):
        assert api(method, "manifests/1?ns=docker.io")["docker-content-digest"] == digest_of(body)


def test_what_a_client_has_already_is_not_sent_again(api: Api) -> None:
    """RFC 9110, 13.1.2: who sends an ETag must understand If-None-Match."""
    body, data = api.image("1"), api.fresh()
    for target in ("manifests/1", f"manifests/{digest_of(body)}", f"blobs/{api.blob(data)}"):
        tag = api("GET", target)["etag"]
        for method in ("GET", "HEAD"):
            for asked in (tag, f'"x", W/{tag}', "*"):
                answer = api(method, target, if_none_match=asked)
                assert (answer.status, answer.body, answer["etag"]) == (304, b"", tag)
            assert api(method, target, if_none_match='"x"').status == 200


def test_a_part_of_something_else_is_not_continued(api: Api) -> None:
    """RFC 9110, 13.1.5."""
    data = api.fresh()
    target = f"blobs/{api.blob(data)}"
    tag = api("HEAD", target)["etag"]
    assert api("GET", target, range="bytes=50-", if_range=tag).body == data[50:]
    answer = api("GET", target, range="bytes=50-", if_range='"other"')
    assert (answer.status, answer.body) == (200, data)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=x", "bytes=", "bytes=-", "bytes=1-2;3"])
def test_a_range_that_may_be_ignored_gives_the_whole_or_its_parts(api: Api, asked: str) -> None:
    data = api.fresh()
    answer = api("GET", f"blobs/{api.blob(data)}", range=asked)
    if answer.status == 206:
        assert answer["content-type"].startswith("multipart/byteranges")
        assert (data[:2] in answer.body, data[5:7] in answer.body) == (True, True)
    else:
        assert (answer.status, answer.body) == (200, data)


def test_a_range_of_nothing(api: Api) -> None:
    digest = api.blob(b"")
    assert api("GET", f"blobs/{digest}", range="bytes=0-").status == 416
    assert api("GET", f"blobs/{digest}").body == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
def test_a_wrong_digest_with_a_body_is_400_or_404_in_json(api: Api, method: str) -> None:
    """The older conformance suite sends a body with its GET."""
    answer = api(method, f"manifests/{NO_DIGEST}", b"{}", content_type=OCI_MANIFEST)
    assert answer.status in (400, 404)
    assert method == "HEAD" or answer.codes == ["DIGEST_INVALID"]
    assert api("GET", "/v2/").status == 200, "the connection is in order"


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["blobs", "tags", "a/blobs/uploads", "a/manifests/b", "tags/list", "v2/v2", "referrers/x"]
)
def test_repositories_named_like_endpoints(api: Api, name: str) -> None:
    api.repo = f"{api.repo}/{name}"
    body, data = api.image("1"), api.fresh()
    push_as_docker(api, data)
    assert api("GET", "tags/list").json == {"name": api.repo, "tags": ["1"]}
    assert api("GET", "manifests/1").body == body
    assert api.referrers(body).json["manifests"] == []


def test_paths_may_be_percent_encoded(api: Api) -> None:
    body = api.image("1")
    quoted = api.repo.replace("/", "%2F")
    assert api("GET", f"/v2/{quoted}/manifests/{digest_of(body).replace(':', '%3A')}").body == body


def test_tags_differ_by_case_and_repositories_have_none(api: Api) -> None:
    lower, upper = api.image("tag"), api.image("TAG")
    assert (api("GET", "manifests/tag").body, api("GET", "manifests/TAG").body) == (lower, upper)
    assert api("GET", "manifests/Tag").status == 404
    assert api("GET", f"/v2/{api.repo.upper()}/manifests/tag").codes == ["NAME_INVALID"]


def test_a_name_of_255_characters_is_the_longest(api: Api) -> None:
    api.repo = (api.repo + "/" + "n" * 255)[:255]
    body = api.image("1")
    assert api("GET", "manifests/1").body == body
    assert api("GET", "tags/list").json["name"] == api.repo
    answer = api("POST", f"/v2/{api.repo}n/blobs/uploads/")
    assert (answer.status, answer.codes) == (400, ["NAME_INVALID"])


# -------------------------------------------------------------------------------------------------------- connections


def test_a_tls_greeting_is_refused_at_once(api: Api) -> None:
    """docker tries TLS first even on localhost."""
    assert raw(api, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").startswith(b"HTTP/1.1 400 ")


def test_a_client_that_waits_for_100_continue_gets_it(api: Api) -> None:
    data = api.fresh()
    target = f"/v2/{api.repo}/blobs/uploads/?digest={digest_of(data)}"
    fields = (f"Content-Length: {len(data)}", "Expect: 100-continue", "Connection: close")
    answer = raw(api, head("POST", target, *fields), data, until=b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")


@pytest.mark.parametrize("authorization", ["", f"Authorization: {AUTHORIZATION}"])
def test_who_waits_for_100_continue_is_refused_before_sending(api: Api, authorization: str) -> None:
    fields = ["Host: x", f"Content-Length: {9 << 20}", "Expect: 100-continue", f"Content-Type: {OCI_MANIFEST}"]
    fields += [authorization] if authorization else []
    answer = raw(api, "\r\n".join([f"PUT /v2/{api.repo}/manifests/1 HTTP/1.1", *fields, "", ""]).encode())
    assert answer.startswith(b"HTTP/1.1 413 " if authorization else b"HTTP/1.1 401 ")
    assert b"application/json" in answer
    assert b'"errors"' in answer


def test_what_a_client_sent_before_it_left_is_kept(api: Api) -> None:
    data = api.fresh(5000)
    location = api.start()
    raw(api, head("PATCH", location, "Content-Length: 5000"), data[:3000], close=False)
    end = time.monotonic() + 30
    while (sent := api("GET", location)["range"]) == "0-0" and time.monotonic() < end:
        time.sleep(0.05)
    at = int(sent.removeprefix("0-")) + 1
    assert 0 < at <= 3000
    answer = api("PATCH", location, data[at:], content_range=f"{at}-4999")
    assert answer.status == 202
    assert api("PUT", with_digest(answer["location"], digest_of(data))).status == 201
    assert api.holds(digest_of(data), data)


def test_an_answer_without_a_body_says_no_more_than_it_has(api: Api) -> None:
    """And the connection serves the next request: a wrong length would show there."""
    data = api.fresh()
    location = api.start()
    for answer, status in (
        (api("GET", location), 204),
        (api("PATCH", location, data, content_range="7-106"), 416),
        (api("DELETE", location), 204),
        (api("HEAD", f"blobs/{digest_of(data)}"), 404),
    ):
        assert answer.status == status
        assert status != 204 or answer.get("content-length") in (None, "0")
        assert status != 416 or answer["content-length"] == str(len(answer.body))
        assert api("GET", "/v2/").body == b"{}"


def chunked(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The data in pieces of these sizes, then the rest."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 65536), (262144,), (300_000, 1)])
def test_a_stream_in_pieces_of_any_size(api: Api, sizes: tuple[int, ...]) -> None:
    data = api.fresh(400_000)
    answer = api("PATCH", api.start(), chunked(data, sizes))
    assert answer["range"] == "0-399999"
    assert api("PUT", with_digest(answer["location"], digest_of(data))).status == 201
    assert api("GET", f"blobs/{digest_of(data)}").body == data


def test_a_hundred_tags_fit_into_the_headers_that_clients_read(api: Api) -> None:
    """Python's http.client takes at most a hundred lines; a few tags have a line each."""
    body, tags = api.manifest(), [f"t{number:02}" for number in range(100)]
    query = "&".join(f"tag={tag}" for tag in tags)
    answer = api("PUT", f"manifests/{digest_of(body)}?{query}", body, content_type=OCI_MANIFEST)
    lines = answer.all("oci-tag")
    assert (answer.status, len(lines) <= 20) == (201, True)
    assert [tag for line in lines for tag in line.split(", ")] == tags == api("GET", "tags/list").json["tags"]


def test_the_type_of_a_referrer_is_in_its_list_however_long_the_name_of_the_subject(api: Api) -> None:
    """A fallback tag of a sha512 subject has the first 64 digits only; its entries and ours are one list."""
    subject = api.manifest()
    digest = digest_of(subject, "sha512")
    assert api.put(subject, digest).status == 201
    about = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(subject)}
    artifact = api.manifest(subject=about, artifactType="application/x.y")
    answer = api.put(artifact)
    assert (answer.status, answer["oci-subject"]) == (201, digest)
    entry = {**descriptor(artifact, OCI_MANIFEST), "artifactType": "application/x.y"}
    index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    assert api.put(index, f"sha512-{digest[7 : 7 + 64]}", OCI_INDEX).status == 201
    (found,) = api.referrers(digest).json["manifests"]
    assert (found["digest"], found["artifactType"]) == (digest_of(artifact), "application/x.y")
    assert api("DELETE", f"manifests/{digest_of(artifact)}").status == 202
    assert api.referrers(digest).json["manifests"] == [], "though the fallback tag still names it"
