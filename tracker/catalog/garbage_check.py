"""What every ``Garbage`` must do, with its catalog. A test runs each of ``CASES`` on fresh, empty ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from tracker.catalog.base import Catalog
from tracker.catalog.check import BY, Signer, add, blob, manifest, ref
from tracker.catalog.garbage import Forecast, Garbage
from tracker.retention import Rule


@dataclass(frozen=True, slots=True)
class Both:
    """A catalog, its garbage, and a way to make everything in them so many seconds older."""

    catalog: Catalog
    garbage: Garbage
    age: Callable[[float], Awaitable[None]]


Case = Callable[[Both], Awaitable[None]]
#: Every case, by its name.
CASES: dict[str, Case] = {}
ONE, TWO = blob("one"), blob("two, which is longer")
GRACE = 1000.0


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _image(both: Both, repository: str, body: bytes, *blobs: Metainfo, tag: str | None = None) -> Digest:
    for one in blobs:
        await add(both.catalog, repository, one)
    tags = [] if tag is None else [tag]
    return (await both.catalog.put_manifest(repository, manifest(body, blobs), tags, Signer(), BY)).digest


@_case
async def a_blob_goes_when_its_grace_is_over(both: Both) -> None:
    name = await add(both.catalog, "a", ONE)
    assert await both.garbage.unlink(GRACE, 10) == 0
    await both.age(GRACE + 1)
    assert await both.garbage.forecast(GRACE, None) == Forecast(0, 1, 1, ONE.size)
    assert await both.garbage.unlink(GRACE, 10) == 1
    assert await ref(both.catalog, "a", ONE.digest) is None
    assert await both.garbage.condemned(10) == []
    assert await both.garbage.condemn(10) == 1
    assert await both.catalog.holder(ONE.digest) is None
    assert await both.garbage.condemned(10) == [name]
    assert await both.garbage.forget([name]) == ONE.size
    assert await both.garbage.condemned(10) == []


@_case
async def a_blob_of_a_manifest_stays(both: Both) -> None:
    await _image(both, "a", b"m", ONE, tag="1")
    await _image(both, "b", b"untagged", TWO)
    await both.age(10 * GRACE)
    assert await both.garbage.unlink(GRACE, 10) == 0
    assert await both.garbage.condemn(10) == 0
    assert await both.garbage.forecast(GRACE, None) == Forecast(0, 0, 0, 0)


@_case
async def a_blob_stays_while_any_repository_has_it(both: Both) -> None:
    await _image(both, "a", b"m", ONE, tag="1")
    await both.catalog.mount_blob("b", ONE.digest, None, BY)
    await both.age(GRACE + 1)
    assert await both.garbage.forecast(GRACE, None) == Forecast(0, 1, 0, 0)
    assert await both.garbage.unlink(GRACE, 10) == 1
    assert await ref(both.catalog, "b", ONE.digest) is None
    assert await both.garbage.condemn(10) == 0
    assert await ref(both.catalog, "a", ONE.digest) == ONE.ref


@_case
async def a_promise_renews_the_grace(both: Both) -> None:
    renewals: list[Callable[[], Awaitable[object]]] = [
        lambda: both.catalog.blob("a", ONE.digest, renew=True),
        lambda: both.catalog.mount_blob("a", ONE.digest, "a", BY),
        lambda: add(both.catalog, "a", ONE),
    ]
    await add(both.catalog, "a", ONE)
    for renew in renewals:
        await both.age(GRACE - 10)
        assert await renew() is not None
        await both.age(GRACE - 10)
        assert await both.garbage.unlink(GRACE, 10) == 0
    await both.age(11)
    assert await both.garbage.unlink(GRACE, 10) == 1


@_case
async def a_manifest_of_a_blob_that_went_is_refused(both: Both) -> None:
    await add(both.catalog, "a", ONE)
    await both.age(GRACE + 1)
    await both.garbage.unlink(GRACE, 10)
    code = ""
    try:
        await both.catalog.put_manifest("a", manifest(b"m", [ONE]), ["1"], Signer(), BY)
    except RequestError as err:
        code = err.code
    assert code == "MANIFEST_BLOB_UNKNOWN"


@_case
async def what_is_pushed_again_gets_an_object_of_its_own(both: Both) -> None:
    before = await add(both.catalog, "a", ONE)
    await both.age(GRACE + 1)
    await both.garbage.unlink(GRACE, 10)
    await both.garbage.condemn(10)
    after = await add(both.catalog, "a", ONE)
    assert after != before
    assert await both.garbage.condemned(10) == [before]
    assert await both.catalog.holder(ONE.digest) == after


@_case
async def untagged_manifests_go_unless_something_keeps_them(both: Both) -> None:
    tagged = await _image(both, "a", b"tagged", ONE, tag="1")
    child = await _image(both, "a", b"child", ONE)
    index = await both.catalog.put_manifest("a", manifest(b"index", (), [child]), ["index"], Signer(), BY)
    about = replace(manifest(b"referrer"), subject=tagged)
    referrer = await both.catalog.put_manifest("a", about, (), Signer(), BY)
    lone = await _image(both, "a", b"lone", TWO)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 0
    await both.age(GRACE + 1)
    assert await both.garbage.forecast(GRACE, GRACE) == Forecast(1, 1, 1, TWO.size)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 1
    assert await both.catalog.manifest("a", lone) is None
    for digest in (tagged, child, index.digest, referrer.digest):
        assert await both.catalog.manifest("a", digest) is not None
    assert await both.catalog.delete_manifest("a", index.digest, BY)
    assert await both.catalog.delete_manifest("a", tagged, BY)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 2
    assert await both.garbage.unlink(GRACE, 10) == 2


@_case
async def a_child_that_went_and_came_back_is_kept_by_its_index(both: Both) -> None:
    child = await _image(both, "a", b"child", ONE)
    await both.catalog.put_manifest("a", manifest(b"index", (), [child]), ["index"], Signer(), BY)
    assert await both.catalog.delete_manifest("a", child, BY)
    await both.garbage.condemn(10)
    assert await _image(both, "a", b"child", ONE) == child
    await both.age(GRACE + 1)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 0
    assert await both.catalog.manifest("a", child) is not None


@_case
async def a_pull_keeps_an_untagged_manifest(both: Both) -> None:
    digest = await _image(both, "a", b"m", ONE)
    await both.age(GRACE + 1)
    await both.garbage.pulled([("a", None, digest, 3), ("nowhere", "x", digest, 1)])
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 0
    await both.age(GRACE + 1)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 1


@_case
async def tags_say_when_they_were_pushed_and_pulled(both: Both) -> None:
    digest = await _image(both, "a", b"m", ONE, tag="old")
    await both.age(5000)
    await _image(both, "a", b"n", ONE, tag="new")
    await both.garbage.pulled([("a", "old", digest, 2)])
    new, old = await both.garbage.tagged("a")
    now = datetime.now(UTC)
    assert (new.name, old.name) == ("new", "old")
    assert abs((now - new.pushed_at).total_seconds()) < 100
    assert abs((now - old.pushed_at).total_seconds() - 5000) < 100
    assert new.pulled_at is None
    assert old.pulled_at is not None
    assert abs((now - old.pulled_at).total_seconds()) < 100
    assert await both.garbage.tagged("none") == []


@_case
async def rules_are_kept(both: Both) -> None:
    made = await both.garbage.add_rule(Rule(0, "acme/**", "v*", 10, 3600.0, None), BY)
    other = await both.garbage.add_rule(Rule(0, "**", "*", None, None, 86400.0), BY)
    assert await both.garbage.rules() == [made, other]
    assert (made.repositories, made.tags, made.keep_last, made.pushed_within) == ("acme/**", "v*", 10, 3600.0)
    assert await both.garbage.remove_rule(made.id, BY)
    assert not await both.garbage.remove_rule(made.id, BY)
    assert await both.garbage.rules() == [other]


@_case
async def runs_have_a_history_and_one_begins_at_a_time(both: Both) -> None:
    first = await both.garbage.start("collect", False, 3600.0)
    assert first is not None
    assert await both.garbage.start("collect", False, 3600.0) is None
    assert await both.garbage.start("scrub", False, 3600.0) is not None
    asked = await both.garbage.start("collect", True, None)
    assert asked is not None
    await both.garbage.end(first, {"blobs": 3}, None)
    await both.garbage.end(asked, {}, "it broke")
    runs = await both.garbage.runs()
    assert [(run.kind, run.dry_run) for run in runs] == [("collect", True), ("scrub", False), ("collect", False)]
    assert (runs[0].error, runs[2].figures, runs[1].ended_at) == ("it broke", {"blobs": 3}, None)
    assert runs[2].ended_at is not None
    assert len(await both.garbage.runs(limit=1)) == 1


@_case
async def blobs_are_scrubbed_longest_ago_first_and_damage_is_remembered(both: Both) -> None:
    names = {one.digest: await add(both.catalog, "a", one) for one in (ONE, TWO)}
    found = await both.garbage.to_scrub(10, GRACE)
    assert {(one.digest, one.size, one.object) for one in found} == {
        (one.digest, one.size, names[one.digest]) for one in (ONE, TWO)
    }
    await both.garbage.scrubbed(ONE.digest, names[ONE.digest], True)
    await both.garbage.scrubbed(TWO.digest, "u/aa/another", False)  # it has been replaced meanwhile
    assert [one.digest for one in await both.garbage.to_scrub(10, GRACE)] == [TWO.digest]
    await both.garbage.scrubbed(TWO.digest, names[TWO.digest], False)
    assert await both.garbage.to_scrub(10, GRACE) == []
    assert [one.digest for one in await both.garbage.damaged()] == [TWO.digest]
    assert await both.catalog.blob("a", TWO.digest, renew=True) is None, "so that clients push it again"
    assert await both.catalog.mount_blob("b", TWO.digest, None, BY) is None
    await add(both.catalog, "a", TWO)
    assert await both.garbage.damaged() == []


@_case
async def objects_that_nothing_knows_of_are_told_apart(both: Both) -> None:
    held = await add(both.catalog, "a", ONE)
    again = "u/ff/condemned"
    assert await both.catalog.add_blob("a", ONE, again, BY) == held
    await both.catalog.sessions.open("session", "a", limit=10)
    asked = [held, again, "u/se/session", "u/aa/nobody", "sha256/ab/abcd"]
    assert await both.garbage.unknown(asked) == {"u/aa/nobody", "sha256/ab/abcd"}


@_case
async def a_manifest_whose_tag_has_just_left_it_is_kept_for_a_while(both: Both) -> None:
    moved = await _image(both, "a", b"moved", ONE, tag="latest")
    deleted = await _image(both, "a", b"deleted", ONE, tag="v1")
    await both.age(10 * GRACE)
    await _image(both, "a", b"new", ONE, tag="latest")
    await both.catalog.delete_tag("a", "v1", BY)
    await both.age(GRACE - 10)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 0
    await both.age(20)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 2
    assert await both.catalog.manifest("a", moved) is None
    assert await both.catalog.manifest("a", deleted) is None


@_case
async def pushing_a_manifest_again_renews_it(both: Both) -> None:
    digest = await _image(both, "a", b"m", ONE)
    await both.age(GRACE - 10)
    await _image(both, "a", b"m", ONE)
    await both.age(20)
    assert await both.garbage.drop_manifests(GRACE, 10, BY) == 0
    assert await both.catalog.manifest("a", digest) is not None


@_case
async def an_open_upload_keeps_what_was_pushed_before_it(both: Both) -> None:
    await add(both.catalog, "a", ONE)
    await add(both.catalog, "b", TWO)
    session = await both.catalog.sessions.open("session", "a", limit=10, holder="process", lasts=1e6)
    await both.age(GRACE + 1)
    assert await both.garbage.unlink(GRACE, 10) == 1
    assert await ref(both.catalog, "a", ONE.digest) == ONE.ref
    assert await both.catalog.sessions.drop(session.lease)
    assert await both.garbage.unlink(GRACE, 10) == 1


@_case
async def a_tag_that_was_used_since_it_was_seen_is_not_let_go(both: Both) -> None:
    digest = await _image(both, "a", b"m", ONE, tag="1")
    await _image(both, "a", b"n", ONE, tag="2")
    await both.age(GRACE)
    one, two = await both.garbage.tagged("a")
    await both.garbage.pulled([("a", "1", digest, 1)])
    assert not await both.garbage.let_go("a", one, BY)
    assert await both.garbage.let_go("a", two, BY)
    assert not await both.garbage.let_go("a", two, BY)
    assert await both.catalog.tags("a") == ["1"]


@_case
async def objects_that_cannot_go_do_not_hide_others(both: Both) -> None:
    for number in range(3):
        await both.catalog.add_blob("a", ONE, f"u/aa/{number}", BY)
    first = await both.garbage.condemned(1)
    assert await both.garbage.condemned(10, first) == [name for name in ("u/aa/1", "u/aa/2") if name not in first]
