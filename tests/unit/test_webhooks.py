"""What a webhook is sent and when; and the runner over hooks in memory."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import Unreachable
from tracker.catalog.hooks_check import BY, PUSH, URL
from tracker.catalog.hooks_memory import MemoryHooks
from tracker.hook_runner import HookRunner
from tracker.webhooks import SIGNATURE, TOLERANCE, Event, cloud_event, outcome, pause, sign, verify

AT = datetime(2026, 1, 31, 12, 30, 0, 250_000, tzinfo=UTC)
DATA = {"action": "manifest.push", "reference": "1", "digest": "sha256:x"}


def test_an_event_is_a_cloud_event() -> None:
    document = json.loads(cloud_event(Event(7, AT, PUSH, "acme/api", DATA), "https://registry.example.com"))
    assert document == {
        "specversion": "1.0",
        "id": "7-1769862600250",
        "source": "https://registry.example.com",
        "type": PUSH,
        "subject": "acme/api:1",
        "time": "2026-01-31T12:30:00.250000Z",
        "datacontenttype": "application/json",
        "data": {"repository": "acme/api", **DATA},
    }
    by_digest = json.loads(cloud_event(Event(7, AT, PUSH, "acme/api", {"digest": "sha256:x"}), "x"))
    assert by_digest["subject"] == "acme/api@sha256:x"


def test_a_signature_is_the_hmac_of_time_and_body() -> None:
    mac = hmac.new(b"key", b"1700000000.body", hashlib.sha256).hexdigest()
    assert sign(b"key", 1700000000, b"body") == f"t=1700000000,v1={mac}"


@given(secret=st.binary(min_size=1), body=st.binary(), at=st.integers(0, 10**11), other=st.binary())
def test_a_signature_is_good_for_its_body_its_secret_and_its_time(
    secret: bytes, body: bytes, at: int, other: bytes
) -> None:
    header = sign(secret, at, body)
    assert verify(secret, header, body, at + TOLERANCE)
    assert not verify(secret, header, body, at + TOLERANCE + 1)
    assert verify(secret, header, other, at) == (other == body)
    assert not verify(secret + b"x", header, body, at)


@given(st.text())
def test_any_header_is_judged(header: str) -> None:
    assert not verify(b"key", header, b"body", 0.0)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (200, "delivered"),
        (204, "delivered"),
        (301, "again"),
        (307, "again"),
        (404, "again"),
        (410, "never"),
        (500, "again"),
    ],
)
def test_what_an_answer_means(status: int, result: str) -> None:
    assert outcome(status) == result


def test_pauses_grow_to_an_hour_and_end() -> None:
    waits = [pause(attempts, 0.5, 10) for attempts in range(1, 12)]
    assert waits == [5, 15, 45, 135, 405, 1215, 3600, 3600, 3600, None, None]
    assert pause(1, 0.0, 10) == 3.75
    assert pause(1, 1.0, 10) == 6.25


def test_the_example_in_the_guide_accepts_what_we_sign() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
    found = re.search(r"^```python\n(# a receiver.*?)^```", guide, re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(found[1], names)
    genuine = names["genuine"]
    assert callable(genuine)
    header = sign(b"the secret", 1700000000, b"{}")
    assert genuine(b"the secret", header, b"{}", 1700000100)
    assert not genuine(b"the secret", header, b"{ }", 1700000100)
    assert not genuine(b"another", header, b"{}", 1700000100)
    assert not genuine(b"the secret", header, b"{}", 1700001000)


class Receiver:
    """Answers with ``answers`` in turn, and remembers what came."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        await trio.lowlevel.checkpoint()
        self.got.append((url, dict(headers), body))
        answer = self.answers.pop(0) if self.answers else 204
        if answer is None:
            raise Unreachable("no answer")
        return answer


def clocked() -> MemoryHooks:
    return MemoryHooks(lambda: datetime.fromtimestamp(trio.current_time(), UTC))


