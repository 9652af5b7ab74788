"""Blobs in files.

    <root>/lock                          held by the one process that owns the root
    <root>/blobs/<algorithm>/<2>/<hex>   complete blobs; a name here is a promise that the bytes are whole and on disk
    <root>/partial/<key>                 bytes on their way, sparse

A commit is: fsync the file, make its directory, rename, fsync both directories, in one worker thread. The rename comes
last, so that a crash at any moment leaves either a partial or a blob, never half of one.

Every file operation runs in a worker thread of a limiter of this store's own: a slow disk must not take the threads
that other parts of the process wait for. A thread that has begun is never abandoned, so a descriptor is closed only
when no thread uses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from p2pregistry.digest import ALGORITHMS, Digest
from p2pregistry.errors import LocalError, NotFound
from p2pregistry.store.base import Hasher
from p2pregistry.store.descriptor import Descriptor, read, sync, write
from p2pregistry.store.owner import check_directory, local_error, make_directory, own, sync_directory

#: What a key of staged bytes looks like; a leading dot is kept for files of our own.
KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")
#: Worker threads that one store may use at a time.
WORKERS = 16
#: Bytes read at once to be hashed: small enough for the processor's cache.
HASH_READ = 256 << 10
_SEEK_DATA: int | None = getattr(os, "SEEK_DATA", None)
_SEEK_HOLE: int | None = getattr(os, "SEEK_HOLE", None)

_T = TypeVar("_T")


def check_key(key: str) -> None:
    """Raises ValueError for a key that ``stage`` does not take."""
    if not KEY.fullmatch(key):
        raise ValueError("a key of staged bytes is 1 to 150 of A-Z a-z 0-9 . _ - and does not begin with a dot")


def _write_verified(fd: int, offset: int, data: bytes | bytearray | memoryview, sha256: bytes) -> bool:
    if hashlib.sha256(data).digest() != sha256:
        return False
    write(fd, offset, data)
    return True


def _hash(fd: int, offset: int, length: int, hasher: Hasher) -> None:
    buffer = memoryview(bytearray(min(length, HASH_READ)))
    end = offset + length
    while offset < end and (count := os.preadv(fd, [buffer[: end - offset]], offset)):
        hasher.update(buffer[:count])
        offset += count


def _extents(fd: int) -> list[tuple[int, int]]:
    """(start, end) of the parts that are not holes; everything, where the file system does not say."""
    end = os.fstat(fd).st_size
    if _SEEK_DATA is None or _SEEK_HOLE is None:
        return [(0, end)] if end else []
    found: list[tuple[int, int]] = []
    at = 0
    while at < end:
        try:
            start = os.lseek(fd, at, _SEEK_DATA)
            at = os.lseek(fd, start, _SEEK_HOLE)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole is left
                break
            if err.errno in (errno.EINVAL, errno.ENOTSUP):
                return [(0, end)]
            raise
        found.append((start, at))
    return found


class FileBlob:
    """A complete blob in a file; see Blob."""

    def __init__(self, digest: Digest, fd: int, size: int, limiter: trio.CapacityLimiter) -> None:
        self._digest = digest
        self._size = size
        self._open = Descriptor(fd, limiter)

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int | None:
        if self._open.closed:
            raise RuntimeError("used after it was closed")
        return self._open.fd

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Blob. Raises LocalError when the disk fails."""
        return await self._open.run("cannot read a blob", read, offset, length)

    def close(self) -> None:
        self._open.close()


