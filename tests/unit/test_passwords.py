"""Passwords: kept as argon2id, checked in few threads, with the same work for whoever is asked for."""

from __future__ import annotations

import pytest
import trio

from p2pregistry.errors import RequestError
from tracker.identity import passwords
from tracker.identity.passwords import MEMORY_COST, MOST_WAITING, REMEMBER, TIME_COST, Passwords


def quick(**more: int) -> Passwords:
    return Passwords(memory_cost=8, time_cost=1, **more)


class Counted(Passwords):
    """Counts what is really computed."""

    def __init__(self) -> None:
        super().__init__(memory_cost=8, time_cost=1)
        self.work = 0

    def _verify(self, kept: str | None, password: bytes) -> bool:
        self.work += 1
        return super()._verify(kept, password)


async def test_what_is_kept_is_argon2id_with_the_costs_that_are_stated() -> None:
    kept = await Passwords().hash("correct horse")
    assert kept.startswith(f"$argon2id$v=19$m={MEMORY_COST},t={TIME_COST},p=1$")
    assert await Passwords().verify(kept, "correct horse")
    assert not await quick().verify(kept, "correct horses"), "each is checked with the costs it was made with"


async def test_other_costs_are_noticed() -> None:
    kept = await quick().hash("correct horse")
    assert Passwords().outdated(kept)
    assert not quick().outdated(kept)
    assert not quick().outdated("no hash")


async def test_the_same_work_is_done_whether_or_not_there_is_a_user_or_a_password() -> None:
    checked = Counted()
    kept = await checked.hash("correct horse")
    for number, of in enumerate((kept, None, kept, None, None), 1):
        assert not await checked.verify(of, "wrong horse")
        assert checked.work == number
    assert not await checked.verify("no hash", "wrong horse")


async def test_a_right_password_is_remembered_for_a_while_and_only_for_what_it_was_right_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    checked = Counted()
    kept, other = await checked.hash("correct horse"), await checked.hash("battery staple")
    for _ in range(5):
        assert await checked.verify(kept, "correct horse")
    assert checked.work == 1
    assert not await checked.verify(other, "correct horse"), "the password was changed"
    assert not await checked.verify(None, "correct horse"), "the user was disabled"
    await trio.sleep(REMEMBER)
    checked.work = 0
    assert await checked.verify(kept, "correct horse")
    assert checked.work == 1


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MOST_REMEMBERED", 3)
    checked = quick()
    for number in range(6):
        kept = await checked.hash(f"password {number}")
        assert await checked.verify(kept, f"password {number}")
    assert len(checked._right) == 3


async def test_many_logins_at_once_wait_for_few_threads_and_too_many_are_turned_away() -> None:
    checked = quick(workers=1)
    kept = await checked.hash("correct horse")
    turned_away = []

    async def login(number: int) -> None:
        try:
            assert not await checked.verify(kept, f"wrong {number}")
        except RequestError as err:
            turned_away.append((err.code, err.status, err.headers["Retry-After"]))

    async with trio.open_nursery() as nursery:
        for number in range(MOST_WAITING + 20):
            nursery.start_soon(login, number)
    assert 0 < len(turned_away) <= 20
    assert set(turned_away) == {("TOOMANYREQUESTS", 429, "1")}
    assert await checked.verify(kept, "correct horse"), "afterwards all is as before"


async def test_the_same_right_password_many_times_at_once_is_computed_about_once() -> None:
    checked = Counted()
    kept = await checked.hash("correct horse")
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(checked.verify, kept, "correct horse")
    assert checked.work <= passwords.WORKERS


async def test_a_login_that_is_given_up_leaves_its_place() -> None:
    checked = quick(workers=1)
    kept = await checked.hash("correct horse")
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await checked.verify(kept, "wrong")
    assert checked._waiting == 0
    assert await checked.verify(kept, "correct horse")


async def test_what_no_password_can_be_is_wrong_without_any_work() -> None:
    checked = Counted()
    assert not await checked.verify(None, "")
    assert not await checked.verify(None, "x" * 1001)
    assert checked.work == 0
    assert not await checked.verify(None, "\ud800 lone \0 surrogate")
