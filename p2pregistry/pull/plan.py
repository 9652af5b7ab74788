"""The plan of one flight: which piece from which source, and when to give up on either.

Rules for editors. The plan is told what happened (methods) and answers with commands (lists). It does no I/O, reads no
clock and draws no numbers of its own: ``now`` is seconds on any steady clock, randomness is handed in. Everything that
decides stands here; the driver only obeys. After every method the invariants of ``check`` hold.

Terms. A *request* asks one source for a run of neighbouring pieces. A *late* piece is one whose request takes longer
than its source's rate promised; it may be asked of a second source (*hedging*), and if that is late
too of a third. *Endgame* is when nothing is free any more: then every piece in flight counts as late for a source that
is idle. A *holder* is a peer that has every piece.

The tracker's role. It is the source of last resort for bytes, not of latency: where holders are known it is asked only
for pieces they fail to deliver; while nobody knows yet whether there are holders it is asked for one piece at a time;
where there are none it is an ordinary source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Next, Request
from p2pregistry.pull.pieces import Pieces, Randrange

#: The most requests for one piece at a time.
MOST_ASKED = 4


@dataclass(slots=True)
class _Out:
    """A request that is out."""

    request: Request
    started: float
    heard: float
    expected: float
    left: set[int]
    late: bool = False


@dataclass(slots=True)
class _Source:
    name: str
    kind: str
    near: bool
    have: bytearray | None  # None: everything
    rate: float = 0.0
    out: dict[int, _Out] = field(default_factory=dict)
    strikes: int = 0
    resume: float = 0.0
    reason: str = ""

    @property
    def pieces_out(self) -> int:
        return sum(len(out.left) for out in self.out.values())

    def has(self, index: int) -> bool:
        return self.have is None or bool(self.have[index])


class Plan:
    """One blob's plan. Build it, tell it what happens, obey what it returns."""

    def __init__(
        self,
        count: int,
        *,
        now: float,
        randrange: Randrange,
        limits: Limits | None = None,
        have: frozenset[int] = frozenset(),
        looked: bool = False,
        rest: bool = True,
    ) -> None:
        """``have``: pieces that are here already. ``looked``: a look-up has been made; what it found joins next.
        ``rest``: whether pieces that no reader wants are fetched too."""
        self.limits = limits or Limits()
        #: bytes this flight may have in flight: its share of the node's; may change at any time
        self.budget = self.limits.in_flight
        self.pieces = Pieces(count, have, randrange)
        self._sources: dict[str, _Source] = {}
        self._rest = rest
        self._readers: dict[int, tuple[int, int]] = {}
        self._wanting = self._holding = 0  # other nodes, as far as anybody told
        self._nexts: dict[int, str] = {}  # requests whose piece the tracker has still to choose
        self._next_id = 0
        self._looking = False
        self._looked = looked
        self._look_at = now + self.limits.look_up_every if looked else now
        self._moved = now  # when something last arrived, or the flight began
        self._flowed = bool(have)
        self._begun = self._over = False
        self._why = "no source has this blob"

    # -- what happened ------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Command]:
        """The first commands. What is told before is only taken note of."""
        self._begun = True
        return self._go(now)

    def joined(
        self, source: str, kind: str, now: float, *, have: bytes | None = None, near: bool = False
    ) -> list[Command]:
        """A source can be asked. ``have`` has one byte for each piece (None: it has all); ``near`` = same zone."""
        if source in self._sources or self._over:
            return []
        if kind == "peer" and sum(s.kind == "peer" for s in self._sources.values()) >= self.limits.sources:
            return []
        self._sources[source] = _Source(source, kind, near, bytearray(have) if have is not None else None)
        if have is not None:
            for index, bit in enumerate(have):
                if bit:
                    self.pieces.seen(index, 1)
        return self._go(now)

    def left(self, source: str, now: float) -> list[Command]:
        """A source is gone; its requests with it."""
        self._remove(source)
        return self._go(now)

    def has(self, source: str, indexes: Iterable[int], now: float) -> list[Command]:
        """A source that lacked these pieces has them now."""
        entry = self._sources.get(source)
        if entry is None or entry.have is None:
            return []
        for index in indexes:
            if not entry.have[index]:
                entry.have[index] = 1
                self.pieces.seen(index, 1)
        return self._go(now)

    def complete(self, source: str, now: float) -> list[Command]:
        """A source that lacked pieces has everything now."""
        entry = self._sources.get(source)
        if entry is None or entry.have is None:
            return []
        for index, bit in enumerate(entry.have):
            if bit:
                self.pieces.seen(index, -1)
        entry.have = None
        return self._go(now)

    def crowd(self, wanting: int, holding: int, now: float) -> list[Command]:
        """How many other nodes want this blob, and how many hold all of it."""
        self._wanting, self._holding = wanting, holding
        return self._go(now)

    def heard(self, request: int, now: float) -> None:
        """Bytes of this request arrived."""
        out = self._find(request)
        if out is not None:
            out[1].heard = now

    def arrived(self, request: int, index: int, length: int, now: float) -> list[Command]:
        """A piece of ``length`` bytes is here, verified and written."""
        commands: list[Command] = []
        found = self._find(request)
        if found is not None:
            source, out = found
            out.left.discard(index)
            self._measure(source, out, length, now)
            if not out.left:
                del source.out[request]
        if self.pieces.arrive(index):
            self._moved, self._flowed = now, True
            commands += self._cancel_doubles(index)
        return commands + self._go(now)

    def failed(self, request: int, why: str, now: float, *, retry_after: float | None = None) -> list[Command]:
        """A request broke off. ``retry_after``: the source is only busy, for so many seconds."""
        found = self._find(request)
        if found is None:
            chooser = self._sources.get(self._nexts.pop(request, ""))
            if chooser is None:
                return self._go(now)
            source = chooser
        else:
            source = found[0]
        self._close(request)
        if retry_after is not None:
            source.resume = max(source.resume, now + retry_after)
            return self._go(now)
        return self._strike(source, why, now) + self._go(now)

    def chosen(self, request: int, index: int, now: float) -> list[Command]:
        """The tracker sends this piece for a ``Next``: from now on that is a request in flight like any other."""
        source = self._sources.get(self._nexts.pop(request, ""))
        if source is None or self._over or self.pieces.here(index) or self.pieces.asked(index) >= MOST_ASKED:
            return [Cancel(request), *self._go(now)]
        self._note(source, Request(request, source.name, index, 1), now)
        return self._go(now)

    def nothing(self, request: int, wait: float, now: float) -> list[Command]:
        """The tracker has no piece to send for a ``Next``; it may be asked again after ``wait`` seconds."""
        source = self._sources.get(self._nexts.pop(request, ""))
        if source is not None:
            source.resume = max(source.resume, now + wait)
        return self._go(now)

    def lied(self, request: int, now: float) -> list[Command]:
        """A source has not got the pieces that it was asked for, though it said so. Costs it credit."""
        return self.failed(request, "it does not have what it says", now)

    def missing(self, source: str, now: float) -> list[Command]:
        """A source says that it has not got the blob (any more)."""
        return self._expel(source, "it does not have the blob") + self._go(now)

    def bad(self, request: int, index: int, now: float) -> list[Command]:
        """A piece did not verify: the source that sent it, and only that one, is to blame."""
        found = self._find(request)
        if found is None:
            return self._go(now)
        return self._expel(found[0].name, f"piece {index} does not verify", ban=True) + self._go(now)

    def looked_up(self, now: float) -> list[Command]:
        """A look-up has ended; what it found has joined."""
        self._looking, self._looked = False, True
        self._look_at = now + self.limits.look_up_every
        return self._go(now)

    def reader(self, reader: int, position: int | None, now: float, end: int | None = None) -> list[Command]:
        """A reader is at this piece and wants all up to ``end`` (None: of the blob). Position None: it is gone."""
        if position is None:
            self._readers.pop(reader, None)
            return []
        wants = (position, self.pieces.count if end is None else end)
        if self._readers.get(reader) == wants:
            return []
        self._readers[reader] = wants
        return self._go(now)

    def follow_rest(self, rest: bool, now: float) -> list[Command]:
        """From now on pieces that no reader wants are fetched too, or are not (a flight that pauses)."""
        self._rest = rest
        return self._go(now)

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted now."""
        if self._over or self._rest:
            return self.pieces.left == 0
        return all(self.pieces.here(i) for start, end in self._readers.values() for i in range(start, end))

    def tick(self, now: float) -> list[Command]:
        """Time has passed: drop what is silent, mark what is late, look for more."""
        commands: list[Command] = []
        for source in list(self._sources.values()):
            heard = max((out.heard for out in source.out.values()), default=now)
            for out in list(source.out.values()):
                # a server sends whole pieces in turn, so one request may rightly wait while another is served
                if now - heard > self.limits.silence or now - out.heard > 5 * self.limits.silence:
                    commands.append(Cancel(out.request.id))
                    self._close(out.request.id)
                    if source.name in self._sources and source.resume <= now:
                        commands += self._strike(source, "it fell silent", now)
                elif now - out.started >= self._late_after(out):
                    out.late = True
        return commands + self._go(now)

    def wake_at(self, now: float) -> float | None:
        """When ``tick`` is wanted next, if nothing happens before."""
        if self._over:
            return None
        times = [out.heard + self.limits.silence for source in self._sources.values() for out in source.out.values()]
        for source in self._sources.values():
            for out in source.out.values():
                after = max(self._late_after(out), self.limits.tracker_late) if out.late else self._late_after(out)
                if out.started + after > now or not out.late:
                    times.append(out.started + after)
            if source.resume > now:
                times.append(source.resume)
        if not self._looking:
            times.append(self._look_at)
        times.append(self._moved + self.limits.patience)
        return max(min(times), now + 0.01)

    def _late_after(self, out: _Out) -> float:
        return max(self.limits.late_floor, self.limits.late_factor * out.expected)

    # -- what to do ---------------------------------------------------------------------------------------------

    def _go(self, now: float) -> list[Command]:
        if self._over or not self._begun:
            return []
        if self.pieces.left == 0:
            self._over = True
            stop: list[Command] = [Cancel(id_) for source in self._sources.values() for id_ in source.out]
            stop += [Cancel(id_) for id_ in self._nexts]
            return [*stop, Finished()]
        commands = self._fill(now)
        usable = any(source.resume <= now or source.out for source in self._sources.values())
        if not self._looking and now >= self._look_at and (not self._looked or not self._holders()):
            self._looking = True
            commands.append(LookUp())
        if not usable and not self._looking:
            # Before the first byte a miss is told at once; after it, somebody is reading: search on for a while.
            patience = self.limits.patience if self._flowed else self._first_byte_patience(now)
            if now - self._moved >= patience:
                self._over = True
                commands.append(GiveUp(self._why))
        return commands

    def _first_byte_patience(self, now: float) -> float:
        """Seconds that a blob of which nothing has come may wait for sources that are set back: for a busy one a
        little, for one that failed as long as one more try takes."""
        waiting = [source for source in self._sources.values() if source.resume > now]
        if any(source.strikes == 0 for source in waiting):
            return self.limits.busy_patience
        return self.limits.retry_patience if waiting else 0.0

    def _holders(self) -> list[_Source]:
        return [s for s in self._sources.values() if s.kind == "peer" and s.have is None]

    def _tracker_may(self, now: float) -> int:
        """How many pieces the tracker may have out: the module's docstring says why."""
        if any(holder.resume <= now for holder in self._holders()):
            return 0
        if self._wanting > 0:
            return 0
        if self._looking or not self._looked:
            return 1
        return self.limits.per_source // self.limits.piece

    def _fill(self, now: float) -> list[Command]:
        commands: list[Command] = []
        order = sorted(
            (s for s in self._sources.values() if s.resume <= now),
            key=lambda s: (s.kind == "tracker", not s.near, -s.rate),
        )
        progress = True
        while progress:
            progress = False
            for source in order:
                request = self._next_request(source, now)
                if request is not None:
                    commands.append(request)
                    progress = True
        return commands + [self._ask_next(s) for s in order if self._asks_next(s, now)]

    def _crowded(self, now: float) -> bool:
        """Whether the tracker chooses: others want the blob too, and nobody usable has all of it."""
        return self._wanting > 0 and not any(holder.resume <= now for holder in self._holders())

    def _asks_next(self, source: _Source, now: float) -> bool:
        free = self.pieces.free_left > 0 and not self.idle
        return source.kind == "tracker" and free and self._crowded(now) and not source.out and not self._nexts

    def _ask_next(self, source: _Source) -> Next:
        wanted = bytes(self.pieces.free(i) for i in range(self.pieces.count))
        self._next_id += 1
        self._nexts[self._next_id - 1] = source.name
        return Next(self._next_id - 1, source.name, wanted)

    def _room(self, source: _Source, now: float) -> int:
        """How many more pieces this source may be asked for now."""
        limits, piece = self.limits, self.limits.piece
        most = max(1, min(limits.per_source, int(source.rate * limits.horizon)) // piece)
        if source.rate == 0.0:
            most = 2
        if source.kind == "tracker":
            most = min(most, self._tracker_may(now))
        total = sum(s.pieces_out for s in self._sources.values())
        # a slow source must not sit on the tail: together they hold at most half of what is missing
        share = max(1, min(self.budget // piece, (self.pieces.left + 1) // 2))
        if len(self._sources) == 1:
            share = max(1, self.budget // piece)
        return min(most - source.pieces_out, share - total)

    def _next_request(self, source: _Source, now: float) -> Request | None:
        room = self._room(source, now)
        first = self._pick(source) if room > 0 else None
        if first is None:
            return self._hedge(source, now)
        count = 1
        most = min(room, self.limits.run if source.rate >= self.limits.fast else 1)
        while count < most and first + count < self.pieces.count and self._wants(source, first + count):
            count += 1
        return self._ask(source, first, count, now)

    def _wants(self, source: _Source, index: int) -> bool:
        return self.pieces.free(index) and source.has(index)

    def _pick(self, source: _Source) -> int | None:
        """The next free piece: in order just ahead of each reader, else the rarest."""
        for position, end in self._readers.values():
            for index in range(position, min(position + self.limits.window, end)):
                if self._wants(source, index):
                    return index
        if not self._rest:
            ahead = (i for start, end in self._readers.values() for i in range(start, end))
            return next((i for i in ahead if self._wants(source, i)), None)
        if len(self._sources) == 1 or all(s.have is None for s in self._sources.values()):
            # nobody to trade with: in order from the first reader on serves the disk and the readers best
            start = min((position for position, _ in self._readers.values()), default=0)
            return self._next_free(start)
        return self.pieces.rarest(source.has)

    def _next_free(self, start: int) -> int | None:
        if self.pieces.free_left == 0:
            return None
        count = self.pieces.count
        for step in range(count):
            index = (start + step) % count
            if self.pieces.free(index):
                return index
        return None

    def _hedge(self, source: _Source, now: float) -> Request | None:
        """An idle source takes over a piece that is late elsewhere, or any piece in flight at the very end."""
        if source.out or self._over:
            return None
        endgame = self.pieces.free_left == 0
        best: tuple[float, int] | None = None
        for other in self._sources.values():
            if other is source:
                continue
            for out in other.out.values():
                if source.kind == "tracker":
                    if not out.late or now - out.started < self.limits.tracker_late:
                        continue
                elif not out.late and not endgame:
                    continue
                for index in out.left:
                    if (
                        source.has(index)
                        and self._may_ask_again(index, now)
                        and (best is None or out.started < best[0])
                    ):
                        best = (out.started, index)
        return self._ask(source, best[1], 1, now) if best is not None else None

    def _may_ask_again(self, index: int, now: float) -> bool:
        """Whether a piece in flight may be asked of one more source.

        Twice is enough where sources are only slow. But two that trickle must not keep a piece from a third that could
        send it: each further one may try after twice the time the one before it had.
        """
        asked = self.pieces.asked(index)
        if asked == 1:
            return True
        if asked >= MOST_ASKED:
            return False
        outs = [out for source in self._sources.values() for out in source.out.values() if index in out.left]
        least = self.limits.tracker_late * 2 ** (asked - 2)
        return all(out.late and now - out.started >= least for out in outs)

    def _ask(self, source: _Source, first: int, count: int, now: float) -> Request:
        request = Request(self._next_id, source.name, first, count)
        self._next_id += 1
        self._note(source, request, now)
        return request

    def _note(self, source: _Source, request: Request, now: float) -> None:
        """From now on this request is in flight."""
        first, count = request.first, request.count
        ahead = (source.pieces_out + count) * self.limits.piece
        expected = ahead / source.rate if source.rate else self.limits.expected
        source.out[request.id] = _Out(request, now, now, expected, set(range(first, first + count)))
        for index in range(first, first + count):
            self.pieces.ask(index)

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _find(self, request: int) -> tuple[_Source, _Out] | None:
        for source in self._sources.values():
            out = source.out.get(request)
            if out is not None:
                return source, out
        return None

    def _close(self, request: int) -> None:
        found = self._find(request)
        if found is not None:
            source, out = found
            del source.out[request]
            for index in out.left:
                self.pieces.release(index)

    def _measure(self, source: _Source, out: _Out, length: int, now: float) -> None:
        """The rate of a source: what one piece took, times how many requests share the line."""
        took = max(now - out.started, 1e-4)
        sample = length / took * max(1, len(source.out))
        source.rate = sample if source.rate == 0.0 else 0.7 * source.rate + 0.3 * sample
        out.started, out.heard, out.late = now, now, False
        source.strikes = 0

    def _cancel_doubles(self, index: int) -> list[Command]:
        commands: list[Command] = []
        for source in self._sources.values():
            for out in list(source.out.values()):
                if index in out.left:
                    out.left.discard(index)
                    if not out.left:
                        del source.out[out.request.id]
                        commands.append(Cancel(out.request.id))
        return commands

    def _strike(self, source: _Source, why: str, now: float) -> list[Command]:
        source.strikes += 1
        source.reason = why
        self._why = f"{source.kind}: {why}"
        wait = min(self.limits.back_off * 2 ** (source.strikes - 1), self.limits.back_off_most)
        source.resume = now + wait
        if source.strikes >= self.limits.strikes and source.kind == "peer":
            return self._expel(source.name, why)
        return []

    def _expel(self, source: str, why: str, *, ban: bool = False) -> list[Command]:
        entry = self._sources.get(source)
        if entry is None:
            return []
        self._why = f"{entry.kind}: {why}"
        commands: list[Command] = [Cancel(id_) for id_ in entry.out]
        self._remove(source)
        return [*commands, Drop(source, why, ban)]

    def _remove(self, source: str) -> None:
        entry = self._sources.get(source)
        if entry is None:
            return
        for request in list(entry.out):
            self._close(request)
        self._nexts = {id_: name for id_, name in self._nexts.items() if name != source}
        if entry.have is not None:
            for index, bit in enumerate(entry.have):
                if bit:
                    self.pieces.seen(index, -1)
        del self._sources[source]

    def check(self) -> None:
        """The invariants, for tests: each raises AssertionError when broken."""
        asked: dict[int, int] = {}
        for source in self._sources.values():
            for out in source.out.values():
                assert out.left, "a request with nothing left is still open"
                for index in out.left:
                    assert not self.pieces.here(index), "a piece that is here is still asked for"
                    asked[index] = asked.get(index, 0) + 1
        assert asked == {index: self.pieces.asked(index) for index in self.pieces.in_flight()}
        assert all(times <= MOST_ASKED for times in asked.values()), "a piece is asked for too often"
