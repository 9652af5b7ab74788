"""The warmer of a node whose tracker answers over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.oci.platforms import Platform
from p2pregistry.testing.node_stack import NodeStack, Origin, node_stack, origin
from p2pregistry.warm import warmer as warmer_module
from p2pregistry.warm.choose import Patterns, full_pattern
from p2pregistry.warm.fetch import Fetcher
from p2pregistry.warm.pins import Pins
from p2pregistry.warm.warmer import Warmer

LAYERS = [bytes([number]) * 50_000 for number in range(4)]


@dataclass
class Warm:
    tracker: Origin
    node: NodeStack
    warmer: Warmer

    async def push(self, repository: str, tag: str, *layers: bytes) -> Digest:
        return (await self.tracker.registry.push_image(repository, tag, *layers))[0]

    def blobs(self) -> set[Digest]:
        return {digest for digest, _size, _use in self.node.index.held()}

    def has(self, image: Digest) -> bool:
        """Whether the image is whole here."""
        manifest = self.node.index.manifest(image)
        return manifest is not None and all(
            item.digest in self.blobs() for item in parse_manifest(manifest.body, manifest.media_type).required_blobs()
        )

    def asked(self, part: str) -> int:
        return sum(part in target for target, _range in self.tracker.requests)


@asynccontextmanager
async def warm(root: Path, sync: str = "", prefetch: str = "", *, live: bool = True) -> AsyncIterator[Warm]:
    (root / "tracker").mkdir()
    async with (
        origin(root / "tracker") as tracker,
        node_stack(root / "node", tracker=tracker.url, max_age=0.01) as node,
    ):

        def keep(blobs: frozenset[Digest]) -> None:
            node.cache.kept = blobs

        warmer = Warmer(
            node.index,
            node.resolver,
            Fetcher(node.index, node.resolver, node.flights, node.cache.pin, slots=2, limit=None),
            Pins(node.index, keep),
            Patterns(tuple(map(full_pattern, sync.split())), tuple(map(full_pattern, prefetch.split()))),
            (Platform("linux", "amd64"),),
            poll=0.05,
        )
        warmer.live = lambda: live
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warmer.run)
            yield Warm(tracker, node, warmer)
            nursery.cancel_scope.cancel()


async def until(check: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not check():
            await trio.sleep(0.01)


async def test_a_move_that_is_heard_of_brings_what_the_pattern_says(tmp_path: Path) -> None:
    async with warm(tmp_path, "acme/*", "acme/app:prod-*") as all_:
        warmer, index = all_.warmer, all_.node.index
        dev = await all_.push("acme/app", "dev", LAYERS[0])
        prod = await all_.push("acme/app", "prod-1", LAYERS[1], LAYERS[2])
        other = await all_.push("other/app", "1", LAYERS[3])
        for repository, tag, digest in (
            ("acme/app", "dev", dev),
            ("acme/app", "prod-1", prod),
            ("other/app", "1", other),
        ):
            warmer.moved(repository, tag, digest)
        # the whole image, its config too: what comes last is not asked for any more below
        await until(lambda: index.claims("acme/app", dev) and all_.has(prod))
        assert {Digest.of(LAYERS[1]), Digest.of(LAYERS[2])} <= all_.blobs()
        assert Digest.of(LAYERS[0]) not in all_.blobs()
        assert index.manifest(other) is None
        before = len(all_.tracker.requests)
        warmer.moved("acme/app", "prod-1", prod)  # heard of before
        warmer.moved("acme/app", "prod-2", None)
        await trio.sleep(0.1)
        assert len(all_.tracker.requests) == before
        assert all_.asked("tags") == 0  # the feed is live: nothing is looked for


async def test_without_the_feed_tags_are_looked_at(tmp_path: Path) -> None:
    async with warm(tmp_path, "library/**", "acme/app:prod-*", live=False) as all_:
        await all_.push("acme/app", "prod-1", LAYERS[0])  # its pattern names it
        library = await all_.push("library/x", "1", LAYERS[1])  # known to no pattern by name
        await until(lambda: Digest.of(LAYERS[0]) in all_.blobs())
        assert all_.node.index.manifest(library) is None
        await all_.node.resolver.tags("library/x", "", 10)  # somebody asks: now it is known
        await until(lambda: all_.node.index.claims("library/x", library))
        await all_.push("acme/app", "prod-1", LAYERS[2])
        await until(lambda: Digest.of(LAYERS[2]) in all_.blobs())
        assert Digest.of(LAYERS[1]) not in all_.blobs()


async def test_what_fails_is_tried_again_unless_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer_module, "pause", lambda _tries: 0.1)
    async with warm(tmp_path, "", "acme/*") as all_:
        digest = await all_.push("acme/app", "1", LAYERS[0])
        await all_.push("acme/other", "1", LAYERS[1])
        all_.tracker.dead = True
        all_.warmer.moved("acme/app", "1", digest)
        await until(lambda: all_.asked(str(digest)) >= 2)
        all_.tracker.dead = False
        await until(lambda: Digest.of(LAYERS[0]) in all_.blobs())
        unknown = Digest.of(b"unknown")
        all_.warmer.moved("acme/other", "1", unknown)
        await until(lambda: all_.asked(str(unknown)))
        await trio.sleep(0.5)
        assert all_.asked(str(unknown)) == 1


async def test_a_pin_is_of_interest_and_keeps_the_old_image_until_the_new_one_is_whole(tmp_path: Path) -> None:
    async with warm(tmp_path, "library/**") as all_:
        first = await all_.push("acme/app", "1", LAYERS[0])
        asked = await all_.warmer.pin("acme/app", "1", ("linux/amd64",))
        assert all_.warmer.patterns() == ["acme/app:1", "library/**:*"]
        await until(lambda: asked.progress.state == "done")
        state = asked.progress.as_json()
        assert state["digest"] == str(first)
        assert state["here"] == state["total"] == state["tracker"]
        assert Digest.of(LAYERS[0]) in all_.node.cache.kept
        second = await all_.push("acme/app", "1", LAYERS[1])
        gate = trio.Event()
        all_.tracker.gate = lambda request: gate if "blobs" in request.target else None
        all_.warmer.moved("acme/app", "1", second)
        await until(lambda: all_.asked(str(Digest.of(LAYERS[1]))))
        assert Digest.of(LAYERS[0]) in all_.node.cache.kept
        gate.set()
        await until(lambda: Digest.of(LAYERS[1]) in all_.node.cache.kept)
        assert Digest.of(LAYERS[0]) not in all_.node.cache.kept
        await all_.warmer.unpin("acme/app", "1")
        assert all_.node.cache.kept == frozenset()
        assert all_.warmer.patterns() == ["library/**:*"]


async def test_asking_twice_is_asking_once_and_a_cancelled_one_ends(tmp_path: Path) -> None:
    async with warm(tmp_path) as all_:
        await all_.push("acme/app", "1", LAYERS[0])
        gate = trio.Event()
        all_.tracker.gate = lambda request: gate if "blobs" in request.target else None
        one = all_.warmer.ask("acme/app", "1", None)
        assert all_.warmer.ask("acme/app", "1", None) is one
        assert all_.warmer.under_way("acme/app", "1") is one
        await until(lambda: one.progress.total)
        one.scope.cancel()
        await until(lambda: one.progress.state == "cancelled")
        await until(lambda: len(all_.node.flights) == 0)
        gate.set()
        again = all_.warmer.ask("acme/app", "1", None)
        assert again is not one
        await until(lambda: again.progress.state == "done")
        none = all_.warmer.ask("acme/none", "1", None)
        await until(lambda: none.progress.state == "failed")
