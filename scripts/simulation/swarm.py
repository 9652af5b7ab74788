"""A swarm of the real plans and the tracker's real seeding over modelled links, on virtual time."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from links import Clock, Link, Transfer

from p2pregistry.pull.bits import Randrange
from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.plan import Plan
from p2pregistry.pull.seeding import Seeding

MIB = 1 << 20
MBIT = 125_000
TRACKER = 0


@dataclass(frozen=True)
class Model:
    """What is simulated. Rates in Mbit/s, times in seconds, shares as parts of one."""

    nodes: int = 16
    mib: int = 48
    layers: int = 1
    up: float = 40.0
    down: float = 40.0
    tracker_up: float = 40.0
    delay: float = 0.0005
    uploads: int = 5
    tracker_uploads: int = 4
    #: peers whose have-streams a node follows, and how many an announce names
    watch: int = 12
    named: int = 30
    announce: float = 3.0
    batch: float = 0.05
    #: time to verify and write a piece
    write: float = 0.004
    #: seconds over which nodes start
    start: float = 0.05
    zones: int = 1
    #: what a node may send to other zones, and the delay there
    zone_up: float = 0.0
    zone_delay: float = 0.0
    #: shares of the nodes: those that die on the way, that start late, that answer no request for a piece though they
    #: tell what they have, that send wrong bytes. ``churn``: half of them die, half start late
    churn: float = 0.0
    die: float = 0.0
    late: float = 0.0
    hung: float = 0.0
    corrupt: float = 0.0
    #: "own": the tracker's own rule; "random": any wanted piece, and never none
    seeding: str = "own"
    #: links are shared exactly (slow), not nearly
    exact: bool = False
    seed: int = 1
    until: float = 36_000.0
    limits: Limits = field(default_factory=Limits)

    @property
    def bound(self) -> float:
        """Seconds that no way of distributing can beat for all: the tracker sends each byte once, each node receives
        each once, and all uplinks that serve together send what all nodes receive."""
        size, source, node = self.mib * MIB, self.tracker_up * MBIT, self.up * MBIT
        serving = self.nodes - round(self.hung * self.nodes) - round(self.corrupt * self.nodes)
        return max(size / source, size / (self.down * MBIT), self.nodes * size / (source + serving * node))


class RandomSeeding:
    """To compare with: the tracker sends whatever is asked for, without memory."""

    def __init__(self, randrange: Randrange) -> None:
        self._randrange = randrange

    def choose(self, wanted: bytes, now: float) -> tuple[int | None, float]:  # noqa: ARG002
        some = [index for index, want in enumerate(wanted) if want]
        return (some[self._randrange(len(some))], 0.0) if some else (None, 1.0)

    def returned(self, index: int) -> None:
        """Nothing was remembered."""


class Ask:
    """One request at one server, from the asking to the last byte."""

    __slots__ = ("end", "flight", "id", "next", "pieces", "server", "state", "transfer", "wanted")

    def __init__(self, flight: Flight, id_: int, server: Server, pieces: range | None, wanted: bytes = b"") -> None:
        self.flight, self.id, self.server, self.wanted = flight, id_, server, wanted
        self.pieces = pieces or range(0)
        self.next = self.pieces.start
        self.state = "queued"
        self.transfer: Transfer | None = None


class Server:
    """What sends pieces: a node's peer API, or the tracker's. Whole requests first-in-first-out over few slots."""

    def __init__(self, name: int, up: Link, slots: int) -> None:
        self.name, self.up, self.slots = name, up, slots
        self.queue: deque[Ask] = deque()
        self.active = 0
        self.hung = self.corrupt = self.dead = False
        self.sent = 0


class Flight:
    """One layer's download in one node."""

    def __init__(self, node: Node, layer: int, plan: Plan, count: int) -> None:
        self.node, self.layer, self.plan, self.count = node, layer, plan, count
        self.have = bytearray(count)
        self.news: list[int] = []
        self.position = 0
        self.asks: dict[int, Ask] = {}
        self.done = False


