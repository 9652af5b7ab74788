"""What every ``Catalog`` must do about whose content is whose. A test runs each of ``CASES`` on a fresh, empty catalog
of each implementation."""

from __future__ import annotations

from p2pregistry.digest import Digest
from p2pregistry.trust.records import Stamp
from tracker.catalog.base import Catalog, Naming, Resolved
from tracker.catalog.check import BY, Case, Signer, add, anybody, blob, manifest

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _push(catalog: Catalog, repository: str, body: bytes, *tags: str, layer: str = "layer") -> Digest:
    one = blob(layer)
    await add(catalog, repository, one)
    new = manifest(body, [one])
    await catalog.put_manifest(repository, new, tags, Signer(), BY)
    return new.digest


async def _resolved(catalog: Catalog, repository: str, reference: str | Digest) -> Resolved:
    found = await catalog.resolve(repository, reference)
    assert found is not None
    assert found.manifest == await catalog.manifest(repository, reference)
    assert (await catalog.standings([repository]))[repository] == found.standing
    return found


async def _tag(catalog: Catalog, repository: str, tag: str) -> Stamp:
    stamp = (await _resolved(catalog, repository, tag)).tag
    assert stamp is not None
    return stamp


@_case
async def what_is_resolved_comes_with_its_stamps(catalog: Catalog) -> None:
    digest = await _push(catalog, "acme/api", b"one", "1", "2")
    first = await _resolved(catalog, "acme/api", "1")
    assert first.tag is not None
    assert first.tag >= first.standing.stamp > Stamp(0, 0)
    by_digest = await _resolved(catalog, "acme/api", digest)
    assert (by_digest.manifest, by_digest.standing, by_digest.tag) == (first.manifest, first.standing, None)
    for repository, reference in (("acme/api", "3"), ("acme/api", Digest.of(b"x")), ("acme", "1"), ("no", digest)):
        assert await catalog.resolve(repository, reference) is None


@_case
async def a_tag_that_moves_has_a_higher_stamp_and_no_other_has(catalog: Catalog) -> None:
    await _push(catalog, "a", b"one", "1", "2")
    before = {tag: await _tag(catalog, "a", tag) for tag in ("1", "2")}
    await _push(catalog, "a", b"one", "1")
    assert await _tag(catalog, "a", "1") == before["1"], "it has not moved"
    await _push(catalog, "a", b"two", "1")
    moved = await _tag(catalog, "a", "1")
    assert moved > max(before.values())
    assert await _tag(catalog, "a", "2") == before["2"]
    await catalog.delete_tag("a", "1", BY)
    await _push(catalog, "a", b"two", "1")
    assert await _tag(catalog, "a", "1") > moved, "it was gone in between"
    assert (await catalog.standings(["a"]))["a"] == (await _resolved(catalog, "a", "2")).standing


@_case
async def a_repository_that_becomes_private_or_public_has_a_higher_stamp(catalog: Catalog) -> None:
    await _push(catalog, "a", b"one", "1")
    await catalog.set_visibility("a", False, BY)
    public = (await catalog.standings(["a"]))["a"]
    assert not public.private
    await catalog.set_visibility("a", False, BY)
    assert (await catalog.standings(["a"]))["a"] == public
    await catalog.set_visibility("a", True, BY)
    private = (await catalog.standings(["a"]))["a"]
    assert private.private
    assert private.stamp > public.stamp
    assert await _tag(catalog, "a", "1") >= private.stamp
    assert await catalog.delete_repository("a", BY)
    assert await catalog.standings(["a"]) == {}
    await _push(catalog, "a", b"one", "1")
    assert (await catalog.standings(["a"]))["a"].stamp > private.stamp


@_case
async def standings_of_many(catalog: Catalog) -> None:
    for name in ("a", "b"):
        await _push(catalog, name, b"one")
        await catalog.set_visibility(name, name == "a", BY)
    found = await catalog.standings(["a", "b", "c"])
    assert {name: at.private for name, at in found.items()} == {"a": True, "b": False}
    assert await catalog.standings([]) == {}


@_case
async def a_blob_is_public_through_one_public_repository(catalog: Catalog) -> None:
    layer, other = blob("layer"), blob("other")
    for name in ("a", "b"):
        await _push(catalog, name, b"one")
        await _push(catalog, name, b"again")
        await catalog.set_visibility(name, True, BY)
    assert _sorted(await catalog.naming([layer.digest])) == {layer.digest: Naming(False, ("a", "b"))}
    await add(catalog, "c", layer)
    await catalog.set_visibility("c", False, BY)
    assert _sorted(await catalog.naming([layer.digest])) == {layer.digest: Naming(False, ("a", "b"))}, "no claim of c"
    await _push(catalog, "c", b"other", layer="other")
    await catalog.set_visibility("b", False, BY)
    found = await catalog.naming([layer.digest, other.digest, blob("unheard of").digest])
    assert found == {layer.digest: Naming(True), other.digest: Naming(True)}


def _sorted(found: dict[Digest, Naming]) -> dict[Digest, Naming]:
    return {digest: Naming(naming.public, tuple(sorted(naming.private))) for digest, naming in found.items()}


@_case
async def a_manifest_is_told_of_where_one_may_pull(catalog: Catalog) -> None:
    for name in ("a", "b", "c"):
        digest = await _push(catalog, name, b"one")
        await catalog.set_visibility(name, name != "b", BY)
    asked: list[tuple[str, bool]] = []

    def may(repository: str, private: bool) -> bool:
        asked.append((repository, private))
        return repository != "c"

    places = await catalog.manifest_anywhere(digest, may)
    assert [(place.repository, place.standing.private) for place in places] == [("b", False), ("a", True)]
    assert sorted(asked) == [("a", True), ("b", False), ("c", True)]
    assert await catalog.standings(["a", "b"]) == {place.repository: place.standing for place in places}
    assert len(await catalog.manifest_anywhere(digest, anybody)) == 3
    assert await catalog.manifest_anywhere(digest, lambda _repository, _private: False) == []
