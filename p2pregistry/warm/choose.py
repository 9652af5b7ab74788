"""Which tags a node keeps warm, and in which order. Plain decisions: no clock, nothing is asked.

A pattern is a glob over ``repository:tag``; one without a colon covers each tag of the repositories it covers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count

from p2pregistry.digest import Digest
from p2pregistry.globs import check_glob, matches, prefix
from p2pregistry.oci.platforms import Platform
from p2pregistry.oci.reference import check_name, parse_reference

#: After so many failures the pause grows no more.
MOST_TRIES = 10


class Depth(IntEnum):
    """How much of an image is kept here; the more the higher. NONE: none of it. SYNC: its manifests. PREFETCH: its
    blobs too, within a budget. PIN: all of it, and it stays."""

    NONE = 0
    SYNC = 1
    PREFETCH = 2
    PIN = 3


def full_pattern(pattern: str) -> str:
    """The pattern over ``repository:tag``. Raises ValueError for what is no pattern."""
    check_glob(pattern)
    full = pattern if ":" in pattern else f"{pattern}:*"
    check_glob(full)
    return full


def split_reference(text: str) -> tuple[str, str | Digest]:
    """The repository and the tag or digest of ``repository[:tag][@digest]``; without either the tag is ``latest``.
    Raises RequestError."""
    name, at, digest = text.partition("@")
    repository, colon, tag = name.partition(":")
    check_name(repository)
    if colon:
        parse_reference(tag)
    return repository, Digest.parse(digest) if at else (tag or "latest")


@dataclass(frozen=True)
class Patterns:
    """What is kept of which tags; see ``full_pattern``."""

    sync: tuple[str, ...] = ()
    prefetch: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Each pattern once, in order."""
        return tuple(sorted({*self.sync, *self.prefetch}))

    def depth(self, repository: str, tag: str) -> Depth:
        """How much is kept of the image behind this tag."""
        name = f"{repository}:{tag}"
        if any(matches(pattern, name) for pattern in self.prefetch):
            return Depth.PREFETCH
        return Depth.SYNC if any(matches(pattern, name) for pattern in self.sync) else Depth.NONE

    def repositories(self, known: Iterable[str]) -> list[str]:
        """The repositories that may have such tags: those that a pattern names, and of the known ones those that one
        covers."""
        stems = [pattern.rpartition(":")[0] for pattern in self.all]
        named = {stem for stem in stems if "*" not in stem}
        wide = [(prefix(stem), stem) for stem in stems if "*" in stem]
        covered = {
            name for name in known if any(name.startswith(start) and matches(stem, name) for start, stem in wide)
        }
        return sorted(named | covered)


@dataclass(eq=False)
class Job:
    """An image to fetch. ``reference``: its tag, or its digest as text; ``platforms``: None for all.

    ``digest`` is that of its first manifest, once known. ``tries``: how often it has failed.
    """

    repository: str
    reference: str
    depth: Depth
    platforms: Sequence[Platform] | None
    digest: Digest | None = None
    tries: int = 0
    number: int = field(default_factory=count(1).__next__)

    @property
    def name(self) -> tuple[str, str]:
        """Of two jobs of one name only the later counts."""
        return self.repository, self.reference

    def __str__(self) -> str:
        return f"{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


class Line:
    """Jobs that wait: pins first, then those that need manifests alone, then by age. A later job takes the place of an
    earlier one of its name, but not its turn: a tag that moves all the time would never be fetched."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], tuple[str, str]]] = []
        self._waiting: dict[tuple[str, str], tuple[tuple[int, int], Job]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, name: object) -> bool:
        return name in self._waiting

    def put(self, job: Job) -> None:
        """One more."""
        known = self._waiting.get(job.name)
        key = (_ORDER[job.depth], job.number if known is None else known[0][1])
        self._waiting[job.name] = (key, job)
        if known is None or known[0] != key:
            heapq.heappush(self._heap, (key, job.name))

    def take(self) -> Job | None:
        """The next one; None: no job waits."""
        while self._heap:
            key, name = heapq.heappop(self._heap)
            found = self._waiting.get(name)
            if found is not None and found[0] == key:
                del self._waiting[name]
                return found[1]
        return None

    def forget(self, name: tuple[str, str]) -> None:
        """It is not wanted any more."""
        self._waiting.pop(name, None)


_ORDER = {Depth.PIN: 0, Depth.NONE: 1, Depth.SYNC: 1, Depth.PREFETCH: 2}


def pause(tries: int) -> float:
    """Seconds until a job that has failed so often is tried again."""
    return min(600.0, 5.0 * float(1 << min(tries, MOST_TRIES)))
