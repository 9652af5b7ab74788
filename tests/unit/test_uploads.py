"""Uploads that outlive the process: whatever dies in between, what was acknowledged is there and the push goes on."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RequestError, StorageFull
from p2pregistry.objects.memory import MemoryObjects
from p2pregistry.testing.crashing_objects import Crash
from p2pregistry.testing.handlers import ScriptedBody
from tracker import intake
from tracker.catalog.sessions import Lease, Session, Sessions, unknown
from tracker.catalog.sessions_memory import MemorySessions
from tracker.catalog.trail import By
from tracker.uploads import LEASE, RENEW, Limits, Uploads

BY = By("pusher")
REPO = "acme/api"
DATA = random.Random(3).randbytes(3 * PIECE_SIZE + 4321)
LIMITS = Limits(wait=3 * LEASE)


class World:
    """What all processes share, and the process that lives now; ``crash_in``: after so many steps it dies."""

    def __init__(self) -> None:
        self.objects = MemoryObjects(step=self.step)
        self.condemned: list[str] = []
        self.sessions = MemorySessions(self.condemn)
        self.blobs: dict[Digest, tuple[Metainfo, str]] = {}
        self.links: set[tuple[str, Digest]] = set()
        self.crash_in: int | None = None
        self.dead = False
        self.refuse: RequestError | None = None

    def condemn(self, name: str, _size: int) -> None:
        if all(name != used for _, used in self.blobs.values()):
            self.condemned.append(name)

    def step(self, _what: str) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            self.dead = self.dead or self.crash_in < 0
        if self.dead:
            raise Crash

    async def holder(self, digest: Digest) -> str | None:
        await trio.lowlevel.checkpoint()
        self.step("holder")
        return self.blobs[digest][1] if digest in self.blobs else None

    async def add_blob(
        self,
        repository: str,
        blob: Metainfo,
        name: str,
        by: By,
        *,
        upload: Lease | None = None,
        lost: str | None = None,
    ) -> str:
        await trio.lowlevel.checkpoint()
        self.step("add_blob")
        assert by == BY
        if self.refuse is not None:
            raise self.refuse
        assert upload is not None
        assert self.objects.held.objects[name] is not None
        if not self.sessions.end(upload):
            raise unknown(upload.id)
        if blob.digest in self.blobs and self.blobs[blob.digest][1] == lost:
            self.condemned.append(self.blobs.pop(blob.digest)[1])
        _, used = self.blobs.setdefault(blob.digest, (blob, name))
        self.links.add((repository, blob.digest))
        if used != name:
            self.condemned.append(name)
        self.step("recorded")
        return used

    def process(self, limits: Limits = LIMITS) -> Uploads:
        """A new process, after the last one has ended or was killed."""
        self.dead, self.crash_in = False, None
        return Uploads(self, cast("Sessions", _Mortal(self)), self.objects, limits)

    def whole(self, data: bytes) -> bool:
        """Whether the blob is recorded, and its object there and right."""
        found = self.blobs.get(Digest.of(data))
        return found is not None and found[0] == Metainfo.of_bytes(data) and self.objects.held.objects[found[1]] == data


class _Mortal:
    """The sessions as a process sees them: before and after each transaction it may die."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            self._world.step(name)
            answer = await getattr(self._world.sessions, name)(*args, **options)
            self._world.step(name)
            return answer

        return call


async def send(uploads: Uploads, session: Session, data: bytes) -> int:
    async with uploads.hold(REPO, session.id) as upload:
        await uploads.append(upload, ScriptedBody([data]), keep=True)
        return upload.size


async def put(uploads: Uploads, session: Session, data: bytes) -> None:
    async with uploads.hold(REPO, session.id) as upload:
        await uploads.finish(upload, Digest.of(data), BY)


