"""Runs of the collector, of retention and of the scrubber: now and then by themselves, or when the operator asks.

Any number of trackers may run them at the same time without harm; that only one does at a time saves work.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RegistryError, RequestError
from p2pregistry.objects.base import ObjectStore
from p2pregistry.observe import logger
from tracker.catalog.base import TOUCH, Catalog
from tracker.catalog.garbage import Garbage, Kind
from tracker.catalog.garbage import Stored as Scrubbed
from tracker.catalog.trail import SYSTEM, By
from tracker.retention import Tagged, to_go

#: Rows in one transaction: short, so that nobody waits for it.
BATCH: Final = 500
#: An object that nothing knows of must be older than this to go, in seconds: somebody may be about to record it.
ORPHAN: Final = 86400.0
#: So many of them go without further question, and of more than that as many as are not most of the store: a tracker
#: that was started with another database knows of none, and they may be somebody's only copy.
FEW: Final = 100
#: Names of them that one run keeps in mind.
_LOOSE: Final = 100_000
#: Seconds between two searches for such objects by itself.
SEARCH_EVERY: Final = 86400.0
#: Seconds between two times that pulls are written down, and counts that are kept at most until then.
PULLS_EVERY: Final = 10.0
_PULLS: Final = 20_000
_READ: Final = 1 << 20

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, None: not by itself. ``grace``: how long a blob without manifest is kept. ``untagged``: how long a
    manifest without tag is kept, None: for ever. ``scrub_rate``: bytes a second. ``scrub_age``: how long a blob that
    was found sound is not looked at again."""

    every: float | None = 3600.0
    grace: float = 86400.0
    untagged: float | None = None
    scrub_every: float | None = 86400.0
    scrub_rate: float = 10e6
    scrub_age: float = 30 * 86400.0


