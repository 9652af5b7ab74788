"""A node as a process of its own: for tests that kill it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pregistry.admin import get
from p2pregistry.digest import Digest
from p2pregistry.testing import secrets_used

#: Seconds; only a test that fails takes as long.
_PATIENCE = 60


@dataclass
class NodeProcess:
    """A running node; ``facts`` is what it said when it was ready."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def url(self) -> str:
        """Of the pull API."""
        return str(self.facts["url"])

    @property
    def peer_url(self) -> str:
        """Of the peer API."""
        return str(self.facts["peer_url"])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def status(self) -> dict[str, Any]:
        """What the node says of itself on its admin socket."""
        answer = get(Path(self.facts["data_dir"]) / "admin.sock", "/status")
        assert isinstance(answer, dict)
        return answer


@contextmanager
def node_process(folder: Path, tracker_url: str | None = None, **sets: object) -> Iterator[NodeProcess]:
    """Run a node with its data in ``folder``/data on free ports of loopback until the end of the block.

    ``sets`` are settings, ``__`` for the dot. SIGTERM must end the node with status 0, unless the test has killed it.
    Its log is ``folder``/log.
    """
    folder.mkdir(exist_ok=True)
    settings: dict[str, object] = {
        "pull.port": 0,
        "peer.port": 0,
        "peer.plain": True,
        "peer.host": "127.0.0.1",
        "libp2p.port": 0,
        "libp2p.host": "127.0.0.1",
        "metrics.port": 0,
        "cache.min_free": 0,
    }
    if tracker_url is not None:
        settings["tracker.url"] = tracker_url
    settings |= {key.replace("__", "."): value for key, value in sets.items()}
    command = [sys.executable, "-m", "p2pregistry", "node", "run", "--json", "--data-dir", str(folder / "data")]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)  # noqa: S603 - ours
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the node did not start:\n{(folder / 'log').read_text('utf-8')[-3000:]}")
        secrets_used.check_arguments(process.pid)
        yield NodeProcess(process, json.loads(line))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_PATIENCE) == 0
        secrets_used.check(folder)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def blob_files(data: Path) -> dict[Digest, bytes]:
    """Every file under ``blobs`` of a node's data directory by the digest that its name promises."""
    return {Digest("sha256", bytes.fromhex(path.name)): path.read_bytes() for path in data.glob("blobs/sha256/??/*")}


def partial_file(data: Path, digest: Digest) -> bytes:
    """What there is of an unfinished download; b"" if nothing."""
    path = data / "partial" / str(digest).replace(":", "-")
    return path.read_bytes() if path.exists() else b""
