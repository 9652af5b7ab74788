"""More of what every ``Catalog`` must do: repositories are private or public, and each sees what he may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio

from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest, ref
from tracker.catalog.visible import EVERYTHING_PUBLIC, Area, Visible

Case = Callable[[Catalog], Awaitable[None]]

#: Every case, by its name. The catalog makes new repositories private.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


NAMES = ("acme", "acme-x", "acme.y/app", "acme/api", "acme/api/old", "acme/web", "acme0", "ann/app", "b", "z/z")
PUBLIC = ("acme/web", "b", "ann/app")
FILTERS = (
    Visible(),
    Visible((EVERYTHING_PUBLIC,)),
    Visible.of(()),
    Visible.of(["acme/**"]),
    Visible.of(["acme/**"], public=False),
    Visible.of(["acme", "acme/*"], public=False),
    Visible.of(["acme*", "z/z"]),
    Visible.of(["**"], public=False),
    Visible.of(["*"], public=False),
    Visible.of(["*/a**", "none/**", "acme/api/"], public=False),
    Visible((Area(("acme/**", "*/api")), Area(("**", "ann/*")))),
    Visible((Area(("acme/**",), public=True), Area(("acme/*", "**/web"), public=True))),
    Visible((Area(("ann/**", "acme/**")),)),
)


async def _filled(catalog: Catalog) -> None:
    for name in NAMES:
        await add(catalog, name, blob(name))
    for name in PUBLIC:
        await catalog.set_visibility(name, False, BY)


@_case
async def a_repository_is_private_until_it_is_made_public(catalog: Catalog) -> None:
    assert await catalog.visibility("a") is None
    await add(catalog, "a", blob("one"))
    await catalog.put_manifest("b", manifest(b"m"), [], Signer(), BY)
    assert await catalog.visibility("a") is True
    assert await catalog.visibility("b") is True
    for private in (False, False, True):
        await catalog.set_visibility("a", private, BY)
        await add(catalog, "a", blob("two"))
        assert await catalog.visibility("a") is private
        assert await catalog.visibility("b") is True
    caught: NotFound | None = None
    try:
        await catalog.set_visibility("none", True, BY)
    except NotFound as err:
        caught = err
    assert caught is not None
    assert caught.code == "NAME_UNKNOWN"


@_case
async def a_list_has_what_the_filter_admits(catalog: Catalog) -> None:
    await _filled(catalog)
    assert await catalog.repositories(visible=None) == sorted(NAMES)
    for visible in FILTERS:
        seen = [name for name in sorted(NAMES) if visible.admits(name, name not in PUBLIC)]
        assert await catalog.repositories(visible=visible) == seen, visible
        paged: list[str] = []
        while page := await catalog.repositories(after=paged[-1] if paged else "", limit=2, visible=visible):
            assert len(page) <= 2
            paged += page
        assert paged == seen, visible


@_case
async def a_blob_is_where_a_claim_names_it_and_the_filter_admits(catalog: Catalog) -> None:
    layer, config = blob("layer"), blob("config")
    await _filled(catalog)
    for name in NAMES:
        await add(catalog, name, layer)
        await add(catalog, name, config)
    for name in ("acme/api", "acme/web", "z/z"):
        await catalog.put_manifest(name, manifest(name.encode(), [layer]), (), Signer(), BY)
        await catalog.put_manifest(name, manifest(b"2" + name.encode(), [layer]), (), Signer(), BY)
    assert await catalog.repositories_with_blob(layer.digest) == ["acme/api", "acme/web", "z/z"]
    assert await catalog.repositories_with_blob(layer.digest, 2) == ["acme/api", "acme/web"]
    assert await catalog.repositories_with_blob(config.digest) == []
    for visible in FILTERS:
        seen = [name for name in ("acme/api", "acme/web", "z/z") if visible.admits(name, name not in PUBLIC)]
        assert await catalog.repositories_with_blob(layer.digest, visible=visible) == seen, visible


@_case
async def nothing_is_mounted_from_where_one_may_not_pull(catalog: Catalog) -> None:
    secret, shared = blob("secret"), blob("shared")
    await add(catalog, "acme/api", secret)
    await add(catalog, "acme/api", shared)
    await add(catalog, "free/app", shared)
    await catalog.set_visibility("free/app", False, BY)
    bob = Visible.of(["bob/**"])
    for source in ("acme/api", None):
        assert await catalog.mount_blob("bob/app", secret.digest, source, BY, visible=bob) is None
    assert await catalog.mount_blob("bob/app", shared.digest, "acme/api", BY, visible=bob) is None
    assert await catalog.mount_blob("bob/app", shared.digest, None, BY, visible=Visible()) is None
    assert await ref(catalog, "bob/app", secret.digest) is None
    assert await catalog.visibility("bob/app") is None, "nothing of it was done"
    assert await catalog.mount_blob("bob/app", shared.digest, None, BY, visible=bob) == shared.ref
    ann = Visible.of(["acme/api"])
    for source in ("acme/api", None):
        assert await catalog.mount_blob("ann/app", secret.digest, source, BY, visible=ann) == secret.ref


@_case
async def a_repository_goes_with_all_it_has_and_can_be_made_again(catalog: Catalog) -> None:
    layer = blob("layer")
    for name in ("acme/api", "acme/web"):
        await add(catalog, name, layer)
        child = manifest(b"child", [layer])
        await catalog.put_manifest(name, child, ["c"], Signer(), BY)
        index = replace(manifest(b"index", children=[child.digest]), subject=child.digest)
        await catalog.put_manifest(name, index, ["1", "2"], Signer(), BY)
    await add(catalog, "acme/api", blob("loose"))
    await catalog.set_visibility("acme/api", False, BY)
    assert await catalog.delete_repository("acme/api", BY)
    assert not await catalog.delete_repository("acme/api", BY)
    assert await catalog.repositories() == ["acme/web"]
    assert await catalog.visibility("acme/api") is None
    assert await catalog.manifest("acme/api", "1") is None
    assert await ref(catalog, "acme/api", layer.digest) is None
    assert await catalog.tags("acme/web") == ["1", "2", "c"]
    assert [(one.namespace, one.used) for one in await catalog.policies.quotas()] == [("acme", layer.size)]
    await add(catalog, "acme/api", layer)
    assert await catalog.visibility("acme/api") is True, "not as public as the one that was there"
    assert await catalog.tags("acme/api") == []


@_case
async def a_repository_with_an_immutable_tag_stays(catalog: Catalog) -> None:
    await catalog.put_manifest("acme/api", manifest(b"m"), ["v1", "x"], Signer(), BY)
    await catalog.policies.add_immutable("acme/*:v*", BY)
    caught: RequestError | None = None
    try:
        await catalog.delete_repository("acme/api", BY)
    except RequestError as err:
        caught = err
    assert caught is not None
    assert (caught.code, caught.status) == ("DENIED", 403)
    assert await catalog.tags("acme/api") == ["v1", "x"]


@_case
async def pushes_and_deletions_at_the_same_time_leave_all_or_nothing(catalog: Catalog) -> None:
    layer = blob("layer")

    async def push(number: int) -> None:
        await add(catalog, "acme/api", layer)
        try:
            await catalog.put_manifest("acme/api", manifest(b"%d" % number, [layer]), [f"t{number}"], Signer(), BY)
        except RequestError as err:
            if err.code != "MANIFEST_BLOB_UNKNOWN":  # the blob went before the manifest came: it is pushed again
                raise

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(push, number)
            nursery.start_soon(catalog.delete_repository, "acme/api", BY)
    await push(99)
    assert "t99" in await catalog.tags("acme/api")
    assert [(one.namespace, one.used) for one in await catalog.policies.quotas()] == [("acme", layer.size)]
