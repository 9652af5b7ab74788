"""One DHT node as a process, for tests that stop and kill nodes.

Commands come in on stdin and answers go out on stdout, one JSON value a line. The first line out is the node's
addresses. Commands: ``["hold", first, count]`` (the digests of the numbers from ``first``), ``["drop", first, count]``,
``["find", number, limit]``, ``["state"]``, ``["provided"]``, ``["cpu"]``, ``["forget"]`` (the records kept for others),
``["keepers", first, count]`` (how many of this process's nodes keep a record of each number).

``["add", count]`` starts further nodes in the same process and says their addresses; ``["at", place, ...]`` is a
command for one of them, the first being 0.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Peer
from p2pregistry.routing.dht import DhtConfig, DhtRouter, open_dht
from p2pregistry.routing.driver import KadSettings
from p2pregistry.routing.hello import Hello
from p2pregistry.routing.kad.store import ProviderStore
from p2pregistry.routing.kad.wire import blob_key


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
        case ["forget"]:
            router.driver.store = ProviderStore()
            return True
        case _:
            raise ValueError(f"no such command: {command}")


def keepers(routers: Sequence[DhtRouter], first: int, count: int) -> list[int]:
    """How many of these nodes keep a record of each number."""
    keys = [blob_key(numbered(number).raw) for number in range(first, first + count)]
    now = trio.current_time()
    return [sum(bool(router.driver.store.find(key, now)) for router in routers) for key in keys]


async def main(key_file: str, protocol: str, bootstrap: tuple[str, ...]) -> None:
    """Serve commands until stdin ends."""
    settings = KadSettings(request_timeout=3.0)
    hello = Hello((f"http://127.0.0.1:{os.getpid()}",))
    routers: list[DhtRouter] = []
    async with AsyncExitStack() as stack:

        async def start(seeds: tuple[str, ...]) -> list[str]:
            path = Path(f"{key_file}{len(routers) or ''}")
            config = DhtConfig(path, "127.0.0.1", 0, None, seeds, hello, protocol, settings)
            routers.append(await stack.enter_async_context(open_dht(config)))
            return routers[-1].addrs

        say(await start(bootstrap))
        async for line in trio.wrap_file(sys.stdin):
            match json.loads(line):
                case ["add", int(count)]:
                    say([await start(bootstrap or tuple(routers[0].addrs)) for _ in range(count)])
                case ["keepers", int(first), int(count)]:
                    say(keepers(routers, first, count))
                case ["at", int(place), *command]:
                    say(await obey(routers[place], command))
                case command:
                    say(await obey(routers[0], command))


def say(value: object) -> None:
    """One line out."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], tuple(sys.argv[3:]))
