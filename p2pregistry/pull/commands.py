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
    #: pieces that may be in flight whatever the rate, so that no link stands idle between two answers
    least: int = 10
    #: and the half of what remains that may be in flight is no fewer pieces than this
    least_tail: int = 4
    #: pieces out at one source whatever its rate: without a crowd, and in a crowd, where servers have queues
    least_source: int = 2
    crowd_source: int = 1
    #: pieces asked for in order ahead of each reader: without a crowd, and in a crowd, where order spoils the trade
    window: int = 8
    crowd_window: int = 2
    #: neighbouring pieces in one request, once a source is fast
    run: int = 4
    #: bytes a second from which a source counts as fast
    fast: float = 8 * MIB
    sources: int = 10
    #: seconds between two looks for a better source
    review: float = 2.0
    #: no byte for this long: the request is dropped and the source set back
    silence: float = 3.0
    #: in a crowd a request may rightly wait in its server's queue for this many times longer
    crowd_silence: float = 4.0
    #: and the tracker's queue may be this long, in seconds
    queue: float = 30.0
    #: a gateway may have to find what it is asked for before it sends the first byte
    gateway: float = 15.0
    #: a piece is late after this many times the expected time, and no sooner than ``late_floor``
    late_factor: float = 3.0
    late_floor: float = 0.4
    #: what the first request to a source is expected to take, while nothing is known of its rate
    expected: float = 0.5
    #: the tracker takes over a piece of a holder only once it is this late
    tracker_late: float = 1.5
    #: in a crowd: and only after this many times what a piece usually takes
    crowd_late: float = 4.0
    #: nothing in flight for this long though pieces are wanted: the tracker is asked for one outright
    starved: float = 5.0
    #: and for the next one where that one was all that came meanwhile
    still_starved: float = 0.3
    #: a crowd of which no member has joined for this long is taken for none
    crowd_grace: float = 1.0
    #: with no source left, how long to look for new ones once bytes have flowed
    patience: float = 60.0
    #: before the first byte: how long to wait where the only sources are busy, or have failed
    busy_patience: float = 2.0
    retry_patience: float = 0.8
    #: the same where all known sources are others who wait
    crowd_patience: float = 30.0
    look_up_every: float = 2.0
    back_off: float = 0.5
    back_off_most: float = 30.0
    #: failures in a row after which a source is dropped from the flight
    strikes: int = 5
    #: pieces claimed and not there after which a source is dropped
    lies: int = 3


@dataclass(frozen=True, slots=True)
class Request:
    """Ask ``source`` for pieces ``first`` .. ``first + count``."""

    id: int
    source: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Next:
    """Ask the tracker ``source`` which piece to send. ``wanted`` has one byte for each piece: 1 = missing, in flight
    nowhere, and had by no peer that is known. Answer with ``chosen``, ``nothing`` or ``failed``."""

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
