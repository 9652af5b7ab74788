"""What is published of a repository, and when it is tried again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NoConnection, RemoteBusy, Unreachable
from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from tracker.publisher import Rest, rest_after
from tracker.publishing import LONGEST_PAUSE, Image, Item, image_of, looked_into, pause, too_large, wanted

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def image(name: str, *types: str) -> Image:
    blobs = [Metainfo.of_bytes(f"{name} {number}".encode()) for number in range(len(types) + 1)]
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(blobs[0].digest), "size": 1},
        "layers": [
            {"mediaType": kind, "digest": str(blob.digest), "size": 1}
            for kind, blob in zip(types, blobs[1:], strict=True)
        ],
    }
    body = json.dumps(document).encode()
    return image_of(Digest.of(body), OCI_MANIFEST, body, f"claim of {name}", [blob.ref for blob in blobs])


def index(*children: Image, blob: Metainfo | None = None) -> Image:
    listed = [{"mediaType": OCI_MANIFEST, "digest": str(child.digest), "size": 1} for child in children]
    body = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    return image_of(Digest.of(body), OCI_INDEX, body, "claim of it", [] if blob is None else [blob.ref])


PLAIN, HIDDEN = image("plain", LAYER), image("hidden", LAYER + "+encrypted", LAYER + "+encrypted")
MIXED, EMPTY = image("mixed", LAYER + "+encrypted", LAYER), image("empty")


def test_all_of_a_public_repository_is_published() -> None:
    every = [PLAIN, HIDDEN, MIXED, EMPTY, index(PLAIN, HIDDEN)]
    found = wanted(every, private=False, encrypted=False)
    assert set(found) == {item.cid for one in every for item in one.items}
    assert found == wanted(every, private=False, encrypted=True)


def test_nothing_of_a_private_one_is() -> None:
    assert wanted([PLAIN, HIDDEN], private=True, encrypted=False) == {}


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        ([PLAIN, MIXED, EMPTY], []),
        ([PLAIN, HIDDEN], [HIDDEN]),
        ([HIDDEN, index(HIDDEN)], [HIDDEN, index(HIDDEN)]),
        ([HIDDEN, PLAIN, index(HIDDEN, PLAIN)], [HIDDEN]),
        ([index(HIDDEN)], []),
        ([HIDDEN, index(HIDDEN, blob=Metainfo.of_bytes(b"a cache"))], [HIDDEN]),
    ],
    ids=["plain", "one of them", "an index", "a mixed index", "an index of nothing here", "an index with a blob"],
)
def test_of_a_private_one_encrypted_images_are_if_it_is_said_so(images: list[Image], chosen: list[Image]) -> None:
    found = wanted(images, private=True, encrypted=True)
    assert set(found) == {item.cid for one in chosen for item in one.items}


def test_blobs_come_before_what_names_them() -> None:
    assert [item.kind for item in HIDDEN.items] == ["blob", "blob", "blob", "manifest", "claim"]


@given(st.binary(max_size=200), st.sampled_from([OCI_MANIFEST, OCI_INDEX, "text/plain"]))
def test_what_is_no_manifest_is_not_taken_for_encrypted(body: bytes, media_type: str) -> None:
    assert looked_into(body, media_type) == (False, ())


@given(st.integers(0, 100), st.floats(0, 1), st.integers(1, 50), st.floats(0, 10_000))
def test_pauses_grow_and_end(attempts: int, draw: float, most: int, asked: float) -> None:
    wait = pause(attempts, draw, most=most, asked=asked)
    if attempts >= most:
        assert wait is None
    else:
        assert wait is not None
        assert asked <= wait <= max(asked, LONGEST_PAUSE * 1.25)


def test_the_first_pauses() -> None:
    assert [pause(attempts, 0.5, most=20) for attempts in (1, 2, 3, 15)] == [5.0, 10.0, 20.0, LONGEST_PAUSE]


@pytest.mark.parametrize(("kind", "size", "fits"), [("blob", 1 << 40, True), ("manifest", 1 << 20, True)])
def test_what_fits_into_a_block(kind: str, size: int, fits: bool) -> None:
    item = Item(PLAIN.manifest.cid, kind, PLAIN.digest, size)  # type: ignore[arg-type]
    assert (too_large(item) is None) == fits


def test_a_manifest_that_does_not_fit_into_a_block() -> None:
    assert "1048577" in (too_large(Item(PLAIN.manifest.cid, "manifest", PLAIN.digest, (1 << 20) + 1)) or "")


def test_a_service_that_is_away_is_left_alone_for_longer_and_longer() -> None:
    rest, now, lengths = Rest(), 100.0, []
    for _ in range(9):
        rest = rest_after(rest, NoConnection("nobody"), now)
        lengths.append(rest.until - now)
        assert rest_after(rest, NoConnection("another of those under way"), now + 1) == rest
        now = rest.until
    assert lengths == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    assert rest_after(Rest(), RemoteBusy("too much", 7.0), 1.0).until == 8.0
    assert rest_after(Rest(9.0, 5.0), RemoteBusy("too much", 7.0), 1.0) == Rest(9.0, 5.0)
    assert rest_after(rest, Unreachable("cut short"), now) == rest
