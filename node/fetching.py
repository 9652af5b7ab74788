"""What finds the blobs of a node, fetches them and keeps them."""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from node.gateway import NodeGateway, open_gateway
from node.ipfs import around, make_gateways
from node.parts import make_rates
from node.settings import MIB, NodeSettings
from node.standing import Standing
from p2pregistry import observe
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.crowd.announcer import Me
from p2pregistry.crowd.finder import CrowdFinder
from p2pregistry.digest import Digest
from p2pregistry.flights import Flights
from p2pregistry.haves import Haves
from p2pregistry.pull.commands import Limits
from p2pregistry.rate import Limiter, Rates
from p2pregistry.routing.advertise import Advertiser
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.cache import Cache
from p2pregistry.store.files import FileStore
from p2pregistry.store.index import Index
from p2pregistry.surroundings import Finder
from p2pregistry.trust.records import ANYONE
from p2pregistry.visible import Visible

if TYPE_CHECKING:
    from p2pregistry.crowd.gateways import Gateways
    from p2pregistry.routing.dht import DhtRouter

_log = observe.logger(__name__)


@dataclass(frozen=True, slots=True)
class Fetching:
    """What finds blobs, fetches them and keeps them."""

    visible: Visible
    haves: Haves
    finder: CrowdFinder
    advertiser: Advertiser
    cache: Cache
    rates: Rates
    flights: Flights
    #: where blobs come from IPFS, and what serves them to IPFS
    gateways: Gateways | None
    gateway: NodeGateway | None


async def open_fetching(
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    settings: NodeSettings,
    store: FileStore,
    index: Index,
    tracker: TrackerSource | None,
    router: DhtRouter,
    urls: dict[str, str],
    standing: Standing,
) -> Fetching:
    """Started in ``nursery``; flights end with ``stack``."""
    haves = Haves(index)
    visible = Visible(index, standing.own(settings, router.peer_id))
    finder = CrowdFinder(
        Me(router.peer_id, urls["peer_url"], settings.node.zone, settings.node.swarm, urls.get("gateway_url", "")),
        router,
        tracker,
        randrange=random.SystemRandom().randrange,
        limit=settings.fetch.sources,
        speaker=standing.speaker,
        plain=settings.peer.plain,
        public=lambda digest: visible.may_have(ANYONE, digest),
    )
    advertiser = Advertiser(router, lambda: len(flights) > 0)

    def drop(digest: Digest) -> None:
        advertiser.drop([digest])
        finder.drop(digest)
        haves.drop(digest)
        if gateway is not None:
            gateway.blocks.leaving(digest)

    cache = Cache(
        store,
        index,
        settings.cache.max_bytes,
        settings.cache.min_free,
        on_drop=drop,
        clock=time.time,
        max_ahead=settings.prefetch.max_bytes,
    )
    gateway = open_gateway(settings, index, visible, cache)
    await nursery.start(finder.serve)
    nursery.start_soon(advertiser.serve)
    gateways = make_gateways(settings, index)
    if gateways is not None:
        nursery.start_soon(gateways.run)
    rates, known = make_rates(settings), around(settings, finder, gateways, visible)
    flights = _flights(settings, store, cache, index, finder, known, haves, advertiser, rates, gateway)
    await stack.enter_async_context(flights.running())
    return Fetching(visible, haves, finder, advertiser, cache, rates, flights, gateways, gateway)


def _flights(
    settings: NodeSettings,
    store: FileStore,
    cache: Cache,
    index: Index,
    finder: CrowdFinder,
    known: Finder,
    haves: Haves,
    advertiser: Advertiser,
    rates: Rates,
    gateway: NodeGateway | None,
) -> Flights:
    fetch = settings.fetch

    def finished(ref: BlobRef) -> None:
        if gateway is not None:
            gateway.blocks.changed(ref.digest)
        advertiser.hold([ref.digest])
        finder.hold([(ref.digest, ref.size)])

    return Flights(
        store,
        cache,
        index,
        known,
        randrange=random.SystemRandom().randrange,
        haves=haves,
        limits=Limits(
            in_flight=fetch.in_flight, sources=fetch.sources, silence=fetch.stall, window=max(1, fetch.window // MIB)
        ),
        active=fetch.flights,
        rest=fetch.rest,
        linger=fetch.linger,
        pace=lambda source: rates.ingress(source.there if isinstance(source, PeerSource) else ""),
        ahead_pace=None if settings.prefetch.rate is None else Limiter(settings.prefetch.rate).take,
        fetched=_count_fetched,
        finished=finished,
        note=lambda err: _log.debug("a source failed", why=err.message),
    )


def _count_fetched(kind: str, count: int) -> None:
    observe.count_fetched(kind)(count)
