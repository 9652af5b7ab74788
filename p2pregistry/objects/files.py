"""Objects in files, on a disk or a network file system that several processes share.

    <root>/lock             held in common by the processes that use the root
    <root>/blobs/<name>     objects; a name here is a promise that the bytes are whole and on disk
    <root>/uploads/<name>   drafts

Who writes to a draft holds a lock on the file. Where it is locked already its holder was thought dead, and is perhaps
only slow: the bytes are copied to a file of their own, so that whatever the other one still writes goes nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from p2pregistry.errors import LocalError, NotFound
from p2pregistry.objects.base import Stored, check_object_name
from p2pregistry.serve.http import BlobSlice
from p2pregistry.store.descriptor import Descriptor, read, sync, write, write_behind
from p2pregistry.store.owner import check_directory, local_error, make_directory, sync_directory

#: Worker threads that one store may use at a time.
WORKERS: Final = 16
#: Where files are made before they get their name; no name of an object begins with a dot.
_MAKING: Final = ".making"
_TEMPORARY: Final = re.compile(r"[0-9a-f]{32}")
#: Seconds after which such a file goes, if nobody holds it any more and nothing was written to it.
_STALE: Final = 3600.0
_COPY: Final = 1 << 20

_T = TypeVar("_T")


class FileObject:
    """See Object."""

    def __init__(self, fd: int, size: int, limiter: trio.CapacityLimiter) -> None:
        self._size = size
        self._open = Descriptor(fd, limiter)

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int | None:
        if self._open.closed:
            raise RuntimeError("used after it was closed")
        return self._open.fd

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Object."""
        return await self._open.run("cannot read an object", read, offset, length)

    def close(self) -> None:
        """Idempotent."""
        self._open.close()


class FileDraft:
    """See Draft."""

    def __init__(self, store: FileObjects, name: str, fd: int, size: int) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._open = Descriptor(fd, store.limiter)

    @property
    def size(self) -> int:
        return self._size

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """See Draft."""
        await self._open.run("cannot write to the disk", _append, self._size, data)
        self._size += len(data)

    async def flush(self) -> None:
        """See Draft."""
        await self._open.run("cannot write to the disk", sync)

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Draft."""
        return await self._open.run("cannot read an upload", read, offset, length)

    async def publish(self) -> None:
        """See Draft."""
        root, name = self._store.root, self._name
        # not to be cut in two: once begun the thread is waited for, whoever is cancelled
        await self._open.run("cannot store an object", _publish, root / "uploads" / name, root / "blobs" / name)
        self._open.close()

    async def discard(self) -> None:
        """See Draft."""
        if not self._open.closed:
            try:
                await self._open.run("cannot remove an upload", _remove_same, self._store.root / "uploads" / self._name)
            finally:
                self._open.close()

    async def aclose(self) -> None:
        """See Draft."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._open.close()


class FileObjects:
    """``ObjectStore`` below a directory. Made by ``open_file_objects``."""

    def __init__(self, root: Path, *, workers: int = WORKERS) -> None:
        self.root = root
        self.limiter = trio.CapacityLimiter(workers)

    async def _run(self, what: str, fn: Callable[..., _T], *args: object) -> _T:
        try:
            return await trio.to_thread.run_sync(fn, *args, limiter=self.limiter)
        except OSError as err:
            raise local_error(what, err) from err

    def _path(self, name: str) -> Path:
        check_object_name(name)
        return self.root / "blobs" / name

    async def draft(self, name: str, size: int) -> FileDraft:
        """See ObjectStore."""
        check_object_name(name)
        opened = await self._run("cannot open an upload", _open_draft, self.root, name, size)
        if opened is None:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "bytes of this upload are not here any more")
        return FileDraft(self, name, opened, size)

    async def put(self, name: str, data: bytes) -> None:
        """See ObjectStore."""
        await self._run("cannot write to the disk", _put, self.root, self._path(name), data)

    async def open(self, name: str, size: int) -> FileObject:
        """See ObjectStore."""
        path = self._path(name)
        try:
            fd, there = await trio.to_thread.run_sync(_open_object, path, limiter=self.limiter)
        except FileNotFoundError as err:
            raise _unknown() from err
        except OSError as err:
            raise local_error("cannot open an object", err) from err
        if there != size:
            os.close(fd)
            raise LocalError(f"an object has {there} bytes in place of {size}")
        return FileObject(fd, size, self.limiter)

    async def size(self, name: str) -> int:
        """See ObjectStore."""
        path = self._path(name)
        try:
            return (await trio.to_thread.run_sync(os.stat, path, limiter=self.limiter)).st_size
        except FileNotFoundError as err:
            raise _unknown() from err
        except OSError as err:
            raise local_error("cannot look at an object", err) from err

    async def body(self, name: str, size: int, offset: int, length: int) -> BlobSlice:
        """See ObjectStore."""
        return BlobSlice(await self.open(name, size), offset, length)

    def link(self, name: str, filename: str, lifetime: float) -> str | None:  # noqa: ARG002 - the seam's
        """None: files have no URL of their own."""
        return None

    async def delete(self, name: str) -> None:
        """See ObjectStore."""
        await self._run("cannot remove an object", _remove, self._path(name))

    async def objects(self) -> AsyncIterator[Stored]:
        """See ObjectStore."""
        async for stored in self._walk(self.root / "blobs"):
            yield stored

    async def drafts(self) -> AsyncIterator[Stored]:
        """See ObjectStore. Files that a process has left which died while it made them are removed on the way."""
        await self._run("cannot list a directory", _tidy, self.root / "uploads" / _MAKING, time.time() - _STALE)
        async for stored in self._walk(self.root / "uploads"):
            if stored.size:
                yield stored

    async def _walk(self, top: Path) -> AsyncIterator[Stored]:
        """One thread hop a directory; other files than ours are passed over."""
        folders = [top]
        while folders:
            below, found = await self._run("cannot list a directory", _list, top, folders.pop())
            folders += below
            for stored in found:
                yield stored

    async def room(self) -> int | None:
        """See ObjectStore."""
        found = await self._run("cannot look at the file system", os.statvfs, self.root)
        return found.f_bavail * found.f_frsize

    async def check(self) -> None:
        """See ObjectStore. A full disk is no failure here: it can still be read."""
        await self._run(f"cannot use the directory {self.root}", _probe, self.root)


