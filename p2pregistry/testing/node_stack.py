"""A node and a tracker without processes, DHT or database: the real parts between a router in memory and sockets."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.ipfs import around, make_gateways, manifests
from node.settings import Ipfs, NodeSettings
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.crowd.announcer import Me
from p2pregistry.crowd.finder import CrowdFinder
from p2pregistry.crowd.gateways import Gateways
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, RegistryError
from p2pregistry.flights import Flights
from p2pregistry.haves import Haves
from p2pregistry.pull.commands import Limits
from p2pregistry.resolve import Feed, Resolver
from p2pregistry.routing.base import Peer
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.client_auth import ClientAuth
from p2pregistry.serve.hosts import Hosts
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.serve.pull_api import PullApi
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.cache import Cache
from p2pregistry.store.files import FileStore, open_files
from p2pregistry.store.forget import keep_only
from p2pregistry.store.index import Index, open_index
from p2pregistry.store.records import StoredManifest
from p2pregistry.testing.http import running
from p2pregistry.testing.tracker_api import AUTHORIZATION, Registry, registry
from p2pregistry.trust.claims import sign_manifest_claim
from p2pregistry.trust.keys import KeySet, TrackerKeys
from p2pregistry.trust.records import ANYONE, Caller
from p2pregistry.trusting import Trust
from p2pregistry.visible import Visible
from tracker.announces import MemoryAnnounces
from tracker.blobs import Blobs
from tracker.board import Pace
from tracker.named import Named
from tracker.peer_endpoints import Swarm, TrackerPeerApi
from tracker.signed import SignedRecords

__all__ = ["AUTHORIZATION", "NAME", "QUICK", "NodeStack", "Origin", "node_stack", "origin", "peer_id"]

#: Where its clients get tokens.
REALM = "https://registry.example.com/token"
#: The registry name that the origin says it is.
NAME = "registry.example.com"
#: Limits under which faults show within tenths of a second.
QUICK = Limits(silence=0.5, late_floor=0.2, expected=0.1, tracker_late=0.3, back_off=0.05, patience=5.0)


@dataclass
class Origin:
    """A tracker: push with ``registry``. ``requests`` are those to its peer API, with the Range header."""

    registry: Registry
    keys: TrackerKeys
    api: TrackerPeerApi
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    #: called before each answer; it may raise, or wait
    gate: Callable[[Request], object] | None = None
    #: it answers nothing but errors
    dead: bool = False

    async def handle(self, request: Request) -> Response:
        """The peer API behind the gate."""
        self.requests.append((request.target, request.header("range")))
        if self.dead:
            raise LocalError("out of order")
        if self.gate is not None:
            waiting = self.gate(request)
            if isinstance(waiting, trio.Event):
                await waiting.wait()
        return await self.api(request)


@asynccontextmanager
async def origin(root: Path) -> AsyncIterator[Origin]:
    """A tracker with its catalog in memory and its peer API on a free port."""
    keys = TrackerKeys.load_or_create(root / "keys")
    async with registry(root, sign=lambda claim: sign_manifest_claim(keys.signer, claim)) as push:
        catalog = push.catalog
        swarm = Swarm("default", (NAME,), (), keys.root_public, keys.key_set())
        named = Named(catalog)
        announces = MemoryAnnounces(named, pace=Pace(), randrange=random.Random(2).randrange)  # noqa: S311
        blobs = Blobs(catalog, push.objects)
        signed = SignedRecords(lambda: keys.signer)
        api = TrackerPeerApi(catalog, blobs, Slots(16, 256), lambda: swarm, signed, named=named, announces=announces)
        made = Origin(push, keys, api)
        async with running(made.handle, grace=0.0) as url:
            made.url = url
            yield made


@dataclass
class NodeStack:
    """The parts of a node that runs in this process. ``fetched`` counts bytes by the kind of source."""

    url: str
    peer_url: str
    pull: PullApi
    peer: PeerApi
    store: FileStore
    index: Index
    visible: Visible
    resolver: Resolver
    cache: Cache
    flights: Flights
    trust: Trust
    tracker: TrackerSource | None
    fetched: dict[str, int]
    notes: list[RegistryError]
    dropped: list[Digest]
    gateways: Gateways | None = None
    served: int = 0  # bytes to peers

    async def landed(self) -> None:
        """Wait until no flight is under way."""
        with trio.fail_after(20):
            while len(self.flights):
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def node_stack(
    root: Path,
    *,
    tracker: str | None = None,
    network: MemoryNetwork | None = None,
    name: str = "me",
    max_bytes: int | None = None,
    max_age: float = 3600.0,
    max_stale: float | None = None,
    peer_stale: float | None = None,
    feed: Feed | None = None,
    root_key: str | None = None,
    own: Caller = ANYONE,
    auth: bool = False,
    zone: str = "",
    rest: bool = True,
    limits: Limits = QUICK,
    clock: Callable[[], float] = time.time,
    spoil: Callable[[Handler], Handler] | None = None,
    ipfs: Ipfs | None = None,
) -> AsyncIterator[NodeStack]:
    """A node over ``root`` with its pull and peer API on free ports; it is ``name`` in ``network``.

    ``spoil`` makes what answers its peers of the handler that would.
    """
    members = network or MemoryNetwork()
    await trio.Path(root).mkdir(exist_ok=True)
    source = TrackerSource(tracker, timeout=1.0, rest=0.5) if tracker is not None else None
    async with AsyncExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        store = await stack.enter_async_context(open_files(root))
        index = await stack.enter_async_context(open_index(root / "index.lmdb"))
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def forget(keys: KeySet) -> None:
            await keep_only(index, keys.keys.keys())

        trust = Trust(index, source, root_key, clock=clock, forget=forget)
        visible = Visible(index, own)
        fetched: dict[str, int] = {}
        dropped: list[Digest] = []
        notes: list[RegistryError] = []
        # who it is depends on its address, which is known once it listens
        later: list[Handler] = []

        async def peer_handler(request: Request) -> Response:
            return await later[0](request)

        peer_url = await stack.enter_async_context(running(peer_handler, grace=0.0))
        me = Me(peer_id(name), peer_url, zone)
        router = members.router(Peer(me.peer_id, peer_url))
        draw = random.Random(1).randrange  # noqa: S311 - the same in every run
        finder = CrowdFinder(
            me, router, source, randrange=draw, limit=8, public=lambda digest: visible.may_have(ANYONE, digest)
        )
        haves = Haves(index)

        def drop(digest: Digest) -> None:
            dropped.append(digest)
            router.drop([digest])
            finder.drop(digest)
            haves.drop(digest)

        def count(kind: str, number: int) -> None:
            fetched[kind] = fetched.get(kind, 0) + number

        def finished(ref: BlobRef) -> None:
            router.hold([ref.digest])
            finder.hold([(ref.digest, ref.size)])

        settings = NodeSettings(ipfs=ipfs or Ipfs())
        gateways = make_gateways(settings, index)
        if gateways is not None:
            nursery.start_soon(gateways.run)

        def learnt(_repository: str, manifest: StoredManifest, _blobs: object) -> None:
            if gateways is not None:
                gateways.hints.learn(manifest)

        cache = Cache(store, index, max_bytes, None, drop, clock)
        flights = Flights(
            store,
            cache,
            index,
            around(settings, finder, gateways, visible),
            randrange=draw,
            haves=haves,
            limits=limits,
            rest=rest,
            fetched=count,
            finished=finished,
            note=notes.append,
        )
        resolver = Resolver(
            index,
            trust,
            visible,
            source,
            router,
            clock=clock,
            max_age=max_age,
            max_stale=max_stale,
            peer_stale=peer_stale,
            feed=feed,
            learnt=learnt,
            from_ipfs=manifests(settings, gateways, visible),
        )
        pull = PullApi(
            resolver,
            visible,
            cache,
            flights,
            hosts=Hosts(()),
            auth=ClientAuth(me.peer_id, lambda: trust.keys, trust.now, lambda: REALM) if auth else None,
            names=lambda: frozenset({NAME}),
            served=lambda _count: None,
            clock=clock,
        )

        def served(count: int) -> None:
            node.served += count

        peer = PeerApi(index, cache, Slots(8, 256), visible, served=served, haves=haves, watching=finder.watched)
        later.append(peer if spoil is None else spoil(peer))
        await nursery.start(finder.serve)
        async with running(pull, grace=0.0) as url, flights.running():
            router.hold([*index.manifest_digests(), *(digest for digest, _size, _use in index.held())])
            node = NodeStack(
                url,
                peer_url,
                pull,
                peer,
                store,
                index,
                visible,
                resolver,
                cache,
                flights,
                trust,
                source,
                fetched,
                notes,
                dropped,
                gateways,
            )
            yield node
        members.leave(me.peer_id)
        nursery.cancel_scope.cancel()


def peer_id(name: str) -> str:
    """A well-formed peer id for a node of this name."""
    letters = "".join(char for char in name if char.isascii() and char.isalnum() and char not in "0OIl")
    return "12D3KooW" + letters.rjust(40, "x")[-40:]
