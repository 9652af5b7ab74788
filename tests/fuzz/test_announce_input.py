"""Announces, answers and bitmaps of any bytes: read as what they are, or refused with the error that was promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.messages import (
    MAX_INTERVAL,
    MAX_PEERS,
    MIN_INTERVAL,
    Announce,
    Announced,
    pack,
    read_announce,
    read_announced,
    unpack,
)
from p2pregistry.sources.wire import Client

T = TypeVar("T")

PEER = "12D3KooWGRUVh7GrfqXjPZUYrLMLsCWhJ9hzYRyHkLpcXh1nZx3K"
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
DIGESTS = st.lists(
    st.integers(0, 5).map(lambda number: str(Digest.of(b"%d" % number))) | st.text(max_size=80), max_size=4
)
URLS = st.text(max_size=30) | st.text("htps:/[]0123456789abcdef.@?#-_ ", max_size=30).map(lambda end: "http://" + end)
ANNOUNCES = st.fixed_dictionaries(
    {"peer_id": st.just(PEER) | st.text(max_size=60), "url": URLS, "swarm": st.just("s") | ANY},
    optional={"zone": st.text(max_size=70), "want": DIGESTS | ANY, "hold": DIGESTS | ANY, "leaving": ANY, "more": ANY},
)
SEEN = st.fixed_dictionaries(
    {"peer_id": st.just(PEER) | ANY, "url": URLS, "want": st.lists(st.integers(-1, 4)) | ANY},
    optional={"zone": ANY, "hold": st.lists(st.integers(-1, 4))},
)
ANSWERS = st.fixed_dictionaries(
    {
        "peers": st.lists(SEEN | ANY, max_size=40),
        "crowd": st.just([{}, {}]) | ANY,
        "interval": st.integers() | st.floats() | ANY,
    }
)


def outcome(read: Callable[..., T], *args: object) -> T | RequestError | BadContent:
    """What it gives, or the error that was promised."""
    try:
        return read(*args)
    except (RequestError, BadContent) as err:
        return err


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200) | ANNOUNCES.map(lambda value: json.dumps(value).encode()))
def test_an_announce_is_read_or_refused(data: bytes) -> None:
    announce = outcome(read_announce, data)
    if not isinstance(announce, Announce):
        assert (announce.code, announce.status) == ("ANNOUNCE_INVALID", 400)
        assert len(announce.message) <= 300
        return
    assert read_announce(announce.encode()) == announce
    assert announce.url.isascii()
    assert announce.url.isprintable()
    if announce.url.startswith("http://"):
        Client(announce.url).close()  # whoever is told of it can use it


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200) | ANSWERS.map(lambda value: json.dumps(value).encode()))
def test_an_answer_is_read_or_refused(data: bytes) -> None:
    answer = outcome(read_announced, data, 2)
    if not isinstance(answer, Announced):
        assert isinstance(answer, BadContent)
        return
    assert len(answer.peers) <= MAX_PEERS
    assert len(answer.crowd) == 2
    assert MIN_INTERVAL <= answer.interval <= MAX_INTERVAL
    assert all(0 <= position < 2 for one in answer.peers for position in (*one.want, *one.hold))
    assert msgspec.json.decode(answer.encode())["interval"] == answer.interval


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=50).map(bytes), st.binary(max_size=8))
def test_bitmaps_are_read_or_refused(wanted: bytes, data: bytes) -> None:
    assert unpack(pack(wanted), len(wanted)) == bytes(map(bool, wanted))
    read = outcome(unpack, data, len(wanted))
    if isinstance(read, bytes):
        assert pack(read) == data
    else:
        assert read.status == 400
