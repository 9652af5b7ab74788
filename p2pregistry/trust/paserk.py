"""Keys as text (PASERK, version 4), in files, and wrapped with another key.

Key files hold one PASERK each (``k4.secret...``, ``k4.local...``), mode 0600, written whole or not at all. No error
says what stood in one.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pyseto
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pyseto import Key
from pyseto.key_interface import KeyInterface

from p2pregistry.errors import LocalError, SettingsError

PUBLIC: Final = "k4.public."
SECRET: Final = "k4.secret."  # noqa: S105 - a kind of key
LOCAL: Final = "k4.local."

#: What pyseto and the code below it raise for bytes that are not a good token or key.
TOKEN_ERRORS: Final = (
    pyseto.PysetoError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    UnicodeDecodeError,
    RecursionError,
    msgspec.MsgspecError,
)


def read_key(text: str, kind: str) -> KeyInterface:
    """The key in a PASERK of this kind (``PUBLIC``) and no other: a secret or symmetric one would verify as well.

    Raises one of TOKEN_ERRORS, whose text must not be shown: the key may be in it.
    """
    if not text.startswith(kind):
        raise ValueError("a key of another kind")
    return Key.from_paserk(text)


def new_secret() -> KeyInterface:
    """A new Ed25519 key."""
    return secret_of(Ed25519PrivateKey.generate())


def secret_of(key: Ed25519PrivateKey) -> KeyInterface:
    """An Ed25519 key of the cryptography library as one of pyseto."""
    return Key.new(4, "public", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def private_of(secret: KeyInterface) -> Ed25519PrivateKey:
    """The other way round."""
    return Ed25519PrivateKey.from_private_bytes(raw_bytes(secret, SECRET)[:32])


def public_of(secret: KeyInterface) -> KeyInterface:
    """The public half: a v4 secret is the 32-byte seed followed by the 32-byte public key (PASERK "k4.secret")."""
    return Key.from_paserk(PUBLIC + _base64(raw_bytes(secret, SECRET)[32:]))


def raw_bytes(key: KeyInterface, kind: str) -> bytes:
    """The bytes of a key of this kind."""
    encoded = key.to_paserk().removeprefix(kind)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def new_local() -> KeyInterface:
    """A new symmetric key of 32 bytes."""
    return Key.from_paserk(LOCAL + _base64(secrets.token_bytes(32)))


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The key that other keys are wrapped with where they are kept (``k4.secret-wrap.pie``, ``k4.local-wrap.pie``)."""

    key: bytes = field(repr=False)

    @classmethod
    def read(cls, text: str) -> Wrapping:
        """From ``k4.local.<32 bytes, base64url>``. Raises one of TOKEN_ERRORS."""
        key = raw_bytes(read_key(text, LOCAL), LOCAL)
        if len(key) != 32:
            raise ValueError("a key of another length")
        return cls(key)

    def wrap(self, key: KeyInterface) -> str:
        """A secret or a symmetric key, for safekeeping."""
        return key.to_paserk(wrapping_key=self.key)

    def unwrap(self, text: str) -> KeyInterface:
        """What was wrapped. Raises SettingsError if it was wrapped with another key, or has been changed since."""
        try:
            return Key.from_paserk(text, wrapping_key=self.key)
        except TOKEN_ERRORS as err:
            raise SettingsError(
                "$.keys.wrapping_key_file: the keys in the database are wrapped with another key;"
                " give this tracker the wrapping key that the others have"
            ) from err


# -------------------------------------------------------------------------------------------------------------- files


def load_key(path: Path, kind: str) -> KeyInterface | None:
    """The key in a file, None if there is no such file.

    Raises SettingsError if it holds no key of this kind or others may read it, LocalError if it cannot be read.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{path} can be read by other users; run: chmod 600 {path}")
        return read_key(path.read_text("ascii").strip(), kind)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise _unusable(path, err) from err
    except TOKEN_ERRORS as err:
        raise SettingsError(f"{path} does not hold a {kind.rstrip('.')} key") from err


def load_or_create_key(path: Path, kind: str) -> KeyInterface:
    """The same, made at first start with its directory. Raises as ``load_key``."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            made = new_local() if kind == LOCAL else new_secret()
            with contextlib.suppress(FileExistsError):  # another process made it meanwhile: read that one
                _write_private(path, made.to_paserk())
    except OSError as err:
        raise _unusable(path, err) from err
    found = load_key(path, kind)
    if found is None:
        raise LocalError(f"{path} has been removed just now")
    return found


def _unusable(path: Path, err: OSError) -> LocalError:
    return LocalError(f"the keys in {path.parent} cannot be used: {err.strerror}")


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
