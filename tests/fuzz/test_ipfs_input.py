"""Blocks from IPFS in any parts and any order, right or wrong: the right bytes come out, or not all of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.content.dag import Hint
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.errors import NotFound, RemoteError
from p2pregistry.sources.ipfs import Common, IpfsSource, Known
from p2pregistry.testing.dags import make_dag


class Parts:
    """A body in parts of any size, with or without a pause before each."""

    ordered = True

    def __init__(self, data: bytes, draw: random.Random) -> None:
        self._data, self._draw = data, draw

    async def next(self) -> bytes:
        for _ in range(self._draw.choice((0, 1, 1, 3))):
            await trio.lowlevel.checkpoint()
        count = self._draw.randrange(1, 200)
        part, self._data = self._data[:count], self._data[count:]
        return part


class Place:
    """Blocks, of which one may be wrong: another byte, cut short, too long, or not there."""

    name, ranges = "a place", False

    def __init__(self, blocks: dict[bytes, bytes], draw: random.Random, wrong: str | None) -> None:
        self._blocks, self._draw = dict(blocks), draw
        cid = draw.choice(sorted(blocks))
        block = self._blocks[cid]
        match wrong:
            case "byte" if block:
                at = draw.randrange(len(block))
                self._blocks[cid] = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
            case "short":
                self._blocks[cid] = block[:-1]
            case "long":
                self._blocks[cid] = block + b"x"
            case "missing":
                del self._blocks[cid]
            case _:
                pass

    @asynccontextmanager
    async def block(self, cid: bytes) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        if cid not in self._blocks:
            raise NotFound("BLOB_UNKNOWN", "not here")
        yield Parts(self._blocks[cid], self._draw)

    def car(self, cid: bytes, start: int, end: int, most: int) -> Any:
        raise AssertionError("not asked for")

    async def probe(self) -> None: ...
    async def aclose(self) -> None: ...


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 6_000),
    st.integers(60, 900),
    st.integers(2, 6),
    st.sampled_from(["raw", "file", "typed-raw"]),
    st.integers(0, 30),
    st.sampled_from([None, None, "byte", "short", "long", "missing"]),
    st.integers(),
)
def test_the_right_bytes_or_not_all_of_them(
    size: int, chunk: int, width: int, leaves: Any, inline: int, wrong: str | None, seed: int
) -> None:
    draw = random.Random(seed)
    data = draw.randbytes(size)
    made = make_dag(data, chunk=chunk, width=width, leaves=leaves, inline=inline)
    info = Metainfo.of_bytes(data)
    start = draw.choice((0, 0, draw.randrange(size)))
    end = draw.choice((size, draw.randrange(start, size) + 1))
    got, whole = bytearray(), False

    async def main() -> None:
        nonlocal whole
        common = Common({info.digest: Known(info.ref, info, (Hint(made.root),))}.get)
        source = IpfsSource(Place(made.blocks, draw, wrong), common, mode="raw")
        try:
            async with source.fetch(info.digest, start, end - start) as incoming:
                while len(got) < end - start:
                    buffer = bytearray(min(draw.randrange(1, 700), end - start - len(got)))
                    count = await incoming.read_into(memoryview(buffer))
                    assert 0 < count <= len(buffer)
                    got.extend(buffer[:count])
                whole = True
        except (RemoteError, NotFound):
            assert wrong is not None

    trio.run(main)
    if wrong is None:
        assert whole
    if whole:
        assert got == data[start:end]
