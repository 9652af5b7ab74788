"""IPFS as a source: blobs by their root CID, from trustless gateways and from a local Kubo.

A blob is looked for under the root of our own layout, whose leaves are the pieces, and then under the roots that its
descriptors hint at (``urls: ipfs://``), whatever their layout. Blocks are fetched one by one, several at a time, or as
a CAR where many neighbours are asked for. Bytes of a block go out as they come, the last one only once the block's hash
is right; under a hint the same holds for each piece, so that it is known whether the gateway or the hint is wrong.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import trio

from p2pregistry.content.dag import BadDag, CarWalk, Hint, Nodes, Unproven, Walk, read_directory, read_node
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, build, links, piece_count
from p2pregistry.digest import CID_DAG_PB_PREFIX, Digest
from p2pregistry.errors import (
    BadContent,
    NoConnection,
    NotFound,
    NotYet,
    RegistryError,
    RemoteBusy,
    RemoteError,
    Unreachable,
)
from p2pregistry.ipfs.gateway_client import Body, NoCar, TooLong
from p2pregistry.ipfs.health import BAN, Health
from p2pregistry.observe import logger
from p2pregistry.rate import Pace
from p2pregistry.sources.base import Incoming
from p2pregistry.sources.ipfs_bytes import WINDOW, Checked, Fetched, FromBlocks, FromCar, Judged, own_nursery

#: Blocks in a request from which on a CAR is asked for, where that is ours to choose.
MANY: Final = 4
#: Seconds for which a gateway is not asked again for a blob that it has not got.
ABSENT: Final = 60.0
#: Seconds for which it is asked under another root after it has failed under one.
LATER: Final = 10.0
#: Blobs of which it is remembered that a gateway has them, or has not.
_REMEMBERED: Final = 10_000
#: Seconds that are left to others to give a piece table which could only be had here by fetching the whole blob.
DERIVE_AFTER: Final = 2.0
#: Seconds that a block may take where no plan looks after it.
BLOCK_TIME: Final = 60.0
#: Seconds that an answer to a probe may take to its end.
PROBE_TIME: Final = 30.0
_log = logger(__name__)

Mode = Literal["auto", "raw", "car"]


class Blocks(Protocol):
    """What gives blocks: ``GatewayClient``, ``KuboBlocks``."""

    name: str
    #: whether it gives CARs of parts of files
    ranges: bool

    def block(self, cid: bytes) -> AbstractAsyncContextManager[Body]: ...
    def car(self, cid: bytes, start: int, end: int, most: int) -> AbstractAsyncContextManager[Body]: ...
    async def probe(self) -> None: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a blob: what was signed of it, its piece table, and where else it is said to be."""

    ref: BlobRef
    info: Metainfo | None = None
    hints: tuple[Hint, ...] = ()


@dataclass(slots=True)
class Common:
    """What all gateways have in common: what is known of blobs, inner nodes that were read, hints that are wrong.
    ``pace``: awaited after bytes have come; ``fetched``: told of bytes that no flight counts."""

    known: Callable[[Digest], Known | None]
    nodes: Nodes = field(default_factory=Nodes)
    wrong: OrderedDict[tuple[Digest, Hint], None] = field(default_factory=OrderedDict)
    found: OrderedDict[Hint, bytes] = field(default_factory=OrderedDict)
    pace: Pace | None = None
    fetched: Callable[[int], None] = lambda _count: None

    def is_wrong(self, digest: Digest, hint: Hint, why: str) -> None:
        """A hint does not lead to the blob."""
        _log.warning("a hint in a manifest leads to something else", digest=str(digest), why=why)
        _remember(self.wrong, (digest, hint))


def _remember(kept: OrderedDict[tuple[Digest, Hint], None], key: tuple[Digest, Hint]) -> None:
    kept[key] = None
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)


