"""More of what every ``Catalog`` must do: quotas and immutable tags hold whatever is pushed or deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.errors import RequestError
from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest, ref
from tracker.catalog.policies import Quota

Case = Callable[[Catalog], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _denied(call: Callable[[], Awaitable[object]]) -> bool:
    try:
        await call()
    except RequestError as err:
        return (err.code, err.status) == ("DENIED", 403)
    return False


@_case
async def a_namespace_holds_no_more_than_its_quota(catalog: Catalog) -> None:
    one, two = Metainfo.of_bytes(b"1" * 60), Metainfo.of_bytes(b"2" * 60)
    await catalog.policies.set_quota("acme", 100, BY)
    await add(catalog, "acme/api", one)
    assert await _denied(lambda: add(catalog, "acme/web", two))
    assert await ref(catalog, "acme/web", two.digest) is None
    await add(catalog, "other", two)
    assert await _denied(lambda: catalog.mount_blob("acme/web", two.digest, None, BY))
    assert await catalog.mount_blob("acme/web", one.digest, None, BY) == one.ref, "it is held already"
    await add(catalog, "acme/api", one)
    assert await catalog.policies.quotas() == [Quota("acme", 100, 60), Quota("other", None, 60)]
    assert await _denied(lambda: catalog.policies.check_quota("acme/new", 41))
    await catalog.policies.check_quota("acme/new", 40)
    await catalog.policies.set_quota("acme", 120, BY)
    await add(catalog, "acme/web", two)
    await catalog.delete_blob("acme/web", two.digest, BY)
    assert (await catalog.policies.quotas())[0] == Quota("acme", 120, 60)


@_case
async def of_pushes_at_the_same_time_as_many_fit_as_fit(catalog: Catalog) -> None:
    await catalog.policies.set_quota("acme", 100, BY)
    taken = []

    async def push(number: int) -> None:
        one = Metainfo.of_bytes(b"%d" % number * 30)
        if not await _denied(lambda: add(catalog, f"acme/r{number}", one)):
            taken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(push, number)
    assert len(taken) == 3
    assert await catalog.policies.quotas() == [Quota("acme", 100, 90)]


@_case
async def an_immutable_tag_neither_moves_nor_goes(catalog: Catalog) -> None:
    layer = blob("one")
    await catalog.policies.add_immutable("acme/*:v*", BY)
    first, second = manifest(b"first", [layer]), manifest(b"second", [layer])
    for repository in ("acme/api", "other"):
        await add(catalog, repository, layer)
        await catalog.put_manifest(repository, first, ["v1", "latest"], Signer(), BY)
        await catalog.put_manifest(repository, first, ["v1"], Signer(), BY)  # as it is
    await catalog.put_manifest("other", second, ["v1"], Signer(), BY)
    assert await _denied(lambda: catalog.put_manifest("acme/api", second, ["latest", "v1"], Signer(), BY))
    assert await catalog.manifest("acme/api", second.digest) is None, "nothing of it was done"
    await catalog.put_manifest("acme/api", second, ["latest", "v2"], Signer(), BY)
    assert await _denied(lambda: catalog.delete_tag("acme/api", "v1", BY))
    assert await _denied(lambda: catalog.delete_manifest("acme/api", first.digest, BY))
    assert await catalog.delete_tag("acme/api", "latest", BY)
    assert await catalog.tags("acme/api") == ["v1", "v2"]
    found = await catalog.manifest("acme/api", "v1")
    assert found is not None
    assert found.digest == first.digest
    await catalog.policies.remove_immutable("acme/*:v*", BY)
    assert await catalog.delete_tag("acme/api", "v1", BY)


@_case
async def who_comes_first_has_an_immutable_tag(catalog: Catalog) -> None:
    layer = blob("one")
    await catalog.policies.add_immutable("**:*", BY)
    await add(catalog, "a", layer)
    taken = []

    async def push(number: int) -> None:
        new = manifest(b"manifest %d" % number, [layer])
        if not await _denied(lambda: catalog.put_manifest("a", new, ["t"], Signer(), BY)):
            taken.append(new.digest)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(push, number)
    found = await catalog.manifest("a", "t")
    assert found is not None
    assert taken == [found.digest]
