"""What a tag means and which repository holds a blob, for a node: from its index, the tracker or peers.

A tag is fresh for ``max_age`` after the tracker confirmed it; then the tracker is asked; where that fails, the last
known answer goes out with a Warning, up to ``max_stale``. Manifests by digest never change, so what is in the index is
good for ever; a missing one comes from the tracker or, with the tracker away, from any peer that provides it.

Nothing is believed without the tracker's signature, whoever it came from: not that a manifest is in a repository, not
where a tag points, not that a repository is public; and of two records the one with the higher stamp holds. What this
node may not pull does not exist for its clients, whether it is here or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteError, Unreachable
from p2pregistry.messages import MOST_NAMES
from p2pregistry.observe import logger
from p2pregistry.routing.base import Peer, Router
from p2pregistry.sources.peer import PeerSource, RemoteManifest
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.spool import again
from p2pregistry.store.records import StoredManifest, TagRecord
from p2pregistry.trusting import Trust
from p2pregistry.visible import Visible, newer_tag

#: Seconds that finding a manifest among peers may take.
PEER_TIMEOUT = 5.0
_log = logger(__name__)


class Records(Protocol):
    """The part of the index that is used here."""

    def tag(self, repository: str, tag: str) -> TagRecord | None: ...
    def tags(self, repository: str) -> list[str]: ...
    def manifest(self, digest: Digest) -> StoredManifest | None: ...
    def claims(self, repository: str, digest: Digest) -> list[str]: ...
    def claimed(self, repository: str, digest: Digest) -> BlobRef | None: ...
    async def put_tag(self, repository: str, tag: str, record: TagRecord) -> None: ...
    async def put_manifest(
        self, repository: str, manifest: StoredManifest, claim: str | None, blobs: Sequence[BlobRef]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest to serve; ``warning`` is set where it may be out of date.

    Until ``until`` (unix seconds) the same question has the same answer, without asking again; 0 where it has not.
    """

    manifest: StoredManifest
    warning: str | None = None
    until: float = 0.0


