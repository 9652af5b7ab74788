"""kill -9 of a process that writes and commits: what is visible afterwards is whole, and records agree with it."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.store.files import open_files
from p2pregistry.store.index import open_index
from p2pregistry.store.recover import reconcile, surviving_pieces
from p2pregistry.testing.store import listed, read_all

ROUNDS = 20
CHILD = """
import hashlib, random, sys
from pathlib import Path
import trio
from p2pregistry.digest import Digest
from p2pregistry.store.files import open_files
from p2pregistry.store.index import TagRecord, open_index

async def main(root, seed):
    rng = random.Random(seed)
    async with open_files(root) as store, open_index(root / "index.lmdb") as index:
        print("ready", flush=True)
        number = 0
        while True:
            number += 1
            data = rng.randbytes(rng.choice([10, 5000, 300_000]))
            digest = Digest.of(data)
            staged = await store.stage(f"k{seed}-{number}")
            for at in range(0, len(data), 100_000):
                part = data[at : at + 100_000]
                await staged.write_verified(at, part, hashlib.sha256(part).digest())
            await staged.commit(digest)
            await index.put_blob(digest, len(data), float(number))
            await index.put_tag("r", str(seed), TagRecord(digest, float(number)))
            print(digest, flush=True)
            if number % 3 == 0:
                await index.drop_blob(digest)
                await store.delete(digest)
                print("-" + str(digest), flush=True)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def run_and_kill(code: str, root: Path, seed: int, after_lines: int, work: int) -> list[str]:
    """Start a child, read some lines, hash ``work`` KiB, kill it; every line it wrote whole."""
    with subprocess.Popen([sys.executable, "-c", code, str(root), str(seed)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline().decode() for _ in range(after_lines)]
            hashlib.sha256(bytes(work << 10)).digest()  # moves the kill to somewhere between two lines
        finally:
            child.kill()
        lines += child.stdout.read().decode().splitlines(keepends=True)
    assert "ready\n" in lines
    return [line.strip() for line in lines if line.endswith("\n")]


async def test_twenty_kills(tmp_path: Path) -> None:
    rng = random.Random(20)
    gone: set[Digest] = set()
    there: set[Digest] = set()
    for seed in range(ROUNDS):
        lines = run_and_kill(CHILD, tmp_path, seed, rng.randint(1, 8), rng.randint(0, 8000))
        for line in lines[1:]:
            if line.startswith("-"):
                gone.add(Digest.parse(line[1:]))
            else:
                there.add(Digest.parse(line))
        # the last one told of may have been on its way out
        last = next((Digest.parse(line.lstrip("-")) for line in reversed(lines[1:])), None)
        async with open_files(tmp_path) as store, open_index(tmp_path / "index.lmdb") as index:
            assert not (tmp_path / "index.lmdb.damaged").exists()
            for digest, size in (await listed(store)).items():
                data = await read_all(await store.open(digest))
                assert len(data) == size
                assert Digest.of(data) == digest
            files = await listed(store)
            if last is not None and last not in files:
                gone.add(last)
            assert there - gone <= files.keys()
            assert not gone & files.keys()
            record = index.tag("r", str(seed))
            told = [line for line in lines[1:] if not line.startswith("-")]
            assert record is not None or not told
            await reconcile(store, index, 0.0)
            assert {digest: size for digest, size, _ in index.held()} == files
            assert index.total() == sum(files.values())


HALF = """
import sys
from pathlib import Path
import trio
from p2pregistry.store.files import open_files

async def main(root):
    async with open_files(root) as store:
        staged = await store.stage("half")
        print("ready", flush=True)
        for n in (4, 2, 0):
            await staged.write_at(n << 20, bytes([n + 1]) * (1 << 20))
            print(n, flush=True)
        while True:  # torn: a piece that is never whole
            await staged.write_at(3 << 20, b"torn" * 1000)

trio.run(main, Path(sys.argv[1]))
"""


async def test_pieces_held_before_a_kill_are_held_after_it(tmp_path: Path) -> None:
    data = b"".join(bytes([n + 1]) * PIECE_SIZE for n in range(5))
    info = Metainfo.of_bytes(data)
    run_and_kill(HALF, tmp_path, 0, 4, 1000)
    async with open_files(tmp_path) as store:
        assert await store.staged() == ["half"]
        staged = await store.stage("half")
        assert await surviving_pieces(staged, info) == {0, 2, 4}
        for n in (1, 3):
            part = data[n * PIECE_SIZE : (n + 1) * PIECE_SIZE]
            assert await staged.write_verified(n * PIECE_SIZE, part, hashlib.sha256(part).digest())
        await staged.commit(info.digest)
        assert await read_all(await store.open(info.digest)) == data
