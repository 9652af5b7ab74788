"""The cache: which blobs go, and that those in use stay."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, StorageFull
from p2pregistry.store.cache import Cache, choose_evictions
from p2pregistry.store.index import open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.testing.store import listed, put, read_all

DIGESTS = [Digest.of(bytes([n])) for n in range(12)]
SIZES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.booleans()), max_size=12)


@given(
    SIZES,
    st.integers(0, 100),
    st.none() | st.integers(0, 500),
    st.integers(-50, 300),
    st.none() | st.integers(0, 300),
)
def test_choice(
    blobs: list[tuple[int, int, bool]], coming: int, max_bytes: int | None, free: int, min_free: int | None
) -> None:
    entries = [(DIGESTS[n], size, float(at)) for n, (size, at, _) in enumerate(blobs)]
    busy = {DIGESTS[n] for n, (_, _, used) in enumerate(blobs) if used}
    sizes = {digest: size for digest, size, _ in entries}
    total = sum(sizes.values()) + coming
    chosen = choose_evictions(entries, total, max_bytes, free, min_free, busy)

    def within(gone: list[Digest]) -> bool:
        bytes_gone = sum(sizes[digest] for digest in gone)
        return (max_bytes is None or total - bytes_gone <= max_bytes) and (
            min_free is None or free + bytes_gone >= min_free
        )

    assert len(set(chosen)) == len(chosen)
    assert not busy.intersection(chosen)
    left = {digest for digest in sizes if digest not in busy and sizes[digest] > 0} - set(chosen)
    assert within(chosen) or not left  # over a limit only when nothing else may go
    assert not chosen or not within(chosen[:-1])  # no more than needed
    used = {digest: at for digest, _, at in entries}
    assert all(used[gone] <= used[kept] for gone in chosen for kept in left)  # oldest first


class _Node:
    def __init__(self) -> None:
        self.now = 0.0
        self.dropped: list[Digest] = []

    def clock(self) -> float:
        self.now += 1
        return self.now


async def test_least_recently_used_goes_and_use_protects(tmp_path: Path) -> None:
    node, store = _Node(), MemoryStore()

    def on_drop(digest: Digest) -> None:
        assert digest in store.complete  # told before the bytes go
        node.dropped.append(digest)

    async with open_index(tmp_path / "i") as index:
        cache = Cache(store, index, 100, None, on_drop, node.clock)

        async def fetch(data: bytes) -> Digest:
            digest = Digest.of(data)
            async with cache.room(digest, len(data)):
                await put(store, data)
                await cache.added(digest, len(data))
            assert cache.coming == 0
            return digest

        a, b, c = [await fetch(bytes([n]) * 30) for n in range(3)]
        assert index.total() == 90
        assert await read_all(await cache.open(a)) == bytes(30)
        d = await fetch(b"d" * 30)
        assert node.dropped == [b]
        served = await cache.open(c)
        with cache.pin(a):
            async with cache.room(b, 40):
                assert node.dropped == [b, d]
                assert not await cache.drop(c)
                with pytest.raises(StorageFull):
                    async with cache.room(d, 10):
                        raise AssertionError("there was no room")
        served.close()
        served.close()
        assert cache.busy() == set()
        assert await cache.drop(c)
        assert index.blob(c) is None
        assert set(await listed(store)) == {a}
        with pytest.raises(NotFound):
            await cache.open(c)
        assert cache.busy() == set()


async def test_the_disk_keeps_its_free_bytes(tmp_path: Path) -> None:
    node, store = _Node(), MemoryStore(limit=100)
    async with open_index(tmp_path / "i") as index:
        cache = Cache(store, index, None, 20, node.dropped.append, node.clock)
        for n in range(5):
            digest = Digest.of(bytes([n]) * 30)
            async with cache.room(digest, 30):
                assert await store.free_bytes() >= 50
                await put(store, bytes([n]) * 30)
                await cache.added(digest, 30)
        assert len(node.dropped) == 3
        store.limit = 60  # somebody else fills the disk
        await cache.trim()
        assert index.total() == 30


@given(
    st.lists(st.tuples(st.sampled_from(["fetch", "open", "close", "drop"]), st.integers(0, 11)), max_size=30),
    st.integers(20, 120),
)
async def test_any_history_keeps_the_limits(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], limit: int
) -> None:
    node, store = _Node(), MemoryStore()
    opened: dict[int, AsyncExitStack] = {}
    async with open_index(tmp_path_factory.mktemp("cache") / "i") as index:
        cache = Cache(store, index, limit, None, node.dropped.append, node.clock)
        for what, n in steps:
            data = bytes([n]) * (n * 5 + 1)
            digest = Digest.of(data)
            if what == "fetch" and digest not in store.complete:
                try:
                    async with cache.room(digest, len(data)):
                        await put(store, data)
                        await cache.added(digest, len(data))
                except StorageFull:
                    held = sum(len(store.complete[d]) for d in cache.busy())
                    assert held + len(data) > limit  # refused only when what is in use leaves no room
            elif what == "open" and n not in opened and digest in store.complete:
                opened[n] = AsyncExitStack()
                opened[n].callback((await cache.open(digest)).close)
            elif what == "close" and n in opened:
                await opened.pop(n).aclose()
            elif what == "drop":
                assert await cache.drop(digest) == (n not in opened)
            assert index.total() == sum(map(len, store.complete.values())) <= limit
            assert all(Digest.of(bytes([m]) * (m * 5 + 1)) in store.complete for m in opened)
        for stack in opened.values():
            await stack.aclose()
        assert cache.busy() == set()


async def test_what_is_fetched_ahead_has_a_budget_and_displaces_nothing_that_clients_use(tmp_path: Path) -> None:
    node, store = _Node(), MemoryStore()
    async with open_index(tmp_path / "i") as index:
        cache = Cache(store, index, 150, None, node.dropped.append, node.clock, max_ahead=60)

        async def fetch(name: str, size: int = 30, *, ahead: bool = False) -> Digest:
            data = name.encode() * size
            digest = Digest.of(data)
            async with cache.room(digest, size, ahead=ahead):
                await put(store, data)
                await cache.added(digest, size, ahead=ahead)
            return digest

        used = [await fetch(name) for name in "ab"]
        early = [await fetch(name, ahead=True) for name in "cde"]
        assert node.dropped == early[:1]  # the oldest of the budget, though both others were used before
        assert cache.ahead == 60
        await cache.asked(early[1])
        assert cache.ahead == 30
        with pytest.raises(StorageFull):  # not even all of the budget would make room for it
            await fetch("f", 90, ahead=True)
        assert index.blob(early[2]) is not None
        more = await fetch("g", ahead=True)
        with pytest.raises(StorageFull):
            async with cache.room(Digest.of(b"h"), 70, ahead=True):
                raise AssertionError("there was no room")
        (await cache.open(more)).close()  # for a peer: no client has asked for it
        client = await fetch("i")
        assert node.dropped == [early[0], early[2]]  # what was fetched ahead goes before what is used
        assert all(index.blob(digest) is not None for digest in (*used, early[1], more, client))


async def test_what_is_kept_stays_and_is_in_no_budget(tmp_path: Path) -> None:
    node, store = _Node(), MemoryStore()
    async with open_index(tmp_path / "i") as index:
        cache = Cache(store, index, 100, None, node.dropped.append, node.clock, max_ahead=10)
        kept, other = Digest.of(b"k" * 60), Digest.of(b"o" * 30)
        cache.kept = frozenset({kept})
        for digest, letter, size in ((kept, b"k", 60), (other, b"o", 30)):
            async with cache.room(digest, size, ahead=digest == kept):
                await put(store, letter * size)
                await cache.added(digest, size, ahead=digest == kept)
        assert cache.ahead == 0
        assert await cache.surplus(0) == [(other, 30)]
        assert node.dropped == []
        assert await cache.trim(0) == [(other, 30)]
        assert not await cache.drop(kept)
        assert set(await listed(store)) == {kept}
        cache.kept = frozenset()
        assert await cache.trim(0) == [(kept, 60)]


async def test_that_no_client_has_asked_for_it_outlives_a_restart_and_a_touch(tmp_path: Path) -> None:
    one, other = Digest.of(b"1"), Digest.of(b"2")
    async with open_index(tmp_path / "i") as index:
        for digest in (one, other):
            await index.put_blob(digest, 10, 1.0, ahead=True)
        index.touch(one, 2.0)
        await index.asked(other)
        await index.put_blob(Digest.of(b"3"), 10, 1.0)
    async with open_index(tmp_path / "i") as index:
        assert index.ahead() == {one: 10}
        entry = index.blob(one)
        assert entry is not None
        assert entry.last_use == 2.0