class FileStaged:
    """Staged bytes in a sparse file; see Staged."""

    def __init__(self, store: FileStore, key: str, fd: int) -> None:
        self._store = store
        self._key = key
        self._open = Descriptor(fd, store.limiter)
        self._path = store.root / "partial" / key

    @property
    def key(self) -> str:
        return self._key

    async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._open.run("cannot write to the disk", write, offset, data)

    async def write_verified(self, offset: int, data: bytes | bytearray | memoryview, sha256: bytes) -> bool:
        return await self._open.run("cannot write to the disk", _write_verified, offset, data, sha256)

    async def read_at(self, offset: int, length: int) -> bytes:
        return await self._open.run("cannot read staged bytes", read, offset, length)

    async def hash_at(self, offset: int, length: int, hasher: Hasher) -> None:
        await self._open.run("cannot read staged bytes", _hash, offset, length, hasher)

    def fileno(self) -> int | None:
        if self._open.closed:
            raise RuntimeError("used after it was closed")
        return self._open.fd

    async def extents(self) -> list[tuple[int, int]]:
        """See Sparse."""
        return await self._open.run("cannot read staged bytes", _extents)

    async def commit(self, digest: Digest) -> None:
        """See Staged. Raises StorageFull or LocalError; the staged bytes are then still there."""
        if self._open.users:
            raise RuntimeError("a commit while other operations are under way")
        target = self._store.path(digest)
        # not to be cut in two: once begun the thread is waited for, whoever is cancelled
        await self._open.run("cannot commit a blob", _commit, self._path, target)
        self.close()

    async def discard(self) -> None:
        if self._store.lets_go(self):
            self._open.close()
            try:
                await trio.to_thread.run_sync(lambda: self._path.unlink(missing_ok=True), limiter=self._store.limiter)
            except OSError as err:
                raise local_error("cannot remove staged bytes", err) from err
            finally:
                self._store.release(self)

    def close(self) -> None:
        self._open.close()
        self._store.release(self)


def _commit(fd: int, partial: Path, target: Path) -> None:
    sync(fd)
    shard = target.parent
    if not shard.is_dir():
        make_directory(shard)
        sync_directory(shard.parent)
    try:
        there = target.stat().st_size
    except FileNotFoundError:
        there = -1
    if there == os.fstat(fd).st_size:
        partial.unlink(missing_ok=True)
        return
    # a blob of another size is damaged (a disk error, a hand in the directory): ours has just been verified
    partial.rename(target)
    sync_directory(shard)
    sync_directory(partial.parent)


def _put(partial: Path, target: Path, data: bytes) -> None:
    fd = _open_partial(partial)
    try:
        os.ftruncate(fd, 0)
        write(fd, 0, data)
        _commit(fd, partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


class FileStore:
    """Blobs under a directory; see BlobStore. Made by ``open_files``."""

    def __init__(self, root: Path, *, workers: int = WORKERS) -> None:
        self.root = root
        self.limiter = trio.CapacityLimiter(workers)
        self._staged: dict[str, FileStaged | None] = {}
        self._puts = 0

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        text = digest.hex
        return self.root / "blobs" / digest.algorithm / text[:2] / text

    def lets_go(self, staged: FileStaged) -> bool:
        """Whether ``staged`` still speaks for its key (internal to this module)."""
        return self._staged.get(staged.key) is staged

    def release(self, staged: FileStaged) -> None:
        """``staged`` is done with its key (internal to this module)."""
        if self.lets_go(staged):
            del self._staged[staged.key]

    async def _run(self, what: str, fn: Callable[..., _T], *args: object) -> _T:
        try:
            return await trio.to_thread.run_sync(fn, *args, limiter=self.limiter)
        except OSError as err:
            raise local_error(what, err) from err

    async def stage(self, key: str) -> FileStaged:
        """See BlobStore. Raises LocalError if these bytes are open already: two writers of one file would spoil a
        blob that one of them has committed."""
        check_key(key)
        if key in self._staged:
            raise LocalError("these staged bytes are in use")
        self._staged[key] = None
        staged: FileStaged | None = None
        try:
            fd = await self._run("cannot open staged bytes", _open_partial, self.root / "partial" / key)
            staged = self._staged[key] = FileStaged(self, key, fd)
            return staged
        finally:
            if staged is None:
                del self._staged[key]

    async def put(self, digest: Digest, data: bytes) -> None:
        """See BlobStore. One thread hop."""
        self._puts += 1
        partial = self.root / "partial" / f"put-{self._puts}"
        await self._run("cannot write to the disk", _put, partial, self.path(digest), data)

    async def staged(self) -> list[str]:
        """See BlobStore."""
        names = await self._run("cannot list staged bytes", _names, self.root / "partial")
        return sorted(name for name in names if KEY.fullmatch(name))

    async def staged_at(self, key: str) -> float:
        """When the staged bytes were last written, unix seconds. Raises NotFound (BLOB_UPLOAD_UNKNOWN)."""
        check_key(key)
        try:
            found = await trio.to_thread.run_sync(os.stat, self.root / "partial" / key, limiter=self.limiter)
        except FileNotFoundError as err:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "there are no staged bytes of this key") from err
        except OSError as err:
            raise local_error("cannot look at staged bytes", err) from err
        return found.st_mtime

    async def open(self, digest: Digest) -> FileBlob:
        """See BlobStore."""
        try:
            fd, size = await trio.to_thread.run_sync(_open_blob, self.path(digest), limiter=self.limiter)
        except FileNotFoundError as err:
            raise _unknown(digest) from err
        except OSError as err:
            raise local_error("cannot open a blob", err) from err
        return FileBlob(digest, fd, size, self.limiter)

    async def size(self, digest: Digest) -> int:
        """See BlobStore."""
        try:
            found = await trio.to_thread.run_sync(os.stat, self.path(digest), limiter=self.limiter)
        except FileNotFoundError as err:
            raise _unknown(digest) from err
        except OSError as err:
            raise local_error("cannot look at a blob", err) from err
        return found.st_size

    async def delete(self, digest: Digest) -> None:
        """See BlobStore."""
        await self._run("cannot remove a blob", _remove, self.path(digest))

    async def blobs(self) -> AsyncIterator[tuple[Digest, int]]:
        """See BlobStore. One thread hop a shard; files with other names are passed over."""
        for algorithm in ALGORITHMS:
            top = self.root / "blobs" / algorithm
            for shard in sorted(await self._run("cannot list blobs", _names, top)):
                for digest, size in await self._run("cannot list blobs", _shard, top / shard, algorithm):
                    yield digest, size

    async def free_bytes(self) -> int:
        """Bytes that this process may still write to the file system of the store."""
        found = await self._run("cannot look at the file system", os.statvfs, self.root)
        return found.f_bavail * found.f_frsize