async def survive(call: Callable[[], Any]) -> Any:
    """What the call gives; None if the process died in it."""
    try:
        return await call()
    except BaseExceptionGroup as group:
        rest = group.split(Crash)[1]
        if rest is not None:
            raise
    except Crash:
        pass
    return None


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHECKPOINT", 1000)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 5000),
    edges=st.lists(st.integers(0, 5000), max_size=5),
    crashes=st.lists(st.integers(0, 30), max_size=5),
)
async def test_a_push_goes_on_after_a_crash_between_any_two_steps(
    size: int, edges: list[int], crashes: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    data = DATA[:size]
    cuts = sorted({min(edge, size) for edge in edges} | {size})
    world = World()
    left = list(crashes)
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    acknowledged = 0
    world.crash_in = left.pop(0) if left else None
    for _ in range(len(crashes) + len(cuts) + 2):
        if world.dead:
            uploads = world.process()
            world.crash_in = left.pop(0) if left else None
        try:
            found = await survive(lambda: uploads.get(REPO, session.id))  # noqa: B023 - called at once
        except NotFound:
            break  # the answer was lost, not the blob
        if found is None:
            continue
        assert acknowledged <= found.size <= size
        if found.size == size:
            if await survive(lambda: put(uploads, session, data)) is None and not world.dead:  # noqa: B023
                break
            continue
        until = next(cut for cut in cuts if cut > found.size)
        sent = await survive(lambda: send(uploads, session, data[found.size : until]))  # noqa: B023
        if sent is not None:
            assert sent == until
            acknowledged = until
    assert world.whole(data)
    assert (REPO, Digest.of(data)) in world.links
    world.process()
    assert await world.sessions.count() == 0
    assert world.blobs[Digest.of(data)][1] not in world.condemned


async def test_a_dead_process_loses_no_more_than_the_last_bytes_of_a_long_request(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CHECKPOINT", PIECE_SIZE)
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)

    async def endless() -> AsyncIterator[bytes]:
        yield DATA[: 2 * PIECE_SIZE]
        while (await world.sessions.get(REPO, session.id)).size < 2 * PIECE_SIZE:  # type: ignore[union-attr]
            await trio.lowlevel.checkpoint()
        world.dead = True
        yield DATA[2 * PIECE_SIZE :]

    async def patch() -> None:
        async with uploads.hold(REPO, session.id) as upload:
            await uploads.append(upload, endless(), keep=True)

    assert await survive(patch) is None
    other = world.process()
    found = await other.get(REPO, session.id)
    assert found.size == 2 * PIECE_SIZE
    assert found.held
    await send(other, session, DATA[2 * PIECE_SIZE :])
    await put(other, session, DATA)
    assert world.whole(DATA)


async def test_requests_that_alternate_between_processes_read_each_others_bytes_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    both = [world.process(), world.process()]
    session = await both[0].open(REPO, "sha256", BY)
    turns = itertools.cycle(both)
    data = DATA[:9000]
    for i in range(0, 9000, 1000):
        assert await send(next(turns), session, data[i : i + 1000]) == i + 1000
    await put(next(turns), session, data)
    assert world.whole(data)
    # from where its own hashes ended, in blocks of a piece
    assert world.objects.reads == 1


async def test_without_another_process_nothing_is_read_back(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    for i in range(0, 9000, 1000):
        await send(uploads, session, DATA[i : i + 1000])
    await put(uploads, session, DATA[:9000])
    assert world.objects.reads == 0


async def test_a_request_waits_a_short_while_for_another_and_is_then_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    one, two = world.process(Limits(wait=3.0)), world.process(Limits(wait=3.0))
    session = await one.open(REPO, "sha256", BY)
    async with one.hold(REPO, session.id):
        for uploads in (one, two):
            before = trio.current_time()
            with pytest.raises(RequestError) as caught:
                await send(uploads, session, b"x")
            assert (caught.value.status, caught.value.code) == (409, "BLOB_UPLOAD_INVALID")
            assert "Retry-After" in caught.value.headers
            assert 3.0 <= trio.current_time() - before < 4.0
    for uploads in (one, two):
        async with trio.open_nursery() as nursery, one.hold(REPO, session.id):
            nursery.start_soon(send, uploads, session, b"x")
            await trio.sleep(1)
    assert (await one.get(REPO, session.id)).size == 2


async def test_a_lease_is_renewed_while_a_request_is_at_work(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    one, two = world.process(), world.process(Limits(wait=0.0))
    session = await one.open(REPO, "sha256", BY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        async with one.hold(REPO, session.id) as upload:
            await trio.sleep(10 * LEASE)
            with pytest.raises(RequestError):
                await send(two, session, b"x")
            await one.append(upload, ScriptedBody([b"abc"]), keep=True)
        nursery.cancel_scope.cancel()
    assert await send(two, session, b"d") == 4


@pytest.mark.parametrize("refused", [False, True])
async def test_a_renewal_that_sees_the_end_of_a_session_first_changes_nothing(
    autojump_clock: trio.testing.MockClock, refused: bool
) -> None:
    """The transaction is committed, and its outcome on the way back from a thread, when leases are renewed."""
    world = World()

    class Slow:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            async def call(*args: Any, **options: Any) -> Any:
                target = world if name in ("add_blob", "holder") else world.sessions
                try:
                    return await getattr(target, name)(*args, **options)
                finally:
                    if name in ("add_blob", "drop"):
                        await trio.sleep(3 * RENEW)

            return call

    slow = Slow()
    uploads = Uploads(cast("Any", slow), cast("Sessions", slow), world.objects, LIMITS)
    session = await uploads.open(REPO, "sha256", BY)
    if refused:
        world.refuse = RequestError("DENIED", "no")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploads.run)
        await send(uploads, session, DATA[:100])
        if refused:
            with pytest.raises(RequestError) as caught:
                await put(uploads, session, DATA[:100])
            assert caught.value.code == "DENIED"
        else:
            await put(uploads, session, DATA[:100])
            assert world.whole(DATA[:100])
        nursery.cancel_scope.cancel()


async def test_who_was_stopped_for_long_finds_that_another_has_it(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    one, two = world.process(), world.process()
    session = await one.open(REPO, "sha256", BY)
    async with trio.open_nursery() as nursery:

        async def hangs() -> None:
            async with one.hold(REPO, session.id):
                await trio.sleep(2 * LEASE)  # nothing renews
                assert await send(two, session, b"x") == 1
                nursery.start_soon(one.run)
                await trio.sleep_forever()

        with pytest.raises(RequestError) as caught:
            await hangs()
        assert caught.value.status == 409
        nursery.cancel_scope.cancel()
    assert (await one.get(REPO, session.id)).size == 1


async def test_a_repeated_put_with_the_whole_body_completes_what_a_crash_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    data = DATA[:5000]
    for steps in range(25):
        world = World()
        uploads = world.process()
        session = await uploads.open(REPO, "sha256", BY)

        async def whole(uploads: Uploads, session: Session) -> bool:
            async with uploads.hold(REPO, session.id) as upload:
                if upload.session.verified is None:
                    await uploads.append(upload, ScriptedBody([data]), keep=False)
                await uploads.finish(upload, Digest.of(data), BY)
            return True

        world.crash_in = steps
        first, second = uploads, world
        if await survive(lambda: whole(first, session)) is None:  # noqa: B023 - called at once
            after = second.process()
            if await world.sessions.known([session.id]):
                assert await whole(after, session)
        assert world.whole(data)
        assert await world.sessions.count() == 0


async def test_a_client_that_stops_short_finds_what_arrived(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    for keep, size in ((True, 3), (False, 3), (True, 6)):
        with pytest.raises(RequestError):
            async with uploads.hold(REPO, session.id) as upload:
                await uploads.append(upload, ScriptedBody([b"abc"], cut=True), keep=keep)
        assert (await uploads.get(REPO, session.id)).size == size
    await put(uploads, session, b"abcabc")
    assert world.whole(b"abcabc")


@pytest.mark.parametrize(("expected", "used"), [("sha512", "sha512"), ("sha256", "sha512"), ("sha512", "sha256")])
async def test_digests_of_any_algorithm(expected: str, used: str, autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, expected, BY)
    await send(uploads, session, DATA[:5000])
    digest = Digest.of(DATA[:5000], used)
    async with world.process().hold(REPO, session.id) as upload:
        await uploads.finish(upload, digest, BY)
    assert world.blobs[digest][0].hashes == Metainfo.of_bytes(DATA[:5000]).hashes


async def test_other_bytes_than_the_digest_says_leave_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    await send(uploads, session, b"abc")
    with pytest.raises(RequestError) as caught:
        await put(uploads, session, b"other")
    assert caught.value.code == "DIGEST_INVALID"
    assert (await world.sessions.count(), world.objects.held.drafts, world.blobs) == (0, {}, {})


async def test_what_the_catalog_refuses_is_condemned(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.refuse = RequestError("DENIED", "over quota")
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    await send(uploads, session, b"abc")
    with pytest.raises(RequestError) as caught:
        await put(uploads, session, b"abc")
    assert caught.value.status == 403
    assert (await world.sessions.count(), world.condemned) == (0, [session.object])


async def test_the_same_blob_pushed_twice_at_once_is_kept_once(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()

    async def push() -> None:
        session = await uploads.open(REPO, "sha256", BY)
        await send(uploads, session, b"abc")
        await put(uploads, session, b"abc")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(push)
    assert world.whole(b"abc")
    assert len(world.objects.held.objects) == 1
    assert len(world.condemned) == 4


async def test_a_post_with_the_whole_blob_leaves_nothing_if_it_fails(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    with pytest.raises(RequestError):
        async with uploads.whole(REPO, "sha256", BY) as upload:
            await uploads.append(upload, ScriptedBody([b"abc"], cut=True), keep=False)
    assert (await world.sessions.count(), world.objects.held.drafts) == (0, {})
    async with uploads.whole(REPO, "sha256", BY) as upload:
        await uploads.append(upload, ScriptedBody([b"abc"]), keep=False)
        await uploads.finish(upload, Digest.of(b"abc"), BY, remember=False)
    assert world.whole(b"abc")
    assert uploads.busy == 0


async def test_a_post_whose_session_the_database_has_lost_is_not_the_clients_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    uploads = world.process()

    async def post() -> None:
        async with uploads.whole(REPO, "sha256", BY) as upload:
            assert await world.sessions.drop(upload.lease)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploads.run)
        with pytest.raises(LocalError, match="database"):
            await post()
        nursery.cancel_scope.cancel()
    assert uploads.busy == 0


async def test_idle_sessions_expire_and_drafts_without_session_go(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process(Limits(expiry=100.0))
    session = await uploads.open(REPO, "sha256", BY)
    await send(uploads, session, b"abc")
    world.objects.held.drafts["u/ab/abandoned"] = bytearray(b"left")
    world.objects.held.modified["u/ab/abandoned"] = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploads.run)
        await trio.sleep(50)
        assert await uploads.get(REPO, session.id)
        await trio.sleep(10_000)
        nursery.cancel_scope.cancel()
    assert await world.sessions.count() == 0
    assert world.objects.held.drafts == {}


async def test_no_room_is_said_before_the_bytes_come(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process(Limits(min_free=1000))
    session = await uploads.open(REPO, "sha256", BY)
    world.objects.free = 999
    await trio.sleep(2)
    for call in (lambda: uploads.open(REPO, "sha256", BY), lambda: send(uploads, session, b"abc")):
        with pytest.raises(StorageFull):
            await call()
    world.objects.free = 1000
    await trio.sleep(2)
    assert await send(uploads, session, b"abc") == 3


async def test_a_disk_that_fails_leaves_what_was_recorded(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process()
    session = await uploads.open(REPO, "sha256", BY)
    await send(uploads, session, b"abc")
    world.objects.fails = LocalError("broken")
    with pytest.raises(LocalError):
        await send(uploads, session, b"def")
    world.objects.fails = None
    assert (await uploads.get(REPO, session.id)).size == 3
    await send(uploads, session, b"def")
    await put(uploads, session, b"abcdef")
    assert world.whole(b"abcdef")


async def test_too_many_requests_with_bytes_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    uploads = world.process(Limits(active=1))
    sessions = [await uploads.open(REPO, "sha256", BY) for _ in range(2)]

    async def stalls() -> AsyncIterator[bytes]:
        yield b"a"
        await trio.sleep_forever()

    async def stall() -> None:
        async with uploads.hold(REPO, sessions[0].id) as upload:
            await uploads.append(upload, stalls(), keep=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stall)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RequestError) as caught:
            await send(uploads, sessions[1], b"b")
        assert (caught.value.status, "Retry-After" in caught.value.headers) == (429, True)
        nursery.cancel_scope.cancel()
    assert await send(uploads, sessions[1], b"b") == 1
