"""What the tracker tells of changes, written to the index: records and the cursor in one transaction.

The decisions are in ``feed.batch``, of which this knows only the form. A record is never replaced by one with a lower
stamp, whoever wrote it first. The cursor and the interest that it holds for are in the table ``meta``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import lmdb
import msgspec

from p2pregistry.digest import Digest
from p2pregistry.feed_messages import NOTHING, Interest
from p2pregistry.store.index import Index
from p2pregistry.store.records import (
    REPOSITORIES,
    TAGS,
    UNSIGNED,
    RepositoryRow,
    TagRow,
    digest_key,
    meta_key,
    repository_key,
    tag_key,
)
from p2pregistry.trust.records import Stamp

#: Keys of the index; both can be made again.
CURSOR: Final = "feed_cursor"
_INTEREST: Final = "feed_interest"


@dataclass(frozen=True, slots=True)
class Known:
    """Everything up to ``cursor`` is known of ``interest``, as of ``seen`` (unix seconds). ``order``: its repositories,
    the one that was asked for last at the end."""

    cursor: Stamp = NOTHING
    seen: float = 0.0
    interest: Interest = field(default_factory=Interest)
    order: tuple[str, ...] = ()


@dataclass(slots=True)
class Changed:
    """What a transaction has changed: tags that point elsewhere now (None: nowhere), and whether some repository came,
    went, or changed who may see it."""

    tags: list[tuple[str, str, Digest | None]] = field(default_factory=list)
    repositories: bool = False


class _Cursor(msgspec.Struct, array_like=True):
    epoch: int
    number: int
    seen: float


class _Interest(msgspec.Struct):
    repositories: list[str]
    patterns: list[str]


def read_known(index: Index) -> Known:
    """What was known when the index was last written. What cannot be read is nothing."""
    try:
        cursor = msgspec.json.decode(index.get_meta(CURSOR) or b"", type=_Cursor)
        interest = msgspec.json.decode(index.get_meta(_INTEREST) or b"", type=_Interest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Known()
    names = tuple(interest.repositories)
    return Known(
        Stamp(cursor.epoch, cursor.number),
        cursor.seen,
        Interest(frozenset(names), frozenset(interest.patterns)),
        names,
    )


class Table:
    """One transaction over tags and repositories. ``seen``: when it is all known to be so, unix seconds."""

    def __init__(self, index: Index, txn: lmdb.Transaction, seen: float) -> None:
        self._txn, self._seen = txn, seen
        self._tags, self._repositories, self._meta = index.table("tags"), index.table("repos"), index.table("meta")
        self.changed = Changed()

    # ------------------------------------------------------------------------------------------------------------ tags

    def put_tag(self, repository: str, tag: str, digest: Digest | None, stamp: Stamp, token: str) -> None:
        """Where a tag points."""
        key = tag_key(repository, tag)
        target = b"" if digest is None else digest_key(digest)
        known = TAGS.decode(self._txn.get(key, db=self._tags))
        if known is not None and Stamp(known.epoch, known.number) > stamp:
            return
        self._txn.put(key, TAGS.encode(TagRow(target, self._seen, *stamp, token)), db=self._tags)
        if (b"" if known is None else known.digest) != target:
            self.changed.tags.append((repository, tag, digest))

    def drop_tags(self, repository: str, gone: Callable[[str, Stamp], bool], at: Stamp | None) -> None:
        """Tags of which ``gone`` says so point nowhere. No record older than ``at`` counts later; None: none older than
        what is known."""
        prefix = repository_key(repository) + b"\0"
        rows: list[tuple[bytes, TagRow]] = []
        with self._txn.cursor(db=self._tags) as cursor:
            if cursor.set_range(prefix):
                for name, value in cursor:
                    key = bytes(name)
                    if not key.startswith(prefix):
                        break
                    row = TAGS.decode(value)
                    if row is not None and row.digest:
                        rows.append((key, row))
        for key, row in rows:
            tag, stamp = key[len(prefix) :].decode(), Stamp(row.epoch, row.number)
            if gone(tag, stamp):
                left = TagRow(b"", self._seen, *stamp, row.token) if at is None else TagRow(b"", self._seen, *at)
                self._txn.put(key, TAGS.encode(left), db=self._tags)
                self.changed.tags.append((repository, tag, None))

    # ---------------------------------------------------------------------------------------------------- repositories

    def put_repository(self, repository: str, private: bool, stamp: Stamp, token: str) -> None:
        """Whether a repository, which may be seen, is private."""
        key = repository_key(repository)
        known = REPOSITORIES.decode(self._txn.get(key, db=self._repositories))
        if known is not None and Stamp(known.epoch, known.number) > stamp:
            return
        row = RepositoryRow(private, *stamp, token, hidden=False)
        self._txn.put(key, REPOSITORIES.encode(row), db=self._repositories)
        if known is None or known.hidden or known.private != private:
            self.changed.repositories = True

    def hide(self, repository: str, at: Stamp) -> None:
        """A repository may not be seen any more, and its tags point nowhere. The stamps stay as they are: should it be
        seen again, its records may be the same ones."""
        key = repository_key(repository)
        known = REPOSITORIES.decode(self._txn.get(key, db=self._repositories))
        if known is None:
            known = RepositoryRow(True, *UNSIGNED, "", hidden=False)
        if Stamp(known.epoch, known.number) > at:
            return
        self.drop_tags(repository, lambda _tag, _stamp: True, None)
        if not known.hidden:
            row = RepositoryRow(known.private, known.epoch, known.number, known.token, hidden=True)
            self._txn.put(key, REPOSITORIES.encode(row), db=self._repositories)
            self.changed.repositories = True

    def repositories(self) -> Iterator[tuple[str, Stamp]]:
        """Each repository that is known and not hidden, with the stamp of its record."""
        found: list[tuple[str, Stamp]] = []
        with self._txn.cursor(db=self._repositories) as cursor:
            for key, value in cursor:
                row = REPOSITORIES.decode(value)
                if row is not None and not row.hidden:
                    found.append((bytes(key).decode(), Stamp(row.epoch, row.number)))
        return iter(found)

    # ---------------------------------------------------------------------------------------------------------- cursor

    def put_cursor(self, cursor: Stamp, seen: float) -> None:
        """Everything up to here is known of the interest, as of then."""
        value = msgspec.json.encode(_Cursor(*cursor, seen))
        self._txn.put(meta_key(CURSOR), value, db=self._meta)

    def put_interest(self, order: Sequence[str], interest: Interest) -> None:
        """The interest that the cursor holds for."""
        names = [name for name in order if name in interest.repositories]
        names += sorted(interest.repositories.difference(names))
        value = msgspec.json.encode(_Interest(names, sorted(interest.patterns)))
        self._txn.put(meta_key(_INTEREST), value, db=self._meta)


async def transact(
    index: Index, work: Callable[[Table], None], seen: float, tell: Callable[[Changed], None] = lambda _changed: None
) -> Changed:
    """Run ``work`` in one transaction; what it changed, once that is durable, of which ``tell`` is told even if nobody
    waits any more. Raises StorageFull, LocalError."""

    def op(txn: lmdb.Transaction) -> Changed:
        table = Table(index, txn, seen)
        work(table)
        return table.changed

    def committed(changed: Changed) -> None:
        if changed.repositories:
            index.changes += 1
        if changed.tags:
            index.moves += 1
        tell(changed)

    return await index.write(op, committed)
