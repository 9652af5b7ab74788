"""A network of real DHT drivers without sockets, for virtual time: hundreds of nodes in one test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import trio

from p2pregistry.errors import BadContent, Unreachable
from p2pregistry.routing.driver import KadDriver, KadSettings
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

    def node(self, number: int, settings: KadSettings | None = None) -> KadDriver:
        """One more node; its ``run`` is to be started by the caller."""
        own = Contact(b"sim %06d" % number, (b"addr %d" % number,))
        driver = KadDriver(own, _SimTransport(self, own.peer_id), Random(self.random.random()), settings)  # noqa: S311 - reproducible, not secret
        self.nodes[own.peer_id] = driver
        return driver


class _SimTransport:
    def __init__(self, network: SimNetwork, sender: bytes) -> None:
        self._network = network
        self._sender = sender

    async def exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        network = self._network
        network.streams[messages[-1].kind.name] += 1
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
