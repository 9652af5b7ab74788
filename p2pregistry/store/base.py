"""The seam ``BlobStore``: bytes of blobs, complete and on their way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from p2pregistry.digest import Digest


class Hasher(Protocol):
    """What hashlib gives."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes in a file, for sendfile: ``length`` of them from ``offset`` of descriptor ``fd``."""

    fd: int
    offset: int
    length: int


class OpenBytes(Protocol):
    """Complete bytes, open for reading. They stay readable until closed, whatever happens to their name."""

    @property
    def size(self) -> int:
        """Bytes."""

    def fileno(self) -> int | None:
        """A file descriptor whose offsets are those of the bytes, for sendfile; None where they are not in a file."""

    async def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end."""

    def close(self) -> None:
        """Idempotent."""


class Blob(OpenBytes, Protocol):
    """A complete blob, open for reading."""

    @property
    def digest(self) -> Digest: ...


class Staged(Protocol):
    """Bytes on their way to becoming a blob; kept under a key so that a restart finds them again."""

    @property
    def key(self) -> str: ...

    async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write at ``offset``; holes are allowed. Raises StorageFull or LocalError."""

    async def write_verified(self, offset: int, data: bytes | bytearray | memoryview, sha256: bytes) -> bool:
        """Hash ``data`` and, if it has this sha256, write it, in one worker thread. False: not written."""

    async def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; holes read as zeros, the end comes where the furthest write ended."""

    async def hash_at(self, offset: int, length: int, hasher: Hasher) -> None:
        """Give ``hasher`` what ``read_at`` would return; read and hashed in one worker thread."""

    def fileno(self) -> int | None:
        """A file descriptor whose offsets are those of the bytes; None where they are not in a file. A duplicate of
        it reads them whatever happens to the object."""

    async def commit(self, digest: Digest) -> None:
        """Make it the blob ``digest``: durable, then visible, at once and whole. The caller has verified the bytes.
        If that blob is there already this one is discarded. The object may not be used afterwards."""

    async def discard(self) -> None:
        """Forget the bytes. Idempotent."""

    def close(self) -> None:
        """Let go of it but keep the bytes for ``stage`` to find. Idempotent."""


@runtime_checkable
class Sparse(Protocol):
    """Staged bytes that know which parts of them were never written."""

    async def extents(self) -> list[tuple[int, int]]:
        """(start, end) in bytes of the parts that may have been written, in order; the rest are holes."""


class BlobStore(Protocol):
    """Where blobs live. A blob is visible only when it is complete and durable."""

    async def stage(self, key: str) -> Staged:
        """Open the staged bytes under ``key``, new or left by an earlier run.

        A key is 1 to 150 of A-Z a-z 0-9 . _ - and does not begin with a dot (ValueError). Raises LocalError if they
        are open already, StorageFull.
        """

    async def put(self, digest: Digest, data: bytes) -> None:
        """Make these bytes, which the caller has verified, the blob ``digest``: durable, then visible, at once and
        whole. For small ones. Raises StorageFull or LocalError."""

    async def staged(self) -> list[str]:
        """Keys of staged bytes that exist."""

    async def open(self, digest: Digest) -> Blob:
        """Raises NotFound (BLOB_UNKNOWN)."""

    async def size(self, digest: Digest) -> int:
        """Bytes. Raises NotFound (BLOB_UNKNOWN)."""

    async def delete(self, digest: Digest) -> None:
        """Remove it; open readers keep reading. A blob that is not there is no error."""

    def blobs(self) -> AsyncIterator[tuple[Digest, int]]:
        """Every complete blob and its size; for start-up and scrubbing, not for hot paths."""
