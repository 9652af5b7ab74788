"""The seam ``Catalog``: what the tracker knows, whichever database keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.trust.records import Stamp
from tracker.catalog.policies import Policies
from tracker.catalog.sessions import Lease, Sessions
from tracker.catalog.trail import By
from tracker.catalog.visible import Visible


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest as it was pushed: exact bytes, media type, and the claim (a PASETO) that was signed for it."""

    digest: Digest
    media_type: str
    body: bytes
    claim: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a repository is private, and the change with which that came."""

    private: bool
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Resolved:
    """A manifest of a repository; ``tag``: the change with which the tag it was asked for by came to point there;
    ``as_of``: the last change that there was when it was read, so that every later one is news."""

    manifest: ManifestRecord
    standing: Standing
    tag: Stamp | None
    as_of: Stamp


@dataclass(frozen=True, slots=True)
class Placed:
    """A manifest in one of the repositories that have it."""

    repository: str
    standing: Standing
    manifest: ManifestRecord


@dataclass(frozen=True, slots=True)
class Naming:
    """Whose claims name a blob: some public repository's, or only those of these private ones (MANY at most)."""

    public: bool
    private: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewManifest:
    """A manifest on its way in. ``blobs`` and ``manifests`` are what it refers to and must be in the repository:
    neither foreign layers nor a subject. The claim names the blobs.

    ``subject``: the manifest that this one is about, there or not. ``artifact_type`` and ``annotations`` are what the
    list of its referrers says of this one."""

    digest: Digest
    media_type: str
    body: bytes
    blobs: tuple[Digest, ...]
    manifests: tuple[Digest, ...]
    subject: Digest | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class BlobHere:
    """A blob and the object of the object store that holds its bytes."""

    ref: BlobRef
    object: str


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose subject is another; ``size`` in bytes."""

    digest: Digest
    media_type: str
    size: int
    artifact_type: str | None
    annotations: Mapping[str, str] | None


def still_referred_to(digest: Digest) -> RequestError:
    """The refusal of ``delete_blob``."""
    return RequestError(
        "UNSUPPORTED",
        "a manifest of this repository refers to this blob; delete the manifest first",
        status=405,
        detail={"digest": str(digest)},
    )


def no_repository(repository: str) -> NotFound:
    """That there is none of this name."""
    return NotFound("NAME_UNKNOWN", "no such repository", detail={"name": repository})


#: Signs a claim for a manifest; called with the blobs it may name, in the order of the manifest, without duplicates.
Sign = Callable[[Sequence[BlobRef]], str]


#: Repositories with the same content that are looked at to find one that somebody may pull.
MANY: Final = 1000
#: Seconds for which a blob that was touched is not touched again: what its grace may fall short of.
TOUCH: Final = 60


class Catalog(Protocol):
    """Everything is per repository: a blob is visible in a repository only if it was pushed or mounted there. A new
    repository is private or public as the catalog was told when it was made.

    Each method is one transaction. Concurrent calls for the same thing both succeed; the first push to a repository
    creates it. A failed database raises LocalError.
    """

    @property
    def sessions(self) -> Sessions:
        """Uploads that have begun."""

    @property
    def policies(self) -> Policies:
        """Quotas and immutable tags."""

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
        """The bytes of ``blob`` are in the object ``name``: record it, put it in ``repository`` and end ``upload``.
        Repeating is no error. Gives the object that holds the blob from now on.

        If another one does already it is kept, and ``name`` is condemned; unless its bytes are known to be damaged, or
        are ``lost``, as the caller has found: then that one is condemned. Raises NotFound (BLOB_UPLOAD_UNKNOWN) if the
        upload's lease is lost and the repository has no such blob, and QuotaExceeded.
        """

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, by: By, *, visible: Visible | None = None
    ) -> BlobRef | None:
        """Put a blob of ``source`` (None: of any repository) in ``repository``; None if it is not there, or only in
        repositories that are not ``visible``: who pushes gets nothing that he may not pull. Raises QuotaExceeded."""

    async def blob(self, repository: str, digest: Digest, *, renew: bool = False) -> BlobHere | None:
        """A blob of this repository, or None. ``renew``: the answer is a promise that the blob stays for the grace
        time, because the client will not push it; None if its bytes are known to be damaged, so that it does."""

    async def named_blob(self, digest: Digest) -> BlobHere | None:
        """A blob of any repository that some manifest's claim names, for the peer API; else None."""

    async def holder(self, digest: Digest) -> str | None:
        """The object that holds the blob, in whichever repositories it is."""

    async def metainfo(self, digest: Digest) -> Metainfo | None:
        """The piece table of any blob that some manifest's claim names, for the peer API; else None."""

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        """Those of ``digests`` that some manifest's claim names, with whose claims they are."""

    async def put_manifest(
        self, repository: str, manifest: NewManifest, tags: Sequence[str], sign: Sign, by: By
    ) -> ManifestRecord:
        """Store the manifest byte for byte and move ``tags`` to it.

        Raises RequestError (MANIFEST_BLOB_UNKNOWN, status 404, detail naming the digests) if the repository lacks
        something it refers to. Storing the same bytes again keeps the record and moves the tags; the claim is signed
        anew, because blobs may have been added since. Raises RequestError (DENIED) if an immutable tag would move.
        """

    async def manifest(self, repository: str, reference: str | Digest) -> ManifestRecord | None:
        """By tag (str) or by digest."""

    async def claims_for_blob(self, repository: str, digest: Digest) -> list[str]:
        """Up to 3 claims of manifests of this repository that name the blob, newest first."""

    async def resolve(self, repository: str, reference: str | Digest) -> Resolved | None:
        """As ``manifest``, with what the signed records say of tag and repository; all of one moment."""

    async def standings(self, repositories: Sequence[str]) -> dict[str, Standing]:
        """Of those of ``repositories`` that exist."""

    async def manifest_anywhere(self, digest: Digest, may: Callable[[str, bool], bool]) -> list[Placed]:
        """The manifest in the repositories that have it (same bytes, one claim each), newest claim first, at most 20;
        for the peer API. Only where ``may`` says so of the repository and whether it is private; it is called in
        another thread."""

    async def tags(self, repository: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """Tags in ASCII order, those greater than ``after``. Raises NotFound (NAME_UNKNOWN)."""

    async def repositories(self, *, after: str = "", limit: int = 1000, visible: Visible | None = None) -> list[str]:
        """Names of repositories in ASCII order, those greater than ``after``, and only those that are ``visible``."""

    async def repositories_with_blob(
        self, digest: Digest, limit: int = 20, *, visible: Visible | None = None
    ) -> list[str]:
        """Repositories with a manifest whose claim names the blob, in ASCII order, and only those that are
        ``visible``: a blob may be in more than could be looked at one by one."""

    async def visibility(self, repository: str) -> bool | None:
        """Whether it is private; None if there is no such repository."""

    async def set_visibility(self, repository: str, private: bool, by: By) -> None:
        """Make it private or public. Raises NotFound (NAME_UNKNOWN)."""

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None = None,
        after: Digest | None = None,
        limit: int,
    ) -> list[Referrer]:
        """Manifests of this repository whose subject is ``subject``, by digest; of one artifact type, if one is given.
        Of a repository that does not exist: none."""

    async def delete_tag(self, repository: str, tag: str, by: By) -> bool:
        """Remove a tag; the manifest stays. False if it is not there. Raises RequestError (DENIED) if it is
        immutable."""

    async def delete_manifest(self, repository: str, digest: Digest, by: By) -> bool:
        """Remove a manifest from this repository, with its tags. An index that refers to it stays, with a hole. False
        if it is not there. Raises RequestError (DENIED) if one of its tags is immutable."""

    async def delete_blob(self, repository: str, digest: Digest, by: By) -> bool:
        """Remove a blob from this repository. False if it is not there.

        Raises RequestError (UNSUPPORTED, status 405) while a manifest of the repository refers to it."""

    async def delete_repository(self, repository: str, by: By) -> bool:
        """Remove it with its tags, manifests and links to blobs. False if it is not there. Raises RequestError (DENIED)
        if one of its tags is immutable."""
