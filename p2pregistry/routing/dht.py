"""The DHT on libp2p: what is asked and answered on its connections, and ``hello``.

Connections, streams and their limits are those of ``connections.py``; with it the only ones that import libp2p.
"""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, LocalError, RemoteBusy, RemoteError, SettingsError, Unreachable
from p2pregistry.routing.base import Peer
from p2pregistry.routing.connections import HELLO_PROTOCOL, HELLO_TIMEOUT, Connections, multiaddrs
from p2pregistry.routing.driver import KadDriver, KadSettings
from p2pregistry.routing.hello import Hello, decode_hello, encode_hello, split_hello
from p2pregistry.routing.identity import base58
from p2pregistry.routing.kad.wire import Contact, Kind, Message, Reader, blob_key, encode
from p2pregistry.routing.members import AGAIN, Members
from p2pregistry.routing.reuse import Kept, Streams
from p2pregistry.sessions import Judge

if TYPE_CHECKING:
    from libp2p.abc import INetStream

KAD_PROTOCOL: Final = "/p2pregistry/kad/1.0.0"
#: Seconds a hello is believed before it is asked for again.
_HELLO_AGE: Final = AGAIN
#: Seconds a kad stream may stay without a message.
_STREAM_IDLE: Final = 10.0
_READ: Final = 65536
#: Neighbours that are greeted at the start, and how many at a time.
_GREET: Final = 32
_GREETERS: Final = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """``host`` and ``port`` are listened on (0: any free port); ``announce`` is the one IP address told to others, by
    default ``host``, or the address this machine uses toward the first bootstrap peer if ``host`` is a wildcard.
    ``bootstrap`` are multiaddrs ending in ``/p2p/<peer id>``. ``hello`` is what other nodes are told.

    ``judge`` makes it a swarm with credentials, in which nobody else takes part; ``credential`` gives this node's.
    """

    key_file: Path
    host: str = "0.0.0.0"  # noqa: S104 - neighbours must reach it; the settings decide
    port: int = 5002
    announce: str | None = None
    bootstrap: tuple[str, ...] = ()
    hello: Hello = field(default_factory=Hello)
    protocol: str = KAD_PROTOCOL
    kad: KadSettings = field(default_factory=KadSettings)
    credential: Callable[[], str | None] = lambda: None
    judge: Judge | None = None


def kad_protocol(swarm: str) -> str:
    """The protocol id of a swarm: nodes of different swarms do not understand each other."""
    return KAD_PROTOCOL if swarm == "default" else f"/p2pregistry/{swarm}/kad/1.0.0"


def parse_bootstrap(addresses: Iterable[str]) -> list[Contact]:
    """Multiaddrs ending in ``/p2p/<peer id>`` as contacts, several addresses of one peer joined. Raises
    SettingsError."""
    found: dict[bytes, list[bytes]] = {}
    for text in addresses:
        try:
            whole = Multiaddr(text)
            peer_id = ID.from_base58(str(whole.value_for_protocol("p2p"))).to_bytes()
            address = whole.decapsulate(Multiaddr(f"/p2p/{base58(peer_id)}")).to_bytes()
        except Exception as error:  # the library raises many kinds for a text that is no multiaddr
            raise SettingsError(f"{text[:200]!r} is no multiaddr ending in /p2p/<peer id>") from error
        found.setdefault(peer_id, []).append(address)
    return [Contact(peer_id, tuple(addrs)) for peer_id, addrs in found.items()]


