"""What the book keeps of peers and topics."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.crowd.book import INTEREST, MOST_HOLDERS, MOST_PEERS, MOST_WATCHED, Book, unpacked
from p2pregistry.digest import Digest
from p2pregistry.messages import pack
from p2pregistry.routing.base import Peer

A, B = Digest.of(b"a"), Digest.of(b"b")


def book(*topics: Digest) -> Book:
    made = Book("me", random.Random(1).randrange)
    for digest in topics:
        made.topic(digest, 0.0)
    return made


def peer(name: str, zone: str = "") -> Peer:
    return Peer(name, f"http://{name}.invalid:5001", zone)


def test_this_node_is_nobody_to_meet() -> None:
    made = book(A)
    assert not made.meet(peer("me"), 0.0)
    assert made.peers == {}


def test_a_topic_lives_while_it_is_followed_or_has_been_asked_for_lately() -> None:
    made = book(A, B)
    made.topics[A].followers = 1
    made.tidy(INTEREST - 1)
    assert made.wanted() == [A, B]
    made.tidy(INTEREST)
    assert made.wanted() == [A]


def test_what_a_peer_has_grows_and_what_is_said_of_unknown_topics_and_peers_is_passed_over() -> None:
    made = book(A)
    assert not made.has(A, "stranger", bytearray(b"\1"))
    made.meet(peer("p"), 0.0)
    assert not made.holds(B, "p")
    made.wants(A, "p")
    assert "p" not in made.topics[A].have
    assert made.has(A, "p", bytearray(b"\1\0"))
    assert made.adds(A, "p", [5])
    assert made.topics[A].have["p"] == bytearray(b"\1\0\0\0\0\1")
    assert made.holds(A, "p")
    assert not made.holds(A, "p"), "no news"
    assert not made.adds(A, "p", [1]), "it has all"
    assert made.drops(A, "p")
    assert not made.drops(A, "p")


def test_nothing_can_be_had_any_more_from_one_that_is_gone() -> None:
    made = book(A, B)
    made.meet(peer("p"), 0.0)
    made.holds(A, "p")
    made.wants(B, "p")
    assert made.forget("p") == [A]
    assert made.topics[B].wanting == set()
    assert made.to_watch([], 0.0, "") == []


def test_near_ones_are_watched_first_and_few_that_only_hold() -> None:
    made = book(A)
    for n in range(60):
        made.meet(peer(f"p{n}", "here" if n % 3 == 0 else "there"), 0.0)
        if n % 2:
            made.holds(A, f"p{n}")
        else:
            made.wants(A, f"p{n}")
    chosen = made.to_watch([], 0.0, "here")
    assert len(chosen) == MOST_WATCHED
    holders = [p for p in chosen if made.topics[A].have.get(p.peer_id, b"") is None]
    assert len(holders) <= MOST_HOLDERS
    near = [p.zone == "here" for p in chosen if p not in holders]
    assert near == sorted(near, reverse=True)
    assert not {p.peer_id for p in made.to_watch([c.peer_id for c in chosen[:20]], 0.0, "here")} & {
        c.peer_id for c in chosen[:20]
    }


def test_who_fails_is_tried_later_and_ever_later() -> None:
    made = book(A)
    made.meet(peer("p"), 0.0)
    made.wants(A, "p")
    made.failed("p", 10.0)
    assert made.to_watch([], 10.1, "") == []
    assert made.to_watch([], 10.6, "") != []
    made.failed("p", 11.0)
    assert made.to_watch([], 11.6, "") == []
    made.answered("p", 12.0)
    assert made.to_watch([], 12.0, "") != []


def test_there_is_room_for_so_many_peers_and_the_useless_go_first() -> None:
    made = book(A)
    for n in range(MOST_PEERS):
        made.meet(peer(f"p{n}"), float(n))
    made.wants(A, "p0")
    assert made.meet(peer("late"), 1000.0)
    assert "p0" in made.peers
    assert "p1" not in made.peers
    for n in range(2, MOST_PEERS):
        made.wants(A, f"p{n}")
    made.wants(A, "late")
    assert not made.meet(peer("later"), 1001.0), "all others are of use"
    assert len(made.peers) == MOST_PEERS


@given(st.binary(max_size=200))
def test_a_bitmap_unpacked_is_what_was_packed(bits: bytes) -> None:
    wanted = bytes(bit & 1 for bit in bits)
    assert bytes(unpacked(pack(wanted)))[: len(wanted)] == wanted
