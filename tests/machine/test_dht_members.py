"""A swarm with credentials on real libp2p hosts: who does not belong to it learns nothing and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.peer.id import ID

from p2pregistry.digest import Digest
from p2pregistry.errors import RemoteError
from p2pregistry.routing import connections
from p2pregistry.routing.dht import KAD_PROTOCOL, DhtConfig, DhtRouter, Hello, KadSettings, open_dht
from p2pregistry.routing.hello import encode_hello
from p2pregistry.routing.identity import base58, load_or_create_identity, peer_id_of
from p2pregistry.routing.kad.wire import Contact, Kind, Message, blob_key
from p2pregistry.testing.members import DAY, Authority, Member
from p2pregistry.testing.routing import eventually, find_all, find_until

QUICK = KadSettings(request_timeout=3.0)
Credential = Callable[[], str | None]


def config(
    tmp_path: Path,
    name: str,
    authority: Authority | None,
    credential: str | None = "own",
    bootstrap: DhtRouter | None = None,
) -> DhtConfig:
    """A node of the authority's swarm, with a credential of its own unless another is given."""
    key = tmp_path / f"{name}.key"
    peer_id = base58(peer_id_of(load_or_create_identity(key)))
    if credential == "own":
        credential = None if authority is None else authority.issue(peer_id)
    return DhtConfig(
        key,
        "127.0.0.1",
        0,
        hello=Hello((f"https://192.0.2.1:5001/{name}",)),
        kad=QUICK,
        bootstrap=tuple(bootstrap.addrs) if bootstrap is not None else (),
        credential=lambda: credential,
        judge=authority,
    )


@asynccontextmanager
async def members(tmp_path: Path, authority: Authority, count: int) -> AsyncIterator[list[DhtRouter]]:
    made: list[DhtRouter] = []
    async with AsyncExitStack() as stack:
        for i in range(count):
            first = made[0] if made else None
            made.append(await stack.enter_async_context(open_dht(config(tmp_path, str(i), authority, bootstrap=first))))
        await eventually(lambda: all(len(node.driver.table) == count - 1 for node in made))
        yield made


@asynccontextmanager
async def stranger(tmp_path: Path, credential: str | None = None) -> AsyncIterator[DhtRouter]:
    """Plays by no rules: it asks without a hello, unless it is told to say one."""
    async with open_dht(config(tmp_path, "stranger", None, credential)) as node:
        yield node


async def gone(server: DhtRouter, peer_id: str) -> None:
    await eventually(lambda: not server._links.connected(ID.from_base58(peer_id)))


async def test_members_find_each_others_blobs(tmp_path: Path) -> None:
    authority = Authority()
    async with members(tmp_path, authority, 4) as made:
        digest = Digest.of(b"x")
        made[1].hold([digest])
        await find_until(made[3], digest, {made[1].peer_id})
        (found,) = await find_all(made[3], digest)
        assert (found.peer_id, found.url) == (made[1].peer_id, "https://192.0.2.1:5001/1")
        assert made[1].peer_id in {peer.peer_id for peer in made[3].peers()}
        for node in made:
            assert all(
                node._members is not None and node._members.introduced(c.peer_id) for c in node.driver.table.contacts()
            )


@pytest.mark.parametrize("protocol", [KAD_PROTOCOL, str(IDENTIFY), str(PING)])
async def test_without_a_hello_nothing_is_spoken_and_the_connection_ends(tmp_path: Path, protocol: str) -> None:
    async with members(tmp_path, Authority(), 2) as made, stranger(tmp_path) as other:
        peer_id = await other._links.connect(made[0].driver.own)
        with trio.fail_after(3), pytest.raises(Exception, match=r"protocol|negotiat|stream|EOF"):
            await other._links.host.new_stream(peer_id, [TProtocol(protocol)])
        assert other._links.connected(peer_id), "it has five seconds"
        started = trio.current_time()
        await gone(made[0], other.peer_id)
        assert trio.current_time() - started < 7
        assert other.driver.own.peer_id not in made[0].driver.table


def others(authority: Authority, peer_id: str) -> dict[str, str | None]:
    """Credentials with which ``peer_id`` is no member."""
    return {
        "none": None,
        "nonsense": "v4.public.nonsense",
        "expired": authority.issue(peer_id, lasts=-DAY),
        "of another swarm": authority.issue(peer_id, swarm="another"),
        "of another tracker": Authority().issue(peer_id),
        "somebody else's": authority.issue(Member().peer_id),
    }


