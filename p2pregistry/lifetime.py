"""Orderly shutdown: a cancelled program stops its parts in order, and within a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


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