class Node(Server):
    def __init__(self, name: int, up: Link, down: Link, cross: Link | None, slots: int, zone: int) -> None:
        super().__init__(name, up, slots)
        self.down, self.cross, self.zone = down, cross, zone
        self.flights: list[Flight] = []
        #: whose have-streams it follows, and who follows its own
        self.peers: dict[int, Node] = {}
        self.followers: dict[int, Node] = {}
        self.banned: set[int] = set()
        self.begun = self.first = self.half = self.finished = -1.0
        self.gave_up = ""


class Swarm:
    def __init__(self, model: Model) -> None:
        self.model, self.clock, self.chance = model, Clock(exact=model.exact), random.Random(model.seed)
        chance, up, down = self.chance, model.up * MBIT, model.down * MBIT
        self.tracker = Server(TRACKER, Link(model.tracker_up * MBIT), model.tracker_uploads)
        self.counts = [model.mib // model.layers] * model.layers
        self.counts[0] += model.mib - sum(self.counts)
        self.seeding: list[Seeding | RandomSeeding] = [
            Seeding(count, randrange=chance.randrange) if model.seeding == "own" else RandomSeeding(chance.randrange)
            for count in self.counts
        ]
        self.nodes: dict[int, Node] = {}
        self.present: list[Node] = []
        self.places: list[list[Node]] = [[] for _ in range(model.zones)]
        self.running = model.nodes
        self.duplicate = self.crossed = self.wrong = 0
        for name in range(1, model.nodes + 1):
            cross = Link(model.zone_up * MBIT) if model.zone_up else None
            self.nodes[name] = Node(name, Link(up), Link(down), cross, model.uploads, name % model.zones)
        self._faults()

    def _faults(self) -> None:
        """Draw who fails, and let all begin."""
        model, names = self.model, list(self.nodes)
        self.chance.shuffle(names)
        half = model.churn / 2
        starts = {name: self.chance.random() * model.start for name in self.nodes}
        shares = {"hung": model.hung, "corrupt": model.corrupt, "die": model.die + half, "late": model.late + half}
        for what, share in shares.items():
            some = round(share * model.nodes)
            for name in names[:some]:
                if what == "die":
                    self.clock.after(self.chance.uniform(0.1, 0.9) * model.bound, self._die, self.nodes[name])
                elif what == "late":
                    starts[name] = self.chance.random() * model.bound
                else:
                    setattr(self.nodes[name], what, True)
            del names[:some]
        for name, start in starts.items():
            self.clock.after(start, self._begin, self.nodes[name])

    def run(self) -> Swarm:
        self.clock.run(lambda: self.running > 0, self.model.until)
        return self

    # -- a node's life --------------------------------------------------------------------------------------------

    def _begin(self, node: Node) -> None:
        if node.dead:
            return
        model, now = self.model, self.clock.now
        node.begun = now
        self.present.append(node)
        self.places[node.zone].append(node)
        for layer, count in enumerate(self.counts):
            plan = Plan(count, now=now, randrange=self.chance.randrange, limits=model.limits)
            node.flights.append(Flight(node, layer, plan, count))
        for flight in node.flights:
            self._obey(flight, flight.plan.joined("0", "tracker", now))
            self._obey(flight, flight.plan.reader(1, 0, now))
            self._obey(flight, flight.plan.begin(now))
            self._tick(flight)
        self.clock.after(2 * model.delay, self._announce, node)

    def _announce(self, node: Node) -> None:
        """The tracker's answer: the crowd's size and some others, half of them of the zone."""
        if node.dead or node.finished >= 0:
            return
        model, now, chance = self.model, self.clock.now, self.chance
        if len(node.peers) < model.watch:
            here, all_ = self.places[node.zone], self.present
            named = chance.sample(here, min(len(here), model.named // 2 if model.zones > 1 else 0))
            named += chance.sample(all_, min(len(all_), model.named - len(named)))
            for other in named:
                if len(node.peers) >= model.watch:
                    break
                if other is not node and other.name not in node.peers and len(other.peers) < 2 * model.watch:
                    self._meet(node, other)
                    self._meet(other, node)
        finished = model.nodes - self.running
        wanting, holding = max(0, len(self.present) - finished - 1), finished
        for flight in node.flights:
            self._tell(flight, flight.plan.crowd(wanting, holding, now))
            if not flight.done:
                self._tell(flight, flight.plan.looked_up(now))
        self.clock.after(model.announce * (0.8 + 0.4 * chance.random()), self._announce, node)

    def _meet(self, node: Node, other: Node) -> None:
        """``node`` follows ``other`` from now on."""
        if other.name in node.peers or other.name in node.banned:
            return
        node.peers[other.name], other.followers[node.name] = other, node
        near = self.model.zones > 1 and node.zone == other.zone
        for flight, theirs in zip(node.flights, other.flights, strict=True):
            if not flight.done:
                have = None if theirs.done else bytes(theirs.have)
                now = self.clock.now
                self._tell(flight, flight.plan.joined(str(other.name), "peer", now, have=have, near=near))

    def _die(self, node: Node) -> None:
        if node.finished >= 0 or node.dead:
            return
        node.dead = True
        self.running -= 1
        if node in self.present:
            self.present.remove(node)
            self.places[node.zone].remove(node)
        for flight in node.flights:
            for ask in list(flight.asks.values()):
                self._stop(ask)
        for other in node.peers.values():
            other.followers.pop(node.name, None)
        for other in node.followers.values():
            other.peers.pop(node.name, None)
            for flight in other.flights:
                for ask in [ask for ask in flight.asks.values() if ask.server is node]:
                    self._stop(ask)
                    self._tell(flight, flight.plan.failed(ask.id, "connection reset", self.clock.now))
                self._tell(flight, flight.plan.left(str(node.name), self.clock.now))
        node.queue.clear()

    def _tick(self, flight: Flight) -> None:
        if flight.done or flight.node.dead:
            return
        now, plan = self.clock.now, flight.plan
        for ask in flight.asks.values():
            if ask.transfer is not None:
                plan.heard(ask.id, now)
        self._obey(flight, plan.tick(now))
        wake = plan.wake_at(now)
        self.clock.after(0.25 if wake is None else min(0.25, max(0.02, wake - now)), self._tick, flight)

    # -- commands -------------------------------------------------------------------------------------------------

    def _tell(self, flight: Flight, commands: list[Command]) -> None:
        if commands:
            self._obey(flight, commands)

    def _obey(self, flight: Flight, commands: list[Command]) -> None:
        if flight.node.dead or flight.done:
            return
        for command in commands:
            match command:
                case Request(id_, source, first, count):
                    self._ask(Ask(flight, id_, self._server(source), range(first, first + count)))
                case Next(id_, source, wanted):
                    self._ask(Ask(flight, id_, self._server(source), None, wanted))
                case Cancel(id_):
                    ask = flight.asks.get(id_)
                    if ask is not None:
                        self._stop(ask)
                case LookUp():
                    self.clock.after(0.1, self._looked, flight)
                case Finished():
                    self._finish(flight)
                case GiveUp(why):
                    flight.node.gave_up = why
                case Drop(source, _, ban):
                    self._drop(flight.node, self._server(source), ban=ban)

    def _drop(self, node: Node, other: Server, *, ban: bool) -> None:
        """A plan wants a source no more. The node follows somebody else; in its other flights, too, where it bans."""
        if not isinstance(other, Node):
            return
        if ban:
            node.banned.add(other.name)
        node.peers.pop(other.name, None)
        other.followers.pop(node.name, None)
        for flight in node.flights:
            for ask in [ask for ask in flight.asks.values() if ask.server is other]:
                self._stop(ask)
            if not flight.done:
                self._tell(flight, flight.plan.left(str(other.name), self.clock.now))

    def _looked(self, flight: Flight) -> None:
        if not flight.done:
            self._tell(flight, flight.plan.looked_up(self.clock.now))

    def _server(self, source: str) -> Server:
        return self.tracker if source == "0" else self.nodes[int(source)]

    def _delay(self, node: Node, server: Server) -> float:
        far = isinstance(server, Node) and server.zone != node.zone
        return self.model.delay + (self.model.zone_delay if far else 0.0)

    def _ask(self, ask: Ask) -> None:
        ask.flight.asks[ask.id] = ask
        self.clock.after(self._delay(ask.flight.node, ask.server), self._queue, ask)

    def _queue(self, ask: Ask) -> None:
        server = ask.server
        if ask.state == "over":
            return
        if server.dead:
            ask.state = "over"
            ask.flight.asks.pop(ask.id, None)
            self._tell(ask.flight, ask.flight.plan.failed(ask.id, "connection refused", self.clock.now))
        elif not server.hung:
            server.queue.append(ask)
            self._serve(server)

    def _serve(self, server: Server) -> None:
        while server.queue and server.active < server.slots and not server.dead:
            ask = server.queue.popleft()
            if ask.state == "over":
                continue
            if not ask.pieces and not self._choose(ask):
                continue
            ask.state = "sending"
            server.active += 1
            self._send(ask)

    def _choose(self, ask: Ask) -> bool:
        """The tracker chooses a piece for a node whose turn has come."""
        flight, now = ask.flight, self.clock.now
        seeding = self.seeding[flight.layer]
        index, wait = seeding.choose(ask.wanted, now)
        if index is None:
            ask.state = "over"
            flight.asks.pop(ask.id, None)
            self._tell(flight, flight.plan.nothing(ask.id, wait, now))
            return False
        ask.pieces, ask.next = range(index, index + 1), index
        self._tell(flight, flight.plan.chosen(ask.id, index, now))
        if ask.state == "over":
            seeding.returned(index)
            return False
        return True

    def _send(self, ask: Ask) -> None:
        node, server = ask.flight.node, ask.server
        links: tuple[Link, ...] = (server.up, node.down)
        if isinstance(server, Node) and server.cross is not None and server.zone != node.zone:
            links = (*links, server.cross)
        ask.transfer = Transfer(self.clock, links, MIB, lambda: self._sent(ask))

    def _sent(self, ask: Ask) -> None:
        """A piece has left the server."""
        flight, server, index = ask.flight, ask.server, ask.next
        server.sent += 1
        if isinstance(server, Node) and server.zone != flight.node.zone:
            self.crossed += 1
        ask.next += 1
        self.clock.after(self._delay(flight.node, server) + self.model.write, self._arrive, ask, index)
        ask.transfer = None
        if ask.next < ask.pieces.stop:
            self._send(ask)
        else:
            ask.state = "sent"
            server.active -= 1
            self._serve(server)

    def _stop(self, ask: Ask) -> None:
        """The asker hangs up."""
        ask.flight.asks.pop(ask.id, None)
        state, ask.state = ask.state, "over"
        if ask.transfer is not None:
            ask.transfer.stop()
            ask.transfer = None
        if state == "sending":
            ask.server.active -= 1
            self.clock.after(0.0, self._serve, ask.server)

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _arrive(self, ask: Ask, index: int) -> None:
        flight, now = ask.flight, self.clock.now
        if ask.state == "sent" and index == ask.pieces.stop - 1:
            flight.asks.pop(ask.id, None)
        if flight.done or flight.node.dead:
            return
        if ask.server.corrupt:
            self.wrong += 1
            self._tell(flight, flight.plan.bad(ask.id, index, now))
            return
        if flight.have[index]:
            self.duplicate += 1
        else:
            flight.have[index] = 1
            if not flight.news:
                self.clock.after(self.model.batch, self._news, flight)
            flight.news.append(index)
            self._read(flight)
        self._obey(flight, flight.plan.arrived(ask.id, index, MIB, now))

    def _read(self, flight: Flight) -> None:
        position = flight.have.find(0, flight.position)
        position = flight.count if position < 0 else position
        if position == flight.position:
            return
        flight.position = position
        if flight.node.first < 0:
            flight.node.first = self.clock.now
        if flight.node.half < 0 and 2 * sum(f.position for f in flight.node.flights) >= self.model.mib:
            flight.node.half = self.clock.now
        if position < flight.count:
            self._tell(flight, flight.plan.reader(1, position, self.clock.now))

    def _news(self, flight: Flight) -> None:
        news, flight.news = flight.news, []
        name, layer, now = str(flight.node.name), flight.layer, self.clock.now
        if flight.node.dead:
            return
        for other in list(flight.node.followers.values()):
            theirs = other.flights[layer]
            if not theirs.done and not other.dead:
                told = theirs.plan.complete(name, now) if flight.done else theirs.plan.has(name, news, now)
                self._tell(theirs, told)

    def _finish(self, flight: Flight) -> None:
        node = flight.node
        for ask in list(flight.asks.values()):
            self._stop(ask)
        flight.done = True
        if all(other.done for other in node.flights):
            node.finished = self.clock.now
            self.running -= 1
