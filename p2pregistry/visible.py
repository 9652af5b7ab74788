"""Who may have what of the content that this node knows of.

A blob goes to whoever may pull a repository whose claim names it, and to nobody else: neither the digest nor a manifest
that lists it proves anything. Whether a repository is private is said by its newest signed record; one of which there
is no record is private, and one of which the tracker said that there is none, or none for this node, is nobody's.

Each piece that a peer asks for is decided here, so what has been decided is remembered until something changes.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent
from p2pregistry.store.records import RepositoryRecord, TagRecord
from p2pregistry.trust.records import ANYONE, Caller, RepositoryClaim, Stamp

#: Decisions that are remembered.
_REMEMBERED: Final = 100_000


class Records(Protocol):
    """The part of the index that is used here. ``changes`` goes up whenever an answer may be another,
    ``moves`` where a tag may point elsewhere."""

    changes: int
    moves: int

    def repository(self, repository: str) -> RepositoryRecord | None: ...
    def naming(self, digest: Digest) -> list[str]: ...
    def manifest_claims(self, digest: Digest) -> list[tuple[str, str]]: ...
    def public_after(self, after: str, limit: int) -> list[str]: ...
    async def put_repository(self, repository: str, record: RepositoryRecord) -> None: ...


class Claimed(NamedTuple):
    """That a repository has a manifest: the claim, and the repository's record ("": none is known)."""

    repository: str
    claim: str
    record: str


class OlderRecord(BadContent):
    """A record is older than what is known."""


class Visible:
    """See the module. ``own``: what this node may pull itself, which on localhost decides for everybody."""

    def __init__(self, records: Records, own: Caller = ANYONE) -> None:
        self._records = records
        self._own = own
        self._at = -1
        self._local: dict[str, bool] = {}
        self._decided: dict[tuple[Caller, Digest], bool] = {}
        self._used: set[str] = set()
        self._turn = ""  # of the public repositories the last one of which it was this one's turn

    @property
    def changes(self) -> int:
        """As long as it is the same, so are all answers, and tags that are served without asking."""
        return self._records.changes + self._records.moves

    def become(self, own: Caller) -> None:
        """What this node may pull itself has changed."""
        if own != self._own:
            self._own = own
            self._records.changes += 1

    def _fresh(self) -> None:
        if self._at != self._records.changes:
            self._at = self._records.changes
            self._local.clear()
            self._decided.clear()

    def _may_pull(self, caller: Caller, repository: str) -> bool:
        self._used.add(repository)
        record = self._records.repository(repository)
        if record is None:
            return caller.may_pull(repository, private=True)
        return not record.hidden and caller.may_pull(repository, record.private)

    def here(self, repository: str) -> bool:
        """Whether this node, and so each local client, may pull the repository."""
        self._fresh()
        known = self._local.get(repository)
        if known is None:
            known = self._local[repository] = self._may_pull(self._own, repository)
        return known

    def public(self, repository: str) -> bool:
        """Whether anybody may pull it."""
        return self._may_pull(ANYONE, repository)

    def may_have(self, caller: Caller, digest: Digest) -> bool:
        """Whether the blob may go to this caller."""
        self._fresh()
        key = (caller, digest)
        known = self._decided.get(key)
        if known is None:
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            known = any(self._may_pull(caller, repository) for repository in self._records.naming(digest))
            self._decided[key] = known
        return known

    def claims(self, caller: Caller, digest: Digest) -> list[Claimed]:
        """Of a manifest: the claims that this caller may see. None: there is no such manifest for it."""
        found: list[Claimed] = []
        for repository, claim in self._records.manifest_claims(digest):
            if self._may_pull(caller, repository):
                record = self._records.repository(repository)
                found.append(Claimed(repository, claim, "" if record is None else record.token))
        return found

    def record(self, caller: Caller, repository: str) -> str:
        """The signed record of a repository that this caller may pull; "": there is none for it."""
        record = self._records.repository(repository)
        return record.token if record is not None and self._may_pull(caller, repository) else ""

    # ----------------------------------------------------------------------------------------------------- what is new

    def knows(self, repository: str, token: str) -> bool:
        """Whether this very record is the one in use."""
        record = self._records.repository(repository)
        return record is not None and record.token == token and not record.hidden

    async def take(self, claim: RepositoryClaim, token: str, *, confirmed: bool) -> None:
        """Take the record of a repository, which has been verified. ``confirmed``: it came from the tracker just now.
        Raises OlderRecord if a newer one is known."""
        known = self._records.repository(claim.repository)
        if known is not None:
            refuse_older(
                claim.stamp, known.stamp, same=confirmed or not (known.hidden or known.private != claim.private)
            )
        await self._records.put_repository(claim.repository, RepositoryRecord(claim.private, claim.stamp, token))

    async def hide(self, repository: str) -> None:
        """The tracker says that there is no such repository, or none for this node. What is known of it stays, so that
        no older record counts later."""
        known = self._records.repository(repository)
        if known is not None and not known.hidden:
            record = RepositoryRecord(known.private, known.stamp, known.token, hidden=True)
            await self._records.put_repository(repository, record)

    def used(self) -> list[str]:
        """The repositories that were asked about since the last call: their records are worth confirming."""
        found, self._used = sorted(self._used), set()
        if found:
            self._records.changes += 1  # so that those that are asked about again are noticed
        return found

    def doubtful(self, limit: int) -> list[str]:
        """The next ``limit`` repositories that are public here, one after the other and all over again: nobody may have
        asked about one for weeks, and the first who does is not to get what has become private meanwhile."""
        found = self._records.public_after(self._turn, limit)
        self._turn = found[-1] if len(found) == limit else ""
        return found


def refuse_older(stamp: Stamp, known: Stamp, *, same: bool) -> None:
    """Raises OlderRecord for a record older than the known one, or as old as it unless ``same`` is good."""
    if stamp < known or (stamp == known and not same):
        raise OlderRecord("a record is older than what is known")


def newer_tag(known: TagRecord | None, found: TagRecord, *, confirmed: bool) -> TagRecord:
    """``found`` if it may take the place of what is known of a tag. ``confirmed``: the tracker said so just now.
    Raises OlderRecord."""
    if known is not None:
        refuse_older(found.stamp, known.stamp, same=confirmed or known.digest == found.digest)
    return found