def _unknown(digest: Digest) -> NotFound:
    return NotFound("BLOB_UNKNOWN", "the blob is not here", detail={"digest": str(digest)})


def _open_partial(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _open_blob(path: Path) -> tuple[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return fd, os.fstat(fd).st_size


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _names(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return []


def _shard(path: Path, algorithm: str) -> list[tuple[Digest, int]]:
    found: list[tuple[Digest, int]] = []
    if not path.is_dir():
        return found
    for entry in sorted(path.iterdir()):
        if len(entry.name) != 2 * ALGORITHMS[algorithm] or entry.name[:2] != path.name:
            continue
        try:
            digest = Digest(algorithm, bytes.fromhex(entry.name))
            size = entry.stat().st_size
        except (ValueError, FileNotFoundError):
            continue  # not a blob of ours, or deleted meanwhile
        if digest.hex == entry.name:
            found.append((digest, size))
    return found


def _prepare(root: Path) -> int:
    check_directory(root)
    lock = own(root / "lock", f"the directory {root}")
    try:
        for path in (root / "partial", root / "blobs", *(root / "blobs" / algorithm for algorithm in ALGORITHMS)):
            check_directory(path)
        probe = root / "partial" / ".probe"  # a read-only mount is told apart only by writing
        probe.write_bytes(b"")
        for entry in os.scandir(root / "partial"):
            if entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
        for path in (root / "blobs", root):
            sync_directory(path)
    except BaseException as err:
        os.close(lock)
        if isinstance(err, OSError):
            raise local_error(f"cannot use the directory {root}", err) from err
        raise
    return lock


@asynccontextmanager
async def open_files(root: Path, *, workers: int = WORKERS) -> AsyncIterator[FileStore]:
    """Own ``root`` and keep blobs in it; directories are made with mode 0700, files with 0600.

    Raises LocalError if it cannot be written, belongs to another user, or is in use by another process.
    """
    lock = await trio.to_thread.run_sync(_prepare, root)
    try:
        yield FileStore(root, workers=workers)
    finally:
        os.close(lock)
