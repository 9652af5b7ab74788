"""What every ``Catalog`` must do. A test runs each of ``CASES`` on a fresh, empty catalog of each implementation."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.base import Catalog, ManifestRecord, NewManifest
from tracker.catalog.trail import By

Case = Callable[[Catalog], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}

MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


#: Who writes, in the checks.
BY = By("pusher", "127.0.0.1", "request")
_names = (f"u/{number % 256:02x}/{number:012x}" for number in itertools.count())


async def add(catalog: Catalog, repository: str, blob: Metainfo) -> str:
    """A blob in an object of its own."""
    return await catalog.add_blob(repository, blob, next(_names), BY)


async def ref(catalog: Catalog, repository: str, digest: Digest) -> BlobRef | None:
    """What the repository has of this digest."""
    here = await catalog.blob(repository, digest)
    return None if here is None else here.ref


def anybody(_repository: str, _private: bool) -> bool:
    """Who may pull everything."""
    return True


class Signer:
    """Signs ``claim-1``, ``claim-2``, ... and remembers what it was asked to name."""

    def __init__(self) -> None:
        self.calls: list[list[BlobRef]] = []

    def __call__(self, blobs: Sequence[BlobRef]) -> str:
        self.calls.append(list(blobs))
        return f"claim-{len(self.calls)}"


def blob(text: str) -> Metainfo:
    """A small blob."""
    return Metainfo.of_bytes(text.encode())


def manifest(body: bytes, blobs: Sequence[Metainfo] = (), children: Sequence[Digest] = ()) -> NewManifest:
    """A manifest of any bytes."""
    return NewManifest(Digest.of(body), MEDIA_TYPE, body, tuple(one.digest for one in blobs), tuple(children))


async def _put(
    catalog: Catalog, repository: str, body: bytes, *tags: str, sign: Signer | None = None
) -> ManifestRecord:
    """Push an image of one blob, whose content is the body of its manifest."""
    layer = Metainfo.of_bytes(b"layer of " + body)
    await add(catalog, repository, layer)
    return await catalog.put_manifest(repository, manifest(body, [layer]), tags, sign or Signer(), BY)


async def _refused(catalog: Catalog, repository: str, new: NewManifest, tags: Sequence[str]) -> object:
    sign = Signer()
    caught: RequestError | None = None
    try:
        await catalog.put_manifest(repository, new, tags, sign, BY)
    except RequestError as error:
        caught = error
    assert caught is not None, "the manifest was taken"
    assert (caught.code, caught.status) == ("MANIFEST_BLOB_UNKNOWN", 404)
    assert sign.calls == []
    return caught.detail


async def _name_unknown(catalog: Catalog, repository: str) -> bool:
    try:
        await catalog.tags(repository)
    except NotFound as error:
        return error.code == "NAME_UNKNOWN"
    return False


@_case
async def a_blob_is_visible_where_it_was_pushed_only(catalog: Catalog) -> None:
    one = blob("one")
    await add(catalog, "acme/api", one)
    assert await ref(catalog, "acme/api", one.digest) == one.ref
    assert await ref(catalog, "acme/ap", one.digest) is None
    await add(catalog, "acme/other", blob("two"))
    assert await ref(catalog, "acme/other", one.digest) is None
    assert await ref(catalog, "acme/api", blob("two").digest) is None


@_case
async def adding_a_blob_again_is_no_error(catalog: Catalog) -> None:
    one = blob("one")
    for repository in ("a", "a", "b", "a"):
        await add(catalog, repository, one)
    assert await ref(catalog, "a", one.digest) == await ref(catalog, "b", one.digest) == one.ref


@_case
async def first_pushes_at_the_same_time_all_succeed(catalog: Catalog) -> None:
    one = blob("one")
    body = b"the same manifest"
    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(add, catalog, "acme/new", one)
            nursery.start_soon(add, catalog, "acme/new", blob(f"blob {i}"))
            nursery.start_soon(_put, catalog, "acme/new", body, "latest")
    for i in range(8):
        assert await ref(catalog, "acme/new", blob(f"blob {i}").digest) is not None
    assert await catalog.tags("acme/new") == ["latest"]
    found = await catalog.manifest("acme/new", "latest")
    assert found is not None
    assert found.body == body


@_case
async def many_tags_moved_at_the_same_time_in_different_orders(catalog: Catalog) -> None:
    tags = [f"t{i}" for i in range(6)]
    async with trio.open_nursery() as nursery:
        for i in range(8):
            order = tags if i % 2 else tags[::-1]
            nursery.start_soon(_put, catalog, "a", b"manifest %d" % (i % 3), *order)
    assert await catalog.tags("a") == tags


@_case
async def a_blob_of_no_bytes_and_one_with_sha512(catalog: Catalog) -> None:
    empty = Metainfo.of_bytes(b"")
    await add(catalog, "a", empty)
    long = Metainfo.of(Digest.of(b"x", "sha512"), 1, Digest.of(b"x").raw)
    await add(catalog, "a", long)
    await catalog.put_manifest("a", manifest(b"m", [empty, long]), (), Signer(), BY)
    assert await catalog.metainfo(empty.digest) == empty
    assert await catalog.metainfo(long.digest) == long
    assert await ref(catalog, "a", long.digest) == long.ref


@_case
async def a_large_piece_table_comes_back_whole(catalog: Catalog) -> None:
    size = 3000 * (1 << 20) + 17
    hashes = b"".join(Digest.of(b"%d" % i).raw for i in range(3001))
    large = Metainfo.of(Digest.of(b"large"), size, hashes)
    await add(catalog, "a", large)
    await catalog.put_manifest("a", manifest(b"m", [large]), (), Signer(), BY)
    assert await catalog.metainfo(large.digest) == large


@_case
async def mounting_from_a_repository_that_has_it(catalog: Catalog) -> None:
    one = blob("one")
    await add(catalog, "from", one)
    assert await catalog.mount_blob("to", one.digest, "from", BY) == one.ref
    assert await ref(catalog, "to", one.digest) == one.ref
    assert await catalog.mount_blob("to", one.digest, "from", BY) == one.ref


@_case
async def mounting_from_any_repository(catalog: Catalog) -> None:
    one = blob("one")
    await add(catalog, "from", one)
    assert await catalog.mount_blob("to", one.digest, None, BY) == one.ref
    assert await ref(catalog, "to", one.digest) == one.ref


@_case
async def mounting_what_is_not_there_leaves_nothing(catalog: Catalog) -> None:
    one = blob("one")
    assert await catalog.mount_blob("to", one.digest, None, BY) is None
    assert await catalog.mount_blob("to", one.digest, "from", BY) is None
    await add(catalog, "elsewhere", one)
    assert await catalog.mount_blob("to", one.digest, "from", BY) is None
    await add(catalog, "from", blob("two"))
    assert await catalog.mount_blob("to", one.digest, "from", BY) is None
    assert await ref(catalog, "to", one.digest) is None
    assert await _name_unknown(catalog, "to")


@_case
async def a_manifest_comes_back_byte_for_byte(catalog: Catalog) -> None:
    bodies = [b"", bytes(range(1, 256)), b"\x00\xff" * 50, b'{ "a": 1,\r\n\t"a": 2 }\n', "na\u0308ive \u2028".encode()]
    for body in bodies:
        put = await _put(catalog, "a", body, "t")
        assert put == ManifestRecord(Digest.of(body), MEDIA_TYPE, body, "claim-1")
        assert await catalog.manifest("a", "t") == put
        assert await catalog.manifest("a", put.digest) == put
        assert [place.manifest for place in await catalog.manifest_anywhere(put.digest, anybody)] == [put]


@_case
async def a_manifest_with_a_sha512_digest(catalog: Catalog) -> None:
    body = b"body"
    new = NewManifest(Digest.of(body, "sha512"), MEDIA_TYPE, body, (), ())
    put = await catalog.put_manifest("a", new, ["t"], Signer(), BY)
    assert await catalog.manifest("a", new.digest) == put
    assert await catalog.manifest("a", Digest.of(body)) is None


@_case
async def a_manifest_is_invisible_elsewhere(catalog: Catalog) -> None:
    put = await _put(catalog, "a", b"body", "t")
    await _put(catalog, "b", b"other", "u")
    for repository in ("b", "nowhere"):
        assert await catalog.manifest(repository, put.digest) is None
        assert await catalog.manifest(repository, "t") is None
    assert await catalog.manifest("a", "u") is None
    assert await catalog.manifest("a", "T") is None
    assert await catalog.manifest_anywhere(Digest.of(b"nothing"), anybody) == []


@_case
async def a_pushed_tag_moves_and_the_old_manifest_stays(catalog: Catalog) -> None:
    old = await _put(catalog, "a", b"old", "latest", "1.0")
    new = await _put(catalog, "a", b"new", "latest")
    assert await catalog.manifest("a", "latest") == new
    assert await catalog.manifest("a", "1.0") == old
    assert await catalog.manifest("a", old.digest) == old
    back = await _put(catalog, "a", b"old", "latest")
    assert await catalog.manifest("a", "latest") == back
    assert await catalog.tags("a") == ["1.0", "latest"]


@_case
async def storing_the_same_manifest_again_signs_anew(catalog: Catalog) -> None:
    sign = Signer()
    first = await _put(catalog, "a", b"body", "one", sign=sign)
    again = await _put(catalog, "a", b"body", "two", sign=sign)
    assert (first.claim, again.claim) == ("claim-1", "claim-2")
    assert (again.digest, again.media_type, again.body) == (first.digest, first.media_type, first.body)
    assert await catalog.manifest("a", "one") == again
    assert await catalog.manifest("a", "two") == again


@_case
async def storing_again_keeps_the_media_type_of_this_repository(catalog: Catalog) -> None:
    sign = Signer()
    first = NewManifest(Digest.of(b"m"), "application/one", b"m", (), ())
    other = NewManifest(Digest.of(b"m"), "application/other", b"m", (), ())
    await catalog.put_manifest("a", first, (), sign, BY)
    assert (await catalog.put_manifest("a", other, (), sign, BY)).media_type == "application/one"
    assert (await catalog.put_manifest("b", other, (), sign, BY)).media_type == "application/other"
    found = await catalog.manifest("a", first.digest)
    assert found is not None
    assert found.media_type == "application/one"


@_case
async def the_claim_is_asked_for_in_the_order_of_the_manifest(catalog: Catalog) -> None:
    blobs = [blob(f"blob {i}") for i in range(20)]
    for one in blobs:
        await add(catalog, "a", one)
    order = [*blobs[::-1], blobs[3], blobs[0]]
    sign = Signer()
    await catalog.put_manifest("a", manifest(b"body", order), (), sign, BY)
    assert sign.calls == [[one.ref for one in blobs[::-1]]]


@_case
async def a_manifest_that_lacks_something_names_it_all_and_leaves_nothing(catalog: Catalog) -> None:
    have, lack, lack2, child = blob("have"), blob("lack"), blob("lack2"), Digest.of(b"no such child")
    new = manifest(b"body", [lack, have, lack2, lack], [child])
    assert await _refused(catalog, "fresh", new, ["t"]) == {
        "digests": [str(lack.digest), str(have.digest), str(lack2.digest), str(child)]
    }
    assert await _name_unknown(catalog, "fresh")
    await add(catalog, "elsewhere", lack)
    await _put(catalog, "a", b"before", "t")
    await add(catalog, "a", have)
    assert await _refused(catalog, "a", new, ["t", "u"]) == {
        "digests": [str(lack.digest), str(lack2.digest), str(child)]
    }
    assert await catalog.manifest("a", new.digest) is None
    assert await catalog.manifest_anywhere(new.digest, anybody) == []
    assert await catalog.claims_for_blob("a", have.digest) == []
    assert await catalog.metainfo(have.digest) is None
    assert await catalog.tags("a") == ["t"]
    found = await catalog.manifest("a", "t")
    assert found is not None
    assert found.body == b"before"


@_case
async def an_index_needs_its_manifests_in_the_same_repository(catalog: Catalog) -> None:
    child = await _put(catalog, "a", b"child")
    await _put(catalog, "b", b"unrelated")
    index = manifest(b"index", [], [child.digest, child.digest])
    assert await _refused(catalog, "b", index, ["t"]) == {"digests": [str(child.digest)]}
    sign = Signer()
    put = await catalog.put_manifest("a", index, ["t"], sign, BY)
    assert sign.calls == [[]]
    assert await catalog.manifest("a", "t") == put


@_case
async def a_signer_that_fails_leaves_nothing(catalog: Catalog) -> None:
    def fails(blobs: Sequence[BlobRef]) -> str:
        raise RequestError("DENIED", f"no key for {len(blobs)} blobs")

    one = blob("one")
    await add(catalog, "a", one)
    new = manifest(b"body", [one])
    code = "none"
    try:
        await catalog.put_manifest("a", new, ["t"], fails, BY)
    except RequestError as error:
        code = error.code
    assert code == "DENIED"
    assert await catalog.manifest_anywhere(new.digest, anybody) == []
    assert await catalog.tags("a") == []


@_case
async def claims_of_a_blob_are_the_newest_three_of_the_repository(catalog: Catalog) -> None:
    sign, one = Signer(), blob("one")
    await add(catalog, "a", one)
    await add(catalog, "b", one)
    assert await catalog.claims_for_blob("a", one.digest) == []
    bodies = [b"m1", b"m2", b"m3", b"m4"]
    for body in bodies:
        await catalog.put_manifest("a", manifest(body, [one]), (), sign, BY)
    await catalog.put_manifest("b", manifest(b"m5", [one]), (), sign, BY)
    assert await catalog.claims_for_blob("a", one.digest) == ["claim-4", "claim-3", "claim-2"]
    assert await catalog.claims_for_blob("b", one.digest) == ["claim-5"]
    await catalog.put_manifest("a", manifest(b"m1", [one]), (), sign, BY)
    assert await catalog.claims_for_blob("a", one.digest) == ["claim-6", "claim-4", "claim-3"]
    assert await catalog.claims_for_blob("nowhere", one.digest) == []
    assert await catalog.claims_for_blob("a", blob("two").digest) == []


@_case
async def a_blob_that_the_claim_no_longer_names(catalog: Catalog) -> None:
    sign, one, two = Signer(), blob("one"), blob("two")
    await add(catalog, "a", one)
    await add(catalog, "a", two)
    await catalog.put_manifest("a", manifest(b"m", [one]), (), sign, BY)
    await catalog.put_manifest("a", manifest(b"m", [two]), (), sign, BY)
    assert await catalog.claims_for_blob("a", one.digest) == []
    assert await catalog.claims_for_blob("a", two.digest) == ["claim-2"]


@_case
async def metainfo_is_given_for_claimed_blobs_only(catalog: Catalog) -> None:
    one = Metainfo.of_bytes(b"x" * (3 << 20))
    await add(catalog, "a", one)
    assert await catalog.metainfo(one.digest) is None
    await catalog.put_manifest("a", manifest(b"m", [one]), (), Signer(), BY)
    assert await catalog.metainfo(one.digest) == one
    assert await catalog.metainfo(blob("unknown").digest) is None


@_case
async def of_many_digests_those_that_a_claim_names(catalog: Catalog) -> None:
    one, two, loose = blob("one"), blob("two"), blob("loose")
    for each in (one, two, loose):
        await add(catalog, "a", each)
    assert await catalog.naming([one.digest]) == {}
    await catalog.put_manifest("a", manifest(b"m", [one]), (), Signer(), BY)
    await add(catalog, "b", two)
    await catalog.put_manifest("b", manifest(b"n", [two]), (), Signer(), BY)
    asked = [one.digest, two.digest, loose.digest, blob("unknown").digest]
    assert (await catalog.naming(asked)).keys() == {one.digest, two.digest}
    assert await catalog.naming([]) == {}


@_case
async def a_manifest_of_several_repositories_has_one_claim_each(catalog: Catalog) -> None:
    sign = Signer()
    new = manifest(b"the same")
    for i in range(22):
        await catalog.put_manifest(f"r{i}", new, (), sign, BY)
    found = await catalog.manifest_anywhere(new.digest, anybody)
    assert [place.manifest.claim for place in found] == [f"claim-{i}" for i in range(22, 2, -1)]
    assert [place.repository for place in found] == [f"r{i}" for i in range(21, 1, -1)]
    assert {place.manifest.body for place in found} == {b"the same"}


@_case
async def tags_are_in_ascii_order_and_come_in_pages(catalog: Catalog) -> None:
    names = ["Z", "a", "B", "_", "0", "a.b", "a-b", "a_b", "ab", "A", "10", "9", "z" * 128]
    await _put(catalog, "a", b"body", *names)
    ordered = sorted(names)
    assert await catalog.tags("a") == ordered
    paged: list[str] = []
    while page := await catalog.tags("a", after=paged[-1] if paged else "", limit=4):
        assert len(page) <= 4
        paged += page
    assert paged == ordered
    assert await catalog.tags("a", limit=0) == []
    assert await catalog.tags("a", after="zzz", limit=5) == ["z" * 128]


@_case
async def tags_after_any_text_at_all(catalog: Catalog) -> None:
    await _put(catalog, "a", b"body", "a", "b", "c", "ba")
    for after, expected in {
        "b\0z": ["ba", "c"],
        "\0": ["a", "b", "ba", "c"],
        "b\u00e9": ["c"],
        "\udcff": [],
        "b\ud800": ["c"],
        "a' or 1=1 --": ["b", "ba", "c"],
        "%": ["a", "b", "ba", "c"],
    }.items():
        assert await catalog.tags("a", after=after) == expected, repr(after)


@_case
async def tags_of_a_repository_without_any_and_of_none(catalog: Catalog) -> None:
    await add(catalog, "blobs/only", blob("one"))
    assert await catalog.tags("blobs/only") == []
    assert await catalog.tags("blobs/only", after="x", limit=3) == []
    assert await _name_unknown(catalog, "blobs")
    assert await _name_unknown(catalog, "Blobs/Only")


@_case
async def a_cancelled_call_ends_and_the_catalog_goes_on(catalog: Catalog) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await add(catalog, "a", blob("one"))
    assert scope.cancelled_caught
    await add(catalog, "a", blob("one"))
    assert await ref(catalog, "a", blob("one").digest) is not None
