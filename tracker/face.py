"""What every request to the registry goes through: who really asks, how often, a number to find it by, a line in the
access log, and headers that keep browsers from doing anything with an answer.

Behind a proxy the other end of a connection is the proxy. What it says of the client (``X-Forwarded-For``,
``X-Forwarded-Proto``) is believed only where the proxy is one that the operator named: anybody can send these headers.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

import trio

from p2pregistry.observe import logger
from p2pregistry.serve.errors_json import SAFE, answer_for
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.serve.turnstile import MAX_KEYS, Turnstile, network_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: A request's number that a proxy has given it.
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_AGENT: Final = 120  # characters

_log = logger("tracker.access")


def client_of(peer: str, forwarded: Iterable[str], trusted: Sequence[Network]) -> str:
    """The address of who asks. ``forwarded``: the values of X-Forwarded-For, in their order.

    Each proxy appends who talked to it, so that from the right everything is true up to the first address that is no
    proxy of ours; what stands left of it is hearsay.
    """
    client = peer
    if not _within(peer, trusted):
        return client
    for text in reversed([part.strip() for value in forwarded for part in value.split(",")]):
        address = _address(text)
        if address is None:
            return client
        client = address
        if not _within(client, trusted):
            return client
    return client


def _address(text: str) -> str | None:
    """With or without a port, and without brackets: ``192.0.2.1``, ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _within(text: str, networks: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False  # a Unix socket has none
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def _protect(response: Response, scheme: str) -> None:
    """Headers that no client of a registry looks at; what a page says for itself stays."""
    said = {name.lower() for name, _ in response.headers}
    response.headers += ((name, value) for name, value in SAFE if name.lower() not in said)
    if scheme == "https" and "strict-transport-security" not in said:
        response.headers.append(("Strict-Transport-Security", "max-age=31536000"))


class Face:
    """A handler around a handler. ``trusted``: networks of proxies. ``access_log``: whether requests are logged.
    ``per_address``, ``per_account``: how many requests may come from one."""

    def __init__(
        self,
        handler: Handler,
        *,
        listener: str,
        trusted: Sequence[Network] = (),
        access_log: bool = True,
        per_address: Turnstile | None = None,
        per_account: Turnstile | None = None,
        number: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._handler = handler
        self._listener = listener
        self._trusted = trusted
        self._access_log = access_log
        self._per_address, self._per_account = per_address, per_account
        # by a hash of what a client shows, whose it was when it was last good: known before it is looked at again
        self._accounts: OrderedDict[bytes, str] = OrderedDict()
        self._number = number

    async def __call__(self, request: Request) -> Response:
        """Answer one request; raises nothing."""
        started = trio.current_time()
        self._look_behind(request)
        try:
            shown = self._admit(request)
            response = await self._handler(request)
            self._learn(shown, request.account)
        except Exception as err:  # noqa: BLE001 - whatever a handler raises, its client gets an answer
            response = answer_for(err, f"{request.method} {request.path} {request.id}")
        response.headers.append(("X-Request-Id", request.id))
        _protect(response, request.scheme)
        if self._access_log:
            self._note(request, response, started)
        return response

    def _admit(self, request: Request) -> bytes | None:
        """A hash of what the request shows of its account. Raises RequestError (TOOMANYREQUESTS)."""
        if self._per_address is not None:
            self._per_address.admit(network_of(request.client))
        authorization = request.header("authorization")
        if self._per_account is None or authorization is None:
            return None
        shown = sha256(authorization.encode("utf-8", "surrogatepass")).digest()
        account = self._accounts.get(shown)
        if account is not None:
            self._accounts.move_to_end(shown)
            self._per_account.admit(account)
        return shown

    def _learn(self, shown: bytes | None, account: str) -> None:
        if shown is None or not account or shown in self._accounts:
            return
        self._accounts[shown] = account
        if len(self._accounts) > MAX_KEYS:
            self._accounts.popitem(last=False)

    def _look_behind(self, request: Request) -> None:
        proxied = _within(request.client, self._trusted)
        given = request.header("x-request-id")
        request.id = given if proxied and given is not None and _ID.fullmatch(given) else self._number()
        if proxied:
            if request.header("x-forwarded-proto") in ("http", "https"):
                request.scheme = request.header("x-forwarded-proto") or request.scheme
            request.client = client_of(request.client, request.header_all("x-forwarded-for"), self._trusted)

    def _note(self, request: Request, response: Response, started: float) -> None:
        """Write the line once the answer is out, with the bytes that went."""

        def write(count: int) -> None:
            # the path only: a query may have a digest of something private, or whatever a client puts there
            _log.info(
                "request",
                id=request.id,
                listener=self._listener,
                client=request.client,
                account=request.account or None,
                method=request.method,
                path=request.path[:500],
                status=response.status,
                bytes=count,
                seconds=round(trio.current_time() - started, 4),
                agent=(request.header("user-agent") or "")[:_AGENT],
            )

        body = response.body
        if isinstance(body, bytes):
            write(0 if request.method == "HEAD" else len(body))
            return
        before = body.sent

        def sent(count: int) -> None:
            if before is not None:
                before(count)
            write(count)

        body.sent = sent
