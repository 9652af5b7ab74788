"""Routers that share a dictionary instead of a network: for tests and for programs that run nodes in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Peer


class MemoryNetwork:
    """Who holds what, for all the routers made from it."""

    def __init__(self) -> None:
        self._members: dict[str, Peer] = {}
        self._holders: dict[Digest, dict[str, None]] = {}

    def router(self, peer: Peer) -> MemoryRouter:
        """A router for one more node, reachable by the others as ``peer``."""
        self._members[peer.peer_id] = peer
        return MemoryRouter(self, peer)

    def leave(self, peer_id: str) -> None:
        """The node is gone: it is found no more."""
        self._members.pop(peer_id, None)

    def members(self) -> list[Peer]:
        """Every node that has not left."""
        return list(self._members.values())

    def record(self, peer_id: str, digest: Digest, held: bool) -> None:
        """A node holds ``digest`` from now on, or no longer."""
        holders = self._holders.setdefault(digest, {})
        holders.pop(peer_id, None)
        if held:
            holders[peer_id] = None

    def holders(self, digest: Digest) -> list[Peer]:
        """The nodes that hold ``digest``, longest first."""
        return [self._members[p] for p in self._holders.get(digest, ()) if p in self._members]


class MemoryRouter:
    """A ``Router``; made by ``MemoryNetwork.router``."""

    def __init__(self, network: MemoryNetwork, own: Peer) -> None:
        self._network = network
        self._own = own

    def hold(self, digests: Iterable[Digest]) -> None:
        """See ``Router``."""
        for digest in digests:
            if digest.algorithm == "sha256":
                self._network.record(self._own.peer_id, digest, True)

    def drop(self, digests: Iterable[Digest]) -> None:
        """See ``Router``."""
        for digest in digests:
            self._network.record(self._own.peer_id, digest, False)

    async def find(self, digest: Digest, found: Callable[[Peer], None], *, limit: int = 10) -> None:
        """See ``Router``."""
        await trio.lowlevel.checkpoint()
        others = [peer for peer in self._network.holders(digest) if peer.peer_id != self._own.peer_id]
        for peer in others[: max(limit, 0)]:
            found(peer)

    def peers(self) -> list[Peer]:
        """See ``Router``: everybody else."""
        return [peer for peer in self._network.members() if peer.peer_id != self._own.peer_id]
