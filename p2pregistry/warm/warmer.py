"""Keeps images warm: those whose tags move under a pattern, those that are pinned, and those an operator asks for.

Tags are heard of through ``moved``: from the tracker's feed of changes while that is ``live``, else from a look at the
tags of the repositories in question now and then. Manifests come for many images at a time, blobs for one image after
the other; what an operator asks for waits for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RegistryError, RequestError, StorageFull
from p2pregistry.observe import logger
from p2pregistry.oci.platforms import Platform
from p2pregistry.resolve import Resolver
from p2pregistry.warm.choose import MOST_TRIES, Depth, Job, Line, Patterns, pause
from p2pregistry.warm.fetch import Fetcher, Progress
from p2pregistry.warm.pins import Pin, Pins

#: Images whose manifests are fetched at a time.
_MANIFESTS = 4
#: Tags listed with one question, and of one repository in one look.
_PAGE, _MOST_TAGS = 1000, 20_000
#: Images that an operator asked for, whose progress is remembered.
_REMEMBERED = 100
_log = logger(__name__)


class Records(Protocol):
    """The part of the index that is used here."""

    def repositories(self) -> list[str]: ...


class Asked:
    """An image that an operator asked for."""

    def __init__(self, job: Job) -> None:
        self.job, self.progress, self.scope = job, Progress(), trio.CancelScope()


class Warmer:
    """See the module. ``live`` says whether each move of a tag under ``patterns()`` is heard of at once; every ``poll``
    seconds the tags are looked at while it is not."""

    def __init__(
        self,
        records: Records,
        resolver: Resolver,
        fetcher: Fetcher,
        pins: Pins,
        patterns: Patterns,
        platforms: Sequence[Platform] | None,
        *,
        poll: float,
    ) -> None:
        self._records, self._resolver, self._fetcher = records, resolver, fetcher
        self.pins, self._patterns, self.platforms, self._poll = pins, patterns, platforms, poll
        self.live: Callable[[], bool] = lambda: False
        self._known: dict[tuple[str, str], Digest] = {}
        self._manifests, self._blobs = Line(), Line()
        self._more, self._more_blobs = trio.Event(), trio.Event()
        self._asked: dict[int, Asked] = {}
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------------------------------------------- what is wanted

    def patterns(self) -> list[str]:
        """Globs over ``repository:tag``: the tags whose moves are of interest."""
        pinned = (f"{pin.repository}:{pin.reference}" for pin in self.pins.all() if ":" not in pin.reference)
        return sorted({*self._patterns.all, *pinned})

    def moved(self, repository: str, tag: str, digest: Digest | None) -> None:
        """A tag points to this manifest now (None: nowhere). What is not of interest is passed over, and so is what has
        been heard of before."""
        name = repository, tag
        pin = self.pins.get(repository, tag)
        depth = Depth.PIN if pin is not None else self._patterns.depth(repository, tag)
        if digest is None or depth is Depth.NONE:
            self._known.pop(name, None)
            self._manifests.forget(name)
            self._blobs.forget(name)
        elif self._known.get(name) != digest:
            self._known[name] = digest
            self._put(Job(repository, tag, depth, self.platforms if pin is None else pin.wanted, digest))

    def ask(
        self,
        repository: str,
        reference: str,
        platforms: Sequence[Platform] | None,
        depth: Depth = Depth.PREFETCH,
    ) -> Asked:
        """Fetch an image because an operator says so, before all others. The same one again is the one under way."""
        for found in self._asked.values():
            if found.job.name == (repository, reference) and found.progress.state in ("waiting", "running"):
                return found
        if self._nursery is None:
            raise RequestError("UNSUPPORTED", "the node is shutting down", status=503)
        asked = Asked(Job(repository, reference, depth, platforms))
        self._asked[asked.job.number] = asked
        ended = [number for number, each in self._asked.items() if each.progress.state not in ("waiting", "running")]
        for number in ended[: max(0, len(self._asked) - _REMEMBERED)]:
            del self._asked[number]
        self._nursery.start_soon(self._serve_asked, asked)
        return asked

    def asked(self, number: int) -> Asked:
        """What was asked for under this number. Raises NotFound."""
        found = self._asked.get(number)
        if found is None:
            raise NotFound("NAME_UNKNOWN", "nothing is being fetched under this number")
        return found

    def under_way(self, repository: str, reference: str) -> Asked:
        """What was asked for by this name and has not ended. Raises NotFound."""
        for found in self._asked.values():
            if found.job.name == (repository, reference) and found.progress.state in ("waiting", "running"):
                return found
        raise NotFound("NAME_UNKNOWN", "this image is not being fetched")

    async def pin(self, repository: str, reference: str, platforms: tuple[str, ...]) -> Asked:
        """Pin an image, and begin to fetch it. Raises LocalError, RequestError."""
        known = self.pins.get(repository, reference)
        pin = Pin(repository, reference, "" if known is None else known.digest, platforms)
        await self.pins.put(pin)
        return self.ask(repository, reference, pin.wanted, Depth.PIN)

    async def unpin(self, repository: str, reference: str) -> None:
        """Let an image go when there is need, and fetch no more of it. Raises NotFound, LocalError."""
        await self.pins.drop(repository, reference)
        name = repository, reference
        for asked in self._asked.values():
            if asked.job.name == name and asked.job.depth is Depth.PIN:
                asked.scope.cancel()
        self._known.pop(name, None)
        self._manifests.forget(name)
        self._blobs.forget(name)

    def status(self) -> dict[str, int]:
        """For the admin socket: images that wait."""
        return {
            "manifests_waiting": len(self._manifests),
            "images_waiting": len(self._blobs),
            "pins": len(self.pins.all()),
        }

    # ---------------------------------------------------------------------------------------------------------- doing

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for _ in range(_MANIFESTS):
                    nursery.start_soon(self._get_manifests)
                nursery.start_soon(self._get_blobs)
                await self._watch()
            finally:
                self._nursery = None

    def _put(self, job: Job) -> None:
        self._manifests.put(job)
        self._more.set()

    async def _get_manifests(self) -> None:
        while True:
            job = self._manifests.take()
            if job is None:
                self._more = trio.Event() if self._more.is_set() else self._more
                await self._more.wait()
                continue
            progress = Progress()
            try:
                digest = await self._fetcher.manifests(job, progress)
            except RegistryError as err:
                self._failed(job, err)
                continue
            job.digest = digest
            if job.depth > Depth.SYNC:
                self._blobs.put(job)
                self._more_blobs.set()

    async def _get_blobs(self) -> None:
        while True:
            job = self._blobs.take()
            if job is None:
                self._more_blobs = trio.Event()
                await self._more_blobs.wait()
                continue
            assert job.digest is not None
            progress = Progress()
            try:
                await self._blobs_of(job, job.digest, progress)
            except RegistryError as err:
                self._failed(job, err)
                continue
            if progress.got:
                _log.info(
                    "an image is here before it is asked for", image=str(job), bytes=progress.total, **progress.got
                )

    async def _blobs_of(self, job: Job, digest: Digest, progress: Progress) -> None:
        """A pin keeps what it kept until the new image is whole; without any yet it keeps what there is at once."""
        pin = self.pins.get(*job.name)
        if pin is not None and pin.digest in ("", str(digest)):
            await self.pins.keep(*job.name, digest)
        await self._fetcher.blobs(job, digest, progress)
        if pin is not None:
            await self.pins.keep(*job.name, digest)

    def _failed(self, job: Job, err: RegistryError) -> None:
        job.tries += 1
        _log.warning("an image could not be fetched ahead", image=str(job), why=err.message, tries=job.tries)
        if not isinstance(err, NotFound) and self._nursery is not None:
            # room is not soon made
            self._nursery.start_soon(self._later, job, pause(MOST_TRIES if isinstance(err, StorageFull) else job.tries))

    async def _later(self, job: Job, wait: float) -> None:
        await trio.sleep(wait)
        known = self._known.get(job.name)
        if known == job.digest or (known is None and job.depth is Depth.PIN):  # else it has moved on meanwhile
            self._put(job)

    async def _serve_asked(self, asked: Asked) -> None:
        progress, job = asked.progress, asked.job
        progress.state = "running"
        try:
            with asked.scope:
                digest = await self._fetcher.manifests(job, progress)
                await self._blobs_of(job, digest, progress)
            progress.state = "cancelled" if asked.scope.cancelled_caught else "done"
        except RegistryError as err:
            progress.failure, progress.state = err, "failed"
        except BaseException:
            progress.state = "cancelled"
            raise

    # ------------------------------------------------------------------------------------------------------- watching

    async def _watch(self) -> None:
        for pin in self.pins.all():  # something may be missing
            if (pin.repository, pin.reference) in self._known:
                continue  # where it points now has been heard of already
            digest = Digest.parse(pin.digest) if pin.digest else None
            self._put(Job(pin.repository, pin.reference, Depth.PIN, pin.wanted, digest))
        while True:
            if not self.live():
                await self.look()
            await trio.sleep(self._poll)

    async def look(self) -> None:
        """Ask for the tags under the patterns, in the repositories that are known, and for those that are pinned."""
        for pin in self.pins.all():
            if ":" not in pin.reference:
                await self._look_at(pin.repository, pin.reference)
        if not self._patterns.all:
            return
        for repository in self._patterns.repositories(self._records.repositories()):
            try:
                for tag in await self._tags(repository):
                    await self._look_at(repository, tag)
            except RegistryError as err:
                _log.debug("the tags to keep warm could not be listed", repository=repository, why=err.message)

    async def _tags(self, repository: str) -> list[str]:
        found: list[str] = []
        while len(found) < _MOST_TAGS:
            page, _warning = await self._resolver.tags(repository, found[-1] if found else "", _PAGE)
            found += page
            if len(page) < _PAGE:
                break
        return [tag for tag in found if self._patterns.depth(repository, tag) is not Depth.NONE]

    async def _look_at(self, repository: str, tag: str) -> None:
        try:
            found = await self._resolver.manifest(repository, tag)
        except NotFound:
            self.moved(repository, tag, None)
        except RegistryError as err:
            _log.debug("a tag to keep warm could not be looked up", repository=repository, tag=tag, why=err.message)
        else:
            self.moved(repository, tag, found.manifest.digest)
