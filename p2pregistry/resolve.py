"""What a tag means and which repository holds a blob, for a node: from its index, the tracker or peers.

While the tracker's changes are followed, the tags that they cover are served from the index without a question. Else a
tag is fresh for ``max_age`` after it was last confirmed; then the tracker is asked; where that fails, the last known
answer goes out with a Warning, up to ``max_stale``, and of a tag that is not known here the newest record that a peer
has, up to ``peer_stale``. Manifests by digest never change, so what is in the index is good for ever; a missing one
comes from the tracker or, with the tracker away, from any peer that provides it.

Nothing is believed without the tracker's signature, whoever it came from: not that a manifest is in a repository, not
where a tag points, not that a repository is public; and of two records the one with the higher stamp holds. What this
node may not pull does not exist for its clients, whether it is here or not.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteError, RequestError, Unreachable
from p2pregistry.messages import MOST_NAMES
from p2pregistry.observe import logger, stale_answers
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.routing.base import Peer, Router
from p2pregistry.sources.peer import PeerSource, RemoteManifest, RemoteTag
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.spool import again
from p2pregistry.store.records import StoredManifest, TagRecord
from p2pregistry.trust.records import TagClaim
from p2pregistry.trusting import Trust
from p2pregistry.visible import OlderRecord, Visible, newer_tag

#: Seconds that finding a manifest, or the record of a tag, among peers may take.
PEER_TIMEOUT = 5.0
#: Peers that are asked for the record of a tag, and the seconds that the others have once one has answered.
ASKED = 8
OTHERS = 1.0
#: Seconds for which an answer is kept ready while changes are followed, if nothing is heard of the tag.
LIVE_FOR = 60.0
_log = logger(__name__)


class Records(Protocol):
    """The part of the index that is used here."""

    def tag(self, repository: str, tag: str) -> TagRecord | None: ...
    def tags(self, repository: str) -> list[str]: ...
    def manifest(self, digest: Digest) -> StoredManifest | None: ...
    def claims(self, repository: str, digest: Digest) -> list[str]: ...
    def claimed(self, repository: str, digest: Digest) -> BlobRef | None: ...
    async def put_tag(self, repository: str, tag: str, record: TagRecord) -> TagRecord: ...
    async def put_manifest(
        self, repository: str, manifest: StoredManifest, claim: str | None, blobs: Sequence[BlobRef]
    ) -> None: ...


class Feed(Protocol):
    """What follows the tracker's changes; see feed.follow.Follower."""

    def live(self, repository: str, tag: str) -> bool: ...
    def confirmed(self, repository: str, tag: str) -> float: ...
    def use(self, repository: str) -> None: ...
    def moment(self) -> int: ...
    def went_since(self, repository: str, moment: int) -> bool: ...


