"""Rate limits: what goes out in a time is bounded, shared evenly and in order, and nothing is lost to who gives up."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.rate import MIN_BURST, Bucket, Limiter, Rates

MB = 1_000_000
PART = 256 << 10


# -------------------------------------------------------------------------------------------------------------- bucket


def test_a_bucket_lets_a_burst_go_and_then_its_rate() -> None:
    bucket = Bucket(1000, burst=500, now=10.0)
    assert bucket.take(300, 10.0) == 0.0
    assert bucket.take(200, 10.0) == 0.0
    assert bucket.take(100, 10.0) == pytest.approx(0.1)
    assert bucket.take(100, 10.05) == pytest.approx(0.05)  # asking costs nothing
    assert bucket.take(100, 10.1) == 0.0
    assert bucket.take(500, 99.0) == 0.0  # a long pause saves up one burst
    assert bucket.take(1, 99.0) > 0


def test_more_than_a_burst_goes_from_a_full_bucket_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(1000, burst=500, now=0.0)
    assert bucket.take(2500, 0.0) == 0.0
    assert bucket.take(100, 0.0) == pytest.approx(2.1)
    assert bucket.take(2500, 2.1) == pytest.approx(0.4)


def test_what_is_given_back_can_be_taken_again() -> None:
    bucket = Bucket(1000, burst=500, now=0.0)
    assert bucket.take(500, 0.0) == 0.0
    bucket.give(300, 0.0)
    assert bucket.take(300, 0.0) == 0.0
    bucket.give(10_000, 0.0)
    assert bucket.take(501, 0.0) == 0.0  # never more than full
    assert bucket.take(1, 0.0) > 0


def test_a_clock_that_stands_or_runs_backwards_gives_nothing_away() -> None:
    bucket = Bucket(1000, burst=500, now=5.0)
    assert bucket.take(500, 5.0) == 0.0
    assert bucket.take(1, 4.0) > 0
    assert bucket.take(1, 5.0) > 0


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_is_more_than_nothing(rate: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        Bucket(rate, now=0.0)


@given(
    st.integers(1, 10**10),
    st.floats(0, 1e7),
    st.lists(st.tuples(st.integers(0, 4 << 20), st.floats(0, 10)), max_size=50),
)
def test_never_more_than_burst_and_rate_and_the_waits_are_true(
    rate: int, start: float, script: list[tuple[int, float]]
) -> None:
    bucket = Bucket(rate, now=start)
    now, gone, last = start, 0, 0
    for count, pause in script:
        now += pause
        wait = bucket.take(count, now)
        if wait:
            now += wait
            assert bucket.take(count, now) == 0.0
        gone, last = gone + count, count
        # the last may be larger than the burst, which it then owes
        assert gone - last <= bucket.burst + rate * (now - start) + rate * 1e-5 + 1


# ------------------------------------------------------------------------------------------------------------- limiter


async def transfer(limiter: Limiter, size: int) -> float:
    """When it is through."""
    for at in range(0, size, PART):
        await limiter.take(min(PART, size - at))
    return trio.current_time()


@pytest.mark.parametrize("n", [1, 3, 16])
async def test_transfers_share_the_rate_and_end_when_it_says(n: int, autojump_clock: trio.testing.MockClock) -> None:
    limiter = Limiter(MB)
    size = 5 * MB
    start = trio.current_time()
    ended: list[float] = []

    async def one() -> None:
        ended.append(await transfer(limiter, size) - start)

    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(one)
    assert max(ended) == pytest.approx((n * size - MIN_BURST) / MB)
    assert min(ended) >= max(ended) - n * PART / MB  # nobody is favoured by more than a part of each


async def test_first_come_first_served(autojump_clock: trio.testing.MockClock) -> None:
    limiter = Limiter(1000, burst=100)
    order: list[int] = []

    async def one(number: int, count: int) -> None:
        await limiter.take(count)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number, count in enumerate((100, 90, 1, 50, 1)):
            nursery.start_soon(one, number, count)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("who", [0, 1])
async def test_who_gives_up_leaves_the_turn_to_the_next(who: int, autojump_clock: trio.testing.MockClock) -> None:
    limiter = Limiter(1000, burst=1000)
    await limiter.take(1000)
    start = trio.current_time()
    scopes = [trio.CancelScope() for _ in range(3)]
    ended: dict[int, float] = {}

    async def one(number: int) -> None:
        with scopes[number]:
            await limiter.take(1000)
            ended[number] = trio.current_time() - start

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.5)
        scopes[who].cancel()
    assert sorted(ended) == [n for n in range(3) if n != who]
    assert list(ended.values()) == [pytest.approx(1.0), pytest.approx(2.0)]


async def test_rounding_does_not_make_a_waiter_spin(autojump_clock: trio.testing.MockClock) -> None:
    limiter = Limiter(3e9, burst=7)
    await trio.sleep(12345.678)
    for _ in range(100):
        await limiter.take(7)


# --------------------------------------------------------------------------------------------------------------- rates


def test_no_limit_is_nothing_to_call() -> None:
    rates = Rates(zone="a")
    assert [rates.egress("b"), rates.egress("a"), rates.ingress(None), rates.ingress("a")] == [None] * 4
    one_way = Rates(zone="a", egress_other_zones=5)
    assert (one_way.egress("a"), one_way.ingress("b")) == (None, None)
    assert one_way.egress("b") is not None
    assert one_way.egress(None) is not None  # who names no zone is elsewhere
    assert Rates(egress_other_zones=5).egress("b") is None  # a node without a zone crosses none


async def timed(rates: Rates, zone: str, size: int) -> float:
    start = trio.current_time()
    pace = rates.egress(zone)
    assert pace is not None
    for at in range(0, size, PART):
        await pace(min(PART, size - at))
    return trio.current_time() - start


async def test_a_transfer_to_another_zone_takes_from_both(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(egress=4 * MB, egress_other_zones=MB, zone="a")
    took: dict[str, float] = {}

    async def one(zone: str, size: int) -> None:
        took[zone] = await timed(rates, zone, size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a", 30 * MB)
        nursery.start_soon(one, "b", 8 * MB)
    assert took["b"] == pytest.approx(8, rel=0.1)  # held by its own limit
    assert took["a"] == pytest.approx(38 / 4, rel=0.1)  # and the rest of the node's is left to those nearby
    # alone, the node's limit is what holds those nearby, and the narrower one the others
    assert await timed(rates, "a", 20 * MB) == pytest.approx(5, rel=0.1)
    assert await timed(rates, "b", 5 * MB) == pytest.approx((5 * MB - MIN_BURST) / MB, rel=0.05)


async def test_the_two_ways_do_not_share(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(egress=MB, ingress=MB, zone="a")
    out, into = rates.egress("b"), rates.ingress("b")
    assert out is not None
    assert into is not None
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out, 10 * MB)
        nursery.start_soon(into, 10 * MB)
    assert trio.current_time() == start


async def test_who_gives_up_at_the_second_limit_takes_nothing_from_the_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rates = Rates(egress=MB, egress_other_zones=1000, zone="a")
    near, far = rates.egress("a"), rates.egress("b")
    assert near is not None
    assert far is not None
    await near(10 * MB)  # the node is in debt for almost 10 s
    with trio.move_on_after(1) as scope:
        await far(10 * MB)
    assert scope.cancelled_caught
    start = trio.current_time()
    await far(1)
    assert trio.current_time() - start < 9  # not the three hours that the other limit would need
