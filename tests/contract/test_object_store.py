"""Objects in memory and in files do what every object store must do."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2pregistry.errors import LocalError
from p2pregistry.objects.base import ObjectStore
from p2pregistry.objects.files import open_file_objects
from p2pregistry.objects.memory import Held, MemoryObjects
from p2pregistry.store.files import open_files
from p2pregistry.testing.objects import check_object_store, read_object


async def test_memory() -> None:
    held = Held()

    @asynccontextmanager
    async def make() -> AsyncIterator[ObjectStore]:
        yield MemoryObjects(held)

    await check_object_store(make)


async def test_files(tmp_path: Path) -> None:
    await check_object_store(lambda: open_file_objects(tmp_path / "data"))


async def test_blobs_of_older_releases_are_objects_and_their_unfinished_uploads_go(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256" / "ab").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / "ab" / "abcd").write_bytes(b"old")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "upload-1").write_bytes(b"half")
    async with open_file_objects(tmp_path) as store:
        assert await read_object(store, "sha256/ab/abcd", 3) == b"old"
    assert not list((tmp_path / "partial").iterdir())


async def test_a_directory_that_an_older_release_uses_is_refused(tmp_path: Path) -> None:
    async with open_files(tmp_path):
        with pytest.raises(LocalError, match="older release"):
            async with open_file_objects(tmp_path):
                pass


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    async with open_file_objects(tmp_path) as store:
        draft = await store.draft("u/aa/one", 0)
        await draft.append(b"secret")
        await draft.publish()
        await store.put("u/aa/two", b"secret")
    for name in ("one", "two"):
        assert (tmp_path / "blobs" / "u" / "aa" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "blobs" / "u" / "aa").stat().st_mode & 0o777 == 0o700


async def test_a_draft_is_locked_while_it_is_open(tmp_path: Path) -> None:
    async with open_file_objects(tmp_path) as store:
        draft = await store.draft("u/aa/one", 0)
        fd = os.open(tmp_path / "uploads" / "u" / "aa" / "one", os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await draft.aclose()
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


async def test_what_a_process_left_that_died_while_it_made_a_file_goes(tmp_path: Path) -> None:
    async with open_file_objects(tmp_path) as store:
        making = tmp_path / "uploads" / ".making"
        left, held, fresh, other = (making / name for name in ("a" * 32, "b" * 32, "c" * 32, "notes"))
        for path in (left, held, fresh, other):
            path.write_bytes(b"bytes")
            if path is not fresh:
                os.utime(path, (0, 0))
        with held.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert [stored.name async for stored in store.drafts()] == []
        assert sorted(making.iterdir()) == [held, fresh, other]


async def test_an_object_that_changed_its_size_is_not_served(tmp_path: Path) -> None:
    async with open_file_objects(tmp_path) as store:
        await store.put("u/aa/one", b"bytes")
        (tmp_path / "blobs" / "u" / "aa" / "one").write_bytes(b"byte")
        with pytest.raises(LocalError, match="4 bytes in place of 5"):
            await store.open("u/aa/one", 5)
        assert await store.size("u/aa/one") == 4
