"""The admin socket: what the node says of itself to its operator."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from node.warming import warming
from p2pregistry import __version__
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.serve.http import Handler, Request, Response

if TYPE_CHECKING:
    from node.app import Node


def admin_handler(node: Node) -> Handler:
    """``GET /status`` and ``GET /peers``, and what ``warming`` does, JSON, over the socket of the node's user."""

    async def handle(request: Request) -> Response:
        answer = await warming(request, node)
        if answer is not None:
            return _json(answer)
        if request.method != "GET":
            raise RequestError("UNSUPPORTED", "this is read with GET", headers={"Allow": "GET"})
        if request.path == "/status":
            return _json(status(node))
        if request.path == "/peers":
            return _json({"peers": [{"peer_id": p.peer_id, "url": p.url, "zone": p.zone} for p in node.router.peers()]})
        raise NotFound("NAME_UNKNOWN", "here are /status, /peers, /prefetch, /pins and /gc")

    return handle


def status(node: Node) -> dict[str, object]:
    """What ``p2pregistry node status`` shows. Sizes in bytes, times in seconds."""
    held = node.index.held()
    now = time.time()
    feed = None if node.feed is None else node.feed.state
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime": round(now - node.started, 1),
        "peer_id": node.peer_id,
        **node.urls,
        "data_dir": node.settings.node.data_dir,
        "tracker": node.settings.tracker.url,
        "tracker_answers": node.tracker is not None and not node.tracker.down and node.swarm_seen is not None,
        "tracker_seen": None if node.swarm_seen is None else round(now - node.swarm_seen, 1),
        "root_key": node.trust.root_key,
        "swarm": node.settings.node.swarm,
        "credential_left": _left(node),
        "key_set": None if node.trust.keys is None else node.trust.keys.version,
        "tracker_live": node.trust.live,
        "feed_connected": feed is not None and feed.connected,
        "feed_lag": None if feed is None or not feed.connected else round(feed.lag, 1),
        "feed_cursor": None if feed is None else f"{feed.cursor.epoch}.{feed.cursor.number}",
        "feed_repositories": 0 if feed is None else feed.repositories,
        "last_known_age": None if feed is None or feed.age is None else round(feed.age, 1),
        "names": sorted(node.names),
        "peers": len(node.router.peers()),
        "provides_waiting": node.router.provides_waiting + node.advertiser.waiting,
        "blobs": len(held),
        "blob_bytes": sum(size for _digest, size, _use in held),
        "max_bytes": node.settings.cache.max_bytes,
        "downloads": len(node.flights),
        "ahead_bytes": node.cache.ahead,
        **({} if node.gateways is None else {"gateways": node.gateways.status()}),
        **({} if node.warmer is None else node.warmer.status()),
    }


def _left(node: Node) -> float | None:
    """Seconds that this node's credential is still good, by the tracker's clock; None without one."""
    joining = node.standing.joining
    return None if joining is None else round(joining.membership.credential.expires - node.trust.now(), 1)


def _json(value: object) -> Response:
    return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(value))
