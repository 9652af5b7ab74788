"""A trustless gateway for tests, small enough to be seen to be right, and able to be wrong in every way we know of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from p2pregistry.content.car import header, section
from p2pregistry.content.dag import any_cid, read_node
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, cid_text
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.testing.http import running

RAW = "application/vnd.ipld.raw"
CAR = "application/vnd.ipld.car; version=1; order=dfs; dups=y"
Fault = Literal[
    "wrong block",
    "cut",
    "huge section",
    "html",
    "redirect",
    "endless",
    "long",
    "strange section",
    "busy",
    "unavailable",
    "broken",
    "dies",
    "hangs",
    "gzip",
    "no car",
    "late 404",
]


@dataclass
class StubGateway:
    """What it has, how it behaves, and what it was asked: ``asked`` has (what, CID as text, range).

    ``ranges``: heeds ``entity-bytes``; ``dups``: repeats blocks in a CAR, and says so; ``fault``: how it is wrong, but
    for blocks that are ``spared`` when they are asked for one by one.
    """

    blocks: dict[bytes, bytes] = field(default_factory=dict)
    ranges: bool = True
    dups: bool = True
    fault: Fault | None = None
    spared: set[bytes] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    probes: int = 0

    def add(self, *blobs: bytes) -> None:
        """Have these in our layout."""
        for data in blobs:
            info = Metainfo.of_bytes(data)
            for index in range(info.count):
                piece = data[index * PIECE_SIZE : (index + 1) * PIECE_SIZE]
                self.blocks[CID_RAW_PREFIX + info.hash(index)] = piece
            for block in info.dag().blocks:
                self.blocks[CID_DAG_PB_PREFIX + Metainfo.of_bytes(block).hash(0)] = block

    async def __call__(self, request: Request) -> Response:
        """A handler."""
        if request.path == "/ipfs/bafkqaaa":
            self.probes += 1
            return await self._answer(RAW, b"", "probe")
        cid = any_cid(request.path.removeprefix("/ipfs/"))
        what = request.param("format") or ""
        wanted = RAW if what == "raw" else CAR.partition(";")[0]
        if cid is None or what not in ("raw", "car") or wanted not in (request.header("accept") or ""):
            return Response(400)
        entity = request.param("entity-bytes") or ""
        self.asked.append((what, cid_text(cid), entity))
        if cid not in self.blocks or (self.fault == "late 404" and cid[:4] == CID_RAW_PREFIX and len(self.asked) > 3):
            return Response(404, [("Content-Type", "text/plain")], b"not here")
        if what == "raw":
            if cid in self.spared:
                return Response(200, [("Content-Type", RAW)], self.blocks[cid])
            return await self._answer(RAW, self.blocks[cid], what)
        if self.fault == "no car":
            return Response(200, [("Content-Type", "application/octet-stream")], b"the file itself")
        data = self._car(cid, *(int(n) for n in entity.split(":"))) if entity else self._car(cid)
        return await self._answer(CAR if self.dups else CAR.replace("=y", "=n"), data, what)

    def _car(self, root: bytes, first: int = 0, last: int = 1 << 60) -> bytes:
        found = list(self._below(root, 0, *((first, last) if self.ranges else (0, 1 << 60))))
        if not self.dups:
            found = list(dict.fromkeys(found))
        return header(root) + b"".join(section(cid, self._sent(cid)) for cid in found)

    def _below(self, cid: bytes, at: int, first: int, last: int) -> Iterable[bytes]:
        yield cid
        if cid[:4] == CID_DAG_PB_PREFIX:
            node = read_node(self.blocks[cid])
            at += len(node.data)
            for link, size in node.links:
                if at <= last and at + size > first:
                    yield from self._below(link, at, first, last)
                at += size

    def _sent(self, cid: bytes) -> bytes:
        block = self.blocks[cid]
        wrong = self.fault == "wrong block" and cid[:4] == CID_RAW_PREFIX
        return bytes(byte ^ 1 for byte in block[:1]) + block[1:] if wrong else block

    async def _answer(self, kind: str, data: bytes, what: str) -> Response:
        headers = [("Content-Type", kind)]
        match self.fault:
            case "busy":
                return Response(429, [("Retry-After", "7")])
            case "unavailable":
                return Response(503, [("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")])
            case "broken":
                return Response(500)
            case "redirect":
                return Response(302, [("Location", "http://169.254.169.254/latest")])
            case "html":
                return Response(200, [("Content-Type", "text/html")], b"<h1>log in</h1>")
            case "gzip":
                return Response(200, [*headers, ("Content-Encoding", "gzip")], data)
            case "endless":
                return Response(200, headers, Stream(_endless(), None, endless=True))
            case "long":
                data += bytes(3 << 20)
            case "hangs":
                await trio.sleep_forever()
            case "dies":
                return Response(200, headers, Stream(_dying(data), len(data) + 1000))
            case "huge section" if what == "car":
                data = data[:100] + b"\xff\xff\xff\x7f" + bytes(1000)
            case "strange section" if what == "car":
                at = len(header(bytes(36)))
                data = data[:at] + section(b"\x01\x71\x12\x20" + bytes(32), b"?") + data[at:]
            case "cut" if what == "car":
                data = data[: len(data) * 2 // 3]
            case "wrong block" if what == "raw":
                data = bytes(byte ^ 1 for byte in data[:1]) + data[1:]
            case _:
                pass
        if what == "car":
            return Response(200, headers, Stream(_parts(data), None))
        return Response(200, headers, data)


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 200_000):
        yield data[at : at + 200_000]


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1 << 16)


async def _dying(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    raise trio.BrokenResourceError  # the listener cuts the connection


@asynccontextmanager
async def stub_gateway(stub: StubGateway | None = None) -> AsyncIterator[tuple[str, StubGateway]]:
    """A running gateway: its URL, and its state."""
    stub = stub or StubGateway()
    async with running(stub, grace=0.0) as url:
        yield url, stub
