"""Starts ``dht_process`` nodes and talks to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

_START = 60.0


class DhtProcess:
    """A running node. ``addrs`` and ``peer_id`` are its own."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""
        self.addrs: list[str] = []

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def peer_id(self) -> str:
        """In base58."""
        return self.addrs[0].rpartition("/")[2]

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def line(self) -> Any:
        """The next line it says; AssertionError if it ends or says nothing for a minute."""
        assert self._process.stdout is not None
        with trio.fail_after(_START):
            while b"\n" not in self._buffer:
                data = await self._process.stdout.receive_some()
                assert data, "the node ended"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def tell(self, *command: object) -> Any:
        """Give it a command; its answer."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")
        return await self.line()

    async def end(self) -> None:
        """Kill it, whatever state it is in, and wait for its end."""
        if self._process.returncode is None:
            self._process.kill()
        with trio.CancelScope(shield=True):
            await self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    await pipe.aclose()


@asynccontextmanager
async def dht_processes(
    directory: Path, count: int, *, protocol: str, bootstrap: tuple[str, ...] = ()
) -> AsyncIterator[list[DhtProcess]]:
    """So many nodes that know each other; killed at the end, stopped ones too."""
    made: list[DhtProcess] = []
    try:
        for i in range(count):
            seeds = made[0].addrs if made else bootstrap
            command = [sys.executable, "-m", "p2pregistry.testing.dht_process", str(directory / f"{i}.key"), protocol]
            pipe = subprocess.PIPE
            made.append(DhtProcess(await trio.lowlevel.open_process([*command, *seeds], stdin=pipe, stdout=pipe)))
            if i == 0:
                made[0].addrs = await made[0].line()
        for node in made[1:]:
            node.addrs = await node.line()
        with trio.fail_after(_START):
            for node in made:
                while (await node.tell("state"))["table"] < min(count - 1, 15):  # noqa: ASYNC110 - see below
                    await trio.sleep(0.1)  # the node is asked again, in another process: no event to wait for
        yield made
    finally:
        for node in made:
            await node.end()
