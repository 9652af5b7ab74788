"""What files do beyond the contract: errors of the disk, ownership, what a crash left."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, StorageFull
from p2pregistry.store import files
from p2pregistry.store.files import open_files
from p2pregistry.testing.store import listed, put, read_all


async def test_a_full_disk_is_storage_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_files(tmp_path) as store:
        staged = await store.stage("k")
        for number, kind in ((errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, LocalError)):

            def fail(*_: object, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(files.os, "pwrite", fail)
                with pytest.raises(kind) as caught:
                    await staged.write_at(0, b"x")
            assert type(caught.value) is kind
            assert str(tmp_path) not in str(caught.value)
        await staged.discard()


async def test_a_failed_commit_keeps_the_staged_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_files(tmp_path) as store:
        staged = await store.stage("k")
        await staged.write_at(0, b"data")

        def fail(_fd: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", fail)
            with pytest.raises(StorageFull):
                await staged.commit(Digest.of(b"data"))
        assert await listed(store) == {}
        await staged.commit(Digest.of(b"data"))
        assert await read_all(await store.open(Digest.of(b"data"))) == b"data"


async def test_one_process_owns_a_directory(tmp_path: Path) -> None:
    async with open_files(tmp_path):
        with pytest.raises(LocalError, match=f"in use by process {os.getpid()}"):
            async with open_files(tmp_path):
                raise AssertionError("opened twice")
    async with open_files(tmp_path):
        pass


async def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from p2pregistry.store.owner import own; "
        "own(Path(sys.argv[1]), 'x'); print(1, flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        await trio.to_thread.run_sync(child.stdout.readline)
        with pytest.raises(LocalError, match=str(child.pid)):
            async with open_files(tmp_path):
                raise AssertionError("opened twice")
        child.kill()
        await trio.to_thread.run_sync(child.wait)
    async with open_files(tmp_path):
        pass


async def test_modes_and_leftovers(tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    async with open_files(root) as store:
        digest = await put(store, b"x")
        assert store.path(digest).stat().st_mode & 0o777 == 0o600
        for path in (root, root / "partial", root / "blobs", store.path(digest).parent):
            assert path.stat().st_mode & 0o777 == 0o700
    (root / "partial" / ".left").write_bytes(b"x")
    (root / "blobs" / "sha256" / "00").mkdir()
    (root / "blobs" / "sha256" / "00" / "stray").write_bytes(b"x")
    (root / "blobs" / "sha256" / "file").write_bytes(b"x")
    async with open_files(root) as store:
        assert not (root / "partial" / ".left").exists()
        assert await listed(store) == {digest: 1}


async def test_unusable_directories_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError, match="file"):
        async with open_files(tmp_path / "file"):
            pass
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1000)
    if owner != 0:
        with pytest.raises(LocalError, match=f"belongs to user {owner}"):
            async with open_files(tmp_path):
                pass


async def test_a_damaged_blob_is_replaced_by_a_verified_one(tmp_path: Path) -> None:
    async with open_files(tmp_path) as store:
        digest = await put(store, b"whole")
        store.path(digest).write_bytes(b"who")
        await put(store, b"whole")
        assert await read_all(await store.open(digest)) == b"whole"


async def test_closing_waits_for_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is closed under a thread may already be another file."""
    async with open_files(tmp_path) as store:
        staged = await store.stage("k")
        entered, go = trio.Event(), trio.Event()
        token = trio.lowlevel.current_trio_token()
        real = files.write

        def slow(fd: int, offset: int, data: bytes) -> None:
            trio.from_thread.run_sync(entered.set, trio_token=token)
            trio.from_thread.run(go.wait, trio_token=token)
            real(fd, offset, data)

        monkeypatch.setattr(files, "write", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(staged.write_at, 0, b"late")
            await entered.wait()
            with pytest.raises(RuntimeError):
                await staged.commit(Digest.of(b"late"))
            staged.close()
            go.set()
        monkeypatch.undo()
        again = await store.stage("k")
        assert await again.read_at(0, 9) == b"late"
        with pytest.raises(RuntimeError):
            await staged.read_at(0, 1)
        await staged.discard()  # speaks for the key no more
        assert await store.staged() == ["k"]
        await again.discard()


async def test_extents_skip_holes(tmp_path: Path) -> None:
    async with open_files(tmp_path) as store:
        staged = await store.stage("k")
        assert await staged.extents() == []
        await staged.write_at(4 << 20, b"x" * 100)
        extents = await staged.extents()
        assert extents[-1][1] == (4 << 20) + 100
        assert any(start <= 4 << 20 < end for start, end in extents)
        await staged.discard()


def test_the_seam_is_cheap_to_import() -> None:
    code = "import sys, p2pregistry.store.base; print([m for m in ('lmdb', 'trio', 'msgspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
