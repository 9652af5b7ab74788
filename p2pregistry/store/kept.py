"""The few values that must outlive the index: keys the operator trusted, epochs.

The index is a cache and is rebuilt when it is damaged. These values are not in it but in one small file beside it,
replaced as a whole (write, fsync, rename, fsync the directory), read once at start. A file that cannot be read stops
the program: to go on without a pinned key would be to trust the next one that comes.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from p2pregistry.errors import LocalError
from p2pregistry.store.owner import local_error, sync_directory


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    values: dict[str, bytes]  # base64 in JSON


def parse_kept(data: bytes) -> dict[str, bytes]:
    """The values in the bytes of such a file. Raises LocalError."""
    try:
        found = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise LocalError("the file of pinned keys is damaged") from err
    if found.version != 1:
        raise LocalError(f"the file of pinned keys has version {found.version}; this program knows version 1")
    return found.values


def format_kept(values: dict[str, bytes]) -> bytes:
    """The bytes of such a file."""
    return msgspec.json.format(msgspec.json.encode(_File(1, values)), indent=1) + b"\n"


def load_kept(path: Path) -> dict[str, bytes]:
    """The values in the file; none if it does not exist yet. Raises LocalError naming the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise local_error(f"cannot read {path}", err) from err
    try:
        return parse_kept(data)
    except LocalError as err:
        raise LocalError(f"{path}: {err.message}. Restore it, or remove it to trust the tracker anew") from err


def save_kept(path: Path, values: dict[str, bytes]) -> None:
    """Replace the file, durably. Raises LocalError or StorageFull; the old file is then still whole."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(format_kept(values))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(path.parent)
    except OSError as err:
        raise local_error("cannot save a pinned value", err) from err
