"""The tracker's keys, and the set of public keys that nodes verify with.

The root key signs key sets and nothing else. A key set names the signing keys and has a version; a node keeps the
highest it has seen and refuses lower ones, so that an old set cannot bring a removed key back. A signing key is named
by its PASERK id (``k4.pid...``), which stands in the footer of every token it signs.

Key files hold one PASERK each (``k4.secret...``), mode 0600, written whole or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyseto
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pyseto import Key
from pyseto.key_interface import KeyInterface

from p2pregistry.errors import BadContent, LocalError, SettingsError

#: Implicit assertions: bound into the signature, sent nowhere, different per kind, so that no kind passes for another.
KEY_SET_PURPOSE = b"p2pregistry/v1/key-set"
MANIFEST_PURPOSE = b"p2pregistry/v1/manifest"

#: What pyseto and the code below it raise for bytes that are not a good token.
TOKEN_ERRORS = (
    pyseto.PysetoError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    UnicodeDecodeError,
    RecursionError,
    msgspec.MsgspecError,
)


def _key(text: str, kind: str) -> KeyInterface:
    """The key in a PASERK of this kind ("k4.public.") and no other: a secret or symmetric one would verify as well.

    Raises one of TOKEN_ERRORS, whose text must not be shown: the key may be in it.
    """
    if not text.startswith(kind):
        raise ValueError("a key of another kind")
    return Key.from_paserk(text)


def _write_private(path: Path, text: str) -> None:
    """Create ``path`` with mode 0600; an existing file is left as it is (FileExistsError)."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike rename, fails if somebody else was first
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink()


def _load_or_create(path: Path) -> KeyInterface:
    if not path.exists():
        private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with contextlib.suppress(FileExistsError):  # another process of this tracker made it meanwhile: read that one
            _write_private(path, Key.new(4, "public", private).to_paserk())
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path} can be read by other users; run: chmod 600 {path}")
    try:
        return _key(path.read_text("ascii").strip(), "k4.secret.")
    except TOKEN_ERRORS as err:
        raise SettingsError(f"{path} does not hold a k4.secret key") from err


def _public(secret: KeyInterface) -> KeyInterface:
    """The public half: a v4 secret is the 32-byte seed followed by the 32-byte public key (PASERK "k4.secret")."""
    encoded = secret.to_paserk().removeprefix("k4.secret.")
    raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    public = base64.urlsafe_b64encode(raw[32:]).decode("ascii").rstrip("=")
    return Key.from_paserk("k4.public." + public)


@dataclass(frozen=True, slots=True)
class Signer:
    """A signing key with its id."""

    kid: str
    secret: KeyInterface

    def sign(self, payload: bytes, purpose: bytes) -> str:
        """A v4.public token over JSON ``payload``, the key id in its footer."""
        footer = msgspec.json.encode({"kid": self.kid})
        return pyseto.encode(self.secret, payload, footer=footer, implicit_assertion=purpose).decode("ascii")


@dataclass(frozen=True, slots=True)
class TrackerKeys:
    """The root key and the current signing key of a tracker."""

    root: KeyInterface
    signer: Signer
    signing_public: str

    @classmethod
    def load_or_create(cls, directory: Path) -> TrackerKeys:
        """From ``root.key`` and ``signing.key`` in ``directory``, made at first start.

        Raises SettingsError if a file is no key or is readable by others, LocalError if it cannot be written.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            root = _load_or_create(directory / "root.key")
            signing = _load_or_create(directory / "signing.key")
        except OSError as err:
            raise LocalError(f"the keys in {directory} cannot be used: {err.strerror}") from err
        public = _public(signing)
        return cls(root, Signer(public.to_paserk_id(), signing), public.to_paserk())

    @property
    def root_public(self) -> str:
        """The root's public key as PASERK (``k4.public...``): what nodes pin."""
        return _public(self.root).to_paserk()

    def key_set(self, version: int = 1) -> str:
        """The signed key set."""
        payload = msgspec.json.encode({"version": version, "keys": [self.signing_public]})
        return pyseto.encode(self.root, payload, implicit_assertion=KEY_SET_PURPOSE).decode("ascii")


class _KeySet(msgspec.Struct):
    version: int
    keys: list[str]


class _Footer(msgspec.Struct):
    kid: str


@dataclass(frozen=True, slots=True)
class KeySet:
    """Public signing keys by id, with the version that the root signed."""

    version: int
    keys: Mapping[str, KeyInterface]

    @classmethod
    def verify(cls, token: str, root_public: str, *, at_least: int = 0) -> KeySet:
        """Read a key set. Raises BadContent unless this root signed it with a version of ``at_least`` or higher."""
        try:
            root = _key(root_public, "k4.public.")
            payload: Any = pyseto.decode(root, token, implicit_assertion=KEY_SET_PURPOSE).payload
            raw = msgspec.json.decode(bytes(payload), type=_KeySet)
            keys = [_key(text, "k4.public.") for text in raw.keys]
            found = {key.to_paserk_id(): key for key in keys}
        except TOKEN_ERRORS as err:
            raise BadContent("the key set is not signed by the root key this node trusts") from err
        if raw.version < at_least:
            raise BadContent(f"the key set has version {raw.version}, lower than {at_least}, which was seen before")
        return cls(raw.version, found)

    def payload(self, token: str, purpose: bytes) -> bytes:
        """What a token says, once its signature holds for this purpose. Raises BadContent."""
        try:
            untrusted: Any = pyseto.Token.new(token).footer  # only to find the key
            footer = msgspec.json.decode(untrusted, type=_Footer)
            key = self.keys[footer.kid]
            payload: Any = pyseto.decode(key, token, implicit_assertion=purpose).payload
        except TOKEN_ERRORS as err:
            raise BadContent("a claim is not signed by a key of the tracker") from err
        return bytes(payload)


def check_root_public(text: str) -> str:
    """``text`` if it is a public root key. Raises SettingsError."""
    try:
        _key(text, "k4.public.")
    except TOKEN_ERRORS as err:
        raise SettingsError("a root key is a PASERK of the form k4.public.<base64>") from err
    return text
