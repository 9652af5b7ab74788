"""One DHT node as a process, for tests that stop and kill nodes.

Commands come in on stdin and answers go out on stdout, one JSON value a line. The first line out is the node's
addresses. Commands: ``["hold", first, count]`` (the digests of the numbers from ``first``), ``["drop", first, count]``,
``["find", number, limit]``, ``["state"]``, ``["provided"]``, ``["cpu"]``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Peer
from p2pregistry.routing.dht import DhtConfig, DhtRouter, open_dht
from p2pregistry.routing.driver import KadSettings
from p2pregistry.routing.hello import Hello


def numbered(number: int) -> Digest:
    """The digest tests call by this number."""
    return Digest.of(str(number).encode())


async def obey(router: DhtRouter, command: list[object]) -> object:
    """Do one command; the answer."""
    match command:
        case ["hold", int(first), int(count)]:
            router.hold([numbered(n) for n in range(first, first + count)])
            return True
        case ["drop", int(first), int(count)]:
            router.drop([numbered(n) for n in range(first, first + count)])
            return True
        case ["find", int(number), int(limit)]:
            found: list[Peer] = []
            start = time.monotonic()
            await router.find(numbered(number), found.append, limit=limit)
            return {"peers": [p.peer_id for p in found], "seconds": time.monotonic() - start}
        case ["state"]:
            return {"table": len(router.driver.table), "records": len(router.driver.store)}
        case ["provided"]:
            return all(held.given and not held.under_way for held in router.driver.announcer._held.values())
        case ["cpu"]:
            return time.process_time()
        case _:
            raise ValueError(f"no such command: {command}")


async def main(key_file: str, protocol: str, bootstrap: tuple[str, ...]) -> None:
    """Serve commands until stdin ends."""
    settings = KadSettings(request_timeout=3.0)
    hello = Hello((f"http://127.0.0.1:{os.getpid()}",))
    config = DhtConfig(Path(key_file), "127.0.0.1", 0, None, bootstrap, hello, protocol, settings)
    async with open_dht(config) as router:
        say(router.addrs)
        async for line in trio.wrap_file(sys.stdin):
            say(await obey(router, json.loads(line)))


def say(value: object) -> None:
    """One line out."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], tuple(sys.argv[3:]))
