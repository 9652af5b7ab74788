"""Which images of an index are for which machine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.oci.platforms import Platform, fits, parse_platform, read_platforms, this_platform, wanted_children

AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")


def index_of(*platforms: object) -> bytes:
    entries = []
    for number, platform in enumerate(platforms):
        entry: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(bytes([number]))), "size": 9}
        if platform is not None:
            entry["platform"] = platform
        entries.append(entry)
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def chosen(body: bytes, *platforms: Platform) -> list[int]:
    """Numbers of the entries that are wanted."""
    children = parse_manifest(body).children()
    wanted = wanted_children(body, children, platforms or None)
    return [children.index(child) for child in wanted]


def test_an_index_gives_the_images_of_the_platforms_and_what_states_none() -> None:
    body = index_of(
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "windows", "architecture": "amd64"},
        {"os": "unknown", "architecture": "unknown"},  # an attestation
        None,
        "not an object",
    )
    assert chosen(body, AMD) == [0, 4]
    assert chosen(body, ARM) == [1, 4]
    assert chosen(body, AMD, ARM) == [0, 1, 4]
    assert chosen(body, Platform("linux", "s390x")) == [4]
    assert chosen(body) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wanted", "found", "good"),
    [
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64/v9", "linux/arm64", False),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("linux/arm/v7", "linux/arm", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/aarch64", "linux/arm64", True),
        ("linux/x86_64", "linux/amd64", True),
        ("linux/amd64", "windows/amd64", False),
    ],
)
def test_fits(wanted: str, found: str, good: bool) -> None:
    one, other = parse_platform(wanted), parse_platform(found)
    assert one is not None
    assert other is not None
    assert fits(one, other) is good


def test_what_a_person_writes() -> None:
    assert this_platform("x86_64") == AMD
    assert this_platform("aarch64") == ARM
    assert str(this_platform("armv7l")) == "linux/arm/v7"
    assert read_platforms(["linux/amd64", "linux/arm64"]) == (AMD, ARM)
    assert read_platforms(["linux/amd64", "all"]) is None
    for text in ("", "linux", "linux/", "a/b/c/d", "linux/amd 64"):
        with pytest.raises(ValueError, match="a platform is like"):
            parse_platform(text)


@given(
    st.lists(
        st.none()
        | st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner, max_size=3))
        | st.dictionaries(st.sampled_from(["os", "architecture", "variant", "other"]), st.text() | st.integers()),
        max_size=6,
    )
)
def test_whatever_an_index_states_a_part_of_it_is_chosen(platforms: list[object]) -> None:
    body = index_of(*platforms)
    numbers = chosen(body, AMD)
    assert numbers == sorted(set(numbers))
    assert set(numbers) >= {number for number, platform in enumerate(platforms) if platform is None}


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes(body: bytes) -> None:
    try:
        children = parse_manifest(body).children()
    except RequestError:
        children = ()
    assert wanted_children(body, children, [AMD]) == []
