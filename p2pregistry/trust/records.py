"""What the tracker signs of things that change: tags, repositories, nodes.

A record of a tag or a repository does not expire. It carries a *stamp*, the epoch and number of the change it tells of
(docs/protocol.md), and the time at which the tracker said so; of two records about the same thing the one with the
higher stamp holds, and how old is too old is the reader's rule. A credential does expire.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.globs import check_glob, matches_any
from p2pregistry.oci.reference import check_name, check_tag
from p2pregistry.trust.keys import KeySet, Signer, kid_of

TAG_PURPOSE: Final = b"p2pregistry/v1/tag"
REPOSITORY_PURPOSE: Final = b"p2pregistry/v1/repository"
CREDENTIAL_PURPOSE: Final = b"p2pregistry/v1/node"
REVOCATIONS_PURPOSE: Final = b"p2pregistry/v1/revocations"

#: The longest record that is looked at, and the longest list of revocations, bytes.
MAX_RECORD: Final = 64 << 10
MAX_REVOCATIONS: Final = 4 << 20
#: Seconds by which clocks of machines may differ where nothing better is known.
SKEW: Final = 3600.0

_SIGNATURE: Final = 64  # bytes, behind the payload of a v4.public token

_R = TypeVar("_R", bound=msgspec.Struct)


class Stamp(NamedTuple):
    """Which of two records is newer: numbers follow the order of commits; a database that was restored from a backup
    begins a higher epoch."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class TagClaim:
    """Where a tag points; ``digest`` None: nowhere any more. ``issued``: unix seconds at which the tracker said so."""

    repository: str
    tag: str
    digest: Digest | None
    stamp: Stamp
    issued: int


@dataclass(frozen=True, slots=True)
class RepositoryClaim:
    """Whether a repository is private. One that is gone is private to everybody."""

    repository: str
    private: bool
    stamp: Stamp
    issued: int


@dataclass(frozen=True, slots=True)
class Credential:
    """That a peer id belongs to a node of this swarm, and which private repositories (globs) it may pull; times in
    unix seconds. ``kid``: the key that signed it, where it was read from a token; it goes with that key."""

    peer_id: str
    swarm: str
    id: str
    issued: int
    expires: int
    pulls: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    kid: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Revocations:
    """Peer ids whose credentials do not count any more, whatever they say; the list with the highest number holds."""

    number: int
    issued: int
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for content: a node with the globs of the private repositories it may pull, or anybody (``ANYONE``).
    ``everything``: on a network that the operator declared trusted for private content too."""

    peer_id: str = ""
    pulls: tuple[str, ...] = ()
    everything: bool = False

    def may_pull(self, repository: str, private: bool) -> bool:
        """Whether content of this repository may go to it."""
        return not private or self.everything or matches_any(self.pulls, repository)


#: A caller of whom nothing is known.
ANYONE: Final = Caller()


class _Tag(msgspec.Struct):
    repository: str
    tag: str
    digest: str | None
    epoch: int
    number: int
    issued: int


class _Repository(msgspec.Struct):
    repository: str
    private: bool
    epoch: int
    number: int
    issued: int


class _Credential(msgspec.Struct):
    peer_id: str
    swarm: str
    id: str
    issued: int
    expires: int
    pulls: list[str] = []
    labels: dict[str, str] = {}


class _Revocations(msgspec.Struct):
    number: int
    issued: int
    nodes: list[str]


def sign_tag(signer: Signer, claim: TagClaim) -> str:
    """A PASETO v4.public token."""
    digest = None if claim.digest is None else str(claim.digest)
    raw = _Tag(claim.repository, claim.tag, digest, *claim.stamp, claim.issued)
    return signer.sign(msgspec.json.encode(raw), TAG_PURPOSE)


def sign_repository(signer: Signer, claim: RepositoryClaim) -> str:
    """A PASETO v4.public token."""
    raw = _Repository(claim.repository, claim.private, *claim.stamp, claim.issued)
    return signer.sign(msgspec.json.encode(raw), REPOSITORY_PURPOSE)


def sign_credential(signer: Signer, credential: Credential) -> str:
    """A PASETO v4.public token."""
    raw = _Credential(
        credential.peer_id,
        credential.swarm,
        credential.id,
        credential.issued,
        credential.expires,
        list(credential.pulls),
        dict(credential.labels),
    )
    return signer.sign(msgspec.json.encode(raw), CREDENTIAL_PURPOSE)


def sign_revocations(signer: Signer, revocations: Revocations) -> str:
    """A PASETO v4.public token."""
    raw = _Revocations(revocations.number, revocations.issued, sorted(revocations.nodes))
    return signer.sign(msgspec.json.encode(raw), REVOCATIONS_PURPOSE)


def verify_tag(keys: KeySet, token: str) -> TagClaim:
    """Read a tag's record. Raises BadContent unless a key of the set signed it for this purpose, in form."""
    raw = _payload(keys, token, TAG_PURPOSE, _Tag)
    try:
        digest = None if raw.digest is None else Digest.parse(raw.digest)
        return TagClaim(check_name(raw.repository), check_tag(raw.tag), digest, _stamp(raw), raw.issued)
    except RequestError as err:
        raise BadContent("a tag's record is signed but not in form") from err


