"""Gateways of IPFS beside the crowd: a ``Finder`` around another that tells flights of them.

``Gateways`` keeps the sources, probes those that were left out, and closes them at the end. ``WithGateways`` decides
which flight hears of them: each at once, or only those in need. Who asks a gateway for a block tells it what this node
wants, so content that is not public is not asked for unless a setting says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import trio

from p2pregistry.content.dag import Hint, read_hint
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RemoteError, RequestError
from p2pregistry.observe import logger
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.sources.base import Source
from p2pregistry.sources.ipfs import Common, IpfsSource, Known
from p2pregistry.store.records import StoredManifest
from p2pregistry.surroundings import Finder, Follower, Need, Tracker, not_in_need

#: Seconds between two looks at which gateways should be probed.
TIDY: Final = 1.0
#: Seconds that peers have to be found before a flight in need hears of gateways.
PEERS_FIRST: Final = 1.0
#: Seconds in which a manifest has to come.
PATIENCE: Final = 20.0
#: Blobs whose hints are kept, and hints of one.
_HINTS: Final = 10_000
_HINTS_EACH: Final = 4
_log = logger(__name__)


class Hints:
    """Where manifests say that blobs are in IPFS too."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Digest, tuple[Hint, ...]] = OrderedDict()

    def learn(self, manifest: StoredManifest) -> None:
        """Take note of the ``ipfs://`` URLs of its descriptors."""
        try:
            parsed = parse_manifest(manifest.body, manifest.media_type)
        except RequestError:
            return
        config = () if parsed.config is None else (parsed.config,)
        for item in (*config, *parsed.layers, *parsed.manifests):
            found = [hint for hint in map(read_hint, item.urls[:20]) if hint is not None]
            if found:
                known = self._kept.get(item.digest, ())
                self._kept[item.digest] = tuple(dict.fromkeys((*found, *known)))[:_HINTS_EACH]
                self._kept.move_to_end(item.digest)
        while len(self._kept) > _HINTS:
            self._kept.popitem(last=False)

    def of(self, digest: Digest) -> tuple[Hint, ...]:
        """Those of one blob."""
        return self._kept.get(digest, ())


class Gateways:
    """The sources. ``make`` gives them, sharing what they have in common; ``info`` the piece table of a blob, if it is
    known."""

    def __init__(
        self,
        make: Callable[[Common], Sequence[IpfsSource]],
        *,
        info: Callable[[Digest], Metainfo | None],
        pace: Callable[[int], Any] | None = None,
        fetched: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self.hints = Hints()
        #: whether gateways may learn now that this node wants a blob
        self.allowed: Callable[[Digest], bool] = lambda _digest: True
        self._info, self._fetched = info, fetched
        self._refs: dict[Digest, BlobRef] = {}
        self._tables: OrderedDict[Digest, Metainfo] = OrderedDict()
        self.all = tuple(make(Common(self._known, pace=pace, fetched=fetched)))

    def want(self, ref: BlobRef) -> None:
        """A flight of this blob may ask."""
        self._refs[ref.digest] = ref

    def done(self, digest: Digest) -> None:
        """None will."""
        self._refs.pop(digest, None)
        self._tables.pop(digest, None)

    def _known(self, digest: Digest) -> Known | None:
        ref = self._refs.get(digest)
        if ref is None or not self.allowed(digest):
            return None
        info = self._tables.get(digest)
        if info is None:
            info = Metainfo.of_small(ref) or self._info(digest)
            if info is not None and info.root == ref.root:
                self._tables[digest] = info  # reading it anew for each piece would cost more than the piece
            else:
                info = None
        return Known(ref, info, self.hints.of(digest))

    async def run(self) -> None:
        """Find out which are there, and of those that were left out again and again; close them at the end."""
        try:
            await self._probe(self.all)
            while True:
                await trio.sleep(TIDY)
                now = trio.current_time()
                await self._probe([source for source in self.all if source.health.probe_due(now)])
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2.0):
                for source in self.all:
                    await source.aclose()

    async def _probe(self, sources: Sequence[IpfsSource]) -> None:
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(source.probe)

    async def manifest(self, digest: Digest) -> bytes:
        """The bytes of a manifest, by the CID that its digest is. Raises NotFound, RemoteError."""
        if digest.algorithm != "sha256":
            raise NotFound("MANIFEST_UNKNOWN", "a digest of another kind has no CID")
        found: list[bytes] = []
        failures: list[RemoteError] = []

        async def ask(source: IpfsSource) -> None:
            try:
                found.append(await source.block(digest.cid()))
                nursery.cancel_scope.cancel()
            except NotFound:
                pass  # another may have it
            except RemoteError as err:
                failures.append(err)

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
            for source in self.all:
                nursery.start_soon(ask, source)
        if found:
            self._fetched(len(found[0]))
            return found[0]
        raise failures[0] if failures else NotFound("MANIFEST_UNKNOWN", "no gateway has the manifest")

    @property
    def left_out(self) -> int:
        """How many are not asked now."""
        now = trio.current_time()
        return sum(not source.health.usable(now) for source in self.all)

    def status(self) -> list[dict[str, object]]:
        """What the node says of them."""
        now = trio.current_time()
        return [
            {
                "url": source.name,
                "state": source.health.state if not source.health.usable(now) else "ok",
                "why": "" if source.health.usable(now) else source.health.why,
                "wait": round(source.health.wait(now), 1),
                "seen": None if source.health.seen is None else round(now - source.health.seen, 1),
            }
            for source in self.all
        ]


