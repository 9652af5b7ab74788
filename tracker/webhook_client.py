"""Requests to addresses that an operator gave us, which must not become requests to the inside of his network.

Every address that a name resolves to is looked at when the connection is made, and the connection goes to the very
address that was looked at: a name that resolves to another one a moment later changes nothing. There are no redirects,
no proxies of the environment, and no more than a few bytes of an answer are read.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import httpcore
import trio

from p2pregistry.errors import RemoteError, Unreachable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Bytes of an answer that are read: enough to keep the other side from being cut off in the middle of a short one.
_ANSWER: Final = 64 << 10
#: IPv6 addresses that are IPv4 addresses to somebody on the way: prefix, and the bit at which the IPv4 address begins.
_EMBEDDING: Final = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 96),
    (ipaddress.IPv6Network("::/96"), 96),
    (ipaddress.IPv6Network("64:ff9b::/96"), 96),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("2002::/16"), 16),  # 6to4, RFC 3056
)
#: Lead elsewhere too, and do not tell where: Teredo; NAT64 of a site (RFC 8215), whose IPv4 address may begin at any of
#: several bits (RFC 6052 section 2.2), so that a public one can be shown where a private one is meant.
_OPAQUE: Final = (ipaddress.IPv6Network("2001::/32"), ipaddress.IPv6Network("64:ff9b:1::/48"))


class Refused(RemoteError):
    """The address is one that webhooks may not be sent to."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """From settings. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def private(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether nothing may be sent there: not on the public internet, and in none of the ``allowed`` networks."""
    if any(address.version == network.version and address in network for network in allowed):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return private(inner, allowed)
        if any(address in network for network in _OPAQUE) or address.scope_id is not None or address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    for network, first in _EMBEDDING:
        if address in network:
            return ipaddress.IPv4Address((int(address) >> (96 - first)) & 0xFFFFFFFF)
    return None


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that have been looked at."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed
        # where trio is not installed httpcore has something else under this name
        self._below: httpcore.AsyncNetworkBackend = httpcore.TrioBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        fit = [address for address in addresses if not private(address, self._allowed)]
        if not fit:
            raise Refused(f"{host} is {', '.join(map(str, addresses))}: webhooks.allow_networks does not have it")
        failure: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in fit[:4]:
            try:
                return await self._below.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.NetworkError, httpcore.TimeoutException) as err:
                failure = err
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - the interface's
        timeout: float | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("webhooks are not sent to sockets")

    async def sleep(self, seconds: float) -> None:
        await self._below.sleep(seconds)


async def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as err:  # the latter for a name with an empty part or one of more than 63 characters
        raise Unreachable(f"{host} has no address") from err
    # what getaddrinfo calls an address may have a zone, which ip_address keeps
    return list(dict.fromkeys(ipaddress.ip_address(item[4][0]) for item in found))


class WebhookClient:
    """Sends requests, each on a connection of its own."""

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        timeout: float = 15.0,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        """``timeout``: seconds for all of a request. ``trust``: whose certificates count."""
        self._allowed = allowed
        self._timeout = timeout
        self._trust = trust
        self._context: ssl.SSLContext | None = None

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        """The status of the answer. Raises Refused, Unreachable."""
        if self._context is None:
            self._context = await trio.to_thread.run_sync(self._trust)
        with trio.move_on_after(self._timeout):
            try:
                return await self._post(url, headers, body)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as err:
                raise Unreachable(f"no answer: {str(err) or type(err).__name__}") from err
            except (httpcore.UnsupportedProtocol, ssl.SSLError) as err:
                raise Unreachable(f"no connection: {err}") from err
        raise Unreachable(f"no answer within {self._timeout:g} seconds")

    async def _post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        backend = _Backend(self._allowed)
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._context, network_backend=backend, max_keepalive_connections=0, retries=0
            ) as pool,
            pool.stream("POST", url, headers=list(headers), content=body) as answer,
        ):
            read = 0
            async for chunk in answer.aiter_stream():
                read += len(chunk)
                if read > _ANSWER:
                    break
            return int(answer.status)
