"""The ten defects of OpenRegistry, where this project comes from, each turned round."""

from __future__ import annotations

import pytest

from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.conformance import CONFIG, Api, basic, descriptor, digest_of, encode, with_digest


def test_1_manifests_are_served_as_they_were_pushed_indexes_and_annotations_too(api: Api) -> None:
    image = api.image("image", annotations={"b": "2", "a": "1"})
    index = b"\n" + api.index(image, annotations={"x": "y"}).replace(b": ", b" :  ") + b" "
    assert api.put(index, "index", OCI_INDEX).status == 201
    for tag, body in (("image", image), ("index", index)):
        for reference in (tag, digest_of(body)):
            assert api("GET", f"manifests/{reference}").body == body


def test_2_a_tag_moves_when_it_is_pushed_again_and_back(api: Api) -> None:
    first, second = api.image("latest"), api.image("latest")
    for body in (second, first, first, second):
        assert api.put(body, "latest").status == 201
        for method in ("GET", "HEAD"):
            assert api(method, "manifests/latest")["docker-content-digest"] == digest_of(body)
    assert api("GET", "tags/list").json["tags"] == ["latest"]
    assert api("GET", f"manifests/{digest_of(first)}").body == first, "the old one is still there by digest"


def test_3_deleting_a_tag_or_listing_tags_looks_at_one_repository_only(api: Api) -> None:
    base, repos, bodies = api.repo, ("one/app", "two/app", "one/other"), {}
    for name in repos:
        api.repo = f"{base}/{name}"
        bodies[name] = api.image("latest")
        api.put(bodies[name], name.replace("/", "-"))
    api.repo = f"{base}/one/app"
    assert api("DELETE", "manifests/latest").status == 202
    for name in repos:
        api.repo = f"{base}/{name}"
        left = ["one-app"] if name == "one/app" else sorted(["latest", name.replace("/", "-")])
        assert api("GET", "tags/list").json["tags"] == left
    assert api("GET", f"/v2/{base}/two/app/manifests/latest").body == bodies["two/app"]


