"""One connection: requests in, answers out, until either side has had enough.

One task and one cancel scope per connection, none per request. What may not take for ever sets ``deadline``; the
listener's reaper looks at it and cancels the scope. The socket is used without trio's wrapper: a call that need not
wait costs no trip through the scheduler, which is worth a third of the request rate. Fairness is kept by one
checkpoint per request and per large write.

Each request is parsed from ``_buffer``, either by ``wire.plain_head`` or by a fresh h11 connection that lives for
this request alone and hands back what it did not use. h11 is used for reading only.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

import h11
import trio

from p2pregistry.errors import RequestError
from p2pregistry.observe import ListenerMetrics, logger
from p2pregistry.serve import wire
from p2pregistry.serve.body import NO_BODY, ClientGone, IncomingBody, NoBody
from p2pregistry.serve.errors_json import answer_for, error_response
from p2pregistry.serve.http import BlobSlice, Handler, Request, Response, Stream
from p2pregistry.serve.sockets import Socket
from p2pregistry.store.base import FilePart, OpenBytes

_HEAD_READ: Final = 16 << 10
_READ_AT: Final = 1 << 20
#: Bytes asked of a rate limit at a time: few enough that transfers share it evenly.
_PACED: Final = 256 << 10
#: Small bodies travel in the same packet as their head.
_JOIN: Final = 64 << 10
_MORE: Final = getattr(socket, "MSG_MORE", 0)  # Linux: the head waits for the first bytes of the body

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    head_time: float = 10.0  # from the first byte of a request to the end of its head
    handshake_time: float = 10.0  # of TLS
    idle_time: float = 75.0  # between requests
    stall_time: float = 300.0  # a client that takes, or sends, nothing
    head_size: int = 64 << 10
    drain: int = 1 << 20  # of a body nobody read, to keep the connection
    connections: int = 1000
    slow_after: float = 4.0  # a client that is waited for so long makes room for others where there is none
    watch_after: float = 1.0  # a handler that takes longer is stopped when its client is gone
    #: What the kernel takes of an answer before it is on its way; None: as much as it likes, which is megabytes.
    unsent: int | None = None


class _Unfinished(Exception):
    """An answer broke off after its head: the connection must end so that nobody takes it for whole."""


class _Sending:
    """How far a stream has been sent."""

    def __init__(self, stream: Stream, chunks: bool) -> None:
        self.stream = stream
        self.chunked = stream.length is None and chunks
        self.out = 0

    def __str__(self) -> str:
        return f"{self.out} bytes" if self.stream.length is None else f"{self.out} of {self.stream.length} bytes"


class Connection:
    """``run`` it once. ``scope`` may be cancelled by anyone at any time; ``closing`` makes the next answer the last."""

    def __init__(
        self, raw: Socket, client: str, handler: Handler, limits: Limits, metrics: ListenerMetrics | None
    ) -> None:
        self.scope = trio.move_on_at(math.inf)
        self.deadline = math.inf
        self.closing = False
        self.idle = False
        self.endless = False  # what is being sent ends only when one side has had enough
        self.answering_since = math.inf
        self.owed_since = math.inf  # since when it waits for its client to send something small, or to take something
        self.scheme = "https" if raw.secure else "http"
        self._raw = raw
        self._client = client
        self._handler = handler
        self._limits = limits
        self._metrics = metrics
        self._buffer = b""
        self._fields: wire.Fields | None = None
        self._body: IncomingBody | NoBody = NO_BODY

    async def run(self) -> None:
        """Serve requests until the end. Raises nothing but cancellation from outside ``scope``."""
        try:
            with self.scope:
                if self._raw.secure:
                    self.idle = True  # as long as it has asked nothing it is the first to make room for others
                    self.deadline = trio.current_time() + self._limits.handshake_time
                    await self._raw.handshake()
                while await self._one():
                    pass
        except (OSError, ClientGone) as err:
            _log.debug("a connection broke", client=self._client, error=repr(err))
        except _Unfinished as err:
            _log.warning("an answer broke off", client=self._client, reason=str(err), exc_info=err.__cause__)
        except Exception as err:  # noqa: BLE001 - the last line before the listener's nursery: one connection, not all
            _log.error("a connection failed", client=self._client, exc_info=err)
        finally:
            self._raw.close()

    def client_gone(self) -> bool:
        """True if a handler is at work for a client that has closed its side."""
        return self._body.done and self._raw.gone()

    # ------------------------------------------------------------------------------------------------- one request

    async def _one(self) -> bool:
        head = await self._read_head()
        if head is None:
            return False
        started = self.answering_since = trio.current_time()
        response = await self._answer(head)
        body = self._body
        keep = head.keep_alive and not self.closing and body.left() <= self._limits.drain
        try:
            lines = self._lines(head, response, keep)
        except ValueError as err:
            await _release(response)
            response = answer_for(err, f"{head.method} {head.target}")
            lines = self._lines(head, response, keep)
        await self._respond(head, response, lines)
        self.answering_since = math.inf
        if self._metrics is not None:
            self._metrics.done(head.target, response.status, trio.current_time() - started)
        if not keep:
            await self._linger()
            return False
        if not body.done:
            await body.drain()
        return True

    async def _answer(self, head: wire.Head) -> Response:
        try:
            request = Request(
                head.method, head.target, head.headers, self._body, self._client, self.scheme, self.client_gone
            )
            return await self._handler(request)
        except Exception as err:  # noqa: BLE001 - whatever a handler raises, its client gets an answer
            return answer_for(err, f"{head.method} {head.target.partition('?')[0]}")

    def _lines(self, head: wire.Head, response: Response, keep: bool) -> bytes:
        length = len(response.body) if isinstance(response.body, bytes) else response.body.length
        return wire.response_head(
            response.status,
            response.headers,
            length,
            to_head=head.method == "HEAD",
            keep_alive=keep,
            date=_date(int(time.time())),
            chunks=head.chunks,
        )

    # ------------------------------------------------------------------------------------------------------ reading

    async def _read_head(self) -> wire.Head | None:
        """The next request's head, ``_body`` set to go with it; None when there is none or it has been refused."""
        limits = self._limits
        if not self._buffer:
            self.idle = True
            if self.closing:
                return None
            self.deadline = trio.current_time() + limits.idle_time
            self._buffer = await self.receive(_HEAD_READ)
            self.idle = False
        else:
            await trio.lowlevel.checkpoint()  # pipelined requests must not starve other connections
        self.deadline = trio.current_time() + limits.head_time
        while True:
            if self._buffer.startswith(b"\r\n"):  # some clients end a body with one too many (RFC 9112, 2.2)
                self._buffer = self._buffer[2:]
            data = self._buffer
            end = data.find(b"\r\n\r\n", 0, limits.head_size)
            if end >= 0:
                plain = wire.plain_head(data[:end], self._fields)
                if plain is not None:
                    head, self._fields = plain
                    self._buffer = data[end + 4 :]
                    self._body = NO_BODY
                    self.deadline = self.owed_since = math.inf
                    return head
            if not wire.plausible_start(data):
                return await self._refused(400, "this is not HTTP/1.1; TLS is not spoken on this port")
            if wire.END_OF_HEAD.search(data, 0, limits.head_size) is not None:
                self.deadline = self.owed_since = math.inf
                return await self._full_head()
            if len(data) >= limits.head_size:
                return await self._refused(431, f"the head of the request is longer than {limits.head_size} bytes")
            if self.owed_since == math.inf:
                self.owed_since = trio.current_time()
            more = await self.receive(_HEAD_READ)
            if not more:
                return None
            self._buffer = data + more

    async def _full_head(self) -> wire.Head | None:
        """The head in ``_buffer``, which is whole, by h11."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_size)
        try:
            parser.receive_data(self._buffer)
            event = parser.next_event()
        except h11.RemoteProtocolError as err:
            return await self._refused(err.error_status_hint, f"the request cannot be understood: {err}")
        if not isinstance(event, h11.Request):
            return await self._refused(400, "the request cannot be understood")
        headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
        names = {name for name, _ in headers}
        if "transfer-encoding" in names and "content-length" in names:
            # two servers could disagree about where this request ends (RFC 9112, 6.1)
            return await self._refused(400, "both Transfer-Encoding and Content-Length")
        method = event.method.decode("ascii")
        options = {o.strip().lower() for name, value in headers if name == "connection" for o in value.split(",")}
        keep = event.http_version == b"1.1" and "close" not in options and method != "CONNECT"
        self._buffer = b""
        self._body = IncomingBody(self, parser, headers, self._limits.stall_time)
        return wire.Head(method, event.target.decode("ascii"), headers, keep, event.http_version == b"1.1")

    def put_back(self, data: bytes) -> None:
        """What a body's parser read of the next request."""
        self._buffer = data

    async def receive(self, most: int) -> bytes:
        """Up to ``most`` bytes as they come; b"" once the client has closed its side or reset the connection."""
        raw = self._raw
        try:
            while True:
                try:
                    return raw.recv(most)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(raw.fileno())
        except (ConnectionResetError, TimeoutError):
            return b""

    # ------------------------------------------------------------------------------------------------------ writing

    async def _refused(self, status: int, message: str) -> wire.Head | None:
        """Answer something that is no request, and end: there is no head."""
        response = error_response(RequestError("UNSUPPORTED", message, status=status))
        head = wire.Head("GET", "", (), keep_alive=False)
        await self._respond(head, response, self._lines(head, response, keep=False))
        if self._metrics is not None:
            self._metrics.done("", status, 0.0)
        await self._linger()
        return None

    async def _respond(self, head: wire.Head, response: Response, lines: bytes) -> None:
        body = response.body
        if head.method == "HEAD" or response.status in (204, 304):
            await _release(response)
            await self.send(lines)
        elif isinstance(body, bytes):
            if len(body) <= _JOIN:
                await self.send(lines + body)
            else:
                await self.send(lines, _MORE)
                await self.send(body)
        elif isinstance(body, BlobSlice):
            await self._send_slice(body, lines)
        else:
            await self._send_stream(body, lines, head.chunks)

    async def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send all of it; a client that takes nothing for ``stall_time`` loses the connection."""
        raw = self._raw
        try:
            sent = raw.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            view = memoryview(data)
            while sent < len(view):
                await self._writable()
                with contextlib.suppress(BlockingIOError):
                    sent += raw.send(view[sent:], flags)
        return sent

    async def _writable(self) -> None:
        self.owed_since = trio.current_time()
        self.deadline = self.owed_since + self._limits.stall_time
        await trio.lowlevel.wait_writable(self._raw.fileno())
        self.deadline = self.owed_since = math.inf

    async def _send_slice(self, part: BlobSlice, lines: bytes) -> None:
        out = 0
        allowed = part.length if part.pace is None else 0
        try:
            await self.send(lines, _MORE if part.length else 0)
            fd = part.blob.fileno()
            while out < part.length:
                if out == allowed and part.pace is not None:
                    allowed += min(part.length - out, _PACED)
                    await part.pace(allowed - out)
                at, left = part.offset + out, allowed - out
                if fd is not None:
                    count = await self._sendfile(fd, at, left)
                else:
                    count = await self.send(await _read_at(part.blob, at, min(left, _READ_AT)))
                if not count:
                    raise _Unfinished(f"a blob ended {part.length - out} bytes early")
                out += count
        finally:
            part.blob.close()
            if part.sent is not None:
                part.sent(out)

    async def _sendfile(self, fd: int, offset: int, count: int) -> int:
        """Some of it, as much as the socket takes at once."""
        count = min(count, self._raw.most)
        while True:
            try:
                sent = self._raw.send_file(fd, offset, count)
            except BlockingIOError:
                await self._writable()
            else:
                if sent == count:
                    await trio.lowlevel.checkpoint()  # this client is fast; let others have a turn
                return sent

    async def _send_stream(self, stream: Stream, lines: bytes, chunks: bool) -> None:
        sending = _Sending(stream, chunks)
        self.endless = stream.endless
        try:
            await self.send(lines, _MORE if stream.length else 0)
            if not (self.endless and self.closing):
                async for item in stream.chunks:
                    await self._send_item(sending, item)
            if stream.length is not None and sending.out < stream.length:
                raise _Unfinished(f"a stream stopped after {sending}")
            if sending.chunked:
                await self.send(b"0\r\n\r\n")
        except (_Unfinished, OSError):
            raise
        except Exception as err:  # whatever it is, the client must see a broken body
            raise _Unfinished(f"a stream failed after {sending}") from err
        finally:
            self.endless = False
            if stream.sent is not None:
                stream.sent(sending.out)
            await _release_stream(stream)

    async def _send_item(self, sending: _Sending, item: FilePart | bytes) -> None:
        stream = sending.stream
        size = item.length if isinstance(item, FilePart) else len(item)
        if stream.length is not None and sending.out + size > stream.length:
            raise _Unfinished(f"a stream went over its {stream.length} bytes")
        if not size:
            return  # as a chunk it would be the last
        if isinstance(item, FilePart):
            if sending.chunked:
                await self.send(b"%x\r\n" % size, _MORE)
            await self._send_part(sending, item)
            if sending.chunked:
                await self.send(b"\r\n")
            return
        if sending.chunked:
            if stream.pace is not None:
                await stream.pace(size)
            await self.send(b"%x\r\n%b\r\n" % (size, item))
            sending.out += size
        elif stream.pace is None:
            sending.out += await self.send(item)
        else:
            view = memoryview(item)
            for at in range(0, size, _PACED):
                await stream.pace(min(_PACED, size - at))
                sending.out += await self.send(view[at : at + _PACED])

    async def _send_part(self, sending: _Sending, part: FilePart) -> None:
        at, end = part.offset, part.offset + part.length
        pace = sending.stream.pace
        allowed = end if pace is None else at
        while at < end:
            if at == allowed and pace is not None:
                allowed = min(end, at + _PACED)
                await pace(allowed - at)
            count = await self._sendfile(part.fd, at, allowed - at)
            if not count:
                raise _Unfinished(f"a file ended {end - at} bytes early")
            at += count
            sending.out += count

    async def _linger(self) -> None:
        """Close so that the client still gets the answer: closing with unread input would reset it (RFC 9112, 9.6)."""
        self._raw.finish()
        self.deadline = min(self.deadline, trio.current_time() + 2)
        left = 8 << 20
        while left > 0:
            data = await self.receive(256 << 10)
            if not data:
                return
            left -= len(data)
            await trio.lowlevel.checkpoint()


async def _read_at(blob: OpenBytes, offset: int, length: int) -> bytes:
    try:
        return await blob.read_at(offset, length)
    except Exception as err:  # whatever it is, the client must see a broken body
        raise _Unfinished(f"a blob could not be read at {offset}") from err


async def _release(response: Response) -> None:
    """Let go of a body that is not sent."""
    if isinstance(response.body, BlobSlice):
        response.body.blob.close()
    elif isinstance(response.body, Stream):
        await _release_stream(response.body)


async def _release_stream(stream: Stream) -> None:
    close = getattr(stream.chunks, "aclose", None)
    if close is not None:
        await close()


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
