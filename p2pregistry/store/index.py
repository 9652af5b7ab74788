"""The index: what a node knows without asking anyone, in one LMDB environment.

Reads are plain calls, about a microsecond, made in the event loop; none holds a transaction across an ``await`` (an old
transaction keeps every page that was overwritten since). Writes return when they are durable; see ``writer``.

It is a cache. Records of an unknown version read as absent, a damaged environment is moved aside and begun anew (the
blobs come back from their files, see ``recover``). The exception is ``put_meta``: what it takes is kept in a file of
its own beside the environment (``kept``), unless the caller says that it can be made again.

    tags       repository NUL tag            -> digest, seen, stamp, signed record
    repos      repository                    -> private, stamp, signed record, hidden
    manifests  digest                        -> media type, body
    claims     digest repository             -> claims, newest first
    claimed    digest repository             -> size, root CID
    metainfo   digest                        -> size, root CID, piece table
    blobs      digest                        -> size, last use, whether no client has asked for it yet
    meta       name                          -> bytes
    blocks     see ``blocks``
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import lmdb
import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.store.environment import Environment, index_error, mark_damaged, open_environment
from p2pregistry.store.kept import load_kept, save_kept
from p2pregistry.store.records import (
    BLOBS,
    CLAIMS,
    MANIFESTS,
    METAINFO,
    REFS,
    REPOSITORIES,
    TAGS,
    BlobEntry,
    BlobRow,
    ClaimsRow,
    ManifestRow,
    MetainfoRow,
    RefRow,
    RepositoryRecord,
    RepositoryRow,
    StoredManifest,
    TagRecord,
    TagRow,
    digest_key,
    meta_key,
    read_digest,
    read_tag,
    repository_key,
    tag_key,
)
from p2pregistry.store.writer import Writer
from p2pregistry.trust.records import Stamp

__all__ = ["BlobEntry", "Index", "RepositoryRecord", "StoredManifest", "TagRecord", "open_index"]

_TABLES = ("tags", "repos", "manifests", "claims", "claimed", "metainfo", "blobs", "meta", "blocks")
#: Seconds until a last use reaches the disk when nothing else is written.
TOUCH_DELAY = 5.0
#: Claims kept for one manifest in one repository: a new one is signed when a key is revoked.
MAX_CLAIMS = 4
#: Claims of one manifest that ``manifest_claims`` returns.
MAX_REPOSITORIES = 64

_T = TypeVar("_T")


class Index:
    """See the module. Made by ``open_index``; every read raises LocalError if the environment fails.

    ``changes`` goes up with every write from which it may follow that somebody may pull more, or less, than before;
    ``moves`` where a tag may point elsewhere, or may have to be asked for, that was served without asking.
    """

    def __init__(self, environment: Environment, kept_path: Path, kept: dict[str, bytes]) -> None:
        self._env = environment.env
        self._tables = environment.tables
        self._path = environment.path
        self._kept_path = kept_path
        self._kept = kept
        self._kept_lock = trio.Lock()
        self.changes = 0
        self.moves = 0
        self._touched: dict[Digest, float] = {}
        self._writer = Writer(environment, self._take_touched, self._touches_kept)
        self._total = sum(size for _, size, _ in self.held())
        self._ahead = {digest: row.size for digest, row in self._blobs() if row.ahead}

    # -- reading ----------------------------------------------------------------------------------------------------

    def _get(self, table: str, key: bytes) -> bytes | None:
        try:
            with self._env.begin(db=self._tables[table]) as txn:
                value = txn.get(key)
                return None if value is None else bytes(value)  # bytes already: no copy is made
        except lmdb.Error as err:
            mark_damaged(self._path, err)
            raise index_error(err) from err

    def scan(self, table: str, prefix: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        """The rows of a table whose keys begin so, in order of their bytes."""
        found: list[tuple[bytes, bytes]] = []
        try:
            with self._env.begin(db=self._tables[table]) as txn, txn.cursor() as cursor:
                if not cursor.set_range(prefix):
                    return found
                for name, value in cursor:
                    key = bytes(name)
                    if not key.startswith(prefix) or (limit is not None and len(found) >= limit):
                        break
                    found.append((key, bytes(value)))
        except lmdb.Error as err:
            mark_damaged(self._path, err)
            raise index_error(err) from err
        return found

    def tag(self, repository: str, tag: str) -> TagRecord | None:
        """Where the tag pointed when last seen."""
        row = TAGS.decode(self._get("tags", tag_key(repository, tag)))
        return read_tag(row) if row is not None else None

    def tags(self, repository: str) -> list[str]:
        """The tags known of a repository that point somewhere, in order of their bytes."""
        prefix = repository_key(repository) + b"\0"
        rows = ((key, TAGS.decode(value)) for key, value in self.scan("tags", prefix))
        return [key[len(prefix) :].decode() for key, row in rows if row is not None and row.digest]

    def owners(self, limit: int) -> list[str]:
        """Repositories of which tags are known, ``limit`` at most. Takes time by their number, not by that of tags."""
        found: list[str] = []
        try:
            with self._env.begin(db=self._tables["tags"]) as txn, txn.cursor() as cursor:
                there = cursor.first()
                while there and len(found) < limit:
                    name = bytes(cursor.key()).partition(b"\0")[0]
                    found.append(name.decode())
                    there = cursor.set_range(name + b"\1")
        except lmdb.Error as err:
            mark_damaged(self._path, err)
            raise index_error(err) from err
        return found

    def repository(self, repository: str) -> RepositoryRecord | None:
        """Whether the repository is private."""
        row = REPOSITORIES.decode(self._get("repos", repository_key(repository)))
        if row is None:
            return None
        return RepositoryRecord(row.private, Stamp(row.epoch, row.number), row.token, row.hidden)

    def repositories(self) -> list[str]:
        """The repositories of which there is a record, in order of their bytes."""
        return [key.decode() for key, _value in self.scan("repos", b"")]

    def manifest(self, digest: Digest) -> StoredManifest | None:
        """The manifest of this digest, from whichever repository."""
        row = MANIFESTS.decode(self._get("manifests", digest_key(digest)))
        return StoredManifest(digest, row.media_type, row.body) if row is not None else None

    def claims(self, repository: str, digest: Digest) -> list[str]:
        """Claims that ``repository`` holds the manifest, newest first."""
        row = CLAIMS.decode(self._get("claims", digest_key(digest) + repository_key(repository)))
        return list(row.claims) if row is not None else []

    def manifest_claims(self, digest: Digest) -> list[tuple[str, str]]:
        """(repository, newest claim) of the repositories known to hold the manifest, at most MAX_REPOSITORIES."""
        prefix = digest_key(digest)
        found: list[tuple[str, str]] = []
        for key, value in self.scan("claims", prefix, MAX_REPOSITORIES):
            row = CLAIMS.decode(value)
            if row is not None and row.claims:
                found.append((key[len(prefix) :].decode(), row.claims[0]))
        return found

    def claimed(self, repository: str, digest: Digest) -> BlobRef | None:
        """What a claim of ``repository`` says of the blob; None if no claim of it names the blob."""
        row = REFS.decode(self._get("claimed", digest_key(digest) + repository_key(repository)))
        return BlobRef(digest, row.size, row.root) if row is not None else None

    def ref(self, digest: Digest) -> BlobRef | None:
        """What a claim of any repository says of the blob."""
        for _, value in self.scan("claimed", digest_key(digest), MAX_REPOSITORIES):
            row = REFS.decode(value)
            if row is not None:
                return BlobRef(digest, row.size, row.root)
        return None

    def naming(self, digest: Digest) -> list[str]:
        """The repositories of which a claim names the blob."""
        prefix = digest_key(digest)
        return [key[len(prefix) :].decode() for key, value in self.scan("claimed", prefix) if REFS.decode(value)]

    def metainfo(self, digest: Digest) -> Metainfo | None:
        """The piece table of the blob."""
        row = METAINFO.decode(self._get("metainfo", digest_key(digest)))
        return Metainfo(digest, row.size, row.root, row.hashes) if row is not None else None

    def manifest_digests(self) -> list[Digest]:
        """Every manifest that is kept here."""
        found = (read_digest(key) for key, _value in self.scan("manifests", b""))
        return [digest for digest in found if digest is not None]

    def public_after(self, after: str, limit: int) -> list[str]:
        """Of the repositories that are public as far as is known the next ``limit`` behind this one, by name."""
        found: list[str] = []
        try:
            with self._env.begin(db=self._tables["repos"]) as txn, txn.cursor() as cursor:
                there = cursor.set_range(after.encode("ascii") + b"\0") if after else cursor.first()
                while there and len(found) < limit:
                    row = REPOSITORIES.decode(bytes(cursor.value()))
                    if row is not None and not row.private and not row.hidden:
                        found.append(bytes(cursor.key()).decode())
                    there = cursor.next()
        except lmdb.Error as err:
            mark_damaged(self._path, err)
            raise index_error(err) from err
        return found

    def blob(self, digest: Digest) -> BlobEntry | None:
        """The entry of a complete blob."""
        row = BLOBS.decode(self._get("blobs", digest_key(digest)))
        return BlobEntry(row.size, self._touched.get(digest, row.last_use)) if row is not None else None

    def held(self) -> list[tuple[Digest, int, float]]:
        """(digest, size in bytes, last use in unix seconds) of every complete blob."""
        return [(digest, row.size, self._touched.get(digest, row.last_use)) for digest, row in self._blobs()]

    def _blobs(self) -> Iterator[tuple[Digest, BlobRow]]:
        for key, value in self.scan("blobs", b""):
            digest, row = read_digest(key), BLOBS.decode(value)
            if digest is not None and row is not None:
                yield digest, row

    def ahead(self) -> Mapping[Digest, int]:
        """The blobs that were fetched ahead and that no client has asked for yet, each with its size in bytes."""
        return self._ahead

    def total(self) -> int:
        """Bytes of all complete blobs."""
        return self._total

    def get_meta(self, key: str) -> bytes | None:
        """A value of ``put_meta``."""
        name = meta_key(key)
        return self._kept[key] if key in self._kept else self._get("meta", name)

    # -- writing ----------------------------------------------------------------------------------------------------

    async def write(self, op: Callable[[lmdb.Transaction], _T], committed: Callable[[_T], None] | None = None) -> _T:
        """Run ``op`` in the writer's next transaction; see Writer.write. Tables are in ``table``. Without ``committed``
        it counts as one of the ``changes``."""
        return await self._writer.write(op, self._changed if committed is None else committed)

    def table(self, name: str) -> lmdb._Database:
        """A sub-database, for ``write``."""
        return self._tables[name]

    async def _put(self, table: str, key: bytes, value: bytes) -> None:
        await self._writer.write(lambda txn: txn.put(key, value, db=self._tables[table]))

    async def put_tag(self, repository: str, tag: str, record: TagRecord) -> TagRecord:
        """Where the tag points, or that it points nowhere; unless something newer was written meanwhile. What is there
        now."""
        digest = digest_key(record.digest) if record.digest is not None else b""
        key, value = tag_key(repository, tag), TAGS.encode(TagRow(digest, record.seen, *record.stamp, record.token))

        def op(txn: lmdb.Transaction) -> TagRecord:
            known = TAGS.decode(txn.get(key, db=self._tables["tags"]))
            if known is not None and Stamp(known.epoch, known.number) > record.stamp:
                return read_tag(known)
            txn.put(key, value, db=self._tables["tags"])
            return record

        return await self._writer.write(op)

    async def put_repository(self, repository: str, record: RepositoryRecord) -> None:
        """Whether the repository is private, unless something newer was written meanwhile."""
        row = RepositoryRow(record.private, *record.stamp, record.token, record.hidden)
        key, value = repository_key(repository), REPOSITORIES.encode(row)

        def op(txn: lmdb.Transaction) -> None:
            known = REPOSITORIES.decode(txn.get(key, db=self._tables["repos"]))
            if known is None or Stamp(known.epoch, known.number) <= record.stamp:
                txn.put(key, value, db=self._tables["repos"])

        await self._writer.write(op, self._changed)

    def _changed(self, _done: object = None) -> None:
        self.changes += 1

    async def put_manifest(
        self, repository: str, manifest: StoredManifest, claim: str | None, blobs: Sequence[BlobRef]
    ) -> None:
        """Store a manifest, the claim it came with, and what that claim says of its blobs, in one transaction."""
        key = digest_key(manifest.digest)
        owner = repository_key(repository)
        value = MANIFESTS.encode(ManifestRow(manifest.media_type, manifest.body))
        refs = [(digest_key(ref.digest) + owner, REFS.encode(RefRow(ref.size, ref.root))) for ref in blobs]

        def op(txn: lmdb.Transaction) -> None:
            txn.put(key, value, db=self._tables["manifests"])
            if claim is not None:
                table = self._tables["claims"]
                row = CLAIMS.decode(txn.get(key + owner, db=table))
                older = [text for text in row.claims if text != claim] if row is not None else []
                txn.put(key + owner, CLAIMS.encode(ClaimsRow([claim, *older][:MAX_CLAIMS])), db=table)
            for name, ref in refs:
                txn.put(name, ref, db=self._tables["claimed"])

        await self._writer.write(op, self._changed)

    async def put_metainfo(self, info: Metainfo) -> None:
        """Store a piece table that has been verified."""
        row = MetainfoRow(info.size, info.root, info.hashes)
        await self._put("metainfo", digest_key(info.digest), METAINFO.encode(row))

    async def put_blob(self, digest: Digest, size: int, now: float, *, ahead: bool = False) -> None:
        """A complete blob of ``size`` bytes, used at ``now`` (unix seconds), is on disk. ``ahead``: no client has asked
        for it yet."""
        key = digest_key(digest)
        value = BLOBS.encode(BlobRow(size, now, ahead))

        def op(txn: lmdb.Transaction) -> int:
            old = BLOBS.decode(txn.get(key, db=self._tables["blobs"]))
            txn.put(key, value, db=self._tables["blobs"])
            return size - (old.size if old is not None else 0)

        self._touched.pop(digest, None)
        self._ahead.pop(digest, None)
        if ahead:
            self._ahead[digest] = size
        await self._writer.write(op, self._count)

    async def asked(self, digest: Digest) -> None:
        """A client has asked for a blob that was fetched ahead: it is one like any other."""
        key, table = digest_key(digest), self._tables["blobs"]

        def op(txn: lmdb.Transaction) -> None:
            old = BLOBS.decode(txn.get(key, db=table))
            if old is not None:
                txn.put(key, BLOBS.encode(BlobRow(old.size, old.last_use)), db=table)

        if self._ahead.pop(digest, None) is not None:
            await self._writer.write(op)

    async def drop_blob(self, digest: Digest) -> None:
        """Forget the blob. One that is not there is no error."""
        key = digest_key(digest)

        def op(txn: lmdb.Transaction) -> int:
            old = BLOBS.decode(txn.get(key, db=self._tables["blobs"]))
            txn.delete(key, db=self._tables["blobs"])
            return -old.size if old is not None else 0

        self._touched.pop(digest, None)
        self._ahead.pop(digest, None)
        await self._writer.write(op, self._count)

    def _count(self, difference: int) -> None:
        self._total += difference

    def touch(self, digest: Digest, now: float) -> None:
        """The blob was used at ``now``. Seen by reads at once; on disk with the next write or after TOUCH_DELAY."""
        self._touched[digest] = now
        self._writer.nudge(TOUCH_DELAY)

    def _take_touched(self) -> Callable[[lmdb.Transaction], dict[Digest, float]] | None:
        if not self._touched:
            return None
        touched, table = dict(self._touched), self._tables["blobs"]

        def op(txn: lmdb.Transaction) -> dict[Digest, float]:
            for digest, now in touched.items():
                key = digest_key(digest)
                old = BLOBS.decode(txn.get(key, db=table))
                if old is not None and old.last_use < now:
                    txn.put(key, BLOBS.encode(BlobRow(old.size, now, old.ahead)), db=table)
            return touched

        return op

    def _touches_kept(self, touched: dict[Digest, float]) -> None:
        for digest, now in touched.items():
            if self._touched.get(digest) == now:
                del self._touched[digest]

    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None:
        """Keep ``value`` under ``key``, durably.

        It survives the loss of the index (a file is rewritten: about a millisecond, rare values only), unless it is
        ``rebuildable``: then it is an ordinary record. A key is of one kind for ever (ValueError).
        """
        name = meta_key(key)
        if rebuildable:
            if key in self._kept:
                raise ValueError("this key is kept outside the index")
            await self._put("meta", name, value)
            return
        async with self._kept_lock:
            if self._kept.get(key) == value:
                return
            kept = {**self._kept, key: value}
            await trio.to_thread.run_sync(save_kept, self._kept_path, kept)
            self._kept = kept

    async def run(self) -> None:
        """The writer's task; ``open_index`` starts it."""
        await self._writer.run()

    def close(self) -> None:
        """Take no more writes; ``open_index`` calls it."""
        self._writer.close()


def kept_path(path: Path) -> Path:
    """The file beside the index ``path`` that holds what must outlive it."""
    return path.with_name(f"{path.stem}.kept.json")


@asynccontextmanager
async def open_index(path: Path) -> AsyncIterator[Index]:
    """Own the environment in the directory ``path``, made or rebuilt where needed, and run its writer.

    Raises LocalError: not writable, in use by another process, or pinned values that cannot be read.
    """
    kept = await trio.to_thread.run_sync(load_kept, kept_path(path))
    environment = await trio.to_thread.run_sync(open_environment, path, _TABLES)
    try:
        index = Index(environment, kept_path(path), kept)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(index.run)
            try:
                yield index
            except Exception as err:  # noqa: BLE001 - raised again below: the nursery would wrap it in a group
                failure = err
            finally:
                index.close()
        if failure is not None:
            raise failure
    finally:
        environment.close()
