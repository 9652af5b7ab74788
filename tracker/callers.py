"""The trackers' sessions with nodes: any tracker of a database knows a session that another one has given out.

A session is a token that the trackers sign, so nothing is kept of it but a memory of those verified lately. What the
operator has decided since counts at once all the same: revocations and changed grants are read from the database at
most FRESH seconds before they are needed.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Final, Protocol

import msgspec
import trio

from p2pregistry.errors import BadContent, LocalError
from p2pregistry.observe import logger
from p2pregistry.sessions import SESSION_LIFE, Granted, Opening, refused, unproven
from p2pregistry.trust.keys import KeySet, Signer
from p2pregistry.trust.proof import verify_proof
from p2pregistry.trust.records import Caller, Credential, named_peer, verify_credential
from tracker.catalog.nodes import NodeRow, Revoked

SESSION_PURPOSE: Final = b"p2pregistry/v1/session"
#: Seconds for which what the database says of nodes is used again; and for how long where it does not answer.
FRESH: Final = 2.0
STALE: Final = 60.0
#: Sessions of which a process remembers that they are good.
MAX_KNOWN: Final = 20_000
#: The longest list of globs that is put into a session, characters: it has to fit into a header.
_MAX_PULLS: Final = 2000

_log = logger(__name__)


class Keys(Protocol):
    """The part of a Keyring that is used here."""

    @property
    def peer_id(self) -> str: ...
    @property
    def signer(self) -> Signer: ...
    @property
    def keys(self) -> KeySet: ...


class NonceDesk(Protocol):
    """See ``nonces.TrackerNonces``."""

    def issue(self) -> str: ...
    async def take(self, nonce: str) -> bool: ...


class KnownNodes(Protocol):
    """The part of ``catalog.nodes.Nodes`` that is used here."""

    async def node(self, peer_id: str) -> NodeRow | None: ...
    async def revoked(self) -> Revoked: ...
    async def changed(self, within: float) -> dict[str, datetime]: ...


class _Session(msgspec.Struct):
    """Times in unix seconds. ``pulls`` None: too many for a header, so the database is asked."""

    peer_id: str
    swarm: str
    credential: str
    issued: int  # of the credential
    expires: float
    pulls: list[str] | None
    kid: str = ""  # the key that signed the credential


class Standings:
    """What the database says of nodes now, whatever their credentials say. ``lifetime``: seconds that a credential
    lasts, so that a grant which changed longer ago is in every one that is good. ``tick``: seconds of any clock."""

    def __init__(self, nodes: KnownNodes, lifetime: float, tick: Callable[[], float] = trio.current_time) -> None:
        self._nodes, self._lifetime, self._tick = nodes, lifetime, tick
        self._read_at = -math.inf
        self._revoked: frozenset[str] = frozenset()
        self._changed: Mapping[str, float] = {}
        self._rows: OrderedDict[str, tuple[float, tuple[str, ...] | None]] = OrderedDict()
        self._reading = trio.Lock()

    async def pulls(self, peer_id: str, said: tuple[str, ...] | None, issued: float) -> tuple[str, ...] | None:
        """The globs of the private repositories that a node may pull now, where its credential, issued then (unix
        seconds), ``said`` these; None: it may not even ask. Raises LocalError."""
        await self.look()
        if peer_id in self._revoked:
            return None
        changed = self._changed.get(peer_id, 0.0)
        # the database's clock is not the one that wrote "issued"; to ask in vain does no harm
        if said is not None and changed < issued - FRESH:
            return said
        known = self._rows.get(peer_id)
        if known is None or known[0] < changed or said is None:
            node = await self._nodes.node(peer_id)
            known = (changed, None if node is None or node.revoked_at is not None else node.grant.pulls)
            self._rows[peer_id] = known
            while len(self._rows) > MAX_KNOWN:
                self._rows.popitem(last=False)
        return known[1]

    def revoked(self, peer_id: str) -> bool:
        """As it was when somebody last looked."""
        return peer_id in self._revoked

    def regranted(self, peer_id: str, issued: float) -> bool:
        """Whether the node was given something else since its credential was issued; likewise."""
        return self._changed.get(peer_id, 0.0) >= issued

    async def look(self) -> None:
        """Read it again, if that has not been done a moment ago. Raises LocalError."""
        if self._tick() - self._read_at < FRESH:
            return
        async with self._reading:
            began = self._tick()
            if began - self._read_at < FRESH:
                return
            try:
                revoked = await self._nodes.revoked()
                changed = await self._nodes.changed(self._lifetime)
            except LocalError:
                if began - self._read_at < STALE:
                    return
                raise
            self._revoked = revoked.peer_ids
            self._changed = {peer_id: at.timestamp() for peer_id, at in changed.items()}
            self._read_at = began


class TrackerDesk:
    """See ``sessions.Desk``. ``lifetime``: seconds that a credential lasts; ``clock``: unix seconds, which all trackers
    of a database share, roughly; ``tick``: seconds of any clock."""

    def __init__(
        self,
        keyring: Keys,
        nonces: NonceDesk,
        nodes: KnownNodes,
        swarm: str,
        *,
        lifetime: float,
        clock: Callable[[], float] = time.time,
        tick: Callable[[], float] = trio.current_time,
    ) -> None:
        self._keyring, self._nonces, self._swarm, self._clock = keyring, nonces, swarm, clock
        self._standings = Standings(nodes, lifetime, tick)
        self._known: OrderedDict[bytes, _Session] = OrderedDict()
        self._known_by = keyring.keys

    async def run(self) -> None:
        """Look at what the operator has decided, for ever: ``check`` cannot wait for it."""
        while True:
            try:
                await self._standings.look()
            except LocalError as err:
                _log.warning("who has been revoked cannot be read now", error=err.message)
            await trio.sleep(FRESH)

    def regranted(self, peer_id: str, issued: float) -> bool:
        """Whether a node should renew its credential, issued then (unix seconds): it was given something else since."""
        return self._standings.regranted(peer_id, issued)

    async def nonce(self) -> str:
        """See Desk."""
        return self._nonces.issue()

    async def open(self, opening: Opening) -> Granted:
        """See Desk. Raises LocalError too."""
        try:
            peer_id = named_peer(opening.credential)
            nonce = verify_proof(opening.proof, peer_id, self._keyring.peer_id)
            credential = await self.credential(opening.credential, peer_id)
            pulls = await self._standings.pulls(peer_id, credential.pulls, credential.issued)
        except BadContent as err:
            raise refused(err) from err
        if pulls is None:
            raise unproven("no session: this node has been revoked")
        if not await self._nonces.take(nonce):
            raise unproven("no session: the nonce is not of this server, too old, or was used before")
        until = min(self._clock() + SESSION_LIFE, credential.expires)
        listed = list(pulls) if sum(map(len, pulls)) <= _MAX_PULLS else None
        session = _Session(peer_id, credential.swarm, credential.id, credential.issued, until, listed, credential.kid)
        token = self._keyring.signer.sign(msgspec.json.encode(session), SESSION_PURPOSE)
        self._remember(_hash(token), session)
        return Granted(token, until - self._clock())

    async def caller(self, token: str) -> Caller | None:
        """See Desk. Raises LocalError."""
        session = self._session(token)
        if session is None or session.expires <= self._clock() or session.swarm != self._swarm:
            return None
        if session.kid not in self._keyring.keys.keys:  # somebody else may have had the key of its credential
            return None
        said = None if session.pulls is None else tuple(session.pulls)
        pulls = await self._standings.pulls(session.peer_id, said, session.issued)
        return None if pulls is None else Caller(session.peer_id, pulls)

    def _session(self, token: str) -> _Session | None:
        if self._keyring.keys is not self._known_by:  # perhaps without a key that was stolen
            self._known.clear()
            self._known_by = self._keyring.keys
        key = _hash(token)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        try:
            session = msgspec.json.decode(self._keyring.keys.payload(token, SESSION_PURPOSE), type=_Session)
        except (BadContent, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        self._remember(key, session)
        return session

    def _remember(self, key: bytes, session: _Session) -> None:
        self._known[key] = session
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    # -------------------------------------------------------------------------------------- the tracker's own DHT node

    async def credential(self, token: str, peer_id: str) -> Credential:
        """See ``sessions.Judge``: the tracker judges the nodes of its DHT by the same rules."""
        found = verify_credential(self._keyring.keys, token)
        self._check_said(found, peer_id)
        if await self._standings.pulls(peer_id, found.pulls, found.issued) is None:
            raise BadContent("a node's credential has been revoked")
        return found

    def check(self, credential: Credential, peer_id: str) -> None:
        """See ``sessions.Judge``."""
        self._check_said(credential, peer_id)
        if self._standings.revoked(peer_id):
            raise BadContent("a node's credential has been revoked")

    def _check_said(self, credential: Credential, peer_id: str) -> None:
        if credential.peer_id != peer_id:
            raise BadContent("a credential is another node's")
        if credential.swarm != self._swarm:
            raise BadContent("a credential is for another swarm")
        if credential.expires <= self._clock():
            raise BadContent("a node's credential has expired")


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
