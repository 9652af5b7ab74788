"""The command line: instant help, and errors that are one line."""

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli import lines_of
from p2pregistry import cli
from p2pregistry.errors import LocalError, SettingsError

HEAVY = {"trio", "httpx", "libp2p", "psycopg", "rich", "structlog", "msgspec", "lmdb", "cryptography", "multiformats"}


def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-m", "p2pregistry", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd="/")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("node", "--help"), ("tracker", "run", "--help"), ("up", "--help"), ("image", "cid", "--help")],
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, flags=("-X", "importtime"))
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert not loaded & HEAVY


def test_help_takes_less_than_300_ms_of_processor_time() -> None:
    # Processor time, not wall time: other tests run at the same time.
    before = os.times()
    assert run("--help").returncode == 0
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 0.3


@pytest.mark.parametrize(
    "words",
    [
        ["up"],
        ["tracker", "run"],
        ["tracker", "migrate"],
        ["node", "run"],
        ["node", "status"],
        ["image", "cid"],
        ["image", "export"],
    ],
)
def test_each_command_has_help(words: list[str]) -> None:
    result = CliRunner().invoke(cli.cli, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize("program", ["node", "tracker"])
def test_a_wrong_setting_is_one_line_and_exit_2(program: str) -> None:
    done = run(program, "run", "--set", "peer.prot=1")
    assert done.returncode == 2
    assert done.stderr == "p2pregistry: $.peer.prot: no such setting, did you mean peer.port? (command line)\n"


def test_a_node_that_does_not_run_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = run("node", "status", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"p2pregistry: nothing runs with the data directory {tmp_path} (no answer at admin.sock)\n"


def test_errors_inside_nurseries_are_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", [LocalError("port 5000 is taken")])])

    with pytest.raises(SystemExit) as caught:
        cli.reporting(fail)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "p2pregistry: port 5000 is taken\n"


def test_a_defect_of_ours_is_not_hidden() -> None:
    def fail() -> None:
        raise ExceptionGroup("nursery", [SettingsError("x"), KeyError("y")])

    with pytest.raises(ExceptionGroup):
        cli.reporting(fail)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Path]:
    """A folder with an admin socket that knows /status and /peers."""
    answers = {"/status": {"peer_id": "12D3", "blobs": 3}, "/peers": [{"peer_id": "12D4", "url": "http://127.0.0.1:1"}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "local"

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "admin.sock"), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path
        server.shutdown()
        thread.join()


def test_status_and_peers_of_a_running_node(admin: Path) -> None:
    runner = CliRunner()
    folder = ["--data-dir", str(admin)]
    assert runner.invoke(cli.cli, ["node", "status", *folder]).output == "peer_id  12D3\nblobs    3\n"
    assert json.loads(runner.invoke(cli.cli, ["node", "status", "--json", *folder]).output)["blobs"] == 3
    assert runner.invoke(cli.cli, ["node", "peers", *folder]).output == "12D4  http://127.0.0.1:1\n"


def test_facts_of_a_node_are_a_line_each_and_a_list_one_for_each_entry() -> None:
    gateways = [
        {"url": "https://a.example", "state": "ok", "why": "", "wait": 0.0, "seen": 4.0},
        {"url": "https://b.example", "state": "banned", "why": "it sends another block", "wait": 598.2, "seen": None},
    ]
    assert lines_of({"pid": 7, "max_bytes": None, "names": [], "feed_connected": False, "gateways": gateways}) == [
        "pid             7",
        "max_bytes       -",
        "names           -",
        "feed_connected  no",
        "gateways        https://a.example  state ok  seen 4.0",
        "                https://b.example  state banned  why it sends another block  wait 598.2",
    ]
