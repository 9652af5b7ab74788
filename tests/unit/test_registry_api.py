"""The registry API, called as the clients call it, without a socket or a database."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.oci.media import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.handlers import ScriptedBody
from p2pregistry.testing.tracker_api import USER, Registry, manifest_of, registry
from tracker.catalog.base import NewManifest
from tracker.catalog.trail import By

REPO = "acme/api"
EMPTY = Digest.of(b"")


async def start(api: Registry, query: str = "") -> str:
    answer = await api("POST", f"/v2/{REPO}/blobs/uploads/{query}")
    assert answer.status == 202
    assert answer.headers["range"] == "0-0"
    assert answer.headers["location"] == f"/v2/{REPO}/blobs/uploads/{answer.headers['docker-upload-uuid']}"
    return answer.headers["location"]


async def assert_pullable(api: Registry, data: bytes) -> None:
    digest = Digest.of(data)
    answer = await api("GET", f"/v2/{REPO}/blobs/{digest}")
    assert (answer.status, answer.body) == (200, data)
    assert answer.headers["docker-content-digest"] == str(digest)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["accept-ranges"] == "bytes"
    head = await api("HEAD", f"/v2/{REPO}/blobs/{digest}")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(data)), b"")
    stored = await api.catalog.blob(REPO, digest)
    assert stored is not None
    assert stored.ref == Metainfo.of_bytes(data).ref
    assert await api.catalog.sessions.count() == 0
    assert await api.drafts() == []


def created(answer: object, data: bytes) -> bool:
    digest = Digest.of(data)
    headers = answer.headers  # type: ignore[attr-defined]
    return (
        answer.status == 201  # type: ignore[attr-defined]
        and headers["location"] == f"/v2/{REPO}/blobs/{digest}"
        and headers["docker-content-digest"] == str(digest)
        and headers["docker-distribution-api-version"] == "registry/2.0"
    )


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (5 << 20) + 3])
async def test_docker_pushes_by_one_streamed_patch_and_an_empty_put(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    async with registry(tmp_path) as api:
        location = await start(api)
        pieces = [data[i : i + 70_000] for i in range(0, size, 70_000)]
        patched = await api("PATCH", location, ScriptedBody(pieces), chunked=True)
        assert (patched.status, patched.headers["range"]) == (202, f"0-{max(0, size - 1)}")
        assert created(await api("PUT", f"{patched.headers['location']}?digest={Digest.of(data)}"), data)
        await assert_pullable(api, data)


async def test_containerd_pushes_by_one_put(tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 17)
    async with registry(tmp_path) as api:
        location = await start(api)
        assert created(await api("PUT", f"{location}?digest={Digest.of(data)}", data), data)
        await assert_pullable(api, data)


async def test_skopeo_patches_with_a_length(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    async with registry(tmp_path) as api:
        location = await start(api)
        octets = [("Content-Type", "application/octet-stream")]
        assert (await api("PATCH", location, data, headers=octets)).status == 202
        assert created(await api("PUT", f"{location}?digest={Digest.of(data)}"), data)
        await assert_pullable(api, data)


async def test_chunks_with_ranges_and_the_last_one_in_the_put(tmp_path: Path) -> None:
    data = os.urandom(3000)
    async with registry(tmp_path) as api:
        location = await start(api)
        for a, b in ((0, 1000), (1000, 1001), (1001, 2000)):
            answer = await api("PATCH", location, data[a:b], headers=[("Content-Range", f"{a}-{b - 1}")])
            assert (answer.status, answer.headers["range"]) == (202, f"0-{b - 1}")
        final = [("Content-Range", "2000-2999")]
        assert created(await api("PUT", f"{location}?digest={Digest.of(data)}", data[2000:], headers=final), data)
        await assert_pullable(api, data)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_chunk_out_of_order_is_refused_and_not_appended(tmp_path: Path, method: str) -> None:
    data = os.urandom(2000)
    async with registry(tmp_path) as api:
        location = await start(api)
        await api("PATCH", location, data[:1000])
        target = f"{location}?digest={Digest.of(data)}"
        for span in ("0-999", "1001-2000", "999-1998"):
            answer = await api(method, target, data[1000:], headers=[("Content-Range", span)])
            assert (answer.status, answer.code) == (416, "BLOB_UPLOAD_INVALID")
            assert answer.headers["range"] == "0-999"
            assert answer.headers["location"] == location
        status = await api("GET", location)
        assert (status.status, status.headers["range"]) == (204, "0-999")
        assert created(await api("PUT", target, data[1000:], headers=[("Content-Range", "1000-1999")]), data)


async def test_lengths_that_disagree_are_refused(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        location = await start(api)
        answer = await api("PATCH", location, b"12345", headers=[("Content-Range", "0-5")])
        assert (answer.status, answer.code) == (400, "SIZE_INVALID")
        answer = await api("PATCH", location, b"12345", headers=[("Content-Range", "0-3")], chunked=True)
        assert (answer.status, answer.code) == (400, "SIZE_INVALID")
        assert (await api("GET", location)).headers["range"] == "0-3"  # what the range promised, no more


async def test_post_with_the_whole_blob(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        for data in (b"hello", b""):
            target = f"/v2/{REPO}/blobs/uploads/?digest={Digest.of(data)}"
            assert created(await api("POST", target, data), data)
            assert created(await api("POST", target, data), data)  # again
            await assert_pullable(api, data)


async def test_sha512_blobs(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 5)
    digest = Digest.of(data, "sha512")
    async with registry(tmp_path) as api:
        location = await start(api, "?digest-algorithm=sha512")
        assert (await api("PUT", f"{location}?digest={digest}", data)).status == 201
        assert (await api("GET", f"/v2/{REPO}/blobs/{digest}")).body == data
        assert (await api("GET", f"/v2/{REPO}/blobs/{Digest.of(data)}")).status == 404


async def test_a_wrong_digest_leaves_nothing(tmp_path: Path) -> None:
    wrong = Digest.of(b"something else")
    async with registry(tmp_path) as api:
        for algorithm in ("sha256", "sha512"):
            location = await start(api)
            target = f"{location}?digest={Digest.of(b'other', algorithm)}"
            answer = await api("PUT", target, b"data")
            assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
            assert (await api("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"
        answer = await api("POST", f"/v2/{REPO}/blobs/uploads/?digest={wrong}", b"data")
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        assert await api.catalog.sessions.count() == 0
        assert await api.drafts() == []
        assert [one async for one in api.objects.objects()] == []


async def test_a_client_that_leaves_finds_what_arrived(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    async with registry(tmp_path) as api:
        location = await start(api)
        answer = await api("PATCH", location, ScriptedBody([data[:2_500_000]], cut=True), chunked=True)
        assert (answer.status, answer.code) == (400, "SIZE_INVALID")
        assert (await api("GET", location)).headers["range"] == "0-2499999"
        rest = [("Content-Range", "2500000-2999999")]
        assert (await api("PATCH", location, data[2_500_000:], headers=rest)).status == 202
        assert created(await api("PUT", f"{location}?digest={Digest.of(data)}"), data)
        await assert_pullable(api, data)


async def test_a_whole_post_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        target = f"/v2/{REPO}/blobs/uploads/?digest={Digest.of(b'abcdef')}"
        answer = await api("POST", target, ScriptedBody([b"abc"], cut=True), chunked=True)
        assert answer.code == "SIZE_INVALID"
        assert await api.catalog.sessions.count() == 0
        assert await api.drafts() == []


async def test_cancelling_a_request_keeps_the_session_usable(tmp_path: Path) -> None:
    data = os.urandom(5 << 20)

    class Stalling(ScriptedBody):
        async def __anext__(self) -> bytes:
            if self.given:
                reached.set()
                await trio.sleep_forever()
            self.given = True
            return data[: 3 << 20]

        given = False

    reached = trio.Event()
    async with registry(tmp_path) as api:
        location = await start(api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api, "PATCH", location, Stalling([]))
            await reached.wait()
            busy = await api("PATCH", location, b"more")
            assert (busy.status, busy.code) == (409, "BLOB_UPLOAD_INVALID")
            assert (await api("DELETE", location)).status == 409
            nursery.cancel_scope.cancel()
        span = (await api("GET", location)).headers["range"]
        have = int(span.removeprefix("0-")) + 1
        assert have == 3 << 20
        assert created(await api("PUT", f"{location}?digest={Digest.of(data)}", data[have:]), data)


async def test_an_upload_can_be_cancelled(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        location = await start(api)
        await api("PATCH", location, b"data")
        assert (await api("DELETE", location)).status == 204
        assert await api.drafts() == []
        for method in ("GET", "PATCH", "DELETE"):
            assert (await api(method, location)).code == "BLOB_UPLOAD_UNKNOWN"
        assert (await api("PUT", f"{location}?digest={EMPTY}")).code == "BLOB_UPLOAD_UNKNOWN"


async def test_a_session_belongs_to_its_repository(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        location = await start(api)
        assert (await api("GET", location.replace(REPO, "acme/other"))).code == "BLOB_UPLOAD_UNKNOWN"


async def test_idle_sessions_expire(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with registry(tmp_path, expiry=100.0) as api, trio.open_nursery() as nursery:
        location = await start(api)
        await api("PATCH", location, b"data")
        nursery.start_soon(api.uploads.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(101)
        while await api.catalog.sessions.count() or await api.drafts():
            await trio.lowlevel.checkpoint()
        assert (await api("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"
        nursery.cancel_scope.cancel()


async def test_too_many_sessions(tmp_path: Path) -> None:
    async with registry(tmp_path, limit=2) as api:
        locations = [await start(api) for _ in range(2)]
        answer = await api("POST", f"/v2/{REPO}/blobs/uploads/")
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        assert "retry-after" in answer.headers
        await api("DELETE", locations[0])
        await start(api)


async def test_bytes_that_no_session_knows_of_are_removed_after_a_day(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        await api("PATCH", await start(api), b"data")
    async with registry(tmp_path) as api:  # another database
        await api("PATCH", await start(api), b"others")
        assert await api.uploads.remove_leftovers() == 0
        assert await api.uploads.remove_leftovers(time.time() + 90_000) == 1
        assert len(await api.drafts()) == 1


async def test_mounts(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest = await api.push_blob("acme/base", b"layer")
        missing = Digest.of(b"missing")
        for query in (f"?mount={digest}&from=acme/base", f"?mount={digest}"):
            assert created(await api("POST", f"/v2/{REPO}/blobs/uploads/{query}"), b"layer")
        await assert_pullable(api, b"layer")
        for query in (f"?mount={missing}&from=acme/base", f"?mount={digest}&from=acme/none", f"?mount={missing}"):
            location = await start(api, query)
            await api("DELETE", location)


async def test_what_a_disk_has_lost_is_not_mounted_but_pushed_again(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest = await api.push_blob("acme/base", b"layer")
        for path in (tmp_path / "blobs").rglob("*"):
            if path.is_file():
                path.unlink()
        location = await start(api, f"?mount={digest}&from=acme/base")
        answer = await api("PUT", f"{location}?digest={digest}", b"layer")
        assert created(answer, b"layer")
        for name in (REPO, "acme/base"):
            assert (await api("GET", f"/v2/{name}/blobs/{digest}")).body == b"layer"


async def test_a_blob_is_only_in_its_repository(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest = await api.push_blob("acme/private", b"layer")
        for method in ("GET", "HEAD"):
            assert (await api(method, f"/v2/{REPO}/blobs/{digest}")).status == 404


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=500-1499", 206, (500, 1500)),
        ("bytes=500-", 206, (500, 2048)),
        ("bytes=-500", 206, (1548, 2048)),
        ("bytes=2000-5000", 206, (2000, 2048)),
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=500-0", 416, None),
        ("bytes=5000-10000", 416, None),
        ("bytes=0-1,5-6", 200, (0, 2048)),
        ("lines=1-2", 200, (0, 2048)),
        ("bytes=x", 200, (0, 2048)),
    ],
)
async def test_ranges(tmp_path: Path, header: str, status: int, part: tuple[int, int] | None) -> None:
    data = os.urandom(2048)
    async with registry(tmp_path) as api:
        digest = await api.push_blob(REPO, data)
        answer = await api("GET", f"/v2/{REPO}/blobs/{digest}", headers=[("Range", header)])
        assert answer.status == status
        if part is None:
            assert answer.headers["content-range"] == "bytes */2048"
            assert answer.code
        else:
            assert answer.body == data[slice(*part)]
        if status == 206 and part is not None:
            assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/2048"


# ------------------------------------------------------------------------------------------------------------ manifests


async def test_a_manifest_is_kept_byte_for_byte_and_signed(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest, body = await api.push_image(REPO, "1.4", b"one", b"two")
        for reference in ("1.4", str(digest)):
            answer = await api("GET", f"/v2/{REPO}/manifests/{reference}")
            assert (answer.status, answer.body) == (200, body)
            head = await api("HEAD", f"/v2/{REPO}/manifests/{reference}")
            assert head.headers.pop("content-length") == str(len(body))
            assert head.headers == answer.headers
            assert answer.headers["content-type"] == OCI_MANIFEST
            assert answer.headers["docker-content-digest"] == str(digest)
        (claim,) = api.claims
        assert (claim.repository, claim.manifest) == (REPO, digest)
        assert [ref.digest for ref in claim.blobs][1:] == [Digest.of(b"one"), Digest.of(b"two")]


async def test_a_pushed_tag_moves(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        first, _ = await api.push_image(REPO, "latest", b"one")
        second, _ = await api.push_image(REPO, "latest", b"two")
        answer = await api("HEAD", f"/v2/{REPO}/manifests/latest")
        assert answer.headers["docker-content-digest"] == str(second)
        assert (await api("GET", f"/v2/{REPO}/manifests/{first}")).status == 200


async def test_the_content_type_is_what_was_pushed_without_parameters(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        await api.push_image(REPO, "x", b"one")
        config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
        body = manifest_of(config, b"one", mediaType=DOCKER_MANIFEST)
        sent = [("Content-Type", f"{DOCKER_MANIFEST}; charset=utf-8")]
        assert (await api("PUT", f"/v2/{REPO}/manifests/d", body, headers=sent)).status == 201
        assert (await api("GET", f"/v2/{REPO}/manifests/d")).headers["content-type"] == DOCKER_MANIFEST


async def test_an_index(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        child, body = await api.push_image(REPO, "amd64", b"one")
        entry = {"mediaType": OCI_MANIFEST, "digest": str(child), "size": len(body)}
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        answer = await api("PUT", f"/v2/{REPO}/manifests/all", index, headers=[("Content-Type", OCI_INDEX)])
        assert answer.status == 201
        other = await api("PUT", "/v2/acme/other/manifests/all", index, headers=[("Content-Type", OCI_INDEX)])
        assert (other.status, other.code) == (404, "MANIFEST_BLOB_UNKNOWN")


async def test_a_manifest_by_digest_with_tags(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest, body = await api.push_image(REPO, "old", b"one")
        target = f"/v2/{REPO}/manifests/{digest}?tag=1.2&tag=1&tag=1"
        answer = await api("PUT", target, body, headers=[("Content-Type", OCI_MANIFEST)])
        assert answer.status == 201
        assert [value for name, value in answer.lines if name == "OCI-Tag"] == ["1.2", "1"]
        assert (await api("GET", f"/v2/{REPO}/tags/list")).json() == {"name": REPO, "tags": ["1", "1.2", "old"]}


async def test_missing_blobs_are_named(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        await api.push_blob("acme/other", b"layer")  # in another repository: not here
        body = manifest_of(b"config", b"layer")
        answer = await api("PUT", f"/v2/{REPO}/manifests/1", body, headers=[("Content-Type", OCI_MANIFEST)])
        assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert str(Digest.of(b"layer")) in answer.body.decode()
        assert (await api("GET", f"/v2/{REPO}/manifests/1")).code == "MANIFEST_UNKNOWN"


async def test_a_missing_subject_is_accepted(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        await api.push_blob(REPO, b"{}")
        subject = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"gone")), "size": 4}
        body = manifest_of(b"{}", subject=subject)
        answer = await api("PUT", f"/v2/{REPO}/manifests/sig", body, headers=[("Content-Type", OCI_MANIFEST)])
        assert answer.status == 201
        assert answer.headers["oci-subject"] == str(Digest.of(b"gone")), "clients leave the list of referrers to us"
        listed = await api("GET", f"/v2/{REPO}/referrers/{Digest.of(b'gone')}")
        assert [entry["digest"] for entry in listed.json()["manifests"]] == [str(Digest.of(body))]


async def _push_referrer(api: Registry, subject: Digest, **more: object) -> dict[str, object]:
    """Push an artifact about ``subject``; what a list of referrers should say of it."""
    await api.push_blob(REPO, b"{}")
    about = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 4}
    body = manifest_of(b"{}", subject=about, **more)
    digest = Digest.of(body)
    answer = await api("PUT", f"/v2/{REPO}/manifests/{digest}", body, headers=[("Content-Type", OCI_MANIFEST)])
    assert answer.status == 201
    return {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(body)}


async def test_referrers_are_listed_with_type_and_annotations_and_by_type(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        subject = Digest.of(b"gone")
        first = await _push_referrer(api, subject, artifactType="application/vnd.sbom", annotations={"a": "b"})
        second = await _push_referrer(api, subject)
        answer = await api("GET", f"/v2/{REPO}/referrers/{subject}")
        assert answer.headers["content-type"] == OCI_INDEX
        assert (answer.json()["schemaVersion"], answer.json()["mediaType"]) == (2, OCI_INDEX)
        listed = {entry["digest"]: entry for entry in answer.json()["manifests"]}
        assert listed[first["digest"]] == {**first, "artifactType": "application/vnd.sbom", "annotations": {"a": "b"}}
        config = json.loads(manifest_of(b"{}"))["config"]["mediaType"]
        assert listed[second["digest"]] == {**second, "artifactType": config}
        one = await api("GET", f"/v2/{REPO}/referrers/{subject}?artifactType=application/vnd.sbom")
        assert one.headers["oci-filters-applied"] == "artifactType"
        assert [entry["digest"] for entry in one.json()["manifests"]] == [first["digest"]]


async def test_what_a_client_kept_under_a_fallback_tag_is_listed_too_once(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        subject = Digest.of(b"gone")
        known = await _push_referrer(api, subject, artifactType="t/new")
        await _list_under_fallback_tag(api, subject, {**known, "artifactType": "t/old"})
        path = f"/v2/{REPO}/referrers/{subject}"
        assert (await api("GET", path)).json()["manifests"] == [{**known, "artifactType": "t/new"}], (
            "what the manifest itself says counts"
        )
        assert (await api("DELETE", f"/v2/{REPO}/manifests/{known['digest']}")).status == 202
        assert (await api("GET", path)).json()["manifests"] == [], "nobody tidies the tag up any more"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_manifests_from_before_subjects_were_recorded_are_listed_by_the_fallback_tag(
    tmp_path: Path, algorithm: str
) -> None:
    async with registry(tmp_path) as api:
        subject = Digest.of(b"first there, then described", algorithm)
        before = manifest_of(b"{}", subject=_subject(subject), artifactType="t/before")
        new = manifest_of(b"{}", subject=_subject(subject), artifactType="t/new")
        other = manifest_of(b"{}", subject=_subject(Digest.of(b"another")), artifactType="t/before")
        about_nothing = manifest_of(b"{}")
        await api.push_blob(REPO, b"{}")
        for body in (before, other, about_nothing):
            unknown = NewManifest(Digest.of(body), OCI_MANIFEST, body, (Digest.of(b"{}"),), ())
            await api.catalog.put_manifest(REPO, unknown, (), lambda _: "claim", By("", ""))
        await api("PUT", f"/v2/{REPO}/manifests/x", new, headers=[("Content-Type", OCI_MANIFEST)])
        listed = [
            {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(body)), "size": len(body)}
            for body in (before, other, about_nothing)
        ]
        await _list_under_fallback_tag(api, subject, *listed)
        path = f"/v2/{REPO}/referrers/{subject}"
        both = sorted(((str(Digest.of(body)), kind) for body, kind in ((before, "t/before"), (new, "t/new"))))
        answer = (await api("GET", path)).json()["manifests"]
        assert [(one["digest"], one["artifactType"]) for one in answer] == both
        answer = (await api("GET", f"{path}?artifactType=t/before")).json()["manifests"]
        assert [one["digest"] for one in answer] == [str(Digest.of(before))]
        seen: list[str] = []
        target = f"{path}?n=1"
        while target:
            page = await api("GET", target)
            seen += [one["digest"] for one in page.json()["manifests"]]
            target = (page.headers.get("link", "")).partition(">")[0].lstrip("<")
        assert seen == [digest for digest, _ in both]


def _subject(digest: Digest) -> dict[str, object]:
    return {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 9}


async def _list_under_fallback_tag(api: Registry, subject: Digest, *entries: dict[str, object]) -> None:
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    path = f"/v2/{REPO}/manifests/{subject.algorithm}-{subject.hex[:64]}"
    assert (await api("PUT", path, index, headers=[("Content-Type", OCI_INDEX)])).status == 201


async def test_referrers_of_nothing_are_an_empty_index(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        for name in (REPO, "no/such/repository"):
            answer = await api("GET", f"/v2/{name}/referrers/{Digest.of(b'x')}")
            assert (answer.status, answer.json()["manifests"]) == (200, [])
        assert (await api("GET", f"/v2/{REPO}/referrers/latest")).code == "DIGEST_INVALID"


async def test_deleting_tags_manifests_and_blobs(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        digest, body = await api.push_image(REPO, "1", b"layer")
        layer = f"/v2/{REPO}/blobs/{Digest.of(b'layer')}"
        await api("PUT", f"/v2/{REPO}/manifests/2", body, headers=[("Content-Type", OCI_MANIFEST)])
        assert (await api("DELETE", f"/v2/{REPO}/manifests/1")).status == 202
        assert (await api("GET", f"/v2/{REPO}/manifests/1")).code == "MANIFEST_UNKNOWN"
        assert (await api("GET", f"/v2/{REPO}/manifests/2")).body == body
        refused = await api("DELETE", layer)
        assert (refused.status, refused.code) == (405, "UNSUPPORTED"), "a manifest refers to it"
        assert (await api("DELETE", f"/v2/{REPO}/manifests/{digest}")).status == 202
        assert (await api("GET", f"/v2/{REPO}/tags/list")).json()["tags"] == []
        assert (await api("DELETE", layer)).status == 202
        assert (await api("GET", layer)).code == "BLOB_UNKNOWN"
        for path in ("manifests/1", f"manifests/{digest}"):
            assert (await api("DELETE", f"/v2/{REPO}/{path}")).code == "MANIFEST_UNKNOWN"
        assert (await api("DELETE", layer)).code == "BLOB_UNKNOWN"
        done = [action for _, action, _ in api.catalog.written]
        assert {"tag.delete", "manifest.delete", "blob.delete", "manifest.push", "blob.push"} == set(done)
        assert {by.actor for by, _, _ in api.catalog.written} == {USER}


async def test_repositories_in_pages(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        for name in ("b", "a/b", "a", "c"):
            await api.push_blob(name, b"x")
        assert (await api("GET", "/v2/_catalog")).json() == {"repositories": ["a", "a/b", "b", "c"]}
        first = await api("GET", "/v2/_catalog?n=2")
        assert first.json() == {"repositories": ["a", "a/b"]}
        assert first.headers["link"] == '</v2/_catalog?n=2&last=a%2Fb>; rel="next"'
        last = await api("GET", "/v2/_catalog?n=2&last=a%2Fb")
        assert last.json() == {"repositories": ["b", "c"]}
        assert "link" not in last.headers
        assert (await api("GET", "/v2/_catalog?n=0")).json() == {"repositories": []}


async def test_tags_in_pages(tmp_path: Path) -> None:
    async with registry(tmp_path) as api:
        _, body = await api.push_image(REPO, "b", b"one")
        for tag in ("a", "B", "c", "_x"):
            await api("PUT", f"/v2/{REPO}/manifests/{tag}", body, headers=[("Content-Type", OCI_MANIFEST)])
        first = await api("GET", f"/v2/{REPO}/tags/list?n=2")
        assert first.json()["tags"] == ["B", "_x"]
        link = first.headers["link"]
        assert link == f'</v2/{REPO}/tags/list?n=2&last=_x>; rel="next"'
        second = await api("GET", link.partition(">")[0][1:])
        assert second.json()["tags"] == ["a", "b"]
        third = await api("GET", second.headers["link"].partition(">")[0][1:])
        assert third.json()["tags"] == ["c"]
        assert "link" not in third.headers
        assert (await api("GET", f"/v2/{REPO}/tags/list?last=a")).json()["tags"] == ["b", "c"]
        none = await api("GET", f"/v2/{REPO}/tags/list?n=0")
        assert none.json()["tags"] == []
        assert "link" not in none.headers
        assert (await api("GET", f"/v2/{REPO}/tags/list?n=99999999")).json()["tags"] == ["B", "_x", "a", "b", "c"]
        assert (await api("GET", "/v2/no/such/tags/list?n=0")).code == "NAME_UNKNOWN"


# -------------------------------------------------------------------------------------------------------- hostile input

_D = str(Digest.of(b"x"))
_GOOD = manifest_of(b"c", b"l")


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status", "code"),
    [
        ("GET", "/", b"", (), 404, "NAME_UNKNOWN"),
        ("GET", "/v3/", b"", (), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/acme", b"", (), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/acme/manifests/", b"", (), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/Acme/manifests/1", b"", (), 400, "NAME_INVALID"),
        ("GET", "/v2/../manifests/1", b"", (), 400, "NAME_INVALID"),
        ("GET", "/v2/a%00b/manifests/1", b"", (), 400, "NAME_INVALID"),
        ("GET", "/v2/" + "a" * 300 + "/manifests/1", b"", (), 400, "NAME_INVALID"),
        ("GET", "/v2/a/manifests/sha256:totallywrong", b"", (), 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/md5:00", b"", (), 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/-x", b"", (), 400, "MANIFEST_INVALID"),
        ("GET", "/v2/a/manifests/" + "x" * 200, b"", (), 400, "MANIFEST_INVALID"),
        ("GET", "/v2/a/blobs/latest", b"", (), 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/sha256:" + "A" * 64, b"", (), 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/tags/list", b"", (), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/tags/list?n=-1", b"", (), 400, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list?n=x", b"", (), 400, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list?n=%C2%B2", b"", (), 400, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list?n=" + "9" * 5000, b"", (), 400, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list?last=%00", b"", (), 400, "MANIFEST_INVALID"),
        ("POST", "/v2/_catalog", b"", (), 405, "UNSUPPORTED"),
        ("GET", "/v2/_catalog?n=x", b"", (), 400, "UNSUPPORTED"),
        ("DELETE", f"/v2/a/blobs/{_D}", b"", (), 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/a/manifests/1", b"", (), 404, "MANIFEST_UNKNOWN"),
        ("DELETE", "/v2/a/tags/list", b"", (), 405, "UNSUPPORTED"),
        ("GET", "/v2/a/referrers/latest", b"", (), 400, "DIGEST_INVALID"),
        ("GET", f"/v2/a/referrers/{_D}?last=x", b"", (), 400, "DIGEST_INVALID"),
        ("POST", "/v2/", b"", (), 405, "UNSUPPORTED"),
        ("BREW", "/v2/a/manifests/1", b"", (), 405, "UNSUPPORTED"),
        ("POST", "/v2/a/blobs/uploads/?digest=nonsense", b"x", (), 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?digest=", b"x", (), 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", b"", (), 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?mount=nonsense&from=b", b"", (), 400, "DIGEST_INVALID"),
        ("POST", f"/v2/a/blobs/uploads/?mount={_D}&from=../../etc", b"", (), 400, "NAME_INVALID"),
        ("PATCH", "/v2/a/blobs/uploads/nonsense", b"x", (), 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", "/v2/a/blobs/uploads/x", b"x", (), 400, "DIGEST_INVALID"),
        ("PUT", f"/v2/a/blobs/uploads/%2e%2e?digest={_D}", b"x", (), 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", "/v2/a/manifests/1", b"", (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", b"{", (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", b"\xff\xfe", (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", b"[" * 100_000, (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", b"[1]", (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", b'{"schemaVersion":1}', (), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", _GOOD, (("Content-Type", OCI_INDEX),), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", _GOOD, (("Content-Type", "\x7f\xe9"),), 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", _GOOD + b" " * 200_000, (), 413, "MANIFEST_INVALID"),
        ("PUT", f"/v2/a/manifests/{_D}", _GOOD, (), 400, "DIGEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", _GOOD, (), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", f"/v2/a/manifests/{Digest.of(_GOOD)}?tag=../x", _GOOD, (), 400, "MANIFEST_INVALID"),
    ],
)
async def test_bad_input_gets_the_right_code(
    tmp_path: Path, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...], status: int, code: str
) -> None:
    async with registry(tmp_path, manifest_limit=150_000) as api:
        answer = await api(method, target, body, headers=headers)
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        if status == 405:
            assert "allow" in answer.headers
        assert await api.catalog.sessions.count() == 0


@pytest.mark.parametrize("value", ["x", "5-1", "-", "0-", "bytes 0-3/4", "0-" + "9" * 40])
async def test_bad_content_ranges(tmp_path: Path, value: str) -> None:
    async with registry(tmp_path) as api:
        location = await start(api)
        answer = await api("PATCH", location, b"1234", headers=[("Content-Range", value)])
        assert (answer.status, answer.code) == (400, "BLOB_UPLOAD_INVALID")
        assert (await api("GET", location)).headers["range"] == "0-0"
