"""What the tracker tells nodes of changes: ``POST /p2p/v1/changes``, answered with server-sent events without an end.

A node sends what it is interested in and its *cursor*: everything up to that change is known to it. The tracker answers
with what has changed since, then with what changes. docs/protocol.md has the rules; here are the words, the bounds, and
a parser of the stream that gives the same events however the bytes are cut.

Both directions come from outside: each field has its bounds. A kind of event that this program does not know is left
out, so that a tracker may be newer than its nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.globs import MAX_PATTERN, begins, check_glob, matches
from p2pregistry.oci.reference import check_name, check_tag
from p2pregistry.trust.records import MAX_RECORD, Stamp

#: Repositories and patterns of one interest, and the longest request, bytes: an interest is named twice at most.
MOST_REPOSITORIES: Final = 10_000
MOST_PATTERNS: Final = 200
MAX_CHANGES: Final = 2 * (MOST_REPOSITORIES * 260 + MOST_PATTERNS * (MAX_PATTERN + 4)) + 4096
#: The longest line of the stream, bytes: an event's data with a record in it.
MAX_LINE: Final = MAX_RECORD + 4096
#: Seconds between two marks at most, and the age at which the first of several changes is sent at the latest.
HEARTBEAT: Final = 5.0
PACE: Final = 0.05
MEDIA_TYPE: Final = "text/event-stream"

#: Before any change: a cursor of somebody who knows nothing. There is no such epoch.
NOTHING: Final = Stamp(0, 0)

_TEXT: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ID: Final = re.compile(rb"([0-9]{1,18})\.([0-9]{1,18})")

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Repositories: TypeAlias = Annotated[list[str], msgspec.Meta(max_length=MOST_REPOSITORIES)]
_Patterns: TypeAlias = Annotated[list[str], msgspec.Meta(max_length=MOST_PATTERNS)]
_E = TypeVar("_E", bound=msgspec.Struct)


# ------------------------------------------------------------------------------------------------------------- request


@dataclass(frozen=True, slots=True)
class Interest:
    """Repositories, each with all its tags, and globs over ``repository:tag``."""

    repositories: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.repositories or self.patterns)

    def covers(self, repository: str, tag: str) -> bool:
        """Whether changes of this tag are sent."""
        name = f"{repository}:{tag}"
        return repository in self.repositories or any(matches(pattern, name) for pattern in self.patterns)

    def touches(self, repository: str) -> bool:
        """Whether changes of the repository itself are sent: some tag of it is covered, or could be."""
        start = repository + ":"
        return repository in self.repositories or any(begins(pattern, start) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class ChangesRequest:
    """``cursor``: what is known up to there (``NOTHING``: nothing is). ``fresh``: the part of the interest of which
    that is not so; its whole state is sent."""

    cursor: Stamp = NOTHING
    interest: Interest = field(default_factory=Interest)
    fresh: Interest = field(default_factory=Interest)

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(
            {
                "epoch": self.cursor.epoch,
                "number": self.cursor.number,
                **_said(self.interest),
                "fresh": _said(self.fresh),
            }
        )


def _said(interest: Interest) -> dict[str, list[str]]:
    return {"repositories": sorted(interest.repositories), "patterns": sorted(interest.patterns)}


class _Fresh(msgspec.Struct):
    repositories: _Repositories = []
    patterns: _Patterns = []


class _Request(msgspec.Struct):
    epoch: _Number = 0
    number: _Number = 0
    repositories: _Repositories = []
    patterns: _Patterns = []
    fresh: _Fresh = msgspec.field(default_factory=_Fresh)


_request_reader = msgspec.json.Decoder(_Request)


def read_changes(data: bytes) -> ChangesRequest:
    """A request as a node sent it. Raises RequestError (UNSUPPORTED or NAME_INVALID, 400)."""
    try:
        raw = _request_reader.decode(data)
        interest = _interest(raw.repositories, raw.patterns)
        fresh = _interest(raw.fresh.repositories, raw.fresh.patterns)
    except (*_TEXT, ValueError) as err:
        raise RequestError("UNSUPPORTED", f"this is no request for changes: {err}"[:300], status=400) from err
    if not (fresh.repositories <= interest.repositories and fresh.patterns <= interest.patterns):
        raise RequestError("UNSUPPORTED", "what is fresh is part of the interest", status=400)
    return ChangesRequest(Stamp(raw.epoch, raw.number), interest, fresh)


def _interest(repositories: list[str], patterns: list[str]) -> Interest:
    for pattern in patterns:
        check_glob(pattern)
    return Interest(frozenset(check_name(name) for name in repositories), frozenset(patterns))


# -------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class TagEvent:
    """Where a tag points; ``digest`` None: nowhere. ``record``: the same, signed (see ``trust.records``)."""

    stamp: Stamp
    repository: str
    tag: str
    digest: Digest | None
    record: str


@dataclass(frozen=True, slots=True)
class RepositoryEvent:
    """A repository that may be seen. All its tags that the interest covers follow before the next mark; another one is
    no more."""

    stamp: Stamp
    repository: str
    private: bool
    record: str


@dataclass(frozen=True, slots=True)
class GoneEvent:
    """A repository that may not be seen, or not any more: deleted or private, which of them is not said."""

    stamp: Stamp
    repository: str


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """What this node was given has changed, or it was revoked."""

    stamp: Stamp


@dataclass(frozen=True, slots=True)
class KeysEvent:
    """There is another key set."""

    stamp: Stamp


@dataclass(frozen=True, slots=True)
class RevokedEvent:
    """There is another list of revoked nodes."""

    stamp: Stamp


@dataclass(frozen=True, slots=True)
class ResetEvent:
    """The cursor is of no use: what follows up to the next mark is the whole state of the interest."""

    stamp: Stamp


@dataclass(frozen=True, slots=True)
class MarkEvent:
    """Everything up to here has been sent. ``time``: unix seconds at which the tracker last saw that there was no more;
    0: there may be more, which comes at once."""

    stamp: Stamp
    time: float


Event: TypeAlias = (
    TagEvent | RepositoryEvent | GoneEvent | NodeEvent | KeysEvent | RevokedEvent | ResetEvent | MarkEvent
)


class _Tag(msgspec.Struct):
    repository: str
    tag: str
    digest: str | None
    record: str


class _Repository(msgspec.Struct):
    repository: str
    private: bool
    record: str


class _Gone(msgspec.Struct):
    repository: str


class _Mark(msgspec.Struct):
    epoch: _Number
    number: _Number
    time: Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Nothing(msgspec.Struct):
    pass


_Bare: TypeAlias = NodeEvent | KeysEvent | RevokedEvent | ResetEvent
_BARE: Final[dict[bytes, type[_Bare]]] = {
    b"node": NodeEvent,
    b"keys": KeysEvent,
    b"revoked": RevokedEvent,
    b"reset": ResetEvent,
}
_NAMES: Final = {kind: name for name, kind in _BARE.items()}


def encode_event(event: Event) -> bytes:
    """As it goes over the wire, with the empty line that ends it."""
    match event:
        case TagEvent():
            digest = None if event.digest is None else str(event.digest)
            return _framed(b"tag", event.stamp, _Tag(event.repository, event.tag, digest, event.record))
        case RepositoryEvent():
            return _framed(b"repository", event.stamp, _Repository(event.repository, event.private, event.record))
        case GoneEvent():
            return _framed(b"gone", event.stamp, _Gone(event.repository))
        case MarkEvent():
            return _framed(b"mark", event.stamp, _Mark(*event.stamp, event.time))
    return _framed(_NAMES[type(event)], event.stamp, _Nothing())


def _framed(name: bytes, stamp: Stamp, data: msgspec.Struct) -> bytes:
    return b"id: %d.%d\nevent: %b\ndata: %b\n\n" % (*stamp, name, msgspec.json.encode(data))


class EventReader:
    """The events in a stream of bytes. Lines end with LF or CR LF."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises BadContent; the stream is then of no more use."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [event for line in lines if (event := self._line(line)) is not None]
        if len(self._rest) > MAX_LINE + 1:  # its end may be a CR that is no part of it
            raise BadContent("a line of the changes is too long")
        return found

    def _line(self, line: bytes) -> Event | None:
        line = line.removesuffix(b"\r")
        if len(line) > MAX_LINE:
            raise BadContent("a line of the changes is too long")
        if not line:
            fields, self._fields = self._fields, {}
            return _event(fields) if b"data" in fields or b"event" in fields else None
        name, _, value = line.partition(b":")
        if not name:
            return None  # a comment
        if name in (b"id", b"event", b"data"):
            if name in self._fields:
                raise BadContent("an event of the changes says something twice")
            self._fields[name] = value.removeprefix(b" ")
        return None


