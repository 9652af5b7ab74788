"""The HTTP server: listeners, their connections, and how they end.

Order of the end: accepting stops and the listening sockets close; idle connections close; answers under way have
``grace`` seconds, endless ones none; what is left is cancelled. It begins when ``stop`` is set or when the task in
``serve`` is cancelled - then ``serve`` still takes up to ``grace`` seconds before the cancellation goes on.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from p2pregistry.errors import LocalError
from p2pregistry.observe import ListenerMetrics, logger
from p2pregistry.serve.connection import Connection, Limits
from p2pregistry.serve.http import Handler
from p2pregistry.serve.sockets import PlainSocket, SecureSocket

__all__ = ["Limits", "open_listeners", "open_unix_listener", "serve"]

_BACKLOG: Final = 1024
#: Tries to find one port that is free on every address.
_PORT_TRIES: Final = 50
#: Out of something that other connections will give back.
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LINGER_ACCEPT: Final = 0.1  # seconds before another try then
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS

_log = logger(__name__)


# -------------------------------------------------------------------------------------------------------- listeners


async def open_listeners(host_ports: Sequence[tuple[str, int]]) -> list[trio.SocketListener]:
    """Listen on exactly these numeric addresses. Entries with port 0 share one free port, on different addresses.

    An IPv6 address on a machine without IPv6 is left out with a line in the log, as long as any other is there.
    Raises LocalError naming address and port where one is taken or not this machine's.
    """
    for attempt in range(_PORT_TRIES):
        opened: list[socket.socket] = []
        free = 0
        try:
            for host, port in host_ports:
                sock = _bind(host, port or free, optional=len(host_ports) > 1)
                if sock is None:
                    continue
                opened.append(sock)
                free = free or (0 if port else sock.getsockname()[1])
            if not opened:
                raise LocalError(f"none of the addresses {', '.join(host for host, _ in host_ports)} exists here")
            return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in opened]
        except BaseException as err:
            for sock in opened:
                sock.close()
            chosen = isinstance(err, _Taken) and err.port == free and (err.host, 0) in host_ports
            if not chosen or attempt == _PORT_TRIES - 1:
                raise
        await trio.lowlevel.checkpoint()
    raise AssertionError("unreachable")


class _Taken(LocalError):
    """Somebody else listens there."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is taken by another program")
        self.host = host
        self.port = port


def _bind(host: str, port: int, *, optional: bool) -> socket.socket | None:
    """A listening socket; None for an IPv6 address that does not exist here and is ``optional``."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
    except (ValueError, OSError) as err:
        raise LocalError(f"{host!r} is not an address to listen on; it takes an IPv4 or IPv6 address") from err
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # exactly this address: [::] beside 0.0.0.0, and [::1] is not 127.0.0.1
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as err:
        if sock is not None:
            sock.close()
        if optional and family == socket.AF_INET6 and err.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            _log.info("this machine has no such address; not listening on it", address=host)
            return None
        if err.errno == errno.EADDRINUSE:
            raise _Taken(host, port) from err
        raise LocalError(f"cannot listen on {host} port {port}: {err.strerror}") from err
    return sock


def open_unix_listener(path: Path) -> trio.SocketListener:
    """Listen on a unix socket that only this user may open (mode 0600). ``serve`` removes it at the end.

    A socket left behind by a dead process is replaced. Raises LocalError if a live one listens there, if the path is
    something else, or cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # the mode must be right from the first moment; nothing else runs in between
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
    except OSError as err:
        sock.close()
        raise LocalError(f"cannot listen on {path}: {err.strerror or err}") from err
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise LocalError(f"another program listens on {path}")


# ---------------------------------------------------------------------------------------------------------- serving


