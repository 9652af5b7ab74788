"""Runs the pure core of ``kad`` on trio over any transport: libp2p streams, or a simulated network.

Requests belong to the driver, not to the look-up that made them: a look-up that ends early leaves its requests to run
into their own time limit, so that a hung peer is noticed even by look-ups that did not wait for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import trio

from p2pregistry.errors import LocalError, RemoteBusy, RemoteError, Unreachable
from p2pregistry.routing.kad.announce import Announcer
from p2pregistry.routing.kad.lookup import Lookup
from p2pregistry.routing.kad.node import answer
from p2pregistry.routing.kad.store import ProviderStore
from p2pregistry.routing.kad.table import RoutingTable, position
from p2pregistry.routing.kad.wire import Contact, Kind, Message

#: Records sent to a peer before its confirmation is awaited.
_BATCH = 200
_SENDERS = 4
_REQUESTS_PER_PEER = 8
#: Seconds between look-ups for this node's own surroundings after the start; the last one repeats.
_REFRESH = (1.0, 3.0, 10.0, 30.0, 120.0, 600.0)
#: Look-ups of random keys in each refresh: they fill the far buckets, which lie where most random keys do.
_RANDOM_LOOKUPS = 3
#: Seconds between two rounds of trying the silent again, and how many at a time.
_RETRY_EVERY = 2.0
_RETRIED = 4
#: A request is late after so many times what answers take on average, and never before so many seconds.
_LATE_TIMES = 4.0
_LATE_LEAST = 0.03


@dataclass(frozen=True, slots=True)
class KadSettings:
    """``replicas`` peers keep each record; look-ups ask ``alpha`` peers at a time and find the ``width`` nearest.

    Seconds: ``late_after`` at most another peer is asked beside one that has not answered; ``request_timeout`` a peer
    that has not answered is left alone; ``lifetime`` of a record; ``reprovide`` between two provides of a key.
    ``provide_rate``: keys provided a second, at most.
    """

    replicas: int = 10
    bucket_size: int = 20
    width: int = 20
    alpha: int = 4
    late_after: float = 0.3
    request_timeout: float = 3.0
    lifetime: float = 3600.0
    reprovide: float = 2400.0
    provide_rate: float = 500.0


class Transport(Protocol):
    """How messages get to peers; time limits are the caller's.

    Failures are RemoteBusy for a peer that is there but broke off this once, and any other RemoteError for one that
    should be left alone for a while.
    """

    async def exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        """Send the messages on one stream and return the answer to the last one."""
        ...

    async def probe(self, peer_id: bytes) -> Contact | None:
        """Whether a connected peer answers as a server, and where it can be dialled; None if it does not."""
        ...


class KadDriver:
    """One node's part in the DHT. ``own`` may be replaced when this node's addresses are known."""

    def __init__(self, own: Contact, transport: Transport, random: Random, settings: KadSettings | None = None) -> None:
        self.own = own
        self.settings = settings or KadSettings()
        self.table = RoutingTable(own.peer_id, self.settings.bucket_size)
        self.store = ProviderStore(lifetime=self.settings.lifetime)
        self.announcer = Announcer(replicas=self.settings.replicas, interval=self.settings.reprovide)
        self._transport = transport
        self._random = random
        self._nursery: trio.Nursery | None = None
        self._usual = 0.05  # seconds an answer takes, on a sliding average
        self._seeds: dict[bytes, Contact] = {}
        self._announce = trio.Event()
        self._seeded = trio.Event()
        #: set once this node has looked around after finding its first peer
        self.settled = trio.Event()
        self._joined: dict[bytes, Contact] = {}
        self._probing: set[bytes] = set()
        self._probed: dict[bytes, float] = {}
        self._places: dict[bytes, trio.CapacityLimiter] = {}

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the table filled and the records provided, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_table)
            nursery.start_soon(self._keep_announced)
            nursery.start_soon(self._retry_silent)
            task_status.started()
        self._nursery = None

    def seed(self, contacts: Iterable[Contact]) -> None:
        """Peers to join through, now and whenever contact is lost."""
        for contact in contacts:
            if contact.peer_id != self.own.peer_id:
                self._seeds[contact.peer_id] = contact
        self._seeded.set()

    @property
    def alone(self) -> bool:
        """Whether nobody is known whom this node could ask."""
        return not self._seeds and len(self.table) == 0

    # Serving

    def serve(self, message: Message, sender: bytes) -> Message | None:
        """Answer a peer's request. Raises BadContent."""
        self.table.heard_from(sender)
        if sender not in self.table:
            self._consider(sender)
        return answer(
            message,
            sender,
            table=self.table,
            store=self.store,
            now=trio.current_time(),
            closer=self.settings.width,
            sample=self._random.sample,
            own=self.own if message.key in self.announcer and sender != self.own.peer_id else None,
        )

    def _consider(self, peer_id: bytes) -> None:
        """An unknown peer asked something: find out whether it is a server, at most every ten seconds."""
        now = trio.current_time()
        if self._nursery is None or len(self._probing) >= 16 or now < self._probed.get(peer_id, -math.inf):
            return
        if len(self._probed) > 4096:
            self._probed = {p: until for p, until in self._probed.items() if until > now}
        self._probed[peer_id] = now + 10
        self._probing.add(peer_id)
        self._nursery.start_soon(self._probe, peer_id)

    async def _probe(self, peer_id: bytes) -> None:
        try:
            with trio.move_on_after(self.settings.request_timeout):
                contact = await self._transport.probe(peer_id)
                if contact is not None:
                    self._alive(contact)
                else:
                    self._probed[peer_id] = trio.current_time() + 1  # its addresses may be known a little later
        except RemoteError:
            return  # a client, or gone: it asked us, we need nothing of it
        finally:
            self._probing.discard(peer_id)

    def _alive(self, contact: Contact) -> None:
        if self.table.answered(contact):
            self._joined[contact.peer_id] = contact
            self._announce.set()

    # Asking

    async def ask(self, contact: Contact, messages: Sequence[Message]) -> Message:
        """The answer to the last message; keeps account of who answers. Raises RemoteError."""
        began = trio.current_time()
        try:
            with trio.fail_after(self.settings.request_timeout):
                reply = await self._transport.exchange(contact, messages)
        except trio.TooSlowError as error:
            self.table.fell_silent(contact.peer_id, trio.current_time())
            raise Unreachable("a peer did not answer a DHT request in time") from error
        except RemoteBusy:
            raise
        except RemoteError:
            self.table.fell_silent(contact.peer_id, trio.current_time())
            raise
        self._usual += 0.1 * (min(trio.current_time() - began, 1.0) - self._usual)
        self._alive(contact)
        return reply

    async def _ask_for(
        self, contact: Contact, message: Message, results: trio.MemorySendChannel[tuple[bytes, Message | None]]
    ) -> None:
        """One request of a look-up, in one of the peer's places; not made if the look-up ended while it waited."""
        async with self._place(contact.peer_id):
            if results.statistics().open_receive_channels == 0:
                return
            reply: Message | None = None
            if not self.is_silent(contact):
                try:
                    reply = await self.ask(contact, [message])
                except RemoteError:
                    reply = None
        try:
            results.send_nowait((contact.peer_id, reply))
        except trio.BrokenResourceError:
            return  # the look-up has ended without it

    @asynccontextmanager
    async def _place(self, peer_id: bytes) -> AsyncIterator[None]:
        """One of the requests a peer is asked at the same time; look-ups that end early must not pile them up."""
        limiter = self._places.setdefault(peer_id, trio.CapacityLimiter(_REQUESTS_PER_PEER))
        try:
            async with limiter:
                yield
        finally:
            now = limiter.statistics()
            if not now.borrowed_tokens and not now.tasks_waiting:
                self._places.pop(peer_id, None)

    def is_silent(self, contact: Contact) -> bool:
        """Whether the peer should not be waited for. Now and then it is tried once more in the background."""
        now = trio.current_time()
        if not self.table.is_silent(contact.peer_id):
            return False
        if (
            self._nursery is not None
            and contact.peer_id not in self._probing
            and self.table.may_retry(contact.peer_id, now)
        ):
            self._probing.add(contact.peer_id)
            self._nursery.start_soon(self._retry, contact)
        return True

    async def _retry(self, contact: Contact) -> None:
        try:
            await self._try(contact, [Message(Kind.PING)])
        finally:
            self._probing.discard(contact.peer_id)

    async def _retry_silent(self) -> None:
        """Try those who fell silent again even if no look-up names them: this node itself may have been cut off, or
        stopped, and then nobody is left who would."""
        while True:
            await trio.sleep(_RETRY_EVERY * (0.8 + 0.4 * self._random.random()))
            for contact in self.table.to_retry(trio.current_time(), _RETRIED):
                self.is_silent(contact)

    def _seeds_near(self, target: int, width: int) -> list[Contact]:
        return self.table.nearest(target, width) or list(self._seeds.values())

    async def look_up(
        self,
        kind: Kind,
        key: bytes,
        *,
        width: int,
        want: int = 0,
        found: Callable[[Contact], None] | None = None,
    ) -> list[Contact]:
        """Look up ``key``: the nearest peers that answered; ``found`` is called for each new provider."""
        where = position(key)
        lookup = Lookup(
            where, self.own.peer_id, self._seeds_near(where, width), width=width, alpha=self.settings.alpha, want=want
        )
        report = found or (lambda _: None)
        for contact in lookup.provided(self.store.find(key, trio.current_time()) if kind is Kind.GET_PROVIDERS else ()):
            report(contact)
        send, receive = trio.open_memory_channel[tuple[bytes, Message | None]](math.inf)
        late: deque[tuple[float, bytes]] = deque()
        with receive:  # the requests that are still under way find it closed
            while self._start_requests(lookup, Message(kind, key), send, late):
                events: list[tuple[bytes, Message | None]] = []
                with trio.CancelScope(deadline=late[0][0] if late else math.inf):
                    events.append(await receive.receive())
                if not events:
                    lookup.late(late.popleft()[1])
                for peer_id, reply in events:
                    if reply is None:
                        lookup.failed(peer_id)
                        continue
                    for contact in lookup.answered(peer_id, reply.closer, reply.providers):
                        report(contact)
        await trio.lowlevel.checkpoint()
        return lookup.nearest()

    def _start_requests(
        self,
        lookup: Lookup,
        message: Message,
        results: trio.MemorySendChannel[tuple[bytes, Message | None]],
        late: deque[tuple[float, bytes]],
    ) -> bool:
        """Ask whom the look-up wants to ask; True while there is something to wait for."""
        if self._nursery is None:
            raise LocalError("the DHT is not running")
        late_after = min(self.settings.late_after, max(_LATE_LEAST, _LATE_TIMES * self._usual))
        while wanted := lookup.next():
            for contact in wanted:
                if self.is_silent(contact):
                    lookup.failed(contact.peer_id)
                    continue
                late.append((trio.current_time() + late_after, contact.peer_id))
                self._nursery.start_soon(self._ask_for, contact, message, results)
        return not lookup.done

    async def find_providers(self, key: bytes, found: Callable[[Contact], None], *, want: int = 0) -> None:
        """Call ``found`` for each provider of ``key`` as it turns up."""
        await self.look_up(Kind.GET_PROVIDERS, key, width=self.settings.replicas, want=want, found=found)

    # Keeping the table

    async def _keep_table(self) -> None:
        rounds = 0
        lonely = 0.5
        while True:
            await self._join()
            if len(self.table) == 0:
                await self._pause(lonely)
                lonely = min(2 * lonely, 15.0)
                continue
            lonely = 0.5
            near = await self.look_up(Kind.FIND_NODE, self.own.peer_id, width=self.settings.width)
            if len(near) >= self.settings.width and (rounds == 0 or rounds >= len(_REFRESH)):  # else that was everybody
                for _ in range(_RANDOM_LOOKUPS):
                    await self.look_up(Kind.FIND_NODE, self._random.randbytes(32), width=self.settings.width)
            self.settled.set()
            await self._pause(_REFRESH[min(rounds, len(_REFRESH) - 1)] * (0.8 + 0.4 * self._random.random()))
            rounds += 1

    async def _pause(self, seconds: float) -> None:
        self._seeded = trio.Event()
        with trio.move_on_after(seconds):
            await self._seeded.wait()

    async def _join(self) -> None:
        """Ask the seeds that are not in the table; they need not be waited for if it has peers."""
        missing = [c for c in self._seeds.values() if c.peer_id not in self.table]
        async with trio.open_nursery() as nursery:
            for contact in missing:
                nursery.start_soon(self._try, contact, [Message(Kind.FIND_NODE, self.own.peer_id)])

    async def _try(self, contact: Contact, messages: Sequence[Message]) -> bool:
        try:
            await self.ask(contact, messages)
        except RemoteError:
            return False
        return True

    # Providing

    def hold(self, keys: Iterable[bytes], *, within: float = 0.0) -> None:
        """Provide these keys from now on."""
        self.announcer.hold(keys, trio.current_time(), within=within, random=self._random.random)
        self._announce.set()

    def drop(self, keys: Iterable[bytes]) -> None:
        """Stop providing these keys, and withdraw their records."""
        self.announcer.drop(keys)
        self._announce.set()

    async def _keep_announced(self) -> None:
        """Withdraw, hand over, provide: one after the other, so that a later word never overtakes an earlier one."""
        while True:
            self._announce = trio.Event()
            await self._send_all(self.announcer.withdrawals(), withdraw=True)
            newcomers, self._joined = list(self._joined.values()), {}
            handed = [(c, keys) for c in newcomers if (keys := self.announcer.joined(c, trio.current_time()))]
            await self._send_all(handed)
            due = self.announcer.next_due()
            now = trio.current_time()
            if due is not None and due[0] <= now and (len(self.table) or self._seeds):
                count = await self._provide_round(due[1])
                await trio.sleep(max(0.0, count / self.settings.provide_rate - (trio.current_time() - now)))
                continue
            with trio.move_on_at(math.inf if due is None or due[0] <= now else due[0]):
                await self._announce.wait()

    async def _provide_round(self, key: bytes) -> int:
        near = await self.look_up(Kind.FIND_NODE, key, width=self.settings.width)
        now = trio.current_time()
        keys, batches = self.announcer.round(key, near, self.table.contacts(), width=self.settings.width, now=now)
        taken: dict[bytes, int] = {}
        for _, sent in await self._send_all(batches):
            for sent_key in sent:
                taken[sent_key] = taken.get(sent_key, 0) + 1
        self.announcer.finished(keys, taken, len(batches), trio.current_time(), self._random.random())
        return len(keys)

    async def _send_all(
        self, batches: list[tuple[Contact, list[bytes]]], *, withdraw: bool = False
    ) -> list[tuple[Contact, list[bytes]]]:
        """Send each peer its records, a few peers at a time; returns what was taken by whom."""
        done: list[tuple[Contact, list[bytes]]] = []
        waiting = deque(batches)

        async def sender() -> None:
            while waiting:
                contact, keys = waiting.popleft()
                for start in range(0, len(keys), _BATCH):
                    part = keys[start : start + _BATCH]
                    if self.is_silent(contact):
                        break
                    if await self._try(contact, [*self._records(part, withdraw), Message(Kind.PING)]):
                        done.append((contact, part))
                        if not withdraw:
                            self.announcer.given(contact, part)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_SENDERS, len(waiting))):
                nursery.start_soon(sender)
        return done

    def _records(self, keys: Iterable[bytes], withdraw: bool) -> list[Message]:
        providers = () if withdraw else (self.own,)
        return [Message(Kind.ADD_PROVIDER, key, providers=providers, withdraw=withdraw) for key in keys]
