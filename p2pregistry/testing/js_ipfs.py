"""js-ipfs, whose RPC is that of Kubo: no package brings a Kubo with an RPC. Its last version is of 2023."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pregistry.testing.foreign import Process, node_program, npm_program


class JsIpfs:
    """A running daemon without a network; ``url`` is the base URL of its RPC: ``http://127.0.0.1:5001``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.url: str = process.facts["rpc"]

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


@contextmanager
def js_ipfs(folder: Path) -> Iterator[JsIpfs]:
    """Start one with its repository in ``folder``. Raises CannotInstall."""
    program = npm_program("js_ipfs")
    folder.mkdir(parents=True, exist_ok=True)
    daemon = JsIpfs(Process([str(node_program()), str(program), str(folder / "repo")], folder / "log"))
    try:
        yield daemon
    finally:
        daemon.kill()
