"""The benches run, with real processes and namespaces, and leave nothing behind. How fast things are is not judged."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[2] / "scripts" / "benchmarks"
PATIENCE = 180  # seconds; only a test that fails takes as long
SWARM = ("swarm", "--nodes", "3", "--mib", "8", "--up", "80", "--against", "none", "--force", "--calm", "0")

pytestmark = pytest.mark.e2e


def namespaces_missing() -> str:
    """Why shaped links cannot be made here; "" if they can. The bench is asked itself."""
    script = "import network, processes\ntry: network.check()\nexcept processes.BenchError as err: print(err)"
    done = subprocess.run([sys.executable, "-c", script], cwd=BENCHES, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def namespaces() -> None:
    if why := namespaces_missing():
        pytest.skip(why)


@contextmanager
def bench(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A bench, and the mark that all its processes carry in their environment."""
    mark = f"BENCH_MARK={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, str(BENCHES), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {name: value},
    )
    try:
        yield process, mark
    finally:
        process.kill()
        process.communicate()


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                environment = (path / "environ").read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            if mark.encode() in environment:
                found.append(int(path.name))
    return found


def results(output: str) -> dict[str, Any]:
    return {result["name"]: result for result in json.loads(output)["results"]}


def test_a_small_swarm_is_measured_and_taken_down(namespaces: None) -> None:
    with bench(*SWARM, "--json") as (process, mark):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert marked(mark) == []
    found = results(output)
    size = 8 * 1024 * 1024
    # over one link of 10 MB/s each; the layers are a little larger than what was asked for
    assert found["bound"]["value"] >= size / 10e6
    assert found["tracker sent / image"]["value"] >= 1
    assert found["slowest / bound"]["value"] >= 0.9
    rounds = json.loads(output)["rounds"]
    assert len(rounds[0]["clients"]) == 3
    assert all(client["bytes"] >= size for client in rounds[0]["clients"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_bench_that_is_stopped(namespaces: None, number: signal.Signals) -> None:
    # so much that it cannot be done before the signal comes
    with bench(*SWARM, "--mib", "96") as (process, mark):
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("all pull"):
                break
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
        deadline = time.monotonic() + PATIENCE
        while marked(mark) and time.monotonic() < deadline:  # after a SIGKILL each notices by itself
            time.sleep(0.1)
        assert marked(mark) == []


def test_the_small_bench_measures_every_kind_of_image() -> None:
    with bench("small", "--runs", "1", "--json") as (process, _):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    found = results(output)
    for kind in ("10 MB in 1 layer", "10 MB in 4 layers", "50 layers of 100 KB"):
        assert found[f"tracker, {kind}"]["value"] > 0
        assert found[f"node, {kind}, first byte"]["value"] > 0


def test_pushes_are_measured() -> None:
    with bench("push", "--mib", "4", "--runs", "1", "--at-once", "2", "--json") as (process, _):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    assert results(output)["tracker, push"]["value"] > 0


def test_a_feed_is_measured() -> None:
    arguments = ("--tags", "2000", "--seconds", "2", "--rate", "50", "--listeners", "5", "--idle", "5")
    with bench("feed", *arguments, "--runs", "1", "--json") as (process, _):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    assert results(output)["from a move to the event, 99 of 100"]["value"] > 0
    assert results(output)["a look-up of a known tag"]["value"] > 0


def test_long_lists_are_measured() -> None:
    with bench("tags", "--count", "12000", "--runs", "1", "--json") as (process, _):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    assert results(output)["12000 tags of one repository"]["value"] > 0


def test_a_warm_blob_is_measured_beside_a_node_of_an_earlier_revision() -> None:
    for needed in (("curl", "--version"), ("git", "-C", str(BENCHES), "rev-parse", "HEAD")):
        if shutil.which(needed[0]) is None or subprocess.run(needed, capture_output=True).returncode:
            pytest.skip(f"{' '.join(needed)} does not work here")
    with bench("warm", "--mib", "4", "--runs", "2", "--against", "HEAD", "--json") as (process, mark):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert marked(mark) == []
    found = [one for one in json.loads(output)["results"] if one["against"] == "earlier node"]
    assert [(one["target"], len(one["samples"])) for one in found] == [(">= 0.95x earlier node", 2)]
    assert results(output)["earlier node"]["value"] > 0


def test_the_bound_is_that_of_the_slowest_part() -> None:
    script = """
import json, swarm
size, rate = 256 * 2**20, 12.5e6
print(json.dumps([
    swarm.bound(size, rate, [rate] * 16, [rate] * 16),
    swarm.bound(size, rate, [rate / 2], [rate]),
    swarm.bound(size, rate, [rate] * 9, [rate / 9] * 9),
    swarm.direct_bound(size, rate, [rate] * 16),
]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=BENCHES, capture_output=True, text=True, check=True)
    one = 256 * 2**20 / 12.5e6
    # the tracker's link; the slowest receiver; what all can send together (9 x F over 2 links); all from the tracker
    assert json.loads(done.stdout) == pytest.approx([one, 2 * one, 4.5 * one, 16 * one])


def test_gateways_are_measured_beside_a_peer() -> None:
    with bench("ipfs", "--mib", "3", "--runs", "1", "--ours-only", "--json") as (process, _):
        output, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    found = results(output)
    assert found["peer"]["value"] > 0
    for way in ("blocks", "CAR"):
        assert found[f"our gateway, {way}"]["ratio"] > 0
