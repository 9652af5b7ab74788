"""More of what every ``Catalog`` must do: which object holds a blob, and how an upload becomes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from p2pregistry.errors import NotFound
from tracker.catalog.base import BlobHere, Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest
from tracker.catalog.sessions import Lease

Case = Callable[[Catalog], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _held(catalog: Catalog, repository: str, session: str) -> Lease:
    opened = await catalog.sessions.open(session, repository, limit=100, holder="process", lasts=60.0)
    return opened.lease


async def _unknown(call: Callable[[], Awaitable[object]]) -> str | None:
    try:
        await call()
    except NotFound as err:
        return err.code
    return None


@_case
async def the_first_object_of_a_blob_holds_it(catalog: Catalog) -> None:
    one = blob("one")
    assert await catalog.add_blob("a", one, "u/aa/first", BY) == "u/aa/first"
    assert await catalog.add_blob("b", one, "u/bb/second", BY) == "u/aa/first"
    assert await catalog.add_blob("a", one, "u/aa/first", BY) == "u/aa/first"
    for repository in ("a", "b"):
        assert await catalog.blob(repository, one.digest) == BlobHere(one.ref, "u/aa/first")
    assert await catalog.holder(one.digest) == "u/aa/first"
    assert await catalog.holder(blob("two").digest) is None


@_case
async def a_blob_whose_bytes_are_lost_gets_the_object_that_was_pushed(catalog: Catalog) -> None:
    one = blob("one")
    await catalog.add_blob("a", one, "u/aa/first", BY)
    assert await catalog.add_blob("b", one, "u/bb/second", BY, lost="u/cc/other") == "u/aa/first"
    assert await catalog.add_blob("b", one, "u/dd/third", BY, lost="u/aa/first") == "u/dd/third"
    for repository in ("a", "b"):
        assert await catalog.blob(repository, one.digest) == BlobHere(one.ref, "u/dd/third")


@_case
async def the_peer_api_finds_the_objects_of_named_blobs_only(catalog: Catalog) -> None:
    one = blob("one")
    await catalog.add_blob("a", one, "u/aa/first", BY)
    assert await catalog.named_blob(one.digest) is None
    await catalog.put_manifest("a", manifest(b"m", [one]), (), Signer(), BY)
    assert await catalog.named_blob(one.digest) == BlobHere(one.ref, "u/aa/first")


@_case
async def an_upload_ends_with_its_blob(catalog: Catalog) -> None:
    one = blob("one")
    lease = await _held(catalog, "a", "s1")
    assert await catalog.add_blob("a", one, "u/s1/s1", BY, upload=lease) == "u/s1/s1"
    assert await catalog.sessions.get("a", "s1") is None
    # repeated, because the answer of the database was lost
    assert await catalog.add_blob("a", one, "u/s1/s1", BY, upload=lease) == "u/s1/s1"


@_case
async def who_lost_the_lease_of_an_upload_cannot_record_it(catalog: Catalog) -> None:
    one = blob("one")
    lease = await _held(catalog, "a", "s1")
    newer = await catalog.sessions.take("a", "s1", "process", 60.0)
    assert newer is not None
    assert await _unknown(lambda: catalog.add_blob("a", one, "u/s1/s1", BY, upload=lease)) == "BLOB_UPLOAD_UNKNOWN"
    assert await catalog.blob("a", one.digest) is None
    assert await catalog.holder(one.digest) is None
    assert await catalog.sessions.get("a", "s1") is not None
    assert await catalog.add_blob("a", one, "u/s1/s1", BY, upload=newer.lease) == "u/s1/s1"


@_case
async def a_blob_can_be_asked_for_with_a_promise(catalog: Catalog) -> None:
    one = blob("one")
    assert await catalog.blob("a", one.digest, renew=True) is None
    name = await add(catalog, "a", one)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(_renewed, catalog, BlobHere(one.ref, name))


async def _renewed(catalog: Catalog, here: BlobHere) -> None:
    assert await catalog.blob("a", here.ref.digest, renew=True) == here
