"""A switch in user space that hands frames on after a while, for kernels without netem.

Usage: delay.py MILLISECONDS ZONE... makes a TAP device t0, t1, ... in this network namespace for each zone given, and
carries frames between them. A frame to a device of another zone is kept for so long; where all zones are the same, a
frame to any other. Frames keep their order; nothing is lost or shaped here. The kernel hands over frames of up to
64 KiB, so that one core carries some Gbit/s. Says "ready" on standard output; ends when standard input is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import select
import struct
import sys
import time

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
TAP, NO_PI, VNET_HDR = 0x0002, 0x1000, 0x4000
CHECKSUMS, TSO4, TSO6 = 0x01, 0x02, 0x04
HEADER = 10  # bytes of struct virtio_net_hdr before each frame
FRAME = 70_000  # bytes; more than any
AT_ONCE = 32  # frames read from one device before the next has its turn


def open_tap(name: str) -> int:
    """A TAP device that passes large frames as they are."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_PI | VNET_HDR))
    fcntl.ioctl(device, TUNSETOFFLOAD, CHECKSUMS | TSO4 | TSO6)
    return device


class Switch:
    """Frames in, later out. Times are monotonic seconds."""

    def __init__(self, delay: float, zones: list[str]) -> None:
        self._devices = [open_tap(f"t{number}") for number in range(len(zones))]
        one = len(set(zones)) == 1
        self._delay = [[delay if one or a != b else 0.0 for b in zones] for a in zones]
        self._at: dict[bytes, int] = {}  # Ethernet address -> device
        self._waiting: list[tuple[float, int, int, bytes]] = []  # due, number, device, frame
        self._number = 0
        self._poll = select.epoll()
        for device in self._devices:
            self._poll.register(device, select.EPOLLIN)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)

    def run(self) -> None:
        """Until standard input is closed."""
        numbers = {device: number for number, device in enumerate(self._devices)}
        while True:
            self._hand_over()
            wait = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else -1
            for device, _ in self._poll.poll(wait):
                if device == sys.stdin.fileno():
                    return
                self._take(numbers[device])

    def _hand_over(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, number, frame = heapq.heappop(self._waiting)
            with contextlib.suppress(OSError):  # a switch with a full queue drops, too
                os.write(self._devices[number], frame)

    def _take(self, number: int) -> None:
        for _ in range(AT_ONCE):
            try:
                frame = os.read(self._devices[number], FRAME)
            except OSError:  # nothing now, or not up yet
                return
            now = time.monotonic()
            self._at[frame[HEADER + 6 : HEADER + 12]] = number
            to = self._at.get(frame[HEADER : HEADER + 6])
            for other in range(len(self._devices)) if to is None else (to,):
                if other != number:
                    self._number += 1
                    due = now + self._delay[number][other]
                    heapq.heappush(self._waiting, (due, self._number, other, frame))


def main() -> None:
    switch = Switch(float(sys.argv[1]) / 1000, sys.argv[2:])
    print("ready", flush=True)
    switch.run()


if __name__ == "__main__":
    main()
