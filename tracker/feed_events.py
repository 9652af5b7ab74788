"""Changes as the events that nodes are told, each signed and encoded once however many want it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from p2pregistry.feed_messages import (
    GoneEvent,
    Interest,
    KeysEvent,
    MarkEvent,
    NodeEvent,
    RepositoryEvent,
    ResetEvent,
    RevokedEvent,
    TagEvent,
    encode_event,
)
from p2pregistry.globs import prefix
from p2pregistry.trust.records import Caller, Stamp
from tracker.catalog.base import Standing
from tracker.catalog.changes import Change, Scope, Shown
from tracker.signed import SignedRecords


class Events:
    """Makes the bytes of events. ``now``: unix seconds."""

    def __init__(self, signed: SignedRecords, now: Callable[[], float]) -> None:
        self._signed, self.now = signed, now

    def mark(self, stamp: Stamp, seen_at: float) -> bytes:
        """That everything up to there was sent, which was so at ``seen_at`` (unix seconds)."""
        return encode_event(MarkEvent(stamp, seen_at))

    def reset(self, stamp: Stamp) -> bytes:
        """That the whole state follows."""
        return encode_event(ResetEvent(stamp))

    def gone(self, stamp: Stamp, repository: str) -> bytes:
        """That this repository may not be seen."""
        return encode_event(GoneEvent(stamp, repository))

    def shown(self, epoch: int, change: Change, shown: Shown) -> bytes:
        """A change of a tag or repository as it is told."""
        stamp = Stamp(epoch, change.number)
        if shown == "gone":
            return self.gone(stamp, change.repository)
        if shown == "repository":
            private = bool(change.private)
            record = self._signed.repository(change.repository, Standing(private, stamp))
            return encode_event(RepositoryEvent(stamp, change.repository, private, record))
        newest = Stamp(epoch, max(change.number, change.since))
        record = self._signed.tag(change.repository, change.name, change.digest, newest)
        return encode_event(TagEvent(stamp, change.repository, change.name, change.digest, record))

    def notice(self, epoch: int, change: Change, caller: Caller) -> bytes:
        """What a change of a node or of the keys is to this caller; empty: nothing."""
        stamp = Stamp(epoch, change.number)
        if change.kind == "keys":
            return encode_event(KeysEvent(stamp))
        own = encode_event(NodeEvent(stamp)) if caller.peer_id and change.name == caller.peer_id else b""
        return own + (encode_event(RevokedEvent(stamp)) if change.gone else b"")


@dataclass(slots=True)
class Once:
    """The bytes of one change, made when somebody wants them."""

    events: Events
    epoch: int
    change: Change
    _seen: bytes = b""
    _gone: bytes = b""

    def shown(self, shown: Shown) -> bytes:
        """As it is told."""
        if shown == "gone":
            self._gone = self._gone or self.events.shown(self.epoch, self.change, shown)
            return self._gone
        self._seen = self._seen or self.events.shown(self.epoch, self.change, shown)
        return self._seen


def scope_of(interest: Interest) -> Scope:
    """Whatever an interest covers is in it, and more."""
    return Scope(tuple(sorted(interest.repositories)), prefixes_of(interest.patterns))


def prefixes_of(patterns: Iterable[str]) -> tuple[str, ...]:
    """What names of repositories begin with that patterns over ``repository:tag`` cover; none begins another."""
    kept: list[str] = []
    for start in sorted({prefix(pattern).partition(":")[0] for pattern in patterns}):
        if not kept or not start.startswith(kept[-1]):
            kept.append(start)
    return tuple(kept)
