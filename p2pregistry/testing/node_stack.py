"""A node and a tracker without processes, DHT or database: the real parts between a router in memory and sockets."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.finder import PeerFinder
from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError
from p2pregistry.flight import Flights
from p2pregistry.pull.commands import Limits
from p2pregistry.resolve import Resolver, Trust
from p2pregistry.routing.base import Peer, Router
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.serve.pull_api import PullApi
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.cache import Cache
from p2pregistry.store.files import FileStore, open_files
from p2pregistry.store.index import Index, open_index
from p2pregistry.testing.http import running
from p2pregistry.testing.tracker_api import AUTHORIZATION, PASSWORD, USER, Registry
from p2pregistry.trust.claims import sign_manifest_claim
from p2pregistry.trust.keys import TrackerKeys
from tracker.accounts import Account
from tracker.catalog.memory import MemoryCatalog
from tracker.peer_endpoints import Swarm, TrackerPeerApi
from tracker.push_api import RegistryApi
from tracker.uploads import Uploads

__all__ = ["AUTHORIZATION", "NAME", "QUICK", "NodeStack", "Origin", "node_stack", "origin"]

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

    async def handle(self, request: Request) -> Response:
        """The peer API behind the gate."""
        self.requests.append((request.target, request.header("range")))
        if self.gate is not None:
            waiting = self.gate(request)
            if isinstance(waiting, trio.Event):
                await waiting.wait()
        return await self.api(request)


@asynccontextmanager
async def origin(root: Path) -> AsyncIterator[Origin]:
    """A tracker with its catalog in memory and its peer API on a free port."""
    keys = TrackerKeys.load_or_create(root / "keys")
    async with open_files(root) as store:
        catalog = MemoryCatalog()
        uploads = Uploads(catalog, store, expiry=3600.0, limit=100)
        push = RegistryApi(
            catalog,
            store,
            uploads,
            lambda claim: sign_manifest_claim(keys.signer, claim),
            account=Account(USER, PASSWORD),
        )
        swarm = Swarm("default", (NAME,), (), keys.root_public, keys.key_set())
        made = Origin(
            Registry(push, catalog, store, uploads), keys, TrackerPeerApi(catalog, store, Slots(16, 256), lambda: swarm)
        )
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
    cache: Cache
    flights: Flights
    trust: Trust
    tracker: TrackerSource | None
    fetched: dict[str, int]
    notes: list[RegistryError]
    dropped: list[Digest]

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
    root_key: str | None = None,
    limits: Limits = QUICK,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[NodeStack]:
    """A node over ``root`` with its pull and peer API on free ports; it is ``name`` in ``network``."""
    members = network or MemoryNetwork()
    await trio.Path(root).mkdir(exist_ok=True)
    source = TrackerSource(tracker, timeout=1.0, rest=0.5) if tracker is not None else None
    async with AsyncExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        store = await stack.enter_async_context(open_files(root))
        index = await stack.enter_async_context(open_index(root / "index.lmdb"))
        nursery = await stack.enter_async_context(trio.open_nursery())
        trust = Trust(index, source, root_key)
        fetched: dict[str, int] = {}
        dropped: list[Digest] = []
        notes: list[RegistryError] = []
        late = _LateRouter(members, name)
        finder = PeerFinder(late, source, limit=8)

        def drop(digest: Digest) -> None:
            dropped.append(digest)
            late.drop([digest])

        def count(kind: str, number: int) -> None:
            fetched[kind] = fetched.get(kind, 0) + number

        cache = Cache(store, index, max_bytes, None, drop, clock)
        flights = Flights(
            store,
            cache,
            index,
            finder,
            randrange=random.Random(1).randrange,  # noqa: S311 - the same in every run
            limits=limits,
            fetched=count,
            finished=lambda digest: late.hold([digest]),
            note=notes.append,
        )
        resolver = Resolver(index, trust, source, late, clock=clock, max_age=max_age, max_stale=max_stale)
        pull = PullApi(
            resolver, cache, flights, names=lambda: frozenset({NAME}), served=lambda _count: None, clock=clock
        )
        peer = PeerApi(index, cache, Slots(8, 256), served=lambda _count: None)
        await nursery.start(finder.serve)
        async with running(pull, grace=0.0) as url, running(peer, grace=0.0) as peer_url, flights.running():
            late.join(peer_url)
            late.hold([*index.manifest_digests(), *(digest for digest, _size, _use in index.held())])
            yield NodeStack(
                url, peer_url, pull, peer, store, index, cache, flights, trust, source, fetched, notes, dropped
            )
        nursery.cancel_scope.cancel()


class _LateRouter:
    """A router that can be handed out before the node knows its own address."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network, self._name = network, name
        self._router: Router = network.router(Peer(name, "http://127.0.0.1:9"))
        network.leave(name)

    def join(self, url: str) -> None:
        self._router = self._network.router(Peer(self._name, url))

    def hold(self, digests: Iterable[Digest]) -> None:
        self._router.hold(digests)

    def drop(self, digests: Iterable[Digest]) -> None:
        self._router.drop(digests)

    async def find(self, digest: Digest, found: Callable[[Peer], None], *, limit: int = 10) -> None:
        await self._router.find(digest, found, limit=limit)

    def peers(self) -> list[Peer]:
        return self._router.peers()