class _Asking:
    """A question to the tracker that is under way, and what became of it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: Found | None = None
        self.failure: RegistryError | None = None


class Resolver:
    """Answers for tags, manifests and descriptors."""

    def __init__(
        self,
        records: Records,
        trust: Trust,
        visible: Visible,
        tracker: TrackerSource | None,
        router: Router,
        *,
        clock: Callable[[], float],
        max_age: float,
        max_stale: float | None,
        learnt: Callable[[str, StoredManifest, Sequence[BlobRef]], None] = lambda _repository, _manifest, _blobs: None,
        plain: bool = True,
        speaker: Speaker | None = None,
    ) -> None:
        """``plain``: whether peers are asked in the clear; ``speaker``: shows them who this node is."""
        self._records, self._trust, self._tracker, self._router = records, trust, tracker, router
        self._visible = visible
        self._clock, self._max_age, self._max_stale, self._learnt = clock, max_age, max_stale, learnt
        self._asking: dict[tuple[str, str], _Asking] = {}
        self._plain, self._speaker = plain, speaker

    async def manifest(self, repository: str, reference: str | Digest) -> Found:
        """The manifest behind a tag or digest. Raises NotFound (MANIFEST_UNKNOWN) or RemoteError."""
        if isinstance(reference, Digest):
            return Found(await self._by_digest(repository, reference), until=self._clock() + self._max_age)
        key = (repository, reference)
        while True:
            record = self._records.tag(repository, reference)
            fresh = record is not None and 0 <= self._clock() - record.seen < self._max_age
            if fresh and record is not None and record.digest is not None and self._visible.here(repository):
                return Found(await self._by_digest(repository, record.digest), until=record.seen + self._max_age)
            asking = self._asking.get(key)
            if asking is None:
                return await self._ask_once(key, record)
            await asking.done.wait()
            if asking.failure is not None:
                raise again(asking.failure)
            if asking.found is not None:
                return asking.found
            # whoever asked has left without an answer: look again

    async def _ask_once(self, key: tuple[str, str], record: TagRecord | None) -> Found:
        """Ask the tracker for a tag; all who want it meanwhile wait for this one answer."""
        asking = self._asking[key] = _Asking()
        try:
            asking.found = await self._ask_tracker(*key, record)
        except RegistryError as err:
            asking.failure = err
            raise
        finally:
            del self._asking[key]
            asking.done.set()
        return asking.found

    async def _ask_tracker(self, repository: str, tag: str, record: TagRecord | None) -> Found:
        try:
            remote = await self._resolve(repository, tag)
        except NotFound:
            await self._gone(repository, tag, record)
            raise
        except RemoteError as err:
            return await self._last_known(repository, record, err)
        stored = await self._take_from_tracker(repository, remote)
        found = await self._tag(repository, tag, remote, record)
        if not self._visible.here(repository):
            raise no_manifest()
        return Found(stored, until=found.seen + self._max_age)

    async def _resolve(self, repository: str, reference: str | Digest) -> RemoteManifest:
        if self._tracker is None:
            raise Unreachable("this node has no tracker")
        try:
            return await self._tracker.resolve(repository, reference)
        except NotFound:
            await self._doubt(repository)
            raise

    async def _tag(self, repository: str, tag: str, remote: RemoteManifest, known: TagRecord | None) -> TagRecord:
        """Keep where the tag points, as the tracker says now. Raises BadContent unless it signed that."""
        seen = self._clock()
        if known is not None and known.token == remote.tag and known.digest == remote.digest:
            found = TagRecord(known.digest, seen, known.stamp, known.token)  # verified when it first came
        else:
            claim = await self._trust.tag(remote.tag)
            if (claim.repository, claim.tag, claim.digest) != (repository, tag, remote.digest):
                raise BadContent("the record of a tag is another's")
            found = newer_tag(known, TagRecord(claim.digest, seen, claim.stamp, remote.tag), confirmed=True)
        await self._records.put_tag(repository, tag, found)
        return found

    async def _gone(self, repository: str, tag: str, known: TagRecord | None) -> None:
        """The tag points nowhere; its stamp is kept, so that no older record of it counts later."""
        if known is not None and known.digest is not None:
            await self._records.put_tag(repository, tag, TagRecord(None, self._clock(), known.stamp, known.token))

    async def _last_known(self, repository: str, record: TagRecord | None, err: RegistryError) -> Found:
        if record is None or record.digest is None or not self._visible.here(repository):
            raise Unreachable("the tag is not known here and the tracker does not answer") from err
        age = max(0.0, self._clock() - record.seen)
        if self._max_stale is not None and age > self._max_stale:
            raise Unreachable(f"the tag was last confirmed {age:.0f} s ago and the tracker does not answer") from err
        manifest = await self._by_digest(repository, record.digest)
        return Found(manifest, f"the tracker does not answer; this tag was last confirmed {age:.0f} seconds ago")

    async def _by_digest(self, repository: str, digest: Digest) -> StoredManifest:
        stored = self._records.manifest(digest)
        if stored is not None and self._visible.here(repository) and self._records.claims(repository, digest):
            return stored
        try:
            stored = await self._take_from_tracker(repository, await self._resolve(repository, digest))
        except RemoteError as err:
            stored = await self._from_peers(repository, digest, err)
        if not self._visible.here(repository):
            raise no_manifest()
        return stored

    async def _from_peers(self, repository: str, digest: Digest, failure: RegistryError) -> StoredManifest:
        found: list[StoredManifest] = []
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + PEER_TIMEOUT

            async def ask(peer: Peer) -> None:
                try:
                    with closing(
                        PeerSource(peer.peer_id, peer.url, plain=self._plain, speaker=self._speaker)
                    ) as source:
                        found.append(await self._take_from_peer(repository, await source.manifest(digest)))
                    nursery.cancel_scope.cancel()
                except (RemoteError, NotFound) as err:
                    _log.debug("a peer did not give a manifest", peer=peer.peer_id, why=err.message)

            await self._router.find(digest, lambda peer: nursery.start_soon(ask, peer), limit=4)
        if not found:
            raise Unreachable("the manifest is not here, and neither the tracker nor a peer gave it") from failure
        return found[0]

    async def _take_from_tracker(self, repository: str, remote: RemoteManifest) -> StoredManifest:
        return await self._take(repository, remote, remote.repository, confirmed=True)

    async def _take_from_peer(self, repository: str, remote: RemoteManifest) -> StoredManifest:
        """As ``_take``, with the claims and records of this repository alone."""
        for claim, record in zip(remote.claims, remote.records, strict=False):
            if (await self._trust.claim(claim)).repository == repository:
                return await self._take(repository, replace(remote, claims=(claim,)), record, confirmed=False)
        raise BadContent("a manifest came without a claim for its repository")

    async def _take(self, repository: str, remote: RemoteManifest, record: str, *, confirmed: bool) -> StoredManifest:
        """Keep a manifest that came with a good claim for this repository and its record. Raises BadContent without
        them."""
        await self._take_record(repository, record, confirmed=confirmed)
        stored = StoredManifest(remote.digest, remote.media_type, remote.body)
        if self._records.manifest(remote.digest) == stored:
            known = self._records.claims(repository, remote.digest)
            if any(token in known for token in remote.claims):
                return stored  # verified and written when it first came
        for token in remote.claims:
            claim = await self._trust.claim(token)
            if claim.repository == repository and claim.manifest == remote.digest:
                await self._records.put_manifest(repository, stored, token, claim.blobs)
                self._learnt(repository, stored, claim.blobs)
                return stored
        raise BadContent("a manifest came without a claim for its repository")

    # --------------------------------------------------------------------------------------------------- repositories

    async def _take_record(self, repository: str, token: str, *, confirmed: bool) -> None:
        """Keep whether a repository is private. Raises BadContent unless the tracker signed that."""
        if self._visible.knows(repository, token):
            return
        claim = await self._trust.repository(token)
        if claim.repository != repository:
            raise BadContent("the record of a repository is another's")
        await self._visible.take(claim, token, confirmed=confirmed)

    async def _doubt(self, repository: str) -> None:
        """The tracker does not have something: perhaps the whole repository is not there, or not for this node."""
        if self._visible.here(repository):
            await self.confirm([repository])

    async def confirm(self, repositories: Sequence[str]) -> None:
        """Ask the tracker for the records of these repositories. What it does not give is hidden from now on; where it
        does not answer, all stays as it is."""
        if self._tracker is None:
            return
        for first in range(0, len(repositories), MOST_NAMES):
            asked = repositories[first : first + MOST_NAMES]
            try:
                tokens = await self._tracker.records(asked)
                for repository in set(asked) - await self._confirmed(tokens):
                    await self._visible.hide(repository)
            except (RemoteError, NotFound) as err:
                _log.debug("the tracker did not confirm whose content is whose", why=err.message)

    async def _confirmed(self, tokens: Sequence[str]) -> set[str]:
        """Take records as the tracker gave them; the repositories that they are of. Raises BadContent."""
        found: set[str] = set()
        for token in tokens:
            claim = await self._trust.repository(token)
            if not self._visible.knows(claim.repository, token):
                await self._visible.take(claim, token, confirmed=True)
            found.add(claim.repository)
        return found

    async def public(self, repository: str) -> bool:
        """Whether anybody at all may pull the repository; the tracker is asked where nothing is known of it."""
        if not self._visible.public(repository):
            await self.confirm([repository])
        return self._visible.public(repository)

    # --------------------------------------------------------------------------------------------------- blobs, tags

    async def blob(self, repository: str, digest: Digest) -> BlobRef:
        """What the repository's claims say of a blob. Raises NotFound (BLOB_UNKNOWN) or RemoteError."""
        ref = self._records.claimed(repository, digest)
        if ref is not None and self._visible.here(repository):
            return ref
        if self._tracker is None:
            raise no_blob()
        try:
            answer = await self._tracker.blob_claims(repository, digest)
        except NotFound:
            await self._doubt(repository)
            raise
        await self._take_record(repository, answer.repository, confirmed=True)
        for token in answer.claims:
            claim = await self._trust.claim(token)
            ref = claim.blob(digest)
            if claim.repository == repository and ref is not None and self._visible.here(repository):
                return ref
        raise no_blob()

    async def tags(self, repository: str, after: str, limit: int) -> tuple[list[str], str | None]:
        """Tags greater than ``after``; a warning if they are only those known here. Raises NotFound, RemoteError."""
        try:
            if self._tracker is None:
                raise Unreachable("this node has no tracker")
            answer = await self._tracker.tags(repository, after, limit)
            await self._take_record(repository, answer.repository, confirmed=True)
        except NotFound:
            await self._doubt(repository)
            raise
        except RemoteError as err:
            here = self._visible.here(repository)
            known = [tag for tag in self._records.tags(repository) if tag > after][:limit] if here else []
            if not known and (not after or not here):
                raise Unreachable("the tags are not known here and the tracker does not answer") from err
            return known, "the tracker does not answer; these are the tags that this node knows"
        if not self._visible.here(repository):
            raise no_repository()
        return answer.tags, None


def no_manifest() -> NotFound:
    """What there is not, or not for this node or this client: all the same."""
    return NotFound("MANIFEST_UNKNOWN", "the manifest is not known to the tracker")


def no_blob() -> NotFound:
    """See no_manifest."""
    return NotFound("BLOB_UNKNOWN", "the blob is not known to the tracker")


def no_repository() -> NotFound:
    """See no_manifest."""
    return NotFound("NAME_UNKNOWN", "the repository is not known to the tracker")
