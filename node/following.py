"""What of the tracker's changes a node follows, and what it does at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pregistry import observe
from p2pregistry.feed.follow import Follower, Hooks
from p2pregistry.feed.interest import Wanted
from p2pregistry.haves import Haves
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.applied import read_known

if TYPE_CHECKING:
    from node.app import Node


def follower(node: Node, tracker: TrackerSource, haves: Haves) -> Follower:
    """Made once, at start; its task is the caller's to run."""
    settings, index, joining = node.settings, node.index, node.standing.joining
    known, limit = read_known(index), settings.sync.repositories
    # what was followed before counts as asked for later than all else of which tags are known
    order = [name for name in index.owners(limit) if name not in known.interest.repositories]
    wanted = Wanted([*settings.sync.patterns, *settings.prefetch.patterns], limit=limit, known=[*order, *known.order])
    hooks = Hooks(
        visibility=haves.look_again,
        keys=lambda: node.look.set(),
        grant=lambda: None if joining is None else joining.hurry(),
    )
    made = Follower(tracker, node.trust, index, wanted, known, now=node.trust.now, hooks=hooks)
    if joining is not None:

        def granted() -> None:
            node.visible.become(node.standing.own(settings, node.peer_id))
            made.again()

        joining.granted = granted
    observe.watch_feed(lambda: made.state.connected, lambda: made.state.lag)
    return made
