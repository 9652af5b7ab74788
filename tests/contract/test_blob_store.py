"""Every BlobStore of ours does what the seam says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from p2pregistry.store.base import BlobStore
from p2pregistry.store.files import open_files
from p2pregistry.store.memory import MemoryStore
from p2pregistry.testing.store import check_blob_store


async def test_files(tmp_path: Path) -> None:
    await check_blob_store(lambda: open_files(tmp_path / "data"))


async def test_memory() -> None:
    store = MemoryStore()

    @asynccontextmanager
    async def make() -> AsyncIterator[BlobStore]:
        yield store

    await check_blob_store(make)
