"""What a node and the tracker tell each other of who wants and who holds what: ``POST /p2p/v1/announce``.

A node sends all it wants and holds each time; the last announce replaces the one before. The answer names other nodes,
by their positions in the list that was asked about, so that digests travel once. Both directions come from outside:
each field has its bounds, and an error names the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError

#: Digests in one announce: wanted (a large image has some hundred layers) and held.
MAX_WANT: Final = 512
MAX_HOLD: Final = 2048
#: Peers in one answer.
MAX_PEERS: Final = 30
#: The longest announce and the longest answer, bytes.
MAX_ANNOUNCE: Final = (MAX_WANT + MAX_HOLD) * 140 + 4096
MAX_ANNOUNCED: Final = 1 << 20
#: Seconds between two announces, whatever the tracker says.
MIN_INTERVAL: Final = 0.2
MAX_INTERVAL: Final = 3600.0

#: Repositories in one question for their records, and the longest such question, bytes.
MOST_NAMES: Final = 500
MAX_NAMES: Final = MOST_NAMES * 260 + 100

#: A libp2p peer id in base58 (an Ed25519 key: 52 characters; the hash of another key: 46).
PeerId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,64}\Z")]
#: The base of a peer API: scheme, host, port. What may follow the host elsewhere (users, paths) has no meaning here.
Url: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        max_length=300, pattern=r"^https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?/?\Z"
    ),
]
#: The base of a gateway for IPFS clients; empty: none.
GatewayUrl: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        max_length=300, pattern=r"^(?:https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?/?)?\Z"
    ),
]
#: A rack, a datacentre: short enough for a header. Empty: none.
ZONE: Final = re.compile(r"[A-Za-z0-9._:/-]{0,64}")
Zone: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^{ZONE.pattern}\Z")]
SwarmName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,128}\Z")]
Position: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=MAX_WANT)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]

_JSON_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: msgspec writes the place of an error at its end.
_PLACE: Final = re.compile(r" - at `\$\.?(.*)`$")


class Announce(msgspec.Struct, frozen=True, kw_only=True):
    """What one node wants (is fetching, or will when it is asked) and holds (complete). ``leaving``: it is going away;
    the lists then do not count. ``gateway``: the base URL of its gateway for IPFS clients; "": it has none."""

    peer_id: str
    url: str
    swarm: str
    zone: str = ""
    want: tuple[Digest, ...] = ()
    hold: tuple[Digest, ...] = ()
    leaving: bool = False
    gateway: str = ""

    def encode(self) -> bytes:
        """As JSON; the fields are those of this class."""
        return msgspec.json.encode(
            {
                "peer_id": self.peer_id,
                "url": self.url,
                "zone": self.zone,
                "swarm": self.swarm,
                "want": [str(digest) for digest in self.want],
                "hold": [str(digest) for digest in self.hold],
                "leaving": self.leaving,
                **({"gateway": self.gateway} if self.gateway else {}),
            }
        )


class PeerSeen(msgspec.Struct, frozen=True):
    """Another node, and the positions in the list of wanted digests of those that it wants too and those it holds."""

    peer_id: PeerId
    url: Url
    zone: Zone = ""
    want: list[Position] = []
    hold: list[Position] = []


class Crowd(msgspec.Struct, frozen=True):
    """How many other nodes want a digest and how many hold it."""

    wanting: Count = 0
    holding: Count = 0


class Announced(msgspec.Struct, frozen=True):
    """The tracker's answer: some of the other nodes, the size of the crowd for each digest wanted, and after how many
    seconds to announce again if nothing changes before."""

    peers: list[PeerSeen]
    crowd: list[Crowd]
    interval: float

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


class _Announce(msgspec.Struct):
    peer_id: PeerId
    url: Url
    swarm: SwarmName
    zone: Zone = ""
    want: Annotated[list[str], msgspec.Meta(max_length=MAX_WANT)] = []
    hold: Annotated[list[str], msgspec.Meta(max_length=MAX_HOLD)] = []
    leaving: bool = False
    gateway: GatewayUrl = ""


class _Announced(msgspec.Struct):
    peers: list[msgspec.Raw]
    crowd: list[Crowd]
    interval: float


_announce_reader = msgspec.json.Decoder(_Announce)
_announced_reader = msgspec.json.Decoder(_Announced)
_peer_reader = msgspec.json.Decoder(PeerSeen)


def read_announce(data: bytes) -> Announce:
    """An announce as a node sent it. Raises RequestError (ANNOUNCE_INVALID, 400) that names the field."""
    try:
        raw = _announce_reader.decode(data)
    except _JSON_ERRORS as err:
        raise _invalid(str(err)) from err
    check_url(raw.url)
    if raw.gateway:
        check_url(raw.gateway, "gateway")
    return Announce(
        peer_id=raw.peer_id,
        url=raw.url,
        swarm=raw.swarm,
        zone=raw.zone,
        want=read_digests("want", raw.want),
        hold=read_digests("hold", raw.hold),
        leaving=raw.leaving,
        gateway=raw.gateway,
    )


def read_announced(data: bytes, asked: int) -> Announced:
    """The tracker's answer to an announce that wanted ``asked`` digests. Raises BadContent.

    A peer that makes no sense is left out: one bad entry must not cost a node the others.
    """
    try:
        raw = _announced_reader.decode(data)
    except _JSON_ERRORS as err:
        raise BadContent("the tracker's answer to an announce cannot be read") from err
    if len(raw.crowd) != asked:
        raise BadContent("the tracker's answer to an announce is about other digests")
    peers = []
    for entry in raw.peers[:MAX_PEERS]:
        try:
            peer = _peer_reader.decode(entry)
            check_url(peer.url)
        except (*_JSON_ERRORS, RequestError):
            continue
        if all(position < asked for position in (*peer.want, *peer.hold)):
            peers.append(peer)
    return Announced(peers, raw.crowd, min(max(raw.interval, MIN_INTERVAL), MAX_INTERVAL))


def read_digests(field: str, texts: Iterable[str]) -> tuple[Digest, ...]:
    """Digests of a list, each once. Raises RequestError (ANNOUNCE_INVALID) that names ``field`` and the position."""
    digests = []
    for number, text in enumerate(texts):
        try:
            digests.append(Digest.parse(text))
        except RequestError as err:
            raise _invalid(err.message, f"{field}[{number}]") from err
    if len(set(digests)) != len(digests):
        raise _invalid("a digest stands in it twice", field)
    return tuple(digests)


def check_url(url: str, field: str = "url") -> None:
    """What the pattern of Url cannot say. Raises RequestError (ANNOUNCE_INVALID)."""
    try:
        port = urlsplit(url).port
    except ValueError as err:
        raise _invalid("not a URL", field) from err
    if port == 0:
        raise _invalid("port 0 is none", field)


def is_base_url(text: str) -> bool:
    """Whether it may stand in an announce as a URL: scheme, host and perhaps a port."""
    try:
        msgspec.convert(text, Url)
        check_url(text)
    except (msgspec.ValidationError, RequestError):
        return False
    return True


def _invalid(reason: str, field: str = "") -> RequestError:
    place = _PLACE.search(reason)
    if place is not None:
        reason, field = reason[: place.start()], place[1]
        if "matching regex" in reason:  # which nobody wants to read
            reason = "not well-formed"
    message = f"{field}: {reason}" if field else reason
    return RequestError("ANNOUNCE_INVALID", message[:300], status=400, detail={"field": field[:80]})


def pack(wanted: bytes) -> bytes:
    """One byte per piece (0: not wanted) as a bitmap: bit 7 of byte 0 is piece 0, spare bits are 0."""
    count = len(wanted)
    bits = "".join("1" if one else "0" for one in wanted) + "0" * (-count % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


def unpack(bitmap: bytes, count: int) -> bytes:
    """``count`` pieces of a bitmap, one byte each (1: its bit is set). Raises RequestError (ANNOUNCE_INVALID) that says
    which length it must have, or that a bit is set beyond the last piece."""
    length = -(-count // 8)
    if len(bitmap) != length:
        raise _invalid(f"{count} pieces are {length} bytes, not {len(bitmap)}", "bitmap")
    bits = f"{int.from_bytes(bitmap, 'big'):0{8 * length}b}" if length else ""
    if "1" in bits[count:]:
        raise _invalid(f"a bit is set beyond the last of {count} pieces", "bitmap")
    return bytes(bits[:count], "ascii").translate(_BITS)


_BITS: Final = bytes.maketrans(b"01", b"\x00\x01")
