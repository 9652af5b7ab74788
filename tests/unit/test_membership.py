"""What a node decides by having joined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from node.membership import (
    FIRST_WAIT,
    LONGEST_WAIT,
    Membership,
    admitted,
    check_same,
    decode,
    encode,
    next_wait,
    renewal,
    settled,
)
from node.settings import Node, NodeSettings, Tracker
from p2pregistry.errors import BadContent, LocalError, SettingsError
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.sources.tracker import Swarm
from p2pregistry.trust.join_token import JoinToken
from p2pregistry.trust.proof import fingerprint
from p2pregistry.trust.records import Credential, sign_credential
from tracker.keyring import Keyring

RING = Keyring.fresh()
PEER = base58(peer_id_of(Ed25519PrivateKey.generate()))
NOW = 1_800_000_000
CREDENTIAL = Credential(PEER, "prod", "c", NOW, NOW + 86400, ("acme/**",), {"zone": "a"})
MEMBER = Membership("https://tracker:5051", RING.peer_id, RING.root_public, "token", CREDENTIAL)
SWARM = Swarm("prod", RING.root_public, RING.key_set)


def token(ring: Keyring, url: str = "https://moved:5051") -> JoinToken:
    return JoinToken(url, fingerprint(ring.peer_key.public_key()), ring.root_public, "s" * 43)


def signed(**changes: Any) -> str:
    return sign_credential(RING.signer, replace(CREDENTIAL, **changes))


def test_what_is_kept_is_read_again() -> None:
    assert decode(encode(MEMBER)) == MEMBER
    assert "token=" not in repr(MEMBER)


@given(st.binary())
def test_anything_else_is_refused(data: bytes) -> None:
    """Parses or raises LocalError."""
    try:
        decode(data)
    except LocalError:
        return
    raise AssertionError("no bytes that are made by chance are a membership")


def test_a_credential_is_believed_as_far_as_the_root_key_reaches() -> None:
    assert admitted(SWARM, signed(), RING.root_public, PEER, NOW) == CREDENTIAL
    another = Keyring.fresh()
    for swarm, text, root, peer_id, now in (
        (SWARM, signed(), another.root_public, PEER, NOW),
        (SWARM, sign_credential(another.signer, CREDENTIAL), RING.root_public, PEER, NOW),
        (SWARM, signed(peer_id=RING.peer_id), RING.root_public, PEER, NOW),
        (SWARM, signed(swarm="default"), RING.root_public, PEER, NOW),
        (SWARM, signed(), RING.root_public, PEER, NOW + 86400),
        (SWARM, "token", RING.root_public, PEER, NOW),
    ):
        with pytest.raises(BadContent):
            admitted(swarm, text, root, peer_id, now)


def test_a_join_token_of_the_same_tracker_says_where_it_is_now() -> None:
    assert check_same(MEMBER, token(RING)) == replace(MEMBER, url="https://moved:5051")
    other_key, other_root = Keyring.fresh(), Keyring.fresh()
    other_key.root_public, other_root.peer_key = RING.root_public, RING.peer_key
    for other in (other_key, other_root):
        with pytest.raises(SettingsError, match="for another one"):
            check_same(MEMBER, token(other))


def test_settings_take_what_was_learnt() -> None:
    made = settled(NodeSettings(), MEMBER)
    assert (made.tracker.url, made.tracker.peer_id) == (MEMBER.url, MEMBER.peer_id)
    assert (made.tracker.root_key, made.node.swarm, made.node.zone) == (MEMBER.root_key, "prod", "a")
    stated = NodeSettings(tracker=Tracker(url="https://elsewhere:1"), node=Node(zone="b", swarm="prod"))
    made = settled(stated, MEMBER)
    assert (made.tracker.url, made.node.zone) == ("https://elsewhere:1", "b")


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("tracker", {"peer_id": PEER}),
        ("tracker", {"root_key": "k4.public.AAAA"}),
        ("node", {"swarm": "staging"}),
    ],
)
def test_settings_that_say_something_else_are_refused(section: str, changes: dict[str, str]) -> None:
    plain = NodeSettings()
    stated = msgspec.structs.replace(plain, **{section: msgspec.structs.replace(getattr(plain, section), **changes)})
    with pytest.raises(SettingsError, match=rf"\$\.{section}\.{next(iter(changes))}"):
        settled(stated, MEMBER)


@given(st.floats(0, 1))
def test_a_credential_is_renewed_about_when_half_of_its_life_is_over(chance: float) -> None:
    """Between 45 and 55 hundredths."""
    assert 0.449 * 86400 <= renewal(CREDENTIAL, chance) - NOW <= 0.551 * 86400


def test_failures_make_it_wait_longer_but_not_for_ever() -> None:
    waits = [0.0]
    while len(waits) < 12:
        waits.append(next_wait(waits[-1]))
    assert waits[1] == FIRST_WAIT
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT
