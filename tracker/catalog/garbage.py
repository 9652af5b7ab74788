"""The area ``Garbage`` of a catalog: what nothing refers to any more, and what rules let go.

A collection is a row of small transactions, each safe beside any push, pull or other collection:

1. ``drop_manifests``: manifests that no tag, index or subject keeps, if the operator has set a time for them.
2. ``unlink``: blobs leave repositories whose manifests do not refer to them, once nobody touched them for the grace.
3. ``condemn``: blobs that are in no repository leave the catalog; what held them is condemned. This is committed before
   any byte goes: a push that comes later makes a new object.
4. ``condemned``, delete the bytes, ``forget``: also what an earlier run did not get to.

Each step locks what it looks at, leaves alone what somebody else holds, and looks again in a second statement: the
first one may have seen a state from before that somebody's commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from p2pregistry.digest import Digest
from tracker.catalog.trail import By
from tracker.retention import Rule, Tagged

Kind = Literal["collect", "retention", "scrub"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run and what it came to; ``figures`` are counts and bytes by name."""

    id: int
    kind: Kind
    dry_run: bool
    started_at: datetime
    ended_at: datetime | None
    figures: dict[str, int]
    error: str | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a collection would remove now: links of blobs to repositories, blobs, and their bytes; manifests."""

    manifests: int
    links: int
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob to be looked at: which object should have these bytes."""

    digest: Digest
    size: int
    object: str


class Garbage(Protocol):
    """Each method is one transaction. Times are seconds. A failed one raises LocalError."""

    async def drop_manifests(self, untagged: float, limit: int, by: By) -> int:
        """Remove manifests, ``limit`` at most, that have no tag, are in no index, are about no manifest that is there,
        and that nobody has pushed, pulled or taken a tag from for so long; how many."""

    async def unlink(self, grace: float, limit: int) -> int:
        """Take blobs from repositories, ``limit`` at most, where no manifest refers to them and nobody touched them
        for ``grace``; how many. None where an upload is open in the repository: its manifest is still to come."""

    async def condemn(self, limit: int) -> int:
        """Forget blobs, ``limit`` at most, that are in no repository, and condemn their objects; how many. Manifests
        that are in no repository go too, uncounted."""

    async def condemned(self, limit: int, but: Sequence[str] = ()) -> list[str]:
        """Objects whose bytes are to go, oldest first, ``but`` these."""

    async def forget(self, objects: Sequence[str]) -> int:
        """Their bytes are gone; how many bytes they were."""

    async def forecast(self, grace: float, untagged: float | None) -> Forecast:
        """What a collection would do now."""

    async def unknown(self, objects: Sequence[str]) -> set[str]:
        """Those that no blob, no condemnation and no upload knows of."""

    async def start(
        self, kind: Kind, dry_run: bool, every: float | None, by: By | None = None, asked: Mapping[str, object] = {}
    ) -> int | None:
        """Write down that a run begins; its id. With ``every``: None if one began, here or in another process, less
        than so many seconds ago. ``by``: who is to be found in the audit log for it, with what he ``asked`` for, unless
        it is a dry run."""

    async def end(self, run: int, figures: dict[str, int], error: str | None) -> None:
        """Write down what it came to."""

    async def runs(self, *, limit: int = 50) -> list[Run]:
        """Newest first."""

    async def to_scrub(self, limit: int, older: float) -> list[Stored]:
        """Blobs that were not looked at for ``older`` seconds, longest ago first."""

    async def scrubbed(self, digest: Digest, name: str, sound: bool) -> None:
        """The bytes of the object were compared with the digest."""

    async def damaged(self, *, limit: int = 1000) -> list[Stored]:
        """Blobs whose bytes are others, or gone."""

    async def pulled(self, pulls: Sequence[tuple[str, str | None, Digest, int]]) -> None:
        """(repository, tag or None, manifest, how often) since the last time."""

    async def rules(self) -> list[Rule]:
        """The rules of retention, by id."""

    async def add_rule(self, rule: Rule, by: By) -> Rule:
        """With an id of its own."""

    async def remove_rule(self, rule: int, by: By) -> bool:
        """False if it is not there."""

    async def tagged(self, repository: str) -> list[Tagged]:
        """All tags of a repository."""

    async def let_go(self, repository: str, tag: Tagged, by: By) -> bool:
        """Remove a tag that is still as it was seen; False if it was pushed or pulled since. Raises RequestError
        (DENIED) if it is immutable."""