class Pulls:
    """Counts of pulls, between two times that they are written down."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str | None, Digest], int] = {}

    def count(self, repository: str, tag: str | None, digest: Digest, whole: bool) -> None:
        """Somebody asked for a manifest, and got the ``whole`` of it or only heard that it is there, which keeps it
        too. More different ones than are kept are not counted."""
        key = (repository, tag, digest)
        if key in self._counts or len(self._counts) < _PULLS:
            self._counts[key] = self._counts.get(key, 0) + whole

    def take(self) -> list[tuple[str, str | None, Digest, int]]:
        """All of them, which are counted anew from here."""
        taken, self._counts = self._counts, {}
        return [(*key, count) for key, count in taken.items()]


class Sweeper:
    """``now``: seconds since 1970."""

    def __init__(
        self,
        catalog: Catalog,
        garbage: Garbage,
        objects: ObjectStore,
        pace: Pace = Pace(),
        *,
        pulls: Pulls | None = None,
        now: Callable[[], float] = time.time,
        draw: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000,
    ) -> None:
        self._catalog, self._garbage, self._objects = catalog, garbage, objects
        self._pace, self._now, self._draw = pace, now, draw
        self.pulls = pulls or Pulls()
        self._searched = -math.inf

    async def run(self) -> None:
        """For ever. What was pulled is written down at the end too."""
        try:
            async with trio.open_nursery() as nursery:
                if self._pace.every is not None:
                    nursery.start_soon(self._regularly, self._pace.every, self._housekeeping)
                if self._pace.scrub_every is not None:
                    nursery.start_soon(self._regularly, self._pace.scrub_every, self._scrub_by_itself)
                nursery.start_soon(self._write_pulls)
        finally:
            with trio.move_on_after(2.0, shield=True):
                await self.write_pulls()

    # --------------------------------------------------------------------------------------------------------- runs

    async def collect(
        self, by: By | None = None, *, dry_run: bool = False, every: float | None = None, most: bool = False
    ) -> dict[str, int] | None:
        """A collection; what it came to. ``by``: who asked for it, None: it is by itself. With ``every``: None if there
        was one so lately. ``most``: objects that nothing knows of go also where they are most of the store. Raises
        LocalError."""
        search = every is None or trio.current_time() - self._searched > SEARCH_EVERY
        done = await self._recorded(
            "collect", dry_run, every, lambda: self._collect(dry_run, search, most), by, {"orphans": most}
        )
        if done is not None and search and not dry_run:
            self._searched = trio.current_time()
        return done

    async def retain(
        self, by: By | None = None, *, dry_run: bool = False, every: float | None = None
    ) -> dict[str, list[str]] | None:
        """Remove the tags that rules let go; by repository. ``by``: as in ``collect``. Raises LocalError."""
        gone: dict[str, list[str]] = {}

        async def work() -> dict[str, int]:
            await self._retain(by or SYSTEM, dry_run, gone)
            return {"repositories": len(gone), "tags": sum(map(len, gone.values()))}

        done = await self._recorded("retention", dry_run, every, work, by)
        return None if done is None else gone

    async def scrub(
        self, by: By | None = None, *, age: float | None = None, every: float | None = None
    ) -> dict[str, int] | None:
        """Compare stored bytes with their digests, at the pace that was set. ``by``: as in ``collect``. ``age``:
        seconds. Raises LocalError."""
        return await self._recorded(
            "scrub", False, every, lambda: self._scrub(self._pace.scrub_age if age is None else age), by
        )

    async def write_pulls(self) -> None:
        """Write down what was pulled since the last time."""
        pulls = self.pulls.take()
        if pulls:
            try:
                await self._garbage.pulled(pulls)
            except LocalError as err:
                _log.warning("pulls could not be counted", error=err.message)

    async def _recorded(
        self,
        kind: Kind,
        dry_run: bool,
        every: float | None,
        work: Callable[[], Awaitable[dict[str, int]]],
        by: By | None,
        asked: Mapping[str, object] = {},
    ) -> dict[str, int] | None:
        run = await self._garbage.start(kind, dry_run, every, by, asked)
        if run is None:
            return None
        figures: dict[str, int] = {}
        error: str | None = "it was interrupted"
        try:
            figures = await work()
            error = None
        except RegistryError as err:
            error = err.message
            raise
        finally:
            with trio.move_on_after(5.0, shield=True):
                await self._end(run, figures, error)
        if not dry_run:
            _log.info("a run has ended", kind=kind, **figures)
        return figures

    async def _end(self, run: int, figures: dict[str, int], error: str | None) -> None:
        try:
            await self._garbage.end(run, figures, error)
        except LocalError as err:
            _log.warning("the end of a run could not be recorded", error=err.message)

    # ------------------------------------------------------------------------------------------------------- collect

    async def _collect(self, dry_run: bool, search: bool, most: bool) -> dict[str, int]:
        """``search``: also for objects that nothing knows of, which means listing the store."""
        pace = self._pace
        if dry_run:
            found = await self._garbage.forecast(pace.grace + TOUCH, pace.untagged)
            figures = {
                "manifests": found.manifests,
                "links": found.links,
                "blobs": found.blobs,
                "bytes": found.bytes,
            }
            loose, spared = await self._orphans(most)
            return {**figures, "orphans": len(loose), **spared}
        manifests = 0
        if pace.untagged is not None:
            untagged = pace.untagged
            manifests = await _all(lambda: self._garbage.drop_manifests(untagged, BATCH, SYSTEM))
        links = await _all(lambda: self._garbage.unlink(pace.grace + TOUCH, BATCH))
        blobs = await _all(lambda: self._garbage.condemn(BATCH))
        objects, freed = await self._delete_condemned()
        orphans, spared = await self._orphans(most) if search else ([], {})
        for name in orphans:
            await self._objects.delete(name)
        figures = {"manifests": manifests, "links": links, "blobs": blobs, "objects": objects, "bytes": freed}
        return {**figures, "orphans": len(orphans), **spared}

    async def _delete_condemned(self) -> tuple[int, int]:
        """Objects and bytes that went."""
        count = freed = 0
        failed: list[str] = []
        while names := await self._garbage.condemned(BATCH, failed):
            done: list[str] = []
            try:
                for name in names:
                    try:
                        await self._objects.delete(name)
                        done.append(name)
                    except LocalError as err:
                        # one that cannot go, because it is locked for example, must not keep the others
                        _log.warning("an object could not be removed", object=name, error=err.message)
                        failed.append(name)
                    if len(failed) >= BATCH:
                        raise LocalError("the store removes nothing")
            finally:
                if done:
                    freed += await self._garbage.forget(done)
                    count += len(done)
        return count, freed

    async def _orphans(self, most: bool) -> tuple[list[str], dict[str, int]]:
        """Objects that nothing knows of: somebody died before recording one, or a database was restored. Without
        ``most`` none if they are most of the store; how many were spared for that is the figure that comes along."""
        before, there = self._now() - ORPHAN, 0
        names: list[str] = []
        found: list[str] = []
        async for stored in self._objects.objects():
            there += 1
            if stored.modified < before:
                names.append(stored.name)
            if len(names) >= BATCH:
                found += sorted(await self._garbage.unknown(names))
                names = []
            if len(found) >= _LOOSE:
                break
        if names:
            found += sorted(await self._garbage.unknown(names))
        if most or len(found) <= max(FEW, there // 2):
            return found, {}
        _log.error(
            "the database does not know most objects in the store, so none of those is removed: is it another one's?",
            unknown=len(found),
            objects=there,
        )
        return [], {"spared": len(found)}

    # ----------------------------------------------------------------------------------------------------- retention

    async def _retain(self, by: By, dry_run: bool, gone: dict[str, list[str]]) -> None:
        rules = await self._garbage.rules()
        if not rules:
            return
        now, after = datetime.fromtimestamp(self._now(), UTC), ""
        while names := await self._catalog.repositories(after=after, limit=BATCH):
            for name in names:
                tags = await self._garbage.tagged(name)
                leaving = set(to_go(name, tags, rules, now))
                mine = [tag for tag in tags if tag.name in leaving]
                removed = [tag.name for tag in mine if dry_run or await self._remove(name, tag, by)]
                if removed:
                    gone[name] = removed
            after = names[-1]

    async def _remove(self, repository: str, tag: Tagged, by: By) -> bool:
        try:
            return await self._garbage.let_go(repository, tag, by)
        except RequestError as err:  # it is immutable: kept, whatever the rules say
            _log.info("a tag is kept", repository=repository, tag=tag.name, why=err.message)
            return False

    # --------------------------------------------------------------------------------------------------------- scrub

    async def _scrub(self, age: float) -> dict[str, int]:
        figures = {"blobs": 0, "bytes": 0, "damaged": 0}
        start = trio.current_time()
        # what this very run has looked at is younger than that
        while found := await self._garbage.to_scrub(20, age + trio.current_time() - start):
            for one in found:
                sound = await self._sound(one)
                await self._garbage.scrubbed(one.digest, one.object, sound)
                figures["blobs"] += 1
                figures["bytes"] += one.size
                if not sound:
                    figures["damaged"] += 1
                    _log.error("the bytes of a blob are damaged or gone", digest=str(one.digest), object=one.object)
        return figures

    async def _sound(self, one: Scrubbed) -> bool:
        """Raises LocalError where the store itself fails; an object that cannot be read twice is not sound."""
        for attempt in range(2):
            try:
                return await self._reads_right(one)
            except NotFound:
                return False
            except LocalError as err:
                await self._objects.check()
                _log.warning("a blob could not be read", digest=str(one.digest), error=err.message, attempt=attempt + 1)
        return False

    async def _reads_right(self, one: Scrubbed) -> bool:
        if await self._objects.size(one.object) != one.size:
            return False
        hasher = hashlib.new(one.digest.algorithm)
        opened = await self._objects.open(one.object, one.size)
        try:
            for offset in range(0, one.size, _READ):
                data = await opened.read_at(offset, min(_READ, one.size - offset))
                if not data:
                    return False
                await trio.to_thread.run_sync(hasher.update, data)
                await trio.sleep(len(data) / self._pace.scrub_rate)
        finally:
            opened.close()
        return hasher.digest() == one.digest.raw

    # --------------------------------------------------------------------------------------------------------- tasks

    async def _housekeeping(self, every: float) -> None:
        await self.retain(every=every)
        await self.collect(every=every)

    async def _scrub_by_itself(self, every: float) -> None:
        await self.scrub(every=every)

    async def _regularly(self, every: float, work: Callable[[float], Awaitable[None]]) -> None:
        while True:
            # not all processes at the same moment; who comes first does it for all
            await trio.sleep(every * (0.5 + self._draw()))
            try:
                await work(every * 0.9)
            except RegistryError as err:
                _log.warning("a run failed; the next one goes on", error=err.message)

    async def _write_pulls(self) -> None:
        while True:
            await trio.sleep(PULLS_EVERY)
            await self.write_pulls()


async def _all(step: Callable[[], Awaitable[int]]) -> int:
    """Repeat a step until it finds nothing more; the sum."""
    total = 0
    while count := await step():
        total += count
    return total
