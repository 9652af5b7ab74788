"""``up`` with stand-ins for the daemons: what it starts, what it says, and that nothing outlives it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE = 30.0  # seconds
PROGRAM = """
import sys
from pathlib import Path
from p2pregistry import cli, up
up.STOP_DEADLINE = float(sys.argv[4])
command = (sys.executable, "-P", "-m", "p2pregistry.testing.standin")
folder, nodes, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
plan = up.Plan(nodes=nodes, data_dir=folder, port=0, as_json=mode != "people", plain=mode == "plain", program=command)
cli.reporting(lambda: up.main(plan))
"""


class Running:
    """An ``up`` process of this test."""

    def __init__(self, data_dir: Path, nodes: int = 2, *, mode: str = "json", stop_deadline: float = 20) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(data_dir), str(nodes), mode, str(stop_deadline)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return json.loads(line)

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        if self.process.poll() is None:
            self.process.send_signal(how)
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    def events(self) -> list[str]:
        return (self.data_dir / "events").read_text().splitlines()


def pids(facts: dict) -> list[int]:
    return [facts["tracker"]["pid"], *(node["pid"] for node in facts["nodes"])]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0)  # the condition reads /proc or a file: there is nothing to wait on


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def swarm(data_dir: Path) -> Iterator[Running]:
    running = Running(data_dir)
    yield running
    running.end(signal.SIGKILL)


def test_json_is_one_line_with_the_documented_keys(swarm: Running) -> None:
    facts = swarm.ready()
    code, rest, err = swarm.end()
    assert (code, rest) == (0, ""), err
    assert list(facts["tracker"]) == ["url", "peer_url", "metrics_url", "pid", "data_dir", "username", "password"]
    assert [list(node) for node in facts["nodes"]] == [
        ["url", "peer_url", "metrics_url", "pid", "data_dir", "peer_id"]
    ] * 2
    assert [node["peer_id"] for node in facts["nodes"]] == ["node1", "node2"]
    urls = [facts["tracker"]["url"], *(node["url"] for node in facts["nodes"])]
    assert len(set(urls)) == 3


def test_nodes_stop_before_the_tracker(swarm: Running) -> None:
    children = pids(swarm.ready())
    assert swarm.end(signal.SIGINT)[0] == 0
    stops = [event for event in swarm.events() if event.startswith("stop")]
    assert sorted(stops[:2]) == ["stop node1", "stop node2"]
    assert stops[2:] == ["stop tracker"]
    assert not any(alive(pid) for pid in children)


def test_kill_9_leaves_no_process_behind(swarm: Running) -> None:
    children = pids(swarm.ready())
    swarm.process.kill()
    swarm.process.wait()
    until(lambda: not any(alive(pid) for pid in children))


def test_a_child_that_dies_is_reported_and_everything_stops(swarm: Running) -> None:
    children = pids(swarm.ready())
    os.kill(children[2], signal.SIGKILL)
    _, err = swarm.process.communicate(timeout=DEADLINE)
    assert swarm.process.returncode == 1
    assert "node2 ended by itself (signal 9)" in err
    assert "Traceback" not in err
    assert not any(alive(pid) for pid in children)


def test_a_child_that_cannot_start_is_reported_with_the_end_of_its_log(data_dir: Path) -> None:
    (data_dir / "node1.fail").touch()
    running = Running(data_dir)
    out, err = running.process.communicate(timeout=DEADLINE)
    assert (running.process.returncode, out) == (1, "")
    assert "node1 did not start (exit code 3)" in err
    assert "the stand-in was told to fail" in err
    assert "Traceback" not in err
    assert running.events()[-1] == "stop tracker"


def test_a_child_that_ignores_the_request_to_stop_is_killed(data_dir: Path) -> None:
    (data_dir / "node1.deaf").touch()
    running = Running(data_dir, nodes=1, stop_deadline=0.2)
    children = pids(running.ready())
    assert running.end()[0] == 0
    assert not any(alive(pid) for pid in children)


def test_a_second_up_on_the_same_data_is_refused(swarm: Running, data_dir: Path) -> None:
    swarm.ready()
    code, out, err = Running(data_dir).end(signal.SIGCONT)
    assert (code, out) == (1, "")
    assert "in use by another p2pregistry up" in err


def test_the_password_is_kept_across_restarts_and_private(data_dir: Path) -> None:
    passwords = []
    for _ in range(2):
        running = Running(data_dir, nodes=0)
        passwords.append(running.ready()["tracker"]["password"])
        assert running.end()[0] == 0
    assert passwords[0] == passwords[1]
    assert len(passwords[0]) >= 20
    assert stat.S_IMODE((data_dir / "password").stat().st_mode) == 0o600


def test_children_are_told_loopback_only_and_who_the_tracker_is(swarm: Running, data_dir: Path) -> None:
    facts = swarm.ready()
    swarm.end()
    for name in ("tracker", "node1", "node2"):
        settings = tomllib.loads((data_dir / f"{name}.toml").read_text())
        hosts = [section["host"] for section in settings.values() if "host" in section]
        flat = {host for entry in hosts for host in (entry if isinstance(entry, list) else [entry])}
        assert flat <= {"127.0.0.1", "::1"}
        if name != "tracker":
            known = {"url": facts["tracker"]["peer_url"], "root_key": "k4.public.AAAA"}
            assert settings["tracker"] == known | {"join_file": str(data_dir / "join-token")}
            assert settings["peer"]["plain"] is False


def test_nodes_join_with_a_token_in_a_file_that_is_for_them_only_and_gone_afterwards(
    swarm: Running, data_dir: Path
) -> None:
    swarm.ready()
    joins = [event for event in swarm.events() if event.startswith("join")]
    assert sorted(joins) == ["join 0o600 token-for-2 node1", "join 0o600 token-for-2 node2"]
    assert not (data_dir / "join-token").exists()
    assert swarm.end()[0] == 0


def test_plain_nodes_need_no_token(data_dir: Path) -> None:
    running = Running(data_dir, mode="plain")
    running.ready()
    assert not [event for event in running.events() if event.startswith("join")]
    assert tomllib.loads((data_dir / "node1.toml").read_text())["peer"]["plain"] is True
    assert running.end()[0] == 0


def test_people_are_told_what_to_type(data_dir: Path) -> None:
    running = Running(data_dir, mode="people")
    assert running.process.stdout is not None
    lines: list[str] = []
    while "Ctrl-C stops everything.\n" not in lines:
        lines.append(running.process.stdout.readline())
        assert lines[-1], running.process.communicate()
    code, _, _ = running.end(signal.SIGINT)
    text = "".join(lines)
    assert code == 0
    assert "docker login 127.0.0.1:" in text
    assert "docker pull localhost:" in text
    assert (data_dir / "password").read_text().strip() not in text