class IpfsSource:
    """One gateway, or Kubo. Errors say whose fault it was: BadContent that of the gateway, which is then banned."""

    kind = "ipfs"

    def __init__(self, blocks: Blocks, common: Common, *, mode: Mode = "auto") -> None:
        self.name = blocks.name
        self.health = Health()
        #: called when it is banned
        self.banned: Callable[[str], None] = lambda _why: None
        self._blocks, self._common, self._mode = blocks, common, mode
        self._cars = True
        #: (digest, root) it has not got, and until when that is believed; and those that it has given of
        self._absent: OrderedDict[tuple[Digest, bytes], float] = OrderedDict()
        self._has: OrderedDict[tuple[Digest, bytes], None] = OrderedDict()

    # ----------------------------------------------------------------------------------------------------- for flights

    @asynccontextmanager
    async def fetch(self, digest: Digest, offset: int, length: int) -> AsyncIterator[Incoming]:
        """See Source. Raises NotYet for a block that is missing of a blob of which it has others."""
        known = self._common.known(digest)
        if known is None or offset + length > known.ref.size:
            raise NotFound("BLOB_UNKNOWN", "nothing is known of this blob that IPFS could be asked for")
        async with AsyncExitStack() as stack:
            yield await self._first(known, offset, offset + length, stack)

    async def _first(self, known: Known, start: int, end: int, stack: AsyncExitStack) -> Incoming:
        """The bytes from the first place that has them."""
        in_part: NotYet | None = None
        for hint in (None, *known.hints):
            if hint is not None and known.info is None:
                raise RemoteBusy("the piece table is not here yet", 0.5)
            attempt = AsyncExitStack()
            try:
                incoming = await attempt.enter_async_context(self._from(known, hint, start, end))
            except NotYet as err:
                in_part = err
                continue
            except (NotFound, BadDag):
                continue
            except NoConnection:
                raise
            except Unreachable:  # many look for long where others say at once that it is not there
                key = (known.ref.digest, known.ref.root if hint is None else hint.root)
                if known.hints and key not in self._has:
                    self._lacks(key, LATER)
                raise
            stack.push_async_exit(attempt.__aexit__)
            return incoming
        raise in_part or NotFound("BLOB_UNKNOWN", f"{self.name} does not have it")

    @asynccontextmanager
    async def _from(self, known: Known, hint: Hint | None, start: int, end: int) -> AsyncIterator[Incoming]:
        """From our root or a hint. Entering raises NotFound, BadDag (the hint is wrong), RemoteError."""
        key = (known.ref.digest, known.ref.root if hint is None else hint.root)
        if trio.current_time() < self._absent.get(key, 0.0):
            raise NotFound("BLOB_UNKNOWN", f"{self.name} did not have it a moment ago")
        async with AsyncExitStack() as stack:
            with self._whose(known, hint, key):
                root = known.ref.root if hint is None else await self._root(known, hint)
                incoming = await self._open(known, hint, root, start, end, stack)
                await incoming.begin()
            self._has[key] = None
            while len(self._has) > _REMEMBERED:
                self._has.popitem(last=False)
            if hint is None or known.info is None:
                yield Judged(incoming, lambda: self._whose(known, hint, key))
            else:
                wrong = Judged(incoming, lambda: self._whose(known, hint, key))
                yield Checked(wrong, known.info, start, lambda why: self._common.is_wrong(known.ref.digest, hint, why))

    @contextmanager
    def _whose(self, known: Known, hint: Hint | None, key: tuple[Digest, bytes]) -> Iterator[None]:
        """Whose fault an error is: what is missing is noted, and wrong hints."""
        try:
            yield
        except NotFound as err:
            if key in self._has:
                raise NotYet(f"{self.name} has this blob only in part") from err
            self._lacks(key)
            raise
        except TooLong as err:  # of ours no block is as long
            if hint is None:
                raise
            self._lacks(key)
            raise Unproven(err.message) from err
        except Unproven:  # another gateway may be better
            self._lacks(key)
            raise
        except BadDag as err:
            if hint is None:
                raise Unreachable(f"what was signed of the blob does not hold: {err.message}") from err
            if (known.ref.digest, hint) not in self._common.wrong:
                self._common.is_wrong(known.ref.digest, hint, err.message)
            raise

    def _lacks(self, key: tuple[Digest, bytes], seconds: float = ABSENT) -> None:
        self._absent[key] = trio.current_time() + seconds
        while len(self._absent) > _REMEMBERED:
            self._absent.popitem(last=False)

    async def _open(
        self, known: Known, hint: Hint | None, root: bytes, start: int, end: int, stack: AsyncExitStack
    ) -> Fetched:
        nodes, size = self._common.nodes, known.ref.size
        if hint is None and known.info is not None:
            walk = Walk.of_pieces(known.info, start, end)
        else:
            walk = Walk(root, size, start, end, nodes=nodes)
        if self._wants_car(walk, size, start, end):
            most = (end - start) + (end - start) // 10 + (16 << 20)
            try:
                body = await stack.enter_async_context(self._watched(self._blocks.car(root, start, end, most)))
            except NoCar as err:
                self.without_cars(err.message)
            else:
                walked = CarWalk(root, size, start, end, ordered=body.ordered, foreign=hint is not None)
                return FromCar(self, body, walked)
        nursery = await stack.enter_async_context(own_nursery())
        return FromBlocks(self, nursery, walk)

    def without_cars(self, why: str) -> None:
        """From now on it is asked for single blocks."""
        if self._cars:
            _log.info("a gateway is asked for single blocks only", gateway=self.name, why=why)
        self._cars = False

    def _wants_car(self, walk: Walk, size: int, start: int, end: int) -> bool:
        if self._mode == "raw" or not self._cars or not (self._blocks.ranges or (start, end) == (0, size)):
            return False
        wanted = walk.wanted(MANY)
        if self._mode == "car":
            return size > PIECE_SIZE or bool(wanted and wanted[0].cid[:4] == CID_DAG_PB_PREFIX)
        return len(wanted) >= MANY

    async def _root(self, known: Known, hint: Hint) -> bytes:
        """The root that a hint leads to, through directories. Raises NotFound, BadDag, RemoteError."""
        if (known.ref.digest, hint) in self._common.wrong:
            raise BadDag("this hint led to something else before")
        root = self._common.found.get(hint)
        if root is None:
            root = hint.root
            for step in hint.path:
                below = read_directory(await self.block(root)).get(step)
                if below is None:
                    raise BadDag("there is nothing of this name in the directory")
                root = below
            self._common.found[hint] = root
            while len(self._common.found) > _REMEMBERED:
                self._common.found.popitem(last=False)
        return root

    def lacks(self, digest: Digest) -> bool:
        """Whether it is known to have the blob under no root that is known."""
        known = self._common.known(digest)
        if known is None:
            return True
        now = trio.current_time()
        hints = [hint for hint in known.hints if (digest, hint) not in self._common.wrong]
        roots = [known.ref.root, *(hint.root for hint in hints)]
        return all(now < self._absent.get((digest, root), 0.0) for root in roots)

    # ------------------------------------------------------------------------------------------------------ the gateway

    @contextmanager
    def judged(self) -> Iterator[None]:
        """What goes wrong with a request is noted of the gateway."""
        try:
            yield
        except (NotFound, NoCar):
            self.well()
            raise
        except RemoteBusy as err:
            if self.health.usable(trio.current_time()):
                _log.info("a gateway asks for fewer requests", gateway=self.name, seconds=err.retry_after)
            self.health.busy(err.retry_after, trio.current_time())
            raise
        except BadDag:
            raise
        except BadContent as err:
            self.ban(err.message)
            raise
        except RemoteError as err:
            self._ill(err)
            raise

    @asynccontextmanager
    async def _watched(self, opening: AbstractAsyncContextManager[Body]) -> AsyncIterator[Body]:
        """A request, where it begins."""
        wait = self.health.wait(trio.current_time())
        if not self.health.usable(trio.current_time()):
            raise RemoteBusy(f"{self.name} is left out: {self.health.why}", max(wait, 1.0))
        async with AsyncExitStack() as stack:
            with self.judged():
                body = await stack.enter_async_context(opening)
            yield body

    async def read(self, body: Body) -> bytes:
        """Some bytes of an answer; b"" at its end. Raises RemoteError."""
        try:
            chunk = await body.next()
        except BadContent as err:
            self.ban(err.message)
            raise
        except RemoteError as err:
            self._ill(err)
            raise
        if chunk and self._common.pace is not None:
            await self._common.pace(len(chunk))
        return chunk

    async def block(self, cid: bytes) -> bytes:
        """A block. Raises NotFound, RemoteError, BadContent."""
        parts: list[bytes] = []
        await self.stream(cid, parts.append)
        return b"".join(parts)

    async def stream(self, cid: bytes, took: Callable[[bytes], None]) -> None:
        """A block as it comes; it is right only if this returns. Raises NotFound, RemoteError, BadContent."""
        whole = hashlib.sha256()
        async with self._watched(self._blocks.block(cid)) as body:
            while chunk := await self.read(body):
                whole.update(chunk)
                took(chunk)
            with self.judged():
                if whole.digest() != cid[4:]:
                    raise BadContent(f"{self.name} sends another block than was asked for")
        self.well()

    def well(self) -> None:
        """It has done what it was asked, to the end."""
        if self.health.answered(trio.current_time()):
            _log.info("a gateway is used again", gateway=self.name)

    def _ill(self, err: RemoteError, *, at_once: bool = False) -> None:
        now = trio.current_time()
        if self.health.failed(err.message, now, at_once=at_once):
            _log.warning(
                "a gateway is left out", gateway=self.name, why=err.message, seconds=round(self.health.wait(now))
            )

    def ban(self, why: str) -> None:
        """It sent what it was not asked for."""
        if self.health.state != "banned":
            _log.warning("a gateway is banned", gateway=self.name, why=why, seconds=BAN)
        self.health.lied(why, trio.current_time())
        self.banned(why)

    async def probe(self) -> None:
        """Find out whether it is there."""
        try:
            with trio.fail_after(PROBE_TIME):
                await self._blocks.probe()
        except trio.TooSlowError:
            self._ill(Unreachable("it does not answer a probe in time"), at_once=True)
        except RemoteBusy as err:
            self.health.busy(err.retry_after, trio.current_time())
        except (RemoteError, NotFound) as err:
            self._ill(Unreachable(err.message), at_once=True)
        else:
            self.well()

    async def aclose(self) -> None:
        """Let go of its connections."""
        await self._blocks.aclose()

    # ----------------------------------------------------------------------------------------------------- piece tables

    async def table(self, ref: BlobRef) -> dict[bytes, bytes]:
        """See Source. Where only a hint has the blob the table is made from all of its bytes."""
        if self._common.known(ref.digest) is None:
            raise NotFound("BLOB_UNKNOWN", "nothing is known of this blob that IPFS could be asked for")
        try:
            return await self._inner_nodes(ref)
        except NotFound:
            known = self._common.known(ref.digest)
            if known is None or not known.hints:
                raise
        await trio.sleep(DERIVE_AFTER)
        return await self._derived(ref, known.hints)

    async def _inner_nodes(self, ref: BlobRef) -> dict[bytes, bytes]:
        blocks: dict[bytes, bytes] = {}
        level = [ref.root]
        while level and level[0][:4] == CID_DAG_PB_PREFIX:
            below: list[bytes] = []
            got = await self._several(level)
            for cid in level:
                blocks[cid] = got[cid]
                try:
                    self._common.nodes.put(cid, read_node(got[cid]))
                    below += links(got[cid])
                except BadContent as err:  # they are what their CIDs say: it is not the gateway
                    raise Unreachable(f"what was signed of the blob does not hold: {err.message}") from err
            if len(below) > piece_count(ref.size) or len(blocks) > piece_count(ref.size):
                raise Unreachable("what was signed of the blob has another size")
            level = below
        return blocks

    async def _several(self, cids: Sequence[bytes]) -> dict[bytes, bytes]:
        """These blocks, a few at a time."""
        found: dict[bytes, bytes] = {}
        failures: list[RegistryError] = []
        left = iter(dict.fromkeys(cids))

        async def work() -> None:
            for cid in left:
                try:
                    with trio.fail_after(BLOCK_TIME):
                        found[cid] = await self.block(cid)
                    self._common.fetched(len(found[cid]))
                except trio.TooSlowError:
                    failures.append(Unreachable(f"{self.name} did not give a block in time"))
                    nursery.cancel_scope.cancel()
                except (RemoteError, NotFound) as err:
                    failures.append(err)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(WINDOW, len(cids))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
        return found

    async def _derived(self, ref: BlobRef, hints: Sequence[Hint]) -> dict[bytes, bytes]:
        """The table made from the bytes themselves. Raises NotFound, RemoteError."""
        known = Known(ref)
        for hint in hints:
            try:
                try:
                    hashes = await self._hashes(known, hint)
                except NoCar:  # in its course; now it is asked for single blocks
                    hashes = await self._hashes(known, hint)
            except BadDag:
                continue
            except (NotFound, NotYet, Unreachable):
                if self.health.usable(trio.current_time()):
                    continue  # it may be the hint that is wrong
                raise
            dag = build(hashes, ref.size)
            if dag.root == ref.root:
                return {CID_DAG_PB_PREFIX + hashlib.sha256(block).digest(): block for block in dag.blocks}
            self._common.is_wrong(ref.digest, hint, "its bytes are others")
        raise NotFound("BLOB_UNKNOWN", f"{self.name} does not have it")

    async def _hashes(self, known: Known, hint: Hint) -> bytes:
        size, found, buffer = known.ref.size, bytearray(), bytearray(PIECE_SIZE)
        view, at = memoryview(buffer), 0
        async with self._from(known, hint, 0, size) as incoming:
            while at < size:
                length, filled = min(PIECE_SIZE, size - at), 0
                try:
                    with trio.fail_after(BLOCK_TIME):
                        while filled < length:
                            filled += await incoming.read_into(view[filled:length])
                except trio.TooSlowError as err:
                    raise Unreachable(f"{self.name} did not give a block in time") from err
                self._common.fetched(length)
                found += hashlib.sha256(view[:length]).digest()
                at += length
        return bytes(found)
