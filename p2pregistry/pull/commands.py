"""What the plan of a flight is limited by, and the commands it gives."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The plan's numbers. Bytes, seconds."""

    piece: int = MIB
    in_flight: int = 32 * MIB
    per_source: int = 16 * MIB
    #: bytes in flight are at most what arrives in this time
    horizon: float = 0.5
    #: pieces asked for in order ahead of each reader
    window: int = 8
    #: neighbouring pieces in one request, once a source is fast
    run: int = 4
    #: bytes a second from which a source counts as fast
    fast: float = 8 * MIB
    sources: int = 10
    #: no byte for this long: the request is dropped and the source set back
    silence: float = 3.0
    #: a piece is late after this many times the expected time, and no sooner than ``late_floor``
    late_factor: float = 3.0
    late_floor: float = 0.4
    #: what the first request to a source is expected to take, while nothing is known of its rate
    expected: float = 0.5
    #: the tracker takes over a piece of a holder only once it is this late
    tracker_late: float = 1.5
    #: with no source left, how long to look for new ones once bytes have flowed
    patience: float = 60.0
    #: before the first byte: how long to wait where the only sources are busy, or have failed
    busy_patience: float = 2.0
    retry_patience: float = 0.8
    look_up_every: float = 2.0
    back_off: float = 0.5
    back_off_most: float = 30.0
    #: failures in a row after which a source is dropped from the flight
    strikes: int = 5


@dataclass(frozen=True, slots=True)
class Request:
    """Ask ``source`` for pieces ``first`` .. ``first + count``."""

    id: int
    source: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Next:
    """Ask the tracker ``source`` which piece to send. ``wanted`` has one byte for each piece: 1 = missing and in flight
    nowhere. Answer with ``chosen``, ``nothing`` or ``failed``."""

    id: int
    source: str
    wanted: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this request: what is left of it is not wanted from there any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Close this source; ``ban`` if it sent bytes that do not verify."""

    source: str
    why: str
    ban: bool = False


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look for more sources; answer with ``looked_up``."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every piece is here."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No source is left that could have the rest."""

    why: str


Command = Request | Next | Cancel | Drop | LookUp | Finished | GiveUp
