"""The catalog in memory: for tests and simulations, and the plainest statement of what a catalog does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.base import ManifestRecord, NewManifest, Referrer, Sign, still_referred_to
from tracker.catalog.keys import digest_key
from tracker.catalog.trail import By


@dataclass(slots=True)
class _Stored:
    record: ManifestRecord
    blobs: frozenset[Digest]
    number: int
    pushed: NewManifest


@dataclass(slots=True)
class _Repository:
    blobs: set[Digest] = field(default_factory=set)
    manifests: dict[Digest, _Stored] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class MemoryCatalog:
    """``Catalog`` without a database. Each method is a checkpoint and otherwise atomic."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, Metainfo] = {}
        self._repositories: dict[str, _Repository] = {}
        self._claims = 0
        #: who did what, where: the actions of the audit log
        self.written: list[tuple[By, str, str]] = []

    def _open(self, repository: str) -> _Repository:
        return self._repositories.setdefault(repository, _Repository())

    async def add_blob(self, repository: str, blob: Metainfo) -> None:
        await trio.lowlevel.checkpoint()
        self._blobs.setdefault(blob.digest, blob)
        self._open(repository).blobs.add(blob.digest)

    async def mount_blob(self, repository: str, digest: Digest, source: str | None) -> BlobRef | None:
        await trio.lowlevel.checkpoint()
        sources = self._repositories.items() if source is None else [(source, self._repositories.get(source))]
        if not any(found is not None and digest in found.blobs for _, found in sources):
            return None
        self._open(repository).blobs.add(digest)
        return self._blobs[digest].ref

    async def blob(self, repository: str, digest: Digest) -> BlobRef | None:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
        return self._blobs[digest].ref if found is not None and digest in found.blobs else None

    async def metainfo(self, digest: Digest) -> Metainfo | None:
        await trio.lowlevel.checkpoint()
        stored = (stored for repository in self._repositories.values() for stored in repository.manifests.values())
        return self._blobs[digest] if any(digest in one.blobs for one in stored) else None

    async def named(self, digests: Sequence[Digest]) -> set[Digest]:
        return {digest for digest in digests if await self.metainfo(digest) is not None}

    async def put_manifest(
        self, repository: str, manifest: NewManifest, tags: Sequence[str], sign: Sign
    ) -> ManifestRecord:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository, _Repository())
        blobs, children = list(dict.fromkeys(manifest.blobs)), list(dict.fromkeys(manifest.manifests))
        missing = [str(digest) for digest in blobs if digest not in found.blobs]
        missing += [str(digest) for digest in children if digest not in found.manifests]
        if missing:
            raise RequestError(
                "MANIFEST_BLOB_UNKNOWN",
                "the manifest refers to content that this repository does not have",
                detail={"digests": missing},
            )
        claim = sign([self._blobs[digest].ref for digest in blobs])
        before = found.manifests.get(manifest.digest)
        media_type = manifest.media_type if before is None else before.record.media_type
        record = ManifestRecord(manifest.digest, media_type, manifest.body, claim)
        self._claims += 1
        self._repositories[repository] = found
        found.manifests[manifest.digest] = _Stored(record, frozenset(blobs), self._claims, manifest)
        found.tags.update(dict.fromkeys(tags, manifest.digest))
        return record

    async def manifest(self, repository: str, reference: str | Digest) -> ManifestRecord | None:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
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

    def _open_manifests(self, repository: str) -> list[_Stored]:
        found = self._repositories.get(repository)
        return [] if found is None else list(found.manifests.values())

    async def manifest_anywhere(self, digest: Digest) -> list[ManifestRecord]:
        await trio.lowlevel.checkpoint()
        stored = [found.manifests[digest] for found in self._repositories.values() if digest in found.manifests]
        return [one.record for one in sorted(stored, key=lambda one: -one.number)[:20]]

    async def tags(self, repository: str, *, after: str = "", limit: int = 1000) -> list[str]:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
        if found is None:
            raise NotFound("NAME_UNKNOWN", "no such repository", detail={"name": repository})
        return sorted(tag for tag in found.tags if tag > after)[: max(0, limit)]

    async def repositories(self, *, after: str = "", limit: int = 1000) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(name for name in self._repositories if name > after)[: max(0, limit)]

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

    async def delete_tag(self, repository: str, tag: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
        if found is None or found.tags.pop(tag, None) is None:
            return False
        self.written.append((by, "tag.delete", repository))
        return True

    async def delete_manifest(self, repository: str, digest: Digest, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
        if found is None or found.manifests.pop(digest, None) is None:
            return False
        found.tags = {tag: target for tag, target in found.tags.items() if target != digest}
        self.written.append((by, "manifest.delete", repository))
        return True

    async def delete_blob(self, repository: str, digest: Digest, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        found = self._repositories.get(repository)
        if found is None or digest not in found.blobs:
            return False
        if any(digest in one.blobs for one in found.manifests.values()):
            raise still_referred_to(digest)
        found.blobs.discard(digest)
        self.written.append((by, "blob.delete", repository))
        return True
