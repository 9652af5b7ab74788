"""Which pieces of which blobs are here, and who is told of it.

Flights say what they have; watchers (the answers to ``POST /p2p/v1/have``) are told the state of each digest once and
then what changes. Nothing is queued for them: pieces are kept in the order they came, once for all, and a watcher has
only its place in that order. A slow one falls behind and catches up; it costs the same memory as a fast one.

Everything here happens in plain code between two checkpoints; a ``trio.Event`` wakes those who wait.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.messages import MAX_PEERS, PeerSeen, pack
from p2pregistry.store.base import Blob

#: About as many bytes go into one line; the rest goes into the next.
LINE_BUDGET: Final = 256 << 10
#: The most bytes that one piece takes in a line.
_INDEX_TEXT: Final = 8
#: What stands for the map of a complete blob.
_FULL: Final = "full"


class Partial(Protocol):
    """What the peer API needs to serve the pieces of an unfinished blob that are here."""

    @property
    def size(self) -> int:
        """Of the whole blob, bytes."""

    def has(self, index: int) -> bool:
        """Whether this piece is verified and in the file."""

    async def open(self) -> Blob:
        """The file as it is, to read those pieces from whatever becomes of the flight. Raises RegistryError where the
        bytes are gone or there is no descriptor to be had."""

    def close(self) -> None:
        """Let go of it; what was opened stays open. Idempotent."""


class Known(Protocol):
    """What a node knows of blobs besides its flights: the index."""

    def ref(self, digest: Digest) -> BlobRef | None:
        """What a claim says of it: what no claim names is shown to nobody."""

    def blob(self, digest: Digest) -> object | None:
        """Not None if it is here and complete."""


class _Map:
    """One blob on its way: which pieces are here, and those that came since in the order they came."""

    def __init__(self, count: int, have: Iterable[int], partial: Partial | None) -> None:
        self.here = bytearray(count)
        for index in have:
            self.here[index] = 1
        self.came = array("I")
        self.full = False
        self.named = False  # whether a claim names it, once that has been seen: it stays so
        self.partial = partial

    def let_go(self) -> None:
        if self.partial is not None:
            self.partial.close()
        self.partial = None


class Haves:
    """The have-maps of a node. ``known``: see Known; without it everything may be shown and only flights count."""

    def __init__(self, known: Known | None = None) -> None:
        self._known = known
        self._maps: dict[Digest, _Map] = {}
        self._watchers: dict[Digest, set[Watcher]] = {}
        self._all: set[Watcher] = set()
        #: of the digests that are watched those that are about to go: the index may still have them
        self._going: set[Digest] = set()
        self._closed = False

    # -- what flights say -----------------------------------------------------------------------------------------

    def begin(self, digest: Digest, count: int, have: Iterable[int] = (), partial: Partial | None = None) -> None:
        """A blob of ``count`` pieces is being fetched and these are here already. ``partial`` serves them, is ours from
        now on, and is closed when the blob is complete or dropped. Called again, it begins anew."""
        self._forget(digest)
        self._going.discard(digest)
        self._maps[digest] = _Map(count, have, partial)
        self._changed(digest)

    def add(self, digest: Digest, index: int) -> None:
        """This piece has been verified and written. Nothing happens if it was here, or nobody began the blob."""
        known = self._maps.get(digest)
        if known is None or known.full or known.here[index]:
            return
        known.here[index] = 1
        known.came.append(index)
        self._changed(digest)

    def full(self, digest: Digest) -> None:
        """The blob is complete, and in the store."""
        self._forget(digest)
        self._going.discard(digest)
        if self._known is None or self._known.blob(digest) is None:  # else the index remembers
            whole = self._maps[digest] = _Map(0, (), None)
            whole.full = True
        self._changed(digest)

    def drop(self, digest: Digest) -> None:
        """Nothing of the blob is here any more, or in a moment."""
        self._forget(digest)
        if digest in self._watchers:
            self._going.add(digest)
        self._changed(digest)

    def partial(self, digest: Digest) -> Partial | None:
        """What serves the pieces of a blob that is not complete."""
        known = self._maps.get(digest)
        return None if known is None else known.partial

    def _forget(self, digest: Digest) -> None:
        known = self._maps.pop(digest, None)
        if known is not None:
            known.let_go()

    def _changed(self, digest: Digest) -> None:
        for watcher in self._watchers.get(digest, ()):
            watcher.mark(digest)

    # -- watchers -------------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """How many there are."""
        return len(self._all)

    def watch(self, watch: Watch, may: Callable[[Digest], bool] = lambda _digest: True) -> Watcher:
        """Someone who is told from now on, until ``leave``, of digests that it ``may`` have: asked each time. Others
        who watch the same digests, and may have them, are told of it and it of them."""
        watcher = Watcher(self, watch, may)
        fellows: dict[Watcher, None] = {}
        for digest in watch.want:
            others = self._watchers.setdefault(digest, set())
            if others and may(digest):
                fellows |= dict.fromkeys(other for other in others if other.may(digest))
            others.add(watcher)
        self._all.add(watcher)
        # those of the same zone first: where there are many, the rest may come late
        for other in sorted(fellows, key=lambda other: other.watch.zone != watch.zone):
            watcher.meet(other)
            other.meet(watcher)
        if self._closed:
            watcher.end()
        return watcher

    def left(self, watcher: Watcher) -> None:
        """It is told nothing more (called by ``Watcher.leave``)."""
        self._all.discard(watcher)
        for other in self._all:
            other.unmeet(watcher)
        for digest in watcher.watch.want:
            others = self._watchers.get(digest, set())
            others.discard(watcher)
            if not others:
                self._watchers.pop(digest, None)
                self._going.discard(digest)

    def watching(self, digest: Digest) -> set[Watcher]:
        """Who is told of this digest."""
        return self._watchers.get(digest, set())

    def look_again(self) -> None:
        """Who may have what has changed: each watcher is told what is gone for it, and what is not any more."""
        for watcher in self._all:
            for digest in watcher.watch.want:
                watcher.mark(digest)

    def close(self) -> None:
        """The node stops: every watcher is told so at once, also those who come later, and files are closed."""
        self._closed = True
        for watcher in self._all:
            watcher.end()
        for digest in list(self._maps):
            self._forget(digest)

    def state(self, digest: Digest) -> _Map | str | None:
        """The blob's map; _FULL; or None where there is nothing that may be shown."""
        known = self._maps.get(digest)
        if (known is None or not known.named) and self._known is not None:
            if self._known.ref(digest) is None:
                return None
            if known is not None:
                known.named = True
        if known is not None:
            return _FULL if known.full else known
        if digest in self._going or self._known is None or self._known.blob(digest) is None:
            return None
        return _FULL


