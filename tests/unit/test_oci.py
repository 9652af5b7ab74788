"""Names, paths, ranges and manifests: what is right is read, and everything else is refused with a code."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.manifest import MAX_DESCRIPTORS, parse_manifest
from p2pregistry.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, bare, is_foreign
from p2pregistry.oci.ranges import content_range, parse_content_range, parse_range
from p2pregistry.oci.reference import MAX_NAME, Route, check_name, check_tag, parse_path, parse_reference

T = TypeVar("T")
HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


def outcome(parse: Callable[..., T], *args: object) -> T | RequestError:
    """What it gives or how it refuses; any other exception is a failure of the test."""
    try:
        return parse(*args)
    except RequestError as err:
        return err


# ---------------------------------------------------------------------------------------------------- names and paths


@pytest.mark.parametrize(
    "name", ["a", "a/b", "0/9", "a.b_c__d-e---f/g", "blobs/uploads", "a/manifests", "a" * MAX_NAME]
)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a//b", "A", "a_/b", "-a", "a-", "a___b", "a..b", "a._b", ".", "..", "a/../b", "ü", "a\n",
     "a b", "a\0", "a" * (MAX_NAME + 1), "a%2fb", "a:b"],
)  # fmt: skip
def test_no_names(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_name(name)
    assert (caught.value.code, caught.value.status) == ("NAME_INVALID", 400)


@pytest.mark.parametrize("tag", ["a", "A", "_", "1.2-3_4", "x" * 128])
def test_tags(tag: str) -> None:
    assert check_tag(tag) == parse_reference(tag) == tag


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a/b", "a b", "a\n", "ü", "x" * 129])
def test_no_tags(tag: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_tag(tag)
    assert (caught.value.code, caught.value.status) == ("MANIFEST_INVALID", 400)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2", Route("base")),
        ("/v2/", Route("base")),
        ("/v2/_catalog", Route("catalog")),
        ("/v2/a/b/manifests/1", Route("manifest", "a/b", "1")),
        (f"/v2/a/manifests/{DIGEST}", Route("manifest", "a", DIGEST)),
        (f"/v2/a/blobs/{DIGEST}", Route("blob", "a", DIGEST)),
        ("/v2/a/blobs/uploads", Route("uploads", "a")),
        ("/v2/a/blobs/uploads/", Route("uploads", "a")),
        ("/v2/a/blobs/uploads/id", Route("upload", "a", "id")),
        ("/v2/a/tags/list", Route("tags", "a")),
        (f"/v2/a/referrers/{DIGEST}", Route("referrers", "a", DIGEST)),
        # a repository may be called like a keyword
        ("/v2/blobs/manifests/tags/list", Route("tags", "blobs/manifests")),
        ("/v2/tags/list/manifests/latest", Route("manifest", "tags/list", "latest")),
        ("/v2/blobs/uploads/manifests/1", Route("manifest", "blobs/uploads", "1")),
    ],
)
def test_paths(path: str, route: Route) -> None:
    assert parse_path(path) == route


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", "NAME_UNKNOWN"),
        ("", "NAME_UNKNOWN"),
        ("/v1/", "NAME_UNKNOWN"),
        ("/v2/a", "NAME_UNKNOWN"),
        ("/v2/a/manifests", "NAME_UNKNOWN"),
        ("/v2/a/manifests/", "NAME_UNKNOWN"),
        ("/v2/manifests/1", "NAME_UNKNOWN"),
        ("/v2//manifests/1", "NAME_INVALID"),
        ("/v2/A/manifests/1", "NAME_INVALID"),
        ("/v2/a//b/tags/list", "NAME_INVALID"),
        ("/v2/tags/list", "NAME_UNKNOWN"),
        ("/v2/../manifests/1", "NAME_INVALID"),
    ],
)
def test_no_paths(path: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_path(path)
    assert caught.value.code == code


path_words = st.sampled_from(
    [
        "",
        "v2",
        "a",
        "A",
        "..",
        "blobs",
        "uploads",
        "manifests",
        "tags",
        "list",
        "referrers",
        "_catalog",
        DIGEST,
        "latest",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(path_words, max_size=9).map(lambda words: "/" + "/".join(words))))
def test_any_path_is_a_route_or_refused(path: str) -> None:
    route = outcome(parse_path, path)
    if isinstance(route, RequestError):
        assert route.status in (400, 404)
    elif route.kind not in ("base", "catalog"):
        assert check_name(route.repository) == route.repository
        assert f"/{route.repository}/" in path


@given(st.one_of(st.text(max_size=200), st.from_regex(r"sha(256|512):[0-9a-f]{0,130}", fullmatch=True)))
def test_any_reference_is_read_or_refused(text: str) -> None:
    found = outcome(parse_reference, text)
    if isinstance(found, RequestError):
        assert found.code in ("DIGEST_INVALID", "MANIFEST_INVALID")
    else:
        assert str(found) == text


# ------------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=0-0", (0, 1)),
        ("Bytes = 10-19", (10, 10)),
        ("bytes=90-1000", (90, 10)),
        ("bytes=-5", (95, 5)),
        ("bytes=-1000", (0, 100)),
        ("bytes=99-", (99, 1)),
        ("bytes=0-0,5-6", None),
        ("items=0-5", None),
        ("bytes=a-b", None),
        ("bytes", None),
        ("bytes=-", None),
        ("", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges(header: str | None, part: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=5-4", "bytes=500-0", "bytes=-0"])
def test_ranges_outside(header: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_range(header, 100)
    assert caught.value.status == 416
    assert caught.value.headers == {"Content-Range": "bytes */100"}


@given(
    st.one_of(st.text(max_size=30), st.from_regex(r"bytes=[0-9]{0,20}-[0-9]{0,20}", fullmatch=True)),
    st.integers(0, 1 << 40),
)
def test_any_range_lies_inside_or_is_refused(header: str, size: int) -> None:
    part = outcome(parse_range, header, size)
    if isinstance(part, RequestError):
        assert part.status == 416
    elif part is not None:
        offset, length = part
        assert 0 <= offset < offset + length <= size
        assert content_range(offset, length, size) == f"bytes {offset}-{offset + length - 1}/{size}"


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9]{0,20}-[0-9]{0,20}", fullmatch=True)))
def test_any_content_range_is_read_or_refused(header: str) -> None:
    found = outcome(parse_content_range, header)
    if isinstance(found, RequestError):
        assert (found.code, found.status) == ("BLOB_UPLOAD_INVALID", 400)
    else:
        assert 0 <= found[0] <= found[1]


# ---------------------------------------------------------------------------------------------------------- manifests


def descriptor(data: bytes = b"x", media_type: str = "application/octet-stream", **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


def image(**more: object) -> dict[str, object]:
    base = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(b"{}"),
        "layers": [descriptor(b"layer")],
    }
    return base | more


def index(**more: object) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(b"m")]} | more


def without(document: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in document.items() if name != key}


def test_an_image() -> None:
    layer = descriptor(b"layer")
    found = parse_manifest(json.dumps(image(layers=[layer, layer], unknown={"a": [1]})).encode(), OCI_MANIFEST)
    assert found.config is not None
    assert found.config.digest == Digest.of(b"{}")
    assert [d.digest for d in found.required_blobs()] == [Digest.of(b"{}"), Digest.of(b"layer")]
    assert found.children() == ()


def test_foreign_layers_need_not_be_here() -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    foreign = descriptor(b"windows", kind, urls=["https://example.com/x"])
    found = parse_manifest(json.dumps(image(layers=[foreign])).encode())
    assert [d.digest for d in found.required_blobs()] == [Digest.of(b"{}")]
    assert found.layers[0].urls == ("https://example.com/x",)
    assert is_foreign(kind)


def test_an_index() -> None:
    child = descriptor(b"m", OCI_MANIFEST)
    found = parse_manifest(json.dumps(index(manifests=[child, child])).encode(), f"{OCI_INDEX}; charset=utf-8")
    assert [d.digest for d in found.children()] == [Digest.of(b"m")]
    assert found.required_blobs() == ()


def test_an_index_over_blobs_as_buildkit_keeps_its_cache() -> None:
    layer, config = descriptor(b"l"), descriptor(b"c", "application/vnd.buildkit.cacheconfig.v0")
    found = parse_manifest(json.dumps(index(manifests=[layer, config, layer])).encode(), OCI_INDEX)
    assert found.children() == ()
    assert [d.digest for d in found.required_blobs()] == [Digest.of(b"l"), Digest.of(b"c")]


def test_media_types() -> None:
    assert bare("Application/JSON ; charset=utf-8") == "application/json"
    assert parse_manifest(json.dumps(image(mediaType=DOCKER_MANIFEST)).encode()).media_type == DOCKER_MANIFEST
    assert parse_manifest(json.dumps(index(mediaType=DOCKER_LIST)).encode()).media_type == DOCKER_LIST
    # the field is optional in OCI: the header says, or what the manifest holds
    assert (
        parse_manifest(json.dumps(without(image(), "mediaType")).encode(), DOCKER_MANIFEST).media_type
        == DOCKER_MANIFEST
    )
    assert parse_manifest(json.dumps(without(image(), "mediaType")).encode()).media_type == OCI_MANIFEST
    assert parse_manifest(json.dumps(without(index(), "mediaType")).encode()).media_type == OCI_INDEX


def test_embedded_data() -> None:
    data = base64.b64encode(b"{}").decode()
    assert parse_manifest(json.dumps(image(config=descriptor(b"{}") | {"data": data})).encode()).config is not None
    for wrong in ("!!", base64.b64encode(b"[]").decode(), base64.b64encode(b"{} ").decode(), "ü"):
        with pytest.raises(RequestError) as caught:
            parse_manifest(json.dumps(image(config=descriptor(b"{}") | {"data": wrong})).encode())
        assert caught.value.detail == {"field": "config.data"}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (image(schemaVersion=1), "schemaVersion"),
        (image(mediaType="text/plain"), "mediaType"),
        (without(image(), "config"), "config"),
        (without(image(), "layers"), "layers"),
        (image(manifests=[]), "manifests"),
        (index(layers=[]), "layers"),
        (index(config=descriptor()), "config"),
        (without(index(), "manifests"), "manifests"),
        (image(config=descriptor() | {"size": -1}), "config.size"),
        (image(config=descriptor() | {"size": 1 << 63}), "config.size"),
        (image(config=descriptor() | {"digest": "sha256:AB"}), "config.digest"),
        (image(layers=[descriptor(), descriptor() | {"digest": "md5:0"}]), "layers[1].digest"),
        (image(layers=[descriptor()] * (MAX_DESCRIPTORS + 1)), "layers"),
        (image(subject=descriptor() | {"digest": ""}), "subject.digest"),
    ],
)
def test_bad_manifests_name_the_field(document: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_manifest(json.dumps(document).encode())
    assert (caught.value.code, caught.value.status) == ("MANIFEST_INVALID", 400)
    assert isinstance(caught.value.detail, dict)
    assert caught.value.detail["field"] == field


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"2", b'"x"', b"\xff", b'{"schemaVersion":"2"}', b'{"schemaVersion":2.5}', b"{}",
     b"[" * 100_000, b'{"schemaVersion":2,"config":' + b'{"a":' * 100_000, b'{"schemaVersion":2,"mediaType":"\xff"}',
     b'{"schemaVersion":1e999}', b'{"schemaVersion":2,"layers":{}}', b"\xef\xbb\xbf{}",
     b'{"schemaVersion":2,"mediaType":"\\ud800"}'],
    ids=range(17),
)  # fmt: skip
def test_what_is_no_manifest(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_manifest(body)
    assert caught.value.code == "MANIFEST_INVALID"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10) | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
descriptors = st.fixed_dictionaries(
    {
        "mediaType": st.text(max_size=10) | json_values,
        "digest": st.just(DIGEST) | json_values,
        "size": st.integers() | json_values,
    },
    optional={"urls": json_values, "data": st.text(max_size=10) | json_values},
)
fields = st.one_of(descriptors, st.lists(descriptors, max_size=3), json_values)
documents = st.dictionaries(
    st.sampled_from(["config", "layers", "manifests", "subject", "artifactType", "x"]), fields, max_size=5
).flatmap(
    lambda base: st.fixed_dictionaries(
        {
            "schemaVersion": st.just(2) | json_values,
            "mediaType": st.sampled_from([OCI_MANIFEST, OCI_INDEX, "x"]) | json_values,
        }
    ).map(lambda head: head | base)
)
bodies = st.one_of(
    st.binary(max_size=80), json_values.map(json.dumps).map(str.encode), documents.map(json.dumps).map(str.encode)
)


@given(bodies, st.none() | st.sampled_from([OCI_MANIFEST, OCI_INDEX, "x/y; z", ""]) | st.text(max_size=20))
def test_any_bytes_are_a_manifest_or_refused(body: bytes, content_type: str | None) -> None:
    found = outcome(parse_manifest, body, content_type)
    if isinstance(found, RequestError):
        assert (found.code, found.status) == ("MANIFEST_INVALID", 400)
    else:
        assert all(d.size >= 0 for d in (*found.required_blobs(), *found.children()))
