"""What flights need of the node around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.sources.base import Source


class Finder(Protocol):
    """Where sources come from."""

    @property
    def tracker(self) -> Source | None:
        """The tracker, unless it is known to be down."""

    async def find(self, digest: Digest, found: Callable[[Source], None]) -> None:
        """Call ``found`` for each peer that holds the blob; return when the look-up has ended."""

    def ban(self, source: str, why: str) -> None:
        """It sent bytes that do not verify."""


class Shelf(Protocol):
    """Where finished blobs are kept and noted."""

    def room(self, digest: Digest, size: int) -> AbstractAsyncContextManager[None]:
        """Make room for ``size`` bytes and keep it free while the context lasts. Raises StorageFull."""

    def pin(self, digest: Digest) -> AbstractContextManager[None]:
        """Keep what belongs to this digest from eviction."""

    async def added(self, digest: Digest, size: int) -> None:
        """The blob is in the store."""


class Tables(Protocol):
    """Where piece tables are kept."""

    def metainfo(self, digest: Digest) -> Metainfo | None: ...

    async def put_metainfo(self, info: Metainfo) -> None: ...


class Buffers:
    """Piece buffers, used over and over."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(PIECE_SIZE)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < 32:
            self._free.append(buffer)
