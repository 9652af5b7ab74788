"""Orderly shutdown: a cancelled program stops its parts in order, and within a deadline."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Awaitable, Callable

import trio


def allow_open_files() -> None:
    """Take as many descriptors as this process may have: what it is given at first, often 1,024, is for programs that
    still use ``select``, and less than a listener full of TLS connections needs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system that says "unlimited" and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def orderly(main: Callable[[trio.Event], Awaitable[None]], *, deadline: float) -> None:
    """Run ``main(stop)``; when the caller is cancelled, set ``stop`` and let ``main`` return by itself.

    Cancellation would otherwise reach every part at once, and a request under way would lose the download it reads.
    ``main`` is shielded until ``deadline`` seconds after the cancellation; then it is cancelled like anything else.
    """
    stop = trio.Event()
    life = trio.CancelScope(shield=True)

    async def live(scope: trio.CancelScope) -> None:
        with life:
            await main(stop)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, nursery.cancel_scope)
        try:
            await trio.sleep_forever()
        finally:
            stop.set()
            life.deadline = trio.current_time() + deadline
