"""A tracker and nodes, each as a process of its own with its settings in a file."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import say
from processes import PROGRAM, BenchError, end

from p2pregistry.admin import send
from p2pregistry.settings import dump

Settings = Mapping[str, Mapping[str, object]]
READY_SECONDS = 180.0  # many start at once on few processors


class Daemon:
    """A program that has been started; ``facts`` is what it said when it was ready."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], ready: int, log: Path) -> None:
        self.name, self.process, self.log = name, process, log
        self.facts: dict[str, Any] = {}
        self._ready = ready

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def wait(self) -> None:
        """Until it is ready. Raises BenchError with the end of its log."""
        with os.fdopen(self._ready, "rb") as ready:
            line = ready.readline()
        if not line:
            raise BenchError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
        self.facts = json.loads(line)


class Daemons:
    """Those of one run. They end with this process, however it ends: they hold a pipe that only it can close."""

    def __init__(self, folder: Path, lifeline: int) -> None:
        self._folder, self._lifeline = folder, lifeline
        self._started: list[Daemon] = []

    def start(
        self,
        program: str,
        name: str,
        settings: Settings,
        inside: Callable[[Sequence[str]], list[str]],
        sets: Sequence[str],
    ) -> Daemon:
        """Start "tracker" or "node"; ``inside`` makes of a command one that runs on the right machine."""
        config = self._folder / f"{name}.toml"
        config.write_text(dump(settings), encoding="utf-8")
        log = self._folder / f"{name}.log"
        reading, writing = os.pipe()
        command = [*PROGRAM, program, "run", "--config", str(config)]
        command += ["--ready-fd", str(writing), "--parent-fd", str(self._lifeline)]
        command += [part for each in sets for part in ("--set", each)]
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    inside(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing, self._lifeline),
                    start_new_session=True,
                )
            finally:
                os.close(writing)
        daemon = Daemon(name, process, reading, log)
        self._started.append(daemon)
        return daemon

    def stop(self, daemons: Sequence[Daemon]) -> None:
        """Ask them to end, all at once, and see that they do."""
        start = time.monotonic()
        end([daemon.process for daemon in daemons])
        if time.monotonic() - start > 10:
            say(f"stopping took {time.monotonic() - start:.0f} s")
        self._started = [daemon for daemon in self._started if daemon not in daemons]

    def stop_all(self) -> None:
        """Nodes first, then the tracker."""
        self.stop(self._started[1:])
        self.stop(self._started)


def tracker_settings(
    folder: Path, address: str, *, name: str = "tracker", ports: int = 5050, plain: bool = True
) -> dict[str, dict[str, object]]:
    """Of a tracker that is reached at ``address`` on the usual ports, or those from another number on. Its password is
    written to a file. ``plain``: nodes and it speak plain HTTP."""
    password = folder / "password"
    password.write_text("password\n")
    return {
        "tracker": {"data_dir": str(folder / name), "insecure": True, "log_format": "console"},
        "registry": {"host": [address], "port": ports},
        "peer": {"host": address, "port": ports + 1, "plain": plain},
        "libp2p": {"host": address, "port": ports + 2},
        "metrics": {"host": "127.0.0.1", "port": ports + 3},
        "auth": {"username": "bench", "password_file": str(password), "new_repositories": "public"},
    }


def node_settings(data: Path, tracker: Daemon, *, zone: str = "") -> dict[str, dict[str, object]]:
    """Of a node with an empty directory and the usual ports, which speaks with others as its tracker does."""
    plain = str(tracker.facts["peer_url"]).startswith("http://")
    join = {} if plain else {"join_file": str(_join_token(tracker))}
    return {
        "node": {"data_dir": str(data), "zone": zone, "log_format": "console"},
        "pull": {"host": ["127.0.0.1"], "port": 5000},
        "tracker": {"url": tracker.facts["peer_url"], "root_key": tracker.facts["root_key"], **join},
        "peer": {"plain": plain},
        "cache": {"min_free": 0},
    }


def _join_token(tracker: Daemon) -> Path:
    """A file with a token with which any number of nodes may join."""
    data = Path(tracker.facts["data_dir"])
    path = data.with_name(f"{data.name}-join-token")
    if not path.exists():
        made = send(data / "admin.sock", "POST", "/node-tokens", {"uses": None, "lasts": 7200.0})
        path.touch(0o600)
        path.write_text(made["token"])
    return path


@contextmanager
def daemons(folder: Path) -> Iterator[Daemons]:
    """The tracker is started first; all are stopped at the end of the block."""
    reading, writing = os.pipe()
    started = Daemons(folder, reading)
    try:
        yield started
    finally:
        started.stop_all()
        os.close(reading)
        os.close(writing)
