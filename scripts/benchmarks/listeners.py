"""Nodes that listen to a tracker's changes, as far as the network sees them: a process of its own.

Usage: listeners.py ADDRESS EPOCH NUMBER PREFIX COUNT opens COUNT streams; the n-th is interested in the repository
PREFIX followed by n. Says "ready" once each has had its first mark. At the end of standard input it ends, with one line
of JSON: for each tag that it was told of the repository, the tag, and when, in monotonic seconds.
"""

from __future__ import annotations

import json
import sys

import h11
import trio

from p2pregistry.feed_messages import ChangesRequest, EventReader, Interest, MarkEvent, TagEvent
from p2pregistry.trust.records import Stamp


class Listeners:
    """All of them."""

    def __init__(self, address: str, cursor: Stamp, prefix: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._cursor, self._prefix = cursor, prefix
        self._waiting = count
        self.heard: list[tuple[str, str, float]] = []

    async def listen(self, number: int) -> None:
        """One stream, until it is cancelled."""
        asked = ChangesRequest(self._cursor, Interest(frozenset({f"{self._prefix}{number}"}))).encode()
        stream = await trio.open_tcp_stream(self._host, self._port)
        connection, reader = h11.Connection(h11.CLIENT), EventReader()
        head = [("Host", self._host), ("Content-Length", str(len(asked)))]
        data = connection.send(h11.Request(method="POST", target="/p2p/v1/changes", headers=head)) or b""
        data += (connection.send(h11.Data(data=asked)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        await stream.send_all(data)
        waited = True
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(1 << 16))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise SystemExit(f"the tracker answered {event.status_code}")
            elif isinstance(event, h11.Data):
                for told in reader.feed(bytes(event.data)):
                    if isinstance(told, TagEvent):
                        self.heard.append((told.repository, told.tag, trio.current_time()))
                    elif isinstance(told, MarkEvent) and waited:
                        waited = False
                        self._had_its_mark()
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                raise SystemExit("the tracker has ended a stream")

    def _had_its_mark(self) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            print("ready", flush=True)


async def main() -> None:
    address, epoch, number, prefix, count = sys.argv[1:]
    listeners = Listeners(address, Stamp(int(epoch), int(number)), prefix, int(count))
    async with trio.open_nursery() as nursery:
        for one in range(int(count)):
            nursery.start_soon(listeners.listen, one)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
    print(json.dumps(listeners.heard), flush=True)


class _Monotonic(trio.abc.Clock):
    """Trio's clock begins at random; that of the process which moves tags is this one."""

    def start_clock(self) -> None:
        """Nothing to do."""

    def current_time(self) -> float:
        import time

        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


if __name__ == "__main__":
    trio.run(main, clock=_Monotonic())
