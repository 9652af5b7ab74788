"""What every ``Changes`` must do. A test runs each of ``CASES`` on those of a fresh, empty catalog of each
implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pregistry.digest import Digest
from p2pregistry.trust.records import ANYONE, Caller, Stamp
from tracker.catalog.base import Catalog
from tracker.catalog.changes import Change, Changes, Scope, State
from tracker.catalog.check import BY, Signer, add, blob, manifest

Case = Callable[[Catalog, Changes], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}
OWN = Caller("peer", ("a", "acme/**"))


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def push(catalog: Catalog, repository: str, body: bytes, *tags: str) -> Digest:
    """A manifest with these tags."""
    layer = blob("layer")
    await add(catalog, repository, layer)
    new = manifest(body, [layer])
    await catalog.put_manifest(repository, new, tags, Signer(), BY)
    return new.digest


async def _all(changes: Changes, after: int = 0, scope: Scope | None = None) -> list[Change]:
    page = await changes.since(after, 1000, scope)
    assert page.state == await changes.state()
    assert page.upto == page.state.number
    numbers = [change.number for change in page.changes]
    assert numbers == sorted(set(numbers))
    assert all(after < number <= page.upto for number in numbers)
    return list(page.changes)


def _names(found: list[Change]) -> list[tuple[str, str]]:
    return [(change.repository, change.name) for change in found]


@_case
async def the_latest_change_of_each_thing_in_order(catalog: Catalog, changes: Changes) -> None:
    first = await push(catalog, "a", b"one", "1", "2")
    assert _names(await _all(changes))[0] == ("a", "")
    assert sorted(_names(await _all(changes))) == [("a", ""), ("a", "1"), ("a", "2")]
    assert {change.digest for change in await _all(changes) if change.kind == "tag"} == {first}
    before = (await changes.state()).number
    await push(catalog, "a", b"one", "1")
    assert (await changes.state()).number == before, "nothing has changed"
    second = await push(catalog, "a", b"two", "1")
    (moved,) = await _all(changes, before)
    assert (moved.kind, moved.repository, moved.name, moved.digest) == ("tag", "a", "1", second)
    assert moved.private
    assert 0 < moved.since < moved.number
    assert _names(await _all(changes)) == [("a", ""), ("a", "2"), ("a", "1")]
    assert await catalog.delete_tag("a", "2", BY)
    assert _names(await _all(changes, moved.number)) == [("a", "2")]
    assert (await _all(changes, moved.number))[0].digest is None


@_case
async def pages_and_scopes(catalog: Catalog, changes: Changes) -> None:
    for name in ("acme/api", "acme/web", "b", "bb"):
        await push(catalog, name, b"one", "1", "2")
    page = await changes.since(0, 5)
    assert len(page.changes) == 5
    assert page.upto == page.changes[-1].number < page.state.number
    rest = await changes.since(page.upto, 1000)
    assert len(page.changes) + len(rest.changes) == 12
    found = await _all(changes, scope=Scope(("b", "no"), ("acme/w",)))
    assert sorted(set(_names(found))) == [(name, tag) for name in ("acme/web", "b") for tag in ("", "1", "2")]
    assert await _all(changes, scope=Scope()) == []
    assert len(await _all(changes, scope=Scope((), ("",)))) == 12


@_case
async def the_tags_that_there_are(catalog: Catalog, changes: Changes) -> None:
    digest = await push(catalog, "a", b"one", "1", "2", "3")
    other = await push(catalog, "b", b"two", "1")
    await push(catalog, "c", b"two", "1")
    await catalog.delete_tag("a", "2", BY)
    found = await changes.tags(["b", "a", "no"], ("", ""), 10)
    assert [(one.repository, one.name, one.digest) for one in found] == [
        ("a", "1", digest),
        ("a", "3", digest),
        ("b", "1", other),
    ]
    stamps = {(change.repository, change.name): change for change in await _all(changes) if change.kind == "tag"}
    assert found == [stamps[one.repository, one.name] for one in found]
    assert _names(await changes.tags(["a", "b"], ("a", "1"), 1)) == [("a", "3")]
    assert _names(await changes.tags(["a", "b"], ("a", "3"), 1)) == [("b", "1")]
    assert await changes.tags(["a", "b"], ("b", "1"), 5) == []
    assert await changes.tags([], ("", ""), 5) == []


@_case
async def the_repositories_that_there_are(catalog: Catalog, changes: Changes) -> None:
    for name in ("acme/api", "acme/web", "acmex", "b"):
        await push(catalog, name, b"one", "1")
    await catalog.set_visibility("acme/web", False, BY)
    found = await changes.repositories(["b", "no", "acme/web"])
    assert [(one.repository, one.private) for one in found] == [("acme/web", False), ("b", True)]
    latest = {change.repository: change for change in await _all(changes) if change.kind == "repository"}
    assert found == [latest[one.repository] for one in found]
    assert _names(await changes.repositories_from("acme/", "", 10)) == [("acme/api", ""), ("acme/web", "")]
    assert _names(await changes.repositories_from("acme/", "acme/api", 10)) == [("acme/web", "")]
    assert _names(await changes.repositories_from("", "acme/api", 2)) == [("acme/web", ""), ("acmex", "")]


@_case
async def what_each_is_told_of_a_repository(catalog: Catalog, changes: Changes) -> None:
    await push(catalog, "a", b"one", "1")
    (made,) = await changes.repositories(["a"])
    assert made.shown(ANYONE, 0) is None, "it never saw it"
    assert made.shown(OWN, 0) == "repository"
    await catalog.set_visibility("a", False, BY)
    (public,) = await changes.repositories(["a"])
    assert public.shown(ANYONE, public.number) == "repository"
    await catalog.set_visibility("a", True, BY)
    (hidden,) = await changes.repositories(["a"])
    assert hidden.public_until == hidden.number
    assert hidden.shown(ANYONE, hidden.number - 1) == "gone"
    assert hidden.shown(ANYONE, hidden.number) is None, "it was told before"
    assert hidden.shown(OWN, 0) == "repository"
    assert await catalog.delete_repository("a", BY)
    deleted = next(change for change in await _all(changes) if change.kind == "repository")
    assert deleted.private is None
    assert deleted.shown(ANYONE, hidden.number - 1) == "gone", "it knows it as public"
    assert deleted.shown(ANYONE, hidden.number) is None, "it knows nothing of it"
    assert deleted.shown(OWN, hidden.number) == "gone"
    assert await changes.repositories(["a"]) == []
    assert all(change.shown(OWN, 0) is None for change in await _all(changes) if change.kind == "tag")


@_case
async def a_public_repository_that_is_deleted_is_gone_for_all(catalog: Catalog, changes: Changes) -> None:
    await push(catalog, "a", b"one", "1")
    await catalog.set_visibility("a", False, BY)
    known = (await changes.state()).number
    assert await catalog.delete_repository("a", BY)
    deleted = next(change for change in await _all(changes, known) if change.kind == "repository")
    assert deleted.shown(ANYONE, known) == "gone"
    digest = await push(catalog, "a", b"two", "1")
    again = {change.kind: change for change in await _all(changes, known)}
    assert again["repository"].shown(ANYONE, known) == "gone", "it is there again, and private"
    assert again["tag"].digest == digest
    assert again["tag"].shown(OWN, known) == "tag"
    assert again["tag"].shown(ANYONE, known) is None


@_case
async def tombstones_go_when_they_are_old(catalog: Catalog, changes: Changes) -> None:
    await push(catalog, "a", b"one", "1", "2")
    await push(catalog, "b", b"one", "1")
    await catalog.delete_tag("a", "1", BY)
    await catalog.delete_repository("b", BY)
    before = await changes.state()
    assert await changes.prune(3600.0) == 0
    assert await changes.state() == before
    assert before.can_go_on(Stamp(before.epoch, 1))
    assert await changes.prune(-1.0) > 0
    assert await changes.prune(-1.0) == 0
    assert sorted(_names(await _all(changes))) == [("a", ""), ("a", "2")]
    state = await changes.state()
    assert (state.number, state.pruned) == (before.number, before.number)
    assert not state.can_go_on(Stamp(state.epoch, 1))
    assert state.can_go_on(state.stamp)
    await push(catalog, "b", b"one", "1")
    assert sorted(_names(await _all(changes, state.number))) == [("b", ""), ("b", "1")]


@_case
async def a_new_epoch_ends_what_was_known(catalog: Catalog, changes: Changes) -> None:
    await push(catalog, "a", b"one", "1")
    before = await changes.state()
    after = await changes.new_epoch(BY)
    assert after == State(before.epoch + 1, before.number, before.pruned)
    assert await changes.state() == after
    assert not after.can_go_on(before.stamp)
    assert not after.can_go_on(Stamp(after.epoch, after.number + 1))
    assert (await catalog.standings(["a"]))["a"].stamp.epoch == after.epoch
    resolved = await catalog.resolve("a", "1")
    assert resolved is not None
    assert resolved.as_of == after.stamp
    assert resolved.tag is not None
    assert resolved.tag.epoch == after.epoch


@_case
async def a_tag_is_read_as_of_a_change(catalog: Catalog, changes: Changes) -> None:
    await push(catalog, "a", b"one", "1")
    for body in (b"two", b"three"):
        read = await catalog.resolve("a", "1")
        assert read is not None
        assert read.as_of == (await changes.state()).stamp
        await push(catalog, "a", body, "1")
        (moved,) = await _all(changes, read.as_of.number)
        assert (moved.name, moved.digest) == ("1", Digest.of(body))