async def test_a_failed_delivery_is_tried_until_it_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    hooks, receiver = clocked(), Receiver(500, None, 302, 200)
    made = await hooks.add(URL, [], [], b"s", BY)
    hooks.tell(PUSH, "acme/api", {"reference": "1"})
    runner = HookRunner(hooks, receiver.post, source="here", now=trio.current_time, draw=lambda: 0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert len(receiver.got) == 4
    assert len({body for _, _, body in receiver.got}) == 1, "the same event with the same id each time"
    for _, headers, body in receiver.got:
        at = int(headers[SIGNATURE].partition(",")[0].removeprefix("t="))
        assert verify(b"s", headers[SIGNATURE], body, at)
    (seen,) = await hooks.deliveries(made.id)
    assert (seen.state, seen.attempts, seen.last_status) == ("delivered", 4, 200)


async def test_it_ends_when_nobody_wants_it_or_after_so_many_tries(autojump_clock: trio.testing.MockClock) -> None:
    hooks = clocked()
    gone, silent = Receiver(410), Receiver(*[None] * 50)
    for receiver in (gone, silent):
        made = await hooks.add(URL, [], [], b"s", BY)
        hooks.tell(PUSH, "acme/api", {})
        runner = HookRunner(hooks, receiver.post, source="here", attempts=5, now=trio.current_time, draw=lambda: 0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            await trio.sleep(5000)
            nursery.cancel_scope.cancel()
        assert (await hooks.deliveries(made.id))[0].state == "failed"
        await hooks.remove(made.id, BY)
    assert (len(gone.got), len(silent.got)) == (1, 5)


async def test_who_dies_before_recording_leaves_it_to_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    hooks = clocked()
    await hooks.add(URL, [], [], b"s", BY)
    hooks.tell(PUSH, "acme/api", {})
    sent = trio.Event()

    async def dies(_url: str, _headers: Sequence[tuple[str, str]], _body: bytes) -> int:
        sent.set()
        await trio.sleep_forever()
        return 200

    async with trio.open_nursery() as nursery:
        nursery.start_soon(HookRunner(hooks, dies, source="here").run)
        await sent.wait()
        nursery.cancel_scope.cancel()
    receiver = Receiver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HookRunner(hooks, receiver.post, source="here").run)
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert len(receiver.got) == 1


async def test_one_that_hangs_keeps_nobody_from_being_told(autojump_clock: trio.testing.MockClock) -> None:
    hooks = clocked()
    slow = await hooks.add(URL + "slow", [], [], b"s", BY)
    quick = await hooks.add(URL + "quick", [], [], b"s", BY)
    for number in range(100):
        hooks.tell(PUSH, f"acme/r{number}", {})
    under_way = most = 0
    told: list[float] = []

    async def post(url: str, _headers: Sequence[tuple[str, str]], _body: bytes) -> int:
        nonlocal under_way, most
        if url.endswith("slow"):
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(15)
            under_way -= 1
            raise Unreachable("no answer")
        await trio.sleep(0.1)
        told.append(trio.current_time())
        return 204

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HookRunner(hooks, post, source="here").run)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(told) == 100
    assert max(told) - start < 15, "before the first request to the other one has ended"
    assert 1 < most < 8
    states = (
        {one.state for one in await hooks.deliveries(quick.id)},
        {one.state for one in await hooks.deliveries(slow.id)},
    )
    assert states == ({"delivered"}, {"waiting"})


async def test_a_request_ends_before_another_tracker_may_claim_it(autojump_clock: trio.testing.MockClock) -> None:
    hooks = clocked()
    made = await hooks.add(URL, [], [], b"s", BY)
    hooks.tell(PUSH, "acme/api", {})
    sent: list[float] = []

    async def hangs(_url: str, _headers: Sequence[tuple[str, str]], _body: bytes) -> int:
        sent.append(trio.current_time())
        await trio.sleep_forever()
        return 200

    await HookRunner(hooks, hangs, source="here").once()
    (seen,) = await hooks.deliveries(made.id)
    assert (seen.state, seen.attempts, len(sent)) == ("waiting", 1, 1)
    assert seen.last_error is not None
    assert trio.current_time() - sent[0] < 120
