"""The body of a request as its handler reads it: from the socket, when asked, never more than one piece ahead."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import h11
import trio

from p2pregistry.errors import RequestError

#: Bytes asked of the socket at once; also the largest piece a handler gets.
PIECE = 256 << 10
#: Seconds for the rest of a body that nobody wants.
_DRAIN_TIME = 10.0


class ClientGone(Exception):
    """The client left where nobody is waiting for the reason."""


class Incoming(Protocol):
    """What a body needs of its connection. ``owed_since``: since when the client owes something small, on trio's clock;
    infinite: it does not."""

    owed_since: float

    async def receive(self, most: int) -> bytes: ...
    async def send(self, data: bytes) -> int: ...
    def put_back(self, data: bytes) -> None: ...


class NoBody:
    """Of a request that has none."""

    done = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def read(self, limit: int) -> bytes:  # noqa: ARG002 - nothing is within any limit
        return b""

    def left(self) -> float:
        return 0

    async def drain(self) -> None:
        return None


NO_BODY = NoBody()


class IncomingBody:
    """A body framed by Content-Length or chunks, decoded by the h11 parser that read its head."""

    def __init__(
        self, incoming: Incoming, parser: h11.Connection, headers: Sequence[tuple[str, str]], stall_time: float
    ) -> None:
        self.done = False
        self._incoming = incoming
        self._parser = parser
        self._stall_time = stall_time
        self._broken: RequestError | None = None
        self._continue_sent = False
        length = next((value for name, value in headers if name == "content-length"), None)
        chunked = any(name == "transfer-encoding" for name, _ in headers)
        #: bytes still to come, infinite where only the end will tell
        self._left: float = math.inf if chunked else int(length or 0)
        self._too_long = 0 if chunked else self._left
        if self._left == 0:
            # an empty body is over before anybody asks: the connection is kept, no 100 is sent
            self._finish_empty()

    def _finish_empty(self) -> None:
        event = self._parser.next_event()
        if isinstance(event, h11.EndOfMessage):
            self._end()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._broken is not None:
            raise self._broken
        while not self.done:
            piece = self._decoded()
            if piece:
                return piece
            if not self.done:
                await self._more()
        raise StopAsyncIteration

    async def read(self, limit: int) -> bytes:
        """All of it. Raises RequestError (413) as soon as it is known to be longer than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        if self._too_long <= limit:  # else do not invite the client to send it
            # what is read as a whole is small: a client that lets it drip must not hold a handler for hours
            self._incoming.owed_since = trio.current_time()
            try:
                with trio.move_on_after(self._stall_time) as patience:
                    async for piece in self:
                        size += len(piece)
                        if size > limit:
                            break
                        parts.append(piece)
                    else:
                        return b"".join(parts)
            finally:
                self._incoming.owed_since = math.inf
            if patience.cancelled_caught:
                raise self._break(f"the body was not whole within {self._stall_time:g} seconds", 408)
        raise RequestError("SIZE_INVALID", f"the body is longer than {limit} bytes", status=413)

    def left(self) -> float:
        """Bytes that would have to be read to use the connection again; infinite if that is unknown or hopeless."""
        if self.done:
            return 0
        if self._broken is not None or self._parser.they_are_waiting_for_100_continue:
            return math.inf
        return self._left

    async def drain(self) -> None:
        """Read and forget the rest. Raises ClientGone if it does not come in time."""
        with trio.move_on_after(_DRAIN_TIME):
            try:
                async for _ in self:
                    pass
            except RequestError as err:
                raise ClientGone("before the end of a body nobody wanted") from err
            return
        raise ClientGone("the rest of a body nobody wanted did not come")

    def _decoded(self) -> bytes:
        """What the parser can give without more input."""
        parts: list[bytes | bytearray] = []
        try:
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    parts.append(event.data)
                    self._left -= len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._end()
                    break
                elif event is h11.NEED_DATA:
                    break
                else:
                    raise self._break("the client stopped before the end of the body")
        except h11.RemoteProtocolError as err:
            raise self._break(f"the body is not framed as it should be: {err}") from err
        return b"".join(parts)

    async def _more(self) -> None:
        if self._parser.they_are_waiting_for_100_continue and not self._continue_sent:
            self._continue_sent = True
            await self._incoming.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = b""
        with trio.move_on_after(self._stall_time) as patience:
            data = await self._incoming.receive(PIECE)
        if patience.cancelled_caught:
            raise self._break(f"the client sent nothing for {self._stall_time:g} seconds", 408)
        try:
            # b"" tells the parser of the end; it knows whether that is too early
            self._parser.receive_data(data)
        except h11.RemoteProtocolError as err:
            raise self._break(f"the body is not framed as it should be: {err}") from err
        await trio.lowlevel.checkpoint()  # a fast sender must not starve the others

    def _end(self) -> None:
        self.done = True
        self._left = 0
        self._incoming.put_back(bytes(self._parser.trailing_data[0]))

    def _break(self, message: str, status: int = 400) -> RequestError:
        self._broken = RequestError("SIZE_INVALID", message, status=status)
        return self._broken
