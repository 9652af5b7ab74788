"""The DHT on libp2p: the host, the streams, ``hello``. The only file that imports libp2p.

The host speaks TCP, Noise and Yamux and nothing else. What py-libp2p 0.8.1 does that a node cannot live with is kept
out here rather than patched in the library; docs/dependencies.md lists each with the test that watches it:

- We accept connections ourselves and hand them to the library: its listener shares a taken port without a word
  (SO_REUSEPORT), outlives ``run()``, and keeps a place for every connection that ever came in.
- We dial addresses ourselves: its dialler waits 250 ms after success, tries one address only, and refuses a peer for
  60 s after a failure. Its auto-connector, which dials everybody it has heard of, is switched off.
- Every stream has time limits and a place in a bounded number, per peer and in all.

In a swarm with credentials (``DhtConfig.judge``) a connection begins in the lobby, where nothing but hello is spoken;
who has not shown a credential there within five seconds is disconnected, and so is who shows one that does not count.
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

import libp2p
import libp2p.network.connection.swarm_connection as swarm_connection
import trio
from cryptography.hazmat.primitives import serialization
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, LocalError, RemoteBusy, RemoteError, SettingsError, Unreachable
from p2pregistry.routing.base import Peer
from p2pregistry.routing.driver import KadDriver, KadSettings
from p2pregistry.routing.hello import Hello, decode_hello, encode_hello, split_hello
from p2pregistry.routing.identity import base58, load_or_create_identity
from p2pregistry.routing.kad.wire import Contact, Kind, Message, Reader, blob_key, encode
from p2pregistry.routing.members import AGAIN, Members
from p2pregistry.routing.reuse import Kept, Streams
from p2pregistry.sessions import Judge

if TYPE_CHECKING:
    from libp2p.abc import INetConn, INetStream

KAD_PROTOCOL: Final = "/p2pregistry/kad/1.0.0"
HELLO_PROTOCOL: Final = TProtocol("/p2pregistry/hello/1")
_HELLO_TIMEOUT: Final = 5.0
#: Seconds a hello is believed before it is asked for again.
_HELLO_AGE: Final = AGAIN
#: Connections in the lobby, and streams of each.
_STRANGERS: Final = 64
_STREAMS_PER_STRANGER: Final = 2
#: Seconds a kad stream may stay without a message, and live in all.
_STREAM_IDLE: Final = 10.0
_STREAM_LIFE: Final = 120.0
_STREAMS_PER_PEER: Final = 32
_STREAMS: Final = 2048
_CONNECTIONS: Final = 400
_HANDSHAKES: Final = 128
_HANDSHAKE_TIMEOUT: Final = 5.0
_READ: Final = 65536
#: Neighbours that are greeted at the start, and how many at a time.
_GREET: Final = 32
_GREETERS: Final = 4

log = logging.getLogger(__name__)

# The library takes its loggers off the root and prints warnings bare; put them back, without the flood.
logging.getLogger("libp2p").propagate = True
logging.getLogger("libp2p").setLevel(logging.CRITICAL)
# This module of it logs through the root logger's functions, which set up logging for the whole program.
setattr(swarm_connection, "logging", logging.getLogger("libp2p.network.connection"))  # noqa: B010 - no such attribute to the type checker


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


def _make_host(key_file: Path, addresses: Sequence[Multiaddr]) -> BasicHost:
    key = load_or_create_identity(key_file)
    seed = key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    pair = create_new_key_pair(seed)
    host = libp2p.new_host(
        key_pair=pair,
        sec_opt={NOISE: NoiseTransport(pair, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        announce_addrs=list(addresses),
        disable_identify_address_discovery=True,
        negotiate_timeout=5,
        connection_config=ConnectionConfig(
            max_connections=2 * _CONNECTIONS,
            high_watermark=2 * _CONNECTIONS,
            low_watermark=0,
            min_connections=0,
            inbound_upgrade_timeout=_HANDSHAKE_TIMEOUT,
            inbound_stream_protocol_negotiation_timeout=5.0,
        ),
    )
    if not isinstance(host, BasicHost):
        raise LocalError("libp2p made a host of another kind")
    return host


async def _no_connections() -> None:
    """Stands in for the auto-connector's round."""


