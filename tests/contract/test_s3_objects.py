"""Objects in S3 do what every object store must do, and what only S3 can get wrong; on a real server."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.errors import LocalError
from p2pregistry.messages import pack
from p2pregistry.objects import s3_client
from p2pregistry.objects.s3 import S3Objects, open_s3
from p2pregistry.objects.s3_client import S3Error
from p2pregistry.objects.s3_config import MIB, PART_LEAST, S3Config
from p2pregistry.serve.http import Stream
from p2pregistry.serve.peer_api import Slots
from p2pregistry.testing.handlers import call
from p2pregistry.testing.objects import check_object_store, pattern, read_object, sent
from p2pregistry.testing.seaweed import Seaweed, seaweed
from p2pregistry.testing.tracker_api import SIGNED
from tracker.blobs import Blobs
from tracker.catalog.check import BY, Signer, manifest
from tracker.catalog.memory import MemoryCatalog
from tracker.peer_endpoints import Swarm, TrackerPeerApi

NAME = "u/aa/one"
#: More than fits into one request with parts of PART_LEAST, and the last part small.
LARGE = pattern(11 * MIB + 7)

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("s3") / "home") as running:
        yield running


@pytest.fixture
def config(server: Seaweed) -> S3Config:
    """An empty place in the bucket."""
    return server.config(f"test-{next(_numbers)}/", part_size=PART_LEAST)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_PAUSE", 0.01)


class Crash(BaseException):
    """The process is gone."""


def watch(store: S3Objects, before: Callable[[str, dict[str, Any]], None], after: Callable[[], None] = int) -> None:
    """Call ``before`` with method and arguments of each request of the store, and ``after`` when it is answered."""
    call, stream = store.client.call, store.client.stream

    async def watched(method: str, key: str = "", **other: Any) -> object:
        before(method, other)
        answer = await call(method, key, **other)
        after()
        return answer

    async def watched_stream(key: str, offset: int, length: int) -> object:
        before("GET", {})
        return await stream(key, offset, length)

    store.client.call, store.client.stream = watched, watched_stream


async def leftovers(store: S3Objects) -> list[str]:
    """Names of drafts, and of keys of ours that are neither objects nor the probe."""
    prefix = store.client.config.prefix
    temporary = [entry.key async for entry in store.client.entries(f"{prefix}uploads/")]
    return [stored.name async for stored in store.drafts()] + temporary


async def upload(store: S3Objects, data: bytes, name: str = NAME) -> None:
    draft = await store.draft(name, 0)
    await draft.append(data)
    await draft.publish()


# ------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("other", [{"part_size": 8 * MIB}, {"equal_parts": True}, {"sign_payload": False}])
async def test_s3(server: Seaweed, other: dict[str, object]) -> None:
    config = server.config(f"test-{next(_numbers)}/", **other)
    await check_object_store(lambda: open_s3(config))


# ------------------------------------------------------------------------------------------------------------- crashes


async def _run(store: S3Objects, recorded: list[int]) -> None:
    """An upload as the tracker does it: ``recorded`` is what its database says of it."""
    draft = await store.draft(NAME, recorded[0])
    while draft.size < len(LARGE):
        await draft.append(LARGE[draft.size : draft.size + 6 * MIB])
        await draft.flush()
        recorded[0] = draft.size
    await draft.publish()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_crash_at_any_request_loses_nothing_that_was_flushed_and_leaves_nothing_behind(
    server: Seaweed, answered: bool
) -> None:
    for crash_at in count():
        config = server.config(f"test-{next(_numbers)}/", part_size=PART_LEAST)
        recorded, made = [0], [0]

        def step(*_: object, crash_at: int = crash_at, made: list[int] = made) -> None:
            made[0] += 1
            if made[0] > crash_at:
                raise Crash

        crashed = False
        async with open_s3(config) as store:
            if answered:
                watch(store, lambda *_: None, step)
            else:
                watch(store, step)
            try:
                await _run(store, recorded)
            except* Crash:
                crashed = True
        async with open_s3(config) as store:
            await _run(store, recorded)
            assert await read_object(store, NAME, len(LARGE)) == LARGE
            assert not await leftovers(store)
        if not crashed:
            assert crash_at >= 12
            return


async def test_a_published_draft_whose_parts_are_gone_can_be_read_and_published_again(config: S3Config) -> None:
    async with open_s3(config) as store:
        await upload(store, LARGE)
        draft = await store.draft(NAME, len(LARGE))
        assert await draft.read_at(PART_LEAST - 5, 10) == LARGE[PART_LEAST - 5 : PART_LEAST + 5]
        with pytest.raises(LocalError, match="object already"):
            await draft.append(b"more")
        await draft.publish()
        assert await read_object(store, NAME, len(LARGE)) == LARGE


@pytest.mark.usefixtures("no_pauses")
async def test_the_server_is_killed_in_the_middle_of_an_upload_and_it_goes_on_when_it_is_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with seaweed(tmp_path_factory.mktemp("s3") / "home") as server:
        async with open_s3(server.config(part_size=PART_LEAST)) as store:
            draft = await store.draft(NAME, 0)
            await draft.append(LARGE[: 6 * MIB])
            await draft.flush()
            await store.put("u/aa/other", b"bytes")
            server.kill()
            await draft.append(LARGE[6 * MIB : 7 * MIB])
            for call in (draft.flush, draft.publish, store.check, lambda: store.size("u/aa/other")):
                with pytest.raises(LocalError):
                    await call()
            await draft.aclose()
            await trio.to_thread.run_sync(server.start)
            await store.check()
            draft = await store.draft(NAME, 6 * MIB)
            await draft.append(LARGE[6 * MIB :])
            await draft.publish()
            assert await read_object(store, NAME, len(LARGE)) == LARGE
            assert await store.size("u/aa/other") == 5


async def test_a_cancelled_write_is_over_at_once_and_the_draft_must_be_opened_again(config: S3Config) -> None:
    async with open_s3(config) as store:
        draft = await store.draft(NAME, 0)
        await draft.append(LARGE[:5000])
        await draft.flush()
        await draft.append(LARGE[5000:9000])
        with trio.CancelScope() as scope:
            scope.cancel()
            await draft.flush()
        assert scope.cancelled_caught
        with pytest.raises(LocalError, match="open it again"):
            await draft.append(b"more")
        with pytest.raises(LocalError, match="open it again"):
            await draft.publish()
        draft = await store.draft(NAME, 5000)
        await draft.append(LARGE[5000:])
        with trio.CancelScope() as scope:

            def cancel(method: str, other: dict[str, Any]) -> None:
                if "uploadId" in (other.get("query") or {}):
                    scope.cancel()

            watch(store, cancel)
            await draft.publish()
        assert scope.cancelled_caught
    async with open_s3(config) as store:
        assert not [upload async for upload in store.client.unfinished(f"{config.prefix}objects/")]
        draft = await store.draft(NAME, 10 * MIB)
        await draft.append(LARGE[10 * MIB :])
        await draft.publish()
        assert await read_object(store, NAME, len(LARGE)) == LARGE
        assert not await leftovers(store)


# ---------------------------------------------------------------------------------------------------------- two holders


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("size", [1000, len(LARGE)])
async def test_an_object_is_never_replaced_by_who_was_thought_dead(
    config: S3Config, size: int, conditional: bool
) -> None:
    def forget(method: str, other: dict[str, Any]) -> None:
        if not conditional:  # a server that knows no conditions passes over them
            (other.get("headers") or {}).pop("If-None-Match", None)

    async with open_s3(config) as slow, open_s3(config) as quick:
        watch(slow, forget)
        stale = await slow.draft(NAME, 0)
        await stale.append(b"x" * size)
        await upload(quick, LARGE)
        with pytest.raises(LocalError):
            await stale.publish()
        assert await read_object(quick, NAME, len(LARGE)) == LARGE


async def test_what_the_earlier_holder_writes_late_is_no_part_of_the_upload(config: S3Config) -> None:
    async with open_s3(config) as slow, open_s3(config) as quick:
        stale = await slow.draft(NAME, 0)
        await stale.append(LARGE[:5000])
        await stale.flush()
        draft = await quick.draft(NAME, 5000)
        await draft.append(LARGE[5000:9000])
        await draft.flush()
        await stale.append(b"z" * 4000)
        await stale.flush()
        await draft.aclose()
        draft = await quick.draft(NAME, 9000)
        assert await draft.read_at(0, 9000) == LARGE[:9000]
        with pytest.raises(LocalError, match="taken the upload over"):
            await stale.publish()
        await draft.append(LARGE[9000:])
        await draft.publish()
        assert await read_object(quick, NAME, len(LARGE)) == LARGE


# ------------------------------------------------------------------------------------------- what servers cannot all do


async def test_parts_go_through_us_where_the_server_copies_none(config: S3Config) -> None:
    async with open_s3(config) as store:

        async def copy_part(*_: object) -> str:
            raise S3Error("no", answered=501, reason="NotImplemented")

        store.client.copy_part = copy_part
        await upload(store, LARGE)
        assert await read_object(store, NAME, len(LARGE)) == LARGE
        assert not await leftovers(store)


async def test_a_server_without_conditional_requests_is_found_out(config: S3Config) -> None:
    def refuse(method: str, other: dict[str, Any]) -> None:
        if "If-None-Match" in (other.get("headers") or {}):
            raise S3Error("no", answered=501, reason="NotImplemented")

    async with open_s3(config) as store:
        watch(store, refuse)
        await store.check()
        for size, name in ((1000, "u/aa/small"), (len(LARGE), "u/aa/large")):
            await upload(store, LARGE[:size], name)
            assert await read_object(store, name, size) == LARGE[:size]


async def test_drafts_are_listed_also_where_multipart_uploads_are_not(config: S3Config) -> None:
    def refuse(method: str, other: dict[str, Any]) -> None:
        if "uploads" in (other.get("query") or {}):
            raise S3Error("no", answered=501, reason="NotImplemented")

    async with open_s3(config) as store:
        draft = await store.draft(NAME, 0)
        await draft.append(b"bytes")
        await draft.flush()
        watch(store, refuse)
        assert [(stored.name, stored.size) async for stored in store.drafts()] == [(NAME, 5)]
        await draft.discard()
        assert not await leftovers(store)


async def test_unfinished_multipart_uploads_are_found_and_removed(config: S3Config) -> None:
    async with open_s3(config) as store:
        key = f"{config.prefix}objects/{NAME}"
        number = await store.client.create(key, {})
        await store.client.put_part(key, number, 1, b"lost")
        assert [stored.name async for stored in store.drafts()] == [NAME]
        draft = await store.draft(NAME, 0)
        await draft.discard()
        assert not await leftovers(store)


# ---------------------------------------------------------------------------------------------------------------- reads


async def test_a_link_can_be_fetched_by_anybody_until_it_is_changed(config: S3Config) -> None:
    async with open_s3(replace(config, presign=True)) as store, httpx.AsyncClient(trust_env=False) as anybody:
        await store.put(NAME, LARGE[:1000])
        link = store.link(NAME, 'a/b".tar', 60.0)
        assert link is not None
        answer = await anybody.get(link)
        assert answer.content == LARGE[:1000]
        assert answer.headers["content-disposition"] == 'attachment; filename="a_b_.tar"'
        part = await anybody.get(link, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, LARGE[10:20])
        assert (await anybody.get(link.replace(NAME, "u/aa/two"))).status_code == 403
        assert (await anybody.get(link.partition("?")[0])).status_code == 403
        assert "Tester" not in link


async def test_without_the_setting_there_are_no_links(config: S3Config) -> None:
    async with open_s3(config) as store:
        assert store.link(NAME, "layer", 60.0) is None


async def test_a_body_that_nobody_wants_any_more_lets_go_of_its_connection(config: S3Config) -> None:
    async with open_s3(replace(config, streams=1)) as store:
        await store.put(NAME, LARGE)
        for _ in range(3):
            body = await store.body(NAME, len(LARGE), 0, len(LARGE))
            assert isinstance(body, Stream)
            async for part in body.chunks:
                assert part
                break
            await body.chunks.aclose()
            body = await store.body(NAME, len(LARGE), 0, len(LARGE))
            await body.chunks.aclose()
        assert await sent(await store.body(NAME, len(LARGE), 5, 5000)) == LARGE[5:5005]
        gc.collect()


async def test_slow_clients_hold_up_nothing_but_one_another(config: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_POOL", 0.05)
    async with open_s3(replace(config, streams=1)) as store:
        await store.put(NAME, LARGE)
        body = await store.body(NAME, len(LARGE), 0, len(LARGE))
        with pytest.raises(LocalError, match="in use"):
            await store.body(NAME, len(LARGE), 0, len(LARGE))
        opened = await store.open(NAME, len(LARGE))
        assert await opened.read_at(0, 10) == LARGE[:10]
        await body.chunks.aclose()


async def test_reading_and_writing_lists_nothing(config: S3Config) -> None:
    queries: list[dict[str, str]] = []
    async with open_s3(replace(config, presign=True)) as store:
        await upload(store, b"bytes")
        watch(store, lambda method, other: queries.append(dict(other.get("query") or {})))
        await store.put("u/aa/two", b"bytes")
        assert await store.size(NAME) == 5
        opened = await store.open(NAME, 5)
        assert await opened.read_at(0, 5) == b"bytes"
        assert await sent(await store.body(NAME, 5, 1, 3)) == b"yte"
        store.link(NAME, "layer", 60.0)
        await store.check()
        await store.delete("u/aa/two")
    assert queries
    assert not any(queries)


async def test_a_node_gets_its_pieces_by_one_request_for_just_these_bytes(config: S3Config) -> None:
    """Through the tracker's peer API, as a node asks: by a range, and by naming what it wants."""
    data, asked = pattern(3 * MIB + 5), list[tuple[str, str]]()
    catalog, info = MemoryCatalog(private=False), Metainfo.of_bytes(data)
    async with open_s3(config) as store:
        await store.put(NAME, data)
        await catalog.add_blob("acme/api", info, NAME, BY)
        await catalog.put_manifest("acme/api", manifest(b"image", [info]), ["1"], Signer(), BY)
        swarm = Swarm("default", (), (), "k4.public.x", "v4.public.y")
        peer = TrackerPeerApi(catalog, Blobs(catalog, store), Slots(4, 4), lambda: swarm, SIGNED)
        target = f"/p2p/v1/blobs/{info.digest}"
        watch(store, lambda method, other: asked.append((method, dict(other.get("headers") or {}).get("Range", ""))))
        answer = await call(peer, "GET", target, headers=[("Range", f"bytes={MIB}-{2 * MIB - 1}")])
        assert (answer.status, answer.body) == (206, data[MIB : 2 * MIB])
        assert asked == [("GET", f"bytes={MIB}-{2 * MIB - 1}")]
        answer = await call(peer, "POST", f"{target}/next", pack(b"\0\0\0\1"))
        assert (answer.status, answer.body) == (206, data[3 * MIB :])
        assert asked[1:] == [("GET", f"bytes={3 * MIB}-{3 * MIB + 4}")]


