"""Announces in Postgres, shared by all trackers of one database. The table: catalog/migrations/0002_announces.sql.

One task writes. The announces that arrive while a transaction is under way make up the next one, which reads what other
processes changed since this one read last, then writes them all: two to four round trips for however many there are,
and every node of a batch is on the board before any of them is answered.

The board is in memory, so a database that is away or stuck costs an answer only its news: announces are then answered
from the board, and written once the database is back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.messages import Announce, Announced
from p2pregistry.observe import logger
from p2pregistry.trust.records import ANYONE, Caller
from tracker.announces import Desk
from tracker.board import Member
from tracker.db import Connection, Db

#: Seconds that an announce waits for the database: a node waits three for its answer.
_PATIENCE: Final = 1.0
#: Seconds between two tries while the database fails.
_RETRY: Final = 0.5
#: Seconds between two looks, for IPFS clients, at what other processes were told while nobody announces here.
_LOOK: Final = 2.0
#: Seconds between two rounds that remove the rows of nodes that are gone; rows removed in one statement.
_SWEEP: Final = 60.0
_SWEEP_ROWS: Final = 1000

#: Any number will do, as long as all trackers use the same and nothing else does; it is "p2pann" in ASCII.
LOCK: Final = 0x703270616E6E
# A process that is stopped while it has the lock must not hold up the others: its transaction is ended.
TAKE_LOCK: Final = (
    f"set local idle_in_transaction_session_timeout = 2000; select pg_advisory_xact_lock({LOCK})".encode()
)
_CHANGED: Final = """
select peer_id, url, swarm, zone, want::bytea[], hold::bytea[], gateway,
    extract(epoch from gone_at - clock_timestamp())::float8, change
from announces where change > %s
"""
_PUT: Final = """
insert into announces (peer_id, url, swarm, zone, want, hold, gateway, change, seen_at, gone_at)
select peer_id, url, swarm, zone, want::digest[], hold::digest[], gateway, nextval('announce_changes'),
    clock_timestamp(), clock_timestamp() + lasts * interval '1 second'
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::float8[])
    as new (peer_id, url, swarm, zone, want, hold, gateway, lasts)
on conflict (peer_id) do update set url = excluded.url, swarm = excluded.swarm, zone = excluded.zone,
    want = excluded.want, hold = excluded.hold, gateway = excluded.gateway, change = excluded.change,
    seen_at = excluded.seen_at, gone_at = excluded.gone_at