def _unknown() -> NotFound:
    return NotFound("BLOB_UNKNOWN", "the bytes of this blob are not here")


# ------------------------------------------------------------------------------------------------------------ threads


def _append(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    write(fd, offset, data)
    write_behind(fd, offset, len(data))


def _open_draft(root: Path, name: str, size: int) -> int | None:
    """A locked descriptor of exactly ``size`` bytes; None if there are fewer."""
    path = root / "uploads" / name
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        if size:
            return None
        _directory(path.parent, root / "uploads")
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        sync_directory(path.parent)
    try:
        if os.fstat(fd).st_size < size:
            os.close(fd)
            return None
        if not _lock(fd) or not _same(fd, path):
            fd = _take_over(root, path, fd, size)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(fd: int, path: Path) -> bool:
    """Whether ``path`` still is the open file."""
    try:
        there, ours = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _take_over(root: Path, path: Path, other: int, size: int) -> int:
    """A copy of the first ``size`` bytes in place of the file that another process holds, which is closed."""
    making = _new(root)
    fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for offset in range(0, size, _COPY):
            write(fd, offset, read(other, offset, min(_COPY, size - offset)))
        sync(fd)
        making.rename(path)
        sync_directory(path.parent)
    except BaseException:
        making.unlink(missing_ok=True)
        os.close(fd)
        raise
    os.close(other)
    return fd


def _new(root: Path) -> Path:
    return root / "uploads" / _MAKING / secrets.token_hex(16)


def _tidy(folder: Path, before: float) -> None:
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # its maker is done with it
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_mtime < before and _lock(fd):
                    path.unlink()
            finally:
                os.close(fd)


def _publish(fd: int, draft: Path, target: Path) -> None:
    sync(fd)
    _directory(target.parent, _top(target))
    if not _same(fd, draft):
        if _same(fd, target):
            return
        raise OSError(0, "another process has taken the upload over")
    draft.rename(target)
    sync_directory(target.parent)
    sync_directory(draft.parent)


def _put(root: Path, target: Path, data: bytes) -> None:
    making = _new(root)
    fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write(fd, 0, data)
        sync(fd)
        _directory(target.parent, root / "blobs")
        making.rename(target)
        sync_directory(target.parent)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _top(target: Path) -> Path:
    """The ``blobs`` above an object."""
    return next(path for path in target.parents if path.name == "blobs")


def _directory(path: Path, top: Path) -> None:
    """Make ``path``, durably up to ``top``, which is there."""
    if path.is_dir():
        return
    _directory(path.parent, top)
    make_directory(path)
    sync_directory(path.parent)


def _open_object(path: Path) -> tuple[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return fd, os.fstat(fd).st_size


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_same(fd: int, path: Path) -> None:
    if _same(fd, path):
        path.unlink(missing_ok=True)


def _list(top: Path, folder: Path) -> tuple[list[Path], list[Stored]]:
    below: list[Path] = []
    found: list[Stored] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return [], []
    for entry in entries:
        name = str(Path(entry.path).relative_to(top))
        with contextlib.suppress(FileNotFoundError, ValueError):  # removed meanwhile, or no name of ours
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                check_object_name(name)
                state = entry.stat(follow_symlinks=False)
                found.append(Stored(name, state.st_size, state.st_mtime))
    return below, found


def _probe(root: Path) -> None:
    for folder in ("blobs", "uploads"):
        if not os.access(root / folder, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(0, f"{folder} cannot be written")
    making = _new(root)
    os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    making.unlink(missing_ok=True)


def _share(root: Path) -> int:
    """Hold the lock in common with other processes. Older releases held it alone."""
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(fd)
        raise LocalError(f"the directory {root} is in use by an older release") from err
    except BaseException:
        os.close(fd)
        raise
    return fd


def _old_partials(root: Path) -> Iterator[Path]:
    """What older releases left of unfinished uploads: their hashes died with their process."""
    folder = root / "partial"
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def _prepare(root: Path) -> int:
    check_directory(root)
    try:
        lock = _share(root)
    except OSError as err:
        raise local_error(f"cannot use the directory {root}", err) from err
    try:
        for path in (root / "blobs", root / "uploads", root / "uploads" / _MAKING):
            check_directory(path)
        _probe(root)
        for path in _old_partials(root):
            path.unlink(missing_ok=True)
        for path in (root / "blobs", root / "uploads", root):
            sync_directory(path)
    except BaseException as err:
        os.close(lock)
        if isinstance(err, OSError):
            raise local_error(f"cannot use the directory {root}", err) from err
        raise
    return lock


@asynccontextmanager
async def open_file_objects(root: Path, *, workers: int = WORKERS) -> AsyncIterator[FileObjects]:
    """Keep objects in ``root``, with other processes of this release; directories are made with mode 0700, files with
    0600.

    Raises LocalError if it cannot be written, belongs to another user, or is in use by an older release.
    """
    lock = await trio.to_thread.run_sync(_prepare, root)
    try:
        yield FileObjects(root, workers=workers)
    finally:
        os.close(lock)
