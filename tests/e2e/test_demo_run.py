"""``p2pregistry up --demo`` for real: an image pushed, pulled through two nodes, every byte shown, and nothing left."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def processes_naming(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        if text in command:
            found.append(command)
    return found


def test_the_demonstration_shows_every_byte_and_leaves_no_process(tmp_path: Path) -> None:
    for _ in range(2):  # the second time the nodes know the tag, which moves
        _demonstrated(tmp_path, tmp_path / "data")


def _demonstrated(tmp_path: Path, data: Path) -> None:
    command = [sys.executable, "-m", "p2pregistry", "up", "--nodes", "2", "--port", "0", "--demo", "--json"]
    with subprocess.Popen(
        [*command, "--data-dir", str(data)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        try:
            for line in process.stderr:
                said.append(line)
                if line.startswith("Ctrl-C"):
                    break
        finally:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    text = "".join(said)
    assert process.returncode == 0, text + err
    facts = json.loads(out)
    assert out.count("\n") == 1
    assert len(facts["nodes"]) == 2
    assert facts["tracker"]["password"] == (data / "password").read_text().strip()
    rows = {
        name: [float(cell) for cell in cells.split()]
        for name, cells in re.findall(r"^  (node \d) +(.*)$", text, re.MULTILINE)
    }
    tracker, peers, _, _ = rows["node 1"]
    assert (tracker, peers) == (12.0, 0.0)
    tracker, peers, _, _ = rows["node 2"]
    # how many of them come from the peer is measured elsewhere, on a quiet machine
    assert tracker + peers == pytest.approx(12.0, abs=0.2)
    assert peers > 0
    assert processes_naming(str(tmp_path)) == []
