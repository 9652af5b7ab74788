"""Publishing to IPFS, with stand-ins for the services over real sockets, and what they can do wrong."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import CID_RAW_PREFIX, cid_text
from p2pregistry.ipfs.kubo import kubo_config, open_kubo
from p2pregistry.ipfs.services import Endpoint, open_pinning, open_upload
from p2pregistry.observe import ipfs_figures
from p2pregistry.serve.http import Response, Stream
from p2pregistry.testing.kubo import MIB, StubKubo, refused, stub_kubo
from p2pregistry.testing.objects import pattern
from p2pregistry.testing.pinning import TOKEN, StubPinning, stub_pinning
from p2pregistry.testing.publishing import Here, one_image
from tracker.catalog.check import BY
from tracker.catalog.publishing import Progress
from tracker.ipfs_services import KuboService, PinService, UploadService

LAYER = pattern(2 * MIB + 77)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.publisher.POLL", 0.02)


@asynccontextmanager
async def with_kubo(stub: StubKubo | None = None, *, stored: bool = False) -> AsyncIterator[tuple[Here, StubKubo]]:
    async with stub_kubo(stub) as (url, state), open_kubo(kubo_config(url)) as kubo:
        yield await one_image(KuboService(kubo, stored=stored), "kubo", LAYER), state


@asynccontextmanager
async def with_pinning(stub: StubPinning | None = None) -> AsyncIterator[tuple[Here, StubPinning]]:
    async with stub_pinning(stub) as (url, state), open_pinning(Endpoint(url, TOKEN)) as pinning:
        service = PinService(pinning, origins=["/ip4/192.0.2.1/tcp/4001"], poll=0.0)
        yield await one_image(service, "pinning", LAYER), state


@asynccontextmanager
async def with_upload(field: str | None = None) -> AsyncIterator[tuple[Here, StubPinning]]:
    async with stub_pinning() as (url, state):
        to = f"{url}/upload/{{cid}}"
        async with open_upload(Endpoint(to, TOKEN), method="PUT", remove_url=to, field=field) as upload:
            yield await one_image(UploadService(upload), "car-upload", LAYER), state


async def test_an_image_in_a_daemon() -> None:
    async with with_kubo() as (acme, stub):
        publisher = acme.publisher()
        await acme.settle(publisher)
        assert await acme.said() == dict.fromkeys(("blob", "manifest", "claim"), ("published", None))
        assert stub.content(Metainfo.of_bytes(LAYER).root) == LAYER
        record = await acme.catalog.manifest("acme/api", acme.digest)
        assert record is not None
        assert stub.blocks[acme.digest.cid()] == record.body
        assert stub.blocks[CID_RAW_PREFIX + hashlib.sha256(record.claim.encode()).digest()] == record.claim.encode()
        assert (await acme.states())["blob"].sent > len(LAYER)
        assert stub.gc() == 0
        await acme.publishing.unpublish("acme/*", BY)
        await acme.settle(publisher)
        assert not stub.pins
        stub.gc()
        assert not stub.blocks


async def test_a_daemon_that_has_the_blobs_already_only_pins() -> None:
    async with with_kubo(stored=True) as (acme, stub):
        root = stub.add(LAYER)
        await acme.settle(acme.publisher())
        assert stub.pins[root] == "recursive"
        assert stub.calls["dag/import"] == 2  # the manifest and the claim
        assert (await acme.states())["blob"].sent == 0


async def cut_off() -> AsyncIterator[bytes]:
    yield b'{"Root":'
    raise trio.BrokenResourceError


KUBO_FAILURES = {
    "dies": (Response(200, body=Stream(cut_off(), None)), "queued", "cannot be reached"),
    "500": (refused("something broke"), "queued", "something broke"),
    "429": (Response(429), "queued", "too much to do"),
    "no answer": (Response(200), "queued", "did not say"),
    "not pinned": (
        Response(200, body=b'{"Root":{"Cid":{"/":"%s"},"PinErrorMsg":"block missing"}}'),
        "queued",
        "block missing",
    ),
    "another root": (
        Response(200, body=b'{"Root":{"Cid":{"/":"bafkqaaa"},"PinErrorMsg":""}}'),
        "failed",
        "in place of",
    ),
    "full": (refused("no space left on device"), "queued", "no room"),
    "garbage": (Response(200, body=b"<html>"), "queued", "not understood"),
}


@pytest.mark.parametrize("failure", KUBO_FAILURES)
async def test_what_a_daemon_does_wrong(failure: str) -> None:
    answer, state, text = KUBO_FAILURES[failure]
    async with with_kubo() as (acme, stub):
        image = await acme.publishing.image("acme/api", acme.digest)
        assert image is not None
        if isinstance(answer.body, bytes) and b"%s" in answer.body:
            answer = Response(200, body=answer.body % cid_text(image.blobs[0].cid).encode())
        stub.scripted["dag/import"] = [answer]
        publisher = acme.publisher(concurrency=1)
        await acme.settle(publisher)
        said = await acme.said()
        assert said["blob"][0] == state
        assert text in (said["blob"][1] or "")
        assert said["manifest"] == said["claim"] == ("published", None), "one failure keeps nothing else"
        await acme.again(publisher)
        assert (await acme.said())["blob"] == ("published", None)


async def test_it_is_given_up_after_so_many_tries() -> None:
    async with with_kubo() as (acme, stub):
        stub.scripted["dag/import"] = [refused("no")] * 3
        publisher = acme.publisher(attempts=1)
        await acme.settle(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"failed"}
        await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}


async def test_bytes_that_are_damaged_or_gone_are_not_published() -> None:
    async with with_kubo() as (acme, stub):
        name = next(iter(acme.catalog.blobs.values())).object
        await acme.objects.delete(name)
        await acme.objects.put(name, LAYER[:-1] + b"x")
        publisher = acme.publisher()
        await acme.settle(publisher)
        assert "damaged" in ((await acme.said())["blob"][1] or "")
        await acme.objects.delete(name)
        await acme.again(publisher)
        assert (await acme.said())["blob"][0] == "queued"
        assert Metainfo.of_bytes(LAYER).root not in stub.pins
        await acme.objects.put(name, LAYER)
        await acme.again(publisher)
        assert (await acme.said())["blob"] == ("published", None)


async def test_one_that_is_stopped_lets_go_of_its_work_and_another_does_it() -> None:
    async with with_kubo() as (acme, stub):
        reached, free = trio.Event(), trio.Event()

        async def wait(command: str) -> None:
            reached.set()
            await free.wait()

        stub.before = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acme.publisher().run)
            await reached.wait()
            assert "publishing" in {state for state, _ in (await acme.said()).values()}
            nursery.cancel_scope.cancel()
        assert {state for state, _ in (await acme.said()).values()} == {"queued"}
        stub.before = None
        free.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acme.publisher().run)
            while {state for state, _ in (await acme.said()).values()} != {"published"}:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_slow_import_that_is_not_wanted_any_more_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.publisher._RENEW", 0.02)
    async with with_kubo() as (acme, stub):
        reached = trio.Event()

        async def hang(command: str) -> None:
            if command == "dag/import":
                reached.set()
                await trio.sleep_forever()

        stub.before = hang
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acme.publisher().run)
            await reached.wait()
            await acme.publishing.unpublish("acme/*", BY)
            stub.before = None
            while {one.state for one in await acme.publishing.figures()} != {"removed"}:
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert stub.calls["pin/rm"] == 3


async def test_a_rate_that_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    acme = await one_image(_Swallow(), "kubo", LAYER)
    began = trio.current_time()
    await acme.settle(acme.publisher(rate=MIB))
    assert trio.current_time() - began > 1.0
    assert {state for state, _ in (await acme.said()).values()} == {"published"}


class _Swallow:
    async def publish(self, job: object, car: Callable[[], object]) -> None:
        async for _ in await car():  # type: ignore[misc]
            pass

    async def unpin(self, job: object) -> None:
        pass

    async def has(self, job: object) -> bool:
        return True


async def test_a_pinning_service() -> None:
    async with with_pinning() as (acme, stub):
        publisher = acme.publisher()
        assert await publisher.once() == 3
        assert {state for state, _ in (await acme.said()).values()} == {"publishing"}
        assert len(stub.pins) == 3
        for pin in stub.pins.values():
            assert pin["pin"]["origins"] == ["/ip4/192.0.2.1/tcp/4001"]
            assert "acme" not in str(pin)
            pin["status"] = "pinning"
        await acme.publishing.retry(BY)
        assert await publisher.once() == 3
        for pin in stub.pins.values():
            pin["status"] = "pinned"
        await acme.publishing.retry(BY)
        await acme.settle(publisher)
        assert await acme.said() == dict.fromkeys(("blob", "manifest", "claim"), ("published", None))
        assert stub.calls["POST pins"] == 3
        await acme.publishing.unpublish("acme/*", BY)
        await acme.settle(publisher)
        assert stub.pins == {}


async def test_the_daemon_meets_the_peers_of_a_pinning_service() -> None:
    peer = f"/dns4/pins.example.com/tcp/4001/p2p/12D3KooW{'a' * 44}"
    service = StubPinning()
    service.delegates = [peer, "no address", f"/ip4/192.0.2.1/tcp/4001/p2p/{'b' * 300}"]
    async with (
        stub_kubo() as (rpc, stub),
        open_kubo(kubo_config(rpc)) as kubo,
        stub_pinning(service) as (url, _),
        open_pinning(Endpoint(url, TOKEN)) as pinning,
    ):
        acme = await one_image(PinService(pinning, poll=0.0, kubo=kubo), "pinning", LAYER)
        publisher = acme.publisher()
        stub.scripted["swarm/connect"] = [refused("dial backoff")]
        await publisher.once()
        await acme.publishing.retry(BY)
        await publisher.once()
        assert stub.calls["swarm/connect"] == 3
        assert stub.connected == [peer, peer]
        assert {error for _, error in (await acme.said()).values()} == {None}


async def test_a_pin_whose_maker_died_before_it_was_written_down_is_found() -> None:
    async with with_pinning(StubPinning(status="pinned")) as (acme, stub):
        publisher = acme.publisher(concurrency=1)
        stub.scripted["POST pins"] = []
        await publisher.once()
        made = stub.calls["POST pins"]
        for row in acme.publishing._rows.values():
            row.remote = None
            row.state = "queued"
        await acme.again(publisher)
        await acme.again(publisher)
        assert stub.calls["POST pins"] == 3 >= made
        assert len(stub.pins) == 3
        assert {state for state, _ in (await acme.said()).values()} == {"published"}


PIN_FAILURES = {
    "500": (Response(500), "answers 500"),
    "429": (Response(429, [("Retry-After", "0")]), "too much to do"),
    "401": (Response(401, body=b'{"error":{"reason":"NO","details":"who are you"}}'), "token is wrong"),
    "redirect": (Response(307, [("Location", "http://127.0.0.1:1/")]), "leads elsewhere"),
    "garbage": (Response(200, body=b"[]"), "not understood"),
    "long": (Response(200, body=b"x" * (2 * MIB)), "more than"),
}


@pytest.mark.parametrize("failure", PIN_FAILURES)
async def test_what_a_pinning_service_does_wrong(failure: str) -> None:
    answer, text = PIN_FAILURES[failure]
    async with with_pinning(StubPinning(status="pinned")) as (acme, stub):
        stub.scripted["*"] = [answer]
        publisher = acme.publisher(concurrency=1)
        await publisher.once()
        errors = [error for _, error in (await acme.said()).values() if error]
        assert len(errors) == 1
        assert text in errors[0]
        assert TOKEN not in errors[0]
        for _ in range(3):
            await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}


async def test_pins_that_fail_or_are_forgotten_or_are_of_something_else() -> None:
    async with with_pinning() as (acme, stub):
        publisher = acme.publisher()
        await publisher.once()
        first, second, third = stub.pins
        stub.pins[first] |= {"status": "failed", "info": {"status_details": "nobody has it"}}
        del stub.pins[second]
        stub.pins[third] = {**stub.pins[third], "pin": {"cid": "bafkqaaa", "name": ""}}
        await acme.publishing.retry(BY)
        await publisher.once()
        said = {error for _, error in (await acme.said()).values()}
        assert any("nobody has it" in (error or "") for error in said)
        assert any("forgotten" in (error or "") for error in said)
        assert any("in place of" in (error or "") for error in said)
        assert first not in stub.pins
        for pin in stub.pins.values():
            pin["status"] = "pinned"
        stub.status = "pinned"
        for _ in range(3):
            await acme.again(publisher)
        assert sorted(state for state, _ in (await acme.said()).values()) == ["failed", "published", "published"]


async def test_a_pin_that_was_taken_off_and_is_wanted_again_is_asked_for_anew() -> None:
    async with with_pinning(StubPinning(status="pinned")) as (acme, stub):
        publisher = acme.publisher()
        for _ in range(2):
            await acme.again(publisher)
        await acme.publishing.unpublish("acme/*", BY)
        await publisher._look()
        await acme.publishing.claim(["pinning"], 10, -1.0)  # by one that takes it off and dies before it says so
        stub.pins.clear()
        await acme.publishing.publish("acme/*", BY)
        for _ in range(3):
            await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}
        assert len(stub.pins) == 3


async def test_a_pin_that_failed_before_it_was_written_down_is_not_left_behind() -> None:
    async with with_pinning(StubPinning(status="failed")) as (acme, stub):
        publisher = acme.publisher()
        await publisher.once()
        for row in acme.publishing._rows.values():
            row.remote, row.state = None, "queued"
        stub.status = "pinned"
        for _ in range(3):
            await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}
        assert len(stub.pins) == 3


async def test_a_pin_of_somebody_else_at_a_service_that_does_not_look_at_names_stays() -> None:
    async with with_pinning(StubPinning(status="pinned")) as (acme, stub):
        stub.names = False
        root = cid_text(Metainfo.of_bytes(LAYER).root)
        other = {"cid": root, "name": "of somebody else"}
        stub.pins["other"] = {"requestid": "other", "status": "pinned", "pin": other, "delegates": []}
        publisher = acme.publisher()
        for _ in range(2):
            await acme.again(publisher)
        assert len(stub.pins) == 4
        await acme.publishing.unpublish("acme/*", BY)
        await acme.settle(publisher)
        assert list(stub.pins) == ["other"]


async def test_unpinning_is_never_given_up() -> None:
    async with with_kubo() as (acme, stub):
        publisher = acme.publisher(attempts=1)
        await acme.settle(publisher)
        await acme.publishing.unpublish("acme/*", BY)
        stub.scripted["pin/rm"] = [refused("no")] * 3
        await acme.settle(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"unpinning"}
        assert {one.next_at is None for one in (await acme.states()).values()} == {False}
        await acme.again(publisher)
        assert stub.pins == {}


@pytest.mark.parametrize("field", [None, "file"], ids=["as the body", "in a form"])
async def test_uploads_of_cars(field: str | None) -> None:
    async with with_upload(field) as (acme, stub):
        publisher = acme.publisher()
        await acme.settle(publisher)
        assert await acme.said() == dict.fromkeys(("blob", "manifest", "claim"), ("published", None))
        blocks = stub.uploads[cid_text(Metainfo.of_bytes(LAYER).root)]
        assert len(blocks) == 4
        await acme.publishing.unpublish("acme/*", BY)
        await acme.settle(publisher)
        assert stub.uploads == {}


async def test_an_upload_that_becomes_something_else() -> None:
    async with with_upload() as (acme, stub):
        stub.named = cid_text(CID_RAW_PREFIX + bytes(32))
        await acme.settle(acme.publisher())
        assert all(
            "in place of" in (error or "") and state == "failed" for state, error in (await acme.said()).values()
        )
        stub.named = None
        stub.scripted["PUT upload"] = [Response(413)]
        publisher = acme.publisher(concurrency=1)
        await acme.publishing.retry(BY)
        await publisher.once()
        assert any("413" in (error or "") for _, error in (await acme.said()).values())
        await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}


async def test_a_service_that_is_away_costs_no_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.publisher._REST", 0.02)
    async with stub_kubo() as (url, _):
        pass
    async with open_kubo(kubo_config(url)) as kubo:
        acme = await one_image(KuboService(kubo), "kubo", LAYER)
        publisher = acme.publisher(attempts=1)
        for _ in range(4):
            await publisher.once()
            while publisher.resting():
                await trio.sleep(0.01)
        states = (await acme.states()).values()
        assert {(one.state, one.attempts) for one in states} == {("queued", 0)}
        assert all("cannot be reached" in (one.error or "") for one in states)


async def test_a_pin_that_somebody_took_away_is_made_again() -> None:
    async with with_kubo() as (acme, stub):
        publisher = acme.publisher(verify=3600.0)
        await acme.settle(publisher)
        root = Metainfo.of_bytes(LAYER).root
        del stub.pins[root]
        stub.gc()
        for row in acme.publishing._rows.values():
            row.next_at = row.updated_at
        stub.scripted["pin/ls"] = [refused("not now"), refused("not now")]
        await acme.settle(publisher)
        for row in acme.publishing._rows.values():
            row.next_at = row.updated_at
        await acme.settle(publisher)
        assert len(stub.pins) == 3
        assert stub.content(root) == LAYER
        assert stub.calls["dag/import"] == 4
    async with with_pinning(StubPinning(status="pinned")) as (acme, service):
        publisher = acme.publisher(verify=3600.0)
        for _ in range(2):
            await acme.again(publisher)
        first = next(iter(service.pins))
        service.pins[first]["status"] = "failed"
        for row in acme.publishing._rows.values():
            row.next_at = row.updated_at
        for _ in range(3):
            await acme.again(publisher)
        assert {state for state, _ in (await acme.said()).values()} == {"published"}
        assert service.calls["POST pins"] == 4


async def test_figures_for_who_watches() -> None:
    async with with_kubo() as (acme, stub):
        stub.scripted["dag/import"] = [Response(200, body=b'{"Root":{"Cid":{"/":"bafkqaaa"},"PinErrorMsg":""}}')]
        figures = ipfs_figures()
        given_up = figures.failures.labels("kubo")._value.get()
        sent = figures.sent.labels("kubo")._value.get()
        publisher = acme.publisher(concurrency=1)
        await acme.settle(publisher)
        await publisher._count()
        assert figures.failures.labels("kubo")._value.get() == given_up + 1
        assert figures.jobs.labels("kubo", "failed")._value.get() == 1
        assert figures.jobs.labels("kubo", "published")._value.get() == 2
        assert figures.size.labels("kubo", "failed")._value.get() == len(LAYER)
        assert figures.sent.labels("kubo")._value.get() > sent


async def test_progress_is_written_down_while_a_car_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.publisher._RENEW", 0.01)
    acme = await one_image(_Swallow(), "kubo", LAYER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acme.publisher(rate=MIB, concurrency=1).run)
        with trio.fail_after(20):
            while not 0 < (await acme.states()).get("blob", _NOTHING).sent < len(LAYER):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


_NOTHING = Progress(b"", "kubo", "queued", 0, 0, None, None, datetime.now(UTC))
