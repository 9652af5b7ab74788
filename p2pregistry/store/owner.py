"""One process owns a directory: two writers in one cache would each delete what the other has just counted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from p2pregistry.errors import LocalError, StorageFull

#: "There is no room", from the disk and from a quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def local_error(what: str, err: OSError) -> LocalError:
    """The LocalError (StorageFull where there is no room) for an OSError. ``what`` names the deed, not the path."""
    text = f"{what}: {err.strerror or type(err).__name__}"
    return StorageFull(text) if err.errno in _FULL else LocalError(text)


def make_directory(path: Path) -> None:
    """Make ``path`` (mode 0700) and what is above it. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_directory(path: Path) -> None:
    """Raises LocalError unless this process may make files in ``path`` and nobody but us and root owns it."""
    try:
        make_directory(path)
        owner = path.stat().st_uid
    except OSError as err:
        raise local_error(f"cannot make the directory {path}", err) from err
    us = os.geteuid()
    # another user who owns the directory may swap what is in it for other bytes while it is served
    if us != 0 and owner not in (us, 0):
        raise LocalError(f"the directory {path} belongs to user {owner}, this process runs as user {us}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise LocalError(f"the directory {path} is not writable for this process (user {us})")


def own(file: Path, what: str) -> int:
    """Lock ``file`` until the returned descriptor is closed; the kernel frees it if the process dies.

    Raises LocalError naming the process that has it. ``what`` is what the file stands for.
    """
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise local_error(f"cannot open the lock of {what}", err) from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as err:
        holder = b""
        with contextlib.suppress(OSError):  # the number only makes the message better
            holder = os.pread(fd, 20, 0).strip()
        os.close(fd)
        who = f"process {holder.decode('ascii', 'replace')}" if holder else "another process"
        raise LocalError(f"{what} is in use by {who}") from err
    except OSError as err:
        os.close(fd)
        raise local_error(f"cannot lock {what}", err) from err
    return fd
