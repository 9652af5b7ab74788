"""What is kept warm, in which order, and that pins outlive what they pin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RequestError
from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.oci.platforms import Platform
from p2pregistry.store.index import open_index
from p2pregistry.store.records import StoredManifest
from p2pregistry.warm.choose import Depth, Job, Line, Patterns, full_pattern, pause, split_reference
from p2pregistry.warm.pins import Pin, Pins, needs

D = [Digest.of(bytes([number])) for number in range(8)]
AMD = (Platform("linux", "amd64"),)


def patterns(sync: list[str], prefetch: list[str]) -> Patterns:
    return Patterns(tuple(map(full_pattern, sync)), tuple(map(full_pattern, prefetch)))


def test_how_much_is_kept_of_which_tag() -> None:
    chosen = patterns(["library/**", "acme/*:prod-*"], ["acme/api:prod-*", "exact/name:v1"])
    assert chosen.depth("library/busybox", "1") is Depth.SYNC
    assert chosen.depth("library/deep/er", "x") is Depth.SYNC
    assert chosen.depth("acme/web", "prod-7") is Depth.SYNC
    assert chosen.depth("acme/web", "dev-7") is Depth.NONE
    assert chosen.depth("acme/web/x", "prod-7") is Depth.NONE
    assert chosen.depth("acme/api", "prod-7") is Depth.PREFETCH  # the more of two
    assert chosen.depth("exact/name", "v2") is Depth.NONE


def test_repositories_are_those_that_are_named_and_known_ones_that_are_covered() -> None:
    chosen = patterns(["library/**", "named/one:*"], ["acme/*:prod-*"])
    known = ["acme/api", "acme/api/deep", "library/a", "library/b/c", "other/x"]
    assert chosen.repositories(known) == ["acme/api", "library/a", "library/b/c", "named/one"]
    assert patterns([], []).repositories(known) == []


@pytest.mark.parametrize("bad", ["", "a b", "a/*:{x}", "a" * 499, "a" * 501])
def test_what_is_no_pattern(bad: str) -> None:
    with pytest.raises(ValueError, match="a pattern"):
        full_pattern(bad)


def test_names_of_images() -> None:
    assert split_reference("acme/app:1") == ("acme/app", "1")
    assert split_reference("acme/app") == ("acme/app", "latest")
    assert split_reference(f"acme/app@{D[0]}") == ("acme/app", D[0])
    assert split_reference(f"acme/app:1@{D[0]}") == ("acme/app", D[0])
    for bad in ("", "Acme/app", "acme/app:", "acme/app:a/b", "acme/app@sha256:12", "acme/app:-"):
        with pytest.raises(RequestError):
            split_reference(bad)


@given(st.text(max_size=60))
def test_any_name_is_split_or_refused(text: str) -> None:
    try:
        repository, reference = split_reference(text)
    except RequestError:
        return
    assert text.startswith(repository)
    assert reference


def test_pins_come_first_then_manifests_then_age_and_a_moving_tag_keeps_its_turn() -> None:
    line = Line()
    first = Job("a/a", "1", Depth.PREFETCH, AMD, D[0])
    for job in (first, Job("a/b", "1", Depth.PREFETCH, AMD), Job("a/c", "1", Depth.SYNC, AMD)):
        line.put(job)
    line.put(Job("a/d", "1", Depth.PIN, AMD))
    line.put(Job("a/a", "1", Depth.PREFETCH, AMD, D[1]))  # it has moved
    line.put(Job("a/e", "1", Depth.PREFETCH, AMD))
    line.forget(("a/e", "1"))
    taken = []
    while (job := line.take()) is not None:
        taken.append((job.repository, job.digest))
    assert taken == [("a/d", None), ("a/c", None), ("a/a", D[1]), ("a/b", None)]
    assert len(line) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(Depth)), st.booleans()), max_size=40))
def test_each_name_is_taken_once_as_it_was_put_last(steps: list[tuple[int, Depth, bool]]) -> None:
    line, expected = Line(), dict[tuple[str, str], Job]()
    for number, depth, forget in steps:
        job = Job(f"a/{number}", "1", depth, None)
        if forget:
            line.forget(job.name)
            expected.pop(job.name, None)
        else:
            line.put(job)
            expected[job.name] = job
    taken = [job for _ in range(len(line)) if (job := line.take()) is not None]
    assert line.take() is None
    assert sorted(map(id, taken)) == sorted(map(id, expected.values()))


def test_pauses_grow_up_to_ten_minutes() -> None:
    pauses = [pause(tries) for tries in range(1, 100)]
    assert pauses[0] == 10
    assert pauses == sorted(pauses)
    assert pauses[-1] == 600


# --------------------------------------------------------------------------------------------------------------- pins


def image(*layers: Digest) -> StoredManifest:
    blobs = [{"mediaType": "application/x", "digest": str(digest), "size": 10} for digest in layers]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blobs[0], "layers": blobs[1:]}).encode()
    return StoredManifest(Digest.of(body), OCI_MANIFEST, body)


def index_of(**children: StoredManifest) -> StoredManifest:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(child.digest),
            "size": len(child.body),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, child in children.items()
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    return StoredManifest(Digest.of(body), OCI_INDEX, body)


def test_an_image_needs_what_its_platforms_need() -> None:
    amd, arm = image(D[0], D[1]), image(D[2], D[1])
    both = index_of(amd64=amd, arm64=arm)
    here = {stored.digest: stored for stored in (amd, both)}
    assert [blob.digest for blob in needs(both.digest, here.get, AMD).blobs] == [D[0], D[1]]
    assert needs(both.digest, here.get, AMD).missing == ()
    assert needs(both.digest, here.get, None).missing == (arm.digest,)
    assert needs(D[7], here.get, None).missing == (D[7],)


async def test_pins_outlive_the_index_and_follow_their_tag_once_the_new_image_is_whole(tmp_path: Path) -> None:
    old, new = image(D[0], D[1]), image(D[2], D[1])
    kept: list[frozenset[Digest]] = []
    async with open_index(tmp_path / "index") as index:
        for stored in (old, new):
            await index.put_manifest("a/b", stored, None, [])
        pins = Pins(index, kept.append)
        await pins.put(Pin("a/b", "1", platforms=("linux/amd64",)))
        assert kept[-1] == frozenset()
        await pins.keep("a/b", "1", old.digest)
        assert kept[-1] == {D[0], D[1]}
        await pins.put(Pin("a/b", str(new.digest), str(new.digest), ("all",)))
        assert kept[-1] == {D[0], D[1], D[2]}
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    async with open_index(tmp_path / "index") as index:
        pins = Pins(index, kept.append)
        assert [str(pin) for pin in pins.all()] == ["a/b:1", f"a/b@{new.digest}"]
        assert pins.needs(pins.all()[0]).missing == (old.digest,)
        await index.put_manifest("a/b", new, None, [])
        await pins.keep("a/b", "1", new.digest)
        assert kept[-1] == {D[2], D[1]}
        await pins.drop("a/b", "1")
        await pins.drop("a/b", str(new.digest))
        assert kept[-1] == frozenset()
        with pytest.raises(NotFound):
            await pins.drop("a/b", "1")


async def test_pins_that_cannot_be_read_stop_the_node(tmp_path: Path) -> None:
    async with open_index(tmp_path / "index") as index:
        await index.put_meta("pins", b'[{"repository": 7}]')
        with pytest.raises(LocalError, match="pins"):
            Pins(index, lambda _blobs: None)
