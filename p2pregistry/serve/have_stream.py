"""The answer to ``POST /p2p/v1/have``: lines of news for as long as the other side listens."""

from __future__ import annotations

import math

import trio

from p2pregistry.have_news import HEARTBEAT, PACE, HaveNews
from p2pregistry.haves import Watcher


class HaveStream:
    """The lines for one watcher; ``aclose`` when done.

    The first comes at once, whatever it says, so that the other side knows that it is heard. Then one each PACE seconds
    at most while there is news, and one each HEARTBEAT seconds at least. A line is made when the one before has been
    sent, so a slow connection gets fewer and longer ones.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._said = -math.inf

    def __aiter__(self) -> HaveStream:
        return self

    async def __anext__(self) -> bytes:
        watcher = self._watcher
        if trio.current_time() < self._said + PACE:  # a deadline that has passed costs as much as one that does
            with trio.move_on_at(self._said + PACE):
                await watcher.ended.wait()
        with trio.move_on_at(self._said + HEARTBEAT):
            await watcher.wait()
        if watcher.ended.is_set():
            raise StopAsyncIteration
        self._said = trio.current_time()
        news = watcher.news() if watcher.pending else HaveNews()
        return news.encode()

    async def aclose(self) -> None:
        self._watcher.leave()
