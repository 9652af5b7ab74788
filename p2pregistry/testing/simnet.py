"""A network of real DHT drivers without sockets, for virtual time: hundreds of nodes in one test."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from random import Random

import trio

from p2pregistry.errors import BadContent, Unreachable
from p2pregistry.routing.driver import KadDriver, KadSettings
from p2pregistry.routing.kad.table import BITS, position
from p2pregistry.routing.kad.wire import Contact, Message, Reader, encode


class SimNetwork:
    """``rtt``: seconds a request and its answer take. Messages pass through the wire format."""

    def __init__(self, random: Random, *, rtt: float = 0.02) -> None:
        self.random = random
        self.rtt = rtt
        self.nodes: dict[bytes, KadDriver] = {}
        self.hung: set[bytes] = set()
        self.dead: set[bytes] = set()
        self.streams: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0

    def node(self, number: int, settings: KadSettings | None = None) -> KadDriver:
        """One more node; its ``run`` is to be started by the caller."""
        own = Contact(b"sim %06d" % number, (b"addr %d" % number,))
        driver = KadDriver(own, _SimTransport(self, own.peer_id), Random(self.random.random()), settings)  # noqa: S311 - reproducible, not secret
        self.nodes[own.peer_id] = driver
        return driver

    def acquaint(self) -> None:
        """Fill every node's table as a network that has run for long would: far peers at random, near ones all."""
        known = sorted((position(node.own.peer_id), node.own) for node in self.nodes.values())
        places = [where for where, _ in known]
        for peer_id, node in self.nodes.items():
            where = position(peer_id)
            for shared in range(BITS):
                low = (where >> (BITS - 1 - shared) ^ 1) << (BITS - 1 - shared)  # the first that shares so many bits
                start, end = bisect_left(places, low), bisect_left(places, low + (1 << (BITS - 1 - shared)))
                size = min(node.settings.bucket_size, end - start)
                for place in self.random.sample(range(start, end), size):
                    node.table.answered(known[place][1])
                left = where >> (BITS - 1 - shared) << (BITS - 1 - shared)
                if bisect_left(places, left + (1 << (BITS - 1 - shared))) - bisect_left(places, left) <= 1:
                    break  # nobody is nearer


class _SimTransport:
    def __init__(self, network: SimNetwork, sender: bytes) -> None:
        self._network = network
        self._sender = sender

    async def exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        network = self._network
        network.streams[messages[-1].kind.name] += 1
        network.in_flight += 1
        network.most_in_flight = max(network.most_in_flight, network.in_flight)
        try:
            return await self._exchange(to, messages)
        finally:
            network.in_flight -= 1

    async def _exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        network = self._network
        await trio.sleep(network.rtt / 2)
        if to.peer_id in network.hung or self._sender in network.hung:
            await trio.sleep_forever()
        if to.peer_id in network.dead or to.peer_id not in network.nodes:
            raise Unreachable("refused")
        node = network.nodes[to.peer_id]
        received = Reader().feed(b"".join(encode(m) for m in messages))
        replies = [node.serve(message, self._sender) for message in received]
        await trio.sleep(network.rtt / 2)
        if replies[-1] is None:
            raise BadContent("no answer")
        return replies[-1]

    async def probe(self, peer_id: bytes) -> Contact | None:
        await trio.sleep(self._network.rtt)
        if peer_id in self._network.hung:
            await trio.sleep_forever()
        node = self._network.nodes.get(peer_id)
        return node.own if node is not None and peer_id not in self._network.dead else None