class NoFeed:
    """Nothing is followed."""

    def live(self, repository: str, tag: str) -> bool:  # noqa: ARG002
        """See Feed."""
        return False

    def confirmed(self, repository: str, tag: str) -> float:  # noqa: ARG002
        """See Feed."""
        return 0.0

    def use(self, repository: str) -> None:
        """See Feed."""

    def moment(self) -> int:
        """See Feed."""
        return 0

    def went_since(self, repository: str, moment: int) -> bool:  # noqa: ARG002
        """See Feed."""
        return False


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
        peer_stale: float | None = None,
        feed: Feed | None = None,
        learnt: Callable[[str, StoredManifest, Sequence[BlobRef]], None] = lambda _repository, _manifest, _blobs: None,
        from_ipfs: Callable[[str, Digest], Awaitable[bytes]] | None = None,
        plain: bool = True,
        speaker: Speaker | None = None,
    ) -> None:
        """``max_stale`` and ``peer_stale``: seconds, None: for ever. ``plain``: whether peers are asked in the clear;
        ``speaker``: shows them who this node is; ``from_ipfs``: the bytes of a manifest, for its repository, where
        nobody else gives them."""
        self._records, self._trust, self._tracker, self._router = records, trust, tracker, router
        self._visible = visible
        self._clock, self._max_age, self._max_stale, self._learnt = clock, max_age, max_stale, learnt
        self._peer_stale = peer_stale
        self._feed: Feed = NoFeed() if feed is None else feed
        self._asking: dict[tuple[str, str], _Asking] = {}
        self._plain, self._speaker, self._ipfs = plain, speaker, from_ipfs

    async def manifest(self, repository: str, reference: str | Digest) -> Found:
        """The manifest behind a tag or digest. Raises NotFound (MANIFEST_UNKNOWN) or RemoteError."""
        if isinstance(reference, Digest):
            return Found(await self._by_digest(repository, reference), until=self._clock() + self._max_age)
        key = (repository, reference)
        self._feed.use(repository)
        while True:
            record = self._records.tag(repository, reference)
            until = self._good_until(repository, reference, record)
            if record is not None and record.digest is not None and until > 0 and self._visible.here(repository):
                return Found(await self._by_digest(repository, record.digest), until=until)
            asking = self._asking.get(key)
            if asking is None:
                return await self._ask_once(key, record)
            await asking.done.wait()
            if asking.failure is not None:
                raise again(asking.failure)
            if asking.found is not None:
                return asking.found
            # whoever asked has left without an answer: look again

    def _good_until(self, repository: str, tag: str, record: TagRecord | None) -> float:
        """Until when (unix seconds) what is known of the tag is good without a question; 0: it is not."""
        if record is None:
            return 0.0
        now = self._clock()
        if self._feed.live(repository, tag):
            return now + LIVE_FOR
        seen = max(record.seen, self._feed.confirmed(repository, tag))
        return seen + self._max_age if 0 <= now - seen < self._max_age else 0.0

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
        moment = self._feed.moment()
        try:
            remote = await self._resolve(repository, tag)
        except NotFound:
            await self._gone(repository, tag, record)
            raise
        except RemoteError as err:
            return await self._without_tracker(repository, tag, record, err)
        stored = await self._take_from_tracker(repository, remote, moment)
        found = await self._tag(repository, tag, remote, record)
        if found.digest is None or not self._visible.here(repository):
            raise no_manifest()
        if found.digest != stored.digest:  # it has moved while this was asked, and the news were faster
            stored = await self._by_digest(repository, found.digest)
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
        """Keep where the tag points, as the tracker says now; what is known then. Raises BadContent unless it signed
        that."""
        seen = self._clock()
        if known is not None and known.token == remote.tag and known.digest == remote.digest:
            found = TagRecord(known.digest, seen, known.stamp, known.token)  # verified when it first came
        else:
            claim = await self._trust.tag(remote.tag)
            if (claim.repository, claim.tag, claim.digest) != (repository, tag, remote.digest):
                raise BadContent("the record of a tag is another's")
            found = newer_tag(known, TagRecord(claim.digest, seen, claim.stamp, remote.tag), confirmed=True)
        return await self._records.put_tag(repository, tag, found)

    async def _gone(self, repository: str, tag: str, known: TagRecord | None) -> None:
        """The tag points nowhere; its stamp is kept, so that no older record of it counts later."""
        if known is not None and known.digest is not None:
            await self._records.put_tag(repository, tag, TagRecord(None, self._clock(), known.stamp, known.token))

    async def _without_tracker(self, repository: str, tag: str, record: TagRecord | None, err: RegistryError) -> Found:
        """What is known of a tag here or, where nothing is, by peers."""
        if record is None or record.digest is None or not self._visible.here(repository):
            return await self._from_neighbours(repository, tag, record, err)
        seen = max(record.seen, self._feed.confirmed(repository, tag))
        age = max(0.0, self._clock() - seen)
        if self._max_stale is not None and age >= self._max_stale:
            raise Unreachable(f"the tag was last confirmed {age:.0f} s ago and the tracker does not answer") from err
        manifest = await self._by_digest(repository, record.digest)
        stale_answers().inc()
        return Found(manifest, f"the tracker does not answer; this tag was last confirmed {age:.0f} seconds ago")

    async def _from_neighbours(self, repository: str, tag: str, record: TagRecord | None, err: RegistryError) -> Found:
        """The newest record of the tag that a peer has. Raises Unreachable."""
        answers = await self._ask_neighbours(repository, tag)
        if answers:
            claim, said, _peer = max(answers, key=lambda answer: (answer[0].stamp, answer[0].issued))
            age = max(0.0, self._trust.now() - claim.issued)
            if self._peer_stale is not None and age >= self._peer_stale:
                raise Unreachable(f"what peers know of the tag is {age:.0f} s old, and the tracker is away") from err
            try:
                await self._take_record(repository, said.repository, None)
                found = newer_tag(record, TagRecord(claim.digest, claim.issued, claim.stamp, said.tag), confirmed=False)
            except RemoteError as bad:  # it may have been the key that the tracker would have to be asked for
                raise Unreachable("what peers know of the tag cannot be believed here") from bad
            if found.digest is None:
                raise no_manifest()
            if self._visible.here(repository):
                there = [peer for known, _said, peer in answers if known.digest == found.digest]
                manifest = await self._by_digest(repository, found.digest, there)
                await self._records.put_tag(repository, tag, found)
                stale_answers().inc()
                return Found(manifest, f"the tracker does not answer; a peer has this tag as of {age:.0f} seconds ago")
        raise Unreachable("the tag is not known here and the tracker does not answer") from err

    async def _ask_neighbours(self, repository: str, tag: str) -> list[tuple[TagClaim, RemoteTag, Peer]]:
        """The records that a few peers have of a tag; who has none for this node is silent."""
        found: list[tuple[TagClaim, RemoteTag, Peer]] = []
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + PEER_TIMEOUT

            async def ask(peer: Peer) -> None:
                try:
                    with closing(self._peer(peer)) as source:
                        said = await source.tag(repository, tag)
                    claim = await self._trust.tag(said.tag)
                except (RemoteError, NotFound) as err:
                    _log.debug("a peer has no record of a tag", peer=peer.peer_id, why=err.message)
                    return
                if (claim.repository, claim.tag) != (repository, tag):
                    return
                found.append((claim, said, peer))
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + OTHERS)

            peers = self._router.peers()
            for peer in random.sample(peers, min(len(peers), ASKED)):
                nursery.start_soon(ask, peer)
        return found

    def _peer(self, peer: Peer) -> PeerSource:
        return PeerSource(peer.peer_id, peer.url, plain=self._plain, speaker=self._speaker)

    async def _by_digest(self, repository: str, digest: Digest, at: Sequence[Peer] = ()) -> StoredManifest:
        """``at``: peers that may have it."""
        stored = self._records.manifest(digest)
        if stored is not None and self._visible.here(repository) and self._records.claims(repository, digest):
            return stored
        moment = self._feed.moment()
        try:
            stored = await self._take_from_tracker(repository, await self._resolve(repository, digest), moment)
        except RemoteError as err:
            try:
                stored = await self._from_peers(repository, digest, at, err)
            except RemoteError as nobody:
                stored = await self._from_ipfs(repository, digest, nobody)
        if not self._visible.here(repository):
            raise no_manifest()
        return stored

    async def _from_peers(
        self, repository: str, digest: Digest, at: Sequence[Peer], failure: RegistryError
    ) -> StoredManifest:
        found: list[StoredManifest] = []
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + PEER_TIMEOUT

            async def ask(peer: Peer) -> None:
                try:
                    with closing(self._peer(peer)) as source:
                        found.append(await self._take_from_peer(repository, await source.manifest(digest)))
                    nursery.cancel_scope.cancel()
                except (RemoteError, NotFound) as err:
                    _log.debug("a peer did not give a manifest", peer=peer.peer_id, why=err.message)

            for peer in at:
                nursery.start_soon(ask, peer)
            await self._router.find(digest, lambda peer: nursery.start_soon(ask, peer), limit=4)
        if not found:
            raise Unreachable("the manifest is not here, and neither the tracker nor a peer gave it") from failure
        return found[0]

    async def _from_ipfs(self, repository: str, digest: Digest, failure: RegistryError) -> StoredManifest:
        """A manifest by the CID that its digest is. It comes without a claim, so one must be here. Raises Unreachable
        without it, or without IPFS."""
        claims = self._records.claims(repository, digest)
        if self._ipfs is None or not claims:
            raise failure
        try:
            body = await self._ipfs(repository, digest)
            media_type = parse_manifest(body).media_type
        except (RemoteError, RequestError) as err:
            raise Unreachable("the manifest is not here, and neither the tracker, a peer nor IPFS gave it") from err
        for token in claims:
            claim = await self._trust.claim(token)
            if claim.repository == repository and claim.manifest == digest:
                stored = StoredManifest(digest, media_type, body)
                await self._records.put_manifest(repository, stored, token, claim.blobs)
                self._learnt(repository, stored, claim.blobs)
                return stored
        raise failure

    async def _take_from_tracker(self, repository: str, remote: RemoteManifest, moment: int) -> StoredManifest:
        """``moment``: of the feed, when the tracker was asked."""
        return await self._take(repository, remote, remote.repository, moment)

    async def _take_from_peer(self, repository: str, remote: RemoteManifest) -> StoredManifest:
        """As ``_take``, with the claims and records of this repository alone."""
        for claim, record in zip(remote.claims, remote.records, strict=False):
            if (await self._trust.claim(claim)).repository == repository:
                return await self._take(repository, replace(remote, claims=(claim,)), record, None)
        raise BadContent("a manifest came without a claim for its repository")

    async def _take(self, repository: str, remote: RemoteManifest, record: str, moment: int | None) -> StoredManifest:
        """Keep a manifest that came with a good claim for this repository and its record. Raises BadContent without
        them."""
        await self._take_record(repository, record, moment)
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

    async def _take_record(self, repository: str, token: str, moment: int | None) -> None:
        """Keep whether a repository is private. ``moment``: of the feed, when the tracker was asked; None: a peer gave
        it. Raises BadContent unless the tracker signed that."""
        if self._visible.knows(repository, token):
            return
        if moment is not None and self._feed.went_since(repository, moment):
            return  # the answer is older than what took the repository out of sight
        claim = await self._trust.repository(token)
        if claim.repository != repository:
            raise BadContent("the record of a repository is another's")
        try:
            await self._visible.take(claim, token, confirmed=moment is not None)
        except OlderRecord:
            if moment is not None:
                raise
            # what else the peer gives may be good; who may have it is for the newer record to say

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
            moment = self._feed.moment()
            try:
                tokens = await self._tracker.records(asked)
                for repository in set(asked) - await self._confirmed(tokens, moment):
                    await self._visible.hide(repository)
            except (RemoteError, NotFound) as err:
                _log.debug("the tracker did not confirm whose content is whose", why=err.message)

    async def _confirmed(self, tokens: Sequence[str], moment: int) -> set[str]:
        """Take records as the tracker gave them; the repositories that they are of. Raises BadContent."""
        found: set[str] = set()
        for token in tokens:
            claim = await self._trust.repository(token)
            if not self._visible.knows(claim.repository, token) and not self._feed.went_since(claim.repository, moment):
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
        moment = self._feed.moment()
        try:
            answer = await self._tracker.blob_claims(repository, digest)
        except NotFound:
            await self._doubt(repository)
            raise
        await self._take_record(repository, answer.repository, moment)
        for token in answer.claims:
            claim = await self._trust.claim(token)
            ref = claim.blob(digest)
            if claim.repository == repository and ref is not None and self._visible.here(repository):
                return ref
        raise no_blob()

    async def tags(self, repository: str, after: str, limit: int) -> tuple[list[str], str | None]:
        """Tags greater than ``after``; a warning if they are only those known here. Raises NotFound, RemoteError."""
        moment = self._feed.moment()
        try:
            if self._tracker is None:
                raise Unreachable("this node has no tracker")
            answer = await self._tracker.tags(repository, after, limit)
            await self._take_record(repository, answer.repository, moment)
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
