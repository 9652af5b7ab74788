"""What of the tracker's changes a node follows, and what it does at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pregistry import observe
from p2pregistry.digest import Digest
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

    def patterns() -> list[str]:  # the warmer is made later, and pins come and go
        return [] if node.warmer is None else node.warmer.patterns()

    def moved(repository: str, tag: str, digest: Digest | None) -> None:
        if node.warmer is not None:
            node.warmer.moved(repository, tag, digest)

    wanted = Wanted(patterns, limit=limit, known=[*order, *known.order])
    hooks = Hooks(
        moved=moved,
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


def heard_of(made: Follower) -> Callable[[], bool]:
    """Whether moves of tags are heard of, for one who has to look for them else. Once it has to look in any case: what
    moved just before this node died it may not have heard of."""
    looked = False

    def so() -> bool:
        nonlocal looked
        looked, before = True, looked
        return before and made.state.connected

    return so
