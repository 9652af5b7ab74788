"""scripts/bench warm, cold, manifest: a node on loopback beside nginx and docker-registry, in one run, in turns."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import measure
import trio
from measure import Load, say
from processes import BenchError, Swarm, docker_registry, fresh_node, nginx, revision, swarm
from report import Report

from p2pregistry.demo import REPOSITORY, TAG, push
from p2pregistry.testing.images import MIB, Descriptor, Layout, make_image

RSS_LIMIT = 150.0  # MB
WRK_SECONDS = 4
EARLIER = "earlier node"  # of the revision of --against


@dataclass(slots=True)
class Bench:
    """An image, a swarm whose tracker has it, and the peers that have it too."""

    report: Report
    runs: int
    folder: Path
    layout: Layout
    image: Descriptor
    swarm: Swarm
    earlier: Swarm | None = None
    nginx: str | None = None
    registry: str | None = None

    @property
    def layer(self) -> Descriptor:
        return self.image.parts[-1]

    def blob(self, base: str) -> str:
        """The URL of the layer at a registry or node."""
        return f"{base}/v2/{REPOSITORY}/blobs/{self.layer.digest}"

    def manifest(self, base: str) -> str:
        """The URL of the manifest by tag."""
        return f"{base}/v2/{REPOSITORY}/manifests/{TAG}"


def warm(bench: Bench) -> None:
    """A blob that the node holds."""
    size = bench.layer.size
    _pull_once(bench, bench.swarm)
    if bench.earlier:
        _pull_once(bench, bench.earlier)
    _one_file(bench)
    urls = {"node": bench.blob(bench.swarm.node.url)}
    if bench.earlier:
        urls[EARLIER] = bench.blob(bench.earlier.node.url)
    if bench.nginx:
        urls["nginx"] = f"{bench.nginx}/{bench.layout.path(bench.layer.digest).name}"
    if bench.registry:
        urls["docker-registry"] = bench.blob(bench.registry)
    rates: dict[str, list[float]] = {name: [] for name in ("node", EARLIER, "nginx", "docker-registry")}
    for url in urls.values():
        measure.curl(url, size)  # into the page cache, and code paths run once
    for turn in range(bench.runs):
        for name, url in _in_turn(urls, turn):
            rates[name].append(measure.curl(url, size).rate)
        say(f"round {turn + 1} of {bench.runs}: " + ", ".join(f"{n} {r[-1]:.0f} MB/s" for n, r in rates.items() if r))
    report, unit = bench.report, "MB/s"
    report.ratio("node, warm blob", rates["node"], unit, "nginx", rates["nginx"], 0.9)
    report.ratio("node, warm blob", rates["node"], unit, "docker-registry", rates["docker-registry"], 1.0)
    if bench.earlier:
        report.ratio("node, warm blob", rates["node"], unit, EARLIER, rates[EARLIER], 0.95)
        report.value(EARLIER, rates[EARLIER], unit)
    report.value("nginx", rates["nginx"], unit)
    report.value("docker-registry", rates["docker-registry"], unit)


def manifest(bench: Bench) -> None:
    """A manifest by tag, again and again."""
    urls = {"node": bench.manifest(bench.swarm.node.url)}
    if bench.earlier:
        urls[EARLIER] = bench.manifest(bench.earlier.node.url)
    if bench.nginx:
        urls["nginx"] = f"{bench.nginx}/{bench.layout.path(bench.image.digest).name}"
    if bench.registry:
        urls["docker-registry"] = bench.manifest(bench.registry)
    for held in filter(None, (bench.swarm, bench.earlier)):
        for part in bench.image.parts:  # warm: the node has pulled the image
            measure.get(f"{held.node.url}/v2/{REPOSITORY}/blobs/{part.digest}")
    body = bench.layout.read(bench.image.digest)
    for name, url in urls.items():
        if measure.get(url) != body:
            raise BenchError(f"{name} serves another manifest than was pushed")
    loads: dict[str, list[Load]] = {name: [] for name in ("node", EARLIER, "nginx", "docker-registry")}
    for turn in range(bench.runs):
        for name, url in _in_turn(urls, turn):
            loads[name].append(measure.wrk(url, WRK_SECONDS))
        last = (f"{n} {x[-1].rate:.0f}/s p99 {x[-1].p99:.2f} ms" for n, x in loads.items() if x)
        say(f"round {turn + 1} of {bench.runs}: " + ", ".join(last))
    rates = {name: [load.rate for load in found] for name, found in loads.items()}
    slowest = {name: [load.p99 for load in found] for name, found in loads.items()}
    report = bench.report
    report.least("node, manifest by tag", rates["node"], "req/s", least=10_000)
    report.limit("node, p99", slowest["node"], "ms", most=5.0)
    report.ratio("node, manifest by tag", rates["node"], "req/s", "docker-registry", rates["docker-registry"], 4.0)
    report.ratio("node, manifest by tag", rates["node"], "req/s", "nginx", rates["nginx"], None)
    if bench.earlier:
        report.ratio("node, manifest by tag", rates["node"], "req/s", EARLIER, rates[EARLIER], 0.95)
    for name in ((EARLIER,) if bench.earlier else ()) + ("docker-registry", "nginx"):
        report.value(name, rates[name], "req/s")
        report.value(f"{name}, p99", slowest[name], "ms")


def cold(bench: Bench) -> None:
    """A blob that one other node holds: a new node in each round."""
    size = bench.layer.size
    _pull_once(bench, bench.swarm)
    _one_file(bench)
    ours, theirs, first, peaks, shares = [], [], [], [], []
    for turn in range(bench.runs):
        folder = bench.folder / f"cold{turn}"
        os.sync()  # what was written before is not to be paid for now
        with fresh_node(bench.swarm, folder) as node:
            measure.get(bench.manifest(node.url))  # as an engine does; not part of the time
            got = measure.curl(bench.blob(node.url), size)
            amounts = measure.fetched(node.metrics_url)
            peaks += [peak] if (peak := measure.peak_rss(node.pid)) is not None else []
        shutil.rmtree(folder)
        ours.append(got.rate)
        first.append(got.first_byte * 1000)
        shares.append(amounts.get("peer", 0) / max(1, sum(amounts.values())))
        text = f"node {got.rate:.0f} MB/s, {shares[-1]:.0%} from the other node"
        if bench.nginx:
            os.sync()
            url, path = f"{bench.nginx}/{bench.layout.path(bench.layer.digest).name}", bench.folder / "copy"
            theirs.append(measure.curl_to_disk(url, size, bench.layer.digest, path).rate)
            path.unlink()
            text += f", curl from nginx to disk and sha256sum {theirs[-1]:.0f} MB/s"
        say(f"round {turn + 1} of {bench.runs}: {text}")
    report = bench.report
    report.ratio("node, cold blob from one node", ours, "MB/s", "nginx+curl+sha256", theirs, 0.7)
    report.value("nginx+curl+sha256", theirs, "MB/s")
    report.least("bytes from the other node", [share * 100 for share in shares], "%", least=99.0)
    report.value("node, first byte", first, "ms")
    report.limit("peak RSS, receiving node", [max(peaks)] if peaks else [], "MB", most=RSS_LIMIT)
    peak = measure.peak_rss(bench.swarm.node.pid)
    report.limit("peak RSS, serving node", [] if peak is None else [peak], "MB", most=RSS_LIMIT)


def _in_turn(urls: dict[str, str], turn: int) -> list[tuple[str, str]]:
    """Who comes first changes with each round."""
    return list(urls.items())[:: 1 if turn % 2 == 0 else -1]


def _held(bench: Bench, of: Swarm) -> Path:
    """Where its node keeps the layer."""
    name = bench.layer.digest.removeprefix("sha256:")
    return of.folder / "node1" / "blobs" / "sha256" / name[:2] / name


def _pull_once(bench: Bench, by: Swarm) -> None:
    """Its node takes the blob from the tracker. The client has it before it is synced to the disk: wait."""
    measure.get(bench.manifest(by.node.url))
    say(f"the node has it from the tracker: {measure.curl(bench.blob(by.node.url), bench.layer.size).rate:.0f} MB/s")
    deadline = time.monotonic() + 120
    while not _held(bench, by).exists():
        if time.monotonic() > deadline:
            raise BenchError("the node does not keep what it has pulled")
        time.sleep(0.1)


def _one_file(bench: Bench) -> None:
    """All serve the very file that the node wrote: how it lies in memory and on the disk is then the same for all."""
    source, name = _held(bench, bench.swarm), bench.layer.digest.removeprefix("sha256:")
    blobs = bench.folder / "docker-registry" / "registry" / "docker" / "registry" / "v2" / "blobs" / "sha256"
    same = [bench.layout.path(bench.layer.digest), blobs / name[:2] / name / "data"]
    if bench.earlier:
        same.append(_held(bench, bench.earlier))
    for path in same:
        if path.exists():
            link = path.with_name("link")
            link.hardlink_to(source)
            link.replace(path)


BENCHES = {"warm": warm, "cold": cold, "manifest": manifest}
RUNS = {"warm": 9, "cold": 5, "manifest": 5}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--mib", type=int, default=1024, help="size of the blob; targets are for 1024")
    parser.add_argument(
        "--against",
        metavar="REVISION",
        help="warm, manifest: a node of this revision beside it; 8ecd334 is the last that checked nothing of who asks",
    )


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
        bench = _prepare(stack, report, Path(name), args.runs or RUNS[args.bench], args.mib, args.against)
        BENCHES[args.bench](bench)


def _prepare(stack: ExitStack, report: Report, folder: Path, runs: int, mib: int, against: str | None) -> Bench:
    """Everything that runs during the measurement, with the image in it."""
    for needed in ("curl", "wrk") if report.bench == "manifest" else ("curl",):
        if report.machine[needed] is None:
            raise BenchError(f"{needed} is not installed")
    small = report.bench == "manifest"
    say("making an image" + ("" if small else f" with a layer of {mib} MiB"))
    layout = Layout(folder / "image")
    image = (
        make_image(layout, layers=5, layer_bytes=MIB) if small else make_image(layout, layers=1, layer_bytes=mib * MIB)
    )
    say("starting the tracker and a node, and pushing")
    bench = Bench(report, runs, folder, layout, image, stack.enter_context(swarm(folder / "data")))
    _push(bench, dict(bench.swarm.tracker))
    if against is not None:
        say(f"the same of {against}")
        report.machine[EARLIER] = against
        bench.earlier = stack.enter_context(swarm(folder / "earlier", revision(against, folder / "code")))
        _push(bench, dict(bench.earlier.tracker))
    try:
        bench.nginx = stack.enter_context(nginx(folder / "nginx", layout.root / "blobs" / "sha256"))
    except BenchError as err:
        report.skipped["nginx"] = str(err)
    if report.bench != "cold":
        try:
            bench.registry = stack.enter_context(docker_registry(folder / "docker-registry"))
            _push(bench, {"url": bench.registry, "username": "", "password": ""})
        except BenchError as err:
            report.skipped["docker-registry"] = str(err)
    return bench


def _push(bench: Bench, registry: dict[str, str]) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(timeout=httpx.Timeout(120), trust_env=False) as client:
            await push(client, registry, bench.layout, bench.image)

    trio.run(run)
