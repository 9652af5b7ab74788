"""How a node shows that its peer id is its own: it signs a nonce of the one who asks, with the key that the id names.

The proof is a PASETO v4.public token over the nonce and the peer id of the server, so that it is of no use at another
server or for another nonce, whatever the clocks say. A libp2p peer id of an Ed25519 key holds the key itself.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any, Final

import msgspec
import pyseto
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pyseto import Key

from p2pregistry.errors import BadContent
from p2pregistry.trust.paserk import TOKEN_ERRORS

PROOF_PURPOSE: Final = b"p2pregistry/v1/peer-proof"
MAX_PROOF: Final = 2000

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
#: What stands before an Ed25519 key in its peer id: an identity multihash of a protobuf (libp2p "peer-ids").
_PREFIX: Final = b"\x00\x24\x08\x01\x12\x20"


class _Proof(msgspec.Struct):
    nonce: str
    to: str


def sign_proof(key: Ed25519PrivateKey, nonce: str, to: str) -> str:
    """The proof for the server with peer id ``to`` (base58)."""
    secret = Key.new(4, "public", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    payload = msgspec.json.encode(_Proof(nonce, to))
    return pyseto.encode(secret, payload, implicit_assertion=PROOF_PURPOSE).decode("ascii")


def verify_proof(text: str, peer_id: str, to: str) -> str:
    """The nonce that ``peer_id`` has signed for ``to``; whether it is one of ours is the caller's to check. Raises
    BadContent."""
    if len(text) > MAX_PROOF:
        raise BadContent("a proof is too long")
    raw = public_key_of(peer_id).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        payload: Any = pyseto.decode(Key.new(4, "public", raw), text, implicit_assertion=PROOF_PURPOSE).payload
        proof = msgspec.json.decode(bytes(payload), type=_Proof)
    except TOKEN_ERRORS as err:
        raise BadContent("a proof is not signed by the peer id it is for") from err
    if proof.to != to:
        raise BadContent("a proof is for another server")
    return proof.nonce


def public_key_of(peer_id: str) -> Ed25519PublicKey:
    """The key in a peer id (base58). Raises BadContent for one of another kind of key, which holds only its hash."""
    number = 0
    if not 0 < len(peer_id) <= 64:
        raise BadContent("this is no peer id")
    for character in peer_id:
        digit = _BASE58.find(character)
        if digit < 0:
            raise BadContent("this is no peer id")
        number = number * 58 + digit
    zeros = len(peer_id) - len(peer_id.lstrip("1"))
    data = b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(data) != len(_PREFIX) + 32 or not data.startswith(_PREFIX):
        raise BadContent("this is no peer id of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(data[len(_PREFIX) :])


def fingerprint(key: Ed25519PublicKey) -> str:
    """sha256 of a certificate's key (SubjectPublicKeyInfo), URL-safe base64 without padding: what a join token pins."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(sha256(spki).digest()).decode("ascii").rstrip("=")
