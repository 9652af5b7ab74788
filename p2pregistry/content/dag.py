"""Files in IPFS of any layout, read block by block.

``unixfs`` knows the one layout that we make. Elsewhere the same bytes may be cut into 256 KiB, hang in trees of another
width or shape, and lie in dag-pb leaves or beside the links of inner nodes (UnixFS specification, "dag-pb File";
IPIP-499 has the usual layouts). Nothing of that is assumed here: ``Walk`` follows the links of a root and says which
blocks hold a range of the file, ``CarWalk`` takes them out of a CAR.

Two things can be wrong. A block that is not what its CID says is the fault of who sent it: BadContent. Blocks that are
what their CIDs say but do not add up to the file that was stated are the fault of who named the root: BadDag.

CIDs are 36 bytes here (version 1, raw or dag-pb, sha2-256); those of version 0 are read as what they mean.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from p2pregistry.content.any_cid import is_ours, read_cid
from p2pregistry.content.car import MAX_BLOCK, CarReader, NotTaken
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from p2pregistry.errors import BadContent

#: Levels below the root. With two links a node that is a file of 2^32 blocks.
MAX_DEPTH: Final = 32
#: Blocks that a range may be spread over: so many, and one more for each so many bytes of it.
_LEAST_BLOCKS: Final = 1024
_SMALLEST: Final = 4096
#: Bytes of blocks beside the range that a CAR may hold before it counts as one that heeds no range.
MAX_SURPLUS: Final = 4 << 20
#: Bytes of blocks kept of a CAR in no certain order.
MAX_STORE: Final = 64 << 20
#: CIDs beside the range that are remembered.
_MOST_ASIDE: Final = 100_000
#: What UnixFS calls its types.
_RAW, _DIRECTORY, _FILE = 0, 1, 2
#: Steps of a path in a hint.
_MOST_STEPS: Final = 8


class BadDag(BadContent):
    """The blocks are those that were named, but no file of the size that was stated: the root is at fault."""


class Unproven(BadDag):
    """There is no file that can be taken here: the root is at fault, or who sent it, and nothing tells which."""


class TooMuch(BadContent):
    """A CAR has far more than was asked for: who sends it does not heed ranges, which is no lie."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Where else a blob is said to be: a file, or the steps to one from a directory."""

    root: bytes
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A dag-pb block of a file: ``size`` bytes, of which ``data`` comes first, then each (CID, bytes below it)."""

    data: bytes
    size: int
    links: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Want:
    """A block that is needed: its CID, where in the file its bytes begin, how many they are, and how deep it lies."""

    cid: bytes
    offset: int
    size: int
    depth: int = 0


# ---------------------------------------------------------------------------------------------------------------- CIDs


def any_cid(text: str) -> bytes | None:
    """The 36 bytes behind a CID however it is written; None for one of a kind that is not taken."""
    try:
        cid = read_cid(text)
    except ValueError:
        return None
    return cid if is_ours(cid) else None


def _normal(raw: bytes) -> bytes | None:
    """A CID in bytes as we have it; None for one of a kind that is not taken."""
    if len(raw) == 34 and raw[:2] == b"\x12\x20":
        return CID_DAG_PB_PREFIX + raw[2:]
    return raw if is_ours(raw) else None


def read_hint(url: str) -> Hint | None:
    """What an ``ipfs://`` URL of a descriptor points at; None for any other URL."""
    if not url.startswith("ipfs://") or len(url) > 1000:
        return None
    name, *path = url.removeprefix("ipfs://").partition("?")[0].split("/")
    root = any_cid(name)
    steps = tuple(step for step in path if step)
    return None if root is None or len(steps) > _MOST_STEPS else Hint(root, steps)


def matches(cid: bytes, block: bytes | bytearray) -> bool:
    """Whether a block is the one that the CID names."""
    return hashlib.sha256(block).digest() == cid[4:]


