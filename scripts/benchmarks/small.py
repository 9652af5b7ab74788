"""scripts/bench small: small images through a node that has nothing of them, and from the tracker directly.

A new image in each round; the same client pulls it through the node, from the tracker and from docker-registry.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from measure import MB, say
from network import Agent, local_agent
from processes import BenchError, Swarm, docker_registry, swarm
from report import Report

from p2pregistry.demo import REPOSITORY
from p2pregistry.testing.images import Layout, make_image

PARALLEL = 3  # blobs at once, as container engines do
PAUSE = 0.2  # seconds between two pulls, in which a node keeps what it has pulled
MOST, FIRST_BYTE_MS = 1.1, 50.0
RUNS = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of image: layers of so many bytes."""

    name: str
    layers: int
    layer_bytes: int


KINDS = (
    Kind("10 MB in 1 layer", 1, 10 * MB),
    Kind("10 MB in 4 layers", 4, 10 * MB // 4),
    Kind("50 layers of 100 KB", 50, 100_000),
)


@dataclass(slots=True)
class Samples:
    """Of one kind from one place: seconds of the pulls, milliseconds to the first byte of a layer."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--kind", type=int, choices=range(len(KINDS)), help="only one of the kinds of image")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    runs = args.runs or RUNS
    kinds = KINDS if args.kind is None else (KINDS[args.kind],)
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        say("starting the tracker and a node")
        swarmed = stack.enter_context(swarm(folder / "data"))
        places = {"node": swarmed.node.url, "tracker": str(swarmed.tracker["url"])}
        try:
            places["docker-registry"] = stack.enter_context(docker_registry(folder / "docker-registry"))
        except BenchError as err:
            report.skipped["docker-registry"] = str(err)
        client = stack.enter_context(local_agent(folder))
        say(f"pushing {runs + 1} images of each kind")
        for kind in kinds:
            _push(client, folder, kind, runs + 1, swarmed, places)
        found = {kind: {place: Samples() for place in places} for kind in kinds}
        for turn in range(-1, runs):  # the first round is not counted: code paths run once
            for kind in kinds:
                _round(client, kind, turn, places, found[kind])
            if turn < 0:
                found = {kind: {place: Samples() for place in places} for kind in kinds}
        for kind, samples in found.items():
            _report(report, kind, samples)


def _push(client: Agent, folder: Path, kind: Kind, count: int, swarmed: Swarm, places: dict[str, str]) -> None:
    layout = folder / "image"
    for number in range(-1, count - 1):
        tag = _tag(kind, number)
        make_image(Layout(layout), layers=kind.layers, layer_bytes=kind.layer_bytes, seed=f"{tag}/{time.time_ns()}")
        for place, url in places.items():
            if place != "node":
                account = swarmed.tracker if place == "tracker" else {"username": "", "password": ""}
                names = {key: account[key] for key in ("username", "password")}
                client.ask("push", layout=str(layout), tag=tag, url=url, **names)
        shutil.rmtree(layout)


def _tag(kind: Kind, number: int) -> str:
    return f"{kind.layers}-{kind.layer_bytes}-{number + 1}"


def _round(client: Agent, kind: Kind, turn: int, places: dict[str, str], found: dict[str, Samples]) -> None:
    order = list(places) if turn % 2 else list(reversed(places))  # nobody is always the first to read the files
    for place in order:
        os.sync()  # what was written before is not to be paid for now
        pulled = client.ask(
            "pull", base=places[place], repository=REPOSITORY, tag=_tag(kind, turn), parallel=PARALLEL, at=0.0
        )
        found[place].seconds.append(pulled["seconds"])
        found[place].first.append(pulled["first_byte"] * 1000)
        time.sleep(PAUSE)
    if turn >= 0:
        last = ", ".join(f"{place} {samples.seconds[-1] * 1000:.0f} ms" for place, samples in found.items())
        say(f"round {turn + 1}, {kind.name}: {last}")


def _report(report: Report, kind: Kind, found: dict[str, Samples]) -> None:
    def milliseconds(seconds: Sequence[float]) -> list[float]:
        return [each * 1000 for each in seconds]

    ours = milliseconds(found["node"].seconds)
    for place, most in (("tracker", MOST), ("docker-registry", None)):
        theirs = milliseconds(found[place].seconds) if place in found else []
        report.ratio(f"node, {kind.name}", ours, "ms", place, theirs, None, most)
        report.value(f"{place}, {kind.name}", theirs, "ms")
    report.limit(f"node, {kind.name}, first byte", found["node"].first, "ms", most=FIRST_BYTE_MS)
    report.value(f"tracker, {kind.name}, first byte", found["tracker"].first, "ms")
