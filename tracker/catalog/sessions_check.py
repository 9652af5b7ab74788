"""What every ``Sessions`` must do. Each case gets empty ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from tracker.catalog.sessions import Lease, Session, Sessions

_MANY: Final = 1000
_LONG: Final = 60.0
#: Over before the next statement reads the clock, but for the time that this takes.
_SHORT: Final = 0.001


async def _held(sessions: Sessions, number: str, holder: str, lasts: float = _LONG) -> Session:
    """The lease, which must not be held by anybody else; a lease of ``_SHORT`` seconds is waited for."""
    while True:
        session = await sessions.take("a/b", number, holder, lasts)
        if session is not None:
            return session
        await trio.sleep(_SHORT)


async def _refused(call: Awaitable[object]) -> RequestError:
    try:
        await call
    except RequestError as err:
        return err
    raise AssertionError("it was not refused")


async def check_begin(sessions: Sessions) -> None:
    """A new session has no bytes, belongs to its repository, and is nobody's."""
    made = await sessions.open("one", "a/b", algorithm="sha512", actor="me", limit=_MANY)
    assert (made.id, made.repository, made.size, made.algorithm, made.actor) == ("one", "a/b", 0, "sha512", "me")
    assert (made.verified, made.held, made.object) == (None, False, "u/on/one")
    found = await sessions.get("a/b", "one")
    assert found is not None
    assert (found.id, found.generation, found.held) == ("one", made.generation, False)
    assert await sessions.get("a/c", "one") is None
    assert await sessions.get("a/b", "two") is None
    assert await sessions.get("a/b", "o\0ne\ud800") is None
    for repository, number in (("a/c", "one"), ("a/b", "two"), ("a/b", "\0")):
        refused = await _refused(sessions.take(repository, number, "p", _LONG))
        assert (refused.status, refused.code) == (404, "BLOB_UPLOAD_UNKNOWN")


async def check_limit(sessions: Sessions) -> None:
    """No more than so many are open at once."""
    for number in ("1", "2"):
        await sessions.open(number, "a/b", limit=2)
    refused = await _refused(sessions.open("3", "a/b", limit=2))
    assert (refused.status, refused.code, "Retry-After" in refused.headers) == (429, "TOOMANYREQUESTS", True)
    assert await sessions.drop((await _held(sessions, "1", "p")).lease)
    await sessions.open("3", "a/b", limit=2)
    assert await sessions.count() == 2
    assert [session.id for session in await sessions.all()] == ["2", "3"]
    assert [session.id for session in await sessions.all(after="2", limit=5)] == ["3"]
    assert await sessions.known(["1", "2", "3"]) == {"2", "3"}


async def check_one_holder(sessions: Sessions) -> None:
    """While one process holds it no other gets it; given back, it has what was recorded."""
    await sessions.open("one", "a/b", limit=_MANY)
    mine = await _held(sessions, "one", "p")
    assert mine.held
    assert await sessions.take("a/b", "one", "q", _LONG) is None
    again = await sessions.take("a/b", "one", "p", _LONG)
    assert again is not None
    assert again.generation > mine.generation
    assert await sessions.record(again.lease, 5)
    assert await sessions.release(again.lease, 7)
    theirs = await sessions.take("a/b", "one", "q", _LONG)
    assert theirs is not None
    assert (theirs.size, theirs.generation > again.generation) == (7, True)


async def check_held_from_the_start(sessions: Sessions) -> None:
    """A session may be opened by who holds it."""
    made = await sessions.open("one", "a/b", limit=_MANY, holder="p", lasts=_LONG)
    assert made.held
    assert await sessions.take("a/b", "one", "q", _LONG) is None
    assert await sessions.record(made.lease, 3)


async def check_lost_lease(sessions: Sessions) -> None:
    """A lease that has run out can be taken, and who had it can do nothing any more."""
    await sessions.open("one", "a/b", limit=_MANY)
    old = await _held(sessions, "one", "p", _SHORT)
    assert await sessions.record(old.lease, 4)
    new = await _held(sessions, "one", "q")
    assert (new.size, new.generation > old.generation) == (4, True)
    assert not await sessions.record(old.lease, 9)
    assert not await sessions.verify(old.lease, 9, Digest.of(b"x"))
    assert not await sessions.release(old.lease, 9)
    assert not await sessions.drop(old.lease)
    assert await sessions.renew([old.lease], _LONG) == set()
    found = await sessions.get("a/b", "one")
    assert found is not None
    assert (found.size, found.verified, found.held) == (4, None, True)


async def check_renewal(sessions: Sessions) -> None:
    """Leases that are renewed last, those that ended do not come back."""
    for number in ("1", "2", "3"):
        await sessions.open(number, "a/b", limit=_MANY)
    one, two = await _held(sessions, "1", "p", _SHORT), await _held(sessions, "2", "p", _SHORT)
    three = await _held(sessions, "3", "p")
    assert await sessions.release(three.lease, 0)
    asked = [two.lease, one.lease, three.lease, Lease("4", 1)]
    assert await sessions.renew(asked, _LONG) == {"1", "2"}
    assert await sessions.renew([], _LONG) == set()
    for number in ("1", "2"):
        assert await sessions.take("a/b", number, "q", _LONG) is None


async def check_verified(sessions: Sessions) -> None:
    """The digest that was found is remembered for who completes it."""
    digest = Digest.of(b"bytes", "sha512")
    await sessions.open("one", "a/b", limit=_MANY)
    assert await sessions.verify((await _held(sessions, "one", "p", _SHORT)).lease, 5, digest)
    found = await _held(sessions, "one", "q")
    assert (found.size, found.verified) == (5, digest)
    assert await sessions.release(found.lease, 5)
    found = await _held(sessions, "one", "p")
    assert (found.size, found.verified) == (5, digest)


async def check_expiry(sessions: Sessions) -> None:
    """Sessions that nobody holds end when they are idle for long; others do not."""
    for number in ("1", "2", "3"):
        await sessions.open(number, "a/b", limit=_MANY)
    await _held(sessions, "2", "p")
    assert await sessions.expire(_LONG, 10) == []
    await trio.sleep(_SHORT)
    assert await sessions.expire(0.0, 1) == ["1"]
    await trio.sleep(_SHORT)
    assert await sessions.expire(0.0, 10) == ["3"]
    assert await sessions.known(["1", "2", "3"]) == {"2"}


async def check_race(sessions: Sessions) -> None:
    """Of many that want it at once one gets it."""
    await sessions.open("one", "a/b", limit=_MANY)
    got: list[Session] = []

    async def want(holder: str) -> None:
        session = await sessions.take("a/b", "one", holder, _LONG)
        if session is not None:
            got.append(session)

    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(want, f"p{i}")
    assert len(got) == 1


CASES: Final[dict[str, Callable[[Sessions], Awaitable[None]]]] = {
    check.__name__: check
    for check in (
        check_begin,
        check_limit,
        check_one_holder,
        check_held_from_the_start,
        check_lost_lease,
        check_renewal,
        check_verified,
        check_expiry,
        check_race,
    )
}