async def test_lists_of_several_pages_are_whole(config: S3Config) -> None:
    async with open_s3(config) as store:
        names = [f"u/{i:02x}/{i}" for i in range(7)]
        for name in names:
            await store.put(name, b"x")
            draft = await store.draft(name, 0)
            for _ in range(3):
                await draft.append(b"12")
                await draft.flush()
            await draft.aclose()

        def small_pages(method: str, other: dict[str, Any]) -> None:
            if "list-type" in (other.get("query") or {}):
                other["query"]["max-keys"] = "2"

        watch(store, small_pages)
        assert [stored.name async for stored in store.objects()] == names
        assert [(stored.name, stored.size) async for stored in store.drafts()] == [(name, 6) for name in names]


# --------------------------------------------------------------------------------------------------------------- faults


@asynccontextmanager
async def between(server: Seaweed, edit: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """An endpoint from which bytes go to the server, and those that come back go through ``edit``; None hangs up."""
    port = int(server.endpoint.rpartition(":")[2])

    async def forward(client: trio.SocketStream) -> None:
        upstream = await trio.open_tcp_stream("127.0.0.1", port)

        async def pump(
            source: trio.SocketStream, target: trio.SocketStream, change: Callable[[bytes], bytes | None]
        ) -> None:
            try:
                while data := await source.receive_some(65536):
                    changed = change(data)
                    if changed is None:
                        break
                    await target.send_all(changed)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        async with client, upstream, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, upstream, lambda data: data)
            nursery.start_soon(pump, upstream, client, edit)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            trio.serve_tcp,
            forward,
            0,
        )
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("no_pauses")
async def test_a_body_that_breaks_off_is_taken_up_where_it_stopped(server: Seaweed, config: S3Config) -> None:
    seen, hung_up = [0], [0]

    def edit(data: bytes) -> bytes | None:
        seen[0] += len(data)
        if seen[0] > 3 * MIB:
            seen[0] = 0
            hung_up[0] += 1
            return None
        return data

    async with open_s3(config) as direct, between(server, edit) as endpoint:
        await direct.put(NAME, LARGE)
        async with open_s3(replace(config, endpoint=endpoint)) as store:
            assert await sent(await store.body(NAME, len(LARGE), 3, len(LARGE) - 3)) == LARGE[3:]
    assert hung_up[0] >= 3


