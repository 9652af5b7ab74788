"""Real libp2p hosts in one process, and a watch on each thing in the library that routing/connections.py works around.

A test named ``test_library_...`` fails when the library has changed: then the work-around can probably go.
"""

import logging
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import libp2p
import libp2p.network.swarm as library_swarm
import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, SettingsError, Unreachable
from p2pregistry.routing.dht import KAD_PROTOCOL, DhtConfig, DhtRouter, Hello, KadSettings, open_dht
from p2pregistry.routing.identity import base58, load_or_create_identity, peer_id_of
from p2pregistry.routing.kad.wire import Contact, Kind, Message, encode, varint
from p2pregistry.testing.routing import eventually, find_all, find_until

QUICK = KadSettings(request_timeout=2.0)


@asynccontextmanager
async def nodes(tmp_path: Path, count: int) -> AsyncIterator[list[DhtRouter]]:
    """Nodes that joined through the first one, all in each other's tables."""
    made: list[DhtRouter] = []
    async with AsyncExitStack() as stack:
        for i in range(count):
            bootstrap = tuple(made[0].addrs) if made else ()
            hello = Hello((f"http://192.0.2.{i}:5001",), "zone")
            config = DhtConfig(tmp_path / f"{i}.key", "127.0.0.1", 0, bootstrap=bootstrap, hello=hello, kad=QUICK)
            made.append(await stack.enter_async_context(open_dht(config)))
        await eventually(lambda: all(len(node.driver.table) == count - 1 for node in made))
        yield made


def port_of(node: DhtRouter) -> int:
    return int(node.addrs[0].split("/")[4])


