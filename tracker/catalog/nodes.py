"""The area ``Nodes`` of a catalog: join tokens, and the nodes that joined.

A token is spent and its node written down in one transaction, so that of two machines with the same single-use token
one gets in. A node that shows the token again with which it joined is given another answer for the same use: the first
one may have been lost on the way. A node that was revoked stays known, because its peer id must not come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from p2pregistry.errors import RequestError
from tracker.catalog.trail import By

#: Seconds after the end of its last credential for which a node is remembered, and a revoked one listed. No verifier
#: may believe an expired credential for longer.
REMEMBERED: Final = 30 * 86400.0
#: Bits of a list's number below the epoch.
_EPOCH_SHIFT: Final = 40


@dataclass(frozen=True, slots=True)
class Grant:
    """What a node gets: its swarm, the globs of the private repositories it may pull, and its labels."""

    swarm: str
    pulls: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JoinTokenRow:
    """A join token without its secret. ``uses_left`` None: any number."""

    id: int
    grant: Grant
    uses_left: int | None
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node. ``joined_by``: "join token 7", or who it was by its identity token; ``expires_at``: of its credential."""

    peer_id: str
    grant: Grant
    joined_by: str
    token_id: int | None
    enrolled_at: datetime
    renewed_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


class Revoked(NamedTuple):
    """The revoked peer ids that some credential may still name, and the number of this list: a higher one is newer."""

    number: int
    peer_ids: frozenset[str]


def list_number(epoch: int, change: int) -> int:
    """The number of the list after this change: one of a higher epoch is higher, whatever its changes are."""
    return (epoch << _EPOCH_SHIFT) | change


def admit(token: JoinTokenRow | None, node: NodeRow | None, swarm: str, now: datetime) -> bool:
    """Whether a node (as it is known already, if it is) that shows this token uses it up by one; False: it is the very
    node that did before. Raises RequestError (DENIED) with words for the one who started the node.
    """
    if node is not None:
        check_not_revoked(node)
    if token is None:
        raise refused("the tracker does not know this join token")
    if token.revoked_at is not None:
        raise refused("this join token has been revoked")
    if token.expires_at <= now:
        raise refused(
            f"this join token has expired: it was good until {token.expires_at:%Y-%m-%d %H:%M:%S %Z},"
            f" and the tracker's clock says {now:%Y-%m-%d %H:%M:%S %Z}"
        )
    if token.grant.swarm != swarm:
        raise refused(f"this join token is for the swarm {token.grant.swarm}; this tracker serves {swarm}")
    if node is not None and node.token_id == token.id:
        return False
    if token.uses_left == 0:
        raise refused("this join token has been used by another node; make a new one")
    return True


def check_not_revoked(node: NodeRow) -> None:
    """Raises RequestError (DENIED)."""
    if node.revoked_at is not None:
        raise refused("this node has been revoked; only a new identity (another data directory) may join again")


def refused(message: str) -> RequestError:
    """403."""
    return RequestError("DENIED", message)


class Nodes(Protocol):
    """Each method is one transaction. A failed one raises LocalError. ``lasts`` are seconds from now."""

    async def add_token(self, secret_hash: bytes, grant: Grant, uses: int | None, lasts: float, by: By) -> JoinTokenRow:
        """A new join token for ``uses`` nodes, None: any number."""

    async def tokens(self) -> list[JoinTokenRow]:
        """By id. Those that have long expired are forgotten."""

    async def revoke_token(self, token: int, by: By) -> bool:
        """No node joins with it any more; those that have stay. False if it is not there or was revoked before."""

    async def join(self, secret_hash: bytes, peer_id: str, swarm: str, lasts: float, by: By) -> NodeRow:
        """Let a node in by a join token, see ``admit``. One that is back with the token it had keeps what the operator
        gave it since. Raises RequestError (DENIED)."""

    async def enrol(self, grant: Grant, joined_by: str, peer_id: str, lasts: float, by: By) -> NodeRow:
        """Let a node in by who it is; one that joined so before keeps what the operator gave it. Raises RequestError
        (DENIED) if it was revoked."""

    async def renew(self, peer_id: str, swarm: str, lasts: float) -> NodeRow:
        """Another credential for a node that is known. Raises RequestError (DENIED)."""

    async def node(self, peer_id: str) -> NodeRow | None:
        """One node."""

    async def nodes(self, *, after: str = "", limit: int = 100) -> list[NodeRow]:
        """In the order of peer ids, those greater than ``after``."""

    async def revoke(self, peer_id: str, on: bool, by: By) -> bool:
        """Revoke a node, or take that back. False if it is not there, or is so already."""

    async def regrant(
        self, peer_id: str, pulls: Sequence[str] | None, labels: Mapping[str, str] | None, by: By
    ) -> bool:
        """Change what its next credential says; None: as it is. False if there is no such node."""

    async def revoked(self) -> Revoked:
        """The list of revocations as it is now."""

    async def changed(self, within: float) -> dict[str, datetime]:
        """Nodes that were given something else in the last ``within`` seconds, and when."""
