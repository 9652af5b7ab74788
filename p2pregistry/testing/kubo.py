"""A stand-in for Kubo's RPC, for tests: real HTTP on a loopback port, and in memory what a daemon keeps.

What it does as Kubo does (0.35, from its documentation and source): POST only, errors as 500 with a JSON body, blocks
under their hashes, ``dag/import`` that pins roots only where all below them is there, ``block/put?pin=true`` that pins
without looking below, garbage collection of what neither pins nor files refer to, which gives up where something below
a recursive pin is missing. It finds in ``network`` what other peers would have, unless a request is ``offline``.

What it does not do: anything over a swarm, CIDv0, directories in more than one block, changes in one that was put there
as a block.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from p2pregistry.content import unixfs
from p2pregistry.content.car import CarReader, header, section
from p2pregistry.content.unixfs import build, links
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, cid_text, parse_cid
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.testing.http import running

MIB: Final = 1 << 20
_BODY_MOST: Final = 512 * MIB

#: A directory of the daemon's files: names of files (their root CIDs) and of directories.
Directory = dict[str, "bytes | Directory"]


@dataclass(frozen=True, slots=True)
class _Call:
    request: Request
    args: list[str]
    body: bytes

    def param(self, name: str) -> str | None:
        return self.request.param(name)


class Refusal(Exception):
    """What Kubo says in place of an answer."""


class StubKubo:
    """The daemon's state, to be looked at and changed by a test.

    ``before`` is awaited with each command before it is done: to count, to wait, or to raise Refusal. ``scripted``
    holds answers that are given in place of doing a command, first come first served. ``drop_after``: bytes of an
    answer to dag/export after which it ends, as if nothing were missing."""

    def __init__(self, *, authorization: str | None = None, max_block: int = 2 * MIB) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.network: dict[bytes, bytes] = {}
        self.pins: dict[bytes, str] = {}
        self.files: Directory = {}
        self.calls: Counter[str] = Counter()
        self.connected: list[str] = []
        self.scripted: dict[str, list[Response]] = {}
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.storage_max = 10 << 30
        self.drop_after: int | None = None
        self._authorization = authorization
        self._max_block = max_block

    # ---------------------------------------------------------------------------------------------------------- blocks

    def add(self, data: bytes, *, network: bool = False) -> bytes:
        """Keep a file in our layout, or have it in the network only; its root CID."""
        pieces = [data[at : at + MIB] for at in range(0, max(1, len(data)), MIB)]
        dag = build(b"".join(hashlib.sha256(piece).digest() for piece in pieces), len(data))
        place = self.network if network else self.blocks
        for piece in pieces:
            place[CID_RAW_PREFIX + hashlib.sha256(piece).digest()] = piece
        for block in dag.blocks:
            place[CID_DAG_PB_PREFIX + hashlib.sha256(block).digest()] = block
        return dag.root

    def get(self, cid: bytes, *, offline: bool = True) -> bytes:
        """A block. Raises Refusal."""
        if cid not in self.blocks and not offline and cid in self.network:
            self.blocks[cid] = self.network[cid]
        if cid not in self.blocks:
            raise Refusal(f"block was not found locally (offline): ipld: could not find {cid_text(cid)}")
        return self.blocks[cid]

    def walk(self, root: bytes, *, offline: bool = True) -> Iterator[bytes]:
        """The CIDs of all below a root, depth first, with repetitions. Raises Refusal where a block is missing."""
        block = self.get(root, offline=offline)
        yield root
        if root[:4] == CID_DAG_PB_PREFIX:
            for child in links(block):
                yield from self.walk(child, offline=offline)

    def content(self, root: bytes) -> bytes:
        """The bytes of a file. Raises Refusal."""
        return b"".join(self.blocks[cid] for cid in self.walk(root) if cid[:4] == CID_RAW_PREFIX)

    def gc(self) -> int:
        """Remove the blocks that neither pins nor files refer to; how many. Raises Refusal."""
        kept: set[bytes] = set()
        for cid, kind in self.pins.items():
            kept.update(self.walk(cid) if kind == "recursive" else [cid])
        for cid in self._roots(self.files):
            kept.update(self._there(cid))
        gone = [cid for cid in self.blocks if cid not in kept]
        for cid in gone:
            del self.blocks[cid]
        return len(gone)

    def _roots(self, directory: Directory) -> Iterator[bytes]:
        for entry in directory.values():
            if isinstance(entry, bytes):
                yield entry
            else:
                yield from self._roots(entry)

    def _there(self, root: bytes) -> Iterator[bytes]:
        if root in self.blocks:
            yield root
            if root[:4] == CID_DAG_PB_PREFIX:
                for child in links(self.blocks[root]):
                    yield from self._there(child)

    # ----------------------------------------------------------------------------------------------------------- files

    def at(self, path: str) -> bytes | Directory:
        """What is under a path. Raises Refusal."""
        parts = [part for part in path.split("/") if part]
        if path.startswith("/ipfs/") and len(parts) == 2:
            cid = _cid(parts[1])
            self.get(cid)
            return cid
        here: bytes | Directory = self.files
        for part in parts:
            inside = self._entries(here) if isinstance(here, bytes) else here
            if inside is None or part not in inside:
                raise Refusal("file does not exist")
            here = inside[part]
        return here

    def _entries(self, cid: bytes) -> Directory | None:
        """What a UnixFS directory names; None for a file."""
        if cid[:4] != CID_DAG_PB_PREFIX:
            return None
        fields = list(unixfs._fields(self.get(cid)))
        if (1, b"\x08\x01") not in fields:
            return None
        found: Directory = {}
        for number, link in fields:
            if number == 2 and isinstance(link, bytes):
                said = dict(unixfs._fields(link))
                name, child = said[2], said[1]
                assert isinstance(name, bytes)
                assert isinstance(child, bytes)
                found[name.decode()] = child
        return found

    def _parent(self, path: str, *, make: bool = False) -> tuple[Directory, str]:
        *above, name = [part for part in path.split("/") if part]
        here = self.files
        for part in above:
            if make:
                here.setdefault(part, {})
            below = here.get(part)
            if not isinstance(below, dict):
                raise Refusal("file does not exist")
            here = below
        return here, name

    # -------------------------------------------------------------------------------------------------------- requests

    async def handle(self, request: Request) -> Response:
        """One request."""
        if not request.path.startswith("/api/v0/"):
            return Response(404, body=b"404 page not found")
        if request.method != "POST":
            return Response(405, body=b"405 - Method Not Allowed\n")
        if self._authorization is not None and request.header("authorization") != self._authorization:
            return Response(403, body=b"Kubo RPC Access Denied: Please provide a valid authorization token")
        command = request.path.removeprefix("/api/v0/")
        self.calls[command] += 1
        method = getattr(self, "do_" + command.replace("/", "_"), None)
        if method is None:
            return Response(404, body=b"404 page not found")
        body = b""
        if request.header("content-type") is not None:
            body = part_of(await request.body.read(_BODY_MOST), request)
        try:
            if self.before is not None:
                await self.before(command)
            if self.scripted.get(command):
                return self.scripted[command].pop(0)
            answer = method(_Call(request, request.params("arg"), body))
        except (Refusal, BadContent, RequestError) as err:
            return refused(str(err))
        if isinstance(answer, Response):
            return answer
        lines = answer if isinstance(answer, list) else [answer]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return Response(200, [("Content-Type", "application/json")], text.encode())

    def do_version(self, call: _Call) -> object:  # noqa: ARG002 - they are all called the same way
        return {"Version": "0.35.0-stub", "Commit": "", "Repo": "16", "System": "", "Golang": ""}

    def do_swarm_connect(self, call: _Call) -> object:
        self.connected.append(call.args[0])
        return {"Strings": [f"connect {call.args[0].rpartition('/')[2]} success"]}

    def do_repo_stat(self, call: _Call) -> object:  # noqa: ARG002
        return {"RepoSize": sum(map(len, self.blocks.values())), "StorageMax": self.storage_max}

    def do_block_get(self, call: _Call) -> object:
        return Response(200, [("Content-Type", "text/plain")], self._look(call, call.args[0]))

    def do_block_stat(self, call: _Call) -> object:
        return {"Key": call.args[0], "Size": len(self._look(call, call.args[0]))}

    def _look(self, call: _Call, arg: str) -> bytes:
        try:
            return self.get(_cid(arg), offline=_true(call, "offline"))
        except Refusal:
            if not _true(call, "offline"):  # a daemon in a network goes on looking
                raise Refusal("context deadline exceeded") from None
            raise

    def do_block_put(self, call: _Call) -> object:
        self._check_size(call.body)
        prefix = CID_DAG_PB_PREFIX if call.param("cid-codec") == "dag-pb" else CID_RAW_PREFIX
        cid = prefix + hashlib.sha256(call.body).digest()
        self.blocks[cid] = call.body
        if _true(call, "pin"):
            self.pins[cid] = "recursive"
        return {"Key": cid_text(cid), "Size": len(call.body)}

    def _check_size(self, block: bytes) -> None:
        if len(block) > self._max_block:
            raise Refusal(f"produced block is over {self._max_block >> 20}MiB: big blocks can't be exchanged")

    def do_dag_import(self, call: _Call) -> object:
        reader = CarReader()
        for cid, block in reader.feed(call.body):
            self._check_size(block)
            self.blocks[cid] = block
        reader.close()
        if call.param("pin-roots") == "false":
            return []
        root = _car_root(call.body)
        error = ""
        try:
            list(self.walk(root))
            self.pins[root] = "recursive"
        except Refusal as err:
            error = str(err)
        return [{"Root": {"Cid": {"/": cid_text(root)}, "PinErrorMsg": error}}]

    def do_dag_export(self, call: _Call) -> object:
        root = _cid(call.args[0])
        seen: set[bytes] = set()
        parts = [header(root)]
        for cid in self.walk(root, offline=_true(call, "offline")):
            if cid not in seen:
                parts.append(section(cid, self.blocks[cid]))
                seen.add(cid)
        data = b"".join(parts)[: self.drop_after]
        return _streamed(data, "application/vnd.ipld.car; version=1")

    def do_pin_add(self, call: _Call) -> object:
        root = _cid(call.args[0])
        recursive = call.param("recursive") != "false"
        offline = _true(call, "offline")
        try:
            list(self.walk(root, offline=offline)) if recursive else self.get(root, offline=offline)
        except Refusal:
            if offline:
                raise
            raise Refusal("pin: context deadline exceeded") from None
        self.pins[root] = "recursive" if recursive else "direct"
        return {"Pins": [call.args[0]]}

    def do_pin_rm(self, call: _Call) -> object:
        if self.pins.pop(_cid(call.args[0]), None) is None:
            raise Refusal("not pinned or pinned indirectly")
        return {"Pins": [call.args[0]]}

    def do_pin_ls(self, call: _Call) -> object:
        kinds = {"all": ("recursive", "direct")}.get(call.param("type") or "all", (call.param("type"),))
        pins = {cid: kind for cid, kind in self.pins.items() if kind in kinds}
        found = {
            cid_text(cid): {"Type": kind} for cid, kind in pins.items() if not call.args or cid == _cid(call.args[0])
        }
        if call.args and not found:
            raise Refusal(f"path '{call.args[0]}' is not pinned")
        return {"Keys": found}

    def do_files_stat(self, call: _Call) -> object:
        found = self.at(call.args[0])
        if isinstance(found, dict) or self._entries(found) is not None:
            return {"Hash": "QmDirectory", "Size": 0, "CumulativeSize": 4, "Blocks": 0, "Type": "directory"}
        return {"Hash": cid_text(found), "Size": len(self.content(found)), "Type": "file"}

    def do_files_read(self, call: _Call) -> object:
        data = self.content(self._file(call.args[0]))
        offset = int(call.param("offset") or 0)
        if offset > len(data):
            raise Refusal(f"offset was past end of file ({offset} > {len(data)})")
        count = call.param("count")
        return _streamed(data[offset : None if count is None else offset + int(count)], "text/plain")

    def _file(self, path: str) -> bytes:
        found = self.at(path)
        if isinstance(found, dict) or self._entries(found) is not None:
            raise Refusal(f"{path} was not a file")
        return found

    def do_files_write(self, call: _Call) -> object:
        above, name = self._parent(call.args[0], make=_true(call, "parents"))
        above[name] = self.add(call.body)
        return Response(200)

    def do_files_mkdir(self, call: _Call) -> object:
        above, name = self._parent(call.args[0], make=_true(call, "parents"))
        if name in above and not _true(call, "parents"):
            raise Refusal("file already exists")
        above.setdefault(name, {})
        return Response(200)

    def do_files_cp(self, call: _Call) -> object:
        found = self.at(call.args[0])
        above, name = self._parent(call.args[1])
        if name in above:
            raise Refusal(f"cp: cannot put node in path {call.args[1]}: directory already has entry by that name")
        above[name] = found if isinstance(found, bytes) else dict(found)
        return Response(200)

    def do_files_mv(self, call: _Call) -> object:
        found = self.at(call.args[0])
        above, name = self._parent(call.args[1])
        old, was = self._parent(call.args[0])
        above[name] = found
        del old[was]
        return Response(200)

    def do_files_rm(self, call: _Call) -> object:
        above, name = self._parent(call.args[0])
        if name not in above:
            raise Refusal("file does not exist")
        del above[name]
        return Response(200)

    def do_files_ls(self, call: _Call) -> object:
        found = self.at(call.args[0] if call.args else "/")
        inside = self._entries(found) if isinstance(found, bytes) else found
        if inside is None:
            raise Refusal(f"{call.args[0]} is not a directory")
        return {"Entries": [self._entry(name, entry) for name, entry in inside.items()] or None}

    def _entry(self, name: str, entry: bytes | Directory) -> dict[str, object]:
        if isinstance(entry, dict) or self._entries(entry) is not None:
            return {"Name": name, "Type": 1, "Size": 0, "Hash": ""}
        return {"Name": name, "Type": 0, "Size": len(self.content(entry)), "Hash": cid_text(entry)}


def refused(message: str, status: int = 500) -> Response:
    """How Kubo says that it will not."""
    return Response(
        status,
        [("Content-Type", "application/json")],
        json.dumps({"Message": message, "Code": 0, "Type": "error"}).encode(),
    )


def _true(call: _Call, name: str) -> bool:
    return call.param(name) == "true"


def _cid(text: str) -> bytes:
    return parse_cid(text.removeprefix("/ipfs/"))


def part_of(body: bytes, request: Request) -> bytes:
    """The bytes of the only part of a form."""
    boundary = (request.header("content-type") or "").partition("boundary=")[2].encode()
    first, _, rest = body.partition(b"\r\n\r\n")
    data, tail, _ = rest.rpartition(b"\r\n--" + boundary + b"--")
    if not first.startswith(b"--" + boundary) or not tail:
        raise RequestError("SIZE_INVALID", "a multipart body is not whole")
    return data


def _car_root(car: bytes) -> bytes:
    """The only root in the header of a CAR as ours are."""
    at = car.index(b"\xd8\x2a\x58\x25\x00") + 5
    return car[at : at + 36]


def _streamed(data: bytes, content_type: str) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 256 << 10):
            yield data[at : at + (256 << 10)]

    return Response(200, [("Content-Type", content_type)], Stream(chunks(), None))


@asynccontextmanager
async def stub_kubo(stub: StubKubo | None = None) -> AsyncIterator[tuple[str, StubKubo]]:
    """A running stand-in: the URL of its RPC as settings have it, and its state."""
    stub = stub or StubKubo()
    async with running(stub.handle) as url:
        yield url, stub
