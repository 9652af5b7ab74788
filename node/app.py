"""The node, put together: what runs, in which order it starts, and in which order it stops."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.addresses import urls_of
from node.admin import admin_handler
from node.fetching import open_fetching
from node.following import follower, heard_of
from node.ipfs import manifests
from node.joining import enter
from node.parts import make_tracker
from node.settings import NodeSettings
from node.standing import Standing
from node.visits import (
    NEIGHBOURS,
    TOKEN_URL,
    confirm,
    know_own_rights,
    known_names,
    lines,
    remember_neighbours,
    visit_tracker,
)
from node.warming import AskedFor, make_warmer
from p2pregistry import __version__, observe
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.crowd.announcer import MOST_HELD
from p2pregistry.crowd.finder import CrowdFinder
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, RequestError
from p2pregistry.feed.follow import Follower
from p2pregistry.flights import Flights
from p2pregistry.lifetime import allow_open_files, orderly
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.resolve import Resolver
from p2pregistry.routing.advertise import Advertiser
from p2pregistry.routing.hello import Hello
from p2pregistry.routing.identity import load_or_create_identity
from p2pregistry.serve.client_auth import ClientAuth
from p2pregistry.serve.endpoints import health
from p2pregistry.serve.hosts import Hosts
from p2pregistry.serve.http import Handler
from p2pregistry.serve.listen import Limits as ListenLimits
from p2pregistry.serve.listen import open_listeners, open_unix_listener, serve
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.serve.pull_api import PullApi
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.cache import Cache
from p2pregistry.store.files import FileStore, open_files
from p2pregistry.store.forget import keep_only
from p2pregistry.store.index import Index, open_index
from p2pregistry.store.records import StoredManifest
from p2pregistry.store.recover import discard_partials, reconcile, stale_partials
from p2pregistry.trust.certificate import server_context
from p2pregistry.trust.keys import KeySet
from p2pregistry.trusting import Trust
from p2pregistry.visible import Visible
from p2pregistry.warm.warmer import Warmer

if TYPE_CHECKING:
    from p2pregistry.crowd.gateways import Gateways
    from p2pregistry.routing.dht import DhtRouter

#: Seconds that answers under way may take at shutdown, and that the whole shutdown may take.
GRACE, DEADLINE = 5.0, 15.0
#: Seconds a start waits for the tracker and the first neighbours.
JOIN = 3.0
#: Of the peer listener: who takes nothing for so long is not kept a slot, and a slot is given back when the bytes are
#: on their way, not when the kernel has taken them.
PEER_LIMITS = ListenLimits(stall_time=20.0, unsent=256 << 10)
_log = observe.logger(__name__)
Ready = Callable[[dict[str, object]], None]


@dataclass(slots=True)
class Node:
    """The running parts, for the admin socket and the health checks."""

    settings: NodeSettings
    index: Index
    visible: Visible
    router: DhtRouter
    advertiser: Advertiser
    flights: Flights
    finder: CrowdFinder
    standing: Standing
    tracker: TrackerSource | None
    urls: dict[str, str]
    peer_id: str
    cache: Cache
    gateways: Gateways | None = None
    warmer: Warmer | None = None
    names: frozenset[str] = frozenset()
    token_url: str = ""
    swarm_seen: float | None = None
    feed: Follower | None = None
    #: set to look at the tracker's keys and revoked nodes at once
    look: trio.Event = field(default_factory=trio.Event)
    started: float = field(default_factory=time.time)

    @property
    def trust(self) -> Trust:
        """What it believes."""
        return self.standing.trust


async def run(settings: NodeSettings, *, ready: Ready, join: str | None = None) -> None:
    """Serve until cancelled. ``join``: a join token. Raises SettingsError or LocalError if it cannot start.

    Shutdown, within DEADLINE seconds: the listeners stop accepting and finish what is under way (GRACE), flights are
    cancelled (their partial files stay), the DHT says nothing more and closes, the index writes what it has and closes.
    """
    observe.configure_logging(settings.node.log_format == "json", settings.node.log_level)
    allow_open_files()
    await orderly(lambda stop: _live(settings, join, ready, stop), deadline=DEADLINE)


async def _live(settings: NodeSettings, join: str | None, ready: Ready, stop: trio.Event) -> None:
    data = Path(settings.node.data_dir)
    try:
        await trio.Path(data).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise LocalError(f"{data} cannot be made: {err.strerror}") from err
    async with AsyncExitStack() as stack:
        listeners = await _listen(settings, data)
        for group in listeners.values():
            stack.callback(_close_all, group)
        store = await stack.enter_async_context(open_files(data))
        index = await stack.enter_async_context(open_index(data / "index.lmdb"))
        await reconcile(store, index, time.time())
        await _clear_partials(store, index, settings.cache.partial_age)
        identity = load_or_create_identity(data / "identity.key")
        tls = None if settings.peer.plain else server_context(identity)
        settings, joining = await enter(settings, index, identity, join)
        speaker = None if joining is None else Speaker(identity, joining.token)
        tracker = make_tracker(settings, speaker)
        if tracker is not None:
            stack.callback(tracker.close)
        trust = _trust(settings, index, tracker)
        urls = urls_of(settings, listeners)
        standing = Standing(trust, joining, speaker)
        neighbours = lines(index, NEIGHBOURS)
        router = await _router(stack, settings, data, urls, neighbours, standing)
        node, handlers = await _assemble(stack, settings, store, index, tracker, router, urls, standing)
        async with trio.open_nursery() as nursery:
            met = trio.Event()
            nursery.start_soon(visit_tracker, node, met)
            if joining is not None:
                nursery.start_soon(joining.run, trust.now)
            with trio.move_on_after(JOIN):  # without the tracker or peers a node serves what it has
                await met.wait()
                await router.joined(within=JOIN)
            nursery.start_soon(remember_neighbours, node)
            assert node.warmer is not None
            nursery.start_soon(node.warmer.run)  # by now it has the tracker's keys, if it can
            ready({**node.urls, "pid": os.getpid(), "data_dir": str(data), "peer_id": node.peer_id})
            _log.info("ready", peer_id=node.peer_id, version=__version__, **node.urls)
            async with trio.open_nursery() as servers:
                for name, handler in handlers.items():
                    servers.start_soon(_one_server, name, handler, listeners[name], stop, tls)
            nursery.cancel_scope.cancel()


async def _one_server(
    name: str, handler: Handler, listeners: list[trio.SocketListener], stop: trio.Event, tls: ssl.SSLContext | None
) -> None:
    metrics = observe.listener_metrics(name) if name == "pull" or name == "peer" or name == "gateway" else None
    limits = PEER_LIMITS if name in ("peer", "gateway") else None
    context = None if tls is None or name != "peer" else lambda: tls
    await serve(handler, listeners, grace=GRACE, stop=stop, metrics=metrics, limits=limits, tls=context)


async def _listen(settings: NodeSettings, data: Path) -> dict[str, list[trio.SocketListener]]:
    """Every port at once, before anything else: a taken one is an error at start."""
    opened: dict[str, list[trio.SocketListener]] = {}
    try:
        opened["pull"] = await open_listeners([(host, settings.pull.port) for host in settings.pull.host])
        opened["peer"] = await open_listeners([(settings.peer.host, settings.peer.port)])
        if settings.gateway.host is not None:
            opened["gateway"] = await open_listeners([(settings.gateway.host, settings.gateway.port)])
        opened["metrics"] = await open_listeners([(settings.metrics.host, settings.metrics.port)])
        opened["admin"] = [open_unix_listener(data / "admin.sock")]
    except BaseException:
        for group in opened.values():
            _close_all(group)
        raise
    return opened


def _close_all(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()


async def _router(
    stack: AsyncExitStack,
    settings: NodeSettings,
    data: Path,
    urls: dict[str, str],
    known_neighbours: Sequence[str],
    standing: Standing,
) -> DhtRouter:
    from p2pregistry.routing.dht import DhtConfig, kad_protocol, open_dht  # half a second and 80 MB: not for --help

    return await stack.enter_async_context(
        open_dht(
            DhtConfig(
                key_file=data / "identity.key",
                host=settings.libp2p.host,
                port=settings.libp2p.port,
                announce=settings.libp2p.announce,
                bootstrap=(*settings.libp2p.bootstrap, *known_neighbours),
                protocol=kad_protocol(settings.node.swarm),
                hello=Hello((urls["peer_url"],), settings.node.zone, __version__),
                credential=standing.credential,
                judge=None if standing.joining is None else standing.trust,
            )
        )
    )


async def _clear_partials(store: FileStore, index: Index, max_age: float) -> None:
    written = {key: await store.staged_at(key) for key in await store.staged()}

    def known(key: str) -> bool:
        """Whether the partial is of a blob that this node could fetch again, and does not have already."""
        try:
            digest = Digest.parse(key.replace("-", ":", 1))
        except RequestError:
            return False
        return index.blob(digest) is None

    await discard_partials(store, stale_partials(written, time.time(), max_age, known))


async def _assemble(
    stack: AsyncExitStack,
    settings: NodeSettings,
    store: FileStore,
    index: Index,
    tracker: TrackerSource | None,
    router: DhtRouter,
    urls: dict[str, str],
    standing: Standing,
) -> tuple[Node, dict[str, Handler]]:
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    parts = await open_fetching(stack, nursery, settings, store, index, tracker, router, urls, standing)
    visible, finder, cache, flights = parts.visible, parts.finder, parts.cache, parts.flights
    node = Node(
        settings,
        index,
        visible,
        router,
        parts.advertiser,
        flights,
        finder,
        standing,
        tracker,
        urls,
        router.peer_id,
        cache,
        gateways=parts.gateways,
        names=known_names(settings, index),
        token_url="".join(lines(index, TOKEN_URL)[:1]),
    )
    if tracker is not None:
        node.feed = follower(node, tracker, parts.haves)
        nursery.start_soon(node.feed.run)
    resolver = _resolver(node)
    nursery.start_soon(confirm, resolver, visible)
    nursery.start_soon(know_own_rights, node)
    node.warmer = make_warmer(settings, index, cache, resolver, flights)
    if node.feed is not None:
        node.warmer.live = heard_of(node.feed)
    peers = PeerApi(
        index,
        cache,
        Slots(settings.peer.max_uploads, settings.peer.queue),
        visible,
        served=observe.count_served("peer"),
        haves=parts.haves,
        watching=finder.watched,
        pace=parts.rates.egress,
    )
    stack.callback(parts.haves.close)
    _tell_what_is_held(index, router, finder)
    handlers: dict[str, Handler] = {
        "pull": _pull_api(node, resolver, cache),
        "peer": standing.gate(settings, peers, router.peer_id),
        "metrics": health(lambda: None),
        "admin": admin_handler(node),
    }
    if parts.gateway is not None:
        nursery.start_soon(parts.gateway.blocks.serve)
        handlers["gateway"] = parts.gateway.handler
    return node, handlers


def _tell_what_is_held(index: Index, router: DhtRouter, finder: CrowdFinder) -> None:
    blobs = sorted(index.held(), key=lambda entry: entry[2])
    held = [*index.manifest_digests(), *(digest for digest, _size, _use in blobs)]
    router.hold(held, within=30.0 if len(held) > 100 else 0.0)
    finder.hold((digest, size) for digest, size, _use in blobs[-MOST_HELD:])


def _trust(settings: NodeSettings, index: Index, tracker: TrackerSource | None) -> Trust:
    async def forget(keys: KeySet) -> None:
        dropped = await keep_only(index, keys.keys.keys())
        if dropped:
            _log.warning("records are forgotten whose key the tracker has dropped", records=dropped)

    stated = settings.tracker
    return Trust(
        index,
        tracker,
        stated.root_key,
        swarm=settings.node.swarm,
        offline_grace=stated.offline_grace,
        clock=settings.clock,
        forget=forget,
    )


def _resolver(node: Node) -> Resolver:
    def learnt(_repository: str, manifest: StoredManifest, _blobs: Sequence[BlobRef]) -> None:
        node.advertiser.hold([manifest.digest])
        if node.gateways is not None:
            node.gateways.hints.learn(manifest)

    tags = node.settings.tags
    return Resolver(
        node.index,
        node.trust,
        node.visible,
        node.tracker,
        node.router,
        clock=node.trust.now,
        max_age=tags.max_age,
        max_stale=tags.max_stale,
        peer_stale=tags.max_stale if tags.peer_stale is None else tags.peer_stale,
        feed=node.feed,
        learnt=learnt,
        from_ipfs=manifests(node.settings, node.gateways, node.visible),
        plain=node.settings.peer.plain,
        speaker=node.standing.speaker,
    )


def _pull_api(node: Node, resolver: Resolver, cache: Cache) -> PullApi:
    def interest(manifest: StoredManifest) -> None:
        missing, here = _layers(manifest, node.index)
        if node.gateways is not None and missing:
            node.gateways.hints.learn(manifest)
        node.finder.interest(missing, here)
        refs = (node.index.ref(digest) for digest, size in missing if size > PIECE_SIZE)
        node.flights.prepare(ref for ref in refs if ref is not None)

    stated, trust = node.settings.pull, node.trust
    auth = ClientAuth(node.peer_id, lambda: trust.keys, trust.now, lambda: node.token_url)
    return PullApi(
        resolver,
        node.visible,
        AskedFor(cache),
        node.flights,
        hosts=Hosts(stated.host, stated.hosts),
        auth=auth if stated.require_client_auth else None,
        names=lambda: node.names,
        served=observe.count_served("client"),
        clock=trust.now,
        interest=interest,
    )


def _layers(manifest: StoredManifest, index: Index) -> tuple[list[tuple[Digest, int]], list[tuple[Digest, int]]]:
    """The blobs of an image that are missing here, and those that are not, each with its size in bytes."""
    missing: list[tuple[Digest, int]] = []
    here: list[tuple[Digest, int]] = []
    try:
        parsed = parse_manifest(manifest.body, manifest.media_type)
    except RequestError:
        return [], []
    for item in parsed.required_blobs():
        (missing if index.blob(item.digest) is None else here).append((item.digest, item.size))
    return missing, here
