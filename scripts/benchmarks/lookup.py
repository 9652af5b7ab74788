"""scripts/bench lookup: who holds a blob, through the DHT: real nodes on loopback, in a few processes.

The asker and the node with many blobs have a process each, the others share some. A third of the others is stopped
(they accept and never answer) and later another third killed; nobody is told, and the asker's first look-ups after that
count too. The time of a look-up is until the first provider is known and has answered; the asker keeps no record
itself, and looks up 20 keys a second. The same look-ups then on as many nodes with py-libp2p's own Kademlia.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio
from measure import say
from processes import BenchError
from report import Report
from simulated import simulate
from usage import machine_seconds, percentile

from p2pregistry.routing.dht import KAD_PROTOCOL
from p2pregistry.testing.dht_nodes import DhtProcess

GROUPS = 6  # processes that the other nodes share
EACH = 10  # keys that each of the other nodes provides
PAUSE = 0.05  # seconds from one look-up to the next
MANY = 1_000_000  # the number of the first of the many blobs
PATIENCE = 120.0  # seconds for the nodes to find each other, and for records to be sent


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--nodes", type=int, default=50, metavar="N", help="real nodes; the targets are for 50")
    parser.add_argument("--lookups", type=int, default=300, metavar="L", help="in each of the three states")
    parser.add_argument("--provides", type=int, default=10_000, metavar="P", help="blobs of one node; 0: leave it out")
    parser.add_argument("--simulated", type=int, metavar="N", help="so many nodes on virtual time instead")
    parser.add_argument("--alone", action="store_true", help="without py-libp2p's Kademlia beside it")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    if args.simulated:
        if args.simulated < 200:
            raise BenchError("--simulated must be at least 200")
        simulate(args.simulated, report)
        return
    if not 5 <= args.nodes <= 200:
        raise BenchError("--nodes must be from 5 to 200")
    with tempfile.TemporaryDirectory(prefix="p2pregistry-lookup-") as name:
        try:
            trio.run(_run, args, report, Path(name))
        except* (AssertionError, trio.TooSlowError) as group:
            raise BenchError(f"the nodes did not do as they were told: {group.exceptions[0]!r}") from group


async def _run(args: argparse.Namespace, report: Report, folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # trio's own, which leaves its insides whole
    random = Random(1)
    shares = _shares(args.nodes - 2)
    async with _ours(folder, shares) as net:
        report.details["nodes"] = args.nodes
        await _look_ups(net, args.lookups, report, random)
        if args.provides:
            await _provides(net, args.provides, report, random)
        third = max(1, len(net.groups) // 3)
        hung, killed = net.groups[:third], net.groups[third : 2 * third]
        for group in hung:
            group.process.signal(signal.SIGSTOP)
        await _look_ups(net, args.lookups, report, random, f"{sum(g.size for g in hung)} hung", hung)
        for group in hung:
            group.process.signal(signal.SIGCONT)
        await net.settle()
        for group in killed:
            group.process.signal(signal.SIGKILL)
        await _look_ups(net, args.lookups, report, random, f"{sum(g.size for g in killed)} killed", killed)
    if args.alone:
        report.skipped["py-libp2p"] = "--alone"
        return
    async with _theirs(shares) as (asker, provider, groups):
        await _theirs_measured(asker, provider, groups, report)


def _shares(count: int) -> list[int]:
    groups = min(GROUPS, count)
    return [count // groups + (place < count % groups) for place in range(groups)]


async def _until(asked: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, other processes set no event here. Raises TooSlowError."""
    with trio.fail_after(PATIENCE):
        while not await asked():  # noqa: ASYNC110 - see above
            await trio.sleep(0.2)


# Ours


@dataclass(slots=True)
class Group:
    """Nodes in one process; ``first`` is the number of the first key that they provide."""

    process: DhtProcess
    size: int
    first: int


@dataclass(slots=True)
class Net:
    """All the nodes."""

    asker: DhtProcess
    provider: DhtProcess
    groups: list[Group] = field(default_factory=list)

    @property
    def count(self) -> int:
        return 2 + sum(group.size for group in self.groups)

    async def settle(self) -> None:
        """Wait until every node knows nearly all it can know."""
        for process, size in [(self.asker, 1), (self.provider, 1), *((g.process, g.size) for g in self.groups)]:
            for place in range(size):
                await _until(partial(self._knows, process, place, 0.9 * min(self.count - 1, 15)))
        await _until(partial(self._knows, self.asker, 0, 0.9 * min(self.count - 1, 40)))

    async def _knows(self, process: DhtProcess, place: int, least: float) -> bool:
        return bool((await process.tell("at", place, "state"))["table"] >= least)


async def _start(*command: object) -> DhtProcess:
    pipe = subprocess.PIPE
    return DhtProcess(await trio.lowlevel.open_process([str(part) for part in command], stdin=pipe, stdout=pipe))


@asynccontextmanager
async def _ours(folder: Path, shares: Sequence[int]) -> AsyncIterator[Net]:
    say(f"starting {2 + sum(shares)} nodes in {2 + len(shares)} processes")
    async with AsyncExitStack() as stack:

        async def start(name: str, *seeds: str) -> DhtProcess:
            module = ("-m", "p2pregistry.testing.dht_process")
            process = await _start(sys.executable, *module, folder / name, KAD_PROTOCOL, *seeds)
            stack.push_async_callback(process.end)
            process.addrs = await process.line()
            return process

        provider = await start("provider")
        net = Net(await start("asker", *provider.addrs), provider)
        for place, size in enumerate(shares):
            process = await start(f"group{place}", *provider.addrs)
            await process.tell("add", size - 1)
            net.groups.append(Group(process, size, place * 1000))
        await net.settle()
        for group in net.groups:
            for place in range(group.size):
                await group.process.tell("at", place, "hold", group.first + place * EACH, EACH)
        for group in net.groups:
            for place in range(group.size):
                await _until(partial(group.process.tell, "at", place, "provided"))
        yield net


