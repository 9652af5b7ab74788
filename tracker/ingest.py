"""Bytes of a blob on their way in: hashed whole and by pieces, and written, while more of them arrive.

    network -> blocks of at most 1 MiB, none across a piece boundary -> queue -> whole hash | piece hash | disk

The three on the right run at once, each in a worker thread, so that the slowest of them, not their sum, sets the pace.
The queue is short: memory does not depend on the size of the blob.

What has been taken stays consistent at every block: when the sender goes away or the task is cancelled, what is in the
queue is still hashed and written, and ``offset`` says how far that is. Only a failed disk leaves it unusable.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.store.base import Staged

#: Blocks that wait between the network and the hashes.
QUEUE: Final = 4
#: Up to this many bytes a hash costs less than the way to a thread and back.
_INLINE: Final = 32 << 10


async def blocks_of(chunks: AsyncIterable[bytes], offset: int) -> AsyncGenerator[bytearray, None]:
    """The bytes of ``chunks``, which begin at ``offset`` of the blob, cut at the piece boundaries.

    When ``chunks`` fails, what came before is yielded first.
    """
    block = bytearray()
    room = PIECE_SIZE - offset % PIECE_SIZE
    failure: Exception | None = None
    try:
        async for chunk in chunks:
            view = memoryview(chunk)
            while len(block) + len(view) >= room:
                left = room - len(block)
                block += view[:left]
                view = view[left:]
                yield block
                block, room = bytearray(), PIECE_SIZE
            block += view
    except Exception as err:  # noqa: BLE001 - not handled here, only put off until the block has been taken
        failure = err
    if block:
        yield block
    if failure is not None:
        raise failure


class Ingest:
    """The state of one blob between requests: hashes only, no bytes. One ``take`` at a time."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self.offset = 0
        self._limiter = limiter
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._hashes = bytearray()
        self._broken = False

    @property
    def broken(self) -> bool:
        """True once a write has failed: the hashes and the bytes on disk no longer agree."""
        return self._broken

    async def take(self, staged: Staged, chunks: AsyncIterable[bytes]) -> None:
        """Hash the bytes and write them to ``staged`` behind those already taken.

        Raises what ``chunks`` raises, after taking what came before, and LocalError or StorageFull from the disk; then
        ``broken`` is set.
        """
        failure: Exception | None = None
        send, receive = trio.open_memory_channel[bytearray](QUEUE)
        async with trio.open_nursery() as nursery:
            disk: list[LocalError] = []
            nursery.start_soon(self._drain, staged, receive, nursery.cancel_scope, disk)
            with send:
                source = blocks_of(chunks, self.offset)
                try:
                    async for block in source:
                        await send.send(block)
                except trio.BrokenResourceError:
                    pass  # the disk failed; ``disk`` says how
                except Exception as err:  # noqa: BLE001 - raised again below, outside the nursery and so ungrouped
                    failure = err
                finally:
                    with trio.move_on_at(math.inf, shield=True):
                        await source.aclose()
        if disk:
            raise disk[0]
        if failure is not None:
            raise failure

    async def _drain(
        self,
        staged: Staged,
        blocks: trio.MemoryReceiveChannel[bytearray],
        scope: trio.CancelScope,
        disk: list[LocalError],
    ) -> None:
        # Shielded: hash and file must end at the same byte. It ends when the sender closes, a few blocks later.
        with trio.move_on_at(math.inf, shield=True), blocks:
            try:
                async for block in blocks:
                    await self._block(staged, block)
            except LocalError as err:
                self._broken = True
                disk.append(err)
                scope.cancel()

    async def _block(self, staged: Staged, block: bytearray) -> None:
        failure: LocalError | None = None
        if len(block) <= _INLINE:
            self._whole.update(block)
            self._piece.update(block)
            await staged.write_at(self.offset, block)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._in_thread, self._whole, block)
                nursery.start_soon(self._in_thread, self._piece, block)
                try:
                    await staged.write_at(self.offset, block)
                except LocalError as err:
                    failure = err
        if failure is not None:
            raise failure
        self.offset += len(block)
        if self.offset % PIECE_SIZE == 0:
            self._hashes += self._piece.digest()
            self._piece = hashlib.sha256()

    async def _in_thread(self, hasher: hashlib._Hash, block: bytearray) -> None:
        await trio.to_thread.run_sync(hasher.update, block, limiter=self._limiter)

    def digest(self) -> Digest:
        """sha256 of what has been taken."""
        return Digest("sha256", self._whole.digest())

    def metainfo(self, digest: Digest) -> Metainfo:
        """Of what has been taken, under ``digest``, which the caller has checked."""
        hashes = bytes(self._hashes)
        if self.offset % PIECE_SIZE or not self.offset:
            hashes += self._piece.digest()
        return Metainfo.of(digest, self.offset, hashes)
