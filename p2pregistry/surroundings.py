"""What flights need of the node around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.sources.base import Incoming, Source

Need = Callable[[], bool]


def not_in_need() -> bool:
    """Those who are known deliver, as far as is known."""
    return False


class Tracker(Source, Protocol):
    """The tracker, as a source: in a crowd it chooses which piece it sends."""

    def next_piece(self, digest: Digest, wanted: bytes) -> AbstractAsyncContextManager[Chosen]:
        """Ask for one of the pieces whose byte in ``wanted`` is 1. Entering raises as ``fetch`` does."""


class Chosen(Incoming, Protocol):
    """What the tracker chose to send: ``index`` and the bytes of that piece, or None and how long to wait."""

    @property
    def index(self) -> int | None: ...

    @property
    def wait(self) -> float:
        """Seconds until it is worth asking again, where ``index`` is None."""


class Follower(Protocol):
    """Who is told where one blob can be had: its flight. Called synchronously."""

    def have(self, source: Source, pieces: bytes | None, near: bool) -> None:
        """This source has the pieces whose byte is 1 (None: all of them); ``near``: it is in this node's zone. May be
        called again when it has more."""

    def more(self, source: str, pieces: Sequence[int]) -> None:
        """A source that was told of has these pieces too."""

    def gone(self, source: str) -> None:
        """It cannot be reached any more, or has let go of the blob."""

    def crowd(self, wanting: int, holding: int) -> None:
        """How many others want the blob, and how many have all of it, as far as is known."""


class Finder(Protocol):
    """Where sources come from."""

    @property
    def tracker(self) -> Tracker | None:
        """The tracker, unless it is known to be down."""

    def follow(self, ref: BlobRef, follower: Follower) -> AbstractContextManager[None]:
        """Tell ``follower`` what is known of this blob, at once, and what is learnt while the context lasts."""

    async def announced(self, digest: Digest) -> None:
        """Wait until the tracker has said who else wants or holds the blob, or is known not to answer."""

    async def look_up(self, digest: Digest, *, need: Need = not_in_need) -> None:
        """Search for holders; followers are told of them as they are found; return when the search has ended.
        ``need``: whether by now it is time for sources of last resort, because those who are known do not deliver."""

    def ban(self, source: str, why: str) -> None:
        """It sent bytes that do not verify."""


class Shelf(Protocol):
    """Where finished blobs are kept and noted."""

    def room(self, digest: Digest, size: int, *, ahead: bool = False) -> AbstractAsyncContextManager[None]:
        """Make room for ``size`` bytes and keep it free while the context lasts. ``ahead``: no client waits for them,
        and nothing that clients use goes for them. Raises StorageFull."""

    def pin(self, digest: Digest) -> AbstractContextManager[None]:
        """Keep what belongs to this digest from eviction."""

    async def added(self, digest: Digest, size: int, *, ahead: bool = False) -> None:
        """The blob is in the store. ``ahead``: no client has asked for it yet."""


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
