"""scripts/bench pieces: pieces of a blob from one process to another by HTTP, in the clear and over TLS, in turns.

The server is the peer listener with a file; the client asks as a node does, several pieces at once, hashes each and
writes it. So this is what TLS costs where nothing but the processors is slow.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import trio
from measure import MB, say
from processes import BenchError
from report import Report

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.routing.identity import base58, load_or_create_identity, peer_id_of
from p2pregistry.serve.http import BlobSlice, Request, Response
from p2pregistry.serve.listen import Limits, open_listeners, serve
from p2pregistry.sources.wire import Client
from p2pregistry.trust.certificate import server_context

RUNS = 7
AT_ONCE = 4


@dataclass(slots=True)
class _File:
    """A blob in a file, which stays open."""

    fd: int
    size: int
    digest: Digest

    def fileno(self) -> int | None:
        return self.fd

    async def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        """It is for all requests."""


async def _serve(path: Path, key_file: Path) -> None:
    """Two listeners, plain and TLS; their ports are the first line of the output, what was spent the answer to POST."""
    fd = os.open(path, os.O_RDONLY)
    blob = _File(fd, os.fstat(fd).st_size, Digest.of(b""))
    context = server_context(load_or_create_identity(key_file))
    limits = Limits(stall_time=20.0, unsent=256 << 10)

    async def handle(request: Request) -> Response:
        if request.method == "POST":
            return Response(200, [], b"%.6f" % time.process_time())
        offset, length = request.path[1:].split("/")
        return Response(206, [], BlobSlice(blob, int(offset), int(length)))

    plain, secure = await open_listeners([("127.0.0.1", 0)]), await open_listeners([("127.0.0.1", 0)])
    print(*(group[0].socket.getsockname()[1] for group in (plain, secure)), flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(handle, plain, limits=limits))
        nursery.start_soon(lambda: serve(handle, secure, limits=limits, tls=lambda: context))


@contextmanager
def _server(path: Path, key_file: Path) -> Iterator[tuple[int, int]]:
    command = [sys.executable, __file__, str(path), str(key_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if len(line) != 2:
            raise BenchError("the server did not start")
        yield int(line[0]), int(line[1])
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds: in all, and of processors at each end."""

    seconds: float
    server: float
    client: float


async def _transfer(client: Client, size: int, out: Path, *, keep: bool) -> _Run:
    """The whole blob by pieces. ``keep``: hash and write them, as a node does."""
    offsets = iter(range(0, size, PIECE_SIZE))
    fd = os.open(out, os.O_WRONLY | os.O_CREAT, 0o600)

    async def spent() -> float:
        async with client.request("POST", "/") as answer:
            return float(await answer.read(100))

    def take(offset: int, view: memoryview) -> None:
        sha256(view).digest()
        os.pwrite(fd, view, offset)

    async def some() -> None:
        buffer = memoryview(bytearray(PIECE_SIZE))
        for offset in offsets:
            view = buffer[: min(PIECE_SIZE, size - offset)]
            async with client.request("GET", f"/{offset}/{len(view)}") as answer:
                at = 0
                while at < len(view):
                    at += await answer.read_into(view[at:])
            if keep:
                await trio.to_thread.run_sync(take, offset, view)

    before, began, used = await spent(), time.perf_counter(), _used()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)
    seconds, client_used = time.perf_counter() - began, _used() - used
    os.close(fd)
    return _Run(seconds, await spent() - before, client_used)


def _used() -> float:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--mib", type=int, default=512, help="size of the blob")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name:
        folder, size = Path(name), args.mib << 20
        block = os.urandom(1 << 20)
        (folder / "blob").write_bytes(block * args.mib)
        peer_id = base58(peer_id_of(load_or_create_identity(folder / "key")))
        with _server(folder / "blob", folder / "key") as (plain, secure):
            clients = {"plain": f"http://127.0.0.1:{plain}", "TLS": f"https://127.0.0.1:{secure}"}
            for keep, what in ((False, "pieces, received"), (True, "pieces, received, hashed and written")):
                runs: dict[str, list[_Run]] = {kind: [] for kind in clients}
                for turn in range(args.runs or RUNS):
                    for kind, url in clients.items():
                        runs[kind].append(trio.run(_one, url, peer_id, size, folder / "copy", keep))
                        (folder / "copy").unlink()
                    last = ", ".join(f"{kind} {size / MB / found[-1].seconds:.0f} MB/s" for kind, found in runs.items())
                    say(f"{what}, round {turn + 1}: {last}")
                _tell(report, what, size, runs)


async def _one(url: str, peer_id: str, size: int, out: Path, keep: bool) -> _Run:
    client = Client(url, peer_id=peer_id)
    try:
        return await _transfer(client, size, out, keep=keep)
    finally:
        client.close()


def _tell(report: Report, what: str, size: int, runs: dict[str, list[_Run]]) -> None:
    rates = {kind: [size / MB / found.seconds for found in all_] for kind, all_ in runs.items()}
    report.ratio(f"{what}, TLS", rates["TLS"], "MB/s", "plain", rates["plain"], None)
    report.value(f"{what}, plain", rates["plain"], "MB/s")
    for kind, found in runs.items():
        report.value(f"{kind}: processor of the server", [run.server * 1e9 / size for run in found], "s/GB")
        report.value(f"{kind}: processor of the client", [run.client * 1e9 / size for run in found], "s/GB")


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), Path(sys.argv[2]))
