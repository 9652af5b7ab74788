"""An HTTP peer on a real socket that does what it should not.

It knows the right bytes of some blobs and answers each request with the script it was given; what it was asked for is
kept in ``requests``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pregistry.content.car import write_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError

_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its target, and the bytes of the blob it wants (``body``), which start at ``offset``."""

    target: str
    body: bytes
    offset: int
    size: int

    def head(
        self, status: str = "206 Partial Content", *, length: int | None = None, offset: int | None = None
    ) -> bytes:
        """The head of an answer; honest unless told otherwise."""
        start = self.offset if offset is None else offset
        return (
            f"HTTP/1.1 {status}\r\nContent-Length: {len(self.body) if length is None else length}\r\n"
            f"Content-Range: bytes {start}-{start + len(self.body) - 1}/{self.size}\r\n\r\n"
        ).encode()


Script = Callable[[trio.SocketStream, Asked], Awaitable[bool]]


async def honest(stream: trio.SocketStream, asked: Asked) -> bool:
    """What was asked for. A script gives whether the connection is kept."""
    await stream.send_all(asked.head() + asked.body)
    return True


@dataclass
class HostilePeer:
    """Serves ``blobs``; requests for tables are answered honestly unless ``tables`` is off."""

    script: Script
    blobs: dict[Digest, bytes]
    tables: bool = True
    url: str = ""
    requests: list[str] = field(default_factory=list)

    async def _connection(self, stream: trio.SocketStream) -> None:
        buffer = b""
        try:
            async with stream:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        more = await stream.receive_some(64 << 10)
                        if not more:
                            return
                        buffer += more
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    if not await self._answer(stream, head + b"\r\n"):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client had enough

    async def _answer(self, stream: trio.SocketStream, head: bytes) -> bool:
        target = head.split(b" ", 2)[1].decode("ascii")
        self.requests.append(target)
        parts = target.split("/")
        try:
            data = self.blobs.get(Digest.parse(parts[4])) if parts[3] == "blobs" else None
        except (RequestError, IndexError):
            data = None
        if data is None:
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        if parts[5:] == ["table"] and self.tables:
            info = Metainfo.of_bytes(data)
            table = write_table(info.root, info.dag().blocks)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(table) + table)
            return True
        found = _RANGE.search(head)
        first, last = (int(found[1]), int(found[2])) if found else (0, len(data) - 1)
        return await self.script(stream, Asked(target, data[first : last + 1], first, len(data)))


@asynccontextmanager
async def hostile_peer(script: Script, *blobs: bytes, tables: bool = True) -> AsyncIterator[HostilePeer]:
    """Run one on a free loopback port until the end of the block."""
    peer = HostilePeer(script, {Digest.of(blob): blob for blob in blobs}, tables)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    peer.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, peer._connection, listeners)
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()


async def raw_server(answers: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery) -> str:
    """A bare TCP server on a free loopback port: ``answers`` is given each connection; lives in ``nursery``."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def connection(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await answers(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client had enough

    nursery.start_soon(trio.serve_listeners, connection, listeners)
    return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
