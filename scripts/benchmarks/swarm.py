"""scripts/bench swarm: nodes on machines of their own, with links of a given rate, that pull the same image at once.

Each machine is a network namespace. In the same run the same machines download from the tracker's registry directly.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import measure
import usage
from daemons import Daemon, Daemons, daemons, node_settings, tracker_settings
from measure import MB, say
from network import Link, Machine, check, network, plain_rate
from processes import BenchError
from report import Report

from p2pregistry.demo import REPOSITORY, counters
from p2pregistry.testing.images import MIB, Layout, make_image

PARALLEL = 3  # blobs at once, as container engines do
HEAD_START = 1.0  # seconds in which every client learns when to begin
KINDS = {"plain": ("plain",), "tls": ("tls",), "both": ("plain", "tls")}
BUSY = 0.9  # the part of the processors' time beyond which they, and not the links, are what was measured
PREFIX, LOCK = "p2pregistry-swarm-", "lock"  # of the directory of a run
DIRECT_SECONDS = 40.0  # how long the direct downloads may take by their bound, unless all of the image is asked for


@dataclass(frozen=True, slots=True)
class Targets:
    """The most that p50 and the slowest may take of the bound, and the tracker may send of the image."""

    p50: float | None = None
    slowest: float | None = None
    tracker: float | None = 1.2


@dataclass(frozen=True, slots=True)
class Preset:
    """Rates in Mbit/s, the image in bytes."""

    nodes: int
    up: float
    tracker_up: float
    size: int
    targets: Targets


PRESETS = {
    "420": Preset(16, 40, 40, 420 * MB, Targets(1.1, 1.3)),
    "50": Preset(16, 40, 40, 50 * MB, Targets(1.25, 1.4)),
    **{str(nodes): Preset(nodes, 60, 100, 420 * MB, Targets(slowest=1.3)) for nodes in (5, 10, 20)},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--preset", choices=PRESETS, default="50", help="a row of the table of targets; default 50")
    parser.add_argument("--nodes", type=int, metavar="N")
    parser.add_argument("--up", type=float, metavar="MBIT", help="rate of a node's link, each way, Mbit/s")
    parser.add_argument("--tracker-up", type=float, metavar="MBIT", help="rate of the tracker's link")
    parser.add_argument("--mib", type=float, metavar="M", help="size of the image")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="added to each way between machines")
    parser.add_argument("--zones", type=int, default=1, help="zones of nodes; a delay is then between zones")
    parser.add_argument(
        "--against",
        choices=("short", "direct", "none"),
        default="short",
        help="direct downloads beside it: of a smaller image that takes less than a minute, of the same, or none",
    )
    parser.add_argument(
        "--transport",
        choices=("plain", "tls", "both"),
        default="plain",
        help="how all speak with each other; both: in turns, and how one compares to the other",
    )
    parser.add_argument(
        "--calm", type=float, default=20.0, metavar="S", help="wait so long at most for an idle machine before a round"
    )
    parser.add_argument("--force", action="store_true", help="report even if the processors were the limit, marked")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all nodes")
    parser.add_argument(
        "--tracker-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the tracker"
    )
    parser.add_argument("--keep", metavar="DIR", help="copy settings and logs there at the end")


def bound(size: int, tracker: float, downs: Sequence[float], ups: Sequence[float]) -> float:
    """The least seconds in which ``size`` bytes can reach everybody; rates in bytes a second of payload.

    The fluid bound of Kumar and Ross, and Mundinger, Weber and Weiss (J. Scheduling 11, 2008).
    """
    return max(size / tracker, size / min(downs), len(downs) * size / (tracker + sum(ups)))


def direct_bound(size: int, tracker: float, downs: Sequence[float]) -> float:
    """The same where all comes from the tracker."""
    return max(len(downs) * size / tracker, size / min(downs))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is built. Rates in Mbit/s, sizes in bytes."""

    nodes: int
    up: float
    tracker_up: float
    size: int
    layers: int
    delay: float
    zones: int
    targets: Targets
    sets: tuple[str, ...]
    tracker_sets: tuple[str, ...]
    calm: float

    @classmethod
    def of(cls, args: argparse.Namespace) -> Plan:
        """Of the preset and what was said beside it. Raises BenchError."""
        preset = PRESETS[args.preset]
        plan = cls(
            nodes=args.nodes or preset.nodes,
            up=args.up or preset.up,
            tracker_up=args.tracker_up or args.up or preset.tracker_up,
            size=int(args.mib * MIB) if args.mib else preset.size,
            layers=args.layers,
            delay=args.delay,
            zones=args.zones,
            targets=preset.targets,
            sets=tuple(args.set),
            tracker_sets=tuple(args.tracker_set),
            calm=args.calm,
        )
        if not 1 <= plan.nodes <= 200:
            raise BenchError("--nodes must be from 1 to 200")
        return plan

    @property
    def links(self) -> list[Link]:
        """The tracker's, then the nodes'."""
        zones = [f"zone{number % self.zones}" for number in range(self.nodes)]
        return [Link(self.tracker_up, "zone0"), *(Link(self.up, zone) for zone in zones)]

    @property
    def rates(self) -> tuple[float, list[float]]:
        """Bytes a second: of the tracker's link, of each node's."""
        return self.tracker_up * 1e6 / 8, [self.up * 1e6 / 8] * self.nodes

    def bound(self, size: int) -> float:
        """Seconds for an image of ``size`` bytes."""
        tracker, nodes = self.rates
        return bound(size, tracker, nodes, nodes)

    def direct_bound(self, size: int) -> float:
        """Seconds for an image of ``size`` bytes that all take from the tracker."""
        tracker, nodes = self.rates
        return direct_bound(size, tracker, nodes)


