"""Sessions: a node that has shown once who it is need not show it with every request.

    POST /p2p/v1/nonce                                   -> {"nonce": ...}
    POST /p2p/v1/session {"credential": ..., "proof": ...} -> {"session": ..., "expires_in": seconds}

The credential says which peer id belongs to the swarm; the proof, that the caller is this peer id, made for this server
and for a nonce that this server has given out a moment ago (trust/proof). Every further request then carries
``Authorization: Session <token>``; one without is answered 401 with ``P2P-Session: required``.

A nonce carries its time and a MAC instead of being remembered, so that asking for many takes no memory from anybody;
only those that were used are kept, until they are too old. Here nothing knows a clock or draws by itself.
"""

from __future__ import annotations

import base64
import hmac
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Protocol, TypeVar

import msgspec

from p2pregistry.errors import BadContent, RegistryError, RequestError
from p2pregistry.trust.proof import MAX_PROOF
from p2pregistry.trust.records import MAX_RECORD, Caller, Credential

NONCE_PATH: Final = "/p2p/v1/nonce"
SESSION_PATH: Final = "/p2p/v1/session"
#: What stands before the token in Authorization, and the header that tells a caller to make a session.
SCHEME: Final = "Session "
REQUIRED: Final = ("P2P-Session", "required")
#: The longest body of a request for a session, of its answer, and the longest token, bytes.
MAX_OPENING: Final = MAX_RECORD + MAX_PROOF + 1000
MAX_ANSWER: Final = 16 << 10
MAX_TOKEN: Final = 4096
#: Seconds that a nonce and a session last, and by which the clocks of those who share a nonce key may differ.
NONCE_LIFE: Final = 30.0
SESSION_LIFE: Final = 600.0
DRIFT: Final = 5.0
#: Seconds after which a nonce that was used would not be accepted anyway.
USED_LIFE: Final = NONCE_LIFE + 2 * DRIFT
#: Sessions of all peers and of one, and used nonces, that are kept at most.
MAX_SESSIONS: Final = 10_000
MAX_PER_PEER: Final = 8
MAX_USED: Final = 100_000

_M = TypeVar("_M", bound=msgspec.Struct)
_STAMP: Final = struct.Struct(">d")
_RANDOM: Final = 16
_MAC: Final = 16


class _Nonce(msgspec.Struct):
    nonce: str


class _Opening(msgspec.Struct):
    credential: str
    proof: str


class _Granted(msgspec.Struct):
    session: str
    expires_in: float


