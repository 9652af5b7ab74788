"""Gateways as a last resort: a flight hears of them when those who should have the blob do not deliver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.crowd.gateways import Gateways, WithGateways
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.ipfs.gateway_client import GatewayClient
from p2pregistry.serve.http import Request, Response
from p2pregistry.sources.base import Source
from p2pregistry.sources.ipfs import Common, IpfsSource
from p2pregistry.sources.memory import MemorySource
from p2pregistry.surroundings import Follower
from p2pregistry.testing.http import running
from p2pregistry.testing.sources import read

DATA = b"a blob"
REF = Metainfo.of_bytes(DATA).ref


class Crowd:
    """A finder without a tracker; each look-up finds the same peers."""

    tracker = None

    def __init__(self, *peers: Source) -> None:
        self.peers = list(peers)
        self.follower: Follower | None = None

    @contextmanager
    def follow(self, ref: BlobRef, follower: Follower) -> Iterator[None]:
        self.follower = follower
        yield

    async def announced(self, digest: Digest) -> None:
        """There is nobody to ask."""

    async def look_up(self, digest: Digest, *, need: object = None) -> None:
        assert self.follower is not None
        for peer in self.peers:
            self.follower.have(peer, None, near=False)

    def ban(self, source: str, why: str) -> None:
        """Of no interest."""


class Told:
    """A flight that writes down whom it was told of."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def have(self, source: Source, pieces: bytes | None, near: bool) -> None:
        self.names.append(source.kind)

    def more(self, source: str, pieces: Sequence[int]) -> None: ...
    def gone(self, source: str) -> None: ...
    def crowd(self, wanting: int, holding: int) -> None: ...


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(MemorySource("a peer", {REF.digest: DATA}))


async def told(crowd: Crowd, *needs: bool, last: bool = True) -> list[list[str]]:
    """Whom a flight was told of in each look-up, with or without need."""

    def make(common: Common) -> list[IpfsSource]:
        return [IpfsSource(GatewayClient("http://127.0.0.1:1"), common)]

    gateways, flight, found = Gateways(make, info=lambda _digest: None), Told(), []
    finder = WithGateways(crowd, gateways, last=last)
    with finder.follow(REF, flight):
        for need in needs:
            before = len(flight.names)
            await finder.look_up(REF.digest, need=lambda need=need: need)  # type: ignore[misc]
            found.append(flight.names[before:])
    for source in gateways.all:
        await source.aclose()
    return found


async def test_a_peer_that_was_just_found_comes_first(crowd: Crowd) -> None:
    assert await told(crowd, False) == [["peer"]]
    assert await told(crowd, True) == [["peer"]]


async def test_a_peer_that_is_found_again_and_does_not_deliver_is_no_reason_to_wait(crowd: Crowd) -> None:
    # as after a crash: for a while it is still known as somebody who has the blob
    assert await told(crowd, False, True) == [["peer"], ["peer", "ipfs"]]


async def test_while_nobody_is_in_need_nobody_hears_of_gateways(crowd: Crowd) -> None:
    assert await told(crowd, False, False) == [["peer"], ["peer"]]


async def test_with_nobody_else_at_once() -> None:
    assert await told(Crowd(), False) == [["ipfs"]]


async def test_what_becomes_private_in_the_course_of_a_flight_is_asked_for_no_more() -> None:
    asked: list[str] = []

    async def answer(request: Request) -> Response:
        asked.append(request.path)
        return Response(200, [("Content-Type", "application/vnd.ipld.raw")], DATA)

    public = True
    async with running(answer) as url:
        gateways = Gateways(lambda common: [IpfsSource(GatewayClient(url), common)], info=lambda _digest: None)
        finder, (source,) = WithGateways(Crowd(), gateways, last=False, allowed=lambda _digest: public), gateways.all
        with finder.follow(REF, Told()):
            assert await read(source, REF.digest, 0, len(DATA)) == DATA
            public = False
            with pytest.raises(NotFound):
                await read(source, REF.digest, 0, len(DATA))
            with pytest.raises(NotFound):
                await source.table(REF)
        assert len(asked) == 1
        await source.aclose()
