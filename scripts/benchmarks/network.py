"""Machines on one network, each a network namespace with a link of a given rate, to a bridge in a namespace between.

The namespaces have no names: each is held by the processes in it alone, and those end when this process does, however
it ends. So nothing is left behind to be cleaned away, and the network of the machine itself is not touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import BenchError, find, running

AGENT = Path(__file__).with_name("agent.py")
DELAY = Path(__file__).with_name("delay.py")
#: What a link may send at once after a pause; a frame of 64 KiB, as the kernel hands them over, must fit.
BURST = 128 * 1024
#: Milliseconds that a full queue before a link takes to empty.
QUEUE_MS = 50
_NEEDED = ("ip", "tc", "unshare", "nsenter")


@dataclass(frozen=True, slots=True)
class Link:
    """The link of one machine: Mbit/s in each direction (10^6); machines of other zones are ``delay`` ms away."""

    rate: float
    zone: str = ""


class Agent:
    """The process that holds a namespace and does there what it is asked: one thing at a time."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self._process = name, process

    @property
    def pid(self) -> int:
        """Of the process; /proc/PID/ns/net is the namespace."""
        return self._process.pid

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Have it done. Raises BenchError with what went wrong there."""
        self.tell(do, **arguments)
        return self.answer(do)

    def tell(self, do: str, **arguments: object) -> None:
        """Have it begun; ``answer`` must follow."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as err:
            raise BenchError(f"the client in {self.name} has ended") from err

    def answer(self, do: str) -> dict[str, Any]:
        """What came of it. Raises BenchError with what went wrong there."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the client in {self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{do} in {self.name}: {answer['error']}")
        return answer


@dataclass(frozen=True, slots=True)
class Machine:
    """One namespace with its link, and the agent in it."""

    name: str
    address: str
    link: Link
    agent: Agent

    def traffic(self) -> tuple[int, int]:
        """Bytes that the link has carried so far, headers included: received, sent."""
        for line in Path(f"/proc/{self.agent.pid}/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == "eth0":
                fields = counters.split()
                return int(fields[0]), int(fields[8])
        raise BenchError(f"{self.name} has lost its link")

    def command(self, command: Sequence[str]) -> list[str]:
        """``command``, to be run in the machine."""
        return [*_inside(self.agent.pid), *command]


@contextmanager
def network(folder: Path, links: Sequence[Link], *, delay_ms: float = 0.0) -> Iterator[list[Machine]]:
    """A machine for each link, the address of the i-th is 10.77.0.(i + 1); all on one bridge, each link shaped to its
    rate in both directions. ``delay_ms`` is added to each way between machines of different zones, or between all
    where there are no zones. Raises BenchError where namespaces cannot be made.
    """
    check()
    with ExitStack() as stack:
        middle = stack.enter_context(_agent("the bridge", folder))
        _batch(middle.pid, "ip", ["link set lo up", "link add br0 type bridge", "link set br0 up"])
        machines = []
        for number, link in enumerate(links):
            name = "tracker" if number == 0 else f"node {number}"
            agent = stack.enter_context(_agent(name, folder))
            machine = Machine(name, f"10.77.0.{number + 1}", link, agent)
            _connect(middle.pid, number, machine, bridge="br0" if delay_ms == 0 else None)
            machines.append(machine)
        if delay_ms:
            zones = [link.zone for link in links]
            command = [*_inside(middle.pid), sys.executable, str(DELAY), str(delay_ms), *zones]
            stack.enter_context(_switch(command, folder / "delay.log"))
            for number in range(len(links)):
                _batch(middle.pid, "ip", [f"link set t{number} master b{number} up"])
        yield machines


def plain_rate(sender: Machine, receiver: Machine) -> float:
    """What a plain download gets over two links, Mbit/s of payload. Raises BenchError if that is not what was asked."""
    wanted = min(sender.link.rate, receiver.link.rate)
    size = int(wanted * 1e6 / 8 * 1.5)
    port = sender.agent.ask("source", size=size)["port"]
    rate = float(receiver.agent.ask("sink", host=sender.address, port=port, size=size)["rate"]) * 8 / 1e6
    if not 0.85 * wanted < rate < 1.05 * wanted:
        raise BenchError(f"{sender.name} to {receiver.name}: {rate:.1f} Mbit/s on links that are shaped to {wanted:g}")
    return rate


def check() -> None:
    """Raises BenchError that says why namespaces cannot be made here."""
    if os.geteuid() != 0:
        raise BenchError("network namespaces and shaped links need root: run it as root (sudo scripts/bench swarm)")
    missing = [program for program in _NEEDED if find(program) is None]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)")
    script = "ip link add p type veth peer name q && tc qdisc add dev p root tbf rate 1mbit burst 16kb latency 50ms"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"network namespaces with shaped links cannot be made here: {done.stderr.strip()}")


def _connect(middle: int, number: int, machine: Machine, *, bridge: str | None) -> None:
    """The link of one machine; to the bridge, or to one of its own that a delay is put behind later."""
    port, rate = f"p{number}", f"{machine.link.rate:g}mbit"
    own = [] if bridge else [f"link add b{number} type bridge", f"link set b{number} up"]
    pair = f"link add {port} type veth peer name eth0 netns {machine.agent.pid}"
    _batch(middle, "ip", [*own, pair, f"link set {port} master {bridge or f'b{number}'} up"])
    up = ["link set lo up", f"addr add {machine.address}/24 dev eth0", "link set eth0 up"]
    # the congestion control most machines have, whatever is the default of this one
    route = f"route change 10.77.0.0/24 dev eth0 src {machine.address} congctl cubic"
    _batch(machine.agent.pid, "ip", [*up, route])
    shape = f"root tbf rate {rate} burst {BURST} latency {QUEUE_MS}ms"
    _batch(middle, "tc", [f"qdisc add dev {port} {shape}"])
    _batch(machine.agent.pid, "tc", [f"qdisc add dev eth0 {shape}"])


def _inside(pid: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def _batch(pid: int, program: str, lines: Sequence[str]) -> None:
    """``ip`` or ``tc`` in the namespace of a process, one line at a time."""
    text = "\n".join(lines)
    done = subprocess.run([*_inside(pid), program, "-batch", "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{program}: {done.stderr.strip()} (of: {text})")


@contextmanager
def local_agent(folder: Path) -> Iterator[Agent]:
    """A client on this machine itself."""
    with _agent("the client", folder, ()) as agent:
        yield agent


@contextmanager
def _agent(name: str, folder: Path, inside: Sequence[str] = ("unshare", "--net")) -> Iterator[Agent]:
    command = [*inside, sys.executable, "-P", str(AGENT)]
    with (folder / "agents.log").open("ab") as log, running(command, log, pipes=True) as process:
        agent = Agent(name, process)
        agent.ask("hello")  # from then on the namespace is there
        yield agent


@contextmanager
def _switch(command: Sequence[str], path: Path) -> Iterator[None]:
    with path.open("wb") as log, running(command, log, pipes=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError(f"the delay could not be made:\n{path.read_text()}")
        yield
