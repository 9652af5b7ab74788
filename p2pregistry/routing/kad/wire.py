"""The libp2p kad-dht messages, as bytes.

Source: libp2p specification "kad-dht", section "RPC messages" (protobuf, each message preceded by its length as an
unsigned varint). Only what provider records need is here: FIND_NODE, ADD_PROVIDER, GET_PROVIDERS, PING.

Two things are ours, and other implementations live with both:

- *Withdrawal* is an ADD_PROVIDER with no provider in it and field 100 set to 1: "the sender no longer has this key".
  Implementations that do not know field 100 skip it, find no provider in the message and change nothing.
- A batch of ADD_PROVIDER, which has no answer, is followed by a PING on the same stream: the messages of a stream are
  handled in order, so the answer to the PING says that the records before it were read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from p2pregistry.errors import BadContent

#: Multihash prefix of sha2-256 (code 0x12) of 32 bytes (0x20).
SHA256_MULTIHASH = b"\x12\x20"
#: A message longer than this is refused unread. Twenty peers with eight addresses each stay below 50 KiB.
MAX_MESSAGE = 128 * 1024
MAX_KEY = 80
MAX_PEER_ID = 64
MAX_PEERS = 64
MAX_ADDRS = 16
MAX_ADDR = 256


class Kind(IntEnum):
    """``Message.MessageType``."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer: its libp2p id (the multihash bytes) and the binary multiaddrs it can be dialled at, best first."""

    peer_id: bytes
    addrs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer. ``withdraw`` has a meaning only in ADD_PROVIDER."""

    kind: Kind
    key: bytes = b""
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()
    withdraw: bool = False


def blob_key(sha256: bytes) -> bytes:
    """The DHT key of a blob: the multihash in CIDv1(raw, sha2-256, digest)."""
    return SHA256_MULTIHASH + sha256


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def encode_contact(contact: Contact) -> bytes:
    """``Message.Peer``; the connection type is left at NOT_CONNECTED, which everybody ignores."""
    return _field(1, contact.peer_id) + b"".join(_field(2, addr) for addr in contact.addrs)


def encode(message: Message) -> bytes:
    """The message with its length in front. The type is written even where it is 0: some decoders want it."""
    body = bytearray(b"\x08" + varint(message.kind))
    if message.key:
        body += _field(2, message.key)
    for contact in message.closer:
        body += _field(8, encode_contact(contact))
    for contact in message.providers:
        body += _field(9, encode_contact(contact))
    if message.withdraw:
        body += varint(100 << 3) + b"\x01"
    return varint(len(body)) + bytes(body)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise BadContent("a DHT message holds a broken number")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number and its value: an int for wire type 0, bytes for the others."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            length, at = _read_varint(data, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise BadContent("a DHT message holds a field of an unknown kind")
        if length > len(data) - at:
            raise BadContent("a DHT message holds a field that is cut short")
        yield number, data[at : at + length]
        at += length


def _decode_contact(data: int | bytes) -> Contact:
    if isinstance(data, int):
        raise BadContent("a DHT message holds a peer of the wrong type")
    peer_id = b""
    addrs: list[bytes] = []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            peer_id = value
        elif number == 2 and isinstance(value, bytes) and len(value) <= MAX_ADDR and len(addrs) < MAX_ADDRS:
            addrs.append(value)
    if not 2 <= len(peer_id) <= MAX_PEER_ID:
        raise BadContent("a DHT message holds a peer without a usable id")
    return Contact(peer_id, tuple(addrs))


def decode(data: bytes) -> Message:
    """Read one message, without its length. Unknown fields are skipped; raises BadContent."""
    kind: int = Kind.PUT_VALUE
    key = b""
    withdraw = False
    peers: dict[int, list[Contact]] = {8: [], 9: []}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            key = value
        elif number in peers:
            peers[number].append(_decode_contact(value))
        elif number == 100:
            withdraw = value == 1
    if kind > Kind.PING:
        raise BadContent("a DHT message of an unknown type")
    if len(key) > MAX_KEY or len(peers[8]) > MAX_PEERS or len(peers[9]) > MAX_PEERS:
        raise BadContent("a DHT message is over its limits")
    return Message(Kind(kind), key, tuple(peers[8]), tuple(peers[9]), withdraw)


class Reader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        """Nothing of an unfinished message is held."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Message]:
        """Take more bytes; returns the messages they complete. Raises BadContent; the stream is then of no more use."""
        self._buffer += data
        messages: list[Message] = []
        at = 0
        while (head := self._head(at)) is not None:
            start, length = head
            if len(self._buffer) - start < length:
                break
            messages.append(decode(bytes(self._buffer[start : start + length])))
            at = start + length
        del self._buffer[:at]
        return messages

    def _head(self, at: int) -> tuple[int, int] | None:
        """Where the message at ``at`` begins and how long it is, once its length has arrived."""
        length = 0
        for i in range(4):
            if at + i >= len(self._buffer):
                return None
            byte = self._buffer[at + i]
            length |= (byte & 0x7F) << 7 * i
            if length > MAX_MESSAGE:
                break
            if byte < 0x80:
                return at + i + 1, length
        raise BadContent("a DHT message is too long")
