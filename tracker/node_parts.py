"""What lets nodes in, put together from settings: enrolment, and what the operator's commands need."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from p2pregistry.errors import LocalError, SettingsError
from p2pregistry.observe import logger
from p2pregistry.trust.records import sign_credential
from tracker.catalog.nodes import Grant, Nodes
from tracker.enrolment import Enrolment
from tracker.keyring import Keyring
from tracker.oidc import IdTokens, Rules, from_file, from_url
from tracker.peer_endpoints import Swarm
from tracker.settings import Oidc, TrackerSettings

#: Seconds between two looks at whose grants have changed.
REFRESH: Final = 3.0
_log = logger(__name__)


def enrolment(
    settings: TrackerSettings,
    keyring: Keyring,
    nodes: Nodes,
    take: Callable[[str], Awaitable[bool]],
    swarm: Callable[[], Swarm],
) -> Enrolment:
    """Raises SettingsError for an [oidc] that cannot be used."""
    oidc = settings.oidc
    return Enrolment(
        nodes,
        own=keyring.peer_id,
        swarm=settings.tracker.swarm,
        lasts=settings.nodes.credential_lifetime,
        take=take,
        sign=lambda credential: sign_credential(keyring.signer, credential),
        swarm_fields=lambda: msgspec.to_builtins(swarm()),
        identities=_identities(oidc),
        granted=Grant(settings.tracker.swarm, oidc.pulls, dict(_pair(text) for text in oidc.labels)),
    )


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


class Regranted:
    """Which nodes were given something else of late, so that they ask for a new credential: known without a question to
    the database, since every node asks every few seconds."""

    def __init__(self, nodes: Nodes, lifetime: float) -> None:
        self._nodes, self._lifetime = nodes, lifetime
        self._changed: dict[str, float] = {}

    def since(self, peer_id: str, issued: float) -> bool:
        """Whether this node's credential, issued then (unix seconds), does not say what it was given since."""
        return self._changed.get(peer_id, 0.0) >= issued

    async def refresh(self) -> None:
        """Raises LocalError."""
        found = await self._nodes.changed(self._lifetime)
        self._changed = {peer_id: at.timestamp() for peer_id, at in found.items()}

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.refresh()
            except LocalError as err:
                _log.warning("what nodes were given cannot be read now", error=err.message)
            await trio.sleep(REFRESH)