@dataclass(slots=True)
class Pulls:
    """One image pulled by all at once: what each client saw, and what it cost."""

    size: int
    bound: float
    clients: list[dict[str, Any]]
    busy: float  # part of all processors' time, until half of the nodes were done
    cpu: dict[str, float]  # seconds
    others: float  # part of all processors' time that programs of others took meanwhile
    sent: int  # bytes of blobs that the tracker sent
    wire: int  # bytes that left on the tracker's link, headers and all
    links: list[dict[str, float]]  # how full the links were, second by second
    sources: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> list[float]:
        return [client["seconds"] for client in self.clients]

    def at(self, share: float) -> float:
        """A percentile of the nodes' times, as a multiple of the bound."""
        return usage.percentile(self.seconds, share) / self.bound


@dataclass(slots=True)
class Bench:
    """The machines, and the tracker that runs on the first of them."""

    plan: Plan
    folder: Path
    machines: list[Machine]
    daemons: Daemons
    tracker: Daemon

    @property
    def nodes(self) -> list[Machine]:
        return self.machines[1:]


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError; also where the processors were the limit and --force was not given."""
    check()
    plan = Plan.of(args)
    report.machine["links_mbit"] = {"tracker": plan.tracker_up, "nodes": plan.up}
    with _folder(plan, args.keep) as folder, ExitStack() as stack:
        say(f"making {plan.nodes + 1} machines; data in {folder}")
        machines = stack.enter_context(network(folder, plan.links, delay_ms=plan.delay))
        report.machine["links_measured_mbit"] = _measured(machines)
        started = stack.enter_context(daemons(folder))
        trackers = {kind: _tracker(started, plan, folder, machines[0], kind) for kind in KINDS[args.transport]}
        kind, tracker = next(iter(trackers.items()))
        bench = Bench(plan, folder, machines, started, tracker)
        swarmed, direct, secure = [], [], []
        for turn in range(args.runs or 1):
            swarmed.append(_swarm_round(bench, turn))
            _tell(f"round {turn + 1}: swarm, {kind}", swarmed[-1])
            if args.transport == "both":
                secure.append(_swarm_round(replace(bench, tracker=trackers["tls"]), turn))
                _tell(f"round {turn + 1}: swarm, tls", secure[-1])
            if args.against != "none":
                size = plan.size if args.against == "direct" else _short(plan)
                direct.append(_direct_round(bench, turn, size))
                _tell(f"round {turn + 1}: direct", direct[-1])
    _report(report, plan, swarmed, direct)
    if secure:
        _compare(report, swarmed, secure)
    _judge_processors(report, [*swarmed, *secure], direct, args.force)


@contextmanager
def _folder(plan: Plan, keep: str | None) -> Iterator[Path]:
    """In memory where there is room: real machines do not share one disk, as these would."""
    need = int(plan.size * (plan.nodes + 3) * 1.1) + (plan.nodes + 1) * 150 * MB
    shared = Path("/dev/shm")
    fits = shared.is_dir() and min(shutil.disk_usage(shared).free, usage.memory_free()) > need
    if not fits:
        say(f"{need / 1e9:.0f} GB do not fit in memory: the nodes share a disk, which may be what is measured")
    parent = shared if fits else Path(tempfile.gettempdir())
    _clear(parent)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield Path(name)
        finally:
            if keep:
                Path(keep).mkdir(parents=True, exist_ok=True)
                for path in (*Path(name).glob("*.log"), *Path(name).glob("*.toml")):
                    shutil.copy(path, keep)


def _clear(parent: Path) -> None:
    """Remove what runs that were killed have left: memory that is full of old images is memory that is missing."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:
            continue  # it is in use, or another run removes it


