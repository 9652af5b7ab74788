"""The catalog in memory: for tests and simulations, and the plainest statement of what a catalog does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.trust.records import Stamp
from tracker.catalog.base import (
    BlobHere,
    ManifestRecord,
    Naming,
    NewManifest,
    Placed,
    Referrer,
    Resolved,
    Sign,
    Standing,
    no_repository,
    still_referred_to,
)
from tracker.catalog.changes_memory import MemoryChanges
from tracker.catalog.keys import digest_key
from tracker.catalog.policies import QuotaExceeded, check_room, namespace_of, never_moves
from tracker.catalog.policies_memory import MemoryPolicies
from tracker.catalog.sessions import Lease, unknown
from tracker.catalog.sessions_memory import MemorySessions
from tracker.catalog.trail import By
from tracker.catalog.visible import Visible


@dataclass(slots=True)
class Kept:
    """A blob and the object that holds it; ``damaged`` where its bytes are others."""

    metainfo: Metainfo
    object: str
    damaged: bool = False


@dataclass(slots=True)
class StoredManifest:
    """A manifest of a repository; ``number`` counts claims up, ``used`` is when it was last pushed or pulled."""

    record: ManifestRecord
    blobs: frozenset[Digest]
    number: int
    pushed: NewManifest
    used: float = 0.0


@dataclass(slots=True)
class Repository:
    """``blobs``: when each was last touched, by trio's clock; ``pushed``: when each tag was;
    ``untagged``: when a tag left a manifest."""

    private: bool = True
    blobs: dict[Digest, float] = field(default_factory=dict)
    manifests: dict[Digest, StoredManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    pushed: dict[str, float] = field(default_factory=dict)
    untagged: dict[Digest, float] = field(default_factory=dict)


class MemoryCatalog:
    """``Catalog`` without a database. Each method is a checkpoint and otherwise atomic.

    The other areas in memory work on ``blobs``, ``content`` (by repository) and ``condemned`` (objects, with their
    sizes in bytes).

    ``private``: whether new repositories are."""

    def __init__(self, *, private: bool = True) -> None:
        self._private = private
        self.blobs: dict[Digest, Kept] = {}
        self.content: dict[str, Repository] = {}
        self.condemned: dict[str, int] = {}
        self.sessions = MemorySessions(self._condemn)
        self.policies = MemoryPolicies(self)
        self.changes = MemoryChanges(self.content)
        self._claims = 0
        #: who did what, where: the actions of the audit log
        self.written: list[tuple[By, str, str]] = []

    def _condemn(self, name: str, size: int) -> None:
        if all(kept.object != name for kept in self.blobs.values()):
            self.condemned.setdefault(name, size)

    async def _check_room(self, repository: str, blob: Metainfo, by: By) -> None:
        """Raises QuotaExceeded if the namespace has not got the blob and may not hold it."""
        namespace = namespace_of(repository)
        mine = (found for name, found in self.content.items() if namespace_of(name) == namespace)
        if any(blob.digest in found.blobs for found in mine):
            return
        try:
            check_room(self.policies.quota(namespace), blob.size)
        except QuotaExceeded as err:
            await self.policies.exceeded(repository, err, by)
            raise

    def _made(self, repository: str, found: Repository) -> None:
        if repository not in self.content:
            self.content[repository] = found
            self.changes.note("repository", repository)

    def _link(self, repository: str, digest: Digest, by: By, action: str) -> None:
        self._made(repository, Repository(private=self._private))
        blobs = self.content[repository].blobs
        if digest not in blobs:
            self.written.append((by, action, repository))
        blobs[digest] = trio.current_time()

    async def add_blob(
        self,
        repository: str,
        blob: Metainfo,
        name: str,
        by: By,
        *,
        upload: Lease | None = None,
        lost: str | None = None,
    ) -> str:
        await trio.lowlevel.checkpoint()
        await self._check_room(repository, blob, by)
        if upload is not None and not self.sessions.end(upload):
            found = self.content.get(repository)
            if found is None or blob.digest not in found.blobs:
                raise unknown(upload.id)
            return self.blobs[blob.digest].object
        kept = self.blobs.setdefault(blob.digest, Kept(blob, name))
        before = kept.object
        if before != name:
            if kept.damaged or before == lost:
                kept.object, kept.damaged = name, False
                self._condemn(before, blob.size)
            else:
                self._condemn(name, blob.size)
        self._link(repository, blob.digest, by, "blob.push")
        return kept.object

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, by: By, *, visible: Visible | None = None
    ) -> BlobRef | None:
        await trio.lowlevel.checkpoint()
        sources = self.content if source is None else {source} & self.content.keys()
        if not any(digest in self.content[name].blobs and self._seen(name, visible) for name in sources):
            return None
        if self.blobs[digest].damaged:
            return None
        await self._check_room(repository, self.blobs[digest].metainfo, by)
        self._link(repository, digest, by, "blob.mount")
        return self.blobs[digest].metainfo.ref

    async def blob(self, repository: str, digest: Digest, *, renew: bool = False) -> BlobHere | None:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None or digest not in found.blobs:
            return None
        if renew:
            if self.blobs[digest].damaged:
                return None
            found.blobs[digest] = trio.current_time()
        return self._here(digest)

    def _here(self, digest: Digest) -> BlobHere:
        return BlobHere(self.blobs[digest].metainfo.ref, self.blobs[digest].object)

    async def named_blob(self, digest: Digest) -> BlobHere | None:
        return None if await self.metainfo(digest) is None else self._here(digest)

    async def holder(self, digest: Digest) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.blobs[digest].object if digest in self.blobs else None

    async def metainfo(self, digest: Digest) -> Metainfo | None:
        await trio.lowlevel.checkpoint()
        stored = (stored for repository in self.content.values() for stored in repository.manifests.values())
        return self.blobs[digest].metainfo if any(digest in one.blobs for one in stored) else None

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        await trio.lowlevel.checkpoint()
        found: dict[Digest, Naming] = {}
        for digest in digests:
            of = {
                name: repository.private
                for name, repository in self.content.items()
                if any(digest in one.blobs for one in repository.manifests.values())
            }
            if of:
                public = not all(of.values())
                found[digest] = Naming(public, () if public else tuple(of))
        return found

    async def put_manifest(
        self, repository: str, manifest: NewManifest, tags: Sequence[str], sign: Sign, by: By
    ) -> ManifestRecord:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository, Repository(private=self._private))
        blobs, children = list(dict.fromkeys(manifest.blobs)), list(dict.fromkeys(manifest.manifests))
        missing = [str(digest) for digest in blobs if digest not in found.blobs]
        missing += [str(digest) for digest in children if digest not in found.manifests]
        if missing:
            raise RequestError(
                "MANIFEST_BLOB_UNKNOWN",
                "the manifest refers to content that this repository does not have",
                detail={"digests": missing},
            )
        for tag in sorted(self.policies.covered(repository, tags)):
            if found.tags.get(tag, manifest.digest) != manifest.digest:
                raise never_moves(repository, tag)
        claim = sign([self.blobs[digest].metainfo.ref for digest in blobs])
        before = found.manifests.get(manifest.digest)
        media_type = manifest.media_type if before is None else before.record.media_type
        record = ManifestRecord(manifest.digest, media_type, manifest.body, claim)
        self._claims += 1
        self._made(repository, found)
        found.manifests[manifest.digest] = StoredManifest(
            record, frozenset(blobs), self._claims, manifest, trio.current_time()
        )
        left = {found.tags[tag] for tag in tags if tag in found.tags} - {manifest.digest}
        found.untagged.update(dict.fromkeys(left, trio.current_time()))
        moved = [tag for tag in tags if found.tags.get(tag) != manifest.digest]
        found.tags.update(dict.fromkeys(tags, manifest.digest))
        for tag in dict.fromkeys(moved):
            self.changes.note("tag", repository, tag)
        found.pushed.update(dict.fromkeys(tags, trio.current_time()))
        self.written.append((by, "manifest.push", repository))
        return record

    async def manifest(self, repository: str, reference: str | Digest) -> ManifestRecord | None:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None:
            return None
        digest = reference if isinstance(reference, Digest) else found.tags.get(reference)
        stored = None if digest is None else found.manifests.get(digest)
        return None if stored is None else stored.record

    async def claims_for_blob(self, repository: str, digest: Digest) -> list[str]:
        await trio.lowlevel.checkpoint()
        manifests = self._open_manifests(repository)
        naming = sorted((one for one in manifests if digest in one.blobs), key=lambda one: -one.number)
        return [one.record.claim for one in naming[:3]]

    def _open_manifests(self, repository: str) -> list[StoredManifest]:
        found = self.content.get(repository)
        return [] if found is None else list(found.manifests.values())

    async def resolve(self, repository: str, reference: str | Digest) -> Resolved | None:
        record = await self.manifest(repository, reference)
        if record is None:
            return None
        standing, now = self._standing(repository), self.changes.now.stamp
        if isinstance(reference, Digest):
            return Resolved(record, standing, None, now)
        number = self.changes.number("tag", repository, reference)
        return Resolved(record, standing, max(standing.stamp, Stamp(now.epoch, number)), now)

    def _standing(self, repository: str) -> Standing:
        number = self.changes.number("repository", repository)
        return Standing(self.content[repository].private, Stamp(self.changes.now.epoch, number))

    async def standings(self, repositories: Sequence[str]) -> dict[str, Standing]:
        await trio.lowlevel.checkpoint()
        return {name: self._standing(name) for name in repositories if name in self.content}

    async def manifest_anywhere(self, digest: Digest, may: Callable[[str, bool], bool]) -> list[Placed]:
        await trio.lowlevel.checkpoint()
        places = [(name, found) for name, found in self.content.items() if digest in found.manifests]
        places.sort(key=lambda place: -place[1].manifests[digest].number)
        return [
            Placed(name, self._standing(name), found.manifests[digest].record)
            for name, found in places
            if may(name, found.private)
        ][:20]

    async def tags(self, repository: str, *, after: str = "", limit: int = 1000) -> list[str]:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None:
            raise no_repository(repository)
        return sorted(tag for tag in found.tags if tag > after)[: max(0, limit)]

    async def repositories(self, *, after: str = "", limit: int = 1000, visible: Visible | None = None) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(name for name in self.content if name > after and self._seen(name, visible))[: max(0, limit)]

    def _seen(self, name: str, visible: Visible | None) -> bool:
        return visible is None or visible.admits(name, self.content[name].private)

    async def repositories_with_blob(
        self, digest: Digest, limit: int = 20, *, visible: Visible | None = None
    ) -> list[str]:
        await trio.lowlevel.checkpoint()
        named = (
            name for name, found in self.content.items() if any(digest in m.blobs for m in found.manifests.values())
        )
        return sorted(name for name in named if self._seen(name, visible))[: max(0, limit)]

    async def visibility(self, repository: str) -> bool | None:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        return None if found is None else found.private

    async def set_visibility(self, repository: str, private: bool, by: By) -> None:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None:
            raise no_repository(repository)
        if found.private != private:
            found.private = private
            self.changes.note("repository", repository, was_public=private)
            self.written.append((by, "repository.visibility", repository))

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None = None,
        after: Digest | None = None,
        limit: int,
    ) -> list[Referrer]:
        await trio.lowlevel.checkpoint()
        found = [
            Referrer(
                one.record.digest,
                one.record.media_type,
                len(one.record.body),
                one.pushed.artifact_type,
                one.pushed.annotations,
            )
            for one in self._open_manifests(repository)
            if one.pushed.subject == subject
        ]
        found = [one for one in found if artifact_type is None or one.artifact_type == artifact_type]
        found.sort(key=lambda one: digest_key(one.digest))
        later = [one for one in found if after is None or digest_key(one.digest) > digest_key(after)]
        return later[: max(0, limit)]

    def _refuse_immutable(self, repository: str, tags: Sequence[str]) -> None:
        for tag in sorted(self.policies.covered(repository, tags)):
            raise never_moves(repository, tag)

    async def delete_tag(self, repository: str, tag: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None or tag not in found.tags:
            return False
        self._refuse_immutable(repository, [tag])
        found.untagged[found.tags.pop(tag)] = trio.current_time()
        self.changes.note("tag", repository, tag)
        self.written.append((by, "tag.delete", repository))
        return True

    async def delete_manifest(self, repository: str, digest: Digest, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None or digest not in found.manifests:
            return False
        tags = [tag for tag, target in found.tags.items() if target == digest]
        self._refuse_immutable(repository, tags)
        del found.manifests[digest]
        for tag in tags:
            del found.tags[tag]
            self.changes.note("tag", repository, tag)
        self.written.append((by, "manifest.delete", repository))
        return True

    async def delete_blob(self, repository: str, digest: Digest, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None or digest not in found.blobs:
            return False
        if any(digest in one.blobs for one in found.manifests.values()):
            raise still_referred_to(digest)
        del found.blobs[digest]
        self.written.append((by, "blob.delete", repository))
        return True

    async def delete_repository(self, repository: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.content.get(repository)
        if found is None:
            return False
        self._refuse_immutable(repository, list(found.tags))
        del self.content[repository]
        self.changes.note("repository", repository, gone=True, was_public=not found.private)
        self.written.append((by, "repository.delete", repository))
        return True

    def names_in(self, namespace: str) -> list[str]:
        """Its repositories, for those who rename or delete an account."""
        return sorted(name for name in self.content if namespace_of(name) == namespace)

    def rename_namespace(
        self, name: str, to: str, resign: Callable[[str, Digest, Sequence[BlobRef]], str] | None
    ) -> None:
        """All repositories of the account ``name`` are ``to``'s now, with claims that name them so."""
        for repository in self.names_in(name):
            after = to + repository[len(name) :]
            found = self.content[after] = self.content.pop(repository)
            self.changes.note("repository", repository, gone=True, was_public=not found.private)
            self.changes.note("repository", after)
            for digest, stored in found.manifests.items():
                blobs = [self.blobs[one].metainfo.ref for one in sorted(stored.blobs, key=str)]
                claim = stored.record.claim if resign is None else resign(after, digest, blobs)
                stored.record = replace(stored.record, claim=claim)
        self.policies.rename_namespace(name, to)
