"""What a node believes: keys and revocations never go back, credentials end, and an unknown key is asked for seldom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent
from p2pregistry.sources.tracker import Swarm, TrackerSource
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from p2pregistry.trust.keys import KeySet, Signer, sign_key_set
from p2pregistry.trust.paserk import new_secret, public_of
from p2pregistry.trust.records import (
    SKEW,
    Credential,
    RepositoryClaim,
    Revocations,
    Stamp,
    TagClaim,
    sign_credential,
    sign_repository,
    sign_revocations,
    sign_tag,
)
from p2pregistry.trusting import KEY_REFRESH, LIVE, Trust

ROOT = new_secret()
ROOT_PUBLIC = public_of(ROOT).to_paserk()
OLD, NEW = Signer.of(new_secret()), Signer.of(new_secret())
CLAIM = ManifestClaim("a/b", Digest.of(b"manifest"), ())
T0 = 1_000_000.0
PEER, OTHER = "12D3KooWpeer", "12D3KooWother"
CREDENTIAL = Credential(PEER, "default", "1", int(T0), int(T0) + 1000)


class Memory:
    """The index, which outlives a Trust. ``writes`` counts."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.writes = 0

    def get_meta(self, key: str) -> bytes | None:
        return self.values.get(key)

    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        self.values[key] = value


class Tracker(TrackerSource):
    """Answers what ``says`` gives, after a moment."""

    def __init__(self, says: Callable[[], Swarm]) -> None:
        super().__init__("http://127.0.0.1:1")
        self.says, self.asked = says, 0

    async def swarm(self) -> Swarm:
        self.asked += 1
        await trio.sleep(0.1)
        return self.says()


def swarm(
    version: int = 1,
    *signers: Signer,
    revoked: tuple[str, ...] | None = None,
    number: int = 0,
    time: float | None = None,
    by: Signer | None = None,
) -> Swarm:
    signers = signers or (OLD,)
    key_set = sign_key_set(ROOT, version, [signer.public for signer in signers])
    token = ""
    if revoked is not None:
        token = sign_revocations(by or signers[0], Revocations(number, int(T0), frozenset(revoked)))
    return Swarm("default", ROOT_PUBLIC, key_set, revocations=token, time=time)


class Here:
    """This machine's clock, ``late`` seconds behind the tracker's: it runs with trio's."""

    def __init__(self, late: float = 0.0) -> None:
        self.late, self.began = late, trio.current_time()

    def __call__(self) -> float:
        return T0 - self.late + trio.current_time() - self.began


# ---------------------------------------------------------------------------------------------------------------- keys


async def test_a_lower_version_is_refused_also_after_a_restart() -> None:
    memory = Memory()
    await Trust(memory, None, None).learn(swarm(5, NEW))
    again = Trust(memory, None, None)
    with pytest.raises(BadContent, match="version 4, lower than 5"):
        await again.learn(swarm(4, OLD))
    assert again.keys is not None
    assert set(again.keys.keys) == {NEW.kid}
    await again.claim(sign_manifest_claim(NEW, CLAIM))


async def test_another_set_of_the_same_version_is_refused() -> None:
    trust = Trust(Memory(), None, None)
    await trust.learn(swarm(5, OLD, NEW))
    await trust.learn(swarm(5, NEW, OLD))  # the same keys
    for other in (swarm(5, OLD), swarm(5, OLD, Signer.of(new_secret()))):
        with pytest.raises(BadContent, match="two different key sets of version 5"):
            await trust.learn(other)


async def test_every_kind_of_record_of_a_dropped_key_is_refused() -> None:
    trust = Trust(Memory(), None, None, clock=Here())
    await trust.learn(swarm(1, OLD, NEW, time=T0))
    stamp = Stamp(1, 1)

    async def check(signer: Signer) -> None:
        assert await trust.claim(sign_manifest_claim(signer, CLAIM)) == CLAIM
        await trust.tag(sign_tag(signer, TagClaim("a/b", "1", None, stamp, 1)))
        await trust.repository(sign_repository(signer, RepositoryClaim("a/b", True, stamp, 1)))
        await trust.credential(sign_credential(signer, CREDENTIAL), PEER)

    await check(OLD)
    accepted = await trust.credential(sign_credential(OLD, CREDENTIAL), PEER)
    trust.check(accepted, PEER)
    await trust.learn(swarm(2, NEW))
    with pytest.raises(BadContent, match="dropped"):
        trust.check(accepted, PEER)
    await check(NEW)
    with pytest.raises(BadContent):
        await trust.claim(sign_manifest_claim(OLD, CLAIM))
    with pytest.raises(BadContent):
        await trust.tag(sign_tag(OLD, TagClaim("a/b", "1", None, stamp, 1)))
    with pytest.raises(BadContent):
        await trust.repository(sign_repository(OLD, RepositoryClaim("a/b", True, stamp, 1)))
    with pytest.raises(BadContent):
        await trust.credential(sign_credential(OLD, CREDENTIAL), PEER)


async def test_what_a_dropped_key_vouched_for_is_forgotten_once_even_if_the_node_dies_meanwhile() -> None:
    memory, forgotten = Memory(), list[set[str]]()
    dying = True

    async def forget(keys: KeySet) -> None:
        if dying:
            raise KeyboardInterrupt
        forgotten.append(set(keys.keys))

    with pytest.raises(KeyboardInterrupt):
        await Trust(memory, None, None, forget=forget).learn(swarm(2, NEW))
    dying = False
    again = Trust(memory, None, None, forget=forget)
    for _ in range(3):
        await again.learn(swarm(2, NEW))
    assert forgotten == [{NEW.kid}]


