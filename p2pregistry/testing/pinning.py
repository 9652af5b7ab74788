"""A stand-in for services that keep IPFS content, for tests: the Pinning Service API 1.0.0 and uploads of CARs, over
real HTTP."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import unquote

from p2pregistry.content.car import CarReader
from p2pregistry.errors import BadContent
from p2pregistry.serve.http import Request, Response
from p2pregistry.testing.http import running
from p2pregistry.testing.kubo import part_of

TOKEN: Final = "the-token-of-pins"  # noqa: S105 - of tests


class StubPinning:
    """``pins`` by the names that the service gives them. ``status``: that of new pins. ``scripted``: answers that are
    given in place of doing something, by "METHOD path", first come first served; "*": to anything. ``uploads``: what
    was uploaded, its blocks by the CID that the URL named. ``names``: it looks for pins by their names, too."""

    def __init__(self, *, status: str = "queued") -> None:
        self.pins: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, dict[bytes, bytes]] = {}
        self.status = status
        self.scripted: dict[str, list[Response]] = {}
        self.calls: Counter[str] = Counter()
        self.named: str | None = None
        self.delegates: list[str] = []
        self.names = True
        self._made = 0

    async def handle(self, request: Request) -> Response:
        """One request."""
        parts = [unquote(part) for part in request.path.split("/")[1:]]
        what = f"{request.method} {parts[0]}"
        self.calls[what] += 1
        for key in (what, "*"):
            if self.scripted.get(key):
                return self.scripted[key].pop(0)
        if request.header("authorization") != f"Bearer {TOKEN}":
            return _answer(401, {"error": {"reason": "UNAUTHORIZED", "details": "who are you"}})
        if parts[0] == "upload":
            return await self._upload(request, parts[1])
        if request.method == "POST":
            return self._add(json.loads(await request.body.read(1 << 20)))
        if len(parts) == 1:
            cid, name = request.param("cid"), request.param("name")
            found = [pin for pin in self.pins.values() if pin["pin"]["cid"] == cid]
            found = [pin for pin in found if not self.names or pin["pin"]["name"] == name]
            return _answer(200, {"count": len(found), "results": found})
        if parts[1] not in self.pins:
            return _answer(404, {"error": {"reason": "NOT_FOUND"}})
        if request.method == "DELETE":
            del self.pins[parts[1]]
            return Response(202)
        return _answer(200, self.pins[parts[1]])

    def _add(self, document: dict[str, Any]) -> Response:
        self._made += 1
        number = f"request-{self._made}"
        self.pins[number] = {
            "requestid": number,
            "status": self.status,
            "created": "2026-01-01T00:00:00Z",
            "pin": document,
            "delegates": list(self.delegates),
        }
        return _answer(202, self.pins[number])

    async def _upload(self, request: Request, cid: str) -> Response:
        if request.method == "DELETE":
            return Response(204 if self.uploads.pop(cid, None) is not None else 404)
        reader = CarReader()
        blocks: dict[bytes, bytes] = {}
        try:
            if (request.header("content-type") or "").startswith("multipart/"):
                blocks.update(reader.feed(part_of(await request.body.read(64 << 20), request)))
            else:
                async for data in request.body:
                    blocks.update(reader.feed(data))
            reader.close()
        except BadContent:
            return _answer(400, {"error": {"reason": "BAD_CAR"}})
        self.uploads[cid] = blocks
        return _answer(200, {"ok": True, "value": {"cid": self.named or cid}})


def _answer(status: int, document: object) -> Response:
    return Response(status, [("Content-Type", "application/json")], json.dumps(document).encode())


@asynccontextmanager
async def stub_pinning(stub: StubPinning | None = None) -> AsyncIterator[tuple[str, StubPinning]]:
    """A running stand-in: its URL, and its state."""
    stub = stub or StubPinning()
    async with running(stub.handle) as url:
        yield url, stub
