"""The place of a store in an IPFS daemon's files: paths, and how bytes come there and back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import trio

from p2pregistry.content.car import header, section
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, cid_text, parse_cid
from p2pregistry.errors import LocalError, NotFound, RemoteBusy, RemoteError, RequestError, Unreachable
from p2pregistry.ipfs.kubo import Exists, FileEntry, Kubo
from p2pregistry.objects.kubo_parts import BYTES, Part, Tree, dag_pb_cid

#: How often something is tried while the daemon does not answer, and the first pause between, doubled each time.
_TRIES: Final = 4
_PAUSE: Final = 0.25
#: Seconds in which what was cut off is made undone.
_TIDY: Final = 5.0

_T = TypeVar("_T")


class Place:
    """A directory of the daemon's files. ``now``: seconds since 1970. Everything raises LocalError, StorageFull."""

    def __init__(self, kubo: Kubo, directory: str, *, now: Callable[[], float] = time.time) -> None:
        self.kubo = kubo
        self.top = directory.rstrip("/")
        self._now = now

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._now() * 1000)

    def object_directory(self, name: str) -> str:
        return f"{self.top}/objects/{name}"

    def object(self, name: str) -> str:
        """The file of an object."""
        return f"{self.top}/objects/{name}/{BYTES}"

    def upload(self, name: str) -> str:
        return f"{self.top}/uploads/{name}"

    def part_directory(self, name: str, part: Part) -> str:
        return f"{self.top}/uploads/{name}/{part.name}"

    def part(self, name: str, part: Part) -> str:
        """The file of a part."""
        return f"{self.part_directory(name, part)}/{BYTES}"

    # ----------------------------------------------------------------------------------------------------------- reads

    async def size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there."""
        try:
            return (await again(lambda: self.kubo.files_stat(self.object(name)))).size
        except NotFound:
            return None

    async def read(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes of a file. Raises NotFound, LocalError, also for fewer."""
        data = await again(lambda: self.kubo.files_read(path, offset, length))
        if len(data) != length:
            raise LocalError("the IPFS daemon has fewer bytes of an object than it should")
        return data

    async def entries(self, path: str) -> list[FileEntry]:
        """What is in a directory; nothing if it is not there."""
        try:
            return await again(lambda: self.kubo.files_ls(path))
        except NotFound:
            return []

    # ---------------------------------------------------------------------------------------------------------- writes

    async def put(self, path: str, block: bytes, tree: Tree, data: bytes | None) -> None:
        """Give the directory whose ``block`` this is the path ``path``, with the file ``tree`` that it names; ``data``:
        the file's bytes, None if its leaves are there. What is under that path already stays if it is the same file."""
        cid = dag_pb_cid(block)
        try:
            if data is None:
                # The pin protects what is below it, also what comes later; importing would look at every leaf. Blocks
                # are there before it, because a daemon collects no garbage while a pin lacks any, and once more after
                # it, in case that was going on until then.
                await self._put_blocks(tree)
                await again(lambda: self.kubo.block_put(block, dag_pb=True, pin=True))
                await self._put_blocks(tree)
            else:
                await again(lambda: self._import(cid, block, tree, data))
            await again(lambda: self._name(cid, path, tree.root.cid))
            await again(lambda: self.kubo.pin_rm(cid))
        except (LocalError, trio.Cancelled):
            # a client that goes away in the middle of a push must not leave a pin that nobody knows of
            with trio.move_on_after(_TIDY, shield=True), suppress(LocalError):
                await again(lambda: self.kubo.pin_rm(cid))
            raise

    async def _put_blocks(self, tree: Tree) -> None:
        await again(lambda: self.kubo.block_put(b""))
        for inner in tree.blocks:
            await again(partial(self.kubo.block_put, inner, dag_pb=True))

    async def unpin(self, path: str) -> None:
        """Take away the pin that whoever put a directory of ours under this path may have left when he died."""
        with suppress(RequestError):  # NotFound is one
            cid = parse_cid((await again(lambda: self.kubo.files_stat(path))).cid)
            await again(lambda: self.kubo.pin_rm(cid))

    async def _import(self, cid: bytes, block: bytes, tree: Tree, data: bytes) -> None:
        roots = await self.kubo.dag_import(_car(cid, block, tree, data))
        if [(root.cid, root.error) for root in roots] != [(cid_text(cid), "")]:
            raise Unreachable("the IPFS daemon has not stored what it was sent")

    async def _name(self, cid: bytes, path: str, root: bytes) -> None:
        source = f"/ipfs/{cid_text(cid)}"
        try:
            await self.kubo.files_cp(source, path)
        except NotFound:
            await self.kubo.files_mkdir(path.rpartition("/")[0])
            try:
                await self.kubo.files_cp(source, path)
            except NotFound as err:
                raise LocalError("the IPFS daemon has lost what it was sent") from err
        except Exists:
            if (await self.kubo.files_stat(f"{path}/{BYTES}")).cid != cid_text(root):
                raise LocalError("there is another object of this name in the IPFS daemon's files") from None


async def _car(cid: bytes, block: bytes, tree: Tree, data: bytes) -> AsyncIterator[bytes]:
    yield header(cid) + section(cid, block) + section(CID_RAW_PREFIX + hashlib.sha256(b"").digest(), b"")
    for inner in tree.blocks:
        yield section(dag_pb_cid(inner), inner)
    for at in range(0, len(data), PIECE_SIZE):
        leaf = data[at : at + PIECE_SIZE]
        yield section(CID_RAW_PREFIX + hashlib.sha256(leaf).digest(), leaf)


@contextmanager
def local() -> Iterator[None]:
    """Failures of the daemon are those of this machine's store."""
    try:
        yield
    except RemoteError as err:
        raise LocalError(err.message) from err


async def again(once: Callable[[], Awaitable[_T]]) -> _T:
    """What ``once`` gives, which is tried again after a pause while the daemon does not answer. Raises LocalError,
    StorageFull, NotFound."""
    pause = _PAUSE
    with local():
        for _ in range(_TRIES - 1):
            try:
                return await once()
            except (Unreachable, RemoteBusy):
                await trio.sleep(pause)
                pause *= 2
        return await once()
