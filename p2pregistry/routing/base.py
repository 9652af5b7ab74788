"""The seam ``Router``: who holds a blob."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from p2pregistry.digest import Digest


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that answers: its libp2p peer id (base58), the base URL of its peer API, and its zone ("" if unset)."""

    peer_id: str
    url: str
    zone: str = ""


class Router(Protocol):
    """Finds peers by what they hold, and tells others what this node holds.

    Only sha256 digests are routed; others are ignored by ``hold`` and never found. A node never finds itself.
    """

    def hold(self, digests: Iterable[Digest]) -> None:
        """These are complete here from now on: provide them, and again before the records expire. Returns at once."""

    def drop(self, digests: Iterable[Digest]) -> None:
        """These are no longer here: stop providing and withdraw the records. Returns at once."""

    async def find(self, digest: Digest, found: Callable[[Peer], None], *, limit: int = 10) -> None:
        """Call ``found`` once for each distinct peer that holds ``digest``, as they turn up; return when the look-up
        has ended or ``limit`` were found. Finding none is no error."""

    def peers(self) -> list[Peer]:
        """The peers this node is in touch with now."""
