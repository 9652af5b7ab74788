"""What every ``Hooks`` must do. A test runs each of ``CASES`` on a fresh, empty one of each implementation; ``tell``
is how an event of a type comes about in a repository."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from tracker.catalog.hooks import AuditQuery, Delivery, Hooks
from tracker.catalog.trail import By

Tell = Callable[[str, str], Awaitable[None]]
Case = Callable[[Hooks, Tell], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}
BY = By("operator", "admin socket", "r1")
PUSH, DELETE = "p2pregistry.push", "p2pregistry.delete"
URL = "https://hooks.example.com/in"


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def _one(hooks: Hooks, webhook: int) -> Delivery:
    found = await hooks.deliveries(webhook)
    assert len(found) == 1
    return found[0]


@_case
async def webhooks_are_kept_without_showing_their_secret(hooks: Hooks, _tell: Tell) -> None:
    made = await hooks.add(URL, ["acme/**"], [PUSH], b"secret", BY)
    assert (made.url, made.repositories, made.types, made.enabled) == (URL, ("acme/**",), (PUSH,), True)
    assert await hooks.all() == [made]
    assert "secret" not in repr(await hooks.all()) + repr(await hooks.audit(AuditQuery()))
    assert await hooks.remove(made.id, BY)
    assert not await hooks.remove(made.id, BY)
    assert not await hooks.enable(made.id, True, BY)
    assert await hooks.all() == []


@_case
async def an_event_is_delivered_once_to_each_that_wants_it(hooks: Hooks, tell: Tell) -> None:
    everything = await hooks.add(URL, [], [], b"s1", BY)
    some = await hooks.add(URL + "2", ["acme/*"], [PUSH], b"s2", BY)
    for kind, repository in ((PUSH, "acme/api"), (DELETE, "acme/api"), (PUSH, "other")):
        await tell(kind, repository)
    assert await hooks.fan_out(2) == 2
    assert await hooks.fan_out(10) == 1
    assert await hooks.fan_out(10) == 0
    due = await hooks.claim(10, 60.0)
    assert [(one.url, one.event.type, one.event.repository, one.attempts) for one in due if one.secret == b"s1"] == [
        (URL, PUSH, "acme/api", 1),
        (URL, DELETE, "acme/api", 1),
        (URL, PUSH, "other", 1),
    ]
    assert [(one.url, one.event.repository) for one in due if one.secret == b"s2"] == [(URL + "2", "acme/api")]
    assert await hooks.claim(10, 60.0) == [], "nobody else gets them meanwhile"
    assert {one.webhook for one in due} == {everything.id, some.id}
    for one in due:
        await hooks.delivered(one.id, 204)
    assert [one.state for one in await hooks.deliveries(everything.id)] == ["delivered"] * 3
    assert (await _one(hooks, some.id)).last_status == 204


@_case
async def events_from_before_a_webhook_are_not_its_business(hooks: Hooks, tell: Tell) -> None:
    await tell(PUSH, "acme/api")
    assert await hooks.fan_out(10) == 1
    made = await hooks.add(URL, [], [], b"s", BY)
    assert await hooks.fan_out(10) == 0
    assert await hooks.deliveries(made.id) == []


@_case
async def a_webhook_can_be_left_alone_for_a_while(hooks: Hooks, tell: Tell) -> None:
    slow, other = await hooks.add(URL, [], [], b"s1", BY), await hooks.add(URL, [], [], b"s2", BY)
    await tell(PUSH, "acme/api")
    await hooks.fan_out(10)
    assert [one.webhook for one in await hooks.claim(10, 60.0, [slow.id])] == [other.id]
    assert await hooks.claim(10, 60.0, [slow.id]) == []
    assert [one.webhook for one in await hooks.claim(10, 60.0)] == [slow.id]


@_case
async def what_failed_is_due_again_or_never(hooks: Hooks, tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    await tell(PUSH, "acme/api")
    await hooks.fan_out(10)
    (due,) = await hooks.claim(10, 60.0)
    await hooks.failed(due.id, 500, None, 0.0)
    (again,) = await hooks.claim(10, 60.0)
    assert (again.id, again.attempts, again.event) == (due.id, 2, due.event)
    await hooks.failed(again.id, None, "no answer", 3600.0)
    seen = await _one(hooks, made.id)
    assert (seen.state, seen.attempts, seen.last_status, seen.last_error) == ("waiting", 2, None, "no answer")
    assert await hooks.claim(10, 60.0) == []
    await hooks.failed(again.id, 410, None, None)
    assert (await _one(hooks, made.id)).state == "failed"


@_case
async def a_claim_that_runs_out_is_given_to_another(hooks: Hooks, tell: Tell) -> None:
    await hooks.add(URL, [], [], b"s", BY)
    await tell(PUSH, "acme/api")
    await hooks.fan_out(10)
    (first,) = await hooks.claim(10, 0.0)
    (second,) = await hooks.claim(10, 60.0)
    assert (second.id, second.attempts) == (first.id, 2)


@_case
async def deliveries_can_be_replayed(hooks: Hooks, tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    for repository in ("a", "b"):
        await tell(PUSH, repository)
    await hooks.fan_out(10)
    first, second = await hooks.claim(10, 60.0)
    await hooks.delivered(first.id, 200)
    await hooks.failed(second.id, 500, None, None)
    assert await hooks.replay(made.id, None, True, BY) == 1
    assert [one.event.repository for one in await hooks.claim(10, 60.0)] == ["b"]
    later = datetime.now(UTC) + timedelta(days=1)
    assert await hooks.replay(made.id, later, False, BY) == 0
    assert await hooks.replay(made.id, None, False, BY) == 2
    assert {(one.event.repository, one.attempts) for one in await hooks.claim(10, 60.0)} == {("a", 1), ("b", 1)}
    lines = await hooks.audit(AuditQuery(action="webhook.replay"))
    assert [line.actor for line in lines] == [BY.actor] * 2, "and none where nothing was due again"


@_case
async def one_that_is_off_is_told_nothing_and_what_waits_waits(hooks: Hooks, tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    await tell(PUSH, "before")
    await hooks.fan_out(10)
    assert await hooks.enable(made.id, False, BY)
    await tell(PUSH, "meanwhile")
    await hooks.fan_out(10)
    assert await hooks.claim(10, 60.0) == []
    assert await hooks.enable(made.id, True, BY)
    assert [one.event.repository for one in await hooks.claim(10, 60.0)] == ["before"]


@_case
async def removing_a_webhook_removes_its_deliveries(hooks: Hooks, tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    await tell(PUSH, "a")
    await hooks.fan_out(10)
    await hooks.remove(made.id, BY)
    assert await hooks.claim(10, 60.0) == []


@_case
async def what_waits_is_not_forgotten(hooks: Hooks, tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    for repository in ("a", "b"):
        await tell(PUSH, repository)
    await hooks.fan_out(10)
    first, _second = await hooks.claim(10, 60.0)
    await hooks.delivered(first.id, 200)
    await tell(PUSH, "not fanned out yet")
    assert await hooks.prune(-60.0, None) == 1
    assert [one.repository for one in await hooks.deliveries(made.id)] == ["b"]
    assert await hooks.fan_out(10) == 1
    lines = len(await hooks.audit(AuditQuery()))
    assert lines > 0
    assert await hooks.prune(3600.0, -60.0) == lines
    assert await hooks.audit(AuditQuery()) == []


@_case
async def the_audit_log_is_read_newest_first_and_by_what_one_looks_for(hooks: Hooks, _tell: Tell) -> None:
    made = await hooks.add(URL, [], [], b"s", BY)
    await hooks.enable(made.id, False, By("another", "192.0.2.1", account_id=7))
    await hooks.remove(made.id, BY)
    lines = await hooks.audit(AuditQuery())
    assert [line.action for line in lines] == ["webhook.remove", "webhook.disable", "webhook.add"]
    assert (lines[0].actor, lines[0].address, lines[0].request_id) == ("operator", "admin socket", "r1")
    assert [line.account_id for line in lines] == [None, 7, None]
    assert await hooks.audit(AuditQuery(account_id=7)) == lines[1:2]
    assert await hooks.audit(AuditQuery(account_id=8)) == []
    assert [line.action for line in await hooks.audit(AuditQuery(actor="another"))] == ["webhook.disable"]
    assert [line.action for line in await hooks.audit(AuditQuery(action="webhook.add"))] == ["webhook.add"]
    assert len(await hooks.audit(AuditQuery(action="webhook"))) == 3
    assert await hooks.audit(AuditQuery(action="web")) == []
    assert await hooks.audit(AuditQuery(repository="acme/api")) == []
    assert await hooks.audit(AuditQuery(limit=1)) == lines[:1]
    assert await hooks.audit(AuditQuery(before=lines[0].id, limit=1)) == lines[1:2]
    assert await hooks.audit(AuditQuery(since=lines[0].at + timedelta(seconds=1))) == []
    assert await hooks.audit(AuditQuery(until=lines[-1].at)) == []
