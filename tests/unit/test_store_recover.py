"""After a start: files and records agree, and only verified pieces of a partial count."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.store.base import BlobStore
from p2pregistry.store.files import open_files
from p2pregistry.store.index import open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.store.recover import (
    discard_partials,
    reconcile,
    stale_partials,
    surviving_pieces,
    touched_pieces,
)
from p2pregistry.testing.store import put


async def test_reconcile(tmp_path: Path) -> None:
    async with open_files(tmp_path) as store, open_index(tmp_path / "index.lmdb") as index:
        kept, adopted = await put(store, b"kept"), await put(store, b"adopted")
        grown = await put(store, b"grown")
        lost = Digest.of(b"lost")
        for digest, size in ((kept, 4), (lost, 100), (grown, 2)):
            await index.put_blob(digest, size, 1.0)
        (await store.stage("half")).close()
        found = await reconcile(store, index, 9.0)
        assert set(found.adopted) == {adopted, grown}
        assert found.lost == [lost]
        assert found.partials == ["half"]
        assert {d: (s, at) for d, s, at in index.held()} == {kept: (4, 1.0), adopted: (7, 9.0), grown: (5, 9.0)}
        assert index.total() == 16


async def check_survival(store: BlobStore) -> None:
    data = b"".join(bytes([n]) * PIECE_SIZE for n in range(1, 6)) + b"end"
    info = Metainfo.of_bytes(data)
    staged = await store.stage("k")
    assert await surviving_pieces(staged, info) == set()
    for piece in (1, 3, 5):
        await staged.write_at(piece * PIECE_SIZE, data[piece * PIECE_SIZE : (piece + 1) * PIECE_SIZE])
    await staged.write_at(3 * PIECE_SIZE + 7, b"?")
    await staged.write_at(4 * PIECE_SIZE, b"half a piece")
    assert await surviving_pieces(staged, info) == {1, 5}
    await staged.discard()


async def test_surviving_pieces_of_a_file(tmp_path: Path) -> None:
    async with open_files(tmp_path) as store:
        await check_survival(store)


async def test_surviving_pieces_in_memory() -> None:
    await check_survival(MemoryStore())


@given(
    st.integers(0, 5 * PIECE_SIZE),
    st.lists(st.tuples(st.integers(0, 5 * PIECE_SIZE), st.integers(0, 3 * PIECE_SIZE)), max_size=6),
)
def test_touched_pieces_are_those_wholly_covered(size: int, parts: list[tuple[int, int]]) -> None:
    extents = [(start, start + length) for start, length in parts if length]
    expected = []
    for piece in range(-(-size // PIECE_SIZE)):
        at, end = piece * PIECE_SIZE, min(size, (piece + 1) * PIECE_SIZE)
        for start, stop in sorted(extents):
            if start <= at < stop:
                at = stop
        if at >= end:
            expected.append(piece)
    assert touched_pieces(extents, size) == expected


async def test_stale_partials() -> None:
    written = {"old": 10.0, "young": 95.0, "foreign": 99.0, "future": 200.0}
    stale = stale_partials(written, 100.0, 50.0, lambda key: key != "foreign")
    assert stale == ["foreign", "old"]
    store = MemoryStore()
    for key in written:
        (await store.stage(key)).close()
    await discard_partials(store, stale)
    assert await store.staged() == ["future", "young"]
