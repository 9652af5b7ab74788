"""More of what every ``Catalog`` must do: lists of repositories and referrers, and removing things."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from tracker.catalog.base import Catalog, Referrer
from tracker.catalog.check import BY, MEDIA_TYPE, Signer, add, blob, manifest, ref

Case = Callable[[Catalog], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


@_case
async def repositories_are_in_ascii_order_and_come_in_pages(catalog: Catalog) -> None:
    names = ["b", "a/b", "a", "a-b", "zoo/x", "a0"]
    assert await catalog.repositories() == []
    for name in names:
        await add(catalog, name, blob("one"))
    assert await catalog.repositories() == sorted(names)
    paged: list[str] = []
    while page := await catalog.repositories(after=paged[-1] if paged else "", limit=2):
        assert len(page) <= 2
        paged += page
    assert paged == sorted(names)
    assert await catalog.repositories(limit=0) == []
    assert await catalog.repositories(after="\0", limit=1) == ["a"]


@_case
async def referrers_are_those_of_the_repository_and_the_type(catalog: Catalog) -> None:
    subject = Digest.of(b"about this")
    made: list[Referrer] = []
    for number in range(6):
        kind = f"type/{number % 2}"
        body = f"referrer {number}".encode()
        notes = {"number": str(number)} if number else None
        new = replace(manifest(body), subject=subject, artifact_type=kind, annotations=notes)
        await catalog.put_manifest("a", new, (), Signer(), BY)
        made.append(Referrer(new.digest, MEDIA_TYPE, len(body), kind, notes))
    await catalog.put_manifest("a", manifest(b"no subject"), (), Signer(), BY)
    await catalog.put_manifest("b", replace(manifest(b"elsewhere"), subject=subject), (), Signer(), BY)
    made.sort(key=lambda one: one.digest.raw)
    assert await catalog.referrers("a", subject, limit=10) == made
    odd = [one for one in made if one.artifact_type == "type/1"]
    assert await catalog.referrers("a", subject, artifact_type="type/1", limit=10) == odd
    assert await catalog.referrers("a", subject, limit=4) == made[:4]
    assert await catalog.referrers("a", subject, after=made[3].digest, limit=4) == made[4:]
    assert await catalog.referrers("a", Digest.of(b"other"), limit=10) == []
    assert await catalog.referrers("none", subject, limit=10) == []
    assert await catalog.delete_manifest("a", made[0].digest, BY)
    assert await catalog.referrers("a", subject, limit=10) == made[1:]


@_case
async def a_tag_goes_alone_and_in_its_repository_only(catalog: Catalog) -> None:
    new = manifest(b"the same")
    for name in ("a", "b"):
        await catalog.put_manifest(name, new, ("1", "2"), Signer(), BY)
    assert await catalog.delete_tag("a", "1", BY)
    assert not await catalog.delete_tag("a", "1", BY)
    assert not await catalog.delete_tag("none", "1", BY)
    assert await catalog.tags("a") == ["2"]
    assert await catalog.tags("b") == ["1", "2"]
    assert await catalog.manifest("a", new.digest) is not None


@_case
async def a_manifest_goes_with_its_tags_and_claims(catalog: Catalog) -> None:
    layer = blob("layer")
    await add(catalog, "a", layer)
    first, other = manifest(b"first", [layer]), manifest(b"other", [layer])
    await catalog.put_manifest("a", first, ("1", "2"), Signer(), BY)
    await catalog.put_manifest("a", other, ("3",), Signer(), BY)
    assert await catalog.delete_manifest("a", first.digest, BY)
    assert not await catalog.delete_manifest("a", first.digest, BY)
    assert await catalog.manifest("a", first.digest) is None
    assert await catalog.manifest("a", "1") is None
    assert await catalog.tags("a") == ["3"]
    assert len(await catalog.claims_for_blob("a", layer.digest)) == 1
    assert await catalog.delete_manifest("a", other.digest, BY)
    assert await catalog.claims_for_blob("a", layer.digest) == []
    assert await catalog.naming([layer.digest]) == {}
    await catalog.put_manifest("a", first, ("1",), Signer(), BY)
    assert await catalog.tags("a") == ["1"], "it can be pushed again"


@_case
async def a_child_of_an_index_may_go_and_come_back(catalog: Catalog) -> None:
    child = manifest(b"child")
    await catalog.put_manifest("a", child, (), Signer(), BY)
    index = manifest(b"index", children=[child.digest])
    await catalog.put_manifest("a", index, ("1",), Signer(), BY)
    assert await catalog.delete_manifest("a", child.digest, BY)
    assert await catalog.manifest("a", "1") is not None
    await catalog.put_manifest("a", child, (), Signer(), BY)
    await catalog.put_manifest("a", index, ("2",), Signer(), BY)
    assert await catalog.tags("a") == ["1", "2"]


@_case
async def a_blob_goes_once_nothing_refers_to_it(catalog: Catalog) -> None:
    layer = blob("layer")
    for name in ("a", "b"):
        await add(catalog, name, layer)
    new = manifest(b"image", [layer])
    await catalog.put_manifest("a", new, (), Signer(), BY)
    caught: RequestError | None = None
    try:
        await catalog.delete_blob("a", layer.digest, BY)
    except RequestError as error:
        caught = error
    assert caught is not None, "a blob in use was deleted"
    assert (caught.code, caught.status) == ("UNSUPPORTED", 405)
    assert await ref(catalog, "a", layer.digest) is not None
    await catalog.delete_manifest("a", new.digest, BY)
    assert await catalog.delete_blob("a", layer.digest, BY)
    assert not await catalog.delete_blob("a", layer.digest, BY)
    assert await ref(catalog, "a", layer.digest) is None
    assert await ref(catalog, "b", layer.digest) is not None
    assert not await catalog.delete_blob("none", layer.digest, BY)
