"""Announces and their answers as they travel."""

from __future__ import annotations

import json

import pytest

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.messages import (
    MAX_ANNOUNCE,
    MAX_HOLD,
    MAX_INTERVAL,
    MAX_PEERS,
    MAX_WANT,
    Announce,
    Announced,
    Crowd,
    PeerSeen,
    pack,
    read_announce,
    read_announced,
    unpack,
)

PEER = "12D3KooWGRUVh7GrfqXjPZUYrLMLsCWhJ9hzYRyHkLpcXh1nZx3K"
ONE, TWO = Digest.of(b"1"), Digest.of(b"2", "sha512")
GOOD = {"peer_id": PEER, "url": "http://192.0.2.7:5001", "zone": "eu/rack-4", "swarm": "default", "want": [str(ONE)]}


def read(**changes: object) -> Announce:
    return read_announce(json.dumps({**GOOD, **changes}).encode())


def test_an_announce_comes_back_as_it_was() -> None:
    announce = Announce(peer_id=PEER, url="https://[2001:db8::7]:5001/", swarm="s", want=(ONE, TWO), leaving=True)
    assert read_announce(announce.encode()) == announce
    assert read() == Announce(peer_id=PEER, url="http://192.0.2.7:5001", swarm="default", zone="eu/rack-4", want=(ONE,))


def test_the_longest_announce_is_within_its_bound() -> None:
    many = tuple(Digest("sha512", number.to_bytes(64, "big")) for number in range(MAX_HOLD))
    announce = Announce(peer_id="1" * 64, url="http://" + "a" * 250, swarm="s" * 128, want=many[:MAX_WANT], hold=many)
    assert len(announce.encode()) <= MAX_ANNOUNCE
    assert read_announce(announce.encode()) == announce


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_id", ""),
        ("peer_id", "short"),
        ("peer_id", "0" * 52),  # not in base58
        ("peer_id", PEER + "\n"),
        ("peer_id", "1" * 65),
        ("peer_id", 7),
        ("url", "ftp://192.0.2.7"),
        ("url", "http://user@192.0.2.7"),
        ("url", "http://192.0.2.7:99999"),
        ("url", "http://192.0.2.7:0"),
        ("url", "http://192.0.2.7/path"),
        ("url", "http://192.0.2.7?x"),
        ("url", "http://[::1"),
        ("url", "http://a b"),
        ("url", "http://a\r\nX: y"),
        ("url", "http://"),
        ("url", "http://" + "a" * 300),
        ("url", None),
        ("zone", "a" * 65),
        ("zone", "new\nline"),
        ("zone", "ä"),
        ("swarm", ""),
        ("swarm", "a b"),
        ("swarm", "a" * 129),
        ("want", "sha256:"),
        ("want", [str(Digest.of(b"%d" % number)) for number in range(MAX_WANT + 1)]),
        ("want[1]", [str(ONE), "sha1:00"]),
        ("want[0]", [5]),
        ("want", [str(ONE), str(TWO), str(ONE)]),
        ("hold[0]", ["x" * 100_000]),
        ("hold", [str(Digest.of(b"%d" % number)) for number in range(MAX_HOLD + 1)]),
        ("leaving", 1),
    ],
)
def test_an_error_names_the_field(field: str, value: object) -> None:
    name = field.partition("[")[0]
    with pytest.raises(RequestError) as caught:
        read(**{name: value})
    assert (caught.value.code, caught.value.status) == ("ANNOUNCE_INVALID", 400)
    assert caught.value.detail == {"field": field}
    assert caught.value.message.startswith(f"{field}: ")
    assert len(caught.value.message) <= 300


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000, b'{"peer_id": "\xff"}', b"null"])
def test_what_is_no_announce_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_announce(data)
    assert caught.value.status == 400


def test_an_answer_comes_back_as_it_was() -> None:
    seen = PeerSeen(PEER, "http://192.0.2.7:5001", "a", [0], [1])
    answer = Announced([seen], [Crowd(3, 0), Crowd(0, 1)], 3.5)
    assert read_announced(answer.encode(), 2) == answer


def test_a_peer_that_makes_no_sense_is_left_out() -> None:
    good = {"peer_id": PEER, "url": "http://192.0.2.7:5001", "zone": "", "want": [], "hold": [1]}
    bad = [
        {**good, "peer_id": "x"},
        {**good, "url": "javascript:x"},
        {**good, "url": "http://a:99999"},
        {**good, "zone": "\n"},
        {**good, "want": [2]},
        {**good, "hold": [-1]},
        {**good, "hold": "all"},
        3,
    ]
    said = {"peers": [*bad, good], "crowd": [{}, {}], "interval": 3}
    answer = read_announced(json.dumps(said).encode(), 2)
    assert answer == Announced([PeerSeen(PEER, "http://192.0.2.7:5001", "", [], [1])], [Crowd(), Crowd()], 3.0)
    many = {**said, "peers": [good] * 100}
    assert len(read_announced(json.dumps(many).encode(), 2).peers) == MAX_PEERS


@pytest.mark.parametrize(
    "said",
    [
        {"peers": [], "crowd": [], "interval": 3},
        {"peers": [], "crowd": [{"wanting": -1}], "interval": 3},
        {"peers": [], "crowd": [{}]},
        {"peers": {}, "crowd": [{}], "interval": 3},
        [],
    ],
)
def test_an_answer_that_cannot_be_read_is_bad_content(said: object) -> None:
    with pytest.raises(BadContent):
        read_announced(json.dumps(said).encode(), 1)


@pytest.mark.parametrize(("said", "taken"), [(-5, 0.2), (0, 0.2), (1e300, MAX_INTERVAL), (7.5, 7.5)])
def test_the_interval_is_kept_within_reason(said: float, taken: float) -> None:
    answer = json.dumps({"peers": [], "crowd": [], "interval": said}).encode()
    assert read_announced(answer, 0).interval == taken


def test_bitmaps() -> None:
    assert pack(b"\1\0\0\0\0\0\0\0\0\1") == b"\x80\x40"
    assert unpack(b"\x80\x40", 10) == b"\1\0\0\0\0\0\0\0\0\1"
    assert pack(b"\7\0\xff") == b"\xa0"  # any number but 0 is wanted
    for bitmap, count, says in ((b"\x80", 10, "10 pieces are 2 bytes, not 1"), (b"\x80\x20", 10, "beyond the last of")):
        with pytest.raises(RequestError, match=says) as caught:
            unpack(bitmap, count)
        assert (caught.value.status, caught.value.detail) == (400, {"field": "bitmap"})
