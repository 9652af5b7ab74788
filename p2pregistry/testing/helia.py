"""Helia, the IPFS implementation in JavaScript: a trustless gateway and a client of gateways, without libp2p."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pregistry.testing.foreign import Process, node_program, npm_program


class Helia:
    """A running node; ``gateway`` is the base URL of its gateway, which serves what it holds and looks for nothing."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.gateway: str = process.facts["gateway"]

    def add(self, path: Path, **layout: object) -> str:
        """Take a file in; its root CID. Without a layout that of the profile unixfs-v1-2025, else ``chunk`` (bytes),
        ``width``, ``raw`` leaves or not, and the ``version`` of CIDs."""
        return str(self._process.ask("add", str(path), layout))

    def take_car(self, path: Path) -> list[str]:
        """Take the blocks of a CAR file in; the roots in its header."""
        return list(self._process.ask("import", str(path)))

    def has(self, cid: str) -> bool:
        """Whether it holds the block."""
        return bool(self._process.ask("has", cid))

    def fetch(self, cid: str, out: Path) -> int:
        """Write the file with this root CID to ``out``; its size. What it lacks it looks for with its router."""
        return int(self._process.ask("fetch", cid, str(out)))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


@contextmanager
def helia(folder: Path, router: str = "", kind: str = "") -> Iterator[Helia]:
    """Start one with its blocks in ``folder``. ``router``: base URL of the Delegated Routing that it asks, ``kind``:
    for addresses of this kind alone, "dns" say.

    Raises CannotInstall.
    """
    program = npm_program("helia")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(node_program()),
        str(program),
        str(folder / "blocks"),
        *([router] if router else []),
        *([kind] if kind else []),
    ]
    node = Helia(Process(command, folder / "log"))
    try:
        yield node
    finally:
        node.kill()