def _no_identify(peer_id: ID) -> bool:  # noqa: ARG001 - the library's signature
    """Stands in for the question whether a peer is to be asked who it is: in the lobby it would be refused."""
    return False


class DhtRouter:
    """A ``Router`` on the DHT; made by ``open_dht``."""

    def __init__(self, config: DhtConfig, listeners: Sequence[trio.SocketListener], announce: str) -> None:
        self._config = config
        self._listeners = listeners
        port = listeners[0].socket.getsockname()[1]
        address = Multiaddr(f"/{'ip6' if ':' in announce else 'ip4'}/{announce}/tcp/{port}")
        self._host = _make_host(config.key_file, [address])
        swarm = self._host.get_network()
        if not isinstance(swarm, Swarm):
            raise LocalError("libp2p made a network of another kind")
        self._swarm = swarm
        swarm.set_resource_manager(None)  # it refuses ten connections a second from one peer; limits are ours
        swarm.auto_connector.maybe_connect = _no_connections  # type: ignore[method-assign]
        swarm.set_stream_handler(self._limited)
        self._host.set_stream_handler(TProtocol(config.protocol), self._serve_kad)
        self._host.set_stream_handler(HELLO_PROTOCOL, self._serve_hello)
        self._members = None if config.judge is None else Members(config.judge)
        if self._members is not None:
            self._host._should_identify_peer = _no_identify  # type: ignore[method-assign]
        self._lobby = Multiselect({HELLO_PROTOCOL: self._serve_hello})
        self._strangers: OrderedDict[ID, None] = OrderedDict()
        own = Contact(self._host.get_id().to_bytes(), (address.to_bytes(),))
        self._address = address
        self.driver = KadDriver(own, self, SystemRandom(), config.kad)
        self._hellos: OrderedDict[bytes, tuple[float, Hello]] = OrderedDict()
        self._used: OrderedDict[ID, None] = OrderedDict()
        self._dialling: dict[ID, trio.Event] = {}
        self._greeting: dict[bytes, trio.Event] = {}
        self._kept: Streams[INetStream] = Streams()
        self._handshakes: OrderedDict[trio.CancelScope, None] = OrderedDict()
        self._streams: dict[ID, int] = {}
        self._stream_count = 0
        self._nursery: trio.Nursery | None = None
        self.bootstrap(config.bootstrap)

    # What callers use

    @property
    def peer_id(self) -> str:
        """This node's libp2p peer id, in base58."""
        return base58(self.driver.own.peer_id)

    @property
    def addrs(self) -> list[str]:
        """Where others reach this node: multiaddrs ending in ``/p2p/<peer id>``."""
        return [f"{self._address}/p2p/{self.peer_id}"]

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
        """Wait until this node has met its neighbours, ``within`` seconds at most; whether it has.

        A first contact takes a dial and a handshake: better now than while somebody waits for a layer.
        """
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
            i.to_bytes() for i, conns in self._swarm.connections.items() if any(not c.is_closed for c in conns)
        }
        return [
            Peer(base58(peer_id), hello.urls[0], hello.zone)
            for peer_id, (_, hello) in self._hellos.items()
            if hello.urls and peer_id in connected and self._counts(peer_id)
        ]

    # Connections

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Order of the end: no new connections, no more requests, then the connections."""
        async with self._host.run(listen_addrs=[]):
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._close_kept)
                    nursery.start_soon(self._expel)
                    nursery.start_soon(trio.serve_listeners, self._accept, list(self._listeners))
                    await nursery.start(self.driver.run)
                    task_status.started()
            finally:
                self._nursery = None
                with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
                    async with trio.open_nursery() as closing:
                        for connection in self._swarm.get_connections():
                            closing.start_soon(connection.close)  # one by one, as close() does, costs 0.2 s each
                with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
                    await self._host.close()

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One incoming connection, from its handshake to its end."""
        with trio.CancelScope(deadline=trio.current_time() + _HANDSHAKE_TIMEOUT) as handshake:
            if len(self._handshakes) >= _HANDSHAKES:  # a flood of the silent: the oldest has had its chance
                self._handshakes.popitem(last=False)[0].cancel()
            self._handshakes[handshake] = None
            try:
                raw = RawConnection(TrioTCPStream(stream), False)
                muxed = await self._swarm.upgrade_inbound_raw_conn(raw, self._address)
            except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make the library raise
                log.debug("a connection from outside failed: %s", type(error).__name__)
                return
            finally:
                self._handshakes.pop(handshake, None)
            handshake.deadline = float("inf")
            connections = self._swarm.get_connections(muxed.peer_id)
            self._receive(muxed.peer_id)
            for connection in connections:
                if isinstance(connection, SwarmConn) and connection.muxed_conn is muxed:
                    await self._until_closed(muxed.peer_id, connection.event_closed, stream)

    def _receive(self, peer_id: ID) -> None:
        """A peer has connected to us. A stranger takes no member's place; of too many, the first has had its chance."""
        if self._members is None or self._members.introduced(peer_id.to_bytes()):
            self._make_room(peer_id)
            return
        self._strangers[peer_id] = None
        if self._nursery is not None:
            while len(self._strangers) > _STRANGERS:
                self._nursery.start_soon(self._disconnect, self._strangers.popitem(last=False)[0])
            self._nursery.start_soon(self._wait_for_hello, peer_id, self._members)

    async def _wait_for_hello(self, peer_id: ID, members: Members) -> None:
        try:
            with trio.move_on_after(_HELLO_TIMEOUT):
                await members.wait(peer_id.to_bytes())
                self._make_room(peer_id)
                return
            members.give_up(peer_id.to_bytes())
            await self._disconnect(peer_id)
        finally:
            self._strangers.pop(peer_id, None)

    async def _expel(self) -> None:
        """Disconnect those who do not belong to the swarm any more."""
        while self._members is not None:
            await trio.sleep(1.0)
            for peer_id in self._members.expelled():
                self._members.left(peer_id)
                await self._disconnect(ID(peer_id))

    def _make_room(self, newest: ID) -> None:
        """Keep the number of connections bounded: those used longest ago are closed."""
        self._touch(newest)
        if self._nursery is None:
            return
        for peer_id in list(self._used):
            if self._swarm.get_total_connections() <= _CONNECTIONS or peer_id == newest:
                return
            del self._used[peer_id]
            self._nursery.start_soon(self._disconnect, peer_id)

    def _touch(self, peer_id: ID) -> None:
        self._used[peer_id] = None
        self._used.move_to_end(peer_id)
        while len(self._used) > 4 * _CONNECTIONS:
            self._used.popitem(last=False)

    async def _disconnect(self, peer_id: ID) -> None:
        with trio.move_on_after(2.0):
            try:
                await self._swarm.close_peer(peer_id)
            except Exception as error:  # noqa: BLE001 - a connection that cannot even be closed is left to its end
                log.debug("closing a connection failed: %s", type(error).__name__)

    def _connected(self, peer_id: ID) -> list[INetConn]:
        return [c for c in self._swarm.get_connections(peer_id) if not c.is_closed]

    async def _connect(self, contact: Contact) -> ID:
        """Be connected to the peer. Its addresses are tried in turn. Raises Unreachable."""
        peer_id = ID(contact.peer_id)
        while not self._connected(peer_id):
            if (dialled := self._dialling.get(peer_id)) is not None:
                await dialled.wait()
                if not self._connected(peer_id):
                    raise Unreachable("a peer could not be dialled")
                break
            self._dialling[peer_id] = trio.Event()
            try:
                await self._dial(peer_id, contact.addrs)
            finally:
                self._dialling.pop(peer_id).set()
            self._make_room(peer_id)
        self._touch(peer_id)
        return peer_id

    async def _dial(self, peer_id: ID, addrs: Iterable[bytes]) -> None:
        if self._nursery is None:
            raise LocalError("the DHT is not running")
        for address in addrs:
            try:
                stream = await trio.open_tcp_stream(*_host_and_port(address))
            except (OSError, BadContent) as error:
                log.debug("dialling %s failed: %s", peer_id, type(error).__name__)
                continue
            try:
                raw = RawConnection(TrioTCPStream(stream), True)
                connection = await self._swarm.upgrade_outbound_raw_conn(raw, peer_id)
            except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make the library raise
                log.debug("the handshake with %s failed: %s", peer_id, type(error).__name__)
                stream.socket.close()
                continue
            except trio.Cancelled:
                stream.socket.close()
                raise
            self._nursery.start_soon(self._until_closed, peer_id, connection.event_closed, stream)
            return
        raise Unreachable("a peer could not be dialled")

    async def _until_closed(self, peer_id: ID, closed: trio.Event, stream: trio.SocketStream) -> None:
        """The library does not close every socket it should; whatever becomes of the connection, this one is."""
        try:
            await closed.wait()
        finally:
            stream.socket.close()
            if self._members is not None and not self._connected(peer_id):
                self._members.left(peer_id.to_bytes())

    @asynccontextmanager
    async def _stream(
        self, contact: Contact, protocol: str, kept: INetStream | None = None
    ) -> AsyncIterator[INetStream]:
        """A stream to the peer, new unless one that was kept is handed in; reset unless the body ends well, which is
        to close it. Foreign errors become RemoteBusy: the peer is there, but not for this.

        A peer that let a stream run into its caller's time limit is disconnected: it may have died without a word, and
        the next request should dial it afresh.
        """
        peer_id = ID(contact.peer_id) if kept is not None else await self._connect(contact)
        stream = kept
        try:
            if stream is None:
                stream = await self._host.new_stream(peer_id, [TProtocol(protocol)])
            yield stream
        except RemoteError:
            await self._reset(stream)
            raise
        except trio.Cancelled:
            if self._nursery is not None:
                self._nursery.start_soon(self._reset, stream)
                self._nursery.start_soon(self._disconnect, peer_id)
            raise
        except Exception as error:  # the library raises some thirty kinds, and bare ones
            await self._reset(stream)
            raise RemoteBusy("a stream to a peer broke") from error

    async def _reset(self, stream: INetStream | None) -> None:
        if stream is not None:
            with trio.move_on_after(1.0):
                try:
                    await stream.reset()
                except Exception as error:  # noqa: BLE001 - it is broken already
                    log.debug("resetting a stream failed: %s", type(error).__name__)

    # Asking: the driver's Transport, and hello

    async def exchange(self, to: Contact, messages: Sequence[Message]) -> Message:
        """See ``driver.Transport``. On a stream that was kept, if there is one; where that has ended, on a new one."""
        await self._introduce(to)
        data = b"".join(encode(message) for message in messages)
        now = trio.current_time()
        if (kept := self._kept.take(to.peer_id, now)) is not None:
            self._touch(ID(to.peer_id))
            try:
                async with self._stream(to, self._config.protocol, kept.stream) as stream:
                    reply = await _ask(stream, data, messages[-1].kind)
            except RemoteError as error:
                log.debug("a stream that was kept is of no more use: %s", type(error).__name__)
            else:
                self._keep(Kept(to.peer_id, kept.stream, kept.born, trio.current_time()))
                return reply
        try:
            async with self._stream(to, self._config.protocol) as stream:
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
        if self._nursery is not None:
            self._nursery.start_soon(self._close, stream)

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
        if not self._connected(ID(peer_id)):
            return None
        await self.exchange(Contact(peer_id), [Message(Kind.PING)])
        addrs = await self._addresses(peer_id)
        return Contact(peer_id, addrs) if addrs else None

    async def _addresses(self, peer_id: bytes) -> tuple[bytes, ...]:
        """Where a connected peer says it listens (hello, identify), without what only it can reach."""
        hello = self._hello_of(peer_id)
        if hello is not None and hello.addrs:
            return _multiaddrs(hello.addrs)
        try:
            known = self._host.get_peerstore().addrs(ID(peer_id))
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
            if self._nursery is None:
                raise LocalError("the DHT is not running")
            greeted = self._greeting[contact.peer_id] = trio.Event()
            self._nursery.start_soon(self._try_hello, contact)
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
        async with self._stream(contact, HELLO_PROTOCOL) as stream:
            await stream.write(encode_hello(self._own_hello()))
            hello = await _read_hello(stream)
            await self._admit(contact.peer_id, hello)
            self._remember(contact.peer_id, hello)
            await stream.close()

    def _own_hello(self) -> Hello:
        if self._members is None:
            return self._config.hello
        credential = self._config.credential() or ""
        return replace(self._config.hello, credential=credential, addrs=(str(self._address),))

    async def _admit(self, peer_id: bytes, hello: Hello) -> None:
        """Disconnect who does not belong to the swarm. Raises RemoteError then."""
        if self._members is None:
            return
        try:
            await self._members.admit(peer_id, hello.credential)
        except RemoteError as err:
            log.debug("a peer is no member: %s", err.message)
            if self._nursery is not None:
                self._nursery.start_soon(self._disconnect, ID(peer_id))
            raise

    def _remember(self, peer_id: bytes, hello: Hello) -> None:
        self._hellos.pop(peer_id, None)
        self._hellos[peer_id] = (trio.current_time(), hello)
        while len(self._hellos) > 10_000:
            self._hellos.popitem(last=False)

    # Serving

    async def _limited(self, stream: INetStream) -> None:
        """Every incoming stream passes here first. Nothing that goes wrong in one may reach the connection's task."""
        peer_id = stream.muxed_conn.peer_id
        stranger = self._members is not None and not self._members.introduced(peer_id.to_bytes())
        most = _STREAMS_PER_STRANGER if stranger else _STREAMS_PER_PEER
        if self._streams.get(peer_id, 0) >= most or self._stream_count >= _STREAMS:
            await self._reset(stream)
            return
        self._streams[peer_id] = self._streams.get(peer_id, 0) + 1
        self._stream_count += 1
        finished = False
        try:
            with trio.move_on_after(_HELLO_TIMEOUT if stranger else _STREAM_LIFE):
                if stranger:
                    await self._serve_lobby(stream)
                else:
                    self._touch(peer_id)
                    await self._host._swarm_stream_handler(stream)
                await stream.close()  # not reset: that would throw away what the other side has not read yet
                finished = True
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make the library raise
            log.debug("a stream from %s failed: %s", peer_id, type(error).__name__)
        finally:
            self._stream_count -= 1
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]
            if not finished:
                with trio.CancelScope(shield=True):
                    await self._reset(stream)

    async def _serve_lobby(self, stream: INetStream) -> None:
        """A stream of somebody who has not been introduced: hello, and to all else "not available"."""
        protocol, handler = await self._lobby.negotiate(MultiselectCommunicator(stream), int(_HELLO_TIMEOUT))
        if protocol is not None and handler is not None:
            stream.set_protocol(protocol)
            await handler(stream)

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
        with trio.fail_after(_HELLO_TIMEOUT):
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


def _multiaddrs(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Those that can be dialled."""
    found: list[bytes] = []
    for text in texts:
        try:
            address = Multiaddr(text).to_bytes()
            _host_and_port(address)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for a text that is no multiaddr
            log.debug("a peer gave an address that is none: %s", type(error).__name__)
        else:
            found.append(address)
    return tuple(found)


def _host_and_port(address: bytes) -> tuple[str, int]:
    """Of a binary multiaddr ``/ip4|ip6|dns|dns4|dns6/.../tcp/...``. Raises BadContent for any other."""
    try:
        parts = list(Multiaddr(address).items())
    except Exception as error:  # the library raises many kinds for bytes that are no multiaddr
        raise BadContent("bytes that are no multiaddr") from error
    names = [protocol.name for protocol, _ in parts]
    if len(parts) != 2 or names[0] not in ("ip4", "ip6", "dns", "dns4", "dns6") or names[1] != "tcp":
        raise BadContent("an address that is not TCP")
    return str(parts[0][1]), int(str(parts[1][1]))


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
