"""The seam ``Source``: one place that bytes of a blob come from."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest


class Incoming(Protocol):
    """Bytes on their way from a source."""

    async def read_into(self, buffer: memoryview) -> int:
        """Fill ``buffer`` from its start with what is there; the number of bytes, at least 1, never more than asked
        for in all. Raises Unreachable when the bytes are cut short."""


class Source(Protocol):
    """A peer, the tracker, a gateway or an upstream registry. Nothing from it is trusted before it is hashed."""

    @property
    def name(self) -> str:
        """Unique among the sources of a flight, stable over time: a peer id, "tracker", a gateway's URL."""

    @property
    def kind(self) -> str:
        """ "peer", "tracker", "ipfs" or "upstream": the label of the byte counters."""

    async def table(self, ref: BlobRef) -> dict[bytes, bytes]:
        """The inner dag-pb blocks under ``ref.root``, by CID, each hashed. Raises RemoteError or NotFound."""

    def fetch(self, digest: Digest, offset: int, length: int) -> AbstractAsyncContextManager[Incoming]:
        """Open the bytes ``offset`` .. ``offset + length`` of the blob.

        Entering raises NotFound (it has not got them), RemoteBusy (later) or Unreachable. Leaving early cancels the
        request.
        """
