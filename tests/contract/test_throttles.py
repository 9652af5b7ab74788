"""Wrong passwords are counted across trackers, by address, and lock nobody else out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio.testing

from p2pregistry.errors import LocalError, RequestError
from p2pregistry.testing.conformance import basic
from p2pregistry.testing.tracker_process import Client, tracker
from tracker.catalog.migrate import migrate
from tracker.db import Db
from tracker.throttle import Counters, Logins, MemoryCounters, PostgresCounters


async def check_counters(counters: Counters) -> None:
    for number in range(1, 4):
        count, left = await counters.count("a", 60.0)
        assert count == number
        assert 0 < left <= 60
    assert (await counters.count("b", 60.0))[0] == 1
    assert (await counters.count("soon", 0.0))[0] == 1
    assert (await counters.count("soon", 60.0))[0] == 1, "it has begun anew"


async def test_memory(mock_clock: trio.testing.MockClock) -> None:
    await check_counters(MemoryCounters())


async def test_postgres(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        await check_counters(PostgresCounters(db))
    finally:
        db.close()


async def fails(logins: Logins, address: str, times: int) -> int:
    """After how many wrong passwords it is turned away; 0 if it is not."""
    for number in range(1, times + 1):
        try:
            await logins.failed(address)
        except RequestError as err:
            return number if err.status == 429 and int(err.headers["Retry-After"]) > 0 else -1
    return 0


async def test_two_processes_count_together_and_others_are_not_locked_out(mock_clock: trio.testing.MockClock) -> None:
    counters = MemoryCounters()
    one, two = Logins(counters, most=5), Logins(counters, most=5)
    assert await fails(one, "192.0.2.1", 3) == 0
    assert await fails(two, "192.0.2.1", 5) == 3
    with pytest.raises(RequestError):
        two.check("192.0.2.1")
    two.check("192.0.2.2")
    mock_clock.jump(61)
    two.check("192.0.2.1")
    assert await fails(two, "192.0.2.1", 5) == 0


async def test_a_client_with_many_addresses_of_one_network_is_one(mock_clock: trio.testing.MockClock) -> None:
    logins = Logins(MemoryCounters(), most=5)
    turned = [await fails(logins, f"2001:db8::{number:x}", 1) for number in range(1, 8)]
    assert turned == [0, 0, 0, 0, 0, 1, 1]
    assert await fails(logins, "2001:db8:0:1::1", 1) == 0
    assert await fails(logins, "::ffff:192.0.2.1", 5) == 0
    assert await fails(logins, "192.0.2.1", 1) == 1


async def test_a_database_that_is_away_locks_nobody_out() -> None:
    class Away:
        async def count(self, key: str, window: float) -> tuple[int, float]:
            raise LocalError("away")

    assert await fails(Logins(Away(), most=1), "192.0.2.1", 10) == 0


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
