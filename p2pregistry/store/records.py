"""What the index holds, and how it is written down.

A stored record is one version byte and a msgpack array. A record of a version that this program does not know reads as
absent: everything here can be fetched again. Fields added at the end of an array, with defaults, need no new version:
older programs pass over them. ``put_meta`` is the exception and does not pass through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from p2pregistry.digest import ALGORITHMS, Digest
from p2pregistry.trust.records import Stamp

#: Version of every record written by this program.
VERSION: Final = 1
_HEAD = bytes([VERSION])
_CODES: Final = {"sha256": 1, "sha512": 2}
_NAMES: Final = {code: name for name, code in _CODES.items()}
#: LMDB's limit is 511; OCI has repository names up to 255 and tags up to 128 bytes.
MAX_REPOSITORY = 255
MAX_TAG = 128
MAX_META_KEY = 200


#: Of a tag that was kept before tags were signed: older than any other.
UNSIGNED: Final = Stamp(0, 0)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """Where a tag pointed, and when (unix seconds) that was last known to be true; None: nowhere any more, of which
    only the stamp is of interest. ``token``: the signed record."""

    digest: Digest | None
    seen: float
    stamp: Stamp = UNSIGNED
    token: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """Whether a repository is private, as the signed record ``token`` says. ``hidden``: the tracker said later that
    there is no such repository, or none for this node."""

    private: bool
    stamp: Stamp
    token: str
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest byte for byte, with the media type it was served under."""

    digest: Digest
    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A complete blob on disk: its size in bytes and when it was last used (unix seconds)."""

    size: int
    last_use: float


class TagRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    digest: bytes  # empty: it is gone
    seen: float
    epoch: int = 0
    number: int = 0
    token: str = ""


class RepositoryRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    private: bool
    epoch: int
    number: int
    token: str
    hidden: bool


class ManifestRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    media_type: str
    body: bytes


class ClaimsRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    claims: list[str]


class BlobRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    size: int
    last_use: float
    ahead: bool = False  # no client has asked for it yet


class RefRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    size: int
    root: bytes


class MetainfoRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    size: int
    root: bytes
    hashes: bytes


_R = TypeVar("_R", bound=msgspec.Struct)


class Codec(Generic[_R]):
    """Rows of one kind, to bytes and back."""

    def __init__(self, kind: type[_R]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, row: _R) -> bytes:
        return _HEAD + self._encoder.encode(row)

    def decode(self, data: bytes | memoryview | None) -> _R | None:
        """None for nothing, for another version, and for bytes that are no such row."""
        if not data or data[0] != VERSION:
            return None
        try:
            return self._decoder.decode(memoryview(data)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError):  # msgspec lets the latter through
            return None


TAGS = Codec(TagRow)
REPOSITORIES = Codec(RepositoryRow)
MANIFESTS = Codec(ManifestRow)
CLAIMS = Codec(ClaimsRow)
BLOBS = Codec(BlobRow)
REFS = Codec(RefRow)
METAINFO = Codec(MetainfoRow)


def digest_key(digest: Digest) -> bytes:
    """One byte for the algorithm, then the hash: no key is a prefix of another."""
    return bytes((_CODES[digest.algorithm],)) + digest.raw


def read_digest(key: bytes) -> Digest | None:
    """The digest whose ``digest_key`` this is; None if it is none."""
    name = _NAMES.get(key[0]) if key else None
    if name is None or len(key) != 1 + ALGORITHMS[name]:
        return None
    return Digest(name, key[1:])


def repository_key(repository: str) -> bytes:
    """Raises ValueError for a name that cannot be a key; the grammar of names is checked before it comes here."""
    key = repository.encode()
    if not 0 < len(key) <= MAX_REPOSITORY or 0 in key:
        raise ValueError("a repository name is 1 to 255 bytes without NUL")
    return key


def read_tag(row: TagRow) -> TagRecord:
    """What the row says. A digest that cannot be read is none."""
    return TagRecord(read_digest(row.digest), row.seen, Stamp(row.epoch, row.number), row.token)


def tag_key(repository: str, tag: str) -> bytes:
    """Raises ValueError."""
    key = tag.encode()
    if not 0 < len(key) <= MAX_TAG or 0 in key:
        raise ValueError("a tag is 1 to 128 bytes without NUL")
    return repository_key(repository) + b"\0" + key


def meta_key(key: str) -> bytes:
    """Raises ValueError."""
    data = key.encode()
    if not 0 < len(data) <= MAX_META_KEY:
        raise ValueError("a key is 1 to 200 bytes")
    return data
