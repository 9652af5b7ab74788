"""Garbage collection, retention, scrubbing and pull counts over the catalog in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import trio

from p2pregistry.digest import Digest
from tracker.catalog.garbage import Forecast, Kind, Run, Stored
from tracker.catalog.memory import MemoryCatalog, Repository
from tracker.catalog.trail import SYSTEM, By
from tracker.retention import Rule, Tagged


class MemoryGarbage:
    """``Garbage`` of a MemoryCatalog. Times are by trio's clock. Each method is a checkpoint and otherwise atomic."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog
        self._runs: dict[int, tuple[Run, float]] = {}
        self._rules: dict[int, Rule] = {}
        self._scrubbed: dict[Digest, float] = {}
        self._last = 0
        #: who asked for a run, as the audit log would have it
        self.asked: list[tuple[By, str, dict[str, object]]] = []
        #: (repository, manifest) to how often it was pulled
        self.counts: dict[tuple[str, Digest], int] = {}
        self._tags_pulled: dict[tuple[str, str], float] = {}

    async def drop_manifests(self, untagged: float, limit: int, by: By) -> int:
        await trio.lowlevel.checkpoint()
        found = self._untagged(untagged)[:limit]
        for name, repository, digest in found:
            del repository.manifests[digest]
            self._catalog.written.append((by, "manifest.delete", name))
        return len(found)

    def _untagged(self, untagged: float) -> list[tuple[str, Repository, Digest]]:
        now, found = trio.current_time(), []
        for name, repository in self._catalog.content.items():
            for digest, stored in repository.manifests.items():
                used = max(stored.used, repository.untagged.get(digest, stored.used))
                listed = any(digest in one.pushed.manifests for one in repository.manifests.values())
                about = stored.pushed.subject in repository.manifests
                if digest in repository.tags.values() or listed or about:
                    continue
                if now - used > untagged:
                    found.append((name, repository, digest))
        return found

    def _idle(
        self, grace: float, leaving: Sequence[tuple[str, Repository, Digest]] = ()
    ) -> list[tuple[Repository, Digest]]:
        now, gone = trio.current_time(), {(name, digest) for name, _, digest in leaving}
        return [
            (repository, digest)
            for name, repository in self._catalog.content.items()
            for digest, touched in repository.blobs.items()
            if now - touched > grace
            and not self._catalog.sessions.open_in(name)
            and not any(digest in one.blobs for key, one in repository.manifests.items() if (name, key) not in gone)
        ]

    async def unlink(self, grace: float, limit: int) -> int:
        await trio.lowlevel.checkpoint()
        found = self._idle(grace)[:limit]
        for repository, digest in found:
            del repository.blobs[digest]
        return len(found)

    async def condemn(self, limit: int) -> int:
        await trio.lowlevel.checkpoint()
        held = {digest for repository in self._catalog.content.values() for digest in repository.blobs}
        loose = [digest for digest in self._catalog.blobs if digest not in held][:limit]
        for digest in loose:
            kept = self._catalog.blobs.pop(digest)
            self._catalog.condemned[kept.object] = kept.metainfo.size
        return len(loose)

    async def condemned(self, limit: int, but: Sequence[str] = ()) -> list[str]:
        await trio.lowlevel.checkpoint()
        used = {kept.object for kept in self._catalog.blobs.values()}
        return [name for name in self._catalog.condemned if name not in used and name not in but][:limit]

    async def forget(self, objects: Sequence[str]) -> int:
        await trio.lowlevel.checkpoint()
        return sum(self._catalog.condemned.pop(name, 0) for name in objects)

    async def forecast(self, grace: float, untagged: float | None) -> Forecast:
        await trio.lowlevel.checkpoint()
        leaving = [] if untagged is None else self._untagged(untagged)
        idle = self._idle(grace, leaving)
        left = {
            digest
            for repository in self._catalog.content.values()
            for digest in repository.blobs
            if not any(one is repository and other == digest for one, other in idle)
        }
        loose = [kept.metainfo.size for digest, kept in self._catalog.blobs.items() if digest not in left]
        return Forecast(len(leaving), len(idle), len(loose), sum(loose))

    async def unknown(self, objects: Sequence[str]) -> set[str]:
        used = {kept.object for kept in self._catalog.blobs.values()} | set(self._catalog.condemned)
        ids = {name: name.split("/")[2] for name in objects if name.count("/") == 2}
        open_ = await self._catalog.sessions.known(list(ids.values()))
        return {name for name in objects if name not in used and ids.get(name) not in open_}

    async def start(
        self, kind: Kind, dry_run: bool, every: float | None, by: By | None = None, asked: Mapping[str, object] = {}
    ) -> int | None:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        if every is not None and any(
            run.kind == kind and not run.dry_run and at > now - every for run, at in self._runs.values()
        ):
            return None
        if by is not None and not dry_run:
            self.asked.append((by, f"{kind}.start", dict(asked)))
        self._last += 1
        self._runs[self._last] = (Run(self._last, kind, dry_run, _now(), None, {}, None), now)
        return self._last

    async def end(self, run: int, figures: dict[str, int], error: str | None) -> None:
        await trio.lowlevel.checkpoint()
        found, at = self._runs[run]
        self._runs[run] = (replace(found, ended_at=_now(), figures=figures, error=error), at)

    async def runs(self, *, limit: int = 50) -> list[Run]:
        await trio.lowlevel.checkpoint()
        return [run for run, _ in reversed(self._runs.values())][:limit]

    async def to_scrub(self, limit: int, older: float) -> list[Stored]:
        await trio.lowlevel.checkpoint()
        now, longest = trio.current_time(), float("-inf")
        found = [digest for digest, kept in self._catalog.blobs.items() if not kept.damaged]
        found = [digest for digest in found if now - self._scrubbed.get(digest, longest) > older]
        found.sort(key=lambda digest: self._scrubbed.get(digest, longest))
        return [self._stored(digest) for digest in found[:limit]]

    def _stored(self, digest: Digest) -> Stored:
        kept = self._catalog.blobs[digest]
        return Stored(digest, kept.metainfo.size, kept.object)

    async def scrubbed(self, digest: Digest, name: str, sound: bool) -> None:
        await trio.lowlevel.checkpoint()
        kept = self._catalog.blobs.get(digest)
        if kept is not None and kept.object == name:
            self._scrubbed[digest] = trio.current_time()
            kept.damaged = not sound
            if not sound:
                self._catalog.written.append((SYSTEM, "scrub.damaged", ""))

    async def damaged(self, *, limit: int = 1000) -> list[Stored]:
        await trio.lowlevel.checkpoint()
        return [self._stored(digest) for digest, kept in self._catalog.blobs.items() if kept.damaged][:limit]

    async def pulled(self, pulls: Sequence[tuple[str, str | None, Digest, int]]) -> None:
        await trio.lowlevel.checkpoint()
        for name, tag, digest, count in pulls:
            repository = self._catalog.content.get(name)
            if repository is not None and digest in repository.manifests:
                self.counts[name, digest] = self.counts.get((name, digest), 0) + count
                repository.manifests[digest].used = trio.current_time()
                if tag in repository.tags:
                    self._tags_pulled[name, tag] = trio.current_time()

    async def rules(self) -> list[Rule]:
        await trio.lowlevel.checkpoint()
        return list(self._rules.values())

    async def add_rule(self, rule: Rule, by: By) -> Rule:
        await trio.lowlevel.checkpoint()
        self._last += 1
        self._rules[self._last] = replace(rule, id=self._last)
        self._catalog.written.append((by, "retention.add", ""))
        return self._rules[self._last]

    async def remove_rule(self, rule: int, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if self._rules.pop(rule, None) is None:
            return False
        self._catalog.written.append((by, "retention.remove", ""))
        return True

    async def tagged(self, repository: str) -> list[Tagged]:
        await trio.lowlevel.checkpoint()
        found = self._catalog.content.get(repository, Repository())
        pulled = {tag: _at(at) for (name, tag), at in self._tags_pulled.items() if name == repository}
        return [Tagged(tag, _at(found.pushed[tag]), pulled.get(tag)) for tag in sorted(found.tags)]

    async def let_go(self, repository: str, tag: Tagged, by: By) -> bool:
        now = {one.name: one for one in await self.tagged(repository)}.get(tag.name)
        if (
            now is None
            or (now.pulled_at is None) != (tag.pulled_at is None)
            or abs(now.pushed_at - tag.pushed_at) > _SAME
        ):
            return False
        return await self._catalog.delete_tag(repository, tag.name, by)


#: Two conversions of one time of trio's clock differ by less.
_SAME = timedelta(seconds=1)


def _now() -> datetime:
    return datetime.now(UTC)


def _at(clock: float) -> datetime:
    """A time of trio's clock, as one of the calendar."""
    return datetime.fromtimestamp(_now().timestamp() - trio.current_time() + clock, UTC)
