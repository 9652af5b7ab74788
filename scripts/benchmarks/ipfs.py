"""scripts/bench ipfs: a blob by blocks and by CARs from gateways and an IPFS daemon, and from a peer, in turns.

One client takes the same blob from each place as a flight does: several requests at once, each of a few neighbouring
pieces, every piece hashed and compared with the table. The tracker is gateway and peer at once, so the two differ in
nothing but the protocol. Helia's gateway and js-ipfs, whose RPC is Kubo's, are installed as for the tests, or left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import trio
from measure import MB, say
from processes import BenchError
from report import Report

from p2pregistry.content.car import header, section
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, in_order
from p2pregistry.digest import Digest
from p2pregistry.ipfs.gateway_client import GatewayClient
from p2pregistry.ipfs.kubo import kubo_config, open_kubo
from p2pregistry.ipfs.kubo_blocks import KuboBlocks
from p2pregistry.sources.base import Source
from p2pregistry.sources.ipfs import Blocks, Common, IpfsSource, Known, Mode
from p2pregistry.sources.peer import PeerSource
from p2pregistry.testing.cluster import Separate, separate
from p2pregistry.testing.foreign import CannotInstall
from p2pregistry.testing.helia import helia
from p2pregistry.testing.images import Layout, make_image
from p2pregistry.testing.js_ipfs import js_ipfs

RUNS = 5
PEER = "peer"


@dataclass(slots=True)
class Place:
    """Where the blob can be had. ``whole``: it gives no parts, so that one request is for all of it."""

    name: str
    open: Callable[[], Source]
    whole: bool = False
    rates: list[float] = field(default_factory=list)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--mib", type=int, default=256, help="size of the blob")
    parser.add_argument("--at-once", type=int, default=4, help="requests at the same time")
    parser.add_argument("--pieces", type=int, default=4, help="pieces in one request")
    parser.add_argument("--kubo", metavar="URL", help="the RPC of a Kubo, in place of js-ipfs; it keeps the blob")
    parser.add_argument("--ours-only", action="store_true", help="nothing that would have to be installed")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        say("starting a tracker and pushing to it")
        layout = Layout(folder / "layout")
        image = make_image(layout, layers=1, layer_bytes=args.mib << 20, seed=str(time.time_ns()))
        swarm = stack.enter_context(separate(folder / "swarm"))
        swarm.push(layout, image, "bench/image")
        blob = layout.path(image.parts[1].digest)
        info = _metainfo(blob)
        places = _ours(swarm, info)
        if not args.ours_only or args.kubo:
            places += _others(stack, folder, report, blob, info, args.kubo, ours_only=args.ours_only)
        for turn in range(-1, args.runs or RUNS):  # the round before the first is not counted: code paths run once
            for place in places if turn % 2 else places[::-1]:
                seconds = trio.run(_transfer, place, info, args.at_once, args.pieces)
                if turn >= 0:
                    place.rates.append(info.size / MB / seconds)
            if turn >= 0:
                say(f"round {turn + 1}: " + ", ".join(f"{place.name} {place.rates[-1]:.0f} MB/s" for place in places))
        peer = next(place.rates for place in places if place.name == PEER)
        report.value(PEER, peer, "MB/s")
        for place in places:
            if place.name != PEER:
                report.ratio(place.name, place.rates, "MB/s", PEER, peer, None)


def _metainfo(path: Path) -> Metainfo:
    whole, hashes, size = sha256(), bytearray(), 0
    for piece in _pieces(path):
        whole.update(piece)
        hashes += sha256(piece).digest()
        size += len(piece)
    return Metainfo.of(Digest("sha256", whole.digest()), size, bytes(hashes))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_SIZE):
            yield piece


def _ours(swarm: Separate, info: Metainfo) -> list[Place]:
    facts = swarm.tracker.facts
    return [
        Place(PEER, lambda: PeerSource("tracker", str(facts["peer_url"]))),
        *_gateway("our gateway", str(facts["url"]), info),
    ]


def _gateway(name: str, url: str, info: Metainfo) -> list[Place]:
    return [
        Place(f"{name}, blocks", lambda: _source(GatewayClient(url, requests=16), info, "raw")),
        Place(f"{name}, CAR", lambda: _source(GatewayClient(url), info, "car")),
    ]


def _source(blocks: Blocks, info: Metainfo, mode: Mode) -> IpfsSource:
    return IpfsSource(blocks, Common(lambda _digest: Known(info.ref, info)), mode=mode)


def _others(
    stack: ExitStack, folder: Path, report: Report, blob: Path, info: Metainfo, kubo: str | None, *, ours_only: bool
) -> list[Place]:
    places: list[Place] = []
    if not ours_only:
        try:
            say("starting Helia")
            other = stack.enter_context(helia(folder / "helia"))
            other.add(blob)
            places += _gateway("Helia's gateway", other.gateway, info)
        except (CannotInstall, AssertionError) as err:
            report.skipped["Helia"] = str(err)
    try:
        name = "Kubo"
        if kubo is None:
            say("starting js-ipfs")
            name, kubo = "js-ipfs", stack.enter_context(js_ipfs(folder / "js-ipfs")).url
        trio.run(_import, kubo, blob, info)
    except CannotInstall as err:
        report.skipped["js-ipfs"] = str(err)
        return places
    config = kubo_config(kubo)
    return [
        *places,
        Place(f"RPC of {name}, blocks", lambda: _source(KuboBlocks(config, requests=16), info, "raw")),
        Place(f"RPC of {name}, CAR", lambda: _source(KuboBlocks(config), info, "car"), whole=True),
    ]


async def _import(url: str, blob: Path, info: Metainfo) -> None:
    async def car() -> AsyncIterator[bytes]:
        pieces = _pieces(blob)
        yield header(info.root)
        for cid, block in in_order(info.hashes, info.size):
            yield section(cid, next(pieces) if isinstance(block, int) else block)

    async with open_kubo(kubo_config(url)) as daemon:
        await daemon.dag_import(car(), pin=False)


async def _transfer(place: Place, info: Metainfo, at_once: int, pieces: int) -> float:
    """Seconds for the whole blob. Raises BenchError if anything of it is wrong."""
    step = info.size if place.whole else pieces * PIECE_SIZE
    starts = iter(range(0, info.size, step))

    async def some(source: Source) -> None:
        view = memoryview(bytearray(PIECE_SIZE))
        for start in starts:
            async with source.fetch(info.digest, start, min(step, info.size - start)) as incoming:
                for index in range(start // PIECE_SIZE, -(-min(start + step, info.size) // PIECE_SIZE)):
                    at, length = 0, info.length(index)
                    while at < length:
                        at += await incoming.read_into(view[at:length])
                    hashed = await trio.to_thread.run_sync(lambda part: sha256(part).digest(), view[:length])
                    if hashed != info.hash(index):
                        raise BenchError(f"{place.name} sends something else")

    async with _closed(place.open()) as source:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(some, source)
        return time.perf_counter() - began


@asynccontextmanager
async def _closed(source: Source) -> AsyncIterator[Source]:
    if isinstance(source, IpfsSource):
        try:
            yield source
        finally:
            await source.aclose()
    else:
        assert isinstance(source, PeerSource)
        with closing(source):
            yield source
