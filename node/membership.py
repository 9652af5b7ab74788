"""What a node keeps of having joined, and what it decides by it: which tracker is its own, when to renew."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from node.settings import NodeSettings
from p2pregistry.errors import BadContent, LocalError, SettingsError
from p2pregistry.sources.tracker import Swarm
from p2pregistry.trust.certificate import is_of
from p2pregistry.trust.join_token import JoinToken
from p2pregistry.trust.keys import KeySet
from p2pregistry.trust.proof import public_key_of
from p2pregistry.trust.records import Credential, verify_credential

#: Under which it is kept in the index.
MEMBERSHIP: Final = "membership"
#: Seconds after a failed renewal: at first, and at most. A tracker that was away is not asked by all at once.
FIRST_WAIT: Final = 15.0
LONGEST_WAIT: Final = 600.0

HOW_TO_JOIN: Final = (
    "this node has not joined a swarm. Run `p2pregistry tracker node-token` where the tracker is, and start the node"
    " once with --join TOKEN; in Kubernetes set tracker.id_token_file. On a network that you trust, with a tracker that"
    " has it too, peer.plain = true does without"
)


@dataclass(frozen=True, slots=True)
class Membership:
    """``url``: of the tracker's peer API; ``peer_id`` (of the tracker) and ``root_key``: how it is known; ``token``:
    the credential as it is shown, ``credential``: what it says."""

    url: str
    peer_id: str
    root_key: str
    token: str = field(repr=False)
    credential: Credential


class _Kept(msgspec.Struct):
    url: str
    peer_id: str
    root_key: str
    token: str
    credential: dict[str, object]


def encode(membership: Membership) -> bytes:
    """As it is kept."""
    one = membership
    credential = msgspec.to_builtins(one.credential)
    return msgspec.json.encode(_Kept(one.url, one.peer_id, one.root_key, one.token, credential))


def decode(data: bytes) -> Membership:
    """Raises LocalError."""
    try:
        raw = msgspec.json.decode(data, type=_Kept)
        credential = msgspec.convert(raw.credential, type=Credential)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise LocalError("what this node kept of having joined cannot be read") from err
    return Membership(raw.url, raw.peer_id, raw.root_key, raw.token, credential)


def admitted(swarm: Swarm, token: str, root_key: str, peer_id: str, now: float) -> Credential:
    """The credential that a tracker gave to this peer id, believed only as far as the root key reaches. ``now``: by the
    tracker's clock. Raises BadContent."""
    keys = KeySet.verify(swarm.key_set, root_key)
    credential = verify_credential(keys, token)
    if credential.peer_id != peer_id:
        raise BadContent("the tracker gave a credential for another node")
    if credential.swarm != swarm.swarm:
        raise BadContent("the tracker gave a credential for another swarm")
    if credential.expires <= now:
        raise BadContent("the tracker gave a credential that has expired")
    return credential


def check_same(membership: Membership, token: JoinToken) -> Membership:
    """What a node that has joined makes of a join token: it is for the same tracker, which may have moved. Raises
    SettingsError for one of another tracker."""
    tracker = public_key_of(membership.peer_id)
    if token.root_key != membership.root_key or not is_of(tracker, token.fingerprint):
        raise SettingsError(
            f"this node has joined the tracker at {membership.url} and the join token is for another one,"
            f" at {token.url}. Start it without the token, or with another data directory"
        )
    return replace(membership, url=token.url)


def settled(settings: NodeSettings, membership: Membership) -> NodeSettings:
    """The settings with what was learnt by joining. Raises SettingsError where they say something else."""
    tracker, node, credential = settings.tracker, settings.node, membership.credential
    for name, value in (("peer_id", membership.peer_id), ("root_key", membership.root_key)):
        stated = getattr(tracker, name)
        if stated is not None and stated != value:
            raise SettingsError(
                f"$.tracker.{name}: this node has joined a tracker with another one ({value}); remove the setting, or"
                " use another data directory"
            )
    if node.swarm not in ("default", credential.swarm):
        raise SettingsError(f"$.node.swarm: this node has joined the swarm {credential.swarm}")
    url = tracker.url or membership.url
    return msgspec.structs.replace(
        settings,
        tracker=msgspec.structs.replace(tracker, url=url, peer_id=membership.peer_id, root_key=membership.root_key),
        node=msgspec.structs.replace(node, swarm=credential.swarm, zone=node.zone or credential.labels.get("zone", "")),
    )


def renewal(credential: Credential, chance: float) -> float:
    """When to renew it, unix seconds: about when half of its life is over. ``chance``: 0 to 1, so that nodes which
    joined together do not come together."""
    life = credential.expires - credential.issued
    return credential.issued + life * (0.45 + 0.1 * chance)


def next_wait(wait: float) -> float:
    """Seconds to wait after one more failure."""
    return min(max(FIRST_WAIT, wait * 2), LONGEST_WAIT)
