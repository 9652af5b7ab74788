"""``p2pregistry up``: a tracker and nodes on one machine, each a child process with its settings in a file.

Children are watched through pipes: each says once on ``--ready-fd`` that it listens and where, and each holds the read
end of a pipe whose other end only this process has (``--parent-fd``), so that none outlives it, even after kill -9.
They get sessions of their own, so that Ctrl-C reaches only this process, which stops nodes first, then the tracker.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import trio

from p2pregistry.admin import send
from p2pregistry.errors import LocalError, RemoteError
from p2pregistry.ports import Ports, choose, ipv6_loopback
from p2pregistry.screen import Screen, open_screen
from p2pregistry.settings import ENV_PREFIX, dump
from p2pregistry.store.index import kept_path
from p2pregistry.store.kept import load_kept

START_DEADLINE = 120.0  # seconds; a slow disk at the first start of Postgres is the worst case
STOP_DEADLINE = 20.0  # seconds for each of the two groups, then they are killed
USERNAME = "p2pregistry"
_TRACKER_KEYS = ("url", "peer_url", "metrics_url", "pid", "data_dir", "username", "password")
_NODE_KEYS = ("url", "peer_url", "metrics_url", "pid", "data_dir", "peer_id")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start. ``port`` is the first node's pull port, 0 for any free ones. ``plain``: nodes need not join."""

    nodes: int
    data_dir: Path
    port: int = 5000
    as_json: bool = False
    demo: bool = False
    plain: bool = False
    # -P: a folder called "node" where the user happens to stand must not be imported in place of ours
    program: tuple[str, ...] = (sys.executable, "-P", "-m", "p2pregistry")


