"""Where a node's listeners are, as others see them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import trio

from node.settings import NodeSettings
from p2pregistry.errors import LocalError


def _port(listeners: list[trio.SocketListener]) -> int:
    return int(listeners[0].socket.getsockname()[1])


def urls_of(settings: NodeSettings, listeners: dict[str, list[trio.SocketListener]]) -> dict[str, str]:
    """Base URLs by name. Raises LocalError."""

    def url(name: str) -> str:
        host = listeners[name][0].socket.getsockname()[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{_port(listeners[name])}"

    found = {
        "url": url("pull"),
        "peer_url": settings.peer.advertise
        or _advertised(settings, listeners["peer"], "http" if settings.peer.plain else "https"),
        "metrics_url": url("metrics"),
    }
    if "gateway" in listeners:
        found["gateway_url"] = settings.gateway.advertise or _advertised(settings, listeners["gateway"], "http")
    return found


def _advertised(settings: NodeSettings, listeners: list[trio.SocketListener], scheme: str) -> str:
    """Where others reach these: the address listened on or, if that is any, the one used toward the tracker."""
    host = listeners[0].socket.getsockname()[0]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        to = urlsplit(settings.tracker.url or "http://192.0.2.1")
        try:
            family, kind, _, _, address = socket.getaddrinfo(to.hostname, to.port or 80, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # of a datagram socket: picks the route, sends nothing
                host = probe.getsockname()[0]
        except OSError as err:
            raise LocalError("this machine's address toward the tracker is not known; set peer.advertise") from err
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{_port(listeners)}"
