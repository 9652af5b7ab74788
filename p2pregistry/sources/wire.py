"""A small HTTP/1.1 client on trio for bulk bytes.

A general client hands a body over in chunks of its own making, each a new bytes object, and at a gigabyte a second that
is most of the work. Here heads go through h11 and bodies are received straight into the caller's buffer; such answers
must carry Content-Length. Long answers in lines, which are small, go through h11 as a whole.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11
import trio

from p2pregistry.errors import BadContent, NotFound, NotYet, RemoteBusy, RemoteError, Unreachable
from p2pregistry.sessions import MAX_ANSWER
from p2pregistry.sources.chunks import Chunks
from p2pregistry.sources.link import NETWORK_ERRORS, Link, connect
from p2pregistry.sources.speaker import Speaker, wants_session
from p2pregistry.trust.certificate import is_expectation

#: The longest head of an answer, bytes.
MAX_HEAD = 32 << 10
#: The longest body of a refusal, bytes.
MAX_REFUSAL = 64 << 10
#: Idle connections kept to one server.
MAX_IDLE = 8
#: Seconds after which an idle connection is not used again: below the server's own limit.
IDLE = 30.0
#: A host name or address with or without a port; no user, nothing that could break out of a header.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%A-Za-z]{2,60}\])(?::[0-9]{0,5})?")
#: Bytes of a long answer received at once.
_LINES_READ = 64 << 10


@dataclass(slots=True)
class _Connection:
    link: Link
    used: float
    fresh: bool = True


@dataclass(slots=True)
class Answer:
    """An answer whose body has not been read: ``length`` bytes, of which ``early`` came with the head."""

    status: int
    headers: dict[str, str]
    length: int
    early: memoryview
    link: Link
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
                count = await self.link.receive_into(buffer[:want])
            except NETWORK_ERRORS as err:
                raise Unreachable("the connection broke in the middle of an answer") from err
            if count == 0:
                raise Unreachable("the answer was cut short")
        self.left -= count
        if not self.left:
            self.link.settle()
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


class LineCutter:
    """Cuts what comes into lines."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.rest = bytearray()  # of a line that has not ended

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The lines that end in ``data``, without their ends. Raises BadContent if one is longer than the limit."""
        seen = len(self.rest)
        self.rest += data
        lines = []
        start = 0
        while (end := self.rest.find(b"\n", max(start, seen))) >= 0:
            lines.append(bytes(self.rest[start:end]))
            start = end + 1
        del self.rest[:start]
        if len(self.rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise BadContent("a line is longer than it may be")
        return lines


class Lines:
    """The lines of an answer as they come; an async iterator. Made by ``Client.lines``."""

    def __init__(
        self,
        link: Link,
        machine: h11.Connection,
        silence: float,
        limit: int,
        *,
        chunked: bool,
        patience: trio.CancelScope,
    ) -> None:
        self._link, self._machine, self._silence = link, machine, silence
        self._patience = patience  # one scope for all lines: one for each would cost more than the line
        self._cut = LineCutter(limit)
        self._chunks: Chunks | None = None
        if chunked:  # h11 costs more than all else that is done with a line
            self._chunks = Chunks()
            self._early = machine.trailing_data[0]
        self._ready: deque[bytes] = deque()

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> bytes:
        """Raises Unreachable where the answer breaks off or there is no line for too long, BadContent for one that is
        too long."""
        if self._ready:
            await trio.lowlevel.checkpoint()  # one who sends much must not have us alone
            return self._ready.popleft()
        self._patience.deadline = trio.current_time() + self._silence
        try:
            while not self._ready:
                data = await self._more()
                if data is None:
                    if self._cut.rest:
                        raise Unreachable("the answer was cut short")
                    raise StopAsyncIteration
                self._ready += self._cut.feed(data)
        except h11.RemoteProtocolError as err:
            raise Unreachable("the answer was cut short or is not HTTP") from err
        except NETWORK_ERRORS as err:
            raise Unreachable("the connection broke in the middle of an answer") from err
        self._patience.deadline = math.inf
        return self._ready.popleft()

    async def _more(self) -> bytes | None:
        if self._chunks is not None:
            return await self._more_chunks(self._chunks)
        while True:
            event = self._machine.next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if event is not h11.NEED_DATA:
                return None
            self._machine.receive_data(await self._link.receive(_LINES_READ))

    async def _more_chunks(self, chunks: Chunks) -> bytes | None:
        if chunks.done:
            return None
        data, self._early = self._early, b""
        if not data:
            data = await self._link.receive(_LINES_READ)
            if not data:
                raise Unreachable("the answer was cut short")
        return b"".join(chunks.feed(bytes(data)))


class Client:
    """Connections to one server, ``https://host:port`` or ``http://``. Use from one trio run; ``close`` it.

    Over https nothing is sent to anybody but the one with this ``peer_id`` or, where that is not known yet, the one
    whose key has this ``fingerprint``. ``plain``: whether http will do.
    With a ``speaker`` every request shows a session with the server, whose peer id is ``peer_id``.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 3.0,
        head_timeout: float = 10.0,
        peer_id: str = "",
        fingerprint: str = "",
        plain: bool = True,
        speaker: Speaker | None = None,
    ) -> None:
        """Raises Unreachable for a URL that cannot be used."""
        try:
            parts = urlsplit(url)
            port = parts.port  # looked at only now: a peer may tell us any text
        except ValueError as err:
            raise Unreachable(f"{url!r} is not an https:// or http:// address") from err
        secure = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or not parts.hostname or _AUTHORITY.fullmatch(parts.netloc) is None:
            raise Unreachable(f"{url!r} is not an https:// or http:// address")
        if not secure and not plain:
            raise Unreachable(f"{url!r} is in the clear, which is not allowed here")
        self._expected = (fingerprint or peer_id) if secure else None
        if self._expected is not None and not is_expectation(self._expected):
            raise Unreachable(f"it is not known whose key is to be expected at {url!r}")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, port or (443 if secure else 80)
        self._authority = parts.netloc
        self._closed = False
        self._connect_timeout, self._head_timeout = connect_timeout, head_timeout
        self._peer_id, self._speaker = peer_id, speaker
        self._idle: list[_Connection] = []

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        *,
        body: bytes = b"",
        head_timeout: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer whatever its status. Raises Unreachable or BadContent.

        ``head_timeout``: seconds its head may take where that is not what the client was made with. A request may be
        sent twice: the server may have closed a connection just as it was taken up again, or forgotten the session.
        """
        patience = self._head_timeout if head_timeout is None else head_timeout
        stale: str | None = None
        while True:
            shown = await self._shown(headers or {}, stale)
            async with self._once(method, target, shown, body, patience) as answer:
                if stale is not None or self._speaker is None or not wants_session(answer.status, answer.headers):
                    yield answer
                    return
                await answer.read(MAX_REFUSAL)
                stale = shown["Authorization"]

    async def _shown(self, headers: dict[str, str], stale: str | None = None) -> dict[str, str]:
        """With what the server knows this node by. Raises RemoteError."""
        if self._speaker is None:
            return headers
        return headers | {"Authorization": await self._speaker.authorization(self._peer_id, self._post, stale=stale)}

    async def _post(self, target: str, body: bytes) -> bytes:
        """What a session is made with: without one. Raises RemoteError."""
        headers = {"Content-Type": "application/json"}
        try:
            with trio.fail_after(self._head_timeout):
                async with self._once("POST", target, headers, body, self._head_timeout) as answer:
                    data = await answer.read(MAX_ANSWER if answer.status == 200 else MAX_REFUSAL)
        except trio.TooSlowError as err:
            raise Unreachable("no session in time") from err
        if answer.status == 429:
            raise refusal(answer)
        if answer.status != 200:
            raise Unreachable(f"it gives this node no session: it answered {answer.status}")
        return data

    @asynccontextmanager
    async def _once(
        self, method: str, target: str, headers: dict[str, str], body: bytes, patience: float
    ) -> AsyncIterator[Answer]:
        connection = await self._connection()
        keep = False
        request = self._head(method, target, headers, body)
        try:
            try:
                answer, keep = await self._exchange(connection, method, request, patience)
            except Unreachable:
                if connection.fresh:
                    raise
                # the server closed an idle connection just as it was taken up: that says nothing of the server
                connection.link.close()
                connection = await self._open()
                answer, keep = await self._exchange(connection, method, request, patience)
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
                connection.link.close()

    async def get(self, target: str, *, limit: int, headers: dict[str, str] | None = None) -> bytes:
        """The body of a 200. Raises NotFound, RemoteBusy, RemoteError, Unreachable or BadContent."""
        try:
            with trio.fail_after(self._head_timeout):
                async with self.request("GET", target, headers) as answer:
                    body = await answer.read(limit if answer.status == 200 else min(limit, MAX_REFUSAL))
        except trio.TooSlowError as err:
            raise Unreachable("no whole answer in time") from err
        if answer.status != 200:
            raise refusal(answer)
        return body

    def close(self) -> None:
        """Let go of every connection: idle ones now, those in use when their answer ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().link.close()

    async def _connection(self) -> _Connection:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.used < IDLE:
                return connection
            connection.link.close()
        return await self._open()

    async def _open(self) -> _Connection:
        try:
            with trio.fail_after(self._connect_timeout):
                link = await connect(self._host, self._port, self._expected)
        except (OSError, UnicodeError, trio.TooSlowError) as err:  # UnicodeError: a name that IDNA does not take
            raise Unreachable(f"no connection to {self._authority}") from err
        return _Connection(link, trio.current_time())

    @asynccontextmanager
    async def lines(
        self, target: str, headers: dict[str, str], body: bytes, *, silence: float, limit: int
    ) -> AsyncIterator[Lines]:
        """POST, on a connection of its own, and the lines of the answer, which may go on for ever.

        ``silence``: seconds that one line may take; ``limit``: its bytes at most. Raises NotFound, RemoteBusy,
        Unreachable or BadContent where the answer is no success, or has not begun in time.
        """
        shown = await self._shown(headers)
        link = (await self._open()).link
        try:
            event, machine, found = await self._lines_begin(link, target, shown, body)
            if self._speaker is not None and wants_session(event.status_code, found):
                link.close()
                shown = await self._shown(headers, shown["Authorization"])
                link = (await self._open()).link
                event, machine, found = await self._lines_begin(link, target, shown, body)
            if event.status_code != 200:
                raise refusal(Answer(event.status_code, found, 0, memoryview(b""), link, 0))
            chunked = found.get("transfer-encoding", "").strip().lower() == "chunked"
            with trio.CancelScope() as patience:
                yield Lines(link, machine, silence, limit, chunked=chunked, patience=patience)
            if patience.cancelled_caught:
                raise Unreachable("it has fallen silent")
        finally:
            link.close()

    async def _lines_begin(
        self, link: Link, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[h11.Response, h11.Connection, dict[str, str]]:
        request = self._head("POST", target, headers, body)
        event, machine = await self._in_time(link, "POST", request, self._head_timeout)
        return event, machine, _fields(event)

    def _head(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        """A request as it is sent, its body too."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if body or method == "POST":
            lines += f"Content-Length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._authority}\r\nAccept-Encoding: identity\r\n{lines}\r\n"
        return head.encode("ascii") + body

    async def _in_time(
        self, link: Link, method: str, request: bytes, patience: float
    ) -> tuple[h11.Response, h11.Connection]:
        try:
            with trio.fail_after(patience):
                return await _talk(link, method, request)
        except h11.RemoteProtocolError as err:
            raise Unreachable("the answer is not HTTP") from err
        except (*NETWORK_ERRORS, trio.TooSlowError) as err:
            raise Unreachable(f"no answer from {self._authority}") from err

    async def _exchange(
        self, connection: _Connection, method: str, request: bytes, patience: float
    ) -> tuple[Answer, bool]:
        event, machine = await self._in_time(connection.link, method, request, patience)
        found = _fields(event)
        early, _closed = machine.trailing_data
        no_body = method == "HEAD" or event.status_code in (204, 304)
        length = found.get("content-length", "0" if no_body else "")
        if not length.isascii() or not length.isdigit() or "transfer-encoding" in found:
            raise BadContent("an answer does not say how long it is")
        size = 0 if no_body else int(length)
        if len(early) > size:
            raise BadContent("more bytes than an answer has")
        keep = "close" not in found.get("connection", "").lower() and event.http_version == b"1.1"
        return Answer(event.status_code, found, int(length), memoryview(early), connection.link, size), keep


async def _talk(link: Link, method: str, request: bytes) -> tuple[h11.Response, h11.Connection]:
    """Send a request; the head of its answer, and the parser with whatever came behind it."""
    await link.send(request)
    machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    machine.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))  # what it was does not matter here
    machine.send(h11.EndOfMessage())
    while True:
        event = machine.next_event()
        if isinstance(event, h11.Response):
            return event, machine
        if isinstance(event, h11.InformationalResponse):
            continue
        data = await link.receive(16 << 10)
        if not data:
            raise Unreachable("the connection was closed before an answer")
        machine.receive_data(data)


def _fields(event: h11.Response) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}


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
