"""How a node gets its credential: by a join token, by who it is, or by being known already.

    GET  /p2p/v1/enrol       -> {"peer_id": the tracker's, and what GET /p2p/v1/swarm answers}
    POST /p2p/v1/enrol       {"peer_id", "nonce", "proof", "secret" or "id_token"} -> {"credential", and the same}
    POST /p2p/v1/credential  {"peer_id", "nonce", "proof"}                         -> {"credential"}

The first tells the node, before it sends any secret, whose proof is wanted and whether the keys here are signed by the
root key that it was told.

The proof (trust/proof) shows that the peer id is the caller's, whatever else it brings: a stolen secret gives nobody
another one's identity, and what was overheard is of no use a second time. A node that comes back after a while needs no
credential that is still good, only its key, and that nobody has revoked it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.http import Request, Response
from p2pregistry.trust.proof import verify_proof
from p2pregistry.trust.records import Credential
from tracker.catalog.nodes import Grant, NodeRow, Nodes, refused
from tracker.catalog.trail import By

ENROL_PATH: Final = "/p2p/v1/enrol"
CREDENTIAL_PATH: Final = "/p2p/v1/credential"
#: What a node may ask without a session.
OPEN_PATHS: Final = (ENROL_PATH, CREDENTIAL_PATH)
#: Bytes of the largest request.
MAX_ENROL: Final = 32 << 10
_JSON: Final = ("Content-Type", "application/json")
_NO_STORE: Final = ("Cache-Control", "no-store")


class Asked(msgspec.Struct, frozen=True):
    """A request to join or to renew."""

    peer_id: str
    nonce: str
    proof: str
    secret: str | None = None
    id_token: str | None = None


class Subjects(Protocol):
    """Who knows whose identity token one is (``oidc.IdTokens``)."""

    async def subject(self, token: str) -> str:
        """Raises RequestError (DENIED) or RemoteError."""
        ...


def read_asked(data: bytes) -> Asked:
    """Raises RequestError (UNSUPPORTED, 400)."""
    try:
        return msgspec.json.decode(data, type=Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # not "from": the error may quote a secret
        raise RequestError("UNSUPPORTED", "this is no request to join", status=400) from None


class Enrolment:
    """The decisions, over the catalog of nodes.

    ``own``: the tracker's peer id; ``take`` says of a nonce whether it is one of ours, young, and not used before, and
    then uses it. ``identities`` and ``granted`` are for nodes that come with an identity token: None, none are let in.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        own: str,
        swarm: str,
        lasts: float,
        take: Callable[[str], Awaitable[bool]],
        sign: Callable[[Credential], str],
        swarm_fields: Callable[[], dict[str, object]],
        identities: Subjects | None = None,
        granted: Grant | None = None,
    ) -> None:
        self._nodes, self._own, self._swarm, self._lasts = nodes, own, swarm, lasts
        self._take, self._sign, self._swarm_fields = take, sign, swarm_fields
        self._identities, self._granted = identities, granted

    async def __call__(self, request: Request) -> Response:
        """Answer one of OPEN_PATHS. Raises RegistryError."""
        if request.method == "GET" and request.path == ENROL_PATH:
            return _answer({**self._swarm_fields(), "peer_id": self._own})
        if request.method != "POST":
            raise RequestError("UNSUPPORTED", "not with this method", headers={"Allow": "POST"})
        asked = read_asked(await request.body.read(MAX_ENROL))
        if request.path == CREDENTIAL_PATH:
            return _answer({"credential": await self.renew(asked)})
        by = By(f"node:{asked.peer_id[:64]}", request.client, request.id)
        credential = await self.enrol(asked, by)
        return _answer({**self._swarm_fields(), "peer_id": self._own, "credential": credential})

    async def enrol(self, asked: Asked, by: By) -> str:
        """The credential of a node that joins. Raises RequestError (DENIED), or RemoteError where the issuer of its
        identity token cannot be asked."""
        if (asked.secret is None) == (asked.id_token is None):
            raise RequestError("UNSUPPORTED", "one of secret and id_token is wanted", status=400)
        await self._check_proof(asked)
        if asked.secret is not None:
            node = await self._nodes.join(_hash(asked.secret), asked.peer_id, self._swarm, self._lasts, by)
        else:
            assert asked.id_token is not None
            if self._identities is None or self._granted is None:
                raise refused("this tracker takes no identity tokens; see its section [oidc]")
            subject = await self._identities.subject(asked.id_token)
            node = await self._nodes.enrol(self._granted, subject, asked.peer_id, self._lasts, by)
        return self._credential(node)

    async def renew(self, asked: Asked) -> str:
        """The next credential of a node that is known. Raises RequestError (DENIED)."""
        await self._check_proof(asked)
        return self._credential(await self._nodes.renew(asked.peer_id, self._swarm, self._lasts))

    async def _check_proof(self, asked: Asked) -> None:
        try:
            nonce = verify_proof(asked.proof, asked.peer_id, self._own)
        except BadContent as err:
            raise refused(err.message) from err
        if nonce != asked.nonce or not await self._take(nonce):
            raise refused("the proof is too old, or was used before; ask for another nonce")

    def _credential(self, node: NodeRow) -> str:
        grant, issued = node.grant, int(node.renewed_at.timestamp())
        name = f"{node.peer_id[-8:]}-{issued}"
        expires = int(node.expires_at.timestamp())
        return self._sign(Credential(node.peer_id, grant.swarm, name, issued, expires, grant.pulls, grant.labels))


def _hash(secret: str) -> bytes:
    """As join tokens are kept: their secrets are 256 random bits, of which a plain hash tells nothing."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _answer(document: dict[str, object]) -> Response:
    return Response(200, [_JSON, _NO_STORE], msgspec.json.encode(document))
