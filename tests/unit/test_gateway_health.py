"""When a gateway is asked, left alone, tried again and banned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.ipfs.gateway_client import parameters, retry_after
from p2pregistry.ipfs.health import BAN, BUSY_MOST, Health


def test_failures_in_a_row_leave_it_out_longer_each_time() -> None:
    health, now, waits = Health(), 2.0, []
    assert [health.failed("no", at) for at in (0.0, 0.1, 0.2, 1.0, 1.9, now)] == [False] * 5 + [True]
    for _ in range(9):
        assert not health.usable(now)
        assert not health.probe_due(now)
        waits.append(health.wait(now))
        now += health.wait(now)
        assert health.probe_due(now)
        assert not health.usable(now), "the probe decides"
        assert not health.failed("still no", now), "it was left out before"
    assert waits == [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0, 600.0]
    now += 600.0
    assert health.answered(now)
    assert health.usable(now)
    assert health.seen == now
    assert not health.failed("once", now)


def test_an_answer_between_failures_counts() -> None:
    health = Health()
    for at in range(20):
        assert not health.failed("no", at)
        assert not health.answered(at)
    assert health.usable(20)


def test_a_probe_that_fails_leaves_it_out_at_once() -> None:
    health = Health()
    assert health.failed("not there", 1.0, at_once=True)
    assert not health.usable(1.0)


def test_a_busy_one_is_left_alone_for_as_long_as_it_asks() -> None:
    health = Health()
    health.busy(7.0, 10.0)
    health.busy(3.0, 11.0)
    assert (health.usable(16.9), health.usable(17.0), health.state) == (False, True, "busy")
    assert health.wait(10.0) == 7.0
    assert not health.probe_due(18.0)
    health.answered(18.0)
    assert health.state == "ok"
    health.busy(1e9, 20.0)
    assert health.wait(20.0) == BUSY_MOST


def test_a_liar_is_banned_whatever_else_it_answers() -> None:
    health = Health()
    health.lied("wrong block", 0.0)
    assert not health.answered(1.0), "what was asked before"
    health.busy(1.0, 2.0)
    assert not health.failed("no", 3.0)
    assert (health.state, health.why) == ("banned", "wrong block")
    assert not health.usable(BAN + 1)
    assert health.probe_due(BAN)
    assert health.answered(BAN + 1)


def test_a_probe_that_fails_after_a_ban_or_is_answered_with_busy_is_not_made_again_at_once() -> None:
    health = Health()
    health.lied("wrong block", 0.0)
    health.failed("not there", BAN + 1, at_once=True)
    assert not health.usable(BAN + 1)
    assert not health.probe_due(BAN + 2)
    now = BAN + 1 + health.wait(BAN + 1)
    assert health.probe_due(now)
    health.busy(40.0, now)
    assert not health.usable(now + 40), "a probe decides"
    assert not health.probe_due(now + 39)
    assert health.probe_due(now + 40)


def test_retry_after() -> None:
    assert [retry_after(text) for text in ("3", " 12 ", "0", "9999")] == [3.0, 12.0, 1.0, 600.0]
    for text in (None, "", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 40, "٣"):
        assert retry_after(text) == 5.0


@given(st.text(max_size=40))
def test_any_header_has_a_meaning(text: str) -> None:
    assert 1.0 <= retry_after(text) <= 600.0
    assert all(len(name) <= 40 for name in parameters(text))


def test_parameters_of_a_content_type() -> None:
    assert parameters('application/vnd.ipld.car; version=1; Order="DFS";dups = y; ;x') == {
        "version": "1",
        "order": "dfs",
        "dups": "y",
        "": "",
        "x": "",
    }


@given(st.lists(st.tuples(st.sampled_from(["busy", "failed", "lied", "answered"]), st.floats(0, 700))))
def test_whatever_happens_it_comes_back(events: list[tuple[str, float]]) -> None:
    health, now = Health(), 0.0
    for what, passed in events:
        now += passed
        if what == "busy":
            health.busy(passed, now)
        elif what == "answered":
            health.answered(now)
        elif what == "failed":
            health.failed("no", now)
        else:
            health.lied("wrong", now)
        assert health.wait(now) <= 600.001
    now += health.wait(now) + 0.001
    assert health.usable(now) or health.probe_due(now)
    health.answered(now)
    assert health.usable(now)
