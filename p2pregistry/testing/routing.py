"""What every ``Router`` must do, and what the tests of routing share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Peer, Router

#: Opens that many routers that can find each other, with the peer each one is known as.
MakeRouters = Callable[[int], AbstractAsyncContextManager[Sequence[tuple[Router, Peer]]]]


async def eventually(condition: Callable[[], object], *, seconds: float = 20.0, every: float = 0.02) -> None:
    """Return once ``condition()`` is true; AssertionError after ``seconds``."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110 - other processes and libraries set no event of ours
            await trio.sleep(every)
        return
    raise AssertionError(f"not within {seconds} s: {condition}")


async def find_all(router: Router, digest: Digest, *, limit: int = 10) -> list[Peer]:
    """The peers one look-up finds."""
    found: list[Peer] = []
    await router.find(digest, found.append, limit=limit)
    return found


async def find_until(router: Router, digest: Digest, expected: set[str], *, seconds: float = 20.0) -> None:
    """Look up again and again until exactly these peer ids are found; AssertionError after ``seconds``."""
    found: set[str] | None = None
    with trio.move_on_after(seconds):
        while True:
            found = {peer.peer_id for peer in await find_all(router, digest)}
            if found == expected:
                return
            await trio.sleep(0.05)
    raise AssertionError(f"found {found} and not {expected} within {seconds} s")


async def check_router(make: MakeRouters) -> None:
    """Run the contract of ``Router`` on three routers. Raises AssertionError."""
    async with make(3) as made:
        (first, first_peer), (second, second_peer), (third, _) = made
        await _check_hold_and_drop(first, first_peer, second, second_peer, third)
        await _check_limits(first, second, third)
        await _check_what_is_ignored(first, second)


async def _check_hold_and_drop(
    first: Router, first_peer: Peer, second: Router, second_peer: Peer, third: Router
) -> None:
    digest = Digest.of(b"held")
    assert await find_all(third, digest) == [], "nobody holds it yet"
    first.hold(iter([digest]))
    first.hold([digest])
    await find_until(third, digest, {first_peer.peer_id})
    assert await find_all(third, digest) == [first_peer], "the peer with its URL and zone, once"
    assert await find_all(first, digest) == [], "a node never finds itself"
    second.hold([digest])
    await find_until(third, digest, {first_peer.peer_id, second_peer.peer_id})
    await find_until(first, digest, {second_peer.peer_id})
    assert first_peer in third.peers(), "a peer that was found is a peer in touch"
    first.drop([digest])
    first.drop([digest])
    await find_until(third, digest, {second_peer.peer_id})
    first.hold([digest])
    await find_until(third, digest, {first_peer.peer_id, second_peer.peer_id})


async def _check_limits(first: Router, second: Router, third: Router) -> None:
    digest = Digest.of(b"limited")
    first.hold([digest])
    second.hold([digest])
    with trio.fail_after(20):
        while len(await find_all(third, digest)) < 2:  # noqa: ASYNC110 - a record's arrival elsewhere is no event here
            await trio.sleep(0.05)
    assert len(await find_all(third, digest, limit=1)) == 1

    def refuse(_: Peer) -> None:
        raise KeyError("the caller's own error")

    try:
        await third.find(digest, refuse)
    except KeyError:
        return
    raise AssertionError("an error in found() reaches the caller as it is")


async def _check_what_is_ignored(first: Router, second: Router) -> None:
    other = Digest.of(b"x", "sha512")
    first.hold([other])
    assert await find_all(second, other) == [], "only sha256 is routed"
    first.drop([other, Digest.of(b"never held")])
