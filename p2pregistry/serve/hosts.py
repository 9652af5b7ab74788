"""Which Host headers a listener on localhost answers.

A browser lets a web page read what comes from the page's own host name, wherever that name points now: a name that its
owner turns to 127.0.0.1 would make every node readable to the page's scripts ("DNS rebinding"). Such a request shows
the name in its Host header, and no name but ``localhost`` and those the operator knows is answered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from p2pregistry.errors import RequestError
from p2pregistry.serve.http import Request

#: Accepted headers that are remembered, so that each is taken apart once.
_REMEMBERED: Final = 100


class Hosts:
    """``listening``: the addresses listened on; ``names``: other names and addresses that are meant for us. An address
    is no name that could be turned: of a listener on all addresses any will do."""

    def __init__(self, listening: Iterable[str], names: Iterable[str] = ()) -> None:
        self._known = {"localhost", *(name.lower().rstrip(".") for name in (*listening, *names))}
        self._any_address = not self._known.isdisjoint(("0.0.0.0", "::"))  # noqa: S104 - compared, not bound
        #: Headers that need no second look. An HTTP/1.0 client need not send one, and no browser is one.
        self.good: set[str | None] = {None}

    def check(self, request: Request) -> None:
        """Raises RequestError with status 421 where the request is for somebody else."""
        host = request.header("host")
        if host in self.good:
            return
        if host is None or not self._accepts(host):
            raise RequestError(
                "UNSUPPORTED",
                "this node is not that host; the setting pull.hosts names others",
                status=421,
                detail={"host": (host or "")[:255]},
            )
        if len(self.good) < _REMEMBERED:
            self.good.add(host)

    def _accepts(self, host: str) -> bool:
        name = host_of(host)
        if name in self._known:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback or str(address) in self._known


def host_of(header: str) -> str:
    """The host in a Host header, without port and brackets, in lower case; "" for what is no such header."""
    host, colon, port = header.rpartition(":")
    if not colon or "]" in port:
        host, port = header, ""
    if not (port == "" or (port.isascii() and port.isdigit())):
        return ""
    if host.startswith("["):
        return host[1:-1].lower() if host.endswith("]") else ""
    return "" if ":" in host else host.lower().removesuffix(".")