def _measured(machines: Sequence[Machine]) -> dict[str, float]:
    """What a plain download gets over the links, Mbit/s of payload."""
    found = {"tracker to node": plain_rate(machines[0], machines[1])}
    if len(machines) > 2:
        found["node to node"] = plain_rate(machines[1], machines[2])
    say("links, Mbit/s of payload: " + ", ".join(f"{name} {rate:.1f}" for name, rate in found.items()))
    return {name: round(rate, 2) for name, rate in found.items()}


def _tracker(started: Daemons, plan: Plan, folder: Path, machine: Machine, kind: str) -> Daemon:
    say(f"starting the tracker, {kind}")
    name, ports = ("tracker", 5050) if kind == "plain" else ("tracker-tls", 5150)
    settings = tracker_settings(folder, machine.address, name=name, ports=ports, plain=kind == "plain")
    tracker = started.start("tracker", name, settings, machine.command, plan.tracker_sets)
    tracker.wait()
    return tracker


def _push(bench: Bench, size: int, seed: str) -> tuple[str, int]:
    """A new image of about ``size`` bytes, pushed to the tracker on its own machine; its tag and exact size."""
    say(f"making and pushing an image of {size / MB:.0f} MB in {bench.plan.layers} layers")
    folder = bench.folder / f"image-{seed}"
    layers = bench.plan.layers
    image = make_image(Layout(folder), layers=layers, layer_bytes=size // layers, seed=f"{seed}/{time.time_ns()}")
    facts = bench.tracker.facts
    keys = ("url", "username", "password")
    bench.machines[0].agent.ask("push", layout=str(folder), tag=seed, **{key: facts[key] for key in keys})
    shutil.rmtree(folder)
    return seed, sum(blob.size for blob in image.blobs)


def _swarm_round(bench: Bench, turn: int) -> Pulls:
    """All nodes, new and empty, pull the same image."""
    tag, size = _push(bench, bench.plan.size, f"swarm{turn}")
    say(f"starting {len(bench.nodes)} nodes")
    nodes = [_node(bench, machine, turn) for machine in bench.nodes]
    for node in nodes:
        node.wait()
    usage.calm(bench.plan.calm)
    say(f"all pull; the bound is {bench.plan.bound(size):.2f} s")
    found = _pull_all(bench, [str(node.facts["url"]) for node in nodes], tag, size, nodes)
    found.bound = bench.plan.bound(size)
    for machine, node, client in zip(bench.nodes, nodes, found.clients, strict=True):
        page = machine.agent.ask("metrics", url=node.facts["metrics_url"])["text"]
        fetched = counters(page, "p2pregistry_fetched_bytes_total", "source")
        client["sources"] = fetched
        for source, count in fetched.items():
            found.sources[source] = found.sources.get(source, 0) + count
        found.peaks[node.name] = measure.peak_rss(node.pid) or 0.0
    found.peaks["tracker"] = measure.peak_rss(bench.tracker.pid) or 0.0
    bench.daemons.stop(nodes)
    for machine in bench.nodes:
        shutil.rmtree(bench.folder / f"{_name(machine)}-{turn}")
    return found


def _name(machine: Machine) -> str:
    return machine.name.replace(" ", "")


def _node(bench: Bench, machine: Machine, turn: int) -> Daemon:
    settings = node_settings(bench.folder / f"{_name(machine)}-{turn}", bench.tracker, zone=machine.link.zone)
    return bench.daemons.start("node", _name(machine), settings, machine.command, bench.plan.sets)


def _direct_round(bench: Bench, turn: int, size: int) -> Pulls:
    """The same clients take an image from the tracker's registry API."""
    tag, size = _push(bench, size, f"direct{turn}")
    usage.calm(bench.plan.calm)
    expected = bench.plan.direct_bound(size)
    say(f"all download from the tracker; the bound is {expected:.2f} s")
    found = _pull_all(bench, [str(bench.tracker.facts["url"])] * len(bench.nodes), tag, size, [])
    found.bound = expected
    return found


def _short(plan: Plan) -> int:
    """The size of an image that all can have from the tracker in DIRECT_SECONDS."""
    return min(plan.size, int(DIRECT_SECONDS * plan.rates[0] / plan.nodes))


def _pull_all(bench: Bench, urls: Sequence[str], tag: str, size: int, nodes: Sequence[Daemon]) -> Pulls:
    watched = {"tracker": bench.tracker.pid, **{node.name: node.pid for node in nodes}}
    watched |= {f"client {_name(machine)}": machine.agent.pid for machine in bench.nodes}
    traffic = Traffic(bench.machines)
    with usage.Busy(traffic.look).watching() as busy:
        before = {name: usage.process_seconds(pid) for name, pid in watched.items()}
        sent, wire = _sent(bench), bench.machines[0].traffic()[1]
        at = time.monotonic() + HEAD_START
        for machine, url in zip(bench.nodes, urls, strict=True):
            machine.agent.tell("pull", base=url, repository=REPOSITORY, tag=tag, parallel=PARALLEL, at=at)
        clients = [machine.agent.answer("pull") for machine in bench.nodes]
        half = at + usage.percentile([client["seconds"] for client in clients], 0.5)
        time.sleep(0.5)  # one more look
        sent, wire = _sent(bench) - sent, bench.machines[0].traffic()[1] - wire
        cpu = {name: usage.process_seconds(pid) - before[name] for name, pid in watched.items()}
    last = at + max(client["seconds"] for client in clients)
    ours = sum(cpu.values()) / ((os.cpu_count() or 1) * (last - at))
    others = max(0.0, busy.share(at, last) - ours)
    for client in clients:
        if client["bytes"] != size:
            raise BenchError(f"a client got {client['bytes']} of {size} bytes")
    return Pulls(size, 1.0, clients, busy.share(at, half), cpu, others, sent, wire, traffic.seconds(at, last))


class Traffic:
    """What the links carry, looked at again and again."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._seen: list[tuple[float, list[tuple[int, int]]]] = []

    def look(self, now: float) -> None:
        """``now`` in monotonic seconds."""
        self._seen.append((now, [machine.traffic() for machine in self._machines]))

    def seconds(self, start: float, end: float) -> list[dict[str, float]]:
        """For each second between: percent of its rate that the tracker sent, and the nodes received and sent."""
        found = []
        marks = [start + second for second in range(int(end - start) + 1)]
        looks = [min(self._seen, key=lambda seen: abs(seen[0] - mark)) for mark in marks]
        for (t0, before), (t1, after) in itertools.pairwise(looks):
            received, sent = (
                [
                    100 * 8e-6 * (b[way] - a[way]) / (t1 - t0) / machine.link.rate
                    for a, b, machine in self._pair(before, after)
                ]
                for way in (0, 1)
            )
            nodes = len(self._machines) - 1
            shares = {"tracker": sent[0], "received": sum(received[1:]) / nodes, "sent": sum(sent[1:]) / nodes}
            found.append({name: round(share, 1) for name, share in shares.items()})
        return found

    def _pair(
        self, before: list[tuple[int, int]], after: list[tuple[int, int]]
    ) -> list[tuple[tuple[int, int], tuple[int, int], Machine]]:
        return list(zip(before, after, self._machines, strict=True))


def _sent(bench: Bench) -> int:
    """Bytes of blobs that the tracker has sent, to whom ever."""
    page = bench.machines[0].agent.ask("metrics", url=bench.tracker.facts["metrics_url"])["text"]
    return sum(counters(page, "p2pregistry_served_bytes_total", "to").values())


# ------------------------------------------------------------------------------------------------------- what it says


def _tell(name: str, found: Pulls) -> None:
    seconds = found.seconds
    say(
        f"{name}: p50 {usage.percentile(seconds, 0.5):.2f} s, max {max(seconds):.2f} s, bound {found.bound:.2f} s,"
        f" ratios {found.at(0.5):.3f} and {found.at(1):.3f}; the tracker sent {found.sent / found.size:.2f} images;"
        f" processors {found.busy:.0%} busy, {found.others:.0%} by others"
    )
    for name in ("tracker", "received", "sent"):
        whose = "sent by the tracker" if name == "tracker" else f"{name} by the nodes"
        say(f"  percent of the links, {whose}: " + " ".join(f"{second[name]:.0f}" for second in found.links))


def _report(report: Report, plan: Plan, swarmed: Sequence[Pulls], direct: Sequence[Pulls]) -> None:
    targets = plan.targets
    report.value("bound", [found.bound for found in swarmed], "s")
    for name, share, most in (("p50", 0.5, targets.p50), ("p99", 0.99, None), ("slowest", 1.0, targets.slowest)):
        report.value(f"{name} of {plan.nodes} nodes", [found.at(share) * found.bound for found in swarmed], "s")
        report.limit(f"{name} / bound", [found.at(share) for found in swarmed], "x", most=most)
    report.limit("tracker sent / image", [found.sent / found.size for found in swarmed], "x", most=targets.tracker)
    report.value("on the tracker's link / image", [found.wire / found.size for found in swarmed], "x")
    firsts = [[client["first_byte"] * 1000 for client in found.clients] for found in swarmed]
    report.value("first byte of a layer, p50", [usage.percentile(each, 0.5) for each in firsts], "ms")
    report.value("first byte of a layer, slowest", [max(each) for each in firsts], "ms")
    for source in swarmed[0].sources:
        shares = [100 * found.sources[source] / max(1, sum(found.sources.values())) for found in swarmed]
        if any(shares):
            report.value(f"bytes from: {source}", shares, "%")
    report.value("processors busy", [100 * found.busy for found in swarmed], "%")
    report.value("processors busy with what is not measured", [100 * found.others for found in swarmed], "%")
    report.value("CPU, tracker with Postgres", [found.cpu["tracker"] for found in swarmed], "s")
    for kind in ("node", "client"):
        most = [max(used for name, used in found.cpu.items() if name.startswith(kind)) for found in swarmed]
        report.value(f"CPU, {kind} that used most", most, "s")
        every = [sum(used for name, used in found.cpu.items() if name.startswith(kind)) for found in swarmed]
        report.value(f"CPU, all {kind}s", every, "s")
    report.value("peak RSS, tracker", [found.peaks["tracker"] for found in swarmed], "MB")
    highest = [max(peak for name, peak in found.peaks.items() if name != "tracker") for found in swarmed]
    report.limit("peak RSS, largest node", highest, "MB", most=150.0)
    if direct:
        size = direct[0].size
        report.value(f"direct, {size / MB:.0f} MB: slowest", [max(found.seconds) for found in direct], "s")
        report.value("direct: slowest / its bound", [found.at(1) for found in direct], "x")
        report.value("direct: processors busy", [100 * found.busy for found in direct], "%")
        rates = [[found.size / MB / max(found.seconds) for found in kind] for kind in (swarmed, direct)]
        report.ratio("slowest node", rates[0], "MB/s", "direct", rates[1], None)
    report.details["rounds"] = [
        {"kind": kind, "bytes": found.size, "bound": found.bound, "clients": found.clients, "cpu_seconds": found.cpu}
        | {"peak_rss_mb": found.peaks, "busy": found.busy, "others": found.others, "links_percent": found.links}
        for kind, all_found in (("swarm", swarmed), ("direct", direct))
        for found in all_found
    ]


def _compare(report: Report, plain: Sequence[Pulls], secure: Sequence[Pulls]) -> None:
    """Rates, so that the ratio is below 1 where TLS is slower."""
    for name, share in (("p50", 0.5), ("slowest", 1.0)):
        rates = [
            [found.size / MB / usage.percentile(found.seconds, share) for found in kind] for kind in (secure, plain)
        ]
        report.ratio(f"TLS, {name}", rates[0], "MB/s", "plain", rates[1], 0.85)
    for kind, pulls in (("plain", plain), ("TLS", secure)):
        report.value(f"{kind}: CPU, all programs", [sum(found.cpu.values()) for found in pulls], "s")
        report.value(f"{kind}: processors busy", [100 * found.busy for found in pulls], "%")


def _judge_processors(report: Report, swarmed: Sequence[Pulls], direct: Sequence[Pulls], force: bool) -> None:
    busiest = max(found.busy for found in (*swarmed, *direct))
    if busiest <= BUSY:
        return
    why = f"the processors were {busiest:.0%} busy until half of the nodes had the image: not the links were the limit"
    if not force:
        raise BenchError(f"{why}. Ask for slower links or fewer nodes; --force shows the figures all the same")
    report.skipped["a valid measurement"] = f"{why} (shown because of --force)"
