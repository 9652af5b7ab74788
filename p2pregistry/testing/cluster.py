"""A tracker and nodes as real processes, for tests that watch what they move: started by ``up``, or one by one.

``up`` ends all when one of them ends, as it should; tests that kill one start them with ``separate``.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from p2pregistry import admin
from p2pregistry.oci.media import OCTET_STREAM
from p2pregistry.testing import secrets_used
from p2pregistry.testing.images import Descriptor, Layout

T = TypeVar("T")
#: Seconds; only a test that fails takes as long.
PATIENCE = 60.0
_USER = "pusher"
_PASSWORD = secrets_used.used("the-password-of-pusher", "the pusher's password", user=_USER)


def eventually(what: str, check: Callable[[], T], *, within: float = PATIENCE) -> T:
    """``check()`` as soon as it is true; asked again and again. Raises AssertionError after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {within:g} s")
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Daemon:
    """A running tracker or node; ``facts`` is what it said when it was ready."""

    facts: Mapping[str, Any]
    process: subprocess.Popen[str] | None = None  # only those that were started one by one

    @property
    def port(self) -> int:
        """Port of the pull API (a node) or of the registry API (the tracker)."""
        return urlsplit(str(self.facts["url"])).port or 80

    @property
    def registry(self) -> str:
        """How image names begin: ``127.0.0.1:5000``."""
        return f"127.0.0.1:{self.port}"

    @property
    def localhost(self) -> str:
        """The same by name: ``localhost:5000``."""
        return f"localhost:{self.port}"

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """SIGSTOP, until the end of the block: its connections stay open, and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def reading(self, target: str) -> Iterator[http.client.HTTPResponse]:
        """A GET whose body is read by the caller, as far as the caller likes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", target)
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def counters(self) -> Counters:
        """Bytes moved since it started."""
        connection = http.client.HTTPConnection(urlsplit(self.facts["metrics_url"]).netloc, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        found = {"fetched": dict[str, int](), "served": dict[str, int]()}
        for family in text_string_to_metric_families(text):
            kind = family.name.removeprefix("p2pregistry_").removesuffix("_bytes")
            if kind in found:
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        found[kind][next(iter(sample.labels.values()))] = int(sample.value)
        return Counters(**found)

    def status(self) -> dict[str, Any]:
        """What a node says on its admin socket."""
        answer: dict[str, Any] = admin.get(Path(self.facts["data_dir"]) / "admin.sock", "/status")
        return answer

    def all_provided(self) -> None:
        """Wait until the node has told the others of all that it holds."""
        eventually("a node has told of all it holds", lambda: self.status()["provides_waiting"] == 0)


@dataclass(frozen=True)
class Counters:
    """Bytes by source ("peer", "tracker") and by receiver ("client", "peer")."""

    fetched: Mapping[str, int]
    served: Mapping[str, int]

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            {name: count - before.fetched.get(name, 0) for name, count in self.fetched.items()},
            {name: count - before.served.get(name, 0) for name, count in self.served.items()},
        )


@dataclass
class Cluster:
    """The tracker, its nodes, and who may push."""

    tracker: Daemon
    nodes: list[Daemon]
    username: str
    password: str

    def push(self, layout: Layout, image: Descriptor, name: str, tag: str = "1") -> None:
        """Push a layout's image in as few requests as can be, without any client's program."""
        for blob in image.blobs:
            place = self._ask("POST", f"/v2/{name}/blobs/uploads/", 202).headers["location"]
            self._ask("PUT", f"{place}?digest={blob.digest}", 201, layout.read(blob.digest), OCTET_STREAM)
        self._ask("PUT", f"/v2/{name}/manifests/{tag}", 201, layout.read(image.digest), image.media_type)

    def publish(self, name: str, tag: str) -> list[dict[str, Any]]:
        """Let the tracker publish a repository to IPFS, and wait until an image of it is; blobs, manifest and claim."""
        socket = Path(self.tracker.facts["data_dir"]) / "admin.sock"
        admin.send(socket, "PUT", "/api/v1/ipfs/patterns", {"pattern": name})

        def done() -> list[dict[str, Any]]:
            answer = admin.get(socket, f"/api/v1/repositories/{quote(name, safe='')}/ipfs/{tag}")
            states = {service["state"] for item in answer["items"] for service in item["services"]}
            return list(answer["items"]) if states == {"published"} else []

        return eventually("the image is published", done)

    def _ask(self, method: str, target: str, status: int, body: bytes | None = None, kind: str = "") -> Answer:
        pair = f"{self.username}:{self.password}".encode()
        headers = {"Authorization": "Basic " + base64.b64encode(pair).decode(), "Content-Type": kind}
        answer = self.tracker.request(method, target, body, headers)
        assert answer.status == status, answer.body
        return answer


