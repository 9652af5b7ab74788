"""A draft in an IPFS daemon's files: see ``kubo_parts`` for how its bytes lie.

Nothing is kept but what has not been flushed and the hash of each MiB: a draft that is let go, or whose process dies,
is what the daemon has.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import parse_cid
from p2pregistry.errors import BadContent, LocalError, NotFound, RemoteError, RequestError
from p2pregistry.objects.kubo_parts import (
    BYTES,
    Part,
    chain,
    hashes_of,
    object_directory,
    parse_part,
    part_directory,
    part_hashes,
    tree,
)
from p2pregistry.objects.kubo_place import Place
from p2pregistry.observe import logger

#: Bytes that may wait in memory, and of a part, at most.
_PART: Final = 15 * PIECE_SIZE
#: Bytes fetched at a time: who reads a draft reads all of it, from its beginning.
_AHEAD: Final = 4 << 20
_CLOSED: Final = "an upload is used after it was closed"

_log = logger(__name__)


class KuboDraft:
    """See Draft. Holds 16 MiB in memory at most, and what was read last."""

    def __init__(self, place: Place, name: str, parts: Sequence[Part], hashes: bytes, tail: bytes) -> None:
        """``tail``: what follows the last of the ``parts``, of which ``hashes`` has each MiB; it is flushed already."""
        self._place, self._name = place, name
        self._parts = list(parts)
        self._hashes = bytearray(hashes)
        self._late = bytearray(tail)
        self._flushed_late = len(tail)
        self._generation, self._token, self._written = 0, secrets.token_hex(4), 0
        self._made = False
        self._read: tuple[int, bytes] = (0, b"")
        self._unusable = ""
        self._stale: list[Part] = []

    @classmethod
    async def open(cls, place: Place, name: str, size: int) -> KuboDraft:
        """See ObjectStore.draft."""
        listed = await list_parts(place, name)
        found = chain(listed)
        # whole parts that end at a whole MiB stay as they are, what follows comes into memory
        kept = [part for part in found if part.end <= size and part.end % PIECE_SIZE == 0]
        over = next((part for part in found if part.offset < size and part not in kept), None)
        start = kept[-1].end if kept else 0
        made = (over.end if over else start) < size
        if made and await place.size(name) != size:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "bytes of this upload are not here any more")
        if made:
            draft = cls(place, name, [], b"", b"")
            draft._made = True
            draft._flushed_late = size
        else:
            tail = b"" if over is None else await place.read(place.part(name, over), 0, size - start)
            hashes = b"".join([await _hashes(place, name, part) for part in kept])
            draft = cls(place, name, kept, hashes, tail)
            draft._stale = [] if over is None else [over]
            for part in listed:
                if part not in kept and part != over:
                    await place.kubo.files_rm(place.part_directory(name, part))
        now = place.now_ms()
        draft._generation = max([now, *(part.generation + 1 for part in listed)])
        return draft

    @property
    def size(self) -> int:
        return self._flushed_late if self._made else self._whole + len(self._late)

    @property
    def _whole(self) -> int:
        """Bytes in parts that stay."""
        return self._parts[-1].end if self._parts else 0

    def _check(self) -> None:
        if self._unusable:
            raise LocalError(self._unusable)

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """See Draft."""
        self._check()
        if self._made:
            raise LocalError("an upload is an object already")
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                piece = view[at : at + _PART - len(self._late)]
                self._late += piece
                at += len(piece)
                if len(self._late) >= _PART:
                    await self._write(_PART)

    async def flush(self) -> None:
        """See Draft."""
        self._check()
        if self._made or self._flushed_late == len(self._late):
            return
        await self._write(len(self._late) // PIECE_SIZE * PIECE_SIZE)
        if self._late:
            # what is beyond the last whole MiB stays in memory, too: it is written again with what follows
            self._unusable = "an upload was interrupted while it was written; open it again"
            stale = self._stale
            tail, _ = await self._put(bytes(self._late))
            self._stale = [tail]
            await self._drop(stale)
            self._flushed_late = len(self._late)
            self._unusable = ""

    async def _write(self, count: int) -> None:
        """Make the first ``count`` bytes in memory, whole MiB, a part that stays."""
        if not count:
            return
        # until it has succeeded: after a failure or a cancel nobody knows what is there
        self._unusable = "an upload was interrupted while it was written; open it again"
        data = bytes(self._late[:count])
        part, hashes = await self._put(data)
        self._parts.append(part)
        self._hashes += hashes
        del self._late[:count]
        self._flushed_late = 0
        stale, self._stale = self._stale, []
        await self._drop(stale)
        self._unusable = ""

    async def _put(self, data: bytes) -> tuple[Part, bytes]:
        self._written = max(self._written + 1, self._place.now_ms())
        part = Part(self._generation, self._written, self._whole, len(data), self._token)
        hashes = await trio.to_thread.run_sync(hashes_of, data)
        made = tree(hashes, len(data))
        path = self._place.part_directory(self._name, part)
        await self._place.put(path, part_directory(made.root, f"{part.written}-{self._token}"), made, data)
        return part, hashes

    async def _drop(self, parts: Sequence[Part]) -> None:
        for part in parts:
            await self._place.kubo.files_rm(self._place.part_directory(self._name, part))

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Draft."""
        self._check()
        flushed = self._flushed_late if self._made else self._whole + self._flushed_late
        end = min(offset + length, flushed)
        data = bytearray()
        while (at := offset + len(data)) < end:
            start, read = self._read
            if not start <= at < start + len(read):
                start, read = self._read = (at, await self._fetch(at, end))
            data += read[at - start : end - start]
        return bytes(data)

    async def _fetch(self, offset: int, end: int) -> bytes:
        """Bytes from ``offset``, to the end of a part at most."""
        if self._made:
            return await self._place.read(self._place.object(self._name), offset, min(_AHEAD, self.size - offset))
        if offset >= self._whole:
            return bytes(self._late[offset - self._whole : end - self._whole])
        part = next(part for part in self._parts if part.offset <= offset < part.end)
        return await self._place.read(
            self._place.part(self._name, part), offset - part.offset, min(_AHEAD, part.end - offset)
        )

    async def publish(self) -> None:
        """See Draft."""
        self._check()
        listed: list[Part] = []
        if self._parts or self._flushed_late or self._made:
            await self.flush()
            listed = await list_parts(self._place, self._name)
            if any(part.generation > self._generation for part in listed):
                raise LocalError("another process has taken the upload over")
        if not self._made:
            late = bytes(self._late)
            hashes = bytes(self._hashes)
            if late or not hashes:
                hashes += await trio.to_thread.run_sync(hashes_of, late)
            made = tree(hashes, self.size)
            # the same, whoever publishes these parts: a pin that another one left when he died goes with ours
            when = max((part.written for part in listed), default=self._place.now_ms())
            block = object_directory(made.root, when)
            # bytes that are in the daemon already are not sent again
            await self._place.put(self._place.object_directory(self._name), block, made, None if listed else late)
        else:
            await self._place.unpin(self._place.object_directory(self._name))
        self._close()
        if listed:
            await self._forget([], whole=True)

    async def _forget(self, parts: Sequence[Part], *, whole: bool) -> None:
        """``whole``: nobody has anything else there."""
        try:
            await self._drop(parts)
            if whole:
                await self._place.kubo.files_rm(self._place.upload(self._name))
        except (RemoteError, LocalError) as err:
            _log.warning("parts of an upload are left behind", error=err.message)

    async def discard(self) -> None:
        """See Draft."""
        if self._unusable == _CLOSED:
            return
        self._close()
        try:
            listed = await list_parts(self._place, self._name)
        except LocalError as err:
            _log.warning("parts of an upload are left behind", error=err.message)
            return
        # what a later one has written is not ours
        ours = [part for part in listed if part.generation <= self._generation]
        if listed:
            await self._forget([] if ours == listed else ours, whole=ours == listed)

    async def aclose(self) -> None:
        """See Draft."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._close()

    def _close(self) -> None:
        self._unusable = _CLOSED
        self._late = bytearray()
        self._read = (0, b"")


async def list_parts(place: Place, name: str) -> list[Part]:
    """The parts there are. Raises LocalError."""
    entries = await place.entries(place.upload(name))
    return [part for entry in entries if entry.directory and (part := parse_part(entry.name)) is not None]


async def _hashes(place: Place, name: str, part: Part) -> bytes:
    path = place.part(name, part)
    try:
        root = parse_cid((await place.kubo.files_stat(path)).cid)
        block = b"" if part.size <= PIECE_SIZE else await place.kubo.block_get(root, offline=True)
        return part_hashes(root, part.size, block)
    except (NotFound, BadContent, RequestError) as err:
        raise LocalError(f"a part of an upload is not as it was written ({BYTES})") from err