def _event(fields: dict[bytes, bytes]) -> Event | None:
    name, data = fields.get(b"event", b""), fields.get(b"data", b"")
    bare = _BARE.get(name)
    if bare is None and name not in (b"tag", b"repository", b"gone", b"mark"):
        return None
    stamp = _stamp(fields.get(b"id", b""))
    try:
        if bare is not None:
            _decoded(data, _Nothing)
            return bare(stamp)
        if name == b"tag":
            tag = _decoded(data, _Tag)
            digest = None if tag.digest is None else Digest.parse(tag.digest)
            return TagEvent(stamp, check_name(tag.repository), check_tag(tag.tag), digest, tag.record)
        if name == b"repository":
            one = _decoded(data, _Repository)
            return RepositoryEvent(stamp, check_name(one.repository), one.private, one.record)
        if name == b"gone":
            return GoneEvent(stamp, check_name(_decoded(data, _Gone).repository))
        mark = _decoded(data, _Mark)
    except (*_TEXT, RequestError) as err:
        raise BadContent("an event of the changes is not in form") from err
    if stamp != (mark.epoch, mark.number):
        raise BadContent("a mark of the changes contradicts itself")
    return MarkEvent(stamp, mark.time)


def _decoded(data: bytes, kind: type[_E]) -> _E:
    return msgspec.json.decode(data, type=kind)


def _stamp(text: bytes) -> Stamp:
    found = _ID.fullmatch(text)
    if found is None:
        raise BadContent("an event of the changes has no number")
    return Stamp(int(found[1]), int(found[2]))
