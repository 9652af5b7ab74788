"""The gate of a peer listener: it finds out which node a request is of, before the handler sees it.

Behind it, ``Request.caller`` is what may be relied on. Without a session only the two requests that make one pass, and
those that the program names (enrolment). On a network that the operator trusts there is no gate, only ``plain``.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final

import trio

from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.http import Handler, Request, Response, Stream
from p2pregistry.serve.turnstile import Turnstile, network_of
from p2pregistry.sessions import (
    MAX_OPENING,
    NONCE_PATH,
    SESSION_LIFE,
    SESSION_PATH,
    Desk,
    Granted,
    Judge,
    Nonces,
    Opening,
    Sessions,
    Used,
    encode_granted,
    encode_nonce,
    read_opening,
    refused,
    token_of,
    unproven,
)
from p2pregistry.store.base import FilePart
from p2pregistry.trust.proof import verify_proof
from p2pregistry.trust.records import ANYONE, Caller, named_peer

#: Requests a second from one node that may last, and from one address without a session; the latter at once: a whole
#: cluster behind one address may start at the same moment.
PER_PEER: Final = 2000.0
PER_STRANGER: Final = 100.0
STRANGERS_AT_ONCE: Final = 5000.0

#: Seconds after which it is looked whether the receiver of an endless answer is still known.
LOOK_AGAIN: Final = 5.0

_LOOPBACK: Final = frozenset({"127.0.0.1", "::/64", ""})
_JSON = ("Content-Type", "application/json")
_NO_STORE = ("Cache-Control", "no-store")


class Gate:
    """A handler around a handler. ``open_paths``: what may be asked without a session, as ANYONE. ``per_peer`` counts
    the requests of nodes, ``per_address`` those without a session, which cost the most."""

    def __init__(
        self,
        handler: Handler,
        desk: Desk,
        *,
        open_paths: Collection[str] = (),
        per_peer: Turnstile | None = None,
        per_address: Turnstile | None = None,
    ) -> None:
        self._handler, self._desk = handler, desk
        self._open_paths = frozenset(open_paths)
        self._per_peer = per_peer or Turnstile(PER_PEER)
        self._per_address = per_address or Turnstile(PER_STRANGER, STRANGERS_AT_ONCE)

    async def __call__(self, request: Request) -> Response:
        """Raises RequestError: UNAUTHORIZED with ``P2P-Session: required`` without a session, TOOMANYREQUESTS."""
        if request.path == NONCE_PATH:
            _only_post(request)
            self._per_address.admit(network_of(request.client))
            return Response(200, [_JSON, _NO_STORE], encode_nonce(await self._desk.nonce()))
        if request.path == SESSION_PATH:
            _only_post(request)
            self._per_address.admit(network_of(request.client))
            granted = await self._desk.open(read_opening(await request.body.read(MAX_OPENING)))
            return Response(200, [_JSON, _NO_STORE], encode_granted(granted))
        token = token_of(request.header("authorization"))
        caller = None if token is None else await self._desk.caller(token)
        if token is not None and caller is not None:
            self._per_peer.admit(caller.peer_id)
            request.recheck = functools.partial(self._desk.caller, token)
        else:
            self._per_address.admit(network_of(request.client))
            if request.path not in self._open_paths:
                raise unproven("a session is needed here")
        request.caller = caller or ANYONE
        response = await self._handler(request)
        if token is not None and isinstance(response.body, Stream) and response.body.endless:
            response.body.chunks = _WhileKnown(response.body.chunks, self._desk, token)
        return response


class _WhileKnown:
    """What is sent without an end goes on only while its receiver is known: it may have been revoked since it asked."""

    def __init__(self, chunks: AsyncIterator[FilePart | bytes] | AsyncIterator[bytes], desk: Desk, token: str) -> None:
        self._chunks, self._desk, self._token = chunks, desk, token
        self._looked = trio.current_time()

    def __aiter__(self) -> _WhileKnown:
        return self

    async def __anext__(self) -> FilePart | bytes:
        item = await anext(self._chunks)
        if trio.current_time() - self._looked >= LOOK_AGAIN:
            self._looked = trio.current_time()
            if await self._desk.caller(self._token) is None:
                raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """See Stream."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()


def _only_post(request: Request) -> None:
    if request.method != "POST":
        raise RequestError("UNSUPPORTED", "only POST", headers={"Allow": "POST"})


def plain(handler: Handler, *, private: bool, per_address: Turnstile | None = None) -> Handler:
    """A handler on a trusted network: there anybody is ANYONE or, where private content may go over it too, may pull
    everything."""
    caller = Caller(everything=private)
    turnstile = per_address or Turnstile(PER_PEER)

    async def handle(request: Request) -> Response:
        if (network := network_of(request.client)) not in _LOOPBACK:  # many nodes of one machine, in a trial
            turnstile.admit(network)
        request.caller = caller
        return await handler(request)

    return handle


class MemoryDesk:
    """The sessions of one process: those of a node. ``own``: its peer id, which a proof must name."""

    def __init__(
        self,
        judge: Judge,
        own: str,
        *,
        clock: Callable[[], float] = trio.current_time,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._judge, self._own = judge, own
        self._clock, self._draw = clock, draw
        self._nonces = Nonces(draw(32), draw)
        self._used = Used()
        self._sessions = Sessions()

    async def nonce(self) -> str:
        """See Desk."""
        return self._nonces.issue(self._clock())

    async def open(self, opening: Opening) -> Granted:
        """See Desk."""
        try:
            peer_id = named_peer(opening.credential)
            nonce = verify_proof(opening.proof, peer_id, self._own)
            if not self._nonces.good(nonce, self._clock()):
                raise unproven("no session: the nonce is not of this server, or too old")
            credential = await self._judge.credential(opening.credential, peer_id)
        except BadContent as err:
            raise refused(err) from err
        # last, so that only members of the swarm take room; no waiting between here and the end
        if not self._used.take(nonce, self._clock()):
            raise unproven("no session: the nonce was used before")
        token = self._draw(32).hex()
        self._sessions.add(token, credential, self._clock())
        return Granted(token, SESSION_LIFE)

    async def caller(self, token: str) -> Caller | None:
        """See Desk."""
        return self._sessions.caller(token, self._clock(), self._judge.check)