async def test_the_identity_lasts_and_is_private(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        first = made[0].peer_id
    async with nodes(tmp_path, 1) as made:
        assert made[0].peer_id == first
    assert stat.S_IMODE((tmp_path / "0.key").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["0.key"], "no draft is left"
    assert base58(peer_id_of(load_or_create_identity(tmp_path / "0.key"))) == first


def test_a_file_that_holds_no_key_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("something else")
    with pytest.raises(LocalError):
        load_or_create_identity(path)
    assert path.read_text() == "something else"


async def test_a_taken_port_is_an_error_at_start(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        with pytest.raises(LocalError, match="cannot listen"):
            async with open_dht(DhtConfig(tmp_path / "x.key", "127.0.0.1", port_of(made[0]))):
                pass


async def test_library_shares_a_taken_port_without_a_word() -> None:
    """Hence our own listener."""

    async def ignore(_: object) -> None:
        return

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
    one, two = TCPListener(ignore), TCPListener(ignore)
    await one.listen(address)
    await two.listen(address)
    await one.close()
    await two.close()


async def test_a_bad_bootstrap_address_is_the_operators_error(tmp_path: Path) -> None:
    for text in ("/ip4/127.0.0.1/tcp/1", "tracker:5052", "/ip4/127.0.0.1/tcp/1/p2p/nonsense"):
        with pytest.raises(SettingsError):
            async with open_dht(DhtConfig(tmp_path / "x.key", "127.0.0.1", 0, bootstrap=(text,))):
                pass


async def test_an_error_in_the_body_comes_out_as_it_is_and_the_port_is_free_again(tmp_path: Path) -> None:
    port = 0
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        async with open_dht(DhtConfig(tmp_path / "x.key", "127.0.0.1", 0)) as node:
            port = port_of(node)
            raise KeyError("the body's")
    async with open_dht(DhtConfig(tmp_path / "x.key", "127.0.0.1", port)):
        pass


async def test_cancellation_gets_through(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_dht(DhtConfig(tmp_path / "x.key", "127.0.0.1", 0)):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_closing_many_connections_is_quick(tmp_path: Path) -> None:
    async with nodes(tmp_path, 6):
        start = trio.current_time()
    assert trio.current_time() - start < 6 * 2.0


async def test_who_knows_of_nobody_waits_for_nobody(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        with trio.fail_after(5):
            assert not await made[0].joined(within=600.0)


async def test_peers_are_known_by_their_hello(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        digest = Digest.of(b"x")
        made[1].hold([digest])
        await find_until(made[2], digest, {made[1].peer_id})
        assert (await find_all(made[2], digest))[0].url == "http://192.0.2.1:5001"
        assert made[1].peer_id in {p.peer_id for p in made[2].peers()}
        assert made[2].peer_id in {p.peer_id for p in made[1].peers()}, "the one that was asked knows the asker too"


async def test_a_node_that_returns_is_reached_at_once(tmp_path: Path) -> None:
    """The library's own dialler would refuse it for 60 s (its negative cache)."""
    async with nodes(tmp_path, 2) as made:
        config = DhtConfig(tmp_path / "back.key", "127.0.0.1", 0, hello=Hello(("http://192.0.2.9:1",)))
        async with open_dht(config) as node:
            contact = node.driver.own
        with pytest.raises(Unreachable):
            await made[0].exchange(contact, [Message(Kind.PING)])
        port = Multiaddr(contact.addrs[0]).value_for_protocol("tcp")
        async with open_dht(DhtConfig(tmp_path / "back.key", "127.0.0.1", int(port))) as node:
            start = trio.current_time()
            assert await made[0].exchange(contact, [Message(Kind.PING)]) == Message(Kind.PING)
            assert trio.current_time() - start < 5


async def test_every_address_of_a_peer_is_tried(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        config = DhtConfig(tmp_path / "two.key", "127.0.0.1", 0)
        async with open_dht(config) as node:
            dead = Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()
            contact = Contact(node.driver.own.peer_id, (b"nonsense", dead, *node.driver.own.addrs))
            assert await made[0].exchange(contact, [Message(Kind.PING)]) == Message(Kind.PING)


async def test_a_dial_does_not_wait_after_its_success(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made, open_dht(DhtConfig(tmp_path / "b.key", "127.0.0.1", 0)) as other:
        times: list[float] = []
        for _ in range(5):
            start = trio.current_time()
            await other.exchange(made[0].driver.own, [Message(Kind.PING)])
            times.append(trio.current_time() - start)
            await other._links.disconnect(ID(made[0].driver.own.peer_id))
        assert min(times) < 0.2


async def test_only_noise_and_yamux_are_offered(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        upgrader = made[0]._links.swarm.upgrader
        assert [str(p) for p in upgrader.security_multistream.transports] == ["/noise"]
        assert [str(p) for p in upgrader.muxer_multistream.transports] == ["/yamux/1.0.0"]


async def test_connections_that_ended_leave_nothing_behind(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made, open_dht(DhtConfig(tmp_path / "b.key", "127.0.0.1", 0)) as other:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(10):
            await other.exchange(made[0].driver.own, [Message(Kind.PING)])
            await other._links.disconnect(ID(made[0].driver.own.peer_id))
        await eventually(lambda: not made[0]._links.swarm.get_connections())
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks + 3)


# Idle and hostile


async def test_idle_streams_and_connections_do_not_stop_the_answers(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made, AsyncExitStack() as stack:
        server = made[0]
        for _ in range(150):  # sockets that never say anything, more than there are places for handshakes
            await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port_of(server)))
        async with open_dht(DhtConfig(tmp_path / "hostile.key", "127.0.0.1", 0)) as hostile:
            peer_id = await hostile._links.connect(server.driver.own)
            connection = hostile._links.connected(peer_id)[0]
            for _ in range(100):  # streams that never say what they are for
                await connection.new_stream()
            with trio.fail_after(5):
                assert await made[1].exchange(server.driver.own, [Message(Kind.PING)]) == Message(Kind.PING)
            async with open_dht(DhtConfig(tmp_path / "late.key", "127.0.0.1", 0)) as late:
                with trio.fail_after(5):
                    await late.exchange(server.driver.own, [Message(Kind.PING)])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        varint(5) + b"\x08\x63aaa",
        encode(Message(Kind.GET_VALUE, b"k")),
        encode(Message(Kind.FIND_NODE)),
        varint(20),
    ],
)
async def test_garbage_on_a_stream_hurts_only_that_stream(tmp_path: Path, garbage: bytes) -> None:
    async with nodes(tmp_path, 2) as made:
        server, client = made
        peer_id = await client._links.connect(server.driver.own)
        stream = await client._links.host.new_stream(peer_id, [TProtocol(KAD_PROTOCOL)])
        await stream.write(garbage)
        with trio.fail_after(5):
            assert await client.exchange(server.driver.own, [Message(Kind.PING)]) == Message(Kind.PING)
        await stream.reset()


async def test_a_peer_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        digest = Digest.of(b"x")
        made[1].hold([digest])
        await find_until(made[2], digest, {made[1].peer_id})
        silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = silent[0].socket.getsockname()[1]
        try:
            hung = Contact(
                b"\x00\x24\x08\x01\x12\x20" + bytes(32), (Multiaddr(f"/ip4/127.0.0.1/tcp/{port}").to_bytes(),)
            )
            made[2].driver.table.answered(hung)
            with trio.fail_after(10):
                await find_all(made[2], Digest.of(b"nobody has it"))
            assert hung.peer_id not in made[2].driver.table
            start = trio.current_time()
            assert [p.peer_id for p in await find_all(made[2], digest)] == [made[1].peer_id]
            assert trio.current_time() - start < QUICK.request_timeout
        finally:
            silent[0].socket.close()


# Watching the library


def test_library_is_the_version_that_was_tried() -> None:
    assert libp2p.__version__ == "0.8.1"


def test_library_waits_after_a_successful_dial_and_blocks_after_a_failed_one() -> None:
    """Hence our own dialling."""
    assert library_swarm._HAPPY_EYEBALLS_DELAY == 0.25
    cache = library_swarm._NegativePeerCache()
    cache.mark_failed("x")
    assert cache.is_blocked("x")


def test_library_accepts_plaintext_unless_told_otherwise() -> None:
    swarm = libp2p.new_swarm()
    assert isinstance(swarm, library_swarm.Swarm)
    assert "/plaintext/2.0.0" in [str(p) for p in swarm.upgrader.security_multistream.transports]


def test_library_has_an_auto_connector_to_switch_off() -> None:
    """It aims at the middle between its two marks, so that a low mark of 0 does not stop it."""
    swarm = libp2p.new_swarm(connection_config=ConnectionConfig(low_watermark=0, min_connections=0))
    assert isinstance(swarm, library_swarm.Swarm)
    assert callable(swarm.auto_connector.maybe_connect)
    assert callable(library_swarm.Swarm.upgrade_inbound_raw_conn)
    assert callable(library_swarm.Swarm.upgrade_outbound_raw_conn)


async def test_library_keeps_a_place_for_every_connection_that_ever_came_in() -> None:
    """Hence our own accepting: after max_connections incoming connections, ended ones included, it takes no more."""
    from libp2p.tools.anyio_service import background_trio_service

    server = libp2p.new_swarm(connection_config=ConnectionConfig(low_watermark=0, min_connections=0))
    assert isinstance(server, library_swarm.Swarm)
    async with background_trio_service(server):
        await server.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
        address = next(iter(server.listeners.values())).get_addrs()[0]
        free = server._inbound_limiter.available_tokens
        client = libp2p.new_swarm(connection_config=ConnectionConfig(low_watermark=0, min_connections=0))
        assert isinstance(client, library_swarm.Swarm)
        async with background_trio_service(client):
            connection = await client.dial_addr(address, server.get_peer_id())
            await connection.close()
            await eventually(lambda: not server.get_connections())
            assert server._inbound_limiter.available_tokens == free - 1
            await client.close()
        await server.close()


def test_library_logging_is_put_back() -> None:
    assert logging.getLogger("libp2p").propagate
    assert not logging.getLogger("libp2p").isEnabledFor(logging.WARNING)
    assert isinstance(swarm_connection.logging, logging.Logger)  # type: ignore[attr-defined]


def test_library_takes_its_logger_off_the_root() -> None:
    program = "import logging, libp2p; print(logging.getLogger('libp2p').propagate)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_library_is_loaded_only_with_the_dht() -> None:
    program = (
        "import sys, p2pregistry.routing.memory, p2pregistry.routing.driver, p2pregistry.routing.hello;"
        "print('libp2p' in sys.modules, 'multiaddr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False False"


def test_library_dials_over_tcp_with_the_class_that_was_tried() -> None:
    assert TCP().protocols() == ["tcp"]