# -------------------------------------------------------------------------------------------------------------- blocks


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BadDag("a block of a file has a broken number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The protobuf fields of ``data``: (number, value). Fixed-width ones are passed over."""
    at, end = 0, len(data)
    while at < end:
        key, at = _number(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _number(data, at)
            yield key >> 3, number
            continue
        if kind not in (1, 2, 5):
            raise BadDag("a block of a file is not protobuf")
        length, at = _number(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + length > end:
            raise BadDag("a block of a file is cut short")
        if kind == 2:
            yield key >> 3, data[at : at + length]
        at += length


def _parts(block: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Data and links (CID, name) of a dag-pb block (DAG-PB specification: PBNode has Data = 1 and Links = 2)."""
    data: bytes | None = None
    links: list[tuple[bytes, bytes]] = []
    for number, value in _fields(block):
        if not isinstance(value, bytes) or number not in (1, 2) or (number == 1 and data is not None):
            raise BadDag("a block of a file is not dag-pb")
        if number == 1:
            data = value
            continue
        cid, name = b"", b""
        for field, part in _fields(value):
            if field == 1 and isinstance(part, bytes):
                cid = part
            elif field == 2 and isinstance(part, bytes):
                name = part
        normal = _normal(cid)
        if normal is None:
            raise BadDag("a link of a file has a CID of a kind that is not taken here")
        links.append((normal, name))
    if data is None:
        raise BadDag("a block of a file has no UnixFS data")
    return data, links


def read_node(block: bytes) -> Node:
    """A dag-pb block of a file. Raises BadDag for anything else, and where its sizes do not add up."""
    raw, named = _parts(block)
    kind, data, stated = _RAW, b"", -1
    sizes: list[int] = []
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            data = value
        elif number == 3 and isinstance(value, int):
            stated = value
        elif number == 4:
            sizes += [value] if isinstance(value, int) else _packed(value)
    if kind not in (_RAW, _FILE) or (kind == _RAW and named):
        raise BadDag("what is there is no file")
    if len(sizes) != len(named):
        raise BadDag("a block of a file does not say how much is below each link")
    size = len(data) + sum(sizes)
    if stated not in (-1, size):
        raise BadDag("the sizes in a block of a file do not add up")
    if not all(sizes):
        raise BadDag("a block of a file has a link to nothing")
    return Node(data, size, tuple((cid, below) for (cid, _name), below in zip(named, sizes, strict=True)))


def _packed(data: bytes) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(data):
        value, at = _number(data, at)
        found.append(value)
    return found


def read_directory(block: bytes) -> dict[str, bytes]:
    """The names of a UnixFS directory in one block, with their CIDs. Raises BadDag for anything else."""
    raw, named = _parts(block)
    if next((value for number, value in _fields(raw) if number == 1), None) != _DIRECTORY:
        raise BadDag("what is there is no directory")
    return {name.decode("utf-8", "replace"): cid for cid, name in named}


class Nodes:
    """Inner nodes that were read, by CID: what one gateway gave serves for all. ``most`` links are kept in all."""

    def __init__(self, most: int = 200_000) -> None:
        self._most, self._links = most, 0
        self._kept: OrderedDict[bytes, Node] = OrderedDict()

    def get(self, cid: bytes) -> Node | None:
        node = self._kept.get(cid)
        if node is not None:
            self._kept.move_to_end(cid)
        return node

    def put(self, cid: bytes, node: Node) -> None:
        """Keep it, if it has links and little data of its own."""
        if not node.links or len(node.data) > 4096 or cid in self._kept:
            return
        self._kept[cid] = node
        self._links += len(node.links)
        while self._links > self._most:
            self._links -= len(self._kept.popitem(last=False)[1].links)


# --------------------------------------------------------------------------------------------------------------- walks


class Walk:
    """Which blocks hold the bytes ``start`` .. ``end`` of a file, and those bytes in order.

    ``root`` and ``size`` are what was stated of the file. Blocks may be taken in any order; each must be hashed before.
    ``nodes``: inner nodes that are known already, and where new ones are kept.
    """

    def __init__(self, root: bytes, size: int, start: int, end: int, *, nodes: Nodes | None = None) -> None:
        self.start, self.end = start, end
        self._nodes = nodes
        self._room = _LEAST_BLOCKS + (end - start) // _SMALLEST
        #: CIDs of what lies beside the range
        self.aside: set[bytes] = set()
        #: whether those are too many to be remembered
        self.lost = False
        self._line: list[Want | bytes] = []
        if start < end:
            self._line = self._known(Want(root, 0, size))

    @classmethod
    def of_pieces(cls, info: Metainfo, start: int, end: int) -> Walk:
        """Of a blob in our layout whose piece table is known: no inner node is needed."""
        walk = cls(info.root, info.size, start, start)
        walk.end = end
        if start < end:
            walk._line = [
                Want(CID_RAW_PREFIX + info.hash(index), index * PIECE_SIZE, info.length(index))
                for index in range(start // PIECE_SIZE, -(-end // PIECE_SIZE))
            ]
        return walk

    @property
    def done(self) -> bool:
        """Whether nothing is left, neither to take nor to be given out."""
        return not self._line

    def wanted(self, most: int) -> list[Want]:
        """The first of the blocks that are still needed, in the order of the file."""
        found: list[Want] = []
        for entry in self._line:
            if isinstance(entry, Want):
                found.append(entry)
                if len(found) == most:
                    break
        return found

    def first(self) -> Want | None:
        """The first block that is still needed."""
        return next((entry for entry in self._line if isinstance(entry, Want)), None)

    def inside(self, want: Want) -> tuple[int, int]:
        """Which of the bytes of a block are in the range: from .. to."""
        return max(0, self.start - want.offset), min(want.size, self.end - want.offset)

    def take(self, want: Want, block: bytes) -> None:
        """A block that is needed. Raises BadDag."""
        at = self._line.index(want)
        self._line[at : at + 1] = self._open(want, block)

    def taken(self, want: Want, size: int) -> None:
        """A leaf of ``size`` bare bytes, of which who took it gives out what is in the range. Raises BadDag."""
        if size != want.size:
            raise BadDag("a block of a file is not as long as was stated")
        self._line.remove(want)

    def ready(self) -> list[bytes]:
        """The bytes of the range that come next, as far as they are here; each is given out once."""
        count = 0
        for entry in self._line:
            if isinstance(entry, Want):
                break
            count += 1
        found = [entry for entry in self._line[:count] if isinstance(entry, bytes)]
        del self._line[:count]
        return found

    def pass_by(self, cid: bytes, block: bytes) -> None:
        """A block beside the range: what is below it is beside it too. Raises BadDag."""
        if cid[:4] == CID_DAG_PB_PREFIX:
            self._set_aside([link for link, _size in read_node(block).links])

    def _set_aside(self, cids: Sequence[bytes]) -> None:
        if len(self.aside) + len(cids) <= _MOST_ASIDE:
            self.aside.update(cids)
        else:
            self.lost = True

    def _open(self, want: Want, block: bytes) -> list[Want | bytes]:
        if want.cid[:4] == CID_RAW_PREFIX:
            if len(block) != want.size:
                raise BadDag("a block of a file is not as long as was stated")
            begin, end = self.inside(want)
            return [block[begin:end]] if begin < end else []
        node = read_node(block)
        if self._nodes is not None:
            self._nodes.put(want.cid, node)
        return self._below(want, node)

    def _known(self, want: Want) -> list[Want | bytes]:
        """A block that is needed, or what is below it where that is known."""
        node = None if self._nodes is None or want.cid[:4] == CID_RAW_PREFIX else self._nodes.get(want.cid)
        return [want] if node is None else self._below(want, node)

    def _below(self, want: Want, node: Node) -> list[Want | bytes]:
        if node.size != want.size:
            raise BadDag("a part of a file is not as long as was stated")
        if node.links and want.depth >= MAX_DEPTH:
            raise BadDag("a file is nested too deeply")
        found: list[Want | bytes] = []
        begin, end = self.inside(want)
        if node.data[begin:end]:
            found.append(node.data[begin:end])
        at = want.offset + len(node.data)
        beside: list[bytes] = []
        for cid, size in node.links:
            if at < self.end and at + size > self.start:
                self._room -= 1
                if self._room < 0:
                    raise BadDag("a file is cut into too many blocks")
                found += self._known(Want(cid, at, size, want.depth + 1))
            else:
                beside.append(cid)
            at += size
        self._set_aside(beside)
        return found


class CarWalk:
    """A walk whose blocks come in a CAR. ``ordered``: the answer said that they come depth first, and those that occur
    several times each time; then each must be the next. Else they are kept until their turn comes.

    Blocks beside the range are passed over, up to a limit: not every gateway heeds ``entity-bytes``. ``foreign``: the
    layout is not ours, so that CIDs of other kinds and large blocks in it may be the root's fault.
    """

    def __init__(self, root: bytes, size: int, start: int, end: int, *, ordered: bool, foreign: bool = False) -> None:
        self._walk = Walk(root, size, start, end)
        self._reader = CarReader(MAX_BLOCK)
        self._ordered, self._foreign = ordered, foreign
        self._surplus = 0
        self._store: dict[bytes, bytes] = {}
        self._taken: OrderedDict[bytes, None] = OrderedDict()
        self._held = 0

    @property
    def done(self) -> bool:
        """Whether the whole range has been given out; what else the CAR has does not matter."""
        return self._walk.done

    def feed(self, data: bytes) -> list[bytes]:
        """The bytes of the file that come next. Raises BadContent, BadDag, Unproven, TooMuch."""
        found: list[bytes] = []
        try:
            for cid, block in self._reader.feed(data):
                if self._walk.done:
                    break
                if self._ordered:
                    self._next(cid, block)
                else:
                    self._keep(cid, block)
                found += self._walk.ready()
        except NotTaken as err:
            if self._foreign:
                raise Unproven(err.message) from err
            raise
        return found

    def close(self) -> None:
        """Call at the end of the CAR. Raises BadContent unless the whole range was in it."""
        if not self._walk.done:
            raise BadContent("a CAR lacks blocks that were asked for")

    def _next(self, cid: bytes, block: bytes) -> None:
        want = self._walk.first()
        if want is not None and want.cid == cid:
            self._walk.take(want, block)
            return
        if cid not in self._walk.aside:
            if self._walk.lost:
                raise TooMuch(
                    "a CAR holds more beside what was asked for than can be told from what is not of the file"
                )
            raise BadContent("a CAR holds a block that was not asked for")
        self._surplus += len(block)
        if self._surplus > MAX_SURPLUS:
            raise TooMuch("a CAR holds far more than was asked for")
        self._walk.pass_by(cid, block)

    def _keep(self, cid: bytes, block: bytes) -> None:
        """What had its turn may be needed again, and is let go of first."""
        if cid not in self._store:
            self._store[cid] = block
            self._held += len(block)
        while (want := self._walk.first()) is not None and want.cid in self._store:
            self._walk.take(want, self._store[want.cid])
            self._taken[want.cid] = None
        while self._held > MAX_STORE:
            if not self._taken:
                raise TooMuch("a CAR in no certain order holds too much")
            self._held -= len(self._store.pop(self._taken.popitem(last=False)[0]))
