"""What every ``Listing`` must do. A test runs each of ``CASES`` on a fresh, empty catalog of each implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest
from tracker.catalog.listing import Entry, Listing, RepositoryFacts
from tracker.catalog.visible import Visible

Case = Callable[[Catalog, Listing], Awaitable[None]]

NAMES: Final = ("acme/api", "acme/web", "ann/api", "b", "b/%_", "lab/apical")


async def names_are_found_by_what_they_contain(catalog: Catalog, listing: Listing) -> None:
    """Of what is visible, in pages."""
    for name in NAMES:
        await add(catalog, name.replace("%_", "x"), blob(name))
    await catalog.set_visibility("ann/api", False, BY)
    there = sorted(name.replace("%_", "x") for name in NAMES)
    for text in ("", "api", "acme/", "b", "B", "%", "_", "none", "acme/api/x"):
        for visible in (None, Visible(), Visible.of(["acme/*"]), Visible.of(["**"], public=False)):
            wanted = [
                Entry(name, name != "ann/api")
                for name in there
                if text in name and (visible is None or visible.admits(name, name != "ann/api"))
            ]
            assert await listing.search(text, limit=100, visible=visible) == wanted, (text, visible)
            assert await listing.search(text, limit=1, visible=visible) == wanted[:1]
            after = [one for one in wanted if one.name > "acme/api"]
            assert await listing.search(text, after="acme/api", limit=100, visible=visible) == after


async def facts_are_of_one_repository(catalog: Catalog, listing: Listing) -> None:
    """A blob that several manifests name counts once."""
    assert await listing.facts("acme/api") is None
    one, other = blob("one"), blob("two more")
    for repository in ("acme/api", "acme/web"):
        for each in (one, other):
            await add(catalog, repository, each)
    await catalog.put_manifest("acme/api", manifest(b"1", [one, other]), ["v1", "v2"], Signer(), BY)
    await catalog.put_manifest("acme/api", manifest(b"2", [one]), ["v3"], Signer(), BY)
    await catalog.set_visibility("acme/web", False, BY)
    size = one.size + other.size
    assert await listing.facts("acme/api") == RepositoryFacts("acme/api", True, size, 3)
    assert await listing.facts("acme/web") == RepositoryFacts("acme/web", False, size, 0)


#: Every case, by its name.
CASES: Final[dict[str, Case]] = {
    case.__name__: case for case in (names_are_found_by_what_they_contain, facts_are_of_one_repository)
}
