"""What nodes tell each other of the pieces they have: ``POST /p2p/v1/have``.

One node sends a ``Watch``; the other answers with lines of JSON for as long as both like, each a ``HaveNews``. Digests
travel once, in the watch; the news name them by their position in it. Both directions come from outside: each field has
its bounds, and an error names the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.messages import MAX_PEERS, PeerId, PeerSeen, Url, Zone, check_url, read_digests

#: Digests in one watch. Who fetches more than that at once waits with the rest.
MAX_WATCHED: Final = 256
#: The longest watch, bytes.
MAX_WATCH: Final = MAX_WATCHED * 140 + 4096
#: The longest line, bytes. The bitmap of the largest blob (``sources.peer.MAX_TABLE``) takes a third of it.
MAX_LINE: Final = 1 << 20
#: Seconds between two lines at most: an empty one where there is no news.
HEARTBEAT: Final = 10.0
#: Seconds between two lines at least.
PACE: Final = 0.05

Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=MAX_WATCHED)]
Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

_JSON_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: msgspec writes the place of an error at its end.
_FIELD: Final = re.compile(r" - at `\$\.?(.*)`$")


@dataclass(frozen=True, slots=True)
class Watch:
    """Who asks, where its own peer API is, its zone, and the digests it fetches."""

    peer_id: str
    url: str
    zone: str
    want: tuple[Digest, ...]

    def encode(self) -> bytes:
        """As JSON; the fields are those of this class."""
        want = [str(digest) for digest in self.want]
        return msgspec.json.encode({"peer_id": self.peer_id, "url": self.url, "zone": self.zone, "want": want})


class _Watch(msgspec.Struct):
    peer_id: PeerId
    url: Url
    want: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_WATCHED)]
    zone: Zone = ""


class HaveNews(msgspec.Struct, omit_defaults=True):
    """One line. A digest is in one of the first four fields at most.

    ``have``: (digest, bitmap of the pieces that are here; see ``messages.unpack``), in place of whatever was said
    before; ``add``: (digest, pieces that have come); ``full``: digests that are complete here; ``gone``: digests of
    which nothing is here any more; ``peers``: other nodes that watch some of these digests.
    """

    have: list[tuple[Place, bytes]] = []
    add: list[tuple[Place, list[Index]]] = []
    full: list[Place] = []
    gone: list[Place] = []
    peers: Annotated[list[PeerSeen], msgspec.Meta(max_length=MAX_PEERS)] = []

    def encode(self) -> bytes:
        """As a line of JSON."""
        return msgspec.json.encode(self) + b"\n"


_watch_reader = msgspec.json.Decoder(_Watch)
_news_reader = msgspec.json.Decoder(HaveNews)


def read_watch(data: bytes) -> Watch:
    """A watch as a node sent it. Raises RequestError (ANNOUNCE_INVALID, 400) that names the field."""
    try:
        raw = _watch_reader.decode(data)
    except _JSON_ERRORS as err:
        reason = str(err)
        place = _FIELD.search(reason)
        field = "" if place is None else place[1]
        if place is not None:
            reason = reason[: place.start()]
        if "matching regex" in reason:  # which nobody wants to read
            reason = "not well-formed"
        message = f"{field}: {reason}"[:300] if field else reason[:300]
        raise RequestError("ANNOUNCE_INVALID", message, status=400, detail={"field": field[:80]}) from err
    check_url(raw.url)
    return Watch(raw.peer_id, raw.url, raw.zone, read_digests("want", raw.want))


def read_news(line: bytes, watched: int) -> HaveNews:
    """A line of the answer to a watch of ``watched`` digests. Raises BadContent.

    Whether bitmaps and pieces fit a blob is for the caller to see, who knows its size.
    """
    try:
        news = _news_reader.decode(line)
        for peer in news.peers:
            check_url(peer.url)
    except (*_JSON_ERRORS, RequestError) as err:
        raise BadContent("a line of news cannot be read") from err
    places = [place for place, _ in news.have] + [place for place, _ in news.add] + news.full + news.gone
    if len(set(places)) != len(places):
        raise BadContent("a line of news says two things of one digest")
    for peer in news.peers:
        places += peer.want
        places += peer.hold
    if any(place >= watched for place in places):
        raise BadContent("a line of news is about a digest that was not asked for")
    return news
