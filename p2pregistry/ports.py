"""Which ports ``up`` uses: the usual ones, or free ones where those are taken.

Node i has the block of four that begins at ``base + 10 * i`` and the tracker the one at ``base + 50``, so with the
default base of 5000 the first node and the tracker are where the documentation says they are.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

TRACKER_BLOCK = 5
#: Few programs have a usual port here, and Linux gives outgoing connections higher ones (32768 and up).
_QUIET = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one program; ``main`` is the pull API of a node, the registry API of the tracker."""

    main: int
    peer: int
    libp2p: int
    metrics: int


@dataclass(frozen=True, slots=True)
class AllPorts:
    tracker: Ports
    nodes: tuple[Ports, ...]


def choose(base: int, nodes: int) -> tuple[AllPorts, list[str]]:
    """Ports for a tracker and ``nodes`` nodes, and a line for each program that could not have its usual ones."""
    spare = iter(free_ports(4 * (nodes + 1)))
    return plan(base, nodes, is_free, lambda: next(spare))


def plan(base: int, nodes: int, free: Callable[[int], bool], any_free: Callable[[], int]) -> tuple[AllPorts, list[str]]:
    """``choose`` without sockets: ``free`` says whether a port can be had, ``any_free`` gives one that can."""
    notes: list[str] = []

    def block(name: str, index: int) -> Ports:
        first = base + 10 * index
        if base and first + 3 <= 65535:
            taken = [port for port in range(first, first + 4) if not free(port)]
            if not taken:
                return Ports(first, first + 1, first + 2, first + 3)
            other = Ports(any_free(), any_free(), any_free(), any_free())
            notes.append(f"port {taken[0]} is taken: {name} uses {other.main} in place of {first}")
            return other
        return Ports(any_free(), any_free(), any_free(), any_free())

    indexes = [index for index in range(nodes + 1) if index != TRACKER_BLOCK][:nodes]
    tracker = block("the tracker", TRACKER_BLOCK)
    return AllPorts(tracker, tuple(block(f"node {i + 1}", index) for i, index in enumerate(indexes))), notes


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of this machine's loopback addresses now."""
    with ExitStack() as stack:
        return _hold(stack, port) == port


def ipv6_loopback() -> bool:
    """Whether [::1] can be listened on."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Distinct ports that are free now: all are held until the last is found. Between this and the start of the program
    that listens, another one's outgoing connection could take a port that the system gives to those; so others are
    looked at first, in an order that two who choose at the same time do not share."""
    quiet = random.SystemRandom().sample(_QUIET, min(len(_QUIET), 20 * count)) if _ephemeral() >= _QUIET.stop else []
    found: list[int] = []
    with ExitStack() as stack:
        for port in [*quiet, *([0] * 20 * count)]:
            if len(found) == count:
                break
            if port := _hold(stack, port):
                found.append(port)
    return found


def _ephemeral() -> int:
    """The first port that the system gives to outgoing connections; 0 where it does not say."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _hold(stack: ExitStack, port: int) -> int:
    """Bind ``port`` (0: any) on 127.0.0.1 and [::1] until ``stack`` closes; 0 if it is taken."""
    families = [(socket.AF_INET, "127.0.0.1")] + ([(socket.AF_INET6, "::1")] if ipv6_loopback() else [])
    for family, host in families:
        probe = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # as servers do: the remains of closed connections do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        port = probe.getsockname()[1]
    return port
