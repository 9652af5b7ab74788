"""Wrong passwords are counted across trackers, by address and account, and lock nobody else out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio.testing

from p2pregistry.errors import LocalError, RequestError
from p2pregistry.testing.conformance import basic
from p2pregistry.testing.tracker_process import Client, tracker
from tracker.catalog.migrate import migrate
from tracker.db import Db
from tracker.throttle import (
    KNOWN,
    LASTS,
    Counters,
    Logins,
    MemoryCounters,
    Most,
    PostgresCounters,
    Recent,
    Remembered,
)

FEW = Most(pair=5, address=10, account=20)


async def check_counters(counters: Counters) -> None:
    for number in range(1, 4):
        ((count, left),) = await counters.count(["a"], 60.0)
        assert count == number
        assert 0 < left <= 60
    assert [count for count, _ in await counters.count(["b", "a", "c"], 60.0)] == [1, 4, 1]
    assert (await counters.count(["soon"], 0.0))[0][0] == 1
    assert (await counters.count(["soon"], 60.0))[0][0] == 1, "it has begun anew"


async def test_memory(mock_clock: trio.testing.MockClock) -> None:
    await check_counters(MemoryCounters())


async def test_postgres(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        await check_counters(PostgresCounters(db))
    finally:
        db.close()


async def fails(logins: Logins, address: str, account: str, times: int = 1) -> int:
    """After how many wrong passwords it is turned away; 0 if it is not."""
    for number in range(1, times + 1):
        try:
            logins.check(address, account)
            await logins.failed(address, account)
        except RequestError as err:
            return number if err.status == 429 and int(err.headers["Retry-After"]) > 0 else -1
    return 0


async def test_two_processes_count_together_and_others_are_not_locked_out(mock_clock: trio.testing.MockClock) -> None:
    counters = MemoryCounters()
    one, two = Logins(counters, most=FEW), Logins(counters, most=FEW)
    assert await fails(one, "192.0.2.1", "ann", 3) == 0
    assert await fails(two, "192.0.2.1", "ann", 5) == 3
    with pytest.raises(RequestError):
        two.check("192.0.2.1", "ann")
    two.check("192.0.2.2", "ann")
    two.check("192.0.2.1", "bob")
    mock_clock.jump(61)
    two.check("192.0.2.1", "ann")
    assert await fails(two, "192.0.2.1", "ann", 5) == 0


async def test_one_address_that_tries_many_names_is_turned_away(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=FEW)
    turned = [await fails(logins, "192.0.2.1", f"user{number}") for number in range(12)]
    assert turned == [0] * 10 + [1, 1]
    logins.check("192.0.2.2", "user1")


async def test_many_addresses_that_try_one_name_are_turned_away(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=FEW)
    logins.passed("198.51.100.1", "ann")
    turned = [await fails(logins, f"192.0.2.{number}", "ann") for number in range(22)]
    assert turned == [0] * 20 + [1, 1]
    logins.check("198.51.100.1", "ann")  # where the owner was seen
    logins.check("192.0.2.1", "bob")
    with pytest.raises(RequestError):
        logins.check("198.51.100.2", "ann")


async def test_the_owner_behind_the_address_of_a_guesser(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=FEW)
    logins.passed("192.0.2.1", "ann")
    for number in range(12):
        await fails(logins, "192.0.2.1", f"user{number}")
    logins.check("192.0.2.1", "ann")
    assert await fails(logins, "192.0.2.1", "ann", 9) == 6, "and who guesses the owner's does not get far there"
    mock_clock.jump(KNOWN + 1)
    for number in range(12):
        await fails(logins, "192.0.2.1", f"user{number}")
    with pytest.raises(RequestError):
        logins.check("192.0.2.1", "ann")


async def test_a_client_with_many_addresses_of_one_network_is_one(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=FEW)
    turned = [await fails(logins, f"2001:db8::{number:x}", "ann") for number in range(1, 8)]
    assert turned == [0, 0, 0, 0, 0, 1, 1]
    assert await fails(logins, "2001:db8:0:1::1", "ann") == 0
    assert await fails(logins, "::ffff:192.0.2.1", "ann", 5) == 0
    assert await fails(logins, "192.0.2.1", "ann") == 1


async def test_names_that_no_account_can_have_are_counted_as_one(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=FEW)
    names = ["", "A", "a\0b", "\ud800", "x" * 1000, "a:b", "-a"]
    turned = [await fails(logins, "192.0.2.1", name) for name in names]
    assert turned == [0] * 5 + [1, 1]


async def test_a_database_that_is_away_locks_nobody_out() -> None:
    class Away:
        async def count(self, keys: Sequence[str], window: float) -> list[tuple[int, float]]:
            raise LocalError("away")

    assert await fails(Logins(Away(), most=Most(1, 1, 1)), "192.0.2.1", "ann", 10) == 0


async def test_what_was_right_is_known_for_a_while(mock_clock: trio.testing.MockClock) -> None:
    recent = Recent(most=3)
    recent.add("ann", "secret")
    assert recent.knows("ann", "secret")
    for name, secret in (("ann", "secre"), ("anns", "ecret"), ("an", "nsecret"), ("", "annsecret"), ("ann", "\ud800")):
        assert not recent.knows(name, secret)
    mock_clock.jump(LASTS + 1)
    assert not recent.knows("ann", "secret")
    recent.add("ann", "secret")
    recent.forget("ann", "secret")
    assert not recent.knows("ann", "secret")


async def test_what_is_remembered_is_bounded(mock_clock: trio.testing.MockClock) -> None:
    kept: Remembered[int, int] = Remembered(3)
    for number in range(4):
        kept.put(number, number, 10)
    assert [kept.get(number) for number in range(4)] == [None, 1, 2, 3]
    kept.put(1, 7, 10)
    kept.put(5, 5, 10)
    assert [kept.get(number) for number in (1, 2, 3, 5)] == [7, None, 3, 5]
    mock_clock.jump(11)
    assert kept.get(1) is None
    assert kept.left(1) == 0


@pytest.mark.e2e
def test_guessing_is_stopped_and_the_owner_works_on(tmp_path: Path, database: str) -> None:
    settings = {"database.dsn": database, "tracker.trusted_proxies": "127.0.0.0/8"}
    with tracker(tmp_path / "tracker", settings) as process:
        client, guess = Client(process), basic("pusher", "guess")
        seen = []
        for _ in range(25):
            status, headers, body = client.request("GET", "/v2/", Authorization=guess, X_Forwarded_For="198.51.100.7")
            seen.append(status)
        assert seen == [401] * 20 + [429] * 5
        assert "retry-after" in headers
        assert json.loads(body)["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert client.request("GET", "/v2/", X_Forwarded_For="198.51.100.7")[0] == 429, "also with the right one"
        assert client.request("GET", "/v2/", X_Forwarded_For="198.51.100.8")[0] == 200
        assert client.request("GET", "/v2/", X_Forwarded_For="198.51.100.7")[0] == 200, "who is logged in works on"
