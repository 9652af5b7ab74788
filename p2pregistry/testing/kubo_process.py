"""The stand-in for Kubo's RPC as a process of its own, so that it outlives what a test kills."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from p2pregistry.testing.foreign import Process
from p2pregistry.testing.kubo import stub_kubo


@contextmanager
def kubo_process(folder: Path) -> Iterator[str]:
    """Start one; the base URL of its RPC. Its log is in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    process = Process([sys.executable, "-m", "p2pregistry.testing.kubo_process"], folder / "log")
    try:
        yield str(process.facts["rpc"])
    finally:
        process.kill()


async def main() -> None:
    """Serve until standard input ends, as it does with whoever started this."""
    async with stub_kubo() as (url, _stub):
        sys.stdout.write(json.dumps({"rpc": url}) + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main)
