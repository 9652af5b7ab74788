"""Nodes with py-libp2p's own Kademlia in one process, driven as ``p2pregistry.testing.dht_process`` is.

Arguments: how many nodes, then multiaddrs to join through. Commands on stdin, answers on stdout: ``["table"]`` (the
smallest routing table), ``["provide", place, [numbers]]`` and ``["find", [numbers], pause]`` (by the first node:
seconds and providers of each, what it had stored or cached being forgotten first).

Settings are the library's, with two exceptions, without which it could not be measured: its servers drop all but ten
records in ten seconds from one sender, and the extra wait of 250 ms after each dial is left out.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import libp2p
import libp2p.network.swarm as library_swarm
import trio
from libp2p.abc import IHost
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from p2pregistry.routing.kad.wire import blob_key
from p2pregistry.testing.dht_process import numbered, say

logging.getLogger("libp2p").setLevel(logging.CRITICAL)


def key_of(number: int) -> str:
    """The library takes a multihash in hexadecimal."""
    return blob_key(numbered(number).raw).hex()


async def start(stack: AsyncExitStack, seeds: list[str]) -> tuple[IHost, KadDHT]:
    """One more node."""
    pair = libp2p.generate_new_ed25519_identity()
    noise = Transport(pair, noise_privkey=create_new_key_pair().private_key)
    host = libp2p.new_host(key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})
    await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
    for seed in seeds:
        await host.connect(info_from_p2p_addr(Multiaddr(seed)))
    dht = KadDHT(host, DHTMode.SERVER)
    setattr(dht, "_provider_rate_max", 100_000)  # noqa: B010 - private, and the point
    await stack.enter_async_context(background_trio_service(dht))
    return host, dht


async def find(dht: KadDHT, numbers: list[int], pause: float) -> list[Any]:
    """Look up each number once."""
    found: list[Any] = []
    for number in numbers:
        dht.provider_store.providers.clear()
        began = time.monotonic()
        providers = await dht.find_providers(key_of(number), count=1)
        found.append([time.monotonic() - began, sorted({str(p.peer_id) for p in providers})])
        await trio.sleep(pause)
    return found


async def main(count: int, seeds: list[str]) -> None:
    """Serve commands until stdin ends."""
    setattr(library_swarm, "_HAPPY_EYEBALLS_DELAY", 0.01)  # noqa: B010 - private, and the point
    async with AsyncExitStack() as stack:
        nodes: list[tuple[IHost, KadDHT]] = []
        for _ in range(count):
            nodes.append(await start(stack, seeds))
            seeds = seeds or [str(nodes[0][0].get_addrs()[0])]
        say([str(host.get_addrs()[0]) for host, _ in nodes])
        async for line in trio.wrap_file(sys.stdin):
            match json.loads(line):
                case ["table"]:
                    say(min(dht.routing_table.size() for _, dht in nodes))
                case ["provide", int(place), list(numbers)]:
                    began = time.monotonic()
                    for number in numbers:
                        await nodes[place][1].provide(key_of(number))
                    say(time.monotonic() - began)
                case ["find", list(numbers), float(pause)]:
                    say(await find(nodes[0][1], numbers, pause))
                case command:
                    raise ValueError(f"no such command: {command}")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2:])
