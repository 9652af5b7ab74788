"""The tracker's keys, and the set of public keys that nodes verify with.

The root key signs key sets and nothing else. A key set names the signing keys and has a version; a node keeps the
highest it has seen and refuses lower ones, so that an old set cannot bring a removed key back. A signing key is named
by its PASERK id (``k4.pid...``), which stands in the footer of every token it signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import pyseto
from pyseto.key_interface import KeyInterface

from p2pregistry.errors import BadContent, SettingsError
from p2pregistry.trust.paserk import PUBLIC, SECRET, TOKEN_ERRORS, load_or_create_key, new_secret, public_of, read_key

#: Implicit assertions: bound into the signature, sent nowhere, different per kind, so that no kind passes for another.
KEY_SET_PURPOSE = b"p2pregistry/v1/key-set"
MANIFEST_PURPOSE = b"p2pregistry/v1/manifest"

#: The longest key set that is looked at, characters: room for some hundred keys.
MAX_KEY_SET: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Signer:
    """A signing key with its id."""

    kid: str
    secret: KeyInterface = field(repr=False)

    @classmethod
    def of(cls, secret: KeyInterface) -> Signer:
        """The signer with this Ed25519 key."""
        return cls(public_of(secret).to_paserk_id(), secret)

    @property
    def public(self) -> str:
        """The public half (``k4.public...``), as it stands in key sets."""
        return public_of(self.secret).to_paserk()

    def sign(self, payload: bytes, purpose: bytes) -> str:
        """A v4.public token over JSON ``payload``, the key id in its footer."""
        footer = msgspec.json.encode({"kid": self.kid})
        return pyseto.encode(self.secret, payload, footer=footer, implicit_assertion=purpose).decode("ascii")


def sign_key_set(root: KeyInterface, version: int, keys: Iterable[str]) -> str:
    """The set of these public keys (PASERK), signed by the root."""
    payload = msgspec.json.encode(_KeySet(version, list(keys)))
    return pyseto.encode(root, payload, implicit_assertion=KEY_SET_PURPOSE).decode("ascii")


@dataclass(frozen=True, slots=True)
class TrackerKeys:
    """A root key and one signing key, without a database: what a tracker in a test signs with."""

    root: KeyInterface = field(repr=False)
    signer: Signer

    @classmethod
    def fresh(cls) -> TrackerKeys:
        """Both new."""
        return cls(new_secret(), Signer.of(new_secret()))

    @classmethod
    def load_or_create(cls, directory: Path) -> TrackerKeys:
        """From ``root.key`` and ``signing.key`` in ``directory``, made at first start.

        Raises SettingsError if a file is no key or is readable by others, LocalError if it cannot be written.
        """
        root = load_or_create_key(directory / "root.key", SECRET)
        return cls(root, Signer.of(load_or_create_key(directory / "signing.key", SECRET)))

    @property
    def root_public(self) -> str:
        """The root's public key as PASERK (``k4.public...``): what nodes pin."""
        return public_of(self.root).to_paserk()

    @property
    def signing_public(self) -> str:
        """The signing key's public half."""
        return self.signer.public

    def key_set(self, version: int = 1) -> str:
        """The signed key set."""
        return sign_key_set(self.root, version, [self.signing_public])


class _KeySet(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
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
        if len(token) > MAX_KEY_SET:
            raise BadContent("the key set is too long")
        try:
            root = read_key(root_public, PUBLIC)
            payload: Any = pyseto.decode(root, token, implicit_assertion=KEY_SET_PURPOSE).payload
            raw = msgspec.json.decode(bytes(payload), type=_KeySet)
            keys = [read_key(text, PUBLIC) for text in raw.keys]
            found = {key.to_paserk_id(): key for key in keys}
        except TOKEN_ERRORS as err:
            raise BadContent("the key set is not signed by the root key this node trusts") from err
        if raw.version < at_least:
            raise BadContent(f"the key set has version {raw.version}, lower than {at_least}, which was seen before")
        return cls(raw.version, found)

    def follows(self, known: KeySet | None) -> None:
        """Whether it may take the place of the one that is known. Raises BadContent if it has a lower version, or
        names other keys under the same one: then the root has signed two sets, and neither is to be preferred."""
        if known is None or self.version > known.version:
            return
        if self.version < known.version:
            raise BadContent(
                f"the key set has version {self.version}, lower than {known.version}, which was seen before"
            )
        if self.keys.keys() != known.keys.keys():
            raise BadContent(f"there are two different key sets of version {self.version}")

    def knows(self, token: str) -> bool:
        """Whether the key that a token says it was signed with is in the set. This verifies nothing."""
        kid = kid_of(token)
        return kid is not None and kid in self.keys

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


def kid_of(token: str) -> str | None:
    """The key id in a token's footer, None if it is no token. Unverified: good only to find the key."""
    try:
        footer: Any = pyseto.Token.new(token).footer
        return msgspec.json.decode(footer, type=_Footer).kid
    except TOKEN_ERRORS:
        return None


def check_root_public(text: str) -> str:
    """``text`` if it is a public root key. Raises SettingsError."""
    try:
        read_key(text, PUBLIC)
    except TOKEN_ERRORS as err:
        raise SettingsError("a root key is a PASERK of the form k4.public.<base64>") from err
    return text
