"""A trustless gateway, seen from here (https://specs.ipfs.tech/http-gateways/trustless-gateway/).

Blocks one by one (``format=raw``) or a CAR of a range of a file (``format=car``). The format is asked for in the query
and in ``Accept``: some heed only one of them, and send a file with its own type otherwise, so the type of an answer is
looked at before anything of it is. Nothing is believed: whoever takes the bytes hashes them.

Redirects are not followed. A trustless gateway has no reason for one; the usual one is to a host name for each CID,
which is for browsers. Following them would let a gateway send a node to any address inside its network.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import trio

from p2pregistry.content.car import MAX_BLOCK
from p2pregistry.digest import cid_text
from p2pregistry.errors import BadContent, NotFound, RemoteBusy, RemoteError, SettingsError, Unreachable
from p2pregistry.ipfs.http import broken, cut_short, make_client, send

_RAW: Final = "application/vnd.ipld.raw"
_CAR: Final = "application/vnd.ipld.car"
#: The CID of nothing, which every gateway has (trustless gateway specification, "Dedicated probe paths").
PROBE: Final = "/ipfs/bafkqaaa?format=raw"
#: Seconds: for a connection, and for a free one of the pool.
_CONNECT: Final = 5.0
_POOL: Final = 30.0
#: Seconds that a busy gateway is left alone where it does not say for how long.
_BUSY: Final = 5.0
_URL: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")


class NoCar(RemoteError):
    """It does not give CARs, or not of ranges."""


class TooLong(Unreachable):
    """There is more than was asked for can have."""


class Body:
    """Bytes of an answer as they come. ``ordered``: of a CAR: depth first, and repeated blocks each time."""

    def __init__(self, chunks: AsyncIterator[bytes], most: int, whose: str, *, ordered: bool = False) -> None:
        self.ordered = ordered
        self._chunks, self._left, self._whose = chunks, most, whose

    async def next(self) -> bytes:
        """Some bytes; b"" at the end. Raises Unreachable, of which TooLong is one."""
        try:
            async for chunk in self._chunks:
                if chunk:
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise TooLong(f"{self._whose} sends more than a block can have, or a range")
                    return chunk
        except httpx.HTTPError as err:
            raise broken(err, self._whose) from err
        return b""


class GatewayClient:
    """One gateway. ``requests`` of them at a time, the others wait; ``timeout``: seconds without a byte."""

    def __init__(self, url: str, *, requests: int = 8, timeout: float = 10.0, ca_file: Path | None = None) -> None:
        """``ca_file``: certificates that are trusted beside the public ones. Raises SettingsError for a URL that cannot
        be used, LocalError for certificates that cannot."""
        self.name = check_url(url)
        self.ranges = True  # it gives CARs of parts of a file
        self._client = make_client(connections=requests, ca_file=ca_file)
        self._turn = trio.CapacityLimiter(requests)
        self._timeout = httpx.Timeout(timeout, connect=min(_CONNECT, timeout), pool=_POOL)

    @asynccontextmanager
    async def block(self, cid: bytes) -> AsyncIterator[Body]:
        """A block, not hashed yet. Entering raises NotFound, RemoteBusy, Unreachable."""
        target = f"/ipfs/{cid_text(cid)}?format=raw"
        async with self._asked(target, _RAW) as response, self._body(response, MAX_BLOCK) as chunks:
            yield Body(chunks, MAX_BLOCK, self.name)

    @asynccontextmanager
    async def car(self, cid: bytes, start: int, end: int, most: int) -> AsyncIterator[Body]:
        """A CAR of the blocks that hold the bytes ``start`` .. ``end`` of a file, ``most`` bytes of it. Entering raises
        NoCar too."""
        target = f"/ipfs/{cid_text(cid)}?format=car&dag-scope=entity&entity-bytes={start}:{end - 1}"
        async with self._asked(target, _CAR, "; version=1; order=dfs; dups=y") as response:
            said = parameters(response.headers.get("content-type", ""))
            if said.get("version", "1") != "1":
                raise NoCar(f"{self.name} gives CARs of another version")
            ordered = said.get("order") == "dfs" and said.get("dups") == "y"
            async with self._body(response, most) as chunks:
                yield Body(chunks, most, self.name, ordered=ordered)

    async def probe(self) -> None:
        """Raises RemoteError unless it answers as a trustless gateway does; not to have the empty block is all right:
        that it has it is new in the specification."""
        with suppress(NotFound):
            async with self._asked(PROBE, _RAW) as response, self._body(response, 0) as chunks:
                if await Body(chunks, 0, self.name).next():
                    raise BadContent(f"{self.name} does not know what an empty block is")

    async def aclose(self) -> None:
        """Let go of its connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _asked(self, target: str, kind: str, more: str = "") -> AsyncIterator[httpx.Response]:
        """The answer with status 200 and this type, its body not read."""
        async with self._turn:
            request = self._client.build_request(
                "GET", self.name + target, headers={"Accept": kind + more}, timeout=self._timeout
            )
            response = await send(self._client, request, self.name)
            try:
                self._check(response.status_code, response.headers, kind)
                yield response
            finally:
                await response.aclose()

    def _check(self, status: int, headers: Mapping[str, str], kind: str) -> None:
        """Raises what a head means that is not what was asked for."""
        if status in (404, 410, 451):
            raise NotFound("BLOB_UNKNOWN", f"{self.name} does not have it")
        if status == 504:  # what a gateway says that has looked for it, and not found it in time
            raise NotFound("BLOB_UNKNOWN", f"{self.name} did not find it in time")
        if status in (429, 503):
            raise RemoteBusy(f"{self.name} is busy", retry_after(headers.get("retry-after")))
        if 300 <= status < 400:
            raise Unreachable(f"{self.name} sends us elsewhere ({status}), where we do not go")
        if kind == _CAR and status in (400, 406, 415, 501):
            raise NoCar(f"{self.name} does not give CARs of ranges ({status})")
        if status != 200:
            raise Unreachable(f"{self.name} answers {status}")
        found = headers.get("content-type", "").partition(";")[0].strip().lower()
        if found != kind:
            said = f"{self.name} answers with {found[:60] or 'no type'} where {kind} was asked for"
            raise NoCar(said) if kind == _CAR else Unreachable(said)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Unreachable(f"{self.name} compresses what it was asked for as it is")

    @asynccontextmanager
    async def _body(self, response: httpx.Response, most: int) -> AsyncIterator[AsyncIterator[bytes]]:
        length = response.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > most:
            raise TooLong(f"{self.name} has more to send than a block can have, or a range")
        chunks = response.aiter_raw()
        try:
            yield chunks
        finally:
            await cut_short(chunks)


def check_url(url: str) -> str:
    """The URL of a gateway, without a slash at its end. Raises SettingsError."""
    if _URL.fullmatch(url) is None:
        raise SettingsError("a gateway is a URL such as https://gateway.example, without user or query")
    return url.rstrip("/")


def retry_after(value: str | None) -> float:
    """Seconds, from a header that may be anything; a date counts as not said."""
    if value is None or not value.isascii() or not value.strip().isdigit() or len(value) > 9:
        return _BUSY
    return min(max(float(value), 1.0), 600.0)


def parameters(content_type: str) -> dict[str, str]:
    """What stands behind the type in a Content-Type, in lower case."""
    found: dict[str, str] = {}
    for part in content_type.split(";")[1:20]:
        name, _, value = part.partition("=")
        found[name.strip().lower()] = value.strip().strip('"').lower()
    return found