def verify_repository(keys: KeySet, token: str) -> RepositoryClaim:
    """Read a repository's record. Raises BadContent."""
    raw = _payload(keys, token, REPOSITORY_PURPOSE, _Repository)
    try:
        return RepositoryClaim(check_name(raw.repository), raw.private, _stamp(raw), raw.issued)
    except RequestError as err:
        raise BadContent("a repository's record is signed but not in form") from err


def verify_credential(keys: KeySet, token: str) -> Credential:
    """Read a node's credential; whether it has expired or was revoked is the caller's to judge. Raises BadContent."""
    raw = _payload(keys, token, CREDENTIAL_PURPOSE, _Credential)
    try:
        for pattern in raw.pulls:
            check_glob(pattern)
    except ValueError as err:
        raise BadContent("a credential is signed but not in form") from err
    return Credential(
        raw.peer_id, raw.swarm, raw.id, raw.issued, raw.expires, tuple(raw.pulls), raw.labels, kid_of(token) or ""
    )


def named_peer(token: str) -> str:
    """The peer id that a credential says it is for, before anything of it has been verified. Raises BadContent."""
    try:
        return _unverified(token, _Credential).peer_id
    except (IndexError, ValueError, RecursionError) as err:
        raise BadContent("this is no credential") from err


def says_gone(token: str) -> bool:
    """Whether a tag's record, which was verified when it came, says that the tag points nowhere."""
    try:
        return _unverified(token, _Tag).digest is None
    except (IndexError, ValueError, RecursionError):
        return False


def _unverified(token: str, kind: type[_R]) -> _R:
    """Raises IndexError, ValueError or RecursionError."""
    body = token.split(".")[2]
    raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-_SIGNATURE]
    return msgspec.json.decode(raw, type=kind)


def verify_revocations(keys: KeySet, token: str) -> Revocations:
    """Read a list of revocations. Raises BadContent."""
    raw = _payload(keys, token, REVOCATIONS_PURPOSE, _Revocations, MAX_REVOCATIONS)
    return Revocations(raw.number, raw.issued, frozenset(raw.nodes))


def _payload(keys: KeySet, token: str, purpose: bytes, kind: type[_R], limit: int = MAX_RECORD) -> _R:
    if len(token) > limit:
        raise BadContent("a record is too long")
    try:
        return msgspec.json.decode(keys.payload(token, purpose), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise BadContent("a record is signed but not in form") from err


def _stamp(raw: _Tag | _Repository) -> Stamp:
    if min(raw.epoch, raw.number, raw.issued) < 0:
        raise BadContent("a record is signed but not in form")
    return Stamp(raw.epoch, raw.number)
