"""The peers of a node as sources: one ``PeerSource`` each, and who is banned."""

from __future__ import annotations

import trio

from p2pregistry.errors import Unreachable
from p2pregistry.observe import logger
from p2pregistry.routing.base import Peer
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.speaker import Speaker

#: Seconds for which a peer that sent wrong bytes is not asked.
BAN = 600.0
_log = logger(__name__)


class PeerSources:
    """Made when first asked for, kept until ``close``. ``speaker``: what shows peers who this node is; without
    ``plain`` peers in the clear are left alone."""

    def __init__(self, zone: str, speaker: Speaker | None = None, *, plain: bool = True) -> None:
        self._zone, self._speaker, self._plain = zone, speaker, plain
        self._sources: dict[str, PeerSource] = {}
        self._banned: dict[str, float] = {}

    def of(self, peer: Peer) -> PeerSource | None:
        """None if it is banned or has no address that can be used."""
        if self.banned(peer.peer_id):
            return None
        source = self._sources.get(peer.peer_id)
        if source is None or source.client.url != peer.url.rstrip("/"):
            if source is not None:
                source.close()
            try:
                source = self._sources[peer.peer_id] = PeerSource(
                    peer.peer_id, peer.url, zone=self._zone, plain=self._plain, speaker=self._speaker
                )
            except Unreachable as err:
                _log.info("a peer has no address that can be used", peer=peer.peer_id, why=err.message)
                return None
        source.there = peer.zone
        return source

    def ban(self, peer_id: str, why: str) -> None:
        """Do not ask it for some time."""
        _log.warning("a peer is banned", peer=peer_id, why=why, seconds=BAN)
        self._banned[peer_id] = trio.current_time() + BAN

    def banned(self, peer_id: str) -> bool:
        until = self._banned.get(peer_id)
        if until is not None and trio.current_time() >= until:
            del self._banned[peer_id]
            return False
        return until is not None

    def forget(self, peer_id: str) -> None:
        """It is not known any more: let its connections go."""
        source = self._sources.pop(peer_id, None)
        if source is not None:
            source.close()

    def close(self) -> None:
        """Let go of every connection."""
        for source in self._sources.values():
            source.close()
