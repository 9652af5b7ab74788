"""Members of a swarm for tests: identities, the tracker's signature under their credentials, and who judges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pyseto import Key

from p2pregistry.errors import BadContent
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.sessions import Desk, Opening
from p2pregistry.trust.keys import KeySet, Signer
from p2pregistry.trust.proof import sign_proof
from p2pregistry.trust.records import Credential, sign_credential, verify_credential

#: Seconds that a credential lasts.
DAY: Final = 24 * 3600


@dataclass(frozen=True)
class Member:
    """A machine with an identity of its own."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def peer_id(self) -> str:
        """In base58."""
        return base58(peer_id_of(self.key))


class Authority:
    """Signs credentials, and judges them as a node's Trust does. ``clock`` gives unix seconds."""

    def __init__(self, swarm: str = "default", *, clock: Callable[[], float] = lambda: 1e9) -> None:
        key = Ed25519PrivateKey.generate()
        public = Key.new(4, "public", key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        secret = Key.new(4, "public", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.swarm = swarm
        self.signer = Signer(public.to_paserk_id(), secret)
        self.keys = KeySet(1, {self.signer.kid: public})
        self.revoked: set[str] = set()
        self._clock = clock

    def issue(self, peer_id: str, *, pulls: tuple[str, ...] = (), lasts: float = DAY, swarm: str | None = None) -> str:
        """A credential that ends in ``lasts`` seconds."""
        now = int(self._clock())
        return sign_credential(
            self.signer, Credential(peer_id, swarm or self.swarm, "c1", now, int(now + lasts), pulls)
        )

    async def credential(self, token: str, peer_id: str) -> Credential:
        """See sessions.Judge."""
        return self.judge(token, peer_id)

    def judge(self, token: str, peer_id: str) -> Credential:
        """The same, without waiting."""
        found = verify_credential(self.keys, token)
        self.check(found, peer_id)
        return found

    def check(self, credential: Credential, peer_id: str) -> None:
        """See sessions.Judge."""
        good = credential.peer_id == peer_id and credential.swarm == self.swarm
        if not good or credential.expires <= self._clock() or peer_id in self.revoked:
            raise BadContent("a credential that does not count here")


async def open_session(desk: Desk, member: Member, credential: str, to: str) -> str:
    """Make a session at a desk whose peer id is ``to``; its token. Raises RequestError."""
    nonce = await desk.nonce()
    granted = await desk.open(Opening(credential, sign_proof(member.key, nonce, to)))
    return granted.token