@pytest.mark.parametrize("case", list(others(Authority(), Member().peer_id)))
async def test_a_credential_that_does_not_count_gets_no_answer(tmp_path: Path, case: str) -> None:
    authority = Authority()
    async with members(tmp_path, authority, 2) as made:
        peer_id = base58(peer_id_of(load_or_create_identity(tmp_path / "stranger.key")))
        credential = others(authority, peer_id)[case]
        async with stranger(tmp_path) as other:
            server = await other._links.connect(made[0].driver.own)
            stream = await other._links.host.new_stream(server, [connections.HELLO_PROTOCOL])
            await stream.write(encode_hello(Hello(("http://192.0.2.66:1",), credential=credential or "")))
            with trio.fail_after(5):
                assert not await answer(stream), "not even its hello"
                await gone(made[0], other.peer_id)
            assert other.peer_id not in {peer.peer_id for peer in made[0].peers()}
            assert other.driver.own.peer_id not in made[0].driver.table


async def answer(stream: INetStream) -> bytes:
    try:
        return await stream.read(1)
    except Exception:
        return b""


async def test_a_stranger_cannot_poison_the_dht(tmp_path: Path) -> None:
    """It is in a member's table and in a provider record, and neither gets anybody to it."""
    authority = Authority()
    async with members(tmp_path, authority, 3) as made, stranger(tmp_path) as other:
        digest = Digest.of(b"x")
        for node in made:
            node.driver.table.answered(other.driver.own)
            node.driver.store.add(blob_key(digest.raw), other.driver.own, trio.current_time())
        with trio.fail_after(20):
            assert await find_all(made[0], digest) == []
            assert other.peer_id not in {peer.peer_id for peer in made[0].peers()}
            made[1].hold([digest])
            await find_until(made[2], digest, {made[1].peer_id})
        assert other.driver.own.peer_id not in made[0].driver.table, "who does not show a credential is dropped"


async def test_a_stranger_cannot_tell_records(tmp_path: Path) -> None:
    async with members(tmp_path, Authority(), 2) as made, stranger(tmp_path) as other:
        key = blob_key(Digest.of(b"x").raw)
        lie = Message(Kind.ADD_PROVIDER, key, providers=(other.driver.own,))
        with trio.fail_after(8), pytest.raises((RemoteError, trio.TooSlowError)):
            await other.exchange(made[0].driver.own, [lie, Message(Kind.PING)])
        assert await find_all(made[1], Digest.of(b"x")) == []


async def test_who_is_revoked_is_disconnected_and_stays_away(tmp_path: Path) -> None:
    authority = Authority()
    async with members(tmp_path, authority, 3) as made:
        authority.revoked.add(made[2].peer_id)
        await gone(made[0], made[2].peer_id)
        with trio.fail_after(10), pytest.raises(RemoteError):
            await made[2].exchange(made[0].driver.own, [Message(Kind.PING)])
        assert made[2].peer_id not in {peer.peer_id for peer in made[0].peers()}
        assert await made[1].exchange(made[0].driver.own, [Message(Kind.PING)]) == Message(Kind.PING)


async def test_many_strangers_take_no_members_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_STRANGERS", 2)
    async with members(tmp_path, Authority(), 2) as made, AsyncExitStack() as stack:
        for number in range(5):
            other = await stack.enter_async_context(
                open_dht(DhtConfig(tmp_path / f"s{number}", "127.0.0.1", 0, kad=QUICK))
            )
            await other._links.connect(made[0].driver.own)
        await eventually(lambda: made[0]._links.swarm.get_total_connections() <= 3)
        with trio.fail_after(5):
            assert await made[1].exchange(made[0].driver.own, [Message(Kind.PING)]) == Message(Kind.PING)


async def test_a_member_that_lost_its_connection_introduces_itself_again(tmp_path: Path) -> None:
    async with members(tmp_path, Authority(), 2) as made:
        await made[1]._links.disconnect(ID(made[0].driver.own.peer_id))
        await gone(made[0], made[1].peer_id)
        with trio.fail_after(5):
            contact = Contact(made[0].driver.own.peer_id, made[0].driver.own.addrs)
            assert await made[1].exchange(contact, [Message(Kind.PING)]) == Message(Kind.PING)
