"""What a node asks its tracker for now and then, and what it keeps of the answers for the next start."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from node.settings import NodeSettings
from p2pregistry import observe
from p2pregistry.errors import RemoteError
from p2pregistry.resolve import Resolver
from p2pregistry.store.index import Index
from p2pregistry.visible import Visible

if TYPE_CHECKING:
    from node.app import Node

#: Seconds between two looks at the neighbours.
REMEMBER: Final = 30.0
#: Seconds between two looks at what the node's own credential allows.
OWN: Final = 1.0
#: Seconds between two questions to the tracker whether what is served is still what may be served.
CONFIRM: Final = 20.0
#: Public repositories that are asked about each time though nobody used them.
DOUBTFUL: Final = 100
#: Neighbours whose addresses outlive a restart.
MOST_NEIGHBOURS: Final = 20
#: Keys of the index under which they, the tracker's names and its token URL are kept.
NEIGHBOURS, NAMES, TOKEN_URL = "neighbours", "names", "token_url"

_log = observe.logger(__name__)


def known_names(settings: NodeSettings, index: Index) -> frozenset[str]:
    """Registry names to answer for, before the tracker has been asked."""
    if settings.tracker.names is not None:
        return frozenset(settings.tracker.names)
    return frozenset(lines(index, NAMES))


def lines(index: Index, key: str) -> list[str]:
    """What is kept under this key."""
    stored = index.get_meta(key)
    return stored.decode("utf-8").split("\n") if stored else []


async def _put_lines(index: Index, key: str, texts: Sequence[str]) -> None:
    await index.put_meta(key, "\n".join(texts).encode("utf-8"), rebuildable=True)


async def remember_neighbours(node: Node) -> None:
    """Keep some neighbours' addresses, so that a node that restarts while the tracker is away finds the others."""
    while True:
        neighbours = node.router.neighbours(MOST_NEIGHBOURS)
        if neighbours:
            await _put_lines(node.index, NEIGHBOURS, neighbours)
        await trio.sleep(REMEMBER)


async def visit_tracker(node: Node, met: trio.Event) -> None:
    """Learn keys, revoked nodes, names and the way into the DHT; again every ``tracker.poll`` seconds."""
    if node.tracker is None:
        met.set()
        return
    wait, most = 0.2, node.settings.tracker.poll
    while True:
        node.look = trio.Event()
        if await _visit(node):
            met.set()
            wait = most
        with trio.move_on_after(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load, guards nothing
            await node.look.wait()
        wait = min(wait * 2, most)


async def _visit(node: Node) -> bool:
    assert node.tracker is not None
    try:
        swarm = await node.standing.ask(node.tracker, node.peer_id)
        await node.trust.learn(swarm)
    except RemoteError as err:
        _log.warning("the tracker cannot be used now", why=err.message)
        return False
    if swarm.swarm != node.settings.node.swarm:
        _log.error("the tracker serves another swarm", tracker=swarm.swarm, node=node.settings.node.swarm)
        return False
    if node.settings.tracker.names is None and node.names != frozenset(swarm.names):
        node.names = frozenset(swarm.names)
        await _put_lines(node.index, NAMES, swarm.names)
    if swarm.token_url != node.token_url:
        node.token_url = swarm.token_url
        await _put_lines(node.index, TOKEN_URL, [swarm.token_url])
    node.router.bootstrap(swarm.libp2p)
    node.swarm_seen = time.time()
    return True


async def know_own_rights(node: Node) -> None:
    """What this node may pull itself changes with its credential: renewed, revoked, run out."""
    while True:
        node.visible.become(node.standing.own(node.settings, node.peer_id))
        await trio.sleep(OWN)


async def confirm(resolver: Resolver, visible: Visible) -> None:
    """Ask again and again whose content is whose: a repository may have become private. What was asked for comes each
    time, the rest of what is public in turn, from the start on: it may be long since this node ran."""
    while True:
        await resolver.confirm(sorted({*visible.used(), *visible.doubtful(DOUBTFUL)}))
        await trio.sleep(CONFIRM)