class DhtRouter:
    """A ``Router`` on the DHT; made by ``open_dht``."""

    def __init__(self, config: DhtConfig, listeners: Sequence[trio.SocketListener], announce: str) -> None:
        self._config = config
        self._members = None if config.judge is None else Members(config.judge)
        self._links = links = Connections(config.key_file, listeners, announce, self._members)
        links.serve(config.protocol, self._serve_kad)
        links.serve(HELLO_PROTOCOL, self._serve_hello, strangers=True)
        own = Contact(links.host.get_id().to_bytes(), (links.address.to_bytes(),))
        self.driver = KadDriver(own, self, SystemRandom(), config.kad)
        self._hellos: OrderedDict[bytes, tuple[float, Hello]] = OrderedDict()
        self._greeting: dict[bytes, trio.Event] = {}
        self._kept: Streams[INetStream] = Streams()
        self.bootstrap(config.bootstrap)

    # What callers use

    @property
    def peer_id(self) -> str:
        """This node's libp2p peer id, in base58."""
        return base58(self.driver.own.peer_id)

    @property
    def addrs(self) -> list[str]:
        """Where others reach this node: multiaddrs ending in ``/p2p/<peer id>``."""
        return [f"{self._links.address}/p2p/{self.peer_id}"]

    def bootstrap(self, addresses: Iterable[str]) -> None:
        """More peers to join through. Raises SettingsError."""
        self.driver.seed(parse_bootstrap(addresses))

    def hold(self, digests: Iterable[Digest], *, within: float = 0.0) -> None:
        """See ``Router``. ``within``: seconds to spread the first provide over, for what was held before a restart."""
        self.driver.hold((blob_key(d.raw) for d in digests if d.algorithm == "sha256"), within=within)

    def drop(self, digests: Iterable[Digest]) -> None:
        """See ``Router``."""
        self.driver.drop(blob_key(d.raw) for d in digests if d.algorithm == "sha256")

    async def find(self, digest: Digest, found: Any, *, limit: int = 10) -> None:
        """See ``Router``. A provider counts once it has answered a hello: it is alive and its URL is known."""
        if digest.algorithm != "sha256" or limit < 1:
            return
        left = limit
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def meet(contact: Contact) -> None:
                nonlocal left, failure
                peer = await self._meet(contact)
                if peer is None or left == 0 or failure is not None:
                    return
                left -= 1
                try:
                    found(peer)
                except Exception as error:  # noqa: BLE001 - the caller's; raised to it below, not in a group
                    failure = error
                if left == 0 or failure is not None:
                    nursery.cancel_scope.cancel()

            await self.driver.find_providers(blob_key(digest.raw), lambda c: nursery.start_soon(meet, c))
        if failure is not None:
            raise failure

    async def joined(self, *, within: float) -> bool:
        """Wait until this node has met its neighbours, ``within`` seconds at most; whether it has. Who knows of nobody
        has none to wait for.

        A first contact takes a dial and a handshake: better now than while somebody waits for a layer.
        """
        if self.driver.alone:
            return False
        with trio.move_on_after(within):
            await self.driver.settled.wait()
            limit = trio.CapacityLimiter(_GREETERS)
            async with trio.open_nursery() as nursery:
                for contact in self.driver.table.contacts()[:_GREET]:
                    nursery.start_soon(self._greet, contact, limit)
        return self.driver.settled.is_set()

    async def _greet(self, contact: Contact, limit: trio.CapacityLimiter) -> None:
        async with limit:
            await self._meet(contact)

    def neighbours(self, limit: int) -> list[str]:
        """Multiaddrs, ending in ``/p2p/<peer id>``, of up to ``limit`` peers that answered lately."""
        known = [contact for contact in self.driver.table.contacts() if contact.addrs]
        return [f"{Multiaddr(contact.addrs[0])}/p2p/{base58(contact.peer_id)}" for contact in known[:limit]]

    @property
    def provides_waiting(self) -> int:
        """How many held digests no other peer has a record of yet."""
        return self.driver.announcer.waiting()

    def peers(self) -> list[Peer]:
        """See ``Router``: connected peers that have said hello and have a URL."""
        connected = {
            i.to_bytes() for i, conns in self._links.swarm.connections.items() if any(not c.is_closed for c in conns)
        }
        return [
            Peer(base58(peer_id), hello.urls[0], hello.zone)
            for peer_id, (_, hello) in self._hellos.items()
            if hello.urls and peer_id in connected and self._counts(peer_id)
        ]

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with self._links.running() as nursery:
            nursery.start_soon(self._close_kept)
            await nursery.start(self.driver.run)
            task_status.started()
            await trio.sleep_forever()

    # Asking: the driver's Transport, and hello

    async def exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        """See ``driver.Transport``. On a stream that was kept, if there is one; where that has ended, on a new one."""
        await self._introduce(to)
        data = b"".join(encode(message) for message in messages)
        now = trio.current_time()
        if (kept := self._kept.take(to.peer_id, now)) is not None:
            self._links.touch(ID(to.peer_id))
            try:
                async with self._links.stream(to, self._config.protocol, kept.stream) as stream:
                    reply = await _ask(stream, data, messages[-1].kind)
            except RemoteError as error:
                log.debug("a stream that was kept is of no more use: %s", type(error).__name__)
            else:
                self._keep(Kept(to.peer_id, kept.stream, kept.born, trio.current_time()))
                return reply
        try:
            async with self._links.stream(to, self._config.protocol) as stream:
                reply = await _ask(stream, data, messages[-1].kind)
        except RemoteBusy:
            if self._members is not None:
                self._members.doubt(to.peer_id)
            raise
        self._keep(Kept(to.peer_id, stream, now, trio.current_time()))
        return reply

    async def _introduce(self, contact: Contact) -> None:
        """Each has shown the other its credential before anything else is said. Raises RemoteError."""
        if self._members is not None and not self._members.fresh(contact.peer_id):
            await self._greeted(contact).wait()
            if not self._members.fresh(contact.peer_id):
                raise Unreachable("a peer has not shown that it belongs to the swarm")

    def _counts(self, peer_id: bytes) -> bool:
        return self._members is None or self._members.holds(peer_id)

    def _keep(self, kept: Kept[INetStream]) -> None:
        for stream in self._kept.give(kept):
            self._close_soon(stream)

    def _close_soon(self, stream: INetStream) -> None:
        self._links.spawn(self._close, stream)

    async def _close(self, stream: INetStream) -> None:
        with trio.move_on_after(2.0):
            try:
                await stream.close()
            except Exception as error:  # noqa: BLE001 - it has ended without us
                log.debug("closing a stream failed: %s", type(error).__name__)

    async def _close_kept(self) -> None:
        """Close the streams that nobody has used for a while."""
        while True:
            await trio.sleep(1.0)
            for stream in self._kept.old(trio.current_time()):
                self._close_soon(stream)

    async def probe(self, peer_id: bytes) -> Contact | None:
        """See ``driver.Transport``."""
        if not self._links.connected(ID(peer_id)):
            return None
        await self.exchange(Contact(peer_id), [Message(Kind.PING)])
        addrs = await self._addresses(peer_id)
        return Contact(peer_id, addrs) if addrs else None

    async def _addresses(self, peer_id: bytes) -> tuple[bytes, ...]:
        """Where a connected peer says it listens (hello, identify), without what only it can reach."""
        hello = self._hello_of(peer_id)
        if hello is not None and hello.addrs:
            return multiaddrs(hello.addrs)
        try:
            known = self._links.host.get_peerstore().addrs(ID(peer_id))
        except Exception as error:  # noqa: BLE001 - "unknown peer" is one of several kinds
            log.debug("no addresses of a peer: %s", type(error).__name__)
            return ()
        plain = [a.decapsulate_code(421) if "p2p" in {p.name for p in a.protocols()} else a for a in known]
        return tuple(dict.fromkeys(a.to_bytes() for a in plain if [p.name for p in a.protocols()][1:] == ["tcp"]))

    async def _meet(self, contact: Contact) -> Peer | None:
        """The peer behind a provider record, once it has said hello; None if it does not."""
        if self._hello_of(contact.peer_id) is None:
            if self.driver.is_silent(contact):
                return None
            await self._greeted(contact).wait()
        hello = self._hello_of(contact.peer_id)
        if hello is None or not hello.urls or self.driver.is_silent(contact):
            return None
        return Peer(base58(contact.peer_id), hello.urls[0], hello.zone)

    def _greeted(self, contact: Contact) -> trio.Event:
        """Set once the peer has been greeted, in vain perhaps. It goes on without the caller: a look-up that has enough
        must not end a connection."""
        greeted = self._greeting.get(contact.peer_id)
        if greeted is None:
            if not self._links.open:
                raise LocalError("the DHT is not running")
            greeted = self._greeting[contact.peer_id] = trio.Event()
            self._links.spawn(self._try_hello, contact)
        return greeted

    def _hello_of(self, peer_id: bytes) -> Hello | None:
        known = self._hellos.get(peer_id)
        if known is None or known[0] < trio.current_time() - _HELLO_AGE or not self._counts(peer_id):
            return None
        return known[1]

    async def _try_hello(self, contact: Contact) -> None:
        try:
            with trio.fail_after(self._config.kad.request_timeout):
                await self._say_hello(contact)
        except RemoteBusy:
            return
        except (RemoteError, trio.TooSlowError):
            self.driver.table.fell_silent(contact.peer_id, trio.current_time())
        finally:
            self._greeting.pop(contact.peer_id).set()

    async def _say_hello(self, contact: Contact) -> None:
        async with self._links.stream(contact, HELLO_PROTOCOL) as stream:
            await stream.write(encode_hello(self._own_hello()))
            hello = await _read_hello(stream)
            await self._admit(contact.peer_id, hello)
            self._remember(contact.peer_id, hello)
            await stream.close()

    def _own_hello(self) -> Hello:
        if self._members is None:
            return self._config.hello
        credential = self._config.credential() or ""
        return replace(self._config.hello, credential=credential, addrs=(str(self._links.address),))

    async def _admit(self, peer_id: bytes, hello: Hello) -> None:
        """Disconnect who does not belong to the swarm. Raises RemoteError then."""
        if self._members is None:
            return
        try:
            await self._members.admit(peer_id, hello.credential)
        except RemoteError as err:
            log.debug("a peer is no member: %s", err.message)
            self._links.spawn(self._links.disconnect, ID(peer_id))
            raise

    def _remember(self, peer_id: bytes, hello: Hello) -> None:
        self._hellos.pop(peer_id, None)
        self._hellos[peer_id] = (trio.current_time(), hello)
        while len(self._hellos) > 10_000:
            self._hellos.popitem(last=False)

    # Serving

    async def _serve_kad(self, stream: INetStream) -> None:
        """Answer the messages of one stream in order, until its end or a silence."""
        reader = Reader()
        sender = stream.muxed_conn.peer_id.to_bytes()
        while True:
            try:
                with trio.fail_after(_STREAM_IDLE):
                    data = await stream.read(_READ)
            except StreamEOF:
                return
            if not data:
                return
            if self._members is not None and not self._members.introduced(sender):
                raise BadContent("a peer does not belong to the swarm any more")
            replies = [self.driver.serve(message, sender) for message in reader.feed(data)]
            out = b"".join(encode(reply) for reply in replies if reply is not None)
            if out:
                with trio.fail_after(_STREAM_IDLE):
                    await stream.write(out)

    async def _serve_hello(self, stream: INetStream) -> None:
        with trio.fail_after(HELLO_TIMEOUT):
            hello = await _read_hello(stream)
            peer_id = stream.muxed_conn.peer_id.to_bytes()
            await self._admit(peer_id, hello)
            await stream.write(encode_hello(self._own_hello()))
            await stream.close()
        self._remember(peer_id, hello)


