"""scripts/bench push: a layer pushed as docker does, to the tracker and to docker-registry, in turns.

A push is POST, PATCH of the whole layer, PUT with its digest: the time ends when the registry has said that it has it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import measure
from measure import say
from processes import BenchError, docker_registry, swarm
from report import Report

RUNS = 5
MIB = 1 << 20
#: MB that the tracker may take more for a large layer than for a small one.
GROWTH = 40.0


@dataclass(frozen=True, slots=True)
class Target:
    """A registry. ``credentials``: user and password, for curl's configuration file."""

    name: str
    url: str
    credentials: str | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--mib", type=int, default=1024, help="size of the layer; the target is for 1024")
    parser.add_argument("--at-once", type=int, default=1, help="pushes of as many different layers at the same time")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    if report.machine["curl"] is None:
        raise BenchError("curl is not installed")
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        said = stack.enter_context(swarm(folder / "data"))
        tracker = dict(said.tracker)
        targets = [Target("tracker", tracker["url"], f"{tracker['username']}:{tracker['password']}")]
        try:
            other = stack.enter_context(docker_registry(folder / "docker-registry"))
            targets.append(Target("docker-registry", other))
        except BenchError as err:
            report.skipped["docker-registry"] = str(err)
        _measure(args, report, folder, targets, int(tracker["pid"]))


def _measure(args: argparse.Namespace, report: Report, folder: Path, targets: Sequence[Target], pid: int) -> None:
    size, at_once = args.mib * MIB, args.at_once
    rates: dict[str, list[float]] = {"tracker": [], "docker-registry": []}
    _push(targets[0], [_layer(folder / "small", 8 * MIB)])  # code paths run once, threads are there
    before = measure.peak_rss(pid)
    runs = args.runs or RUNS
    for turn in range(runs):
        layers = [_layer(folder / f"layer{number}", size) for number in range(at_once)]
        for target in targets if turn % 2 == 0 else targets[::-1]:
            os.sync()  # what was written before is not to be paid for now
            rates[target.name].append(at_once * size / measure.MB / _push(target, layers))
        text = ", ".join(f"{name} {found[-1]:.0f} MB/s" for name, found in rates.items() if found)
        say(f"round {turn + 1} of {runs}: {text}")
    after = measure.peak_rss(pid)
    report.ratio("tracker, push", rates["tracker"], "MB/s", "docker-registry", rates["docker-registry"], 0.9)
    report.value("docker-registry", rates["docker-registry"], "MB/s")
    if before is not None and after is not None:
        report.value("peak RSS, tracker", [after], "MB")
        report.limit("more than for a layer of 8 MiB", [after - before], "MB", most=GROWTH)


def _layer(path: Path, size: int) -> tuple[Path, str]:
    """A file of bytes that no registry has, and its digest."""
    whole = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            whole.update(block)
            file.write(block)
    return path, f"sha256:{whole.hexdigest()}"


def _push(target: Target, layers: Sequence[tuple[Path, str]]) -> float:
    """Seconds until all of them were taken. Raises BenchError."""
    failures: list[BenchError] = []

    def one(path: Path, digest: str) -> None:
        try:
            _push_one(target, path, digest)
        except BenchError as err:
            failures.append(err)

    threads = [threading.Thread(target=one, args=layer) for layer in layers]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return seconds


def _push_one(target: Target, path: Path, digest: str) -> None:
    location = _curl(target, 202, "-X", "POST", f"{target.url}/v2/bench/push/blobs/uploads/")
    chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-H", "Content-Type: application/octet-stream")
    location = _curl(target, 202, "-X", "PATCH", *chunked, "-T", str(path), location)
    _curl(target, 201, "-X", "PUT", "-H", "Content-Length: 0", _with(location, digest))


def _with(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def _curl(target: Target, status: int, *arguments: str) -> str:
    """One request; the address that the answer points to. Raises BenchError."""
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code} %header{location}", "-K", "-", *arguments]
    user = "" if target.credentials is None else f'user = "{target.credentials}"\n'
    done = subprocess.run(command, input=user, capture_output=True, text=True)
    got, _, location = done.stdout.partition(" ")
    if done.returncode or got != str(status):
        raise BenchError(f"{target.name} answered {got} in place of {status} (curl: exit {done.returncode})")
    return urljoin(target.url, location)
