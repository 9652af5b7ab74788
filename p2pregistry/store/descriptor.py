"""Open files that worker threads read and write."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from typing import TypeVar

import trio

from p2pregistry.store.owner import local_error

#: darwin: fsync leaves bytes in the drive's cache, this does not
_F_FULLFSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_T = TypeVar("_T")


def sync(fd: int) -> None:
    """Make the bytes durable. Raises OSError."""
    if _F_FULLFSYNC is not None:
        fcntl.fcntl(fd, _F_FULLFSYNC)
    else:
        os.fsync(fd)


def read(fd: int, offset: int, length: int) -> bytes:
    """As much of ``length`` as there is: one pread may stop early."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length and (data := os.pread(fd, length - have, offset + have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def write(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """All of ``data``. Raises OSError."""
    with memoryview(data) as view, view.cast("B") as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(fd, rest[done:], offset + done)


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's sync_file_range(2); None where there is none."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return lambda fd, offset, length, flags: int(function(fd, offset, length, flags))


_SYNC_FILE_RANGE = _sync_file_range()
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


def write_behind(fd: int, offset: int, length: int) -> None:
    """Let the disk begin with these bytes, so that less is left to do when they are to be durable. A hint only: nothing
    is waited for, and nothing is promised."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, length, _WRITE)


class Descriptor:
    """A descriptor that is closed when nobody is in a thread with it: its number may mean another file at once."""

    def __init__(self, fd: int, limiter: trio.CapacityLimiter) -> None:
        self.fd = fd
        self.users = 0
        self.closed = False
        self._limiter = limiter

    async def run(self, what: str, fn: Callable[..., _T], *args: object) -> _T:
        """``fn(fd, *args)`` in a worker thread; OSError becomes LocalError or StorageFull."""
        if self.closed:
            raise RuntimeError("used after it was closed")
        self.users += 1
        try:
            return await trio.to_thread.run_sync(fn, self.fd, *args, limiter=self._limiter)
        except OSError as err:
            raise local_error(what, err) from err
        finally:
            self.users -= 1
            self._release()

    def close(self) -> None:
        """Idempotent."""
        if not self.closed:
            self.closed = True
            self._release()

    def _release(self) -> None:
        if self.closed and self.users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
