"""A cable to a server that can be pulled out: for tests of what a program does while another one cannot be reached."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

#: Seconds.
_PATIENCE = 10.0


class Cable:
    """``url`` leads to the server. ``pull``: what is connected breaks, and nobody gets through until ``plug``, which
    may lead to another server."""

    def __init__(self, to: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self.plug(to)
        threading.Thread(target=self._accept, daemon=True).start()

    def plug(self, to: str) -> None:
        """Lead to the server at this URL from now on."""
        where = urlsplit(to)
        self._to: tuple[str, int] | None = (str(where.hostname), where.port or 80)

    def pull(self) -> None:
        """Lead nowhere."""
        self._to = None
        with self._lock:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        self.pull()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with client:
            to = self._to
            if to is None:
                return
            try:
                server = socket.create_connection(to, timeout=_PATIENCE)
            except OSError:
                return
            with server:
                server.settimeout(None)
                with self._lock:
                    self._ends |= {client, server}
                if self._to is not None:
                    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                    back.start()
                    _pump(client, server)
                    back.join()
                with self._lock:
                    self._ends -= {client, server}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cable(to: str) -> Iterator[Cable]:
    """A cable until the end of the block."""
    made = Cable(to)
    try:
        yield made
    finally:
        made.close()
