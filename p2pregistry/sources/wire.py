"""A small HTTP/1.1 client on trio for bulk bytes.

A general client hands a body over in chunks of its own making, each a new bytes object, and at a gigabyte a second that
is most of the work. Here heads go through h11 and bodies are received straight into the caller's buffer. Requests have
no body beyond a short JSON document; answers must carry Content-Length.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11
import trio

from p2pregistry.errors import BadContent, NotFound, NotYet, RemoteBusy, RemoteError, Unreachable

#: The longest head of an answer, bytes.
MAX_HEAD = 32 << 10
#: Idle connections kept to one server.
MAX_IDLE = 8
#: Seconds after which an idle connection is not used again: below the server's own limit.
IDLE = 30.0
#: A host name or address with or without a port; no user, nothing that could break out of a header.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%A-Za-z]{2,60}\])(?::[0-9]{0,5})?")
_NETWORK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError)


@dataclass(slots=True)
class _Connection:
    stream: trio.SocketStream
    used: float
    fresh: bool = True


@dataclass(slots=True)
class Answer:
    """An answer whose body has not been read: ``length`` bytes, of which ``early`` came with the head."""

    status: int
    headers: dict[str, str]
    length: int
    early: memoryview
    stream: trio.SocketStream
    left: int

    async def read_into(self, buffer: memoryview) -> int:
        """Fill ``buffer`` from its start; see Incoming."""
        want = min(len(buffer), self.left)
        if want == 0:
            if len(buffer):  # to answer 0 would make a caller that wants more ask for ever
                raise Unreachable("the answer has fewer bytes than were wanted")
            return 0
        if self.early:
            count = min(want, len(self.early))
            buffer[:count] = self.early[:count]
            self.early = self.early[count:]
        else:
            try:
                count = await self.stream.socket.recv_into(buffer[:want])
            except _NETWORK_ERRORS as err:
                raise Unreachable("the connection broke in the middle of an answer") from err
            if count == 0:
                raise Unreachable("the answer was cut short")
        self.left -= count
        return count

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BadContent if it is longer than ``limit`` bytes."""
        if self.left > limit:
            raise BadContent("an answer is longer than it may be")
        data = bytearray(self.left)  # not ``length``: a 304 may state one and has no body
        view = memoryview(data)
        at = 0
        while at < len(data):
            at += await self.read_into(view[at:])
        return bytes(data)


class Client:
    """Connections to one server, ``http://host:port``. Use from one trio run; ``close`` it."""

    def __init__(self, url: str, *, connect_timeout: float = 3.0, head_timeout: float = 10.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port  # looked at only now: a peer may tell us any text
        except ValueError as err:
            raise Unreachable(f"{url!r} is not an http:// address") from err
        if parts.scheme != "http" or not parts.hostname or _AUTHORITY.fullmatch(parts.netloc) is None:
            raise Unreachable(f"{url!r} is not an http:// address")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, port or 80
        self._authority = parts.netloc
        self._closed = False
        self._connect_timeout, self._head_timeout = connect_timeout, head_timeout
        self._idle: list[_Connection] = []

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, *, body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer whatever its status. Raises Unreachable or BadContent.

        It may be sent twice: the server may have closed a connection just as it was taken up again.
        """
        connection = await self._connection()
        keep = False
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        try:
            try:
                answer, keep = await self._exchange(connection, method, target, lines, body)
            except Unreachable:
                if connection.fresh:
                    raise
                # the server closed an idle connection just as it was taken up: that says nothing of the server
                connection.stream.socket.close()
                connection = await self._open()
                answer, keep = await self._exchange(connection, method, target, lines, body)
            yield answer
            keep = keep and answer.left == 0
        except BaseException:
            keep = False
            raise
        finally:
            if keep and not self._closed and len(self._idle) < MAX_IDLE:
                connection.used, connection.fresh = trio.current_time(), False
                self._idle.append(connection)
            else:
                connection.stream.socket.close()

    async def get(self, target: str, *, limit: int, headers: dict[str, str] | None = None) -> bytes:
        """The body of a 200. Raises NotFound, RemoteBusy, RemoteError, Unreachable or BadContent."""
        try:
            with trio.fail_after(self._head_timeout):
                async with self.request("GET", target, headers) as answer:
                    body = await answer.read(limit if answer.status == 200 else min(limit, 64 << 10))
        except trio.TooSlowError as err:
            raise Unreachable("no whole answer in time") from err
        if answer.status != 200:
            raise refusal(answer)
        return body

    def close(self) -> None:
        """Let go of every connection: idle ones now, those in use when their answer ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().stream.socket.close()

    async def _connection(self) -> _Connection:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.used < IDLE:
                return connection
            connection.stream.socket.close()
        return await self._open()

    async def _open(self) -> _Connection:
        try:
            with trio.fail_after(self._connect_timeout):
                stream = await trio.open_tcp_stream(self._host, self._port)
        except (OSError, UnicodeError, trio.TooSlowError) as err:  # UnicodeError: a name that IDNA does not take
            raise Unreachable(f"no connection to {self._authority}") from err
        return _Connection(stream, trio.current_time())

    async def _exchange(
        self, connection: _Connection, method: str, target: str, lines: str, body: bytes
    ) -> tuple[Answer, bool]:
        try:
            with trio.fail_after(self._head_timeout):
                return await self._talk(connection.stream, method, target, lines, body)
        except h11.RemoteProtocolError as err:
            raise Unreachable("the answer is not HTTP") from err
        except (*_NETWORK_ERRORS, trio.TooSlowError) as err:
            raise Unreachable(f"no answer from {self._authority}") from err

    async def _talk(
        self, stream: trio.SocketStream, method: str, target: str, lines: str, body: bytes
    ) -> tuple[Answer, bool]:
        if body or method == "POST":
            lines = f"Content-Length: {len(body)}\r\n{lines}"
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._authority}\r\nAccept-Encoding: identity\r\n{lines}\r\n"
        await stream.send_all(head.encode("ascii") + body)
        # h11 reads the head only: what follows it is taken back from its buffer
        machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        machine.send(h11.Request(method=method, target=target, headers=[("Host", self._authority)]))
        machine.send(h11.EndOfMessage())
        while True:
            event = machine.next_event()
            if isinstance(event, h11.Response):
                break
            if isinstance(event, h11.InformationalResponse):
                continue
            data = await stream.receive_some(16 << 10)
            if not data:
                raise Unreachable("the connection was closed before an answer")
            machine.receive_data(data)
        found = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        early, _closed = machine.trailing_data
        no_body = method == "HEAD" or event.status_code in (204, 304)
        length = found.get("content-length", "0" if no_body else "")
        if not length.isascii() or not length.isdigit() or "transfer-encoding" in found:
            raise BadContent("an answer does not say how long it is")
        size = 0 if no_body else int(length)
        if len(early) > size:
            raise BadContent("more bytes than an answer has")
        keep = "close" not in found.get("connection", "").lower() and event.http_version == b"1.1"
        return Answer(event.status_code, found, int(length), memoryview(early), stream, size), keep


def refusal(answer: Answer) -> RemoteError | NotFound:
    """What a status other than success means."""
    if answer.status == 404:
        return NotFound("BLOB_UNKNOWN", "it does not have it")
    if answer.status == 416:
        return NotYet("it has not got these pieces")
    if answer.status == 429:
        wait = answer.headers.get("retry-after", "1")
        return RemoteBusy("it is busy", min(float(wait), 60.0) if wait.isascii() and wait.isdigit() else 1.0)
    return Unreachable(f"it answered {answer.status}")
