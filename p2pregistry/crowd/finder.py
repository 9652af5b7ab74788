"""The ``Finder`` of a node's flights: the tracker's answers, have-streams and look-ups, put together.

The book (``book.py``) keeps what is known; this driver feeds it from three sides and tells flights what is new. A peer
is asked for bytes as soon as anybody says that it holds the blob, or its have-stream shows a piece of it.

That this node wants a private blob is told to the tracker, and to peers of which somebody who knows says that they have
to do with that blob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.crowd.announcer import Announcer, Me
from p2pregistry.crowd.book import MOST_PIECES, Book, unpacked
from p2pregistry.crowd.lookups import LookUps
from p2pregistry.crowd.sources import PeerSources
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RemoteBusy, RemoteError
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.messages import Announced, PeerSeen
from p2pregistry.observe import logger
from p2pregistry.pull.pieces import Randrange
from p2pregistry.routing.base import Peer, Router
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.surroundings import Follower, Need, not_in_need

#: Digests named in one have-stream, at most.
MOST_TOPICS = 100
#: Small blobs of which it is remembered which blobs stand for them.
MOST_SMALL = 10_000
#: Seconds between two looks at which streams are open and should not be, or the other way round.
TIDY = 1.0
_log = logger(__name__)


@dataclass(slots=True)
class _Stream:
    """An open have-stream: what it is about, and how to end it."""

    about: tuple[Digest, ...]
    scope: trio.CancelScope


class CrowdFinder:
    """See the module. Run ``serve`` in a nursery first. ``public``: whether anybody may have a blob."""

    def __init__(
        self,
        me: Me,
        router: Router,
        tracker: TrackerSource | None,
        *,
        randrange: Randrange,
        limit: int,
        speaker: Speaker | None = None,
        plain: bool = True,
        public: Callable[[Digest], bool] = lambda _digest: True,
    ) -> None:
        self._public = public
        self._me, self._router, self._tracker, self._limit = me, router, tracker, limit
        self._book = Book(me.peer_id, randrange)
        self._announcer = Announcer(me, tracker, self._book.wanted, self._heard, randrange)
        self._sources = PeerSources(me.zone, speaker, plain=plain)
        self._followers: dict[Digest, list[Follower]] = {}
        self._stand: dict[Digest, tuple[Digest, ...]] = {}
        self._streams: dict[str, _Stream] = {}
        self._nursery: trio.Nursery | None = None
        self._lookups: LookUps | None = None

    async def serve(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Hold announces, streams and look-ups; on the way out, close the connections to peers."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._lookups = LookUps(nursery, self._router, self._found, limit=self._limit)
                nursery.start_soon(self._announcer.serve)
                task_status.started()
                while True:
                    await trio.sleep(TIDY)
                    self._tidy()
        finally:
            self._nursery = self._lookups = None
            self._sources.close()

    # -- for flights --------------------------------------------------------------------------------------------

    @property
    def tracker(self) -> TrackerSource | None:
        return None if self._tracker is None or self._tracker.down else self._tracker

    @contextmanager
    def follow(self, ref: BlobRef, follower: Follower) -> Iterator[None]:
        topic = self._book.topic(ref.digest, trio.current_time(), shared=ref.size > PIECE_SIZE)
        topic.here = False
        topic.followers += 1
        self._followers.setdefault(ref.digest, []).append(follower)
        if topic.shared and topic.crowd is None:
            self._new_topics()
        self._tell_crowd(ref.digest, [follower])
        for peer_id in list(topic.have):
            self._tell(ref.digest, peer_id, [follower])
        for stand in self._stand.get(ref.digest, ()):
            for peer_id in self._book.holders(stand):
                self._tell(stand, peer_id, [follower])
        try:
            yield
        finally:
            topic.followers -= 1
            followers = self._followers[ref.digest]
            followers.remove(follower)
            if not followers:
                del self._followers[ref.digest]

    async def announced(self, digest: Digest) -> None:
        for asked in self._stand.get(digest, (digest,)):
            topic = self._book.topics.get(asked)
            if topic is not None and topic.shared and not topic.here and topic.crowd is None:
                await self._announcer.answered(asked)

    async def look_up(self, digest: Digest, *, need: Need = not_in_need) -> None:  # noqa: ARG002 - there is nobody else
        """See Finder. Where the tracker has just named others there is nothing to search for: in a crowd that starts at
        once the look-ups of all of them would cost more than the pull."""
        await self.announced(digest)
        if self._lookups is not None and not self._known_by_tracker(digest):
            await self._lookups.find(digest)
        for peer_id in self._book.holders(digest):  # a flight may have let go of one that it can try again
            self._tell(digest, peer_id)

    def _known_by_tracker(self, digest: Digest) -> bool:
        topic = self._book.topics.get(digest)
        return self.tracker is not None and topic is not None and topic.crowd is not None and any(topic.crowd)

    def ban(self, source: str, why: str) -> None:
        self._sources.ban(source, why)
        self._lost(source)

    # -- for the node -------------------------------------------------------------------------------------------

    def interest(self, wanted: Sequence[tuple[Digest, int]], held: Sequence[tuple[Digest, int]] = ()) -> None:
        """Of an image these blobs (digest, bytes) will soon be wanted, and those are here: one announce for all of
        them, and look-ups.

        Small blobs are not announced; who has the large ones of an image is taken to have its small ones. Where there
        are none but small ones the largest stands for all.
        """
        now = trio.current_time()
        both = [*wanted, *held]
        stand = [digest for digest, size in both if size > PIECE_SIZE]
        if not stand and both:
            stand = [max(both, key=lambda entry: entry[1])[0]]
        for digest, size in wanted:
            if size <= PIECE_SIZE and digest not in stand:
                self._stand[digest] = tuple(stand)
        while len(self._stand) > MOST_SMALL:
            del self._stand[next(iter(self._stand))]
        here = {digest for digest, _size in held}
        new = [digest for digest in stand if digest not in here and digest not in self._book.topics]
        for digest in stand:
            self._book.topic(digest, now).here = digest in here
        self._announcer.hold(digest for digest in stand if digest in here)
        if new:
            self._new_topics()
        if self._nursery is not None:
            for digest in new:
                self._nursery.start_soon(self._look_ahead, digest)

    async def _look_ahead(self, digest: Digest) -> None:
        await self.announced(digest)
        if self._lookups is not None and not self._known_by_tracker(digest):
            self._lookups.ahead(digest)

    def hold(self, held: Iterable[tuple[Digest, int]]) -> None:
        """These (digest, bytes) are complete here now."""
        told = []
        for digest, size in held:
            topic = self._book.topics.get(digest)
            if topic is not None:
                topic.here = True
            if size > PIECE_SIZE or (topic is not None and topic.shared):
                told.append(digest)
        self._announcer.hold(told)

    def drop(self, digest: Digest) -> None:
        """It is not here any more."""
        self._announcer.drop(digest)

    def watched(self, watch: Watch) -> None:
        """A peer watches this node: it wants what it names, and is a source itself."""
        seen = PeerSeen(watch.peer_id, watch.url, watch.zone, list(range(len(watch.want))), [])
        self._learn([seen], watch.want)

    @property
    def watching(self) -> int:
        """Have-streams open to others."""
        return len(self._streams)

    # -- what is learnt -----------------------------------------------------------------------------------------

    def _heard(self, want: list[Digest], answer: Announced) -> None:
        for digest, crowd in zip(want, answer.crowd, strict=False):
            topic = self._book.topics.get(digest)
            if topic is not None:
                topic.crowd = (crowd.wanting, crowd.holding)
        self._learn(answer.peers, want)
        for digest in want:
            self._tell_crowd(digest)

    def _learn(self, peers: Iterable[PeerSeen], about: Sequence[Digest]) -> None:
        """Peers by what they want and hold, as positions in ``about``."""
        now = trio.current_time()
        for seen in peers:
            peer = Peer(seen.peer_id, seen.url, seen.zone)
            if self._sources.banned(peer.peer_id) or not self._book.meet(peer, now):
                continue
            for digest in (about[at] for at in seen.hold if at < len(about)):
                if self._book.holds(digest, peer.peer_id):
                    self._tell(digest, peer.peer_id)
            for digest in (about[at] for at in seen.want if at < len(about)):
                self._book.wants(digest, peer.peer_id)
                self._tell_crowd(digest)
            self._widen([peer.peer_id])
        self._watch_more()

    def _found(self, digest: Digest, peer: Peer) -> None:
        """A look-up says that this peer holds the blob."""
        now = trio.current_time()
        if self._sources.banned(peer.peer_id) or not self._book.meet(peer, now):
            return
        if digest in self._followers:
            self._book.topic(digest, now)
        self._book.holds(digest, peer.peer_id)
        self._tell(digest, peer.peer_id)
        self._widen([peer.peer_id])
        self._watch_more()

    def _lost(self, peer_id: str, *, parts_only: bool = False) -> None:
        for digest in self._book.lost(peer_id, parts_only=parts_only):
            for follower in list(self._followers.get(digest, ())):
                follower.gone(peer_id)

    # -- telling flights ----------------------------------------------------------------------------------------

    def _tell(self, digest: Digest, peer_id: str, followers: Iterable[Follower] | None = None) -> None:
        topic, known = self._book.topics.get(digest), self._book.peers.get(peer_id)
        if topic is None or known is None or peer_id not in topic.have:
            return
        if followers is None:
            told = list(self._followers.get(digest, ()))
            if topic.have[peer_id] is None:
                for small, others in self._followers.items():
                    if digest in self._stand.get(small, ()):
                        told += others
        else:
            told = list(followers)
        if not told:
            return
        source = self._sources.of(known.peer)
        if source is None:
            return
        have = topic.have[peer_id]
        for follower in told:
            follower.have(source, None if have is None else bytes(have), known.peer.zone == self._me.zone)

    def _tell_crowd(self, digest: Digest, followers: Iterable[Follower] | None = None) -> None:
        topic = self._book.topics.get(digest)
        if topic is None or (topic.crowd is None and not topic.wanting):
            return
        wanting, holding = topic.crowd or (0, 0)
        full = sum(have is None for have in topic.have.values())
        crowd = (max(wanting, len(topic.wanting)), max(holding, full))
        if followers is None:
            if crowd == topic.told:
                return
            followers = list(self._followers.get(digest, ()))
            topic.told = crowd
        for follower in followers:
            follower.crowd(*crowd)

    # -- have-streams -------------------------------------------------------------------------------------------

    def _new_topics(self) -> None:
        self._announcer.want()
        self._widen(self._streams)
        self._watch_more()

    def _about(self, peer_id: str) -> tuple[Digest, ...]:
        """What a peer is asked about."""
        wanted = self._book.wanted()[-MOST_TOPICS:]
        return tuple(digest for digest in wanted if self._public(digest) or self._book.concerns(digest, peer_id))

    def _widen(self, peer_ids: Iterable[str]) -> None:
        """Open those of these streams again that should be about more."""
        for peer_id in peer_ids:
            stream = self._streams.get(peer_id)
            if stream is not None and not set(self._about(peer_id)) <= set(stream.about):
                stream.scope.cancel()

    def _watch_more(self) -> None:
        if self._nursery is None:
            return
        for peer in self._book.to_watch(self._streams, trio.current_time(), self._me.zone):
            source = self._sources.of(peer)
            if source is not None:
                self._streams[peer.peer_id] = _Stream((), trio.CancelScope())
                self._nursery.start_soon(self._watch, peer.peer_id, source)

    def _tidy(self) -> None:
        self._book.tidy(trio.current_time())
        for peer_id, stream in self._streams.items():
            if not self._book.watchable(peer_id):
                stream.scope.cancel()
        self._watch_more()

    async def _watch(self, peer_id: str, source: PeerSource) -> None:
        """One peer's stream, opened again whenever there are more topics, until it is of no use or breaks."""
        try:
            while self._book.watchable(peer_id):
                about = self._about(peer_id)
                if not about:
                    return
                with trio.CancelScope() as scope:
                    self._streams[peer_id] = _Stream(about, scope)
                    await self._read(peer_id, source, about)
        except RemoteBusy:
            self._book.failed(peer_id, trio.current_time())  # it serves, it only has watchers enough
        except (RemoteError, NotFound) as err:
            _log.debug("a peer cannot be watched", peer=peer_id, why=err.message)
            self._book.failed(peer_id, trio.current_time())
            self._lost(peer_id, parts_only=True)
        finally:
            self._streams.pop(peer_id, None)

    async def _read(self, peer_id: str, source: PeerSource, about: tuple[Digest, ...]) -> None:
        me = self._me
        watch = Watch(me.peer_id, me.url, me.zone, about)
        async with source.watch(watch) as stream:
            async for news in stream:
                self._book.answered(peer_id, trio.current_time())
                self._apply(peer_id, about, news)

    def _apply(self, peer_id: str, about: tuple[Digest, ...], news: HaveNews) -> None:
        """One line of a stream. Positions outside the list, and pieces beyond all bounds, are passed over."""
        book = self._book
        for at, bitmap in news.have:
            if at < len(about) and book.has(about[at], peer_id, unpacked(bitmap)):
                self._tell(about[at], peer_id)
                self._tell_crowd(about[at])
        for at in news.full:
            if at < len(about) and book.holds(about[at], peer_id):
                self._tell(about[at], peer_id)
        for at, pieces in news.add:
            good = [index for index in pieces if 0 <= index < MOST_PIECES]
            if at < len(about) and book.adds(about[at], peer_id, good):
                for follower in list(self._followers.get(about[at], ())):
                    follower.more(peer_id, good)
        for at in news.gone:
            if at < len(about) and book.drops(about[at], peer_id):
                for follower in list(self._followers.get(about[at], ())):
                    follower.gone(peer_id)
        if news.peers:
            self._learn(news.peers, about)
