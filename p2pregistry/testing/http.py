"""A server for one test, and a client that may misbehave."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import h11
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.observe import ListenerMetrics
from p2pregistry.serve.http import Handler
from p2pregistry.serve.listen import Limits, open_listeners, serve
from p2pregistry.trust.certificate import client_context, server_context

#: Seconds; only a test that fails takes as long.
PATIENCE = 20.0


Wire = trio.SocketStream | trio.SSLStream[trio.SocketStream]
_tls: ssl.SSLContext | None = None


@contextmanager
def everything_over_tls() -> Iterator[None]:
    """What is ``running`` inside of this speaks TLS."""
    global _tls
    _tls = server_context(Ed25519PrivateKey.generate())
    try:
        yield
    finally:
        _tls = None


class Answer(NamedTuple):
    """A whole response. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def running(
    handler: Handler,
    *,
    limits: Limits | None = None,
    grace: float = 5.0,
    metrics: ListenerMetrics | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Serve ``handler`` on a free loopback port; gives the base URL, without a slash at its end."""
    context = tls or _tls
    asked = None if context is None else lambda: context
    listeners = await open_listeners([("127.0.0.1", 0)])
    host, port = listeners[0].socket.getsockname()
    stop = trio.Event()

    async def server(task_status: Any) -> None:
        await serve(
            handler,
            listeners,
            limits=limits,
            grace=grace,
            stop=stop,
            metrics=metrics,
            tls=asked,
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(server)
        try:
            yield f"{'http' if context is None else 'https'}://{host}:{port}"
        finally:
            stop.set()


async def connect(base_url: str) -> Wire:
    """A bare connection; over TLS with whoever is there, where the URL says so."""
    url = urlsplit(base_url)
    assert url.hostname is not None
    assert url.port is not None
    stream = await trio.open_tcp_stream(url.hostname, url.port)
    if url.scheme == "http":
        return stream
    secure = trio.SSLStream(stream, client_context(), https_compatible=True)
    await secure.do_handshake()
    return secure


class RawClient:
    """One connection on which a test writes bytes and reads responses. ``async with`` closes it."""

    def __init__(self, stream: Wire) -> None:
        self.stream = stream
        self._input = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        """Send these bytes as they are."""
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def receive(self) -> bytes:
        """Some bytes; b"" at the end of the connection, a reset included."""
        with trio.fail_after(PATIENCE):
            try:
                return bytes(await self.stream.receive_some(64 << 10))
            except trio.BrokenResourceError:
                return b""

    async def receive_until(self, end: bytes) -> bytes:
        """Bytes up to and with ``end``."""
        data = self._input
        while end not in data:
            more = await self.receive()
            if not more:
                raise AssertionError(f"the connection ended after {data[-200:]!r}")
            data += more
        at = data.index(end) + len(end)
        self._input = data[at:]
        return data[:at]

    async def response(self, method: str = "GET") -> Answer:
        """The next response to a request of this method. Raises h11.RemoteProtocolError if it is not valid or whole."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._input:  # an empty one would mean the end
            parser.receive_data(self._input)
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.receive())
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise AssertionError(f"no response but {event!r}")
        assert head is not None
        self._input = bytes(parser.trailing_data[0])
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return Answer(head.status_code, headers, bytes(body))

    async def at_end(self) -> bool:
        """True once the server has closed the connection with nothing more to say."""
        return not self._input and not await self.receive()


async def raw_client(base_url: str) -> RawClient:
    """A RawClient on a new connection."""
    return RawClient(await connect(base_url))


async def request(
    base_url: str, method: str, target: str, headers: tuple[tuple[str, str], ...] = (), body: bytes | None = None
) -> Answer:
    """One request on a connection of its own, ``target`` sent as it is."""
    sent = [("Host", urlsplit(base_url).netloc), ("Connection", "close"), *headers]
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    async with await raw_client(base_url) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return await client.response(method)
