"""Which piece to ask of whom: the deciding half of a plan. ``plan`` keeps the books and calls ``fill`` on each change.

The tracker's role. It is the source of last resort for bytes, not of latency.

- ``RESORT``: a peer has everything. The tracker is asked only for what peers fail to deliver.
- ``CHOOSER``: others want the blob and nobody usable has all of it. The tracker is asked what to send (``Next``), one
  piece at a time and only for pieces that no known peer has, so that it sends each about once to the whole crowd;
  beyond that it is the last resort.
- ``UNKNOWN``: nobody knows yet whether there is a crowd. One of the first pieces, which the reader waits for; which,
  the tracker chooses, so that those who start in the same moment begin with different ones.
- ``ORDINARY``: there is nobody else. The tracker is a source like any other, and a fast one.

The role follows from what is known at the moment, so it changes in the middle of a flight whenever that does.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from p2pregistry.pull.bits import Randrange, span, unpack
from p2pregistry.pull.commands import Cancel, Command, Limits, Next, Request
from p2pregistry.pull.pieces import Pieces, Readers, next_from
from p2pregistry.pull.sources import Meter, Out, Pool, Source

#: The most requests for one piece at a time.
MOST_ASKED = 4
#: Far sources are asked like near ones while the near ones together are slower than the best of them by this factor.
_TOO_SLOW = 0.5
#: At the end, in a crowd, a piece is asked for twice only after this part of the time that one usually takes.
_YOUNG = 0.5


class Role(Enum):
    """What the tracker is to a flight at the moment."""

    UNKNOWN = auto()
    ORDINARY = auto()
    CHOOSER = auto()
    RESORT = auto()


class Asking:
    """The state that choices are made from, and the choices."""

    __slots__ = (
        "_far_open",
        "_far_probe",
        "_full",
        "_next_id",
        "budget",
        "crowd_since",
        "flying",
        "holding",
        "known",
        "latency",
        "limits",
        "meter",
        "moved",
        "next_at",
        "next_out",
        "outs",
        "pieces",
        "pool",
        "readers",
        "rest",
        "some_late",
        "starving",
        "wanting",
    )

    def __init__(
        self, count: int, have: Iterable[int], randrange: Randrange, limits: Limits, *, now: float, rest: bool
    ) -> None:
        self.limits = limits
        self.budget = limits.in_flight
        self.pieces = Pieces(count, have, randrange)
        self.readers = Readers()
        self.pool = Pool(limits.sources)
        self.rest = rest
        self.outs: dict[int, Out] = {}
        #: pieces in flight, counted once for each source that was asked
        self.flying = 0
        #: a ``Next`` that the tracker has not answered yet, and when it may be asked again
        self.next_out: Out | None = None
        self.next_at = now
        self._next_id = 0
        self.meter = Meter()
        #: what a piece took lately from asking to having, seconds
        self.latency = 0.0
        self.some_late = False
        #: other nodes that want the blob, and that hold all of it, as far as anybody told
        self.wanting = self.holding = 0
        self.crowd_since: float | None = None
        #: a look-up has ended, or the tracker has said who else there is
        self.known = False
        self.moved = now
        #: what came last had to be asked of the tracker outright
        self.starving = False
        self._far_open = False
        self._far_probe = False
        #: the last asking ended because enough was in flight, or enough sources in use, not for want of sources
        self._full = False

    # -- what is wanted, and how much of it at a time -----------------------------------------------------------

    @property
    def missing(self) -> int:
        """Pieces that are wanted and not here."""
        return self.pieces.missing if self.rest else self.pieces.missing & self.readers.wanted

    @property
    def free(self) -> int:
        """Pieces that are wanted, not here and asked of nobody."""
        return self.pieces.free_bits if self.rest else self.pieces.free_bits & self.readers.wanted

    @property
    def crowded(self) -> bool:
        """Whether others fetch this blob too."""
        return self.wanting > 0 or self.pool.partial > 0

    def role(self, now: float) -> Role:
        if self.pool.holder(now):
            return Role.RESORT
        peers = len(self.pool.peers)
        if self.crowded:
            since = self.crowd_since
            if peers == 0 and since is not None and now - since >= self.limits.crowd_grace and self.known:
                return Role.ORDINARY  # a crowd that cannot be reached is none
            return Role.CHOOSER
        if not self.known:
            return Role.UNKNOWN
        if self.holding and peers == 0 and now - (self.crowd_since or 0.0) < self.limits.crowd_grace:
            return Role.UNKNOWN  # they are about to join
        return Role.ORDINARY

    def _most(self) -> int:
        """How many pieces may be in flight: enough for no link to stand idle, else what arrives within the horizon; no
        more than half of what is left, so that a slow source does not sit on the tail."""
        limits = self.limits
        most = max(limits.least, int(self.meter.rate * limits.horizon) // limits.piece)
        if len(self.pool.all) > 1:
            most = min(most, max(limits.least_tail, (self.pieces.left + 1) // 2))
        return max(1, min(most, self.budget // limits.piece))

    def _room_at(self, source: Source, role: Role, *, crowded: bool) -> int:
        """How many more pieces this source may be asked for."""
        limits = self.limits
        if source.kind == "tracker":
            if role is not Role.ORDINARY:
                return 1 - source.pieces_out if role is Role.UNKNOWN and not self._lets_choose(role) else 0
            if not source.rate:
                return 2 * limits.run - source.pieces_out  # one run on the line and one behind it
            crowded = False
        least = limits.crowd_source if crowded else limits.least_source
        most = min(int(source.rate * limits.horizon), limits.per_source) // limits.piece
        return max(least, most) - source.pieces_out

    # -- asking -------------------------------------------------------------------------------------------------

    def fill(self, now: float, only: Source | None = None) -> list[Command]:
        """Ask for as much as is allowed. ``only``: nothing has changed but what this source has, or how much it has to
        do, so that while there was room before there is no need to try the others again."""
        commands: list[Command] = []
        role = self.role(now)
        if role is Role.CHOOSER:
            self._hand_back(commands)
        free = self.free
        if free:
            most = self._most()
            if self.flying < most:
                if only is not None and not self._full:
                    while self.pool.usable(only, now) and self._ask(only, role, most, now, commands):
                        pass
                else:
                    self._ask_all(role, most, now, commands)
                self._full = self.flying >= most or self.pool.full
            self._ask_next(role, now, commands)
        if self.flying and (self.some_late or not self.free):
            self._hedge_all(role, now, commands)
        return commands

    def _hand_back(self, commands: list[Command]) -> None:
        """A crowd has turned up: what the tracker was asked for and has not begun to send is its own choice now."""
        tracker = self.pool.tracker
        if tracker is not None and len(tracker.out) > 1:
            for out in list(tracker.out.values())[1:]:
                if out.heard == out.started:
                    self.end(out)
                    commands.append(Cancel(out.request.id))

    def _ask_all(self, role: Role, most: int, now: float, commands: list[Command]) -> None:
        pool = self.pool
        sources = pool.useful(self.free, now)
        tracker = pool.tracker
        if tracker is not None and tracker.resume <= now and (role is Role.ORDINARY or role is Role.UNKNOWN):
            # it answers sooner than a gateway: what a reader waits for first is asked of it
            sources.insert(len(sources) - sum(source.kind == "ipfs" for source in sources), tracker)
        while sources and self.flying < most:
            sources = [
                source
                for source in sources
                if self.flying < most
                and (source is tracker or pool.usable(source, now))
                and self._ask(source, role, most, now, commands)
            ]

    def _ask(self, source: Source, role: Role, most: int, now: float, commands: list[Command]) -> bool:
        """One more request to this source, if there is room and it has something."""
        room = min(self._room_at(source, role, crowded=self.crowded), most - self.flying)
        if room <= 0:
            return False
        bits = source.of(self.free)
        if bits and not source.near and source.kind != "tracker":
            bits = self._for_far(bits, now)
        if not bits:
            return False
        index = self._pick(bits)
        count = 1
        if source.rate >= self.limits.fast or (
            source is self.pool.tracker and not source.rate and role is Role.ORDINARY
        ):
            room = min(room, self.limits.run)
            while count < room and bits >> (index + count) & 1:
                count += 1
        commands.append(self.request(source, index, count, now))
        return True

    def _pick(self, bits: int) -> int:
        """Of these, which must be some: in order just ahead of each reader, then what readers want, then the rest; the
        rarest where there is somebody to trade with, else in order, which serves the disk and the readers best."""
        crowded = self.crowded
        index = self.readers.next(bits, self.limits.crowd_window if crowded else self.limits.window)
        if index is not None:
            return index
        bits = bits & self.readers.bounded or bits
        return self.pieces.rarest(bits) if crowded else next_from(bits, self.readers.first)

    def _for_far(self, bits: int, now: float) -> int:
        """What of this a source in another zone may be asked for: what no neighbour has, unless those are too slow."""
        if self._far_open or self.pool.far == len(self.pool.peers):
            return bits
        if self._far_probe:
            self._far_probe = False
            return bits
        for source in self.pool.peers.values():
            if source.near and source.resume <= now:
                bits &= ~source.of(bits)
        return bits

    def review(self) -> None:
        """Look whether the near sources are fast enough."""
        pool = self.pool
        near_ones = [source for source in pool.peers.values() if source.near]
        if near_ones and (pool.far or pool.gateways):
            near = sum(source.rate for source in near_ones if source.out)
            others = [source for source in pool.peers.values() if not source.near]
            far = max((source.rate for source in (*others, *pool.gateways.values())), default=0.0)
            self._far_open = near < _TOO_SLOW * far
            self._far_probe = near > 0.0 and far == 0.0

    def _lets_choose(self, role: Role) -> bool:
        return role is Role.CHOOSER or (role is Role.UNKNOWN and self.pieces.count > self.limits.window)

    def _ask_next(self, role: Role, now: float, commands: list[Command]) -> None:
        """Let the tracker choose a piece; where it has none to give and nobody else has either, ask outright."""
        tracker = self.pool.tracker
        if tracker is None or tracker.resume > now or tracker.out or not self._lets_choose(role):
            return
        free = self.free
        if not free:
            return
        if self.next_out is not None or now < self.next_at:
            asked = (
                self.moved
                if self.next_out is None or self.starving
                else max(self.moved, self.next_out.started + self.limits.starved)
            )
            patience = self.limits.still_starved if self.starving else self.limits.starved
            if not self.flying and now - asked >= patience:
                self.starving = True
                commands.append(self.request(tracker, self._pick(free), 1, now))
            return
        novel = self.pieces.nobodys(free)
        if role is Role.UNKNOWN:
            first = self.readers.first
            novel &= span(first, first + self.limits.window)
        if not novel:
            return
        ask = Next(self._next_id, tracker.name, unpack(novel, self.pieces.count))
        self._next_id += 1
        self.next_out = Out(Request(ask.id, tracker.name, 0, 0), tracker, now, now, 0.0, [])
        commands.append(ask)

    # -- asking again -------------------------------------------------------------------------------------------

    def _hedge_all(self, role: Role, now: float, commands: list[Command]) -> None:
        """Idle sources take over pieces that are late elsewhere, or, at the very end, any piece in flight."""
        ending = not self.free
        crowded = self.crowded
        young = _YOUNG * self.latency if crowded else 0.0
        asked: list[tuple[Out, int]] = []
        for out in self.outs.values():
            if out.late or (ending and now - out.started >= young and not (crowded and out.heard > out.started)):
                asked += [(out, index) for index in out.left if self._may_ask_again(index, now)]
        if not asked:
            return
        bits = sum({1 << index for _, index in asked})
        idle = [source for source in self.pool.useful(bits, now) if not source.out]
        tracker = self.pool.tracker
        if tracker is not None and (tracker.out or tracker.resume > now):
            tracker = None
        least = 0.0
        if role is not Role.ORDINARY:
            crowd = self.limits.crowd_late * self.latency if role is Role.CHOOSER else 0.0
            least = max(self.limits.tracker_late, crowd)
        for out, index in asked:
            if self._again_from(idle, out, index, now, commands) or tracker is None:
                continue
            if now - out.started >= least and (out.late or role is Role.ORDINARY) and self._may_ask_again(index, now):
                commands.append(self.request(tracker, index, 1, now))
                tracker = None

    def _again_from(self, idle: list[Source], out: Out, index: int, now: float, commands: list[Command]) -> bool:
        """Ask the best of these for a piece that is in flight."""
        for place, source in enumerate(idle):
            if source.has(index) and source is not out.source and (out.late or source.near or not out.source.near):
                if not self.pool.usable(source, now) or not self._may_ask_again(index, now):
                    return False
                commands.append(self.request(source, index, 1, now))
                del idle[place]
                return True
        return False

    def move(self, source: Source, bits: int, now: float) -> list[Command]:
        """An idle source has got pieces that wait in the queues of others: in a crowd all ask the first who has a
        piece. One of them is asked of the new holder instead, by so many of those who wait as makes the queues alike.
        """
        for out in self.outs.values():
            if out.heard > out.started or len(out.left) != 1 or not bits >> out.left[0] & 1:
                continue
            if out.source is self.pool.tracker or (out.source.near and not source.near):
                continue
            index = out.left[0]
            if self.pieces.draw(self.pieces.holders(index)) == 0:
                self.end(out)
                return [Cancel(out.request.id), self.request(source, index, 1, now)]
        return []

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
        least = self.limits.tracker_late * 2 ** (asked - 2)
        return all(out.late and now - out.started >= least for out in self.outs.values() if index in out.left)

    # -- the books ----------------------------------------------------------------------------------------------

    def request(self, source: Source, first: int, count: int, now: float) -> Request:
        request = Request(self._next_id, source.name, first, count)
        self._next_id += 1
        self.note(source, request, now)
        return request

    def note(self, source: Source, request: Request, now: float) -> None:
        """From now on this request is in flight."""
        count = request.count
        if source.rate:
            expected = (source.pieces_out + count) * self.limits.piece / source.rate
        else:
            expected = max(self.limits.expected, self.latency)
        left = list(range(request.first, request.first + count))
        out = Out(request, source, now, now, expected, left)
        self.outs[request.id] = out
        if not source.out and source is not self.pool.tracker:
            self.pool.in_use += 1
        source.out[request.id] = out
        source.used = now
        source.pieces_out += count
        self.flying += count
        for index in left:
            self.pieces.ask(index)

    def end(self, out: Out) -> None:
        """A request has ended; what is left of it may be asked for again."""
        self.take_off(out)
        for index in out.left:
            self.pieces.release(index)
        self._uncount(out, len(out.left))

    def take_off(self, out: Out) -> None:
        """A request is no longer out."""
        del self.outs[out.request.id]
        source = out.source
        del source.out[out.request.id]
        if not source.out and source is not self.pool.tracker:
            self.pool.in_use -= 1

    def _uncount(self, out: Out, count: int) -> None:
        out.source.pieces_out -= count
        self.flying -= count

    def got(self, out: Out, index: int) -> None:
        """A piece of a request is settled."""
        out.left.remove(index)
        self._uncount(out, 1)
        if not out.left:
            self.take_off(out)

    def others_with(self, index: int) -> list[Out]:
        """The requests that are out for this piece."""
        return [out for out in self.outs.values() if index in out.left]

    def late_after(self, out: Out) -> float:
        """Seconds after its start at which a request is late."""
        expected = max(out.expected, self.latency) if self.crowded else out.expected
        return max(self.limits.late_floor, self.limits.late_factor * expected)

    def silence(self, out: Out) -> float:
        """Seconds without a byte after which a request is given up."""
        limits = self.limits
        if out.source is self.pool.tracker and out.heard == out.started:
            return limits.queue  # it waits its turn, with those of a whole crowd
        if out.source.kind == "ipfs" and out.heard == out.started:
            return max(limits.gateway, limits.silence)  # it may have to find it first
        return limits.silence * (limits.crowd_silence if self.crowded else 1.0)

    def check(self) -> None:
        """See ``Plan.check``."""
        pieces, pool = self.pieces, self.pool
        asked: dict[int, int] = {}
        counted = [0] * pieces.count
        for source in pool.all.values():
            assert source.pieces_out == sum(len(out.left) for out in source.out.values())
            for out in source.out.values():
                assert self.outs[out.request.id] is out
                assert out.left, "a request with nothing left is still open"
                for index in out.left:
                    assert not pieces.here(index), "a piece that is here is still asked for"
                    asked[index] = asked.get(index, 0) + 1
            if source.have is not None:
                for index in range(pieces.count):
                    counted[index] += source.has(index)
        assert counted == [pieces.holders(index) for index in range(pieces.count)], "rarity is counted wrong"
        assert len(self.outs) == sum(len(source.out) for source in pool.all.values())
        assert self.flying == sum(asked.values())
        assert asked == {index: pieces.asked(index) for index in pieces.in_flight()}
        assert all(times <= MOST_ASKED for times in asked.values()), "a piece is asked for too often"
        peers = pool.peers.values()
        assert pool.partial == sum(source.have is not None for source in peers)
        assert len(pool.complete) == sum(source.have is None for source in peers)
        assert pool.far == sum(not source.near for source in peers)
        used = sum(bool(source.out) for source in (*peers, *pool.gateways.values()))
        assert pool.in_use == used <= self.limits.sources
        assert pieces.left == sum(not pieces.here(index) for index in range(pieces.count))
        assert all(pieces.free(i) == (not pieces.here(i) and not pieces.asked(i)) for i in range(pieces.count))
