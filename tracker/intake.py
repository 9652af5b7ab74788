"""Bytes of a blob on their way in: hashed whole and by pieces, and appended to a draft, while more of them arrive.

                                                                    | whole hash
    network -> blocks of at most 1 MiB, none across a piece boundary | piece hash
                                                                    | draft

The three on the right take the blocks at their own pace, each in worker threads, so that the slowest of them, not their
sum, sets the pace, and a disk that makes the bytes durable does not hold up the hashes. The number of blocks between
them is bounded, in each upload and in the whole process: memory does not depend on what clients send.

The hashes are only a cache: they cannot be kept, and who goes on with a draft without them reads what is there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Final, Protocol

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.objects.base import Draft

#: Blocks of one upload, and of all uploads of a process, that wait for hashes and disk.
QUEUE: Final = 8
BLOCKS: Final = 64
#: After so many bytes they are made durable and recorded: what a process that dies in the middle loses at most.
CHECKPOINT: Final = 16 << 20
#: Up to this many bytes a hash costs less than the way to a thread and back.
_INLINE: Final = 32 << 10
_READ: Final = PIECE_SIZE

#: Told how many bytes of the draft are durable.
Record = Callable[[int], Awaitable[None]]


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


class Readable(Protocol):
    """A draft or an object."""

    async def read_at(self, offset: int, length: int) -> bytes: ...


class Hashes:
    """The hashes of the first ``offset`` bytes of a blob; a ``Hashes`` of fewer bytes can catch up by reading."""

    def __init__(self, algorithm: str, limiter: trio.CapacityLimiter) -> None:
        self.offset = 0
        self.algorithm = algorithm
        self._limiter = limiter
        self._whole = hashlib.new(algorithm)
        self._piece = hashlib.sha256()
        self._pieces = bytearray()
        self._piece_offset = 0

    async def whole(self, block: bytes | bytearray) -> None:
        """Give the next bytes to the hash of all of them."""
        await self._update(self._whole, block)
        self.offset += len(block)

    async def piece(self, block: bytes | bytearray) -> None:
        """Give the next bytes, none beyond the end of a piece, to the piece hashes."""
        await self._update(self._piece, block)
        self._piece_offset += len(block)
        if self._piece_offset % PIECE_SIZE == 0:
            self._pieces += self._piece.digest()
            self._piece = hashlib.sha256()

    async def _update(self, hasher: hashlib._Hash, block: bytes | bytearray) -> None:
        if len(block) <= _INLINE:
            hasher.update(block)
        else:
            await trio.to_thread.run_sync(hasher.update, block, limiter=self._limiter)

    async def catch_up(self, source: Readable, size: int) -> None:
        """Read what is missing up to ``size``, which is durable. Raises LocalError. After a cancel it is of no use."""
        while self.offset < size:
            data = await read_exactly(source, self.offset, min(_READ - self.offset % _READ, size - self.offset))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.whole, data)
                nursery.start_soon(self.piece, data)

    def digest(self) -> Digest:
        """Of what has been hashed."""
        return Digest(self.algorithm, self._whole.digest())

    def metainfo(self, digest: Digest) -> Metainfo:
        """Of what has been hashed, under ``digest``, which the caller has checked."""
        pieces = bytes(self._pieces)
        if self.offset % PIECE_SIZE or not self.offset:
            pieces += self._piece.digest()
        return Metainfo.of(digest, self.offset, pieces)


async def read_exactly(source: Readable, offset: int, length: int) -> bytes:
    """Raises LocalError if fewer bytes are there: the caller knows that they were durable."""
    data = await source.read_at(offset, length)
    if len(data) != length:
        raise LocalError("an upload has fewer bytes than were recorded")
    return data


async def hash_again(source: Readable, size: int, algorithm: str, limiter: trio.CapacityLimiter) -> Digest:
    """The digest by another algorithm than was expected. Raises LocalError."""
    hasher = hashlib.new(algorithm)
    for offset in range(0, size, _READ):
        data = await read_exactly(source, offset, min(_READ, size - offset))
        await trio.to_thread.run_sync(hasher.update, data, limiter=limiter)
    return Digest(algorithm, hasher.digest())


class Intake:
    """One request's bytes on their way into ``draft``. ``hashes`` take part if they are those of all the bytes that are
    there already. ``budget``: what is left of the process's BLOCKS."""

    def __init__(self, draft: Draft, hashes: Hashes, budget: trio.Semaphore, record: Record | None) -> None:
        self._draft = draft
        self._hashes = hashes if hashes.offset == draft.size else None
        self._budget = budget
        self._mine = trio.Semaphore(QUEUE)
        self._record = record
        self._recorded = draft.size
        self._failure: LocalError | None = None
        self._stopped = False
        self._source = trio.CancelScope()

    @property
    def sound(self) -> bool:
        """False once bytes have been lost between hashes and draft: the hashes are of no more use."""
        return self._failure is None and not self._stopped

    def stop(self) -> None:
        """Write no more: another process goes on with the draft."""
        self._stopped = True
        self._source.cancel()

    async def take(self, chunks: AsyncIterable[bytes]) -> None:
        """Append the bytes. Raises what ``chunks`` raises, after taking what came before, and LocalError or StorageFull
        from the disk. A cancelled call takes what it had read."""
        lanes: list[Callable[[bytearray], Awaitable[None]]] = [self._write]
        if self._hashes is not None:
            lanes += [self._hashes.whole, self._hashes.piece]
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            senders: list[trio.MemorySendChannel[_Block]] = []
            for lane in lanes:
                send, receive = trio.open_memory_channel[_Block](math.inf)
                senders.append(send)
                nursery.start_soon(self._drain, lane, receive)
            try:
                with self._source:
                    await self._feed(chunks, senders)
            except Exception as err:  # noqa: BLE001 - raised again below, outside the nursery and so ungrouped
                failure = err
            finally:
                for send in senders:
                    send.close()
        if self._failure is not None:
            raise self._failure
        if failure is not None:
            raise failure

    async def _feed(self, chunks: AsyncIterable[bytes], senders: list[trio.MemorySendChannel[_Block]]) -> None:
        source = blocks_of(chunks, self._draft.size)
        try:
            async for data in source:
                # shielded: what was read is taken, also by a request that is being cancelled; the lanes always go on
                with trio.move_on_at(math.inf, shield=True):
                    await self._mine.acquire()
                    await self._budget.acquire()
                block = _Block(data, len(senders))
                for send in senders:
                    send.send_nowait(block)
        finally:
            with trio.move_on_at(math.inf, shield=True):
                await source.aclose()

    async def _drain(
        self, lane: Callable[[bytearray], Awaitable[None]], blocks: trio.MemoryReceiveChannel[_Block]
    ) -> None:
        # Shielded: hashes and draft must end at the same byte. It ends when the sender closes, a few blocks later.
        with trio.move_on_at(math.inf, shield=True), blocks:
            async for block in blocks:
                try:
                    if self.sound:
                        await lane(block.data)
                except LocalError as err:
                    self._failure = self._failure or err
                    self._source.cancel()
                finally:
                    block.left -= 1
                    if block.left == 0:
                        self._mine.release()
                        self._budget.release()

    async def _write(self, block: bytearray) -> None:
        await self._draft.append(block)
        if self._record is not None and self._draft.size - self._recorded >= CHECKPOINT:
            await self._draft.flush()
            self._recorded = self._draft.size
            await self._record(self._recorded)


class _Block:
    """Bytes that ``left`` lanes have still to take."""

    __slots__ = ("data", "left")

    def __init__(self, data: bytearray, left: int) -> None:
        self.data = data
        self.left = left
