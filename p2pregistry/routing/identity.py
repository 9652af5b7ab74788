"""A node's identity: one Ed25519 key in a file, from which its libp2p peer id follows.

Source: libp2p specification "peer-ids": the id of an Ed25519 key is the identity multihash of its protobuf form.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.errors import LocalError

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def load_or_create_identity(path: Path) -> Ed25519PrivateKey:
    """The key in ``path`` (PKCS #8, PEM), made there with mode 0600 if there is none. Raises LocalError.

    The file appears whole or not at all; of two processes that make it at once, both use the one that was first.
    """
    try:
        if not path.exists():
            _create(path)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise LocalError(f"the identity file {path} cannot be used: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise LocalError(f"the identity file {path} holds no private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(f"the identity file {path} holds no Ed25519 key")
    return key


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def peer_id_of(key: Ed25519PrivateKey) -> bytes:
    """The libp2p peer id of a key: 38 bytes."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return b"\x00\x24\x08\x01\x12\x20" + raw


def base58(data: bytes) -> str:
    """Base58 as Bitcoin and libp2p write it."""
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text
