"""One connection to a server, plain or TLS, as the client in ``wire`` uses it.

Over TLS nothing is sent before the server has shown the key that is expected of it (``trust.certificate``). Bodies are
decrypted into the caller's buffer. Where a low-water mark says when the program is woken, it counts encrypted bytes: a
record may be half in OpenSSL's hands, so the mark stays a record below what is still to come.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import sys
from typing import Any, Final, Protocol

import trio

from p2pregistry.errors import BadContent, Unreachable
from p2pregistry.trust.certificate import client_context, is_of, key_in

#: What a connection that breaks raises.
NETWORK_ERRORS: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError)
#: Bytes that must be there before the program is woken for them. At 40 kB a second that is twice in the time after
#: which a source counts as silent.
WAKE: Final = 64 << 10
#: Other systems have it too, but do not all heed it.
_LOW_WATER: Final = socket.SO_RCVLOWAT if sys.platform == "linux" else None
#: The most bytes of a TLS record (RFC 8446, 5.1).
_RECORD: Final = 16 << 10


class WrongKey(Unreachable):
    """Somebody else is there. It is not known who, so it is nothing against the one that was wanted."""


class Link(Protocol):
    """The seam. All but ``close`` raise one of NETWORK_ERRORS when the connection breaks."""

    async def send(self, data: bytes) -> None:
        """All of it."""

    async def receive(self, most: int) -> bytes:
        """Some bytes; b"" at the end."""

    async def receive_into(self, buffer: memoryview) -> int:
        """How many came; 0 at the end. ``buffer`` is no longer than what is still to come: it waits for many."""

    def settle(self) -> None:
        """The body is complete: wake for every byte again."""

    def close(self) -> None:
        """At once, from wherever. Idempotent."""


class _LowWater:
    """A socket's mark."""

    def __init__(self, raw: socket.socket | trio.socket.SocketType) -> None:
        self._raw, self._now = raw, 1

    def set(self, count: int) -> None:
        """Wake the program only when so many bytes are there: on a slow link they come in crumbs."""
        if count != self._now and _LOW_WATER is not None:
            self._raw.setsockopt(socket.SOL_SOCKET, _LOW_WATER, count)
            self._now = count


class PlainLink:
    """In the clear."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._mark = _LowWater(stream.socket)

    async def send(self, data: bytes) -> None:
        """See Link."""
        await self._stream.send_all(data)

    async def receive(self, most: int) -> bytes:
        """See Link."""
        return bytes(await self._stream.receive_some(most))

    async def receive_into(self, buffer: memoryview) -> int:
        """See Link."""
        self._mark.set(min(len(buffer), WAKE))
        return await self._stream.socket.recv_into(buffer)

    def settle(self) -> None:
        """See Link."""
        self._mark.set(1)

    def close(self) -> None:
        """See Link."""
        self._stream.socket.close()


class SecureLink:
    """TLS. Made by ``secured``."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._mark = _LowWater(tls)

    async def handshake(self) -> None:
        """Raises one of NETWORK_ERRORS."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)
            else:
                return

    def check(self, expected: str) -> None:
        """Raises BadContent unless it is with whom it should be."""
        if not is_of(key_in(self._tls.getpeercert(binary_form=True) or b""), expected):
            raise BadContent("it shows another key than the one that is expected there")

    async def send(self, data: bytes) -> None:
        """See Link."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.send(view) :]
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)

    async def receive(self, most: int) -> bytes:
        """See Link."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._tls.recv(most)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)

    async def receive_into(self, buffer: memoryview) -> int:
        """See Link."""
        await trio.lowlevel.checkpoint()  # one who sends much must not have us alone
        at = 0
        while at < len(buffer):
            try:
                # given a buffer it says how many bytes came, whatever its type says
                count: Any = self._tls.read(len(buffer) - at, buffer[at:] if at else buffer)
            except ssl.SSLWantReadError:
                if at:
                    break
                self._mark.set(max(1, min(len(buffer) - _RECORD, WAKE)))
                await trio.lowlevel.wait_readable(self._tls)
            else:
                if not count:
                    break
                at += count
        return at

    def settle(self) -> None:
        """See Link."""
        self._mark.set(1)

    def close(self) -> None:
        """See Link. Without the farewell of TLS: lengths say what is whole."""
        if self._tls.fileno() >= 0:
            trio.lowlevel.notify_closing(self._tls)
            self._tls.close()


async def connect(host: str, port: int, expected: str | None) -> Link:
    """A connection; over TLS, and with whom it should be, where somebody is ``expected`` (see ``is_of``).

    Raises OSError, UnicodeError (a name that IDNA does not take), Unreachable for TLS with somebody else.
    """
    stream = await _connect(host, port)
    if expected is None:
        return PlainLink(stream)
    raw = socket.socket(fileno=stream.socket.detach())
    raw.setblocking(False)
    try:
        tls = client_context().wrap_socket(raw, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    except BaseException:
        raw.close()
        raise
    link = SecureLink(tls)
    try:
        await link.handshake()
        link.check(expected)
    except BadContent as err:
        link.close()
        raise WrongKey(f"{host} port {port}: {err.message}") from err
    except ssl.SSLError as err:
        link.close()
        raise Unreachable(f"no TLS with {host} port {port}: {err.reason or err}") from err
    except BaseException:
        link.close()
        raise
    return link


async def _connect(host: str, port: int) -> trio.SocketStream:
    """A numeric address, as peers have it, needs no resolver and no race between addresses, which cost most."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
