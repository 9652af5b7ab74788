"""What the kernel says of processor time: of the machine and of processes, from /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # the fields idle and iowait of the first line of /proc/stat
_EVERY = 0.25  # seconds between two looks


def machine_seconds() -> tuple[float, float]:
    """Processor seconds since the machine has started: busy (what others took of a virtual machine included), all."""
    fields = [int(field) / _TICK for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    total = sum(fields)
    return total - sum(fields[index] for index in _IDLE), total


def process_seconds(pid: int) -> float:
    """Processor seconds of a process and its descendants, those that have ended included. 0 if it is gone."""
    return sum(_own_seconds(each) for each in (pid, *_descendants(pid)))


def _own_seconds(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15]) / _TICK if fields else 0.0


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(int(path.name))):
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found: list[int] = []
    left = [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


class Busy:
    """How busy the machine was, looked at again and again; ``also`` is called as often. Times are monotonic seconds."""

    def __init__(self, also: Callable[[float], None] = lambda _now: None) -> None:
        self._also = also
        self._seen: list[tuple[float, float, float]] = []
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[Busy]:
        """From here to the end of the block."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while True:
            self._seen.append((time.monotonic(), *machine_seconds()))
            self._also(time.monotonic())
            if self._stop.wait(_EVERY):
                return

    def share(self, start: float, end: float) -> float:
        """The part of all processors' time that was busy between two moments, 0 to 1."""
        first, last = self._nearest(start), self._nearest(end)
        return (last[1] - first[1]) / (last[2] - first[2]) if last[2] > first[2] else 0.0

    def _nearest(self, moment: float) -> tuple[float, float, float]:
        return min(self._seen, key=lambda seen: abs(seen[0] - moment))


def calm(within: float, most: float = 0.1) -> bool:
    """Wait until the machine has been less busy than ``most`` for a second; whether it came to that in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        before = machine_seconds()
        time.sleep(1)
        after = machine_seconds()
        if after[0] - before[0] < most * (after[1] - before[1]):
            return True
    return False


def memory_free() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; of few samples the higher ones are the highest."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
