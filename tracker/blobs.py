"""Blobs by digest, as handlers want them: the catalog knows which object one is in, the object store has its bytes."""

from __future__ import annotations

from p2pregistry.digest import Digest
from p2pregistry.objects.base import Object


class HeldBlob:
    """An open object under its digest: a ``p2pregistry.store.base.Blob``."""

    __slots__ = ("_digest", "_object")

    def __init__(self, digest: Digest, opened: Object) -> None:
        self._digest = digest
        self._object = opened

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
        return await self._object.read_at(offset, length)

    def close(self) -> None:
        """Idempotent."""
        self._object.close()
