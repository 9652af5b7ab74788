"""The plan of one flight: which piece from which source, and when to give up on either.

Rules for editors. The plan is told what happened (methods) and answers with commands (lists). It does no I/O, reads no
clock and draws no numbers of its own: ``now`` is seconds on any steady clock, randomness is handed in. Everything that
decides stands in this package; the driver only obeys. After every method the invariants of ``check`` hold.

Terms. A *request* asks one source for a run of neighbouring pieces. A *late* piece is one whose request takes longer
than its source's rate promised; it may be asked of a second source (*hedging*), and if that is late
too of a third. *Endgame* is when nothing is free any more: then every piece in flight may be asked of a source that
is idle. A *holder* is a peer that has every piece. A *crowd* is other nodes that fetch the same blob.

``asking`` has the choices and the tracker's role, ``pieces`` what is rare and where readers are, ``sources`` which
sources are in use.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pregistry.pull.asking import MOST_ASKED, Asking
from p2pregistry.pull.bits import Randrange, pack
from p2pregistry.pull.commands import Cancel, Command, Drop, Finished, GiveUp, Limits, LookUp, Request
from p2pregistry.pull.pieces import Pieces
from p2pregistry.pull.sources import Out, Source

__all__ = ["MOST_ASKED", "Plan"]


class Plan:
    """One blob's plan. Build it, tell it what happens, obey what it returns."""

    __slots__ = (
        "_asks",
        "_begun",
        "_flowed",
        "_look_at",
        "_looked",
        "_looking",
        "_over",
        "_past",
        "_review_at",
        "_sought",
        "_why",
        "limits",
    )

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
        self._asks = Asking(count, have, randrange, self.limits, now=now, rest=rest)
        #: sources that were dropped or banned, and until when they are left alone
        self._past: dict[str, float] = {}
        self._looking = False
        self._looked = self._asks.known = looked
        self._look_at = now + self.limits.look_up_every if looked else now
        self._review_at = now + self.limits.review
        self._sought = True  # what a look-up can find is found, since there was last a source that has everything
        self._flowed = bool(have)
        self._begun = self._over = False
        self._why = "no source has this blob"

    @property
    def pieces(self) -> Pieces:
        return self._asks.pieces

    @property
    def budget(self) -> int:
        """Bytes this flight may have in flight: its share of the node's. May be set at any time."""
        return self._asks.budget

    @budget.setter
    def budget(self, budget: int) -> None:
        self._asks.budget = budget

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted now."""
        return not self._asks.missing

    def in_need(self, now: float) -> bool:
        """Whether those who are asked first do not deliver: nothing has come for long, or no peer has everything, and
        the tracker is not there or has just failed."""
        asks = self._asks
        if self._over or self.idle:
            return False
        if now - asks.moved >= self.limits.starved:
            return True
        tracker = asks.pool.tracker
        return not asks.pool.holder(now) and (tracker is None or tracker.strikes > 0)

    # -- sources ------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Command]:
        """The first commands. What is told before is only taken note of."""
        self._begun = True
        self._asks.moved = now
        return self._go(now)

    def joined(
        self, source: str, kind: str, now: float, *, have: bytes | None = None, near: bool = False
    ) -> list[Command]:
        """A source can be asked. ``have`` has one byte for each piece (None: it has all); ``near`` = same zone. There
        may be more sources than are used at a time: what the others have makes pieces less rare, and the worst in use
        are replaced."""
        asks = self._asks
        resume = self._past.get(source, 0.0)
        if source in asks.pool.all or self._over or resume == float("inf"):
            return []
        bits = None if have is None or kind == "tracker" else pack(have[: asks.pieces.count])
        if kind == "tracker" and asks.pool.tracker is not None:
            kind = "peer"
        entry = Source(source, kind, near, bits, resume=resume, alive=now, noise=len(asks.pool.all))
        if bits is not None:
            entry.noise = asks.pieces.draw(1 << 16)
        asks.pool.add(entry)
        if bits:
            asks.pieces.seen(bits)
        if bits == 0 and asks.flying and self._begun:
            return []
        return self._go(now)

    def left(self, source: str, now: float) -> list[Command]:
        """A source is gone; its requests with it."""
        self._remove(source)
        return self._go(now)

    def has(self, source: str, indexes: Iterable[int], now: float) -> list[Command]:
        """A source that lacked these pieces has them now."""
        asks = self._asks
        entry = asks.pool.all.get(source)
        if entry is None or entry.have is None:
            return []
        entry.alive = now
        bits = 0
        for index in indexes:
            if index < asks.pieces.count:
                bits |= 1 << index
        bits &= ~entry.have
        if not bits:
            return []
        entry.have |= bits
        asks.pieces.seen(bits)
        if not self._begun or self._over or not bits & asks.missing:
            return []
        commands = asks.fill(now, entry)
        if not entry.out and asks.pool.usable(entry, now):
            commands += asks.move(entry, bits, now)
        return commands

    def complete(self, source: str, now: float) -> list[Command]:
        """A source that lacked pieces has everything now."""
        asks = self._asks
        entry = asks.pool.all.get(source)
        if entry is None or entry.have is None:
            return []
        entry.alive = now
        asks.pieces.unseen(entry.have)
        asks.pool.completed(entry)
        return self._go(now)

    def crowd(self, wanting: int, holding: int, now: float) -> list[Command]:
        """How many other nodes want this blob, and how many hold all of it. Where the tracker says that there are none
        nothing is gained by waiting for a look-up to end."""
        asks = self._asks
        asks.known = True
        if asks.crowd_since is None or (wanting, holding) != (asks.wanting, asks.holding):
            asks.crowd_since = now
        asks.wanting, asks.holding = wanting, holding
        return self._go(now)

    # -- requests -----------------------------------------------------------------------------------------------

    def heard(self, request: int, now: float) -> None:
        """Bytes of this request arrived."""
        out = self._asks.outs.get(request)
        if out is not None:
            out.heard = out.source.alive = now

    def arrived(self, request: int, index: int, length: int, now: float) -> list[Command]:
        """A piece of ``length`` bytes is here, verified and written."""
        asks = self._asks
        commands: list[Command] = []
        out = asks.outs.get(request)
        source: Source | None = None
        if out is not None and index in out.left:
            source = out.source
            asks.got(out, index)
            self._measure(out, length, now)
            if not out.left and index != out.request.first + out.request.count - 1:
                commands.append(Cancel(request))  # the rest of the run has come from elsewhere
        if asks.pieces.arrive(index):
            asks.moved, self._flowed = now, True
            if source is not asks.pool.tracker:
                asks.starving = False
            for other in asks.others_with(index):
                asks.got(other, index)
                if not other.left:
                    commands.append(Cancel(other.request.id))
        return commands + self._on(now, source)

    def failed(self, request: int, why: str, now: float, *, retry_after: float | None = None) -> list[Command]:
        """A request broke off. ``retry_after``: the source is only busy, for so many seconds."""
        out = self._close(request)
        if out is None:
            return self._go(now)
        if retry_after is not None:
            out.source.resume = max(out.source.resume, now + retry_after)
            return self._go(now)
        return self._strike(out.source, why, now) + self._go(now)

    def lied(self, request: int, now: float) -> list[Command]:
        """A source has not got what this request asked for, though it said so. It is taken at its word no more for
        those pieces, and dropped after a few such answers. There is no back-off: what else it has may be there."""
        asks = self._asks
        out = self._close(request)
        if out is None:
            return self._go(now)
        source, why = out.source, "it does not have what it says"
        if source.kind == "tracker":
            return self._strike(source, why, now) + self._go(now)
        lacking = sum(1 << index for index in out.left)
        everything = (1 << asks.pieces.count) - 1
        if source.have is None:
            asks.pieces.seen(everything)
        asks.pieces.unseen(lacking if source.have is None else lacking & source.have)
        asks.pool.lacks(source, lacking, everything)
        source.lies += 1
        if source.lies >= self.limits.lies:
            return self._expel(source.name, why, self.limits.back_off_most, now) + self._go(now)
        return self._go(now)

    def chosen(self, request: int, index: int, now: float) -> list[Command]:
        """The tracker sends this piece for a ``Next``: from now on that is a request in flight like any other."""
        asks = self._asks
        next_ = asks.next_out
        if next_ is None or next_.request.id != request:
            return [] if request in asks.outs else [Cancel(request)]
        asks.next_out = None
        pieces = asks.pieces
        if self._over or not 0 <= index < pieces.count or pieces.here(index) or self._coming(index):
            return [Cancel(request), *self._go(now)]
        asks.note(next_.source, Request(request, next_.source.name, index, 1), now)
        return self._on(now, None)

    def _coming(self, index: int) -> bool:
        """Whether a piece is under way and not late."""
        asked = self._asks.pieces.asked(index)
        return asked >= MOST_ASKED or (asked > 0 and not any(out.late for out in self._asks.others_with(index)))

    def nothing(self, request: int, wait: float, now: float) -> list[Command]:
        """The tracker has no piece to send for a ``Next``; it may be asked again after ``wait`` seconds."""
        if self._close(request) is not None:
            self._asks.next_at = now + max(0.0, wait)
        return self._go(now)

    def missing(self, source: str, now: float) -> list[Command]:
        """A source says that it has not got the blob (any more)."""
        return self._expel(source, "it does not have the blob", self.limits.look_up_every, now) + self._go(now)

    def bad(self, request: int, index: int, now: float) -> list[Command]:
        """A piece did not verify: the source that sent it, and only that one, is to blame."""
        out = self._asks.outs.get(request)
        if out is None:
            return self._go(now)
        why = f"piece {index} does not verify"
        return self._expel(out.source.name, why, float("inf"), now, ban=True) + self._go(now)

    # -- the rest of the world ----------------------------------------------------------------------------------

    def looked_up(self, now: float) -> list[Command]:
        """A look-up has ended; what it found has joined."""
        self._looking, self._looked = False, True
        self._asks.known = True
        self._look_at = now + self.limits.look_up_every
        return self._go(now)

    def reader(self, reader: int, position: int | None, now: float, end: int | None = None) -> list[Command]:
        """A reader is at this piece and wants all up to ``end`` (None: of the blob). Position None: it is gone."""
        asks, count = self._asks, self._asks.pieces.count
        was_idle = self.idle
        if position is None:
            asks.readers.remove(reader, count)
            return []
        if not asks.readers.put(reader, position, count if end is None else min(end, count), count):
            return []
        if was_idle:
            asks.moved = now
        # where everything is wanted anyway, a reader's place tells which piece is next, not that there is one more
        return [] if asks.rest else self._on(now, None)

    def follow_rest(self, rest: bool, now: float) -> list[Command]:
        """From now on pieces that no reader wants are fetched too, or are not (a flight that pauses)."""
        if self.idle:
            self._asks.moved = now
        self._asks.rest = rest
        return self._go(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed: drop what is silent, mark what is late, look for more."""
        asks, commands = self._asks, list[Command]()
        late = False
        for out in list(asks.outs.values()):
            if out.request.id not in asks.outs:
                continue  # its source has just been dropped
            quiet, silence = now - out.heard, asks.silence(out)
            # a server sends whole pieces in turn, so one request may rightly wait while another is served
            if (quiet > silence and now - out.source.alive > silence) or quiet > 5 * silence:
                commands += self._silent(out, now)
            elif now - out.started >= asks.late_after(out):
                out.late = late = True
        asks.some_late = late
        next_ = asks.next_out
        if next_ is not None and now - next_.heard > self.limits.queue:
            commands += self._silent(next_, now)
        if now >= self._review_at:
            self._review_at = now + self.limits.review
            asks.review()
        return commands + self._go(now)

    def _silent(self, out: Out, now: float) -> list[Command]:
        commands: list[Command] = [Cancel(out.request.id)]
        self._close(out.request.id)
        if out.source.resume <= now:
            commands += self._strike(out.source, "it fell silent", now)
            out.source.silent = True
        return commands

    def wake_at(self, now: float) -> float | None:
        """When ``tick`` is wanted next, if nothing happens before."""
        asks, limits = self._asks, self.limits
        if self._over or (not asks.outs and self.idle):
            return None
        least = asks.moved + limits.patience
        for out in asks.outs.values():
            at = out.started + asks.late_after(out)
            if out.late and at <= now:
                at = out.started + limits.tracker_late
            if at <= now:
                at = max(out.heard, out.source.alive) + asks.silence(out)
            least = min(least, at)
        for source in asks.pool.all.values():
            if source.resume > now:
                least = min(least, source.resume)
        if not self._looking:
            least = min(least, self._next_look_up)
        if asks.next_at > now:
            least = min(least, asks.next_at)
        return max(least, now + 0.01)

    # -- what to do ---------------------------------------------------------------------------------------------

    def _on(self, now: float, source: Source | None) -> list[Command]:
        """Something moved: ask for more. Cheaper than ``_go``, which looks after the flight as a whole."""
        if self._over or not self._begun:
            return []
        if self._asks.pieces.left == 0:
            return self._finish()
        return self._asks.fill(now, source)

    def _finish(self) -> list[Command]:
        self._over = True
        asks = self._asks
        stop: list[Command] = [Cancel(id_) for id_ in asks.outs]
        if asks.next_out is not None:
            stop.append(Cancel(asks.next_out.request.id))
        return [*stop, Finished()]

    def _go(self, now: float) -> list[Command]:
        if self._over or not self._begun:
            return []
        asks = self._asks
        if asks.pieces.left == 0:
            return self._finish()
        commands = asks.fill(now)
        if self.idle:
            asks.moved = now
            return commands
        if not self._looking and (self._lost(now) or now >= self._next_look_up):
            self._looking = True
            commands.append(LookUp())
        if not asks.outs and asks.next_out is None and not self._looking and now - asks.moved >= self._patience(now):
            self._over = True
            commands.append(GiveUp(self._why))
        return commands

    @property
    def _next_look_up(self) -> float:
        """When one is due: where somebody has everything, only once nothing has come of that for long."""
        if self._looked and self._asks.pool.complete:
            return max(self._look_at, self._asks.moved + self.limits.starved)
        return self._look_at

    def _lost(self, now: float) -> bool:
        """Whether the last source that has everything has just failed: a look-up is due at once, once for each loss."""
        pool = self._asks.pool
        tracker = pool.tracker
        if (tracker is not None and (tracker.resume <= now or tracker.strikes == 0)) or pool.holder(now):
            self._sought = False
            return False
        lost, self._sought = not self._sought, True
        return lost

    def _patience(self, now: float) -> float:
        """Seconds without progress after which a flight with nothing in flight gives up. Before the first byte a miss
        is told at once. Where sources are set back: for a busy one a little, for one that failed as long as one more
        try takes, longer for a silent one, which may have a long queue. After it somebody is reading: search on."""
        limits, missing = self.limits, self._asks.missing
        if self._flowed:
            return limits.patience
        waiting, hopeful = False, self._asks.crowded
        patience = 0.0
        for source in self._asks.pool.all.values():
            if source.resume > now:
                waiting = True
                least = limits.busy_patience if source.strikes == 0 else limits.retry_patience
                patience = max(patience, limits.queue if source.silent else least)
            elif source.of(missing):
                return limits.patience
            else:
                hopeful = True
        if hopeful:
            return limits.crowd_patience
        return patience if waiting else 0.0

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _close(self, request: int) -> Out | None:
        """Take a request that has ended off the books."""
        asks = self._asks
        next_ = asks.next_out
        if next_ is not None and next_.request.id == request:
            asks.next_out = None
            return next_
        out = asks.outs.get(request)
        if out is not None:
            asks.end(out)
        return out

    def _measure(self, out: Out, length: int, now: float) -> None:
        asks, source = self._asks, out.source
        took = now - out.started
        asks.latency = took if asks.latency == 0.0 else 0.8 * asks.latency + 0.2 * took
        source.meter.add(length, out.started, now)
        source.rate = source.meter.rate
        asks.meter.add(length, out.started, now)
        out.started = out.heard = source.alive = now
        out.late = False
        source.strikes = 0

    def _strike(self, source: Source, why: str, now: float) -> list[Command]:
        source.strikes += 1
        source.silent = False
        self._why = f"{source.kind}: {why}"
        wait = min(self.limits.back_off * 2 ** (source.strikes - 1), self.limits.back_off_most)
        source.resume = now + wait
        if source.strikes >= self.limits.strikes and source.kind == "peer":
            return self._expel(source.name, why, self.limits.back_off_most, now)
        return []

    def _expel(self, source: str, why: str, for_: float, now: float, *, ban: bool = False) -> list[Command]:
        """Drop a source. If it joins again it is left alone for ``for_`` seconds."""
        asks = self._asks
        entry = asks.pool.all.get(source)
        if entry is None:
            return []
        self._why = f"{entry.kind}: {why}"
        self._past[source] = now + for_
        commands: list[Command] = [Cancel(id_) for id_ in entry.out]
        if asks.next_out is not None and asks.next_out.source is entry:
            commands.append(Cancel(asks.next_out.request.id))
        self._remove(source)
        return [*commands, Drop(source, why, ban)]

    def _remove(self, source: str) -> None:
        asks = self._asks
        entry = asks.pool.all.get(source)
        if entry is None:
            return
        for out in list(entry.out.values()):
            asks.end(out)
        asks.pool.remove(entry)
        if asks.next_out is not None and asks.next_out.source is entry:
            asks.next_out = None
        if entry.have:
            asks.pieces.unseen(entry.have)

    def check(self) -> None:
        """The invariants, for tests: each raises AssertionError when broken."""
        self._asks.check()