@pytest.mark.usefixtures("no_pauses")
async def test_an_object_cut_short_for_good_fails_and_is_never_taken_for_whole(
    server: Seaweed, config: S3Config
) -> None:
    async with open_s3(config) as direct, between(server, lambda data: None) as endpoint:
        await direct.put(NAME, LARGE)
        async with open_s3(replace(config, endpoint=endpoint)) as store:
            with pytest.raises(LocalError):
                await store.body(NAME, len(LARGE), 0, len(LARGE))
            opened = await store.open(NAME, len(LARGE))
            with pytest.raises(LocalError):
                await opened.read_at(0, 100)


@pytest.mark.usefixtures("no_pauses")
async def test_bytes_that_change_on_the_way_up_are_refused(config: S3Config) -> None:
    async with open_s3(config) as store:
        seal = store.client.signer.seal
        store.client.signer.seal = lambda data: seal(bytes(data).replace(b"good", b"evil"))
        with pytest.raises(LocalError, match="BadDigest"):
            await store.put(NAME, b"good bytes")
        key = f"{config.prefix}objects/{NAME}"
        number = await store.client.create(key, {})
        with pytest.raises(LocalError, match="BadDigest"):
            await store.client.put_part(key, number, 1, b"good bytes")


@pytest.mark.usefixtures("no_pauses")
async def test_tls_is_verified_and_a_certificate_of_ones_own_can_be_trusted(server: Seaweed) -> None:
    config = server.config(f"test-{next(_numbers)}/", endpoint=server.tls_endpoint, ca_file=server.certificate)
    assert not config.sign_payload
    async with open_s3(config) as store:
        await upload(store, LARGE[:1000])
        assert await sent(await store.body(NAME, 1000, 0, 1000)) == LARGE[:1000]
    async with open_s3(replace(config, ca_file=None)) as store:
        with pytest.raises(LocalError, match="cannot be reached"):
            await store.check()
    with pytest.raises(LocalError, match="ca_file"):
        async with open_s3(replace(config, ca_file=server.certificate.with_name("keys.json"))):
            pass


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"secret_key": "Wrong/Secret+Key"}, "secret key is wrong"),
        ({"access_key": "nobody"}, "does not know the access key"),
        ({"endpoint": "http://127.0.0.1:1"}, "cannot be reached"),
    ],
)
@pytest.mark.usefixtures("no_pauses")
async def test_a_wrong_setting_is_said_clearly_and_no_key_is_shown(
    config: S3Config, caplog: pytest.LogCaptureFixture, wrong: dict[str, str], said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_s3(replace(config, **wrong)) as store:
        opened = await store.open(NAME, 5)
        for call in (
            store.check,
            lambda: store.put(NAME, b"bytes"),
            lambda: opened.read_at(0, 5),
            lambda: store.body(NAME, 5, 0, 5),
            lambda: store.draft(NAME, 0),
        ):
            with pytest.raises(LocalError, match=said) as caught:
                await call()
            assert "Secret" not in str(caught.value)
    assert "Secret" not in caplog.text
    assert "Signature=" not in caplog.text


# --------------------------------------------------------------------------------------------------------------- memory


async def test_memory_does_not_grow_with_the_size_of_an_upload_or_a_body(config: S3Config) -> None:
    size = 96 * MIB
    block = pattern(MIB)
    async with open_s3(config) as store:
        await store.check()
        tracemalloc.start()
        try:
            draft = await store.draft(NAME, 0)
            for at in range(0, size, MIB):
                await draft.append(block)
                if at == 33 * MIB:  # a small part, so that some must go through us when they are joined
                    await draft.flush()
            await draft.publish()
            written = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            body = await store.body(NAME, size, 0, size)
            assert isinstance(body, Stream)
            read = 0
            async for part in body.chunks:
                read += len(part)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert read == size
    assert written < 2 * PART_LEAST * 2 + 8 * MIB
    assert peak < 4 * MIB
