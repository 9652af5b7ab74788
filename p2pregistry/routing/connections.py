"""Connections of libp2p: the host, who may connect, dialling, and streams within limits.

The host speaks TCP, Noise and Yamux and nothing else. What py-libp2p 0.8.1 does that a node cannot live with is kept
out here rather than patched in the library; docs/dependencies.md lists each with the test that watches it:

- We accept connections ourselves and hand them to the library: its listener shares a taken port without a word
  (SO_REUSEPORT), outlives ``run()``, and keeps a place for every connection that ever came in.
- We dial addresses ourselves: its dialler waits 250 ms after success, tries one address only, and refuses a peer for
  60 s after a failure. Its auto-connector, which dials everybody it has heard of, is switched off.
- Every stream has time limits and a place in a bounded number, per peer and in all.

With ``members`` a connection begins in the lobby, where nothing but hello is spoken; who has not shown a credential
there within five seconds is disconnected, and so is who shows one that does not count.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
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
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from p2pregistry.errors import BadContent, LocalError, RemoteBusy, RemoteError, Unreachable
from p2pregistry.routing.identity import load_or_create_identity
from p2pregistry.routing.kad.wire import Contact
from p2pregistry.routing.members import Members

if TYPE_CHECKING:
    from libp2p.abc import INetConn, INetStream

    #: Serves one incoming stream.
    Serve = Callable[[INetStream], Awaitable[None]]

HELLO_PROTOCOL: Final = TProtocol("/p2pregistry/hello/1")
#: Seconds that a stranger has to say hello, and that one hello may take.
HELLO_TIMEOUT: Final = 5.0
#: Connections in the lobby, and streams of each.
_STRANGERS: Final = 64
_STREAMS_PER_STRANGER: Final = 2
#: Seconds an incoming stream may live.
_STREAM_LIFE: Final = 120.0
_STREAMS_PER_PEER: Final = 32
_STREAMS: Final = 2048
_CONNECTIONS: Final = 400
_HANDSHAKES: Final = 128
_HANDSHAKE_TIMEOUT: Final = 5.0

log = logging.getLogger(__name__)

# The library takes its loggers off the root and prints warnings bare; put them back, without the flood.
logging.getLogger("libp2p").propagate = True
logging.getLogger("libp2p").setLevel(logging.CRITICAL)
# This module of it logs through the root logger's functions, which set up logging for the whole program.
setattr(swarm_connection, "logging", logging.getLogger("libp2p.network.connection"))  # noqa: B010 - no such attribute to the type checker


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


class Connections:
    """The connections of one node. ``announce``: the IP address that others reach it by; ``members``: whose connections
    may do more than say hello, None: everybody's. Run ``running`` first."""

    def __init__(
        self, key_file: Path, listeners: Sequence[trio.SocketListener], announce: str, members: Members | None
    ) -> None:
        """Raises LocalError where the identity cannot be used."""
        self._listeners = listeners
        port = listeners[0].socket.getsockname()[1]
        self.address = Multiaddr(f"/{'ip6' if ':' in announce else 'ip4'}/{announce}/tcp/{port}")
        self.host = _make_host(key_file, [self.address])
        swarm = self.host.get_network()
        if not isinstance(swarm, Swarm):
            raise LocalError("libp2p made a network of another kind")
        self.swarm = swarm
        swarm.set_resource_manager(None)  # it refuses ten connections a second from one peer; limits are ours
        swarm.auto_connector.maybe_connect = _no_connections  # type: ignore[method-assign]
        swarm.set_stream_handler(self._limited)
        self._members = members
        if members is not None:
            self.host._should_identify_peer = _no_identify  # type: ignore[method-assign]
        self._lobby = Multiselect({})
        self._strangers: OrderedDict[ID, None] = OrderedDict()
        self._used: OrderedDict[ID, None] = OrderedDict()
        self._dialling: dict[ID, trio.Event] = {}
        self._handshakes: OrderedDict[trio.CancelScope, None] = OrderedDict()
        self._streams: dict[ID, int] = {}
        self._stream_count = 0
        self._nursery: trio.Nursery | None = None

    def serve(self, protocol: str, handler: Serve, *, strangers: bool = False) -> None:
        """Give incoming streams of a protocol to ``handler``; with ``strangers`` also those of the lobby."""
        self.host.set_stream_handler(TProtocol(protocol), handler)
        if strangers:
            self._lobby.add_handler(TProtocol(protocol), handler)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        """Accept and dial until cancelled; tasks that need connections belong in the nursery. Order of the end: no new
        connections, no more requests, then the connections."""
        async with self.host.run(listen_addrs=[]):
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._expel)
                    nursery.start_soon(trio.serve_listeners, self._accept, list(self._listeners))
                    yield nursery
            finally:
                self._nursery = None
                with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
                    async with trio.open_nursery() as closing:
                        for connection in self.swarm.get_connections():
                            closing.start_soon(connection.close)  # one by one, as close() does, costs 0.2 s each
                with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
                    await self.host.close()

    def spawn(self, task: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Run it beside the connections, unless they are being closed."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    @property
    def open(self) -> bool:
        """Whether they can be used."""
        return self._nursery is not None

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One incoming connection, from its handshake to its end."""
        with trio.CancelScope(deadline=trio.current_time() + _HANDSHAKE_TIMEOUT) as handshake:
            if len(self._handshakes) >= _HANDSHAKES:  # a flood of the silent: the oldest has had its chance
                self._handshakes.popitem(last=False)[0].cancel()
            self._handshakes[handshake] = None
            try:
                raw = RawConnection(TrioTCPStream(stream), False)
                muxed = await self.swarm.upgrade_inbound_raw_conn(raw, self.address)
            except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make the library raise
                log.debug("a connection from outside failed: %s", type(error).__name__)
                return
            finally:
                self._handshakes.pop(handshake, None)
            handshake.deadline = float("inf")
            connections = self.swarm.get_connections(muxed.peer_id)
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
                self._nursery.start_soon(self.disconnect, self._strangers.popitem(last=False)[0])
            self._nursery.start_soon(self._wait_for_hello, peer_id, self._members)

    async def _wait_for_hello(self, peer_id: ID, members: Members) -> None:
        try:
            with trio.move_on_after(HELLO_TIMEOUT):
                await members.wait(peer_id.to_bytes())
                self._make_room(peer_id)
                return
            members.give_up(peer_id.to_bytes())
            await self.disconnect(peer_id)
        finally:
            self._strangers.pop(peer_id, None)

    async def _expel(self) -> None:
        """Disconnect those who do not belong to the swarm any more."""
        while self._members is not None:
            await trio.sleep(1.0)
            for peer_id in self._members.expelled():
                self._members.left(peer_id)
                await self.disconnect(ID(peer_id))

    def _make_room(self, newest: ID) -> None:
        """Keep the number of connections bounded: those used longest ago are closed."""
        self.touch(newest)
        if self._nursery is None:
            return
        for peer_id in list(self._used):
            if self.swarm.get_total_connections() <= _CONNECTIONS or peer_id == newest:
                return
            del self._used[peer_id]
            self._nursery.start_soon(self.disconnect, peer_id)

    def touch(self, peer_id: ID) -> None:
        self._used[peer_id] = None
        self._used.move_to_end(peer_id)
        while len(self._used) > 4 * _CONNECTIONS:
            self._used.popitem(last=False)

    async def disconnect(self, peer_id: ID) -> None:
        with trio.move_on_after(2.0):
            try:
                await self.swarm.close_peer(peer_id)
            except Exception as error:  # noqa: BLE001 - a connection that cannot even be closed is left to its end
                log.debug("closing a connection failed: %s", type(error).__name__)

    def connected(self, peer_id: ID) -> list[INetConn]:
        return [c for c in self.swarm.get_connections(peer_id) if not c.is_closed]

    async def connect(self, contact: Contact) -> ID:
        """Be connected to the peer. Its addresses are tried in turn. Raises Unreachable."""
        peer_id = ID(contact.peer_id)
        while not self.connected(peer_id):
            if (dialled := self._dialling.get(peer_id)) is not None:
                await dialled.wait()
                if not self.connected(peer_id):
                    raise Unreachable("a peer could not be dialled")
                break
            self._dialling[peer_id] = trio.Event()
            try:
                await self._dial(peer_id, contact.addrs)
            finally:
                self._dialling.pop(peer_id).set()
            self._make_room(peer_id)
        self.touch(peer_id)
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
                connection = await self.swarm.upgrade_outbound_raw_conn(raw, peer_id)
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
            if self._members is not None and not self.connected(peer_id):
                self._members.left(peer_id.to_bytes())

    @asynccontextmanager
    async def stream(
        self, contact: Contact, protocol: str, kept: INetStream | None = None
    ) -> AsyncIterator[INetStream]:
        """A stream to the peer, new unless one that was kept is handed in; reset unless the body ends well, which is
        to close it. Foreign errors become RemoteBusy: the peer is there, but not for this.

        A peer that let a stream run into its caller's time limit is disconnected: it may have died without a word, and
        the next request should dial it afresh.
        """
        peer_id = ID(contact.peer_id) if kept is not None else await self.connect(contact)
        stream = kept
        try:
            if stream is None:
                stream = await self.host.new_stream(peer_id, [TProtocol(protocol)])
            yield stream
        except RemoteError:
            await self._reset(stream)
            raise
        except trio.Cancelled:
            if self._nursery is not None:
                self._nursery.start_soon(self._reset, stream)
                self._nursery.start_soon(self.disconnect, peer_id)
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
            with trio.move_on_after(HELLO_TIMEOUT if stranger else _STREAM_LIFE):
                if stranger:
                    await self._serve_lobby(stream)
                else:
                    self.touch(peer_id)
                    await self.host._swarm_stream_handler(stream)
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
        protocol, handler = await self._lobby.negotiate(MultiselectCommunicator(stream), int(HELLO_TIMEOUT))
        if protocol is not None and handler is not None:
            stream.set_protocol(protocol)
            await handler(stream)


def multiaddrs(texts: Iterable[str]) -> tuple[bytes, ...]:
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