async def serve(
    handler: Handler,
    listeners: Sequence[trio.SocketListener],
    *,
    limits: Limits | None = None,
    grace: float = 5.0,
    stop: trio.Event | None = None,
    metrics: ListenerMetrics | None = None,
    tls: Callable[[], ssl.SSLContext] | None = None,
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests on ``listeners`` until ``stop`` is set or the caller is cancelled; closes them in any case.

    ``grace``: seconds that answers under way may take after that. A handler is cancelled when its client has closed
    its side of the connection, within about ``limits.watch_after`` seconds. ``tls`` is asked for each new connection.
    """
    server = _Server(handler, limits or Limits(), metrics, tls)
    try:
        async with trio.open_nursery() as nursery:
            connections: trio.Nursery = await nursery.start(server.hold_connections)
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(server.accept, listener.socket, connections)
                    task_status.started()
                    if stop is not None:
                        await stop.wait()
                        accepting.cancel_scope.cancel()
            finally:
                _close(listeners)
                server.end(grace)
    finally:
        _close(listeners)


def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        sock = listener.socket
        if sock.fileno() < 0:
            continue
        path = sock.getsockname() if sock.family == socket.AF_UNIX else None
        sock.close()
        if path:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()


class _Server:
    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        metrics: ListenerMetrics | None,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._metrics = metrics
        self._tls = tls
        self._connections: set[Connection] = set()
        self._changed = trio.Event()  # set when a connection ends
        self._ended = trio.Event()
        self._shelter = trio.move_on_at(math.inf)
        self._shelter.shield = True

    async def hold_connections(self, task_status: Any) -> None:
        """The nursery of the connections, out of reach of the caller's cancellation until ``grace`` is over."""
        with self._shelter:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reap)
                task_status.started(nursery)
                await self._ended.wait()
                while self._connections:
                    await self._connection_ends()
                nursery.cancel_scope.cancel()  # the reaper

    def end(self, grace: float) -> None:
        """No new requests; ``grace`` seconds for those under way."""
        self._shelter.deadline = trio.current_time() + grace
        for connection in self._connections:
            connection.closing = True
            if connection.idle or connection.endless:
                connection.scope.cancel()
        self._ended.set()

    async def accept(self, sock: trio.socket.SocketType, connections: trio.Nursery) -> None:
        """Take connections as they come."""
        while True:
            try:
                taken, address = await sock.accept()
            except OSError as err:
                if err.errno in _SCARCE:
                    _log.warning("no connection can be accepted", reason=err.strerror)
                    await trio.sleep(_LINGER_ACCEPT)
                elif err.errno == errno.EBADF:
                    raise LocalError("a listening socket was closed under its server") from err
                continue  # else: the connection was reset before it was taken
            with taken:  # until it is detached
                while len(self._connections) >= self._limits.connections:
                    await self._make_room()
                raw = PlainSocket(fileno=taken.detach())
            raw.setblocking(False)
            client = ""
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._limits.unsent is not None and _NOTSENT_LOWAT is not None:
                    raw.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, self._limits.unsent)
                if _USER_TIMEOUT is not None:  # a machine that lost its power closes nothing
                    raw.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(self._limits.stall_time * 1000))
                client = str(address[0])
            try:
                wrapped = raw if self._tls is None else SecureSocket(raw, self._tls())
            except OSError:
                continue  # it has gone
            connection = Connection(wrapped, client, self._handler, self._limits, self._metrics)
            self._connections.add(connection)
            connections.start_soon(self._run, connection)

    async def _run(self, connection: Connection) -> None:
        if self._metrics is not None:
            self._metrics.opened()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._changed.set()
            if self._metrics is not None:
                self._metrics.closed()

    async def _make_room(self) -> None:
        """End the connection that has been idle longest; where none is, the one whose client keeps us waiting longest;
        else wait for one to end. So who is slow on purpose, on however many, keeps nobody else out."""
        idle = [connection for connection in self._connections if connection.idle]
        late = trio.current_time() - self._limits.slow_after
        slow = [connection for connection in self._connections if connection.owed_since <= late]
        if idle:
            min(idle, key=lambda connection: connection.deadline).scope.cancel()
        elif slow:
            min(slow, key=lambda connection: connection.owed_since).scope.cancel()
        with trio.move_on_after(self._limits.slow_after / 4):  # others become slow meanwhile
            await self._connection_ends()

    async def _connection_ends(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _reap(self) -> None:
        """Cancel connections past their deadline, and handlers whose client is gone."""
        limits = self._limits
        tick = min(
            1.0,
            limits.handshake_time / 4,
            limits.head_time / 4,
            limits.idle_time / 4,
            limits.stall_time / 4,
            limits.watch_after / 2,
        )
        while True:
            await trio.sleep(tick)
            now = trio.current_time()
            for connection in list(self._connections):
                late = connection.deadline <= now
                if late or (now - connection.answering_since >= limits.watch_after and connection.client_gone()):
                    connection.scope.cancel()
