"""The seam ``ObjectStore``: where a registry keeps bytes, under names that it chooses.

Several processes, on one machine or on many, use one store at a time. What a name means, and who may read it, is the
catalog's business: a store knows neither digests nor repositories. An object never changes once it is published.

An upload is a ``Draft``: bytes that are appended, that can be read back (a hash's state cannot be kept, so who goes on
with an upload reads what is there), and that at last become the object of the same name.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from p2pregistry.serve.http import BlobSlice, Stream
from p2pregistry.store.base import OpenBytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One name in a store: ``size`` in bytes, ``modified`` in seconds since 1970."""

    name: str
    size: int
    modified: float


class Draft(Protocol):
    """The bytes of one upload. One task uses it at a time."""

    @property
    def size(self) -> int:
        """Bytes appended so far."""

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end; they may stay in memory (16 MiB at most) until ``flush``. ``data`` may be reused
        afterwards. Raises StorageFull or LocalError; the draft is then as it was at the last ``flush``, if reopened."""

    async def flush(self) -> None:
        """Make all that was appended durable and readable. Raises StorageFull or LocalError."""

    async def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` of what was flushed. Raises LocalError."""

    async def publish(self) -> None:
        """Flush, and make it the object of this name: durable, then visible, at once and whole. Repeating it after a
        crash in the middle is no error. The draft may not be used afterwards. Raises StorageFull or LocalError."""

    async def discard(self) -> None:
        """Forget the bytes. Idempotent; what cannot be removed now is left for ``drafts`` to find."""

    async def aclose(self) -> None:
        """Let go of it, keeping what was flushed. Idempotent."""


class Object(OpenBytes, Protocol):
    """A published object, open for reading. ``read_at`` raises LocalError, or NotFound (BLOB_UNKNOWN) where the store
    finds out no sooner."""


#: A part of a name.
_PART: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]*")


def check_object_name(name: str) -> None:
    """Raises ValueError for a name that no store takes."""
    if not 0 < len(name) <= 200 or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError("a name is 1 to 200 of a-z 0-9 . _ - /, and none of its parts is empty or begins with a dot")


class ObjectStore(Protocol):
    """Names are those of ``check_object_name`` (ValueError)."""

    async def draft(self, name: str, size: int) -> Draft:
        """The draft of this name with exactly ``size`` bytes: what was flushed beyond is dropped; 0 begins a new one.

        Raises NotFound (BLOB_UPLOAD_UNKNOWN) if there are fewer bytes, LocalError."""

    async def put(self, name: str, data: bytes) -> None:
        """Make ``data`` the object: durable, then visible. Raises StorageFull or LocalError."""

    async def open(self, name: str, size: int) -> Object:
        """``size`` is what the catalog knows. Raises NotFound (BLOB_UNKNOWN), LocalError; a store that would need a
        request of its own to find out may leave that to the first read."""

    async def size(self, name: str) -> int:
        """Bytes. Raises NotFound (BLOB_UNKNOWN), LocalError."""

    async def body(self, name: str, size: int, offset: int, length: int) -> BlobSlice | Stream:
        """What to answer a client with: bytes ``offset`` to ``offset + length`` of an object of ``size`` bytes. The
        caller sets ``sent`` and ``pace``. Raises NotFound (BLOB_UNKNOWN), LocalError."""

    def link(self, name: str, filename: str, lifetime: float) -> str | None:
        """A URL where a client may GET the object for ``lifetime`` seconds without further rights, or None if this
        store gives none."""

    async def delete(self, name: str) -> None:
        """Remove the object; open readers of files go on. One that is not there is no error. Raises LocalError."""

    def objects(self) -> AsyncIterator[Stored]:
        """Every object; for finding what nothing refers to, not for hot paths."""

    def drafts(self) -> AsyncIterator[Stored]:
        """Every draft that has bytes."""

    async def room(self) -> int | None:
        """Bytes that can still be written; None where there is no bound that this store knows."""

    async def check(self) -> None:
        """Raises LocalError if the store cannot be used now; for /readyz."""
