"""``Publishing`` in memory: for tests, and the plainest statement of what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from p2pregistry.digest import Digest
from p2pregistry.globs import matches_any
from tracker.catalog.memory import MemoryCatalog, StoredManifest
from tracker.catalog.publishing import Figure, Job, Pattern, Progress
from tracker.catalog.trail import By
from tracker.publishing import Image, Item, State, image_of, wanted


@dataclass(slots=True)
class _Row:
    id: int
    service: str
    item: Item
    updated_at: datetime
    next_at: datetime | None
    state: State = "queued"
    sent: int = 0
    attempts: int = 0
    generation: int = 0
    held_until: datetime | None = None
    remote: str | None = None
    error: str | None = None


class MemoryPublishing:
    """``Publishing`` of a catalog in memory. Every change of it is noted: each repository is looked at each time."""

    def __init__(self, catalog: MemoryCatalog, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._catalog, self._now = catalog, now
        self._patterns: dict[str, Pattern] = {}
        self._wanted: dict[str, dict[bytes, Item]] = {}
        self._rows: dict[tuple[bytes, str], _Row] = {}
        self._last = 0
        self._encrypted = False

    async def patterns(self) -> list[Pattern]:
        await trio.lowlevel.checkpoint()
        return [self._patterns[name] for name in sorted(self._patterns)]

    async def publish(self, pattern: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if pattern in self._patterns:
            return False
        self._patterns[pattern] = Pattern(pattern, self._now(), by.actor)
        self._catalog.written.append((by, "ipfs.publish", pattern))
        return True

    async def unpublish(self, pattern: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if self._patterns.pop(pattern, None) is None:
            return False
        self._catalog.written.append((by, "ipfs.unpublish", pattern))
        return True

    async def mark_all(self) -> None:
        await trio.lowlevel.checkpoint()

    async def reconcile(self, limit: int, services: Sequence[str], *, encrypted: bool) -> int:
        await trio.lowlevel.checkpoint()
        self._encrypted = encrypted
        changes = 0
        gone: set[bytes] = set()
        for name in sorted(self._catalog.content.keys() | self._wanted.keys()):
            if changes < limit:
                before = self._wanted.get(name, {})
                after = self._of(name, before, encrypted=encrypted)
                changes += before.keys() != after.keys()
                self._wanted[name] = after
                gone |= before.keys() - after.keys()
                for item in after.values():
                    for service in services:
                        self._queue(item, service)
        still = {cid for items in self._wanted.values() for cid in items}
        for row in self._rows.values():
            if row.item.cid in gone - still and row.state not in ("unpinning", "removed"):
                self._set(row, "unpinning", self._now())
                row.attempts, row.error = 0, None
        return changes

    def _of(self, name: str, before: dict[bytes, Item], *, encrypted: bool) -> dict[bytes, Item]:
        repository = self._catalog.content.get(name)
        if repository is None or not matches_any(self._patterns, name):
            return {}
        images = [self._image(stored) for stored in repository.manifests.values()]
        found = wanted(images, private=repository.private, encrypted=encrypted)
        if not repository.private:
            stay = {
                cid: item for cid, item in before.items() if item.kind == "blob" and item.digest in repository.blobs
            }
            found = stay | found
        return found

    def _image(self, stored: StoredManifest) -> Image:
        record = stored.record
        refs = [self._catalog.blobs[digest].metainfo.ref for digest in stored.pushed.blobs]
        return image_of(record.digest, record.media_type, record.body, record.claim, refs)

    def _queue(self, item: Item, service: str) -> None:
        row = self._rows.get((item.cid, service))
        if row is None:
            self._last += 1
            self._rows[item.cid, service] = _Row(self._last, service, item, self._now(), self._now())
        elif row.state in ("unpinning", "removed"):
            self._set(row, "queued", self._now())
            row.attempts, row.error, row.sent = 0, None, 0

    def _set(self, row: _Row, state: State, next_at: datetime | None) -> None:
        row.state, row.next_at, row.updated_at = state, next_at, self._now()

    async def claim(self, services: Sequence[str], limit: int, lasts: float, *, only: str | None = None) -> list[Job]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        due = [
            row
            for row in self._rows.values()
            if row.next_at is not None
            and row.next_at <= now
            and (row.held_until is None or row.held_until < now)
            and row.service in services
            and only in (None, row.service)
            and row.state in ("queued", "publishing", "unpinning", "published")
            and not self._waits(row, services)
            and (row.state not in ("queued", "publishing") or self._still_wanted(row.item.cid))
        ]
        jobs = []
        for row in sorted(due, key=lambda row: (row.next_at, row.id))[:limit]:
            row.attempts += 1
            row.generation += 1
            row.held_until = now + timedelta(seconds=lasts)
            row.state = "publishing" if row.state == "queued" else row.state
            jobs.append(Job(row.id, row.service, row.item, row.state, row.attempts, row.generation, row.remote))
        return sorted(jobs, key=lambda job: job.id)

    def _still_wanted(self, cid: bytes) -> bool:
        """What was published cannot be taken back, so a change counts before anybody has looked at it."""
        return any(
            cid in items and cid in self._of(name, items, encrypted=self._encrypted)
            for name, items in self._wanted.items()
        )

    def _waits(self, row: _Row, services: Sequence[str]) -> bool:
        if row.service != "pinning" or row.state == "unpinning" or "kubo" not in services:
            return False
        other = self._rows.get((row.item.cid, "kubo"))
        return other is not None and other.state in ("queued", "publishing")

    def _mine(self, job: Job) -> _Row | None:
        row = self._rows.get((job.item.cid, job.service))
        return row if row is not None and row.generation == job.generation else None

    async def progress(self, job: Job, sent: int, lasts: float) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._mine(job)
        if row is None or row.state != job.state or row.held_until is None:
            return False
        row.sent, row.held_until = sent, self._now() + timedelta(seconds=lasts)
        return True

    async def published(self, job: Job, note: str | None = None, check: float | None = None) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until = None
            if row.state in ("publishing", "published"):
                self._set(row, "published", None if check is None else self._now() + timedelta(seconds=check))
                row.attempts, row.error = 0, note

    async def lost(self, job: Job, error: str) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until = None
            if row.state == "published":
                self._set(row, "queued", self._now())
                row.attempts, row.sent, row.remote, row.error = 0, 0, None, error

    async def check_all(self, within: float) -> None:
        await trio.lowlevel.checkpoint()
        for row in self._rows.values():
            if row.state == "published" and row.next_at is None:
                row.next_at = self._now() + timedelta(seconds=within)

    async def later(self, job: Job, remote: str, after: float) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until, row.remote = None, remote
            if row.state == "publishing":
                self._set(row, "publishing", self._now() + timedelta(seconds=after))
                row.attempts, row.error = 0, None

    async def failed(
        self, job: Job, error: str, again: float | None, *, counts: bool = True, forget: bool = False
    ) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until = None
            if forget:
                row.remote = None
            if row.state == job.state:
                row.error = error[:500]
                row.attempts = max(0, row.attempts - (not counts))
                if again is None:
                    self._set(row, "failed", None)
                else:
                    fresh = row.state == "publishing" and row.remote is None
                    self._set(row, "queued" if fresh else row.state, self._now() + timedelta(seconds=again))

    async def removed(self, job: Job) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until = None
            if row.state == "unpinning":
                self._set(row, "removed", None)
                row.remote = row.error = None

    async def release(self, job: Job) -> None:
        await trio.lowlevel.checkpoint()
        if (row := self._mine(job)) is not None:
            row.held_until = None
            row.attempts = max(0, row.attempts - 1)
            if row.state == "publishing" and row.remote is None:
                row.state = "queued"

    async def block(self, item: Item) -> bytes | None:
        await trio.lowlevel.checkpoint()
        for repository in self._catalog.content.values():
            for stored in repository.manifests.values():
                image = self._image(stored)
                if item == image.claim:
                    return stored.record.claim.encode()
                if item == image.manifest:
                    return stored.record.body
        return None

    async def image(self, repository: str, digest: Digest) -> Image | None:
        await trio.lowlevel.checkpoint()
        found = self._catalog.content.get(repository)
        stored = None if found is None else found.manifests.get(digest)
        return None if stored is None else self._image(stored)

    async def chosen(self, repository: str) -> bool:
        await trio.lowlevel.checkpoint()
        return matches_any(self._patterns, repository)

    async def states(self, cids: Sequence[bytes]) -> list[Progress]:
        await trio.lowlevel.checkpoint()
        return [_progress(row) for key, row in sorted(self._rows.items()) if key[0] in set(cids)]

    async def repository(self, repository: str) -> list[Figure]:
        await trio.lowlevel.checkpoint()
        mine = self._wanted.get(repository, {})
        return _figures([row for row in self._rows.values() if row.item.cid in mine])

    async def failures(self, limit: int) -> list[tuple[Item, Progress]]:
        await trio.lowlevel.checkpoint()
        bad = [
            row
            for row in self._rows.values()
            if row.state == "failed" or (row.error is not None and row.state in ("queued", "publishing", "unpinning"))
        ]
        bad.sort(key=lambda row: row.updated_at, reverse=True)
        return [(row.item, _progress(row)) for row in bad[:limit]]

    async def retry(self, by: By) -> int:
        await trio.lowlevel.checkpoint()
        now = self._now()
        still = {cid for items in self._wanted.values() for cid in items}
        count = 0
        for row in self._rows.values():
            if row.state == "failed":
                self._set(row, "queued" if row.item.cid in still else "unpinning", now)
            elif row.state in ("queued", "publishing", "unpinning") and row.next_at is not None and row.next_at > now:
                self._set(row, row.state, now)
            else:
                continue
            row.attempts = 0
            count += 1
        if count:
            self._catalog.written.append((by, "ipfs.retry", ""))
        return count

    async def figures(self) -> list[Figure]:
        await trio.lowlevel.checkpoint()
        return _figures(list(self._rows.values()))

    async def prune(self, age: float) -> int:
        await trio.lowlevel.checkpoint()
        before = self._now() - timedelta(seconds=age)
        old = [key for key, row in self._rows.items() if row.state == "removed" and row.updated_at < before]
        for key in old:
            del self._rows[key]
        return len(old)


def _progress(row: _Row) -> Progress:
    return Progress(
        row.item.cid, row.service, row.state, row.sent, row.attempts, row.next_at, row.error, row.updated_at
    )


def _figures(rows: list[_Row]) -> list[Figure]:
    jobs: Counter[tuple[str, State]] = Counter()
    sizes: Counter[tuple[str, State]] = Counter()
    for row in rows:
        jobs[row.service, row.state] += 1
        sizes[row.service, row.state] += row.item.size
    return [Figure(service, state, jobs[service, state], sizes[service, state]) for service, state in sorted(jobs)]