async def _ask(stream: INetStream, data: bytes, kind: Kind) -> Message:
    """Send a request and read its answer. Raises BadContent."""
    await stream.write(data)
    reader = Reader()
    while not (replies := reader.feed(await _read_some(stream))):
        pass
    if replies[0].kind is not kind or len(replies) > 1 or not reader.empty:
        raise BadContent("a peer answered another question")
    return replies[0]


async def _read_hello(stream: INetStream) -> Hello:
    data = b""
    while (body := split_hello(data)) is None:
        data += await _read_some(stream)
    return decode_hello(body)


async def _read_some(stream: INetStream) -> bytes:
    """At least one byte. Raises BadContent where the stream ends instead."""
    data = await stream.read(_READ)
    if not data:
        raise BadContent("a stream ended before its answer")
    return data


def _announced(config: DhtConfig) -> str:
    """The one address told to others. A wildcard is replaced by what this machine uses toward its bootstrap peer."""
    chosen = config.announce or config.host
    if chosen not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return chosen
    targets = [Multiaddr(a) for a in config.bootstrap]
    toward = next((str(m.value_for_protocol("ip4")) for m in targets if "ip4" in {p.name for p in m.protocols()}), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((toward or "192.0.2.1", 9))  # sends nothing; 192.0.2.0/24 is never routed (RFC 5737)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@asynccontextmanager
async def open_dht(config: DhtConfig) -> AsyncIterator[DhtRouter]:
    """A running node of the DHT, closed at the end of the block.

    Raises LocalError if the port is taken or the identity cannot be used, SettingsError for a bad bootstrap address.
    """
    parse_bootstrap(config.bootstrap)
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host or None)
    except OSError as error:
        raise LocalError(f"cannot listen on {config.host} port {config.port} for the DHT: {error.strerror}") from error
    failure: Exception | None = None
    try:
        router = DhtRouter(config, listeners, _announced(config))
        async with trio.open_nursery() as nursery:
            await nursery.start(router.run)
            try:
                yield router
            except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's group
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()
    if failure is not None:
        raise failure