async def test_a_token_of_an_unknown_key_has_the_set_asked_for_once_in_a_while(autojump_clock: MockClock) -> None:
    tracker = Tracker(lambda: swarm(2, OLD, NEW))
    trust = Trust(Memory(), tracker, None)
    await trust.learn(swarm(1, OLD))
    async with trio.open_nursery() as nursery:
        for _ in range(10):  # those who come at once wait for the same answer
            nursery.start_soon(trust.claim, sign_manifest_claim(NEW, CLAIM))
    assert tracker.asked == 1
    stranger = sign_manifest_claim(Signer.of(new_secret()), CLAIM)
    for _ in range(10):
        with pytest.raises(BadContent):
            await trust.claim(stranger)
    assert tracker.asked == 1
    await trio.sleep(KEY_REFRESH)
    for _ in range(10):
        with pytest.raises(BadContent):
            await trust.claim(stranger)
    assert tracker.asked == 2
    for junk in ("", "v4.public.x", "x" * 100):
        with pytest.raises(BadContent):
            await trust.claim(junk)
    assert tracker.asked == 2


async def test_a_bad_signature_by_a_known_key_asks_nobody(autojump_clock: MockClock) -> None:
    tracker = Tracker(swarm)
    trust = Trust(Memory(), tracker, None)
    await trust.learn(swarm())
    forged = sign_manifest_claim(Signer(OLD.kid, new_secret()), CLAIM)
    with pytest.raises(BadContent):
        await trust.claim(forged)
    assert tracker.asked == 0


# --------------------------------------------------------------------------------------------------------- revocations


async def test_a_shorter_list_of_revocations_is_not_taken_also_after_a_restart(autojump_clock: MockClock) -> None:
    memory = Memory()
    await Trust(memory, None, None).learn(swarm(revoked=(PEER,), number=2))
    trust = Trust(memory, None, None)
    assert trust.revoked(PEER)
    await trust.learn(swarm(revoked=(), number=1))
    assert trust.revoked(PEER)
    assert not trust.live, "somebody repeats what the tracker said before"
    await trust.learn(swarm(revoked=(PEER, OTHER), number=3))
    assert trust.revoked(OTHER)
    assert trust.live


async def test_revocations_need_a_key_of_the_set() -> None:
    trust = Trust(Memory(), None, None)
    with pytest.raises(BadContent):
        await trust.learn(swarm(2, NEW, revoked=(), number=9, by=OLD))
    assert trust.keys is None
    assert not trust.live


async def test_nothing_is_written_where_nothing_changed() -> None:
    memory = Memory()
    trust = Trust(memory, None, None, clock=Here())
    await trust.learn(swarm(revoked=(PEER,), number=2, time=T0))
    writes = memory.writes
    for _ in range(5):
        await trust.learn(swarm(revoked=(PEER,), number=2, time=T0))
    assert memory.writes == writes


# --------------------------------------------------------------------------------------------------------- credentials


async def test_whose_credentials_hold(autojump_clock: MockClock) -> None:
    trust = Trust(Memory(), None, None, clock=Here())
    await trust.learn(swarm(revoked=(OTHER,), number=1, time=T0))
    token = sign_credential(OLD, CREDENTIAL)
    assert await trust.credential(token, PEER) == CREDENTIAL
    with pytest.raises(BadContent, match="another node's"):
        await trust.credential(token, OTHER)
    with pytest.raises(BadContent, match="another swarm"):
        await trust.credential(sign_credential(OLD, Credential(PEER, "else", "1", 0, int(T0) + 9)), PEER)
    with pytest.raises(BadContent, match="revoked"):
        await trust.credential(sign_credential(OLD, Credential(OTHER, "default", "2", 0, int(T0) + 9)), OTHER)
    await trust.learn(swarm(revoked=(OTHER, PEER), number=2, time=T0))
    with pytest.raises(BadContent, match="revoked"):
        trust.check(CREDENTIAL, PEER)


@pytest.mark.parametrize("late", [0.0, 3500.0, -3500.0])
async def test_a_credential_ends_by_the_clock_of_the_tracker(autojump_clock: MockClock, late: float) -> None:
    memory, here = Memory(), Here(late)
    trust = Trust(memory, None, None, clock=here, offline_grace=500.0)
    await trust.learn(swarm(time=T0))
    assert abs(trust.now() - T0) < 1
    await trio.sleep(990)
    await trust.learn(swarm(time=T0 + 990))
    trust.check(CREDENTIAL, PEER)
    await trio.sleep(20)
    with pytest.raises(BadContent, match="expired"):
        trust.check(CREDENTIAL, PEER)
    again = Trust(memory, None, None, clock=here, offline_grace=500.0)  # it has not heard of the tracker since
    again.check(CREDENTIAL, PEER)
    await trio.sleep(500)
    with pytest.raises(BadContent, match="expired"):
        again.check(CREDENTIAL, PEER)


async def test_while_the_tracker_is_away_credentials_hold_longer(autojump_clock: MockClock) -> None:
    trust = Trust(Memory(), None, None, clock=Here(), offline_grace=500.0)
    await trust.learn(swarm(time=T0))
    assert trust.live
    await trio.sleep(LIVE + 1)
    assert not trust.live
    await trio.sleep(1400 - LIVE)
    trust.check(CREDENTIAL, PEER)
    await trio.sleep(100)
    with pytest.raises(BadContent, match="expired"):
        trust.check(CREDENTIAL, PEER)


async def test_where_the_trackers_clock_is_not_known_this_one_may_be_wrong(autojump_clock: MockClock) -> None:
    trust = Trust(Memory(), None, None, clock=Here(-SKEW - 900), offline_grace=0.0)
    await trust.learn(swarm())
    trust.check(CREDENTIAL, PEER)
    await trio.sleep(200)
    with pytest.raises(BadContent, match="expired"):
        trust.check(CREDENTIAL, PEER)
