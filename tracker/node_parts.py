"""What lets nodes in, put together from settings: enrolment, and what the operator's commands need."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from p2pregistry.errors import SettingsError
from p2pregistry.serve.gate import Gate, plain
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.trust.records import Credential, sign_credential
from tracker.callers import TrackerDesk
from tracker.catalog.nodes import Grant
from tracker.catalog.nodes_postgres import PostgresNodes
from tracker.db import Db
from tracker.enrolment import OPEN_PATHS, Enrolment
from tracker.keyring import Keyring
from tracker.node_admin import Facts
from tracker.nonces import TrackerNonces
from tracker.oidc import IdTokens, Rules, from_file, from_url
from tracker.peer_endpoints import Swarm
from tracker.settings import Oidc, TrackerSettings

#: What every node asks for every few seconds. It needs no session: who has none, because a key was stolen or it was
#: away, learns there what it must know to get one, and joining tells anybody the same.
SWARM_PATH: Final = "/p2p/v1/swarm"
#: Seconds that the credential of the tracker's own DHT node lasts.
OWN_LIFE: Final = 86400.0


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _identities(oidc: Oidc) -> IdTokens | None:
    if oidc.issuer is None:
        return None
    rules = Rules(oidc.issuer, oidc.audience, oidc.subjects)
    if oidc.jwks_file is not None:
        return IdTokens(rules, from_file(Path(oidc.jwks_file)), time.time)
    assert oidc.jwks_url is not None
    try:
        context = ssl.create_default_context(cafile=oidc.ca_file)
    except (OSError, ssl.SSLError) as err:
        raise SettingsError(f"$.oidc.ca_file: {oidc.ca_file} cannot be used") from err
    token_file = None if oidc.token_file is None else Path(oidc.token_file)
    return IdTokens(rules, from_url(oidc.jwks_url, context, token_file), time.time)


class PeerFace:
    """The handler of the peer listener behind its gate: lets nodes in, tells each whether it should renew its
    credential, and leaves all else to ``handler``."""

    def __init__(
        self, enrolment: Handler, handler: Handler, swarm: Callable[[], Swarm], regranted: Callable[[str, float], bool]
    ) -> None:
        self._enrolment, self._handler, self._swarm, self._regranted = enrolment, handler, swarm, regranted

    async def __call__(self, request: Request) -> Response:
        """Raises RegistryError."""
        if request.path in OPEN_PATHS:
            return await self._enrolment(request)
        node = request.param("node")
        if request.path == SWARM_PATH and node is not None and request.method in ("GET", "HEAD"):
            swarm = msgspec.to_builtins(self._swarm())
            swarm["renew"] = self._regranted(node, _seconds(request.param("issued")))
            return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(swarm))
        return await self._handler(request)


def _seconds(text: str | None) -> float:
    """A time in a query; 0 for what is none."""
    return float(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 16 else 0.0


class NodeParts:
    """What knows nodes. ``desk`` is None where anybody is let in.

    Raises SettingsError for an [oidc] that cannot be used.
    """

    def __init__(self, settings: TrackerSettings, keyring: Keyring, db: Db) -> None:
        self._settings, self._keyring = settings, keyring
        self.nodes = PostgresNodes(db)
        self._nonces = TrackerNonces(db, keyring)
        self._identities = _identities(settings.oidc)
        self._own: tuple[str, float] = ("", 0.0)
        self._token = ""
        self.desk: TrackerDesk | None = None
        if not settings.peer.plain:
            lifetime, swarm = settings.nodes.credential_lifetime, settings.tracker.swarm
            self.desk = TrackerDesk(keyring, self._nonces, self.nodes, swarm, lifetime=lifetime)

    def gate(self, handler: Handler, swarm: Callable[[], Swarm]) -> Handler:
        """The handler of the peer listener, once it is known who asks."""
        if self.desk is None:
            return plain(handler, private=self._settings.peer.plain_private)
        oidc = self._settings.oidc
        enrolment = Enrolment(
            self.nodes,
            own=self._keyring.peer_id,
            swarm=self._settings.tracker.swarm,
            lasts=self._settings.nodes.credential_lifetime,
            take=self._nonces.take,
            sign=lambda credential: sign_credential(self._keyring.signer, credential),
            swarm_fields=lambda: msgspec.to_builtins(swarm()),
            identities=self._identities,
            granted=Grant(self._settings.tracker.swarm, oidc.pulls, dict(_pair(text) for text in oidc.labels)),
        )
        face = PeerFace(enrolment, handler, swarm, self.desk.regranted)
        return Gate(face, self.desk, open_paths=(*OPEN_PATHS, SWARM_PATH))

    def own_credential(self, peer_id: str, now: float) -> str:
        """With which the tracker's own DHT node, which has this peer id, takes part; unix seconds."""
        kid, made = self._own
        if kid != self._keyring.signer.kid or not 0 <= now - made < OWN_LIFE / 2:
            issued = int(now)
            own = Credential(peer_id, self._settings.tracker.swarm, "tracker", issued, issued + int(OWN_LIFE))
            self._token = sign_credential(self._keyring.signer, own)
            self._own = (self._keyring.signer.kid, now)
        return self._token

    def facts(self, listens: str) -> Facts:
        """For the operator's commands. ``listens``: the URL of the peer listener as it is bound."""
        stated, ring = self._settings.peer, self._keyring
        url, swarm = stated.public_url or listens, self._settings.tracker.swarm
        return Facts(url, ring.peer_id, ring.root_public, swarm, stated.plain)
