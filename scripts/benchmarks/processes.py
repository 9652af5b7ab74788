"""What is measured and what it is measured against: processes of ours on free loopback ports, ended with the run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pregistry.settings import dump

PROGRAM = (sys.executable, "-P", "-m", "p2pregistry")
START_SECONDS = 30.0
STOP_SECONDS = 30.0

NGINX = """\
{user}worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "{host}:{port}"}}
"""


class BenchError(Exception):
    """A measurement that cannot be made; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that runs. ``url`` is that of its pull API."""

    url: str
    peer_url: str
    metrics_url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Swarm:
    """A tracker and one node, as ``p2pregistry up`` started them."""

    tracker: Mapping[str, Any]
    node: Node
    folder: Path


def find(program: str) -> str | None:
    """The path of a program; Debian keeps servers where users do not look."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def swarm(folder: Path, code: Path | None = None) -> Iterator[Swarm]:
    """``p2pregistry up --nodes 1 --plain`` in ``folder``, of this code or that of another folder."""
    environment = os.environ | ({} if code is None else {"PYTHONPATH": str(code)})
    log = folder.with_name(f"{folder.name}.log")
    command = [*PROGRAM, "up", "--nodes", "1", "--port", "0", "--json", "--data-dir", str(folder)]
    helped = subprocess.run([*PROGRAM, "up", "--help"], env=environment, capture_output=True, text=True)
    if "--plain" in helped.stdout:  # before there was TLS between nodes, all were plain
        command.append("--plain")
    with log.open("wb") as output, running(command, output, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()  # "up" has a deadline of its own
        if not line:
            raise BenchError(f"p2pregistry up did not start:\n{log.read_text()}")
        said = json.loads(line)
        yield Swarm(said["tracker"], _node(said["nodes"][0]), folder)


def revision(name: str, folder: Path) -> Path:
    """The code of an earlier revision, in ``folder``. Raises BenchError."""
    folder.mkdir()
    script = 'set -o pipefail; git -C "$1" archive "$2" node p2pregistry tracker | tar -x -C "$3"'
    root = Path(__file__).parents[2]
    done = subprocess.run(["bash", "-c", script, "-", root, name, folder], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"there is no code of {name}: {done.stderr.strip()}")
    found = [PROGRAM[0], "-P", "-c", "import node, tracker, p2pregistry as p; print(node.__file__, p.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(found, env=environment, capture_output=True, text=True)
    if done.returncode or not all(Path(path).is_relative_to(folder) for path in done.stdout.split()):
        raise BenchError(f"another code than that of {name} would run: {done.stdout}{done.stderr}".strip())
    return folder


@contextmanager
def fresh_node(swarm_: Swarm, folder: Path) -> Iterator[Node]:
    """One more node of the swarm, with an empty data directory."""
    folder.mkdir()
    settings = tomllib.loads((swarm_.folder / "node1.toml").read_text(encoding="utf-8"))
    settings["node"]["data_dir"] = str(folder / "data")
    for section in ("pull", "peer", "libp2p", "metrics"):
        settings[section]["port"] = 0
    settings["pull"]["host"] = ["127.0.0.1"]
    config = folder / "node.toml"
    config.write_text(dump(settings), encoding="utf-8")
    reading, writing = os.pipe()
    command = [*PROGRAM, "node", "run", "--config", str(config), "--ready-fd", str(writing)]
    with (folder / "log").open("wb") as log, os.fdopen(reading, "rb") as ready:
        try:
            started = running(command, log, pass_fds=(writing,))
            process = started.__enter__()
        finally:
            os.close(writing)
        try:
            line = ready.readline()
            if not line:
                raise BenchError(f"a node did not start:\n{(folder / 'log').read_text()}")
            yield _node(json.loads(line) | {"pid": process.pid})
        finally:
            started.__exit__(None, None, None)


def _node(said: Mapping[str, Any]) -> Node:
    return Node(said["url"], said["peer_url"], said["metrics_url"], int(said["pid"]))


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[str]:
    """nginx with one worker serving the files of ``root``; its URL."""
    program = _needed("nginx")
    folder.mkdir()
    port = _free_port()
    user = "user root;\n" if os.geteuid() == 0 else ""  # else it may not look into a temporary directory
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, folder=folder, root=root, port=port))
    with (folder / "log").open("wb") as log, running([program, "-p", str(folder), "-c", str(config)], log) as process:
        _wait_for(process, port, folder / "log")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def docker_registry(
    folder: Path, host: str = "127.0.0.1", inside: Callable[[list[str]], list[str]] | None = None
) -> Iterator[str]:
    """Debian's docker-registry on an empty directory, descriptors cached in memory; its URL.

    ``inside`` makes of a command one that runs on another machine of ours, whose address is ``host``.
    """
    program = _needed("docker-registry")
    folder.mkdir()
    port = _free_port()
    config = folder / "config.yml"
    config.write_text(REGISTRY.format(folder=folder, host=host, port=port))
    command = [program, "serve", str(config)]
    with (folder / "log").open("wb") as log, running(inside(command) if inside else command, log) as process:
        if inside is None:
            _wait_for(process, port, folder / "log")
        else:
            time.sleep(2)  # its port cannot be seen from here; it takes a tenth of that
        yield f"http://{host}:{port}"


def _needed(program: str) -> str:
    path = find(program)
    if path is None:
        raise BenchError(f"{program} is not installed")
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise BenchError(f"{process.args!r} did not start:\n{log.read_text()}")


@contextmanager
def running(
    command: Sequence[str],
    log: Any,
    *,
    stdout: int | None = None,
    pass_fds: tuple[int, ...] = (),
    pipes: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the block; then it is asked to stop, and killed if it does not.

    With ``pipes`` its standard input and output are pipes to this process, and Ctrl-C does not reach it.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipes else log if stdout is None else stdout,
        stderr=log,
        pass_fds=pass_fds,
        start_new_session=pipes,
        env=env,
    )
    try:
        yield process
    finally:
        end([process])
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, wait for them, and kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
