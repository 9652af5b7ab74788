"""What Kubo's RPC answers, in JSON (https://docs.ipfs.tech/reference/kubo/rpc/).

The answers come from a daemon that the operator chose, and are read with care all the same: of bounded length, with the
fields that are needed in the form that is expected, and everything else passed over. js-ipfs answers the same way,
but for texts of errors and for CIDs in base58, where it is not asked for base32.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec

from p2pregistry.content.dag import any_cid
from p2pregistry.digest import cid_text, parse_cid
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteError, RequestError, StorageFull, Unreachable

_JSON_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: The highest size that is believed.
_SIZE_MOST: Final = 1 << 53
_LINES_MOST: Final = 10_000

_Size = Annotated[int, msgspec.Meta(ge=0, le=_SIZE_MOST)]
_Name = Annotated[str, msgspec.Meta(max_length=1024)]
_T = TypeVar("_T")


class KuboError(RemoteError):
    """The daemon refuses a request; ``answered`` is the status."""

    def __init__(self, message: str, answered: int = 0) -> None:
        super().__init__(message)
        self.answered = answered


class Exists(KuboError):
    """There is something of this name in the daemon's files already."""


class NotInTime(Unreachable):
    """The daemon looked for something in its network, and stopped when its time was over."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A root of a CAR that was imported: its CID as text, and why it was not pinned, or ""."""

    cid: str
    error: str


@dataclass(frozen=True, slots=True)
class FileStat:
    """What lies under a name of the daemon's files. ``size``: bytes of a file; ``cid``: its root, as text."""

    cid: str
    size: int
    directory: bool


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a directory of the daemon's files; ``size`` in bytes."""

    name: str
    size: int
    directory: bool


@dataclass(frozen=True, slots=True)
class RepoStat:
    """Bytes that the daemon's repository has, and those that it may have (``Datastore.StorageMax``); None: unbound."""

    size: int
    most: int | None


class _Key(msgspec.Struct):
    key: Annotated[str, msgspec.Meta(max_length=200)] = msgspec.field(name="Key")
    size: _Size = msgspec.field(name="Size", default=0)


class _Link(msgspec.Struct):
    cid: Annotated[str, msgspec.Meta(max_length=200)] = msgspec.field(name="/")


class _Root(msgspec.Struct):
    cid: _Link = msgspec.field(name="Cid")
    error: str | None = msgspec.field(name="PinErrorMsg", default=None)


class _Line(msgspec.Struct):
    root: _Root | None = msgspec.field(name="Root", default=None)


class _Stat(msgspec.Struct):
    hash: Annotated[str, msgspec.Meta(max_length=200)] = msgspec.field(name="Hash")
    size: _Size = msgspec.field(name="Size", default=0)
    kind: str = msgspec.field(name="Type", default="file")


class _Entry(msgspec.Struct):
    name: _Name = msgspec.field(name="Name")
    size: _Size = msgspec.field(name="Size", default=0)
    kind: int = msgspec.field(name="Type", default=0)


class _Entries(msgspec.Struct):
    entries: list[_Entry] | None = msgspec.field(name="Entries", default=None)


class _Repo(msgspec.Struct):
    size: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="RepoSize", default=0)
    most: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="StorageMax", default=0)


class _Version(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(max_length=100)] = msgspec.field(name="Version")


class _Pin(msgspec.Struct):
    kind: Annotated[str, msgspec.Meta(max_length=40)] = msgspec.field(name="Type", default="")


class _Pins(msgspec.Struct):
    keys: dict[str, _Pin] = msgspec.field(name="Keys", default_factory=dict)


class _Refusal(msgspec.Struct):
    message: str = msgspec.field(name="Message", default="")


def _read(data: bytes, kind: type[_T], *, strict: bool = True) -> _T:
    try:
        return msgspec.json.decode(data, type=kind, strict=strict)
    except _JSON_ERRORS as err:
        raise BadContent("an answer of the IPFS daemon is not understood") from err


def block_key(data: bytes) -> tuple[bytes, int]:
    """The CID (36 bytes) of an answer to block/put or block/stat, and the block's bytes. Raises BadContent."""
    found = _read(data, _Key)
    try:
        return parse_cid(found.key), found.size
    except RequestError as err:
        raise BadContent("the IPFS daemon names a block by another CID than it was asked to") from err


