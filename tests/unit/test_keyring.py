"""Which key signs when, which can go, and what the tracker tells nodes of it."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.trust.keys import KeySet
from p2pregistry.trust.paserk import SECRET, new_secret
from p2pregistry.trust.records import verify_revocations
from tracker.bulletin import Bulletin
from tracker.keyring import IN_USE, Keyring, SigningKey, begin, retirable, signing, superseded


def key(kid: str, sign_from: float | None, dropped: float | None = None) -> SigningKey:
    return SigningKey(kid, f"public-{kid}", 0.0, sign_from, dropped)


def test_the_latest_whose_time_has_come_signs() -> None:
    keys = [key("a", 0), key("b", 100), key("c", 200, dropped=201), key("d", None)]
    assert [getattr(signing(keys, now), "kid", None) for now in (-1, 0, 99, 100, 999)] == [None, "a", "a", "b", "b"]
    assert superseded(keys, 99) == {}
    assert superseded(keys, 300) == {"a": 100}


def test_a_key_is_retired_when_nothing_it_signed_is_in_use() -> None:
    keys = [key("a", 0), key("b", 100), key("c", 200)]
    assert retirable(keys, {"a": 3}, 200 + IN_USE) == (["b"], {"a": "3 claims have yet to be signed again"})
    gone, kept = retirable(keys, {}, 150 + IN_USE)
    assert gone == ["a"]
    assert list(kept) == ["b"]
    assert retirable([key("c", 200)], {}, 999) == ([], {})


def test_a_prepared_key_begins_after_the_overlap_unless_nobody_else_signs() -> None:
    keys = [key("a", 0), key("b", None)]
    assert begin(keys, {"a", "b"}, 1000, 600) == {"b": 1600}
    assert begin(keys, {"b"}, 1000, 600) == {"b": 1000}
    assert begin([*keys[:1], key("c", 1500)], {"c"}, 1000, 600) == {"c": 1000}
    assert begin(keys, {"a"}, 1000, 600) == {}


times = st.none() | st.integers(0, 100)


@given(st.lists(st.tuples(times, times), max_size=6), st.integers(0, 100), st.integers(0, 50), st.data())
def test_whatever_set_is_published_somebody_signs(
    drawn: list[tuple[int | None, int | None]], now: int, overlap: int, data: st.DataObject
) -> None:
    keys = [key(str(number), *pair) for number, pair in enumerate(drawn)]
    good = [one.kid for one in keys if one.dropped is None]
    if not good:
        return
    named = data.draw(st.sets(st.sampled_from(good), min_size=1))
    changed = begin(keys, named, now, overlap)
    assert changed.keys() <= named
    after = [
        SigningKey(one.kid, one.public, 0.0, changed.get(one.kid, one.sign_from), None if one.kid in named else 1.0)
        for one in keys
    ]
    found = signing(after, now)
    assert found is not None
    assert found.kid in named
    assert found.kid not in superseded(after, now)


def test_no_secret_shows_itself() -> None:
    ring = Keyring.fresh()
    text = repr(ring)
    assert ring.signer.secret.to_paserk().removeprefix(SECRET) not in text
    assert repr(ring.nonce_key) not in text
    assert ring.peer_id.startswith("12D3KooW")


async def test_the_bulletin_says_what_holds_now() -> None:
    ring, now = Keyring.fresh(), 1000.0
    revoked = 1, frozenset({"a"})

    async def ask() -> tuple[int, frozenset[str]]:
        await trio.lowlevel.checkpoint()
        return revoked

    bulletin = Bulletin(
        ring, swarm="s", names=("n",), libp2p=lambda: ("/x",), token_url="t", revoked=ask, now=lambda: now
    )
    assert bulletin().revocations == "", "an empty list would bring back who was revoked"
    await bulletin.refresh()
    first = bulletin()
    assert (first.swarm, first.names, first.libp2p, first.time, first.token_url) == ("s", ("n",), ("/x",), 1000.0, "t")
    keys = KeySet.verify(first.key_set, first.root_key)
    found = verify_revocations(keys, first.revocations)
    assert (found.number, found.nodes, found.issued) == (1, {"a"}, 1000)
    now = 1010.0
    assert bulletin().revocations == first.revocations, "signing is not for every request"
    revoked = 2, frozenset({"a", "b"})
    await bulletin.refresh()
    assert verify_revocations(keys, bulletin().revocations).nodes == {"a", "b"}
    now = 1040.0
    assert verify_revocations(keys, bulletin().revocations).issued == 1040
    other = Keyring.fresh()
    ring.signer, ring.keys, ring.key_set, ring.root_public = other.signer, other.keys, other.key_set, other.root_public
    after = bulletin()
    assert verify_revocations(KeySet.verify(after.key_set, after.root_key), after.revocations).number == 2


def test_fresh_keyrings_differ() -> None:
    assert Keyring.fresh().signer.kid != Keyring.fresh().signer.kid
    assert new_secret().to_paserk() != new_secret().to_paserk()
