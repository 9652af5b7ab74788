"""scripts/bench memory: the most that a node takes while 16 peers pull from it and it pulls an image of 4 layers.

The peers ask for pieces of what it holds, and of what it is just pulling, as fast as they are given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import measure
from measure import MB, say
from network import Agent, local_agent
from processes import BenchError, Swarm, swarm
from report import Report

from p2pregistry.demo import REPOSITORY, counters
from p2pregistry.testing.images import MIB, Layout, make_image

PEERS, LAYERS = 16, 4
CHUNK = 4 * MIB  # what a node asks another for on a fast link
MOST = 150.0  # MB
DRAIN_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Image:
    """A tag and its layers, digest: size."""

    tag: str
    layers: dict[str, int]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--mib", type=int, default=1024, help="size of the image in 4 layers; the target is for 1024")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    peaks, before, sent, rates = [], [], [], []
    for turn in range(args.runs or 3):
        with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            say("starting the tracker and a node")
            swarmed = stack.enter_context(swarm(folder / "data"))
            puller, peers = (stack.enter_context(local_agent(folder)) for _ in range(2))
            held, wanted = (_push(puller, folder, swarmed, tag, args.mib * MIB) for tag in ("held", "wanted"))
            _pull(puller, swarmed, held)
            before.append(measure.peak_rss(swarmed.node.pid) or 0.0)
            blobs = held.layers | wanted.layers
            peers.tell(
                "drain", url=swarmed.node.peer_url, blobs=blobs, connections=PEERS, seconds=DRAIN_SECONDS, chunk=CHUNK
            )
            seconds = _pull(puller, swarmed, wanted)
            drained = peers.answer("drain")
            peaks.append(measure.peak_rss(swarmed.node.pid) or 0.0)
            sent.append(_served(swarmed) / MB)
            rates.append(sum(wanted.layers.values()) / MB / seconds)
            say(
                f"round {turn + 1}: peak {peaks[-1]:.0f} MB (after one pull alone {before[-1]:.0f} MB); pulled in"
                f" {seconds:.1f} s; the peers took {drained['bytes'] / MB:.0f} MB, answers {drained['statuses']}"
            )
            if drained["bytes"] < sum(held.layers.values()):
                raise BenchError("the peers got next to nothing: this says nothing about memory")
    report.limit(f"peak RSS, {PEERS} peers pull, {LAYERS} layers come", peaks, "MB", most=MOST)
    report.value("peak RSS after one pull alone", before, "MB")
    report.value("sent to peers", sent, "MB")
    report.value("pulled meanwhile at", rates, "MB/s")


def _push(client: Agent, folder: Path, swarmed: Swarm, tag: str, size: int) -> Image:
    layout = Layout(folder / "image")
    image = make_image(layout, layers=LAYERS, layer_bytes=size // LAYERS, seed=tag)
    account = {key: swarmed.tracker[key] for key in ("url", "username", "password")}
    client.ask("push", layout=str(layout.root), tag=tag, **account)
    layers = json.loads(layout.read(image.digest))["layers"]
    shutil.rmtree(layout.root)
    return Image(tag, {layer["digest"]: layer["size"] for layer in layers})


def _pull(client: Agent, swarmed: Swarm, image: Image) -> float:
    """Seconds."""
    asked = {"base": swarmed.node.url, "repository": REPOSITORY, "tag": image.tag, "parallel": LAYERS, "at": 0.0}
    return float(client.ask("pull", **asked)["seconds"])


def _served(swarmed: Swarm) -> int:
    page = measure.get(f"{swarmed.node.metrics_url}/metrics").decode()
    return counters(page, "p2pregistry_served_bytes_total", "to").get("peer", 0)