@dataclass(slots=True)
class Child:
    """A process of ours; ``facts`` is what it said when it was ready."""

    name: str
    process: trio.Process
    log: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def tail(self, lines: int = 12) -> str:
        """The end of its log, indented."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "".join(f"\n  {line}" for line in text) or "\n  (the log is empty)"


def main(plan: Plan) -> None:
    """Start everything and serve until a signal. Raises LocalError when something cannot start or ends by itself."""
    plan = replace(plan, data_dir=plan.data_dir.absolute())  # the children's settings name it too
    with open_screen(for_program=plan.as_json) as screen, _own(plan.data_dir), _lifeline() as lifeline:
        trio.run(_Swarm(plan, screen, lifeline).run)
        screen.note("stopped")


class _Swarm:
    def __init__(self, plan: Plan, screen: Screen, lifeline: int) -> None:
        self._plan = plan
        self._screen = screen
        self._lifeline = lifeline
        self._trackers: list[Child] = []
        self._nodes: dict[int, Child] = {}

    async def run(self) -> None:
        """Until a signal or the end of a child; then stop nodes first, then the tracker."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_signal, nursery.cancel_scope)
                nursery.start_soon(self._bring_up, nursery)
        finally:
            with trio.CancelScope(shield=True):
                await _stop(list(self._nodes.values()))
                await _stop(self._trackers)

    async def _until_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for _ in signals:
                self._screen.step("Stopping")
                scope.cancel()
                return

    async def _bring_up(self, nursery: trio.Nursery) -> None:
        ports, notes = choose(self._plan.port, self._plan.nodes)
        for note in notes:
            self._screen.note(note)
        self._screen.step("Starting the tracker and its Postgres")
        password = _password(self._plan.data_dir / "password")
        tracker = await self._start("tracker", "tracker", self._tracker_settings(ports.tracker), self._trackers.append)
        nursery.start_soon(_watch, tracker)
        tracker.facts |= {"username": USERNAME, "password": password}
        self._screen.step(f"Starting {self._plan.nodes} node{'s' if self._plan.nodes != 1 else ''}")
        try:
            await self._invite(tracker)
            async with trio.open_nursery() as starting:
                for index, block in enumerate(ports.nodes):
                    starting.start_soon(self._start_node, index, block, tracker.facts, nursery)
        finally:
            self._join_file.unlink(missing_ok=True)
        nodes = [self._nodes[index].facts for index in range(self._plan.nodes)]
        if self._plan.as_json:
            line = {
                "tracker": {key: tracker.facts.get(key) for key in _TRACKER_KEYS},
                "nodes": [{key: node.get(key) for key in _NODE_KEYS} for node in nodes],
            }
            click.echo(json.dumps(line))
        else:
            self._welcome(tracker.facts, nodes)
        if self._plan.demo:
            from p2pregistry import demo

            try:
                await demo.show(tracker.facts, nodes, self._screen)
            except RemoteError as err:
                logs = self._plan.data_dir / "logs"
                raise LocalError(f"{err.message}; everything is stopped. The logs are in {logs}") from err
        self._screen.rest()
        self._screen.note("Ctrl-C stops everything.")

    @property
    def _join_file(self) -> Path:
        return self._plan.data_dir / "join-token"

    async def _invite(self, tracker: Child) -> None:
        """Make a join token, for a few minutes and for as many nodes as have not joined yet, in a file for us only."""
        folders = [self._plan.data_dir / f"node{index + 1}" for index in range(self._plan.nodes)]
        new = [folder for folder in folders if "membership" not in load_kept(kept_path(folder / "index.lmdb"))]
        self._join_file.unlink(missing_ok=True)
        if self._plan.plain or not new:
            return
        socket = Path(tracker.facts["data_dir"]) / "admin.sock"
        document = {"uses": len(new), "lasts": 2 * START_DEADLINE}
        made = await trio.to_thread.run_sync(lambda: send(socket, "POST", "/node-tokens", document, actor="up"))
        _write_private(self._join_file, str(made["token"]))

    async def _start_node(self, index: int, block: Ports, tracker: Mapping[str, Any], nursery: trio.Nursery) -> None:
        settings = self._node_settings(index, block, tracker)
        child = await self._start(
            "node", f"node{index + 1}", settings, lambda child: self._nodes.update({index: child})
        )
        nursery.start_soon(_watch, child)

    def _tracker_settings(self, ports: Ports) -> dict[str, dict[str, object]]:
        return {
            "tracker": {
                "data_dir": str(self._plan.data_dir / "tracker"),
                "names": [f"localhost:{ports.main}", f"127.0.0.1:{ports.main}"],
                "log_format": "console",
            },
            "registry": {"host": _loopbacks(), "port": ports.main},
            "peer": {"host": "127.0.0.1", "port": ports.peer, "plain": self._plan.plain},
            "libp2p": {"host": "127.0.0.1", "port": ports.libp2p},
            "metrics": {"host": "127.0.0.1", "port": ports.metrics},
            "auth": {
                "username": USERNAME,
                "password_file": str(self._plan.data_dir / "password"),
                "new_repositories": "public",
            },
        }

    def _node_settings(self, index: int, ports: Ports, tracker: Mapping[str, Any]) -> dict[str, dict[str, object]]:
        return {
            "node": {"data_dir": str(self._plan.data_dir / f"node{index + 1}"), "log_format": "console"},
            "pull": {"host": _loopbacks(), "port": ports.main},
            "peer": {"host": "127.0.0.1", "port": ports.peer, "plain": self._plan.plain},
            "libp2p": {"host": "127.0.0.1", "port": ports.libp2p, "bootstrap": tracker.get("libp2p", [])},
            "metrics": {"host": "127.0.0.1", "port": ports.metrics},
            "tracker": {
                "url": tracker["peer_url"],
                "root_key": tracker.get("root_key"),
                **({} if self._plan.plain else {"join_file": str(self._join_file)}),
            },
        }

    async def _start(
        self, program: str, name: str, settings: Mapping[str, Mapping[str, object]], started: Any
    ) -> Child:
        """Start a child, hand it to ``started`` at once, and return when it is ready. Raises LocalError."""
        config = self._plan.data_dir / f"{name}.toml"
        config.write_text("# Written by p2pregistry up at each start.\n" + dump(settings), encoding="utf-8")
        log = self._plan.data_dir / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as ready:
            try:
                command = [*self._plan.program, program, "run", "--config", str(config)]
                command += ["--ready-fd", str(writing), "--parent-fd", str(self._lifeline)]
                with log.open("wb") as output:
                    process = await trio.lowlevel.open_process(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        pass_fds=(writing, self._lifeline),
                        start_new_session=True,
                        env=_child_environment(os.environ),
                    )
            finally:
                os.close(writing)
            child = Child(name, process, log)
            started(child)
            line = b""
            with trio.move_on_after(START_DEADLINE):
                line = await _read_line(ready)
            if not line:
                raise await _failure(child, f"{name} did not start")
        child.facts = json.loads(line)
        return child

    def _welcome(self, tracker: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> None:
        push = str(tracker["url"]).partition("://")[2]
        password = os.path.relpath(self._plan.data_dir / "password")
        rows = [
            ("push to", f"{push}   (tracker)"),
            *(("pull from" if i == 0 else "", f"{_localhost(node)}   (node {i + 1})") for i, node in enumerate(nodes)),
            ("data and logs", os.path.relpath(self._plan.data_dir)),
            ("log in", f"docker login {push} -u {USERNAME} --password-stdin < {password}"),
            ("then", f"docker tag IMAGE {push}/me/app:1 && docker push {push}/me/app:1"),
            *[("", f"docker pull {_localhost(node)}/me/app:1") for node in nodes[:1]],
        ]
        self._screen.panel("p2pregistry is up", rows)


async def _read_line(stream: trio.lowlevel.FdStream) -> bytes:
    """A whole line, or b"" if the other end closes first."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = await stream.receive_some()
        if not chunk:
            return b""
        data += chunk
    return data


async def _watch(child: Child) -> None:
    await child.process.wait()
    raise await _failure(child, f"{child.name} ended by itself")


async def _failure(child: Child, what: str) -> LocalError:
    with trio.move_on_after(2):  # its end of the pipe closes a moment before it is gone
        await child.process.wait()
    code = child.process.returncode
    how = "still running" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"
    return LocalError(f"{what} ({how}); everything is stopped. The end of {child.log}:{child.tail()}")


async def _stop(children: Sequence[Child]) -> None:
    """Ask them to stop, wait, and kill those that do not."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    with trio.move_on_after(STOP_DEADLINE):
        for child in children:
            await child.process.wait()
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
            await child.process.wait()


@contextmanager
def _own(data_dir: Path) -> Iterator[None]:
    """Make the data directory and hold it against a second ``up``. Raises LocalError."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "up.lock").open("w")
    except OSError as err:
        raise LocalError(f"{data_dir} cannot be used: {err.strerror}") from err
    with closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise LocalError(f"{data_dir} is in use by another p2pregistry up; give --data-dir") from err
        yield


@contextmanager
def _lifeline() -> Iterator[int]:
    """A descriptor that reads as closed once this process is gone."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _password(path: Path) -> str:
    """The password kept in ``path``, made at the first start; only the owner can read the file."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(18)
    _write_private(path, password)
    return password


def _write_private(path: Path, secret: str) -> None:
    """A new file that only the owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secret + "\n")


def _child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Ours, without settings: one P2PREGISTRY_PULL__PORT would be meant for every node at once."""
    kept = {key: value for key, value in env.items() if not (key.startswith(ENV_PREFIX) and "__" in key)}
    return kept | {"PYTHONUNBUFFERED": "1"}


def _loopbacks() -> list[str]:
    return ["127.0.0.1", "::1"] if ipv6_loopback() else ["127.0.0.1"]


def _localhost(node: Mapping[str, Any]) -> str:
    return f"localhost:{str(node['url']).rpartition(':')[2].rstrip('/')}"
