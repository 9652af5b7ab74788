"""The pure Kademlia core: table, look-up, provider store, announcer."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import BadContent
from p2pregistry.routing.kad.announce import Announcer
from p2pregistry.routing.kad.lookup import Lookup
from p2pregistry.routing.kad.node import PROVIDERS_IN_ANSWER, answer
from p2pregistry.routing.kad.store import ProviderStore
from p2pregistry.routing.kad.table import SILENT_FIRST, RoutingTable, common_prefix, position
from p2pregistry.routing.kad.wire import Contact, Kind, Message, blob_key

OWN = b"own peer id"


def contact(number: int) -> Contact:
    return Contact(b"peer %d" % number, (b"\x04\x7f\x00\x00\x01\x06\x13\x8a",))


def by_distance(contacts: Sequence[Contact], target: int) -> list[Contact]:
    return sorted(contacts, key=lambda c: position(c.peer_id) ^ target)


# Table


@given(st.sets(st.integers(0, 2000), max_size=200), st.binary(max_size=8))
def test_buckets_never_hold_more_than_their_size_and_nearest_is_nearest(numbers: set[int], key: bytes) -> None:
    table = RoutingTable(OWN, bucket_size=4)
    for number in numbers:
        table.answered(contact(number))
    prefixes = [common_prefix(position(c.peer_id), position(OWN)) for c in table.contacts()]
    assert all(prefixes.count(p) <= 4 for p in prefixes)
    assert table.nearest(position(key), 5) == by_distance(table.contacts(), position(key))[:5]


def test_the_silent_leave_the_table_and_are_left_alone_for_longer_each_time() -> None:
    table = RoutingTable(OWN)
    assert table.answered(contact(1))
    assert not table.answered(contact(1)), "not new any more"
    table.fell_silent(contact(1).peer_id, 100)
    table.fell_silent(contact(1).peer_id, 101)
    assert len(table) == 0
    peer_id = contact(1).peer_id
    assert table.is_silent(peer_id)
    assert not table.may_retry(peer_id, 100 + SILENT_FIRST - 1)
    assert table.may_retry(peer_id, 100 + SILENT_FIRST)
    table.fell_silent(peer_id, 200)
    assert not table.may_retry(peer_id, 200 + 2 * SILENT_FIRST - 1)
    assert table.may_retry(peer_id, 200 + 2 * SILENT_FIRST)
    table.heard_from(peer_id)
    assert not table.is_silent(peer_id)
    assert not table.may_retry(peer_id, 1000)


def test_neither_itself_nor_a_peer_without_address_enters_the_table() -> None:
    table = RoutingTable(OWN)
    assert not table.answered(Contact(OWN, (b"addr",)))
    assert not table.answered(Contact(b"client", ()))
    assert len(table) == 0


# Look-up


def run_lookup(lookup: Lookup, know: dict[bytes, list[Contact]], dead: frozenset[bytes] = frozenset()) -> int:
    """Answer whatever is asked until the look-up is done; the number of requests."""
    asked: set[bytes] = set()
    while not lookup.done:
        wanted = lookup.next()
        assert wanted, "not done, and nothing to ask"
        for peer in wanted:
            assert peer.peer_id not in asked, "asked twice"
            asked.add(peer.peer_id)
            if peer.peer_id in dead:
                lookup.failed(peer.peer_id)
            else:
                lookup.answered(peer.peer_id, know[peer.peer_id])
    assert lookup.next() == []
    return len(asked)


@given(st.integers(0, 2**32), st.integers(5, 60), st.integers(0, 20))
def test_a_lookup_finds_the_nearest_living_peers(seed: int, size: int, dying: int) -> None:
    rng = random.Random(seed)
    peers = [contact(rng.randrange(10**9)) for _ in range(size)]
    dead = frozenset(c.peer_id for c in rng.sample(peers, min(dying, size - 1)))
    target = position(b"key %d" % seed)
    know = {c.peer_id: by_distance(peers, target)[:20] + rng.sample(peers, 3) for c in peers}
    alive = [c for c in peers if c.peer_id not in dead]
    lookup = Lookup(target, OWN, [rng.choice(alive), rng.choice(peers)], width=5)
    run_lookup(lookup, know, dead)
    reachable = set(lookup._contacts)
    expected = [c for c in by_distance(alive, target) if c.peer_id in reachable]
    assert lookup.nearest() == list(dict.fromkeys(expected))[:5]


def test_late_peers_make_room_and_may_still_answer() -> None:
    lookup = Lookup(0, OWN, [contact(i) for i in range(4)], width=4, alpha=2)
    first = lookup.next()
    assert len(first) == 2
    assert lookup.next() == []
    lookup.late(first[0].peer_id)
    assert len(lookup.next()) == 1
    lookup.answered(first[0].peer_id, [], [contact(9)])
    assert list(lookup.providers) == [contact(9).peer_id]
    assert not lookup.done


def test_enough_providers_end_a_lookup_early() -> None:
    lookup = Lookup(0, OWN, [contact(i) for i in range(4)], width=4, alpha=1, want=1)
    asked = lookup.next()[0]
    assert lookup.answered(asked.peer_id, [], [Contact(OWN), contact(7), contact(7)]) == [contact(7)]
    assert lookup.done
    assert lookup.next() == []


def test_a_liar_cannot_make_a_lookup_endless() -> None:
    lookup = Lookup(0, OWN, [contact(0)], width=3)
    lookup.answered(lookup.next()[0].peer_id, [contact(i) for i in range(1, 1000)])
    assert len(lookup._contacts) <= 33


def test_strangers_answers_and_repeated_events_change_nothing() -> None:
    lookup = Lookup(0, OWN, [contact(0)], width=3)
    asked = lookup.next()[0]
    lookup.answered(b"stranger", [contact(5)])
    lookup.failed(asked.peer_id)
    assert lookup.answered(asked.peer_id, [], [contact(9)]) == []
    assert lookup.done
    assert lookup.nearest() == []


# Store


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans(), st.integers(0, 30)), max_size=80))
def test_the_store_keeps_its_limits_and_no_record_outlives_its_time(steps: list[tuple[int, int, bool, int]]) -> None:
    store = ProviderStore(lifetime=50, max_records=12, per_key=3, per_provider=4)
    now = 0.0
    said: dict[tuple[int, int], float] = {}
    for key, provider, add, wait in steps:
        now += wait
        if add:
            if store.add(b"%d" % key, contact(provider), now):
                said[key, provider] = now
        else:
            store.withdraw(b"%d" % key, contact(provider).peer_id)
            said.pop((key, provider), None)
        found = {(k, p) for k in range(7) for p in range(7) if contact(p) in store.find(b"%d" % k, now)}
        assert len(store) == len(found) <= 12
        assert all(said[entry] + 50 > now for entry in found)
        for n in range(7):
            assert sum(k == n for k, _ in found) <= 3
            assert sum(p == n for _, p in found) <= 4


# Serving


def serve(message: Message, sender: bytes, store: ProviderStore, table: RoutingTable | None = None) -> Message | None:
    return answer(
        message, sender, table=table or RoutingTable(OWN), store=store, now=0, closer=3, sample=random.Random(1).sample
    )


def test_only_a_provider_adds_and_withdraws_its_own_record() -> None:
    store = ProviderStore()
    key = blob_key(b"k" * 32)
    add = Message(Kind.ADD_PROVIDER, key, providers=(contact(1),))
    assert serve(add, contact(2).peer_id, store) is None
    assert store.find(key, 0) == []
    serve(add, contact(1).peer_id, store)
    serve(Message(Kind.ADD_PROVIDER, key, withdraw=True), contact(2).peer_id, store)
    assert store.find(key, 0) == [contact(1)]
    serve(Message(Kind.ADD_PROVIDER, key, withdraw=True), contact(1).peer_id, store)
    assert store.find(key, 0) == []


def test_answers_are_bounded_and_do_not_name_the_asker() -> None:
    store = ProviderStore()
    table = RoutingTable(OWN)
    for number in range(50):
        store.add(b"key", contact(number), 0)
        table.answered(contact(number))
    reply = serve(Message(Kind.GET_PROVIDERS, b"key"), contact(1).peer_id, store, table)
    assert reply is not None
    assert len(reply.providers) == PROVIDERS_IN_ANSWER
    assert len(reply.closer) == 3
    for number in range(50):
        reply = serve(Message(Kind.FIND_NODE, b"key"), contact(number).peer_id, store, table)
        assert reply is not None
        assert contact(number) not in reply.closer
    assert serve(Message(Kind.PING), b"x", store) == Message(Kind.PING)


@pytest.mark.parametrize("kind", [Kind.GET_VALUE, Kind.PUT_VALUE, Kind.FIND_NODE])
def test_requests_without_a_key_and_for_values_are_refused(kind: Kind) -> None:
    with pytest.raises(BadContent):
        serve(Message(kind, b"key" if kind is not Kind.FIND_NODE else b""), b"x", ProviderStore())


# Announcing


def keys(count: int) -> list[bytes]:
    return [blob_key(number.to_bytes(32, "big")) for number in range(count)]


def announce_all(
    announcer: Announcer, peers: list[Contact], now: float, width: int = 20
) -> tuple[int, dict[bytes, set[bytes]]]:
    """Run every round that is due, all peers answering; the number of look-ups, and who was given what."""
    lookups = 0
    holders: dict[bytes, set[bytes]] = {}
    while (due := announcer.next_due()) is not None and due[0] <= now:
        lookups += 1
        found = by_distance(peers, position(due[1]))[:width]
        members, batches = announcer.round(due[1], found, [], width=width, now=now)
        assert due[1] in members
        taken: dict[bytes, int] = {}
        for to, batch in batches:
            announcer.given(to, batch)
            for key in batch:
                taken[key] = taken.get(key, 0) + 1
                holders.setdefault(key, set()).add(to.peer_id)
        announcer.finished(members, taken, len(batches), now, 0.5)
    return lookups, holders


def test_a_thousand_keys_need_far_fewer_lookups_and_reach_their_nearest_peers() -> None:
    peers = [contact(i) for i in range(400)]
    announcer = Announcer(replicas=10, interval=100)
    announcer.hold(keys(1000), 0, random=random.Random(1).random)
    lookups, holders = announce_all(announcer, peers, 0)
    assert lookups < 100
    assert set(holders) == set(keys(1000))
    for key in keys(1000):
        nearest = {c.peer_id for c in by_distance(peers, position(key))[:4]}
        assert len(holders[key]) == 10
        assert len(nearest & holders[key]) >= 3


def test_in_a_small_network_one_round_is_enough() -> None:
    announcer = Announcer(replicas=10, interval=100)
    announcer.hold(keys(500), 0, random=random.Random(1).random)
    lookups, holders = announce_all(announcer, [contact(i) for i in range(5)], 0)
    assert lookups == 1
    assert all(len(h) == 5 for h in holders.values())
    due = announcer.next_due()
    assert due is not None
    assert 80 <= due[0] <= 100, "again before the records expire"


def test_a_key_nobody_took_is_tried_again_soon_and_at_once_when_a_peer_joins() -> None:
    announcer = Announcer(replicas=10, interval=100)
    announcer.hold(keys(1), 0, random=random.Random(1).random)
    members, batches = announcer.round(keys(1)[0], [], [], width=20, now=0)
    assert batches == []
    announcer.finished(members, {}, 0, 0, 1.0)
    assert announcer.next_due() == (1.0, keys(1)[0])
    assert announcer.joined(contact(1), 0.5) == []
    assert announcer.next_due() == (0.5, keys(1)[0])


def test_a_newcomer_is_handed_the_keys_it_is_near_to() -> None:
    announcer = Announcer(replicas=3, interval=100)
    announcer.hold(keys(50), 0, random=random.Random(1).random)
    peers = [contact(i) for i in range(5)]
    _, holders = announce_all(announcer, peers, 0)
    handed = announcer.joined(contact(99), 1)
    expected = [
        key
        for key in keys(50)
        if contact(99)
        in by_distance([*(p for p in peers if p.peer_id in holders[key]), contact(99)], position(key))[:3]
    ]
    assert handed == expected
    assert not set(announcer.joined(peers[0], 1)) & {k for k in keys(50) if peers[0].peer_id in holders[k]}, (
        "it has them"
    )


def test_dropped_keys_are_withdrawn_from_those_who_have_them_unless_held_again() -> None:
    announcer = Announcer(replicas=3, interval=100)
    announcer.hold(keys(2), 0, random=random.Random(1).random)
    announce_all(announcer, [contact(1), contact(2)], 0)
    announcer.drop([*keys(2), b"never held"])
    announcer.hold(keys(1), 1, random=random.Random(1).random)
    assert sorted(announcer.withdrawals(), key=lambda w: w[0].peer_id) == [
        (contact(1), [keys(2)[1]]),
        (contact(2), [keys(2)[1]]),
    ]
    assert announcer.withdrawals() == []


def test_a_key_dropped_while_it_is_on_its_way_is_withdrawn() -> None:
    announcer = Announcer(replicas=3, interval=100)
    announcer.hold(keys(1), 0, random=random.Random(1).random)
    members, batches = announcer.round(keys(1)[0], [contact(1)], [], width=20, now=0)
    announcer.drop(keys(1))
    announcer.given(*batches[0])
    announcer.finished(members, {keys(1)[0]: 1}, 1, 0, 0.5)
    assert announcer.withdrawals() == [(contact(1), keys(1))]


def test_after_a_restart_the_first_round_is_spread() -> None:
    announcer = Announcer(replicas=3, interval=100)
    announcer.hold(keys(100), 0, within=60, random=random.Random(1).random)
    due = sorted(held.due for held in announcer._held.values())
    assert due[0] < 5
    assert due[-1] > 55