def test_4_a_blob_or_manifest_is_read_through_its_own_repositories_only(api: Api) -> None:
    base, data = api.repo, api.fresh()
    digest, body = api.blob(data), api.image("1")
    api.repo = f"{base}/other"
    api.image("1")
    for method in ("GET", "HEAD", "DELETE"):
        assert api(method, f"blobs/{digest}").status == 404
        assert api(method, f"manifests/{digest_of(body)}").status == 404
    config = encode({"schemaVersion": 2, "config": descriptor(data, CONFIG), "layers": []})
    answer = api.put(config, "2")
    assert (answer.status, answer.codes) == (404, ["MANIFEST_BLOB_UNKNOWN"]), "nor used"
    assert api("POST", f"blobs/uploads/?mount={digest}&from={base}/never").status == 202, "nor mounted from elsewhere"
    assert api("POST", f"blobs/uploads/?mount={digest}&from={base}").status == 201
    assert api.put(config, "2").status == 201


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("last_in_put", [False, True])
def test_5_the_digest_of_all_bytes_is_verified_however_they_came(
    api: Api, algorithm: str, chunks: int, last_in_put: bool
) -> None:
    data = api.fresh(300)
    parts = [data[at : at + 300 // chunks] for at in range(0, 300, 300 // chunks)]
    for wanted, status in ((digest_of(parts[-1] + b"x", algorithm), 400), (digest_of(data, algorithm), 201)):
        location = api.start()
        for part in parts[:-1] if last_in_put else parts:
            location = api("PATCH", location, part)["location"]
        answer = api("PUT", with_digest(location, wanted), parts[-1] if last_in_put else b"")
        assert answer.status == status
    assert answer["docker-content-digest"] == digest_of(data, algorithm)
    assert api("GET", answer["location"]).body == data


def test_6_an_upload_needs_no_connection_and_answers_how_far_it_is(api: Api) -> None:
    """That it outlives its process, is resumed at another one and expires: tests/contract/test_several_trackers.py,
    tests/crash/test_tracker_crash.py, tests/unit/test_uploads.py."""
    data = api.fresh(3000)
    location = api.start()
    for at in range(0, 3000, 1000):
        with Api.connected(api.address, api.repo) as other:
            assert other("PATCH", location, data[at : at + 1000]).status == 202
            assert other("GET", location)["range"] == f"0-{at + 999}"
    assert api("PUT", with_digest(location, digest_of(data))).status == 201


def test_7_who_may_read_may_not_write(api: Api) -> None:
    body = api.image("1")
    digest = api.blob(api.fresh())
    assert api("GET", "manifests/1", anonymous=True).body == body
    for method, target in (
        ("PUT", "manifests/1"),
        ("DELETE", "manifests/1"),
        ("DELETE", f"manifests/{digest_of(body)}"),
        ("DELETE", f"blobs/{digest}"),
        ("POST", "blobs/uploads/"),
        ("POST", f"blobs/uploads/?mount={digest}&from={api.repo}"),
        ("POST", f"blobs/uploads/?digest={digest_of(b'x')}"),
        ("PATCH", api.start()),
        ("PUT", with_digest(api.start(), digest_of(b""))),
        ("DELETE", api.start()),
        ("GET", api.start()),
    ):
        assert api(method, target, anonymous=True).status == 401, (method, target)
    assert api("GET", "manifests/1").body == body
    assert api("HEAD", f"blobs/{digest}").status == 200


def test_8_a_password_may_hold_a_colon_and_nobody_is_refused_for_sending_credentials(api: Api) -> None:
    """The password itself: tests/unit/test_registry_api.py. Here: it is split at the first colon only."""
    body = api.image("1")
    assert api("GET", "manifests/1").body == body
    answer = api("GET", "/v2/", anonymous=True, authorization=basic("pusher", "secret:more"))
    assert (answer.status, answer.codes) == (401, ["UNAUTHORIZED"])


@pytest.mark.parametrize(
    "authorization", ["Basic !!", "Basic", "Basic " + "QUJD", "Bearer x", basic("x", "y"), basic("pusher", ""), "x"]
)
def test_9_bad_credentials_are_401_with_a_challenge(api: Api, authorization: str) -> None:
    body = api.image("1")
    for method, target in (("GET", "/v2/"), ("GET", "manifests/1"), ("POST", "blobs/uploads/")):
        answer = api(method, target, anonymous=True, authorization=authorization)
        assert (answer.status, answer.codes) == (401, ["UNAUTHORIZED"])
        assert answer["www-authenticate"].startswith(("Basic ", "Bearer "))
    assert api("HEAD", "manifests/1", anonymous=True)["content-length"] == str(len(body))


def test_9_head_of_an_index_has_its_own_length_and_type(api: Api) -> None:
    index = api.index(api.image())
    api.put(index, "1", OCI_INDEX)
    answer = api("HEAD", "manifests/1")
    assert (answer["content-length"], answer["content-type"]) == (str(len(index)), OCI_INDEX)


def test_10_pages_larger_than_the_list_and_positions_by_name(api: Api) -> None:
    body = api.manifest()
    for tag in ("a", "b", "c"):
        api.put(body, tag)
    assert api("GET", "tags/list?n=1000000").json["tags"] == ["a", "b", "c"]
    assert api("GET", "tags/list?n=1000000&last=a").json["tags"] == ["b", "c"]
    answer = api("GET", f"/v2/_catalog?n=100000&last={api.repo[:-1]}")
    assert api.repo in answer.json["repositories"]


@pytest.mark.parametrize("tag", ["a/b", "a b", "ok%0A", "%0Aok", "a%00", ".x", "-x", "a" * 129])
def test_10_names_are_matched_whole(api: Api, tag: str) -> None:
    body = api.image("1")
    answer = api("PUT", f"manifests/{tag.replace(' ', '%20')}", body, content_type=OCI_MANIFEST)
    assert answer.status in (400, 404)
    assert answer.codes
    assert api("POST", f"/v2/{api.repo}%0A/blobs/uploads/").codes == ["NAME_INVALID"]