class Watcher:
    """One who is told. Made by ``Haves.watch``; ``leave`` when done with it."""

    def __init__(self, haves: Haves, watch: Watch, may: Callable[[Digest], bool]) -> None:
        self.watch = watch
        self.may = may
        self.ended = trio.Event()
        self._haves = haves
        self._places = {digest: place for place, digest in enumerate(watch.want)}
        #: what it was told of each digest: _FULL, or a map and how many of the pieces that came; absent: nothing
        self._told: dict[Digest, tuple[_Map | str, int]] = {}
        self._changed: dict[Digest, None] = dict.fromkeys(watch.want)
        self._met: dict[Watcher, None] = {}
        self._wake = trio.Event()

    @property
    def pending(self) -> bool:
        """Whether there is something to tell it."""
        return bool(self._changed or self._met)

    async def wait(self) -> None:
        """Return once there is something to tell, or it is to end."""
        while not self.pending and not self.ended.is_set():
            self._wake = trio.Event()
            await self._wake.wait()

    def mark(self, digest: Digest) -> None:
        """Something about this digest has changed."""
        self._changed[digest] = None
        self._wake.set()

    def meet(self, other: Watcher) -> None:
        """It is to be told of another watcher."""
        if other.watch.peer_id != self.watch.peer_id:
            self._met[other] = None
            self._wake.set()

    def unmeet(self, other: Watcher) -> None:
        """The other has left; one who was not told of it yet need not be."""
        self._met.pop(other, None)

    def end(self) -> None:
        """There will be no more news."""
        self.ended.set()
        self._wake.set()

    def leave(self) -> None:
        """Idempotent."""
        self._haves.left(self)
        self.end()

    def news(self) -> HaveNews:
        """What has changed since the last call, as much of it as goes into one line; empty where nothing has."""
        news = HaveNews([], [], [], [], [])
        budget = LINE_BUDGET
        while self._changed and budget > 0:
            digest = next(iter(self._changed))
            del self._changed[digest]
            budget -= self._tell(digest, news, budget)
        self._introduce(news)
        return news

    def _tell(self, digest: Digest, news: HaveNews, budget: int) -> int:
        """Put what is new of one digest into the line; about how many bytes that takes."""
        place = self._places[digest]
        before, told = self._told.get(digest, (None, 0))
        now = self._haves.state(digest) if self.may(digest) else None
        if now is None:
            if before is not None:
                del self._told[digest]
                news.gone.append(place)
        elif isinstance(now, str):
            if before is not now:
                self._told[digest] = now, 0
                news.full.append(place)
        elif before is not now:
            bitmap = pack(bytes(now.here))
            self._told[digest] = now, len(now.came)
            news.have.append((place, bitmap))
            return 2 * len(bitmap)
        elif told < len(now.came):
            end = min(len(now.came), told + max(1, budget // _INDEX_TEXT))
            self._told[digest] = now, end
            news.add.append((place, now.came[told:end].tolist()))
            if end < len(now.came):
                self._changed[digest] = None
            return _INDEX_TEXT * (end - told)
        return _INDEX_TEXT

    def _introduce(self, news: HaveNews) -> None:
        while self._met and len(news.peers) < MAX_PEERS:
            other = next(iter(self._met))
            del self._met[other]
            watch = other.watch
            both = (digest for digest in watch.want if digest in self._places)
            want = [self._places[digest] for digest in both if self.may(digest) and other.may(digest)]
            news.peers.append(PeerSeen(watch.peer_id, watch.url, watch.zone, want, []))
