"""Where a node stands in its swarm: what it believes, how it shows who it is, and how it finds out who others are."""

from __future__ import annotations

from dataclasses import dataclass

from node.joining import Joining
from node.settings import NodeSettings
from p2pregistry.errors import BadContent
from p2pregistry.serve.gate import Gate, MemoryDesk, plain
from p2pregistry.serve.http import Handler
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import Swarm, TrackerSource
from p2pregistry.trust.records import ANYONE, Caller
from p2pregistry.trusting import Trust


@dataclass(frozen=True, slots=True)
class Standing:
    """``joining`` and ``speaker`` are None where anybody is let in (peer.plain)."""

    trust: Trust
    joining: Joining | None
    speaker: Speaker | None

    def credential(self) -> str | None:
        """What is shown to others now."""
        return None if self.joining is None else self.joining.token()

    def own(self, settings: NodeSettings, peer_id: str) -> Caller:
        """What this node may pull itself now, and so its local clients; nothing private once its credential does not
        hold any more."""
        if self.joining is None:
            return Caller(everything=settings.peer.plain_private)
        credential = self.joining.membership.credential
        try:
            self.trust.check(credential, peer_id)
        except BadContent:
            return ANYONE
        return Caller(peer_id, credential.pulls)

    def gate(self, settings: NodeSettings, handler: Handler, own: str) -> Handler:
        """The peer listener's handler, once it is known who asks. ``own``: this node's peer id."""
        if self.joining is None:
            return plain(handler, private=settings.peer.plain_private)
        return Gate(handler, MemoryDesk(self.trust, own))

    async def ask(self, tracker: TrackerSource, own: str) -> Swarm:
        """What the tracker says now, to this node in particular. Raises RemoteError."""
        if self.joining is None:
            return await tracker.swarm()
        held = self.joining.membership
        swarm = await tracker.swarm(own, held.credential.issued)
        keys = self.trust.keys
        if swarm.renew or (keys is not None and not keys.knows(held.token)):
            self.joining.hurry()
        return swarm
