"""Blobs by digest, as the peer API wants them: the catalog knows which object one is in, the store has its bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound
from p2pregistry.objects.base import Object, ObjectStore
from tracker.catalog.base import BlobHere

#: Answers of the catalog that are remembered, and for how many seconds: a crowd asks for one blob's pieces again and
#: again. A blob that got another object meanwhile is found out by its old one being gone.
_REMEMBERED: Final = 10_000
_LASTS: Final = 30.0


class Where(Protocol):
    """What is needed of the catalog."""

    async def named_blob(self, digest: Digest) -> BlobHere | None:
        """The blob that some manifest's claim names, and its object."""


class HeldBlob:
    """An open object under its digest: a ``p2pregistry.store.base.Blob``."""

    __slots__ = ("_blobs", "_digest", "_object")

    def __init__(self, digest: Digest, opened: Object, blobs: Blobs | None = None) -> None:
        self._digest = digest
        self._object = opened
        self._blobs = blobs

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size(self) -> int:
        """Bytes."""
        return self._object.size

    def fileno(self) -> int | None:
        """See ``Object``."""
        return self._object.fileno()

    async def read_at(self, offset: int, length: int) -> bytes:
        """See ``Object``."""
        try:
            return await self._object.read_at(offset, length)
        except (NotFound, LocalError):
            if self._blobs is not None:
                self._blobs.forget(self._digest)
            raise

    def close(self) -> None:
        """Idempotent."""
        self._object.close()


class Blobs:
    """Blobs that claims name."""

    def __init__(self, catalog: Where, objects: ObjectStore) -> None:
        self._catalog = catalog
        self._objects = objects
        self._known: OrderedDict[Digest, tuple[float, BlobHere]] = OrderedDict()

    async def open(self, digest: Digest) -> HeldBlob:
        """Raises NotFound (BLOB_UNKNOWN), LocalError."""
        here, fresh = await self._where(digest)
        try:
            opened = await self._objects.open(here.object, here.ref.size)
        except NotFound:
            self.forget(digest)
            if fresh:
                raise
            here, _ = await self._where(digest)
            opened = await self._objects.open(here.object, here.ref.size)
        return HeldBlob(digest, opened, self)

    def forget(self, digest: Digest) -> None:
        """Ask the catalog again."""
        self._known.pop(digest, None)

    async def _where(self, digest: Digest) -> tuple[BlobHere, bool]:
        """Where it is, and whether the catalog has just said so."""
        known = self._known.get(digest)
        if known is not None and trio.current_time() - known[0] < _LASTS:
            return known[1], False
        here = await self._catalog.named_blob(digest)
        if here is None:
            self.forget(digest)
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
        self._known[digest] = (trio.current_time(), here)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return here, True