@contextmanager
def up(folder: Path, nodes: int = 2) -> Iterator[Cluster]:
    """``p2pregistry up`` on free ports with its data in ``folder``. It must stop with status 0 on SIGTERM."""
    command = [sys.executable, "-m", "p2pregistry", "up", "--nodes", str(nodes), "--port", "0", "--json"]
    with _running([*command, "--data-dir", str(folder / "data")], folder) as (_, facts):
        tracker = facts["tracker"]
        secrets_used.used(tracker["password"], "the password that was made", user=tracker["username"])
        yield Cluster(
            Daemon(tracker), [Daemon(node) for node in facts["nodes"]], tracker["username"], tracker["password"]
        )


class Separate(Cluster):
    """A swarm whose members are started, killed and stopped one by one, each on free loopback ports."""

    def __init__(self, folder: Path, stack: ExitStack, sets: Mapping[str, str]) -> None:
        self._folder, self._stack = folder, stack
        (folder / "password").write_text(_PASSWORD, encoding="utf-8")
        auth = {
            "auth.new_repositories": "public",
            "auth.username": _USER,
            "auth.password_file": str(folder / "password"),
        }
        tracker = self._start("tracker", "tracker", {"registry.port": "0", **auth, **sets})
        super().__init__(tracker, [], _USER, _PASSWORD)

    def add_node(self, sets: Mapping[str, str] | None = None) -> Daemon:
        """Start a node that knows the tracker, with more settings: ``{"tags.max_age": "1"}``."""
        node = self._start_node(len(self.nodes), sets or {})
        self.nodes.append(node)
        return node

    def restart_node(self, index: int, sets: Mapping[str, str] | None = None) -> Daemon:
        """Kill a node and start it again on its data, on other ports, with these settings."""
        self.nodes[index].kill()
        self.nodes[index] = self._start_node(index, sets or {})
        return self.nodes[index]

    def _start_node(self, index: int, sets: Mapping[str, str]) -> Daemon:
        known = {"tracker.url": str(self.tracker.facts["peer_url"]), "pull.port": "0"}
        return self._start(f"node{index + 1}", "node", known | dict(sets))

    def _start(self, name: str, program: str, sets: Mapping[str, str]) -> Daemon:
        folder = self._folder / name
        sets = {"peer.plain": "true", "peer.host": "127.0.0.1", "libp2p.host": "127.0.0.1", **sets}
        sets |= {f"{section}.port": "0" for section in ("peer", "libp2p", "metrics")}
        command = [sys.executable, "-m", "p2pregistry", program, "run", "--json", "--data-dir", str(folder / "data")]
        command += [part for key, text in sets.items() for part in ("--set", f"{key}={text}")]
        process, facts = self._stack.enter_context(_running(command, folder))
        return Daemon(facts, process)


@contextmanager
def separate(folder: Path, nodes: int = 0, tracker: Mapping[str, str] | None = None) -> Iterator[Separate]:
    """A tracker (with more settings) and ``nodes`` nodes, data in ``folder``. At the end nodes stop first, then the
    tracker.

    Each must stop with status 0 on SIGTERM, unless the test has killed it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        swarm = Separate(folder, stack, tracker or {})
        for _ in range(nodes):
            swarm.add_node()
        yield swarm


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A daemon and the JSON line that says that it is ready, until the end of the block."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - ours
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True, env=_environment()
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"{' '.join(command)} did not start:\n{log.read_text('utf-8')[-3000:]}")
        secrets_used.check_arguments(process.pid)
        yield process, json.loads(line)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, log.read_text("utf-8")[-3000:]
        else:
            assert process.returncode == -signal.SIGKILL, f"it ended:\n{log.read_text('utf-8')[-3000:]}"
        secrets_used.check(folder)
    finally:
        # "up" is asked first, also after a failure: killed, it could not stop its own
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _environment() -> dict[str, str]:
    """Ours without settings, which would be meant for all of them at once."""
    return {name: text for name, text in os.environ.items() if not name.startswith("P2PREGISTRY_")}
