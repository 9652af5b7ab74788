"""The kad-dht wire format."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import BadContent
from p2pregistry.routing.hello import Hello, decode_hello, encode_hello, split_hello
from p2pregistry.routing.kad import wire
from p2pregistry.routing.kad.wire import Contact, Kind, Message, Reader, decode, encode, varint

contacts = st.builds(
    Contact,
    st.binary(min_size=2, max_size=wire.MAX_PEER_ID),
    st.lists(st.binary(max_size=wire.MAX_ADDR), max_size=4).map(tuple),
)
messages = st.builds(
    Message,
    st.sampled_from(Kind),
    st.binary(max_size=wire.MAX_KEY),
    st.lists(contacts, max_size=4).map(tuple),
    st.lists(contacts, max_size=4).map(tuple),
    st.booleans(),
)

#: What a hello can hold in place of what it should.
MEMBER = st.none() | st.integers() | st.text() | st.lists(st.text() | st.none(), max_size=10)


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.lists(messages, max_size=4), st.data())
def test_messages_survive_the_wire_however_they_are_split(sent: list[Message], data: st.DataObject) -> None:
    reader = Reader()
    received: list[Message] = []
    for part in data.draw(split(b"".join(encode(m) for m in sent))):
        received += reader.feed(part)
    assert received == sent
    assert reader.empty


def read_all(parts: list[bytes]) -> list[Message] | None:
    reader = Reader()
    received: list[Message] = []
    try:
        for part in parts:
            received += reader.feed(part)
    except BadContent:
        return None
    return received


@given(st.one_of(st.binary(max_size=200), messages.map(encode)), st.data())
def test_any_bytes_parse_or_are_refused_the_same_way_however_they_are_split(raw: bytes, data: st.DataObject) -> None:
    if raw and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    assert read_all(data.draw(split(raw))) == read_all([raw])


def test_a_golden_message() -> None:
    """Written out by hand from the specification: GET_PROVIDERS (3) with a two-byte key and one provider."""
    raw = bytes.fromhex("13 0803 1202 abcd 4a0b 0a02 1234 1205 047f000001".replace(" ", ""))
    expected = Message(
        Kind.GET_PROVIDERS, b"\xab\xcd", providers=(Contact(b"\x12\x34", (bytes.fromhex("047f000001"),)),)
    )
    assert Reader().feed(raw) == [expected]
    assert encode(expected) == raw


def test_fields_of_others_are_skipped() -> None:
    body = (
        bytes.fromhex("0804") + bytes.fromhex("5001") + varint(7 << 3 | 5) + b"abcd" + varint(11 << 3 | 1) + b"8bytes!!"
    )
    assert decode(body) == Message(Kind.FIND_NODE)


@pytest.mark.parametrize(
    "body",
    [
        b"\x08\x06",
        b"\x12\x51" + b"k" * 81,
        b"\x42\x00",
        b"\x40\x01",
        b"\x0b",
        b"\x12\x05ab",
        b"\x08" + b"\xff" * 10,
        b"\x42\x04\x0a\x02ab" * 65,
    ],
    ids=["type", "long key", "peer without id", "peer as number", "group", "cut", "number", "too many peers"],
)
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(BadContent):
        decode(body)


def test_a_too_long_message_is_refused_by_its_length() -> None:
    with pytest.raises(BadContent):
        Reader().feed(varint(wire.MAX_MESSAGE + 1))
    with pytest.raises(BadContent):
        Reader().feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=300))
def test_a_hello_parses_or_is_refused(body: bytes) -> None:
    with contextlib.suppress(BadContent):
        assert isinstance(decode_hello(body), Hello)
    with contextlib.suppress(BadContent):
        split_hello(body)


@given(st.dictionaries(st.sampled_from(["urls", "zone", "version", "credential", "addrs"]), MEMBER))
def test_a_hello_of_wrong_kinds_parses_or_is_refused(value: dict[str, object]) -> None:
    with contextlib.suppress(BadContent):
        hello = decode_hello(json.dumps(value).encode())
        assert all(isinstance(text, str) for text in (*hello.urls, *hello.addrs, hello.credential))


def test_a_hello_survives_the_wire() -> None:
    plain = Hello(("https://[2001:db8::1]:5001",), "zone ü", "1.2.3")
    assert b"credential" not in encode_hello(plain)
    for hello in (plain, replace(plain, credential="v4.public.x", addrs=("/ip4/192.0.2.1/tcp/1",))):
        raw = encode_hello(hello)
        assert [split_hello(raw[:n]) for n in range(len(raw))] == [None] * len(raw)
        assert decode_hello(split_hello(raw) or b"") == hello


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"urls": 1}',
        b'{"urls": ["ftp://x"]}',
        b'{"zone": "\\n"}',
        b"[" * 5000,
        b'{"addrs": "x"}',
        b'{"credential": 1}',
    ],
)
def test_hellos_that_are_refused(body: bytes) -> None:
    with pytest.raises(BadContent):
        decode_hello(body)
