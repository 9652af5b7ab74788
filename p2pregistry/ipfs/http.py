"""Bodies over httpx, bounded and let go of properly."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import trio

from p2pregistry.errors import BadContent, LocalError, NoConnection, Unreachable


class Oversize(BadContent):
    """An answer is longer than it can be."""


def make_client(*, connections: int, ca_file: Path | None = None) -> httpx.AsyncClient:
    """A client that follows no redirects, heeds no proxies of the environment, and asks for bytes as they are. Raises
    LocalError if ``ca_file`` cannot be used."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30)
    return httpx.AsyncClient(
        verify=_trust(ca_file),
        trust_env=False,
        limits=limits,
        headers={"Accept-Encoding": "identity"},
        follow_redirects=False,
    )


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        tls = httpx.create_ssl_context(trust_env=False)
        if ca_file is not None:
            tls.load_verify_locations(ca_file)
    except OSError as err:
        raise LocalError("the certificates in ca_file cannot be used") from err
    return tls


class _Outgoing(httpx.AsyncByteStream):
    """What is sent. httpx would put a generator of its own around it, which nobody closes when a request is cut off."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


def sending(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL | str,
    headers: Mapping[str, str],
    chunks: AsyncIterator[bytes],
    timeout: httpx.Timeout,
    *,
    size: int | None = None,
) -> httpx.Request:
    """A request whose body is made while it is sent, ``size`` bytes if that is known. Whoever makes ``chunks`` closes
    it."""
    length = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
    request = client.build_request(method, url, headers={**headers, **length}, timeout=timeout)
    if size is None:
        request.headers.pop("Content-Length", None)
    request.stream = _Outgoing(chunks)
    return request


@asynccontextmanager
async def walked(iterable: AsyncIterable[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Its iterator, which is closed at the end: a loop that is left does not close a generator."""
    chunks = aiter(iterable)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


class Form:
    """A form of one file (RFC 7578). ``field``: its name, in plain letters."""

    def __init__(self, field: str) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    def size(self, content: int) -> int:
        """Bytes of the form with so many of content."""
        return len(self._head) + content + len(self._tail)

    async def around(self, content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """The form's bytes."""
        yield self._head
        async with walked(content) as chunks:
            async for data in chunks:
                if data:
                    yield data
        yield self._tail


async def send(client: httpx.AsyncClient, request: httpx.Request, whose: str) -> httpx.Response:
    """The answer, its body not read; the caller closes it. Raises Unreachable."""
    try:
        return await client.send(request, stream=True)
    except httpx.HTTPError as err:
        raise broken(err, whose) from err


def broken(err: httpx.HTTPError, whose: str) -> Unreachable:
    """What a failure of a connection to ``whose`` means."""
    if isinstance(err, httpx.PoolTimeout):
        return Unreachable(f"all connections to {whose} are in use")
    kind = NoConnection if isinstance(err, httpx.ConnectError | httpx.ConnectTimeout) else Unreachable
    return kind(f"{whose} cannot be reached ({type(err).__name__})")


async def whole(response: httpx.Response, most: int, whose: str) -> bytes:
    """All of a body of ``most`` bytes. Raises Oversize if it is longer, Unreachable if it breaks off."""
    data = bytearray()
    chunks = response.aiter_raw()
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) > most:
                await cut_short(chunks)
                raise Oversize(f"{whose} answers with more than {most} bytes")
    except httpx.HTTPError as err:
        raise broken(err, whose) from err
    return bytes(data)


async def beginning(response: httpx.Response, most: int, whose: str) -> bytes:
    """``most`` bytes of a body, however long it is. Raises Unreachable if it breaks off before."""
    data = bytearray()
    chunks = response.aiter_raw()
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) >= most:
                await cut_short(chunks)
                break
    except httpx.HTTPError as err:
        raise broken(err, whose) from err
    return bytes(data[:most])


async def cut_short(chunks: AsyncIterator[bytes]) -> None:
    """End a body that is not wanted any more. httpx builds it of generators, one in another, and closes the outermost
    only; a cancel goes through all of them, and closes the connection."""
    with trio.CancelScope() as scope:
        scope.cancel()
        with suppress(httpx.HTTPError):
            async for _ in chunks:  # what is in the buffer comes first
                pass
