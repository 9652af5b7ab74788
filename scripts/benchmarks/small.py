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

from daemons import daemons, node_settings, tracker_settings
from measure import MB, say
from network import Agent, Link, local_agent, network, plain_rate
from processes import BenchError, docker_registry, swarm
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
    parser.add_argument(
        "--rate",
        type=float,
        metavar="MBIT",
        help="tracker and node on machines of their own, with links of this rate (needs root); else all on loopback",
    )
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="with --rate: added to each way")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the image can be pulled from, by name; the client that pulls, and the one that pushes."""

    urls: dict[str, str]
    client: Agent
    pusher: Agent
    account: dict[str, str]


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    runs = args.runs or RUNS
    kinds = KINDS if args.kind is None else (KINDS[args.kind],)
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        say("starting the tracker and a node")
        if args.rate is None:
            places = _loopback(stack, folder, report)
        else:
            places = _machines(stack, folder, report, args.rate, args.delay)
        say(f"pushing {runs + 1} images of each kind")
        for kind in kinds:
            _push(places, folder, kind, runs + 1)
        found = {kind: {place: Samples() for place in places.urls} for kind in kinds}
        for turn in range(-1, runs):
            for kind in kinds:
                _round(places, kind, turn, found[kind])
        for kind, samples in found.items():
            _report(report, kind, samples)


def _loopback(stack: ExitStack, folder: Path, report: Report) -> Places:
    """Everything on this machine, as ``p2pregistry up`` starts it."""
    swarmed = stack.enter_context(swarm(folder / "data"))
    urls = {"node": swarmed.node.url, "tracker": str(swarmed.tracker["url"])}
    try:
        urls["docker-registry"] = stack.enter_context(docker_registry(folder / "docker-registry"))
    except BenchError as err:
        report.skipped["docker-registry"] = str(err)
    client = stack.enter_context(local_agent(folder))
    return Places(urls, client, client, {key: swarmed.tracker[key] for key in ("username", "password")})


def _machines(stack: ExitStack, folder: Path, report: Report, rate: float, delay: float) -> Places:
    """The tracker and docker-registry on one machine, the node and the client on another."""
    there, here = stack.enter_context(network(folder, [Link(rate), Link(rate)], delay_ms=delay))
    report.machine["link_mbit"], report.machine["delay_ms"] = rate, delay
    report.machine["link_measured_mbit"] = round(plain_rate(there, here), 1)
    started = stack.enter_context(daemons(folder))
    tracker = started.start("tracker", "tracker", tracker_settings(folder, there.address), there.command, ())
    tracker.wait()
    node = started.start("node", "node", node_settings(folder / "node", tracker), here.command, ())
    node.wait()
    urls = {"node": str(node.facts["url"]), "tracker": str(tracker.facts["url"])}
    try:
        other = docker_registry(folder / "docker-registry", there.address, there.command)
        urls["docker-registry"] = stack.enter_context(other)
    except BenchError as err:
        report.skipped["docker-registry"] = str(err)
    return Places(urls, here.agent, there.agent, {key: tracker.facts[key] for key in ("username", "password")})


def _push(places: Places, folder: Path, kind: Kind, count: int) -> None:
    layout = folder / "image"
    for number in range(-1, count - 1):
        tag = _tag(kind, number)
        make_image(Layout(layout), layers=kind.layers, layer_bytes=kind.layer_bytes, seed=f"{tag}/{time.time_ns()}")
        for place, url in places.urls.items():
            if place != "node":
                account = places.account if place == "tracker" else {"username": "", "password": ""}
                places.pusher.ask("push", layout=str(layout), tag=tag, url=url, **account)
        shutil.rmtree(layout)


def _tag(kind: Kind, number: int) -> str:
    return f"{kind.layers}-{kind.layer_bytes}-{number + 1}"


def _round(places: Places, kind: Kind, turn: int, found: dict[str, Samples]) -> None:
    """Everybody in turn. The round before the first is not counted: code paths run once."""
    order = list(places.urls)
    if turn % 2:
        order.reverse()  # nobody is always the first to read the files
    for place in order:
        os.sync()  # what was written before is not to be paid for now
        pulled = places.client.ask(
            "pull", base=places.urls[place], repository=REPOSITORY, tag=_tag(kind, turn), parallel=PARALLEL, at=0.0
        )
        if turn >= 0:
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
