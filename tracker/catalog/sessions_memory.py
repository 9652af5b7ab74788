"""Upload sessions in memory: for tests, and the plainest statement of what they do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import trio

from p2pregistry.digest import Digest
from tracker.catalog.sessions import Lease, Session, too_many, unknown
from tracker.catalog.trail import By


@dataclass(slots=True)
class _Row:
    session: Session
    touched: float
    holder: str | None = None
    until: float = 0.0


class MemorySessions:
    """``Sessions`` without a database. ``condemn`` is given the object, and its size in bytes, of a session that ends
    without a blob. Each method is a checkpoint and otherwise atomic."""

    def __init__(self, condemn: Callable[[str, int], None] = lambda _name, _size: None) -> None:
        self._condemn = condemn
        self._rows: dict[str, _Row] = {}

    async def open(
        self,
        session: str,
        repository: str,
        *,
        algorithm: str = "sha256",
        actor: str = "",
        limit: int,
        holder: str | None = None,
        lasts: float = 0.0,
    ) -> Session:
        await trio.lowlevel.checkpoint()
        if len(self._rows) >= limit:
            raise too_many()
        now = trio.current_time()
        made = Session(session, repository, algorithm=algorithm, actor=actor, generation=1)
        self._rows[session] = _Row(made, now, holder, now + lasts)
        return self._show(self._rows[session])

    async def get(self, repository: str, session: str) -> Session | None:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(session)
        return None if row is None or row.session.repository != repository else self._show(row)

    async def take(self, repository: str, session: str, holder: str, lasts: float) -> Session | None:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(session)
        if row is None or row.session.repository != repository:
            raise unknown(session)
        now = trio.current_time()
        if row.holder not in (None, holder) and row.until > now:
            return None
        row.session = replace(row.session, generation=row.session.generation + 1)
        row.holder, row.until, row.touched = holder, now + lasts, now
        return self._show(row)

    async def renew(self, leases: Collection[Lease], lasts: float) -> set[str]:
        await trio.lowlevel.checkpoint()
        kept = set()
        for lease in leases:
            row = self._of(lease)
            if row is not None and row.holder is not None:
                row.touched = trio.current_time()
                row.until = row.touched + lasts
                kept.add(lease.id)
        return kept

    async def record(self, lease: Lease, size: int) -> bool:
        await trio.lowlevel.checkpoint()
        return self._change(lease, size, None) is not None

    async def verify(self, lease: Lease, size: int, digest: Digest) -> bool:
        await trio.lowlevel.checkpoint()
        return self._change(lease, size, digest) is not None

    async def release(self, lease: Lease, size: int) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._change(lease, size, None)
        if row is None:
            return False
        row.holder, row.until = None, 0.0
        return True

    async def drop(self, lease: Lease, by: By | None = None) -> bool:  # noqa: ARG002 - nothing is written down here
        await trio.lowlevel.checkpoint()
        row = self._of(lease)
        if row is None:
            return False
        self._remove(row)
        return True

    async def expire(self, idle: float, limit: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        over = [row for row in self._rows.values() if now - row.touched > idle and row.until <= now]
        over.sort(key=lambda row: row.touched)
        for row in over[:limit]:
            self._remove(row)
        return [row.session.id for row in over[:limit]]

    async def known(self, sessions: Sequence[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return {session for session in sessions if session in self._rows}

    async def all(self, *, after: str = "", limit: int = 1000) -> list[Session]:
        await trio.lowlevel.checkpoint()
        return [self._show(self._rows[key]) for key in sorted(self._rows) if key > after][:limit]

    async def count(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._rows)

    def open_in(self, repository: str) -> bool:
        """Whether an upload is open in the repository."""
        return any(row.session.repository == repository for row in self._rows.values())

    def end(self, lease: Lease) -> bool:
        """What ``end_upload`` of sessions_postgres does, for the catalog that records the blob in the same step."""
        row = self._of(lease)
        if row is None:
            return False
        del self._rows[lease.id]
        return True

    def _of(self, lease: Lease) -> _Row | None:
        row = self._rows.get(lease.id)
        return None if row is None or row.session.generation != lease.generation else row

    def _change(self, lease: Lease, size: int, digest: Digest | None) -> _Row | None:
        row = self._of(lease)
        if row is not None:
            row.session = replace(row.session, size=size, verified=digest or row.session.verified)
            row.touched = trio.current_time()
        return row

    def _remove(self, row: _Row) -> None:
        del self._rows[row.session.id]
        self._condemn(row.session.object, row.session.size)

    def _show(self, row: _Row) -> Session:
        now = trio.current_time()
        return replace(row.session, held=row.holder is not None and row.until > now, idle=max(0.0, now - row.touched))