class WithGateways:
    """A Finder. ``last``: flights hear of gateways only when nobody else delivers; ``allowed``: whether gateways may
    learn that this node wants a blob."""

    def __init__(
        self, inner: Finder, gateways: Gateways, *, last: bool, allowed: Callable[[Digest], bool] = lambda _digest: True
    ) -> None:
        self._inner, self._gateways, self._last, self._allowed = inner, gateways, last, allowed
        gateways.allowed = allowed  # what becomes private may be known to flights by then
        self._watched: dict[Digest, list[_Watched]] = {}
        for source in gateways.all:
            source.banned = lambda _why, name=source.name: self._gone(name)  # type: ignore[misc]

    @property
    def tracker(self) -> Tracker | None:
        """See Finder."""
        return self._inner.tracker

    @contextmanager
    def follow(self, ref: BlobRef, follower: Follower) -> Iterator[None]:
        """See Finder."""
        watched = _Watched(follower)
        self._gateways.want(ref)
        self._watched.setdefault(ref.digest, []).append(watched)
        try:
            with self._inner.follow(ref, watched):
                if not self._last:
                    self._tell(ref.digest)
                yield
        finally:
            left = self._watched[ref.digest]
            left.remove(watched)
            if not left:
                del self._watched[ref.digest]
                self._gateways.done(ref.digest)

    async def announced(self, digest: Digest) -> None:
        """See Finder."""
        await self._inner.announced(digest)

    async def look_up(self, digest: Digest, *, need: Need = not_in_need) -> None:
        """See Finder."""
        failures: list[RemoteError] = []
        done = trio.Event()
        before = self._holders(digest)

        async def inner() -> None:
            try:
                await self._inner.look_up(digest, need=need)
            except RemoteError as err:
                failures.append(err)
            finally:
                done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)
            while True:  # a tracker that hangs, or peers that do, must not keep from gateways those in need of them
                with trio.move_on_after(PEERS_FIRST):
                    await done.wait()
                if not self._last or self._in_need(digest, before, need=need()):
                    self._tell(digest)
                if done.is_set():
                    break
        if failures:
            raise failures[0]

    def _in_need(self, digest: Digest, before: set[str], *, need: bool) -> bool:
        """``before``: peers that were known to have it and do not deliver, as a flight in need has found."""
        holders = self._holders(digest)
        return not holders - before if need else not holders and self._inner.tracker is None

    def _holders(self, digest: Digest) -> set[str]:
        return {name for watched in self._watched.get(digest, ()) for name in watched.holders}

    def ban(self, source: str, why: str) -> None:
        """See Finder."""
        for gateway in self._gateways.all:
            if gateway.name == source:
                gateway.ban(why)
                return
        self._inner.ban(source, why)

    def _tell(self, digest: Digest) -> None:
        if not self._allowed(digest):
            return
        now = trio.current_time()
        for source in self._gateways.all:
            if source.health.usable(now) and not source.lacks(digest):
                for watched in self._watched.get(digest, ()):
                    watched.have(source, None, near=False)

    def _gone(self, name: str) -> None:
        for followers in list(self._watched.values()):
            for watched in list(followers):
                watched.gone(name)


class _Watched:
    """A flight, and which peers it was told have everything."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.holders: set[str] = set()

    def have(self, source: Source, pieces: bytes | None, near: bool) -> None:
        """See Follower."""
        if pieces is None and source.kind == "peer":
            self.holders.add(source.name)
        self._follower.have(source, pieces, near)

    def more(self, source: str, pieces: Sequence[int]) -> None:
        """See Follower."""
        self._follower.more(source, pieces)

    def gone(self, source: str) -> None:
        """See Follower."""
        self.holders.discard(source)
        self._follower.gone(source)

    def crowd(self, wanting: int, holding: int) -> None:
        """See Follower."""
        self._follower.crowd(wanting, holding)