async def _look_ups(
    net: Net, count: int, report: Report, random: Random, state: str = "", without: Sequence[Group] = ()
) -> None:
    """Look up what the living hold; ``without`` are not among them."""
    alive = [group for group in net.groups if group not in without]
    await net.asker.tell("forget")
    seconds: list[float] = []
    missed = 0
    before = machine_seconds()
    for _ in range(count):
        group = random.choice(alive)
        answer = await net.asker.tell("find", group.first + random.randrange(group.size * EACH), 1)
        seconds.append(answer["seconds"])
        missed += not answer["peers"]
        await trio.sleep(PAUSE)
    after = machine_seconds()
    say(f"{state or 'all well'}: machine {(after[0] - before[0]) / (after[1] - before[1]):.0%} busy")
    _times(report, f"look-up, {state}" if state else "look-up", seconds, mean=21.0, p95=100.0)
    report.limit(f"not found{', ' if state else ''}{state}", [float(missed)], "of " + str(count), most=0.5)


def _times(report: Report, name: str, seconds: Sequence[float], mean: float | None, p95: float | None) -> None:
    each = [1000 * second for second in seconds]
    report.limit(f"{name}, mean", [sum(each) / len(each)], "ms", most=mean)
    report.limit(f"{name}, p95", [percentile(each, 0.95)], "ms", most=p95)
    report.value(f"{name}, median", [percentile(each, 0.5)], "ms")
    report.value(f"{name}, slowest", [max(each)], "ms")


async def _provides(net: Net, count: int, report: Report, random: Random) -> None:
    say(f"one node provides {count} blobs")
    cpu, began = await net.provider.tell("cpu"), time.monotonic()
    await net.provider.tell("hold", MANY, count)
    await _until(partial(net.provider.tell, "provided"))
    took = time.monotonic() - began
    used = await net.provider.tell("cpu") - cpu
    report.limit(f"{count} provides", [took], "s", most=60.0)
    report.value("provides, rate", [count / took], "/s")
    report.limit("provides, of a core", [100 * used / took], "%", most=30.0)
    keepers = [0] * count
    for process in (net.asker, *(group.process for group in net.groups)):
        for place, kept in enumerate(await process.tell("keepers", MANY, count)):
            keepers[place] += kept
    report.limit("provided, but kept by nobody", [float(keepers.count(0))], f"of {count}", most=0.5)
    report.value("fewest keepers of a record", [float(min(keepers))], "nodes")
    await net.asker.tell("forget")
    seconds: list[float] = []
    missed = 0
    for number in random.sample(range(MANY, MANY + count), min(count, 200)):
        answer = await net.asker.tell("find", number, 1)
        seconds.append(answer["seconds"])
        missed += answer["peers"] != [net.provider.peer_id]
    report.limit("provided, but not found", [float(missed)], f"of {len(seconds)}", most=0.5)
    _times(report, "look-up of what was provided", seconds, mean=None, p95=None)


# py-libp2p's own


@asynccontextmanager
async def _theirs(shares: Sequence[int]) -> AsyncIterator[tuple[DhtProcess, DhtProcess, list[DhtProcess]]]:
    say(f"starting {2 + sum(shares)} nodes with py-libp2p's Kademlia")
    program = Path(__file__).with_name("kademlia.py")
    async with AsyncExitStack() as stack:

        async def start(size: int, *seeds: str) -> DhtProcess:
            process = await _start(sys.executable, program, size, *seeds)
            stack.push_async_callback(process.end)
            process.addrs = await process.line()
            return process

        provider = await start(1)
        groups = [await start(size, *provider.addrs) for size in shares]
        asker = await start(1, *provider.addrs)
        least = min(sum(shares), 15)

        async def knows() -> bool:
            return bool(await asker.tell("table") >= least)

        await _until(knows)
        yield asker, provider, groups


async def _theirs_measured(
    asker: DhtProcess, provider: DhtProcess, groups: Sequence[DhtProcess], report: Report
) -> None:
    numbers = list(range(60))
    with trio.fail_after(300):
        took = await provider.tell("provide", 0, numbers)
        report.value("py-libp2p: provides, rate", [len(numbers) / took], "/s")
        third = max(1, len(groups) // 3)
        await _their_look_ups(asker, numbers[:40], report, "py-libp2p: look-up")
        for process in groups[:third]:
            process.signal(signal.SIGSTOP)
        await _their_look_ups(asker, numbers[40:44], report, "py-libp2p: look-up, hung")
        for process in groups[:third]:
            process.signal(signal.SIGCONT)
        for process in groups[third : 2 * third]:
            process.signal(signal.SIGKILL)
        await trio.sleep(1)
        await _their_look_ups(asker, numbers[44:], report, "py-libp2p: look-up, killed")


async def _their_look_ups(asker: DhtProcess, numbers: Sequence[int], report: Report, name: str) -> None:
    answers: list[Any] = await asker.tell("find", numbers, PAUSE)
    _times(report, name, [seconds for seconds, _ in answers], mean=None, p95=None)
    report.value(f"{name}, not found", [float(sum(not found for _, found in answers))], f"of {len(numbers)}")
