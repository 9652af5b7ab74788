"""What every desk that gives out sessions promises; run by the tests of each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from p2pregistry.errors import RequestError
from p2pregistry.sessions import NONCE_LIFE, SESSION_LIFE, Desk, Opening
from p2pregistry.testing.members import DAY, Authority, Member, open_session
from p2pregistry.trust.proof import sign_proof


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Place:
    """A desk under test: its own peer id, who judges for it, its clock, and how a node is revoked there."""

    desk: Desk
    own: str
    authority: Authority
    clock: Clock
    revoke: Callable[[str], Awaitable[None]]


async def check_desk(place: Place) -> None:
    """Every promise of Desk."""
    for promise in (
        _a_member_is_known_by_its_session,
        _a_nonce_is_good_once,
        _an_old_nonce_is_no_good,
        _a_nonce_of_another_is_no_good,
        _a_proof_for_another_server_is_no_good,
        _somebody_elses_credential_is_no_good,
        _a_credential_of_another_swarm_or_time_is_no_good,
        _nonsense_is_refused,
        _a_session_ends,
        _a_session_ends_with_its_credential,
        _a_revoked_node_is_nobody,
    ):
        await promise(place)


async def _refused(place: Place, opening: Opening) -> None:
    with pytest.raises(RequestError) as caught:
        await place.desk.open(opening)
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
    assert caught.value.headers["P2P-Session"] == "required"


async def _a_member_is_known_by_its_session(place: Place) -> None:
    member = Member()
    credential = place.authority.issue(member.peer_id, pulls=("acme/**",))
    nonce = await place.desk.nonce()
    granted = await place.desk.open(Opening(credential, sign_proof(member.key, nonce, place.own)))
    assert 60 <= granted.expires_in <= SESSION_LIFE
    caller = await place.desk.caller(granted.token)
    assert caller is not None
    assert (caller.peer_id, caller.pulls, caller.everything) == (member.peer_id, ("acme/**",), False)
    for other in (granted.token[:-1], granted.token[:-1] + ("0" if granted.token[-1] != "0" else "1"), "", "x" * 4000):
        assert await place.desk.caller(other) is None, "a token that was changed is nobody's"


async def _a_nonce_is_good_once(place: Place) -> None:
    member = Member()
    credential = place.authority.issue(member.peer_id)
    nonce = await place.desk.nonce()
    opening = Opening(credential, sign_proof(member.key, nonce, place.own))
    await place.desk.open(opening)
    await _refused(place, opening)
    await _refused(place, Opening(credential, sign_proof(member.key, nonce, place.own)))
    await _refused(place, Opening(credential, sign_proof(member.key, nonce + "=", place.own)))


async def _an_old_nonce_is_no_good(place: Place) -> None:
    member = Member()
    nonce = await place.desk.nonce()
    place.clock.now += NONCE_LIFE + 1
    credential = place.authority.issue(member.peer_id)
    await _refused(place, Opening(credential, sign_proof(member.key, nonce, place.own)))


async def _a_nonce_of_another_is_no_good(place: Place) -> None:
    member = Member()
    nonce = await place.desk.nonce()
    credential = place.authority.issue(member.peer_id)
    for wrong in ("", "A" * 43, nonce[:-1], nonce[4:] + nonce[:4], "\u00e4", "x" * 3000):
        await _refused(place, Opening(credential, sign_proof(member.key, wrong, place.own)))


async def _a_proof_for_another_server_is_no_good(place: Place) -> None:
    member = Member()
    nonce = await place.desk.nonce()
    credential = place.authority.issue(member.peer_id)
    await _refused(place, Opening(credential, sign_proof(member.key, nonce, Member().peer_id)))


async def _somebody_elses_credential_is_no_good(place: Place) -> None:
    member, thief = Member(), Member()
    credential = place.authority.issue(member.peer_id)
    nonce = await place.desk.nonce()
    await _refused(place, Opening(credential, sign_proof(thief.key, nonce, place.own)))


async def _a_credential_of_another_swarm_or_time_is_no_good(place: Place) -> None:
    member = Member()
    for credential in (
        place.authority.issue(member.peer_id, swarm="another"),
        place.authority.issue(member.peer_id, lasts=-2 * DAY),
        Authority(place.authority.swarm, clock=place.clock).issue(member.peer_id),
    ):
        nonce = await place.desk.nonce()
        await _refused(place, Opening(credential, sign_proof(member.key, nonce, place.own)))


async def _nonsense_is_refused(place: Place) -> None:
    good = place.authority.issue(Member().peer_id)
    for credential in ("", "a.b", "v4.public.", "v4.public.!!!.x", good[:-5], "\u00e4" * 50, "x" * 70_000):
        await _refused(place, Opening(credential, "v4.public.AAAA"))
    await _refused(place, Opening(good, "x" * 70_000))
    await _refused(place, Opening(good, ""))


async def _a_session_ends(place: Place) -> None:
    member = Member()
    token = await open_session(place.desk, member, place.authority.issue(member.peer_id), place.own)
    place.clock.now += SESSION_LIFE - 10
    assert await place.desk.caller(token) is not None
    place.clock.now += 11
    assert await place.desk.caller(token) is None


async def _a_session_ends_with_its_credential(place: Place) -> None:
    member = Member()
    token = await open_session(place.desk, member, place.authority.issue(member.peer_id, lasts=100), place.own)
    place.clock.now += 99
    assert await place.desk.caller(token) is not None
    place.clock.now += 2
    assert await place.desk.caller(token) is None


async def _a_revoked_node_is_nobody(place: Place) -> None:
    member, other = Member(), Member()
    credential = place.authority.issue(member.peer_id)
    token = await open_session(place.desk, member, credential, place.own)
    stays = await open_session(place.desk, other, place.authority.issue(other.peer_id), place.own)
    await place.revoke(member.peer_id)
    place.clock.now += 2.1
    assert await place.desk.caller(token) is None
    assert await place.desk.caller(stays) is not None
    nonce = await place.desk.nonce()
    await _refused(place, Opening(credential, sign_proof(member.key, nonce, place.own)))
