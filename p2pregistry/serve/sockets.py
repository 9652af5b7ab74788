"""What a connection needs of its socket: the same in the clear and over TLS, without waiting and without a task.

A call that would have to wait raises BlockingIOError and is made again, with the same arguments, once the socket is
readable or writable. Over TLS that is a demand of OpenSSL: a record that has been begun must be finished.

Measured and left: TLS through memory (``ssl.MemoryBIO``) saves system calls and loses as much to copies, and holds
buffers for each connection; mapping a file saves a copy that is not felt, and a file cut short would end the process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from typing import Final, Protocol

import trio

#: Bytes of a file that are read, then encrypted: few enough to stay in the processor's cache.
_PART: Final = 128 << 10
#: The most bytes of a TLS record (RFC 8446, 5.1); OpenSSL gives one at a time.
_RECORD: Final = 16 << 10
_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 41\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS, not plain HTTP.\r\n"
)
#: Buffers kept for the next who sends a file.
_SPARE: Final = 8


class Socket(Protocol):
    """The seam. Failures are OSError; BlockingIOError: again, when readable (``recv``) or writable (the rest)."""

    @property
    def secure(self) -> bool:
        """Whether it is TLS."""

    @property
    def most(self) -> int:
        """Bytes of a file that may be sent in one call; others wait as long as that takes."""

    async def handshake(self) -> None:
        """Before anything else. Raises OSError where the other side does not do its part."""

    def fileno(self) -> int: ...

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Up to so many bytes; b"" at the end."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """How many went out; ``flags`` may be a hint that is not heeded."""

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """How many went out of ``count`` bytes of a file; 0 at its end."""

    def gone(self) -> bool:
        """Whether the client has closed its side. What it may have sent before that is not lost."""

    def finish(self) -> None:
        """Say that nothing more comes; whatever the client still sends can be received."""

    def close(self) -> None: ...


class PlainSocket(socket.socket):
    """In the clear."""

    secure = False
    #: a page that is not in memory makes the call block the whole process, so not too many
    most = 2 << 20

    async def handshake(self) -> None:
        """There is none."""

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """See Socket."""
        return os.sendfile(self.fileno(), fd, offset, count)

    def gone(self) -> bool:
        """See Socket. Go's server sees it the same way."""
        try:
            return not self.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def finish(self) -> None:
        """See Socket."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)


class SecureSocket:
    """TLS over a socket that does not block, which it closes."""

    secure = True
    most = 512 << 10

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        """Raises OSError if the other side has gone already; ``raw`` is closed then."""
        try:
            self._tls = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except BaseException:
            raw.close()
            raise
        self._early = b""  # read to see whether the client has gone
        self._buffer: bytearray | None = None
        self._filled = 0  # bytes of it that have been begun and are not on their way

    async def handshake(self) -> None:
        """See Socket. Who speaks plain HTTP is told so, as by other servers; they find it hard to guess."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)
            except ssl.SSLError as err:
                self._refuse(err)
                raise
            else:
                return

    def _refuse(self, err: ssl.SSLError) -> None:
        with contextlib.suppress(OSError):
            if err.reason == "HTTP_REQUEST":
                socket.socket.send(self._tls, _PLAIN_HTTP)
            socket.socket.recv(self._tls, 64 << 10)  # unread, it would make the end a reset

    def fileno(self) -> int:
        return self._tls.fileno()

    def recv(self, bufsize: int, _flags: int = 0, /) -> bytes:
        """See Socket. As many records as are there, since each call above costs more than a record."""
        parts = [self._early] if self._early else []
        size = len(self._early)
        self._early = b""
        while not parts or size + _RECORD <= bufsize:
            try:
                data = self._tls.recv(min(_RECORD, bufsize))
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
                if not parts:
                    raise BlockingIOError from err
                break
            except ssl.SSLError as err:  # once more next time
                if not parts:
                    raise ConnectionResetError(f"TLS failed: {err.reason}") from err
                break
            if not data:
                break
            parts.append(data)
            size += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def send(self, data: bytes | memoryview, _flags: int = 0, /) -> int:
        """See Socket."""
        try:
            return self._tls.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as err:
            raise BlockingIOError from err
        except ssl.SSLError as err:
            raise ConnectionResetError(f"TLS failed: {err.reason}") from err

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """See Socket."""
        out = 0
        if self._buffer is None:
            self._buffer = _spare.pop() if _spare else bytearray(_PART)
        view = memoryview(self._buffer)
        while out < count:
            if not self._filled:
                self._filled = os.preadv(fd, [view[: count - out]], offset + out)
                if not self._filled:
                    break
            try:
                self.send(view[: self._filled])
            except BlockingIOError:
                if out:
                    return out
                raise
            out += self._filled
            self._filled = 0
        self._give_back()
        return out

    def _give_back(self) -> None:
        if self._buffer is not None and len(_spare) < _SPARE:
            _spare.append(self._buffer)
        self._buffer = None

    def gone(self) -> bool:
        """See Socket. Its end may be a record of TLS or the end of the connection, so it takes reading to tell."""
        if self._early:
            return False
        try:
            self._early = self.recv(_RECORD)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not self._early

    def finish(self) -> None:
        """See Socket."""
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()  # says it, and need not hear it from the other side
        with contextlib.suppress(OSError):
            self._tls.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """See Socket. Whoever has been promised more sees that it was cut off: nothing is said."""
        self._filled = 0
        self._give_back()
        self._tls.close()


_spare: Final[list[bytearray]] = []