def imported(data: bytes) -> list[Imported]:
    """The roots of an answer to dag/import, one JSON value a line. Raises BadContent."""
    lines = data.splitlines()
    if len(lines) > _LINES_MOST:
        raise BadContent("an answer of the IPFS daemon has too many lines")
    read = [_read(line, _Line) for line in lines if line.strip()]
    roots = [line.root for line in read if line.root is not None]
    return [Imported(printable(root.cid.cid), printable(root.error or "")) for root in roots]


def file_stat(data: bytes) -> FileStat:
    """Of files/stat. Raises BadContent."""
    found = _read(data, _Stat)
    cid = any_cid(found.hash)  # js-ipfs gives it in base58, whatever it is asked for
    return FileStat(found.hash if cid is None else cid_text(cid), found.size, found.kind == "directory")


def file_list(data: bytes) -> list[FileEntry]:
    """Of files/ls with ``long``. Raises BadContent."""
    return [FileEntry(entry.name, entry.size, entry.kind == 1) for entry in _read(data, _Entries).entries or ()]


def repo_stat(data: bytes) -> RepoStat:
    """Of repo/stat. Raises BadContent."""
    found = _read(data, _Repo, strict=False)  # js-ipfs writes these numbers as texts
    # without a bound js-ipfs says 2**53 - 1 and Kubo 2**64 - 1
    return RepoStat(found.size, found.most if 0 < found.most < _SIZE_MOST - 1 else None)


def version(data: bytes) -> str:
    """Of version. Raises BadContent."""
    return printable(_read(data, _Version).version)


def pin_kinds(data: bytes) -> dict[str, str]:
    """Of pin/ls: CIDs as text, and "recursive", "direct" or "indirect" for each. Raises BadContent."""
    return {cid: pin.kind for cid, pin in _read(data, _Pins).keys.items()}


_MISSING: Final = re.compile(
    r"not found|could not find|does not exist|not pinned|no link named|no such file|did not exist|ERR_NOT_FOUND",
    re.IGNORECASE,
)
_EXISTS: Final = re.compile(r"already has entry|already exists|file exists", re.IGNORECASE)
_FULL: Final = re.compile(r"no space left|ENOSPC|disk quota|storage limit|maximum storage", re.IGNORECASE)
_LATE: Final = re.compile(r"deadline exceeded|timed? ?out", re.IGNORECASE)


def refusal(status: int, data: bytes) -> RegistryError:
    """The error that an answer of this status is."""
    try:
        said = printable(_read(data, _Refusal).message)
    except BadContent:
        said = printable(data[:400].decode("utf-8", "replace"))
    if status in (401, 403):
        return KuboError(
            "the IPFS daemon refuses us: its API.Authorizations do not have this secret, or not this path", status
        )
    if status == 404:
        return KuboError("the IPFS daemon does not know this command; is it the address of its RPC?", status)
    if _FULL.search(said):
        return StorageFull("the IPFS daemon has no room left")
    if _LATE.search(said):
        return NotInTime("the IPFS daemon did not find it in time")
    if _EXISTS.search(said):
        return Exists(f"the IPFS daemon refuses a request: {said}", status)
    if _MISSING.search(said):
        return NotFound("BLOB_UNKNOWN", "the IPFS daemon does not have it")
    return KuboError(f"the IPFS daemon refuses a request ({status}): {said}", status)


def printable(text: str) -> str:
    """What can be shown and logged of a text that came from outside: 200 characters at most."""
    return "".join(char if char.isprintable() else " " for char in text[:200]).strip()


def authorization(secret: str) -> str:
    """The value of ``Authorization`` for a secret as Kubo's ``API.Authorizations`` has it (``AuthSecret``):
    ``bearer:TOKEN``, ``basic:USER:PASSWORD`` or ``basic:BASE64``; anything else is taken for a bearer token. Raises
    ValueError, without the secret, for one that no header can hold."""
    if not secret or not all("\x20" <= char <= "\x7e" for char in secret):
        raise ValueError("is empty or has characters that no header holds")
    kind, colon, rest = secret.partition(":")
    if colon and kind == "basic":
        return "Basic " + (base64.b64encode(rest.encode()).decode() if ":" in rest else rest)
    return "Bearer " + (rest if colon and kind == "bearer" else secret)
