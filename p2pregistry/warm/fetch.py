"""Fetches one image ahead of any pull: its manifests, then its blobs, through flights that make way for clients'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError, StorageFull, Unreachable
from p2pregistry.flights import Flights
from p2pregistry.oci.manifest import Descriptor
from p2pregistry.oci.platforms import Platform
from p2pregistry.oci.reference import parse_reference
from p2pregistry.resolve import Resolver
from p2pregistry.spool import again
from p2pregistry.store.records import BlobEntry, StoredManifest
from p2pregistry.warm.choose import Depth, Job
from p2pregistry.warm.pins import needs

#: Rounds of asking for the manifests that an index lists: indexes within indexes are rare.
_DEEP = 8


class Records(Protocol):
    """The part of the index that is used here."""

    def manifest(self, digest: Digest) -> StoredManifest | None: ...
    def blob(self, digest: Digest) -> BlobEntry | None: ...


class Progress:
    """How far the fetching of an image is. Sizes in bytes; ``total`` is 0 until its manifests are here."""

    def __init__(self) -> None:
        self.state = "waiting"  # then "running", and "done", "failed" or "cancelled"
        self.failure: RegistryError | None = None
        self.digest: Digest | None = None
        self.total = self.ready = 0
        self.blobs = self.blobs_ready = 0
        self.got: dict[str, int] = {}
        self._flying: list[_Flying] = []

    def begin(self, flight: _Flying) -> None:
        """This flight belongs to the image."""
        self._flying.append(flight)

    def end(self, flight: _Flying) -> None:
        """It has ended."""
        self._flying.remove(flight)
        for kind, count in flight.rank.got.items():
            self.got[kind] = self.got.get(kind, 0) + count

    def arrived(self, size: int) -> None:
        """One more blob of ``size`` bytes is here."""
        self.ready += size
        self.blobs_ready += 1

    def as_json(self) -> dict[str, object]:
        """For the admin socket: ``here`` and ``total`` bytes, and those that came from peers and from the tracker."""
        came = dict(self.got)
        for flight in self._flying:
            for kind, count in flight.rank.got.items():
                came[kind] = came.get(kind, 0) + count
        return {
            "state": self.state,
            "error": None if self.failure is None else self.failure.message,
            "digest": None if self.digest is None else str(self.digest),
            "total": self.total,
            "here": self.ready + sum(flight.here for flight in self._flying),
            "blobs": self.blobs,
            "blobs_here": self.blobs_ready,
            "peer": came.get("peer", 0),
            "tracker": came.get("tracker", 0),
        }


class _Got(Protocol):
    got: dict[str, int]


class _Flying(Protocol):
    """The part of a flight that is used here."""

    @property
    def rank(self) -> _Got: ...

    @property
    def here(self) -> int: ...


class Fetcher:
    """Fetches images; ``slots`` bounds the blobs at a time; ``pin`` keeps a blob from eviction for a while; ``limit``
    is the most bytes there may be of what no client has asked for yet (None: any)."""

    def __init__(
        self,
        records: Records,
        resolver: Resolver,
        flights: Flights,
        pin: Callable[[Digest], AbstractContextManager[None]],
        *,
        slots: int,
        limit: int | None,
    ) -> None:
        self._records, self._resolver, self._flights, self._pin = records, resolver, flights, pin
        self._slots, self._limit = trio.CapacityLimiter(slots), limit

    async def manifests(self, job: Job, progress: Progress) -> Digest:
        """Get the manifests of the image, for an index those of the wanted platforms, with the claims that say whose
        they are. Raises RemoteError, NotFound, LocalError."""
        reference = job.digest or parse_reference(job.reference)
        found = await self._resolver.manifest(job.repository, reference)
        digest = progress.digest = found.manifest.digest
        for _ in range(_DEEP):
            missing = [each for each in self._needed(digest, job.platforms)[1] if each != digest]
            if not missing:
                break
            for each in missing:
                await self._resolver.manifest(job.repository, each)
        return digest

    def _needed(
        self, digest: Digest, platforms: Sequence[Platform] | None
    ) -> tuple[tuple[Descriptor, ...], tuple[Digest, ...]]:
        image = needs(digest, self._records.manifest, platforms)
        return image.blobs, image.missing

    async def blobs(self, job: Job, digest: Digest, progress: Progress) -> None:
        """Get the blobs of the image whose manifests are here. Raises RemoteError, NotFound, LocalError; then the blobs
        that did come stay."""
        blobs, _ = self._needed(digest, job.platforms)
        progress.blobs, progress.total = len(blobs), sum(blob.size for blob in blobs)
        missing = sum(blob.size for blob in blobs if self._records.blob(blob.digest) is None)
        if self._limit is not None and missing > self._limit and job.depth is not Depth.PIN:
            raise StorageFull(f"the image takes {missing} bytes, more than there may be (prefetch.max_bytes)")
        failures: list[RegistryError] = []

        async def one(blob: Descriptor) -> None:
            try:
                await self._blob(job, blob, progress)
            except RegistryError as err:
                failures.append(err)

        with ExitStack() as stack:
            for blob in blobs:  # none of them goes for another
                stack.enter_context(self._pin(blob.digest))
            async with trio.open_nursery() as nursery:
                for blob in blobs:
                    nursery.start_soon(one, blob)
        if failures:
            raise again(next((err for err in failures if isinstance(err, StorageFull)), failures[0]))

    async def _blob(self, job: Job, blob: Descriptor, progress: Progress) -> None:
        async with self._slots:
            if self._records.blob(blob.digest) is None:
                ref = await self._resolver.blob(job.repository, blob.digest)
                await self._fly(ref, progress)
        progress.arrived(blob.size)

    async def _fly(self, ref: BlobRef, progress: Progress) -> None:
        await self._flights.quiet()
        flight = self._flights.fetch_ahead(ref)
        progress.begin(flight)
        try:
            await flight.ended.wait()
        except trio.Cancelled:
            self._flights.release(flight)
            raise
        finally:
            progress.end(flight)
        if self._records.blob(ref.digest) is None:
            raise again(flight.failure or Unreachable("the download was interrupted"))