@dataclass(frozen=True, slots=True)
class Opening:
    """A request for a session."""

    credential: str
    proof: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A session: ``token`` is good for ``expires_in`` seconds."""

    token: str = field(repr=False)
    expires_in: float


class Desk(Protocol):
    """Who gives out sessions and recognises them: a node for itself, a tracker for every tracker of its database."""

    async def nonce(self) -> str:
        """One to sign. It is good for NONCE_LIFE seconds, and once."""
        ...

    async def open(self, opening: Opening) -> Granted:
        """Raises RequestError: UNAUTHORIZED for who cannot show that it belongs to the swarm."""
        ...

    async def caller(self, token: str) -> Caller | None:
        """Whose session it is; None if it is no good, or not any more."""
        ...


class Judge(Protocol):
    """Who knows which credentials count: the part of Trust that is used here."""

    async def credential(self, token: str, peer_id: str) -> Credential:
        """Raises BadContent unless it is one for this peer id and swarm, has not expired and was not revoked."""
        ...

    def check(self, credential: Credential, peer_id: str) -> None:
        """Look again at one that was accepted. Raises BadContent if it has expired or its node was revoked since."""
        ...


# ----------------------------------------------------------------------------------------------------------- messages


def encode_nonce(nonce: str) -> bytes:
    """The answer to a request for one."""
    return msgspec.json.encode(_Nonce(nonce))


def read_nonce(data: bytes) -> str:
    """Raises BadContent."""
    return _read(data, _Nonce).nonce


def encode_opening(opening: Opening) -> bytes:
    """The request for a session."""
    return msgspec.json.encode(_Opening(opening.credential, opening.proof))


def read_opening(data: bytes) -> Opening:
    """Raises RequestError (UNSUPPORTED, 400)."""
    try:
        raw = _read(data, _Opening)
    except BadContent as err:
        raise RequestError("UNSUPPORTED", "this is no request for a session", status=400) from err
    return Opening(raw.credential, raw.proof)


def encode_granted(granted: Granted) -> bytes:
    """The answer that has the session."""
    return msgspec.json.encode(_Granted(granted.token, granted.expires_in))


def read_granted(data: bytes) -> Granted:
    """Raises BadContent; for a token too that would not fit into a header."""
    raw = _read(data, _Granted)
    token = raw.session
    if not (0 < len(token) <= MAX_TOKEN and token.isascii() and token.isprintable() and " " not in token):
        raise BadContent("an answer about a session has no token that can be sent")
    if not 0 < raw.expires_in <= 24 * 3600:
        raise BadContent("an answer about a session does not say how long it lasts")
    return Granted(token, raw.expires_in)


def _read(data: bytes, kind: type[_M]) -> _M:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise BadContent("a message about a session cannot be read") from err


def token_of(authorization: str | None) -> str | None:
    """The token in an Authorization header, None where there is none of ours."""
    if authorization is None or authorization[: len(SCHEME)].lower() != SCHEME.lower():
        return None
    token = authorization[len(SCHEME) :]
    return token if 0 < len(token) <= MAX_TOKEN else None


def unproven(message: str) -> RequestError:
    """What is answered to who has no session, or gets none: 401."""
    return RequestError("UNAUTHORIZED", message, headers=dict([REQUIRED]))


# ----------------------------------------------------------------------------------------------------- nonces, sessions


class Nonces:
    """Gives out nonces and knows its own again: so does everybody who has the same ``key`` (32 random bytes).

    ``draw`` gives random bytes. Times are seconds of any clock that all who share the key have, roughly.
    """

    def __init__(self, key: bytes, draw: Callable[[int], bytes]) -> None:
        self._key, self._draw = key, draw

    def issue(self, now: float) -> str:
        """A new one."""
        body = _STAMP.pack(now) + self._draw(_RANDOM)
        return base64.urlsafe_b64encode(body + self._mac(body)).decode("ascii").rstrip("=")

    def good(self, nonce: str, now: float) -> bool:
        """Whether it is one of ours and not too old; whether it was used, others know."""
        if len(nonce) > 100 or not nonce.isascii():
            return False
        try:
            data = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
        except ValueError:
            return False
        body, mac = data[:-_MAC], data[-_MAC:]
        if len(body) != _STAMP.size + _RANDOM or not hmac.compare_digest(mac, self._mac(body)):
            return False
        # one text for one nonce: what decodes to the same bytes would else be another to who keeps the used ones
        if base64.urlsafe_b64encode(data).decode("ascii").rstrip("=") != nonce:
            return False
        return -DRIFT <= now - float(_STAMP.unpack_from(body)[0]) <= NONCE_LIFE

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, b"p2pregistry/v1/nonce" + body, "sha256")[:_MAC]


class Used:
    """Nonces that were used, in memory; as many as fit, after which no more sessions are made for a while."""

    def __init__(self, limit: int = MAX_USED) -> None:
        self._limit = limit
        self._until: OrderedDict[str, float] = OrderedDict()

    def take(self, nonce: str, now: float) -> bool:
        """Whether it has not been used before; now it has."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if nonce in self._until or len(self._until) >= self._limit:
            return False
        self._until[nonce] = now + USED_LIFE
        return True


@dataclass(frozen=True, slots=True)
class _Session:
    caller: Caller
    credential: Credential
    until: float


class Sessions:
    """The sessions of a server that keeps them in memory; of one peer and in all, the oldest go first."""

    def __init__(self, *, limit: int = MAX_SESSIONS, per_peer: int = MAX_PER_PEER) -> None:
        self._limit, self._per_peer = limit, per_peer
        # by the hash of the token: how long a look-up takes tells nothing of a token that somebody guesses at
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._of_peer: dict[str, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, token: str, credential: Credential, now: float) -> Caller:
        """A new one; who its caller is."""
        caller = Caller(credential.peer_id, credential.pulls)
        key = _hash(token)
        self._sessions[key] = _Session(caller, credential, now + SESSION_LIFE)
        mine = self._of_peer.setdefault(credential.peer_id, [])
        mine.append(key)
        if len(mine) > self._per_peer:
            self._drop(mine[0])
        if len(self._sessions) > self._limit:
            self._drop(next(iter(self._sessions)))
        return caller

    def caller(self, token: str, now: float, check: Callable[[Credential, str], None]) -> Caller | None:
        """Whose it is. One that is too old, or whose credential does not pass the check any more, is forgotten."""
        key = _hash(token)
        session = self._sessions.get(key)
        if session is None:
            return None
        try:
            if session.until <= now:
                raise BadContent("a session has ended")
            check(session.credential, session.credential.peer_id)
        except BadContent:
            self._drop(key)
            return None
        return session.caller

    def _drop(self, key: bytes) -> None:
        session = self._sessions.pop(key)
        mine = self._of_peer[session.credential.peer_id]
        mine.remove(key)
        if not mine:
            del self._of_peer[session.credential.peer_id]


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def refused(error: RegistryError) -> RequestError:
    """What a caller is told whose credential or proof does not hold: why, which is no secret."""
    return unproven(f"no session: {error.message}")
