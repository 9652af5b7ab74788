"""``/routing/v1/``: where IPFS clients learn who has a block. It is the tracker itself, and nodes that say that they
hold the blob and have a gateway of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from p2pregistry.content.any_cid import is_ours
from p2pregistry.content.gateway_request import read_accept
from p2pregistry.content.providers import (
    JSON,
    LINES,
    MAX_PROVIDERS,
    Provider,
    Question,
    encode,
    is_public,
    multiaddr,
    read_question,
)
from p2pregistry.content.subdag import BlockOf
from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError, RequestError
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.ipfs_gateway import Shelf
from tracker.board import Member, RandRange

#: Seconds for which an answer may be kept; one that names nobody: somebody may come.
KEPT: Final = 60
KEPT_EMPTY: Final = 15
_CORS: Final = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, OPTIONS"),
    ("Access-Control-Allow-Headers", "Accept, Content-Type"),
)


class Gateways(Protocol):
    """What is needed of the announces."""

    async def gateways(self, swarm: str, digest: Digest, limit: int) -> Sequence[Member]:
        """Some of the nodes that hold the blob and have a gateway."""


class IpfsRouting:
    """The handler. ``own`` gives the tracker's peer id and the URL of its registry; ``private``: whether nodes with an
    address that has a meaning in their own network only are named."""

    def __init__(
        self,
        shelf: Shelf,
        gateways: Gateways,
        own: Callable[[], tuple[str, str]],
        *,
        swarm: str,
        private: bool,
        randrange: RandRange,
    ) -> None:
        self._shelf, self._gateways, self._own = shelf, gateways, own
        self._swarm, self._private, self._randrange = swarm, private, randrange

    async def __call__(self, request: Request) -> Response:
        """Answer one request; a refusal is an answer too, for which a browser needs the same headers."""
        try:
            response = await self._answer(request)
        except RegistryError as err:
            response = error_response(err)
        response.headers += _CORS
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(204, [("Allow", "GET, HEAD, OPTIONS"), ("Access-Control-Max-Age", "86400")])
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "nobody tells us of providers here", status=501)
        question = read_question(request.path, request.query)
        kind = next(
            (kind for kind, _, _ in read_accept(request.header_all("accept")) if kind in (JSON, LINES)),
            JSON,
        )
        found = question.select(await self._providers(question))
        body = encode(found, lines=kind == LINES)
        headers = [
            ("Content-Type", kind),
            ("Cache-Control", f"public, max-age={KEPT if found else KEPT_EMPTY}"),
            ("Vary", "Accept"),
        ]
        if request.method == "HEAD":
            return Response(200, [*headers, ("Content-Length", str(len(body)))])
        return Response(200, headers, body)

    async def _providers(self, question: Question) -> list[Provider]:
        """Of a CID that is not for everybody: none, as of one that nobody has heard of."""
        found = await self._shelf.find(question.cid) if is_ours(question.cid) else None
        if found is None:
            return []
        peer_id, url = self._own()
        nodes: Sequence[Member] = ()
        if isinstance(found, BlockOf):  # manifests are not announced
            nodes = await self._gateways.gateways(self._swarm, found.ref.digest, 3 * MAX_PROVIDERS)
        told = [(node.peer_id, node.gateway) for node in nodes if self._private or is_public(node.gateway)]
        del told[MAX_PROVIDERS - 1 :]
        # many clients ask whoever is named first and nobody else while that one answers
        told.insert(self._randrange(0, len(told) + 1), (peer_id, url))
        addresses = [(who, multiaddr(where)) for who, where in told]
        return [Provider(who, address) for who, address in addresses if address is not None]
