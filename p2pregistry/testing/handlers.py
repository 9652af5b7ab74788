"""Calls to a handler without a socket."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from p2pregistry.errors import RegistryError, RequestError
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.http import BlobSlice, Handler, Request, Response, Stream
from p2pregistry.store.base import FilePart


class ScriptedBody:
    """A request body that comes in these pieces; ``cut``: the client then stops short."""

    def __init__(self, pieces: Sequence[bytes], *, cut: bool = False) -> None:
        self._pieces = iter(pieces)
        self._cut = cut

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        if self._cut:
            raise RequestError("SIZE_INVALID", "the client stopped before the end of the body")
        raise StopAsyncIteration

    async def read(self, limit: int) -> bytes:
        """See Body."""
        data = b"".join([piece async for piece in self])
        if len(data) > limit:
            raise RequestError("SIZE_INVALID", "the body is too long", status=413)
        return data


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answered, its body read; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    lines: tuple[tuple[str, str], ...] = ()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The OCI code of an error answer, which must be one in form."""
        assert self.headers["content-type"] == "application/json"
        (error,) = self.json()["errors"]
        assert error["message"]
        code: str = error["code"]
        return code


async def call(
    handler: Handler,
    method: str,
    target: str,
    body: bytes | ScriptedBody = b"",
    *,
    headers: Sequence[tuple[str, str]] = (),
    chunked: bool = False,
    client: str = "",
) -> Answer:
    """One request. A body of bytes gets a Content-Length unless ``chunked``; errors become answers."""
    sent = [(name.lower(), value) for name, value in headers]
    if chunked:
        sent.append(("transfer-encoding", "chunked"))
    elif isinstance(body, bytes) and not any(name == "content-length" for name, _ in sent) and method not in "GET HEAD":
        sent.append(("content-length", str(len(body))))
    scripted = body if isinstance(body, ScriptedBody) else ScriptedBody([body] if body else [])
    try:
        response = await handler(Request(method, target, tuple(sent), scripted, client))
    except RegistryError as err:
        response = error_response(err)
    return await _answer(response, method)


async def _answer(response: Response, method: str) -> Answer:
    part = response.body
    data = b""
    if isinstance(part, BlobSlice):
        try:
            data = await part.blob.read_at(part.offset, part.length) if method != "HEAD" else b""
        finally:
            part.blob.close()
            if part.sent is not None:
                part.sent(len(data))
    elif isinstance(part, Stream):
        parts: list[bytes] = []
        try:
            async for chunk in part.chunks:
                found = os.pread(chunk.fd, chunk.length, chunk.offset) if isinstance(chunk, FilePart) else chunk
                parts.append(found)
        finally:
            if part.sent is not None:
                part.sent(sum(map(len, parts)))
            close = getattr(part.chunks, "aclose", None)
            if close is not None:
                await close()
        data = b"".join(parts)
    else:
        data = part if method != "HEAD" else b""
    return Answer(
        response.status, {name.lower(): value for name, value in response.headers}, data, tuple(response.headers)
    )
