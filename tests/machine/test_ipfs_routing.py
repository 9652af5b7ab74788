"""Who has a block, asked of a tracker over real sockets."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.providers import MAX_PROVIDERS
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.testing.gateway import public_blocks
from p2pregistry.testing.http import Answer, request, running
from p2pregistry.testing.tracker_api import Registry, registry
from tracker.announces import MemoryAnnounces
from tracker.announces_check import node, peer
from tracker.board import Pace
from tracker.catalog.check import BY
from tracker.ipfs_routing import IpfsRouting
from tracker.named import Named

LAYER = random.Random(3).randbytes(2 * PIECE_SIZE + 5)
INFO = Metainfo.of_bytes(LAYER)
OWN = ("12D3KooWtracker", "https://registry.example.com")


@dataclass
class Router:
    """A router that listens, and what is behind it."""

    url: str
    made: Registry
    announces: MemoryAnnounces

    async def __call__(self, cid: bytes | str, query: str = "", method: str = "GET", **headers: str) -> Answer:
        text = cid if isinstance(cid, str) else cid_text(cid)
        lines = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return await request(self.url, method, f"/routing/v1/providers/{text}{query}", lines)

    async def named(self, cid: bytes, query: str = "") -> dict[str, list[str]]:
        """Who is named, with which addresses."""
        answer = await self(cid, query)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        found = json.loads(answer.body)["Providers"]
        assert all(one["Schema"] == "peer" for one in found)
        assert all(one["Protocols"] == ["transport-ipfs-gateway-http"] for one in found)
        assert answer.headers["cache-control"] == f"public, max-age={60 if found else 15}"
        return {one["ID"]: one["Addrs"] for one in found}


@asynccontextmanager
async def listening(root: Path, *, private: bool = False) -> AsyncIterator[Router]:
    async with registry(root) as made:
        await made.push_image("acme/api", "1", LAYER)
        announces = MemoryAnnounces(Named(made.catalog), pace=Pace(), randrange=random.Random(1).randrange)
        routing = IpfsRouting(
            public_blocks(made),
            announces,
            lambda: OWN,
            swarm="default",
            private=private,
            randrange=random.Random(2).randrange,
        )
        async with running(routing) as url:
            yield Router(url, made, announces)


BLOCKS = (INFO.root, CID_RAW_PREFIX + INFO.hash(0), CID_RAW_PREFIX + INFO.hash(2))
TRACKER = {OWN[0]: ["/dns/registry.example.com/tcp/443/tls/http"]}


async def test_the_tracker_names_itself_for_each_block_of_a_public_image(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        manifest = (await ask.made.catalog.tags("acme/api"), await ask.made.catalog.manifest("acme/api", "1"))[1]
        assert manifest is not None
        for cid in (*BLOCKS, manifest.digest.cid(), Digest.of(manifest.claim.encode()).cid()):
            assert await ask.named(cid) == TRACKER
        assert await ask.named(Digest.of(b"of nothing").cid()) == {}
        assert (await ask("bafkqaaa")).body == b'{"Providers":[]}'


async def test_nodes_are_named_where_they_have_a_gateway_that_everybody_can_reach(tmp_path: Path) -> None:
    hold = (INFO.digest,)
    for private in (False, True):
        async with listening(tmp_path / str(private), private=private) as ask:
            for number, gateway in enumerate(("", "https://node.example.com:8443", "http://10.0.0.7:5004")):
                await ask.announces.announce(node(number, (), hold, gateway=gateway))
            await ask.announces.announce(node(5, hold, (), gateway="https://wants.example.com"))
            wanted = {**TRACKER, peer(1): ["/dns/node.example.com/tcp/8443/tls/http"]}
            if private:
                wanted[peer(2)] = ["/ip4/10.0.0.7/tcp/5004/http"]
            for cid in BLOCKS:
                assert await ask.named(cid) == wanted
            assert await ask.named(BLOCKS[0], "?filter-addrs=!tls") == (
                {peer(2): ["/ip4/10.0.0.7/tcp/5004/http"]} if private else {}
            )
            for number in range(10, 60):
                await ask.announces.announce(node(number, (), hold, gateway=f"https://n{number}.example.com"))
            named = await ask.named(BLOCKS[0])
            assert len(named) == MAX_PROVIDERS
            assert OWN[0] in named


async def test_of_what_is_not_for_everybody_nobody_is_named(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        await ask.announces.announce(node(1, (), (INFO.digest,), gateway="https://node.example.com"))
        assert len(await ask.named(BLOCKS[0])) == 2
        await ask.made.catalog.set_visibility("acme/api", True, BY)
        unknown = await ask(Digest.of(b"of nothing").cid())
        for cid in BLOCKS:
            answer = await ask(cid)
            assert (answer.status, answer.body) == (200, unknown.body)
            assert {**answer.headers, "date": ""} == {**unknown.headers, "date": ""}


async def test_lines_head_and_browsers(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        await ask.announces.announce(node(1, (), (INFO.digest,), gateway="https://node.example.com"))
        for accept in ("application/x-ndjson", "application/x-ndjson, application/json;q=0.5"):
            answer = await ask(INFO.root, accept=accept)
            assert answer.headers["content-type"] == "application/x-ndjson"
            assert {json.loads(line)["ID"] for line in answer.body.splitlines()} == {OWN[0], peer(1)}
        empty = await ask(Digest.of(b"of nothing").cid(), accept="application/x-ndjson")
        assert (empty.status, empty.headers["content-type"], empty.body) == (200, "application/x-ndjson", b"")
        for accept in ("application/json, application/x-ndjson;q=0.9", "*/*", "text/html"):
            assert (await ask(INFO.root, accept=accept)).headers["content-type"] == "application/json"
        head = await ask(INFO.root, "", "HEAD")
        assert (head.status, head.body) == (200, b"")
        options = await ask(INFO.root, "", "OPTIONS", origin="https://example.com")
        assert (options.status, options.headers["access-control-allow-origin"]) == (204, "*")
        assert (await ask(INFO.root, "", "PUT")).status == 501
        refused = await ask("nonsense")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (422, "*")


async def test_the_tracker_is_not_always_the_first(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for number in range(3):
            await ask.announces.announce(node(number, (), (INFO.digest,), gateway=f"https://n{number}.example.com"))
        first = {next(iter(await ask.named(INFO.root))) for _ in range(40)}
        assert first == {OWN[0], peer(0), peer(1), peer(2)}