returning change
"""
# Rows stay a minute after their end, so that every process has read it. Those that are being written are left alone.
_REMOVE: Final = """
delete from announces where peer_id in (
    select peer_id from announces where gone_at < clock_timestamp() - interval '1 minute'
    limit %s for update skip locked
)
"""

_log = logger(__name__)


@dataclass(slots=True)
class _Batch:
    """Announces that go into one transaction: for each node the last one, and for how many seconds it counts."""

    rows: dict[str, tuple[Member, float]] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)


class PostgresAnnounces:
    """``Announces`` on a database that ``tracker.catalog.migrate`` has prepared. ``run`` must be running."""

    def __init__(self, db: Db, desk: Desk) -> None:
        self.desk = desk
        self._db = db
        self._batch, self._writing = _Batch(), _Batch()
        self._wake = trio.Event()
        self._failing = False
        #: The number of the newest change that the board has.
        self._read = 0
        self._reading = trio.Lock()
        self._looked = -math.inf

    async def announce(self, announce: Announce, caller: Caller = ANYONE) -> Announced:
        until = trio.current_time() + _PATIENCE
        await self._learn(announce, until)
        member, lasts, interval = self.desk.take(announce, caller)
        batch = self._batch
        batch.rows[member.peer_id] = (member, lasts)
        self._wake.set()
        if not self._failing:
            with trio.move_on_at(until) as patience:
                await batch.done.wait()
            if patience.cancelled_caught:
                self._fails("no answer in time")
        return self.desk.answer(announce, caller, interval)

    async def _learn(self, announce: Announce, until: float) -> None:
        """Who may be told of these digests; where the database fails what is remembered has to do."""
        await trio.lowlevel.checkpoint()
        if self._failing:
            return
        try:
            with trio.move_on_at(until) as patience:
                await self.desk.named.learn((*announce.want, *announce.hold))
        except LocalError as err:
            self._fails(err.message)
        else:
            if patience.cancelled_caught:
                self._fails("no answer in time")

    async def run(self) -> None:
        """Write what is announced and remove what is over, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._sweep)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            batch, self._batch, self._wake = self._batch, _Batch(), trio.Event()
            self._writing = batch
            try:
                await self._exchange(batch)
            except LocalError as err:
                self._fails(err.message)
                self._put_back(batch)
                batch.done.set()
                self._writing = _Batch()
                await trio.sleep(_RETRY)
            else:
                batch.done.set()
                self._writing = _Batch()
                if self._failing:
                    _log.info("announces are shared with other trackers again")
                self._failing = False

    def _fails(self, reason: str) -> None:
        if not self._failing:
            _log.warning("announces are answered from memory: the database fails", reason=reason)
        self._failing = True

    def _put_back(self, batch: _Batch) -> None:
        """What could not be written is written with what came since, as far as it still counts."""
        board = self.desk.board
        left = {peer_id: row for peer_id, row in batch.rows.items() if board.get(peer_id) is not None}
        self._batch.rows = {**left, **self._batch.rows}
        if self._batch.rows:
            self._wake.set()

    async def gateways(self, swarm: str, digest: Digest, limit: int) -> list[Member]:
        """See ``Announces``; where the database fails what the board knows has to do."""
        await trio.lowlevel.checkpoint()
        if trio.current_time() >= self._looked + _LOOK and not self._failing:
            self._looked = trio.current_time()
            try:
                with trio.move_on_after(_PATIENCE):
                    await self._look()
            except LocalError as err:
                _log.debug("what other trackers were told cannot be read now", error=err.message)
        return self.desk.gateways(swarm, digest, limit)

    async def _look(self) -> None:
        async with self._reading:
            changed, newest = await self._db.query(_changed, self._read)
            self._learnt(changed, self._writing)
            self._read = max(self._read, newest)

    async def _exchange(self, batch: _Batch) -> None:
        async with self._reading:
            changed, newest = await self._db.tx(_exchange, self._read, list(batch.rows.values()), retry=True)
            self._learnt(changed, batch)
            # numbers that go back: the database is another one, restored from a backup
            self._read = newest if newest > self._read else 0
        self._looked = trio.current_time()

    def _learnt(self, changed: Sequence[tuple[Member, float]], batch: _Batch) -> None:
        now = trio.current_time()
        for member, left in changed:
            if member.peer_id in batch.rows or member.peer_id in self._batch.rows:
                continue  # what was announced here came later
            if left > 0:
                self.desk.learn(member, now + left)
            else:
                self.desk.board.remove(member.peer_id)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(_SWEEP)
            self.desk.expire()
            try:
                while await self.sweep() == _SWEEP_ROWS:
                    await trio.lowlevel.checkpoint()
            except LocalError as err:
                _log.debug("old announces could not be removed", error=err.message)

    async def sweep(self) -> int:
        """Remove some rows of nodes that are gone; how many. Raises LocalError."""
        return await self._db.tx(_remove)


def _changed(connection: Connection, read: int) -> tuple[list[tuple[Member, float]], int]:
    """What changed since number ``read``, without a lock: what is visible are the first of all changes, by number."""
    rows = connection.execute(_CHANGED, (read,)).fetchall()
    return [_member(row) for row in rows], max((int(row[8]) for row in rows), default=read)


def _exchange(
    connection: Connection, read: int, rows: Sequence[tuple[Member, float]]
) -> tuple[list[tuple[Member, float]], int]:
    """What changed since number ``read`` - nodes, and for how many seconds they still count - then write ``rows``; the
    newest number afterwards."""
    # a statement of its own: the next one must not see the database as it was before the lock
    connection.execute(TAKE_LOCK)
    changed = [_member(row) for row in connection.execute(_CHANGED, (read,)).fetchall()]
    columns: tuple[list[Any], ...] = ([], [], [], [], [], [], [], [])
    for member, lasts in rows:
        values = (
            member.peer_id,
            member.url,
            member.swarm,
            member.zone,
            _array(member.want),
            _array(member.hold),
            member.gateway,
            lasts,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    numbers = connection.execute(_PUT, columns).fetchall()
    return changed, max(int(number) for (number,) in numbers)


def _member(row: Sequence[Any]) -> tuple[Member, float]:
    peer_id, url, swarm, zone, want, hold, gateway, left, _ = row
    return Member(peer_id, url, swarm, zone, frozenset(want), frozenset(hold), gateway), left


def _array(keys: frozenset[bytes]) -> str:
    """An array of bytea as Postgres writes it: a list of lists of different lengths is no array."""
    return "{" + ",".join(f'"\\\\x{key.hex()}"' for key in keys) + "}"


def _remove(connection: Connection) -> int:
    return connection.execute(_REMOVE, (_SWEEP_ROWS,)).rowcount
