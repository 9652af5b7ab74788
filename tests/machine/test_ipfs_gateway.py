"""The gateway of a tracker over real sockets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pregistry.content.gateway_request import RAW
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.subdag import BlockOf, Place
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.serve import ipfs_gateway
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.memory import MemoryBlob
from p2pregistry.testing.gateway import file_of, gateway_of, public_blocks, read_car
from p2pregistry.testing.handlers import call
from p2pregistry.testing.http import PATIENCE, Answer, raw_client, request, running
from p2pregistry.testing.tracker_api import Registry, registry
from tracker.catalog.check import BY

REPO = "acme/api"
PIECE = random.Random(7).randbytes(PIECE_SIZE)
#: Five pieces, of which three are the same, and a short one at the end.
LAYER = PIECE + PIECE[::-1] + PIECE + PIECE + b"the last piece"
INFO = Metainfo.of_bytes(LAYER)
SMALL = b"a small layer"


@dataclass
class Gateway:
    """A gateway that listens, and what is behind it."""

    url: str
    made: Registry
    slots: Slots
    served: list[int]
    manifest: bytes

    async def __call__(self, cid: bytes | str, query: str = "", method: str = "GET", **headers: str) -> Answer:
        text = cid if isinstance(cid, str) else cid_text(cid)
        lines = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return await request(self.url, method, f"/ipfs/{text}{query}", lines)


@asynccontextmanager
async def listening(root: Path, slots: Slots | None = None) -> AsyncIterator[Gateway]:
    slots = slots or Slots(4, 16)
    served: list[int] = []
    async with registry(root) as made:
        _, manifest = await made.push_image(REPO, "1", LAYER, SMALL)
        async with running(gateway_of(made, slots, served)) as url:
            yield Gateway(url, made, slots, served, manifest)


async def test_every_block_can_be_had_raw(tmp_path: Path) -> None:
    root = INFO.dag().blocks[0]
    async with listening(tmp_path) as ask:
        blocks = {INFO.root: root, Digest.of(SMALL).cid(): SMALL, Digest.of(ask.manifest).cid(): ask.manifest}
        blocks |= {CID_RAW_PREFIX + INFO.hash(i): LAYER[i * PIECE_SIZE : (i + 1) * PIECE_SIZE] for i in range(5)}
        claim = b"claim 1"
        blocks[Digest.of(claim).cid()] = claim
        for cid, block in blocks.items():
            answer = await ask(cid, "?format=raw")
            assert (answer.status, answer.body) == (200, block)
            assert answer.headers["content-type"] == RAW
            assert hashlib.sha256(answer.body).digest() == cid[4:]
            head = await ask(cid, "?format=raw", "HEAD")
            assert (head.status, head.headers["content-length"], head.body) == (200, str(len(block)), b"")
            assert head.headers["etag"] == answer.headers["etag"]
        assert sum(ask.served) == sum(map(len, blocks.values()))


async def test_the_headers_of_a_block(tmp_path: Path) -> None:
    text = cid_text(INFO.root)
    async with listening(tmp_path) as ask:
        answer = await ask(INFO.root, "", accept=RAW)
        ours = ("access-control-", "connection", "date", "server")
        kept = {name: value for name, value in answer.headers.items() if not name.startswith(ours)}
        assert kept == {
            "content-type": RAW,
            "content-length": str(len(INFO.dag().blocks[0])),
            "content-disposition": f'attachment; filename="{text}.bin"',
            "content-location": f"/ipfs/{text}?format=raw",
            "cache-control": "public, max-age=29030400, immutable",
            "etag": f'"{text}.raw"',
            "x-content-type-options": "nosniff",
            "x-ipfs-path": f"/ipfs/{text}",
            "x-ipfs-roots": text,
            "accept-ranges": "bytes",
            "vary": "Accept",
        }
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "content-location" not in (await ask(INFO.root, "?format=raw", accept=RAW)).headers


async def test_a_whole_car(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for dups in ("y", "n"):
            answer = await ask(INFO.root, f"?format=car&car-dups={dups}")
            assert answer.status == 200
            assert answer.headers["content-type"] == f"application/vnd.ipld.car; version=1; order=dfs; dups={dups}"
            assert file_of(INFO.root, read_car(answer.body), dups=dups == "y") == LAYER
            assert answer.headers["content-length"] == str(len(answer.body))
            head = await ask(INFO.root, f"?format=car&car-dups={dups}", "HEAD")
            assert head.headers["content-length"] == str(len(answer.body))
            assert ask.served.pop() == len(answer.body)
        leaf = CID_RAW_PREFIX + INFO.hash(4)
        assert read_car((await ask(leaf, "?format=car")).body) == [(leaf, b"the last piece")]
        for data in (SMALL, ask.manifest):
            cid = Digest.of(data).cid()
            answer = await ask(cid, "?format=car")
            assert read_car(answer.body) == [(cid, data)]
            assert (await ask(cid, "?format=car", "HEAD")).headers["content-length"] == str(len(answer.body))


async def test_the_scope_of_a_car(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for scope, blocks in (("block", 1), ("entity", 4), ("all", 4)):  # of six blocks two are the same as another
            assert len(read_car((await ask(INFO.root, f"?format=car&dag-scope={scope}")).body)) == blocks
        tags = {
            (await ask(INFO.root, f"?format=car{more}", "HEAD")).headers["etag"]
            for more in ("", "&dag-scope=block", "&dag-scope=entity", "&entity-bytes=0:5", "&car-dups=y")
        }
        assert len(tags) == 5


_SIZE = len(LAYER)


@pytest.mark.parametrize(
    ("wanted", "pieces"),
    [
        ("0:*", [0, 1, 2, 3, 4]),
        ("0:0", [0]),
        (f"{PIECE_SIZE}:{PIECE_SIZE}", [1]),
        (f"{PIECE_SIZE - 1}:{PIECE_SIZE}", [0, 1]),
        ("-1:*", [4]),
        ("-20:*", [3, 4]),
        (f"{PIECE_SIZE}:-{PIECE_SIZE}", [1, 2, 3]),
        (f"5:{10 * _SIZE}", [0, 1, 2, 3, 4]),
        (f"-{10 * _SIZE}:1", [0]),
        (f"{_SIZE}:*", []),
        (f"{_SIZE + 5}:{_SIZE + 6}", []),
    ],
)
async def test_entity_bytes(tmp_path: Path, wanted: str, pieces: list[int]) -> None:
    async with registry(tmp_path) as made:
        await made.push_image(REPO, "1", LAYER)
        answer = await call(
            gateway_of(made), "GET", f"/ipfs/{cid_text(INFO.root)}?format=car&car-dups=y&entity-bytes={wanted}"
        )
        cids = [cid for cid, _ in read_car(answer.body)]
        assert cids == [INFO.root, *(CID_RAW_PREFIX + INFO.hash(index) for index in pieces)]


async def test_ranges_of_a_block(tmp_path: Path) -> None:
    leaf, begin = CID_RAW_PREFIX + INFO.hash(1), PIECE_SIZE
    async with listening(tmp_path) as ask:
        for cid, block in ((leaf, LAYER[begin : 2 * begin]), (INFO.root, INFO.dag().blocks[0])):
            answer = await ask(cid, "?format=raw", range="bytes=5-20")
            assert (answer.status, answer.body) == (206, block[5:21])
            assert answer.headers["content-range"] == f"bytes 5-20/{len(block)}"
            assert (await ask(cid, "?format=raw", range=f"bytes={len(block)}-")).status == 416
            assert (await ask(cid, "?format=raw", "HEAD", range="bytes=5-20")).headers["content-length"] == "16"
            old = await ask(cid, "?format=raw", range="bytes=5-20", if_range='"another"')
            assert (old.status, old.body) == (200, block)
        answer = await ask(INFO.root, "?format=car", range="bytes=5-20")
        assert (answer.status, answer.headers["accept-ranges"]) == (200, "none")


async def test_a_probe(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for method in ("GET", "HEAD"):
            answer = await ask("bafkqaaa", "?format=raw", method)
            assert (answer.status, answer.headers["content-length"], answer.body) == (200, "0", b"")
            assert answer.headers["content-type"] == RAW
        car = await ask("bafkqaaa", "?format=car")
        assert car.status == 200
        assert read_car(car.body) == []
        assert (await ask("bafkqabtimvwgy3yk", "?format=raw")).status == 404, "of other such CIDs nothing is known"


async def test_what_has_not_changed_is_not_sent(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for query in ("?format=raw", "?format=car"):
            tag = (await ask(INFO.root, query, "HEAD")).headers["etag"]
            for said in (tag, f"W/{tag}", f'"x", {tag}', "*"):
                answer = await ask(INFO.root, query, if_none_match=said)
                assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
            assert (await ask(INFO.root, query, if_none_match='"x"')).status == 200
        assert (await ask(Digest.of(b"x").cid(), "?format=raw", if_none_match="*")).status == 404


async def test_what_is_not_for_everybody_is_not_there(tmp_path: Path) -> None:
    cids = [INFO.root, CID_RAW_PREFIX + INFO.hash(0), Digest.of(SMALL).cid()]
    async with listening(tmp_path) as ask:
        cids.append(Digest.of(ask.manifest).cid())

        async def all_gone() -> None:
            for query in ("?format=raw", "?format=car"):
                for method in ("GET", "HEAD"):
                    unknown = await ask(Digest.of(b"of nothing").cid(), query, method)
                    assert unknown.status == 404
                    for cid in cids:
                        answer = await ask(cid, query, method)
                        assert (answer.status, answer.body) == (404, unknown.body)
                        assert {**answer.headers, "date": ""} == {**unknown.headers, "date": ""}
                    for absent in (cid_text(cids[0]), "bafkqabtimvwgy3yk"):
                        cached = await ask(absent, query, method, cache_control="no-transform, only-if-cached")
                        assert cached.status == 412

        for cid in cids:
            assert (await ask(cid, "?format=raw", cache_control="only-if-cached")).status == 200
        await ask.made.catalog.set_visibility(REPO, True, BY)
        await all_gone()
        await ask.made.catalog.set_visibility(REPO, False, BY)
        assert (await ask(cids[0], "?format=raw")).status == 200
        assert (await ask.made("DELETE", f"/v2/{REPO}/manifests/{Digest.of(ask.manifest)}")).status == 202
        await all_gone()


async def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    async with listening(tmp_path) as ask:
        for answer in (
            await ask(INFO.root),
            await ask(INFO.root, accept="text/html, */*"),
            await ask("nonsense", "?format=raw"),
            await ask(cid_text(INFO.root) + "/a/b", "?format=raw"),
            await ask(INFO.root, "?format=car&dag-scope=some"),
            await ask(INFO.root, "?format=car&entity-bytes=5"),
            await ask(INFO.root, "?format=raw", service_worker="script"),
        ):
            assert answer.status == 400, answer
            assert answer.headers["access-control-allow-origin"] == "*"
        assert b"format=raw" in (await ask(INFO.root)).body
        for answer in (
            await ask(INFO.root, "?format=tar"),
            await ask(INFO.root, accept="application/x-tar"),
            await ask(INFO.root, "?format=car&car-version=2"),
            await ask(INFO.root, accept="application/vnd.ipld.car; order=foo"),
        ):
            assert answer.status == 406, answer
        assert (await ask(cid_text(INFO.root) + "/a/b", "?format=car")).status == 404
        assert (await ask(INFO.root, "?format=raw", "POST")).status == 405
        options = await ask(INFO.root, "", "OPTIONS", origin="https://example.com")
        assert (options.status, options.headers["access-control-allow-origin"]) == (204, "*")


async def test_too_many_transfers_are_turned_away(tmp_path: Path) -> None:
    async with listening(tmp_path, Slots(1, 1)) as ask:
        await ask.slots.take()  # a transfer under way
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                answers.append(await ask(INFO.root, "?format=car"))

            nursery.start_soon(wait)
            with trio.fail_after(10):
                while not ask.slots._waiting:
                    await trio.lowlevel.checkpoint()
            for query in ("?format=car", "?format=raw"):
                refused = await ask(INFO.root, query)
                assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert (await ask(INFO.root, "?format=raw", "HEAD")).status == 200
            ask.slots.give()
        assert answers[0].status == 200
        for query in ("?format=raw", "?format=car"):  # each has given back its slot
            assert (await ask(INFO.root, query)).status == 200


async def test_what_becomes_private_while_a_client_waits_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipfs_gateway, "MOMENT", 0.0)
    targets = [(cid, query) for cid in (INFO.root, CID_RAW_PREFIX + INFO.hash(0)) for query in ("raw", "car")]
    async with listening(tmp_path, Slots(1, 8)) as ask:
        await ask.slots.take()
        answers: list[Answer] = []

        async def wait(cid: bytes, query: str) -> None:
            answers.append(await ask(cid, f"?format={query}"))

        async with trio.open_nursery() as nursery:
            for cid, query in targets:
                nursery.start_soon(wait, cid, query)
            with trio.fail_after(PATIENCE):
                while len(ask.slots._waiting) < len(targets):
                    await trio.lowlevel.checkpoint()
            await ask.made.catalog.set_visibility(REPO, True, BY)
            ask.slots.give()
        assert [answer.status for answer in answers] == [404] * len(targets)
        assert ask.slots._free == 1
        assert ask.served == []


@pytest.mark.parametrize("query", ["format=raw", "format=car"])
async def test_what_becomes_private_while_a_tree_is_built_is_not_sent(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipfs_gateway, "MOMENT", 0.0)

    class Turning:
        public = True

        async def find(self, cid: bytes) -> BlockOf | None:
            return BlockOf(INFO.ref, Place(1, 0)) if self.public else None

        async def metainfo(self, ref: BlobRef) -> Metainfo:
            self.public = False
            return INFO

        async def open(self, ref: BlobRef) -> MemoryBlob:
            return MemoryBlob(ref.digest, b"")

    slots = Slots(1, 1)
    gateway = IpfsGateway(Turning(), slots, served=lambda _count: None)
    assert (await call(gateway, "GET", f"/ipfs/{cid_text(INFO.root)}?{query}")).status == 404
    assert slots._free == 1


async def test_a_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    large = random.Random(9).randbytes(24 * PIECE_SIZE)  # more than the kernel takes
    root = cid_text(Metainfo.of_bytes(large).root)
    async with listening(tmp_path, Slots(1, 4)) as ask:
        await ask.made.push_image(REPO, "2", large)
        async with await raw_client(ask.url) as client:
            await client.send(f"GET /ipfs/{root}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await client.receive_until(b"\r\n\r\n")
            assert ask.slots._free == 0
        with trio.fail_after(PATIENCE):
            assert (await ask(INFO.root, "?format=raw")).status == 200, "it waited for the slot and got it"
        assert 0 < ask.served[0] < len(large)


async def test_what_is_sent_keeps_to_a_rate(tmp_path: Path) -> None:
    paced: list[int] = []

    async def pace(count: int) -> None:
        await trio.lowlevel.checkpoint()
        paced.append(count)

    async with registry(tmp_path) as made:
        await made.push_image(REPO, "1", LAYER)
        served: list[int] = []
        gateway = IpfsGateway(public_blocks(made), Slots(2, 2), served=served.append, pace=pace)
        async with running(gateway) as url:
            for cid, query in ((INFO.root, "raw"), (CID_RAW_PREFIX + INFO.hash(0), "raw"), (INFO.root, "car")):
                assert (await request(url, "GET", f"/ipfs/{cid_text(cid)}?format={query}")).status == 200
        assert sum(paced) == sum(served) > 3 * PIECE_SIZE


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(max_size=80), query=st.text(max_size=80), accept=st.text(max_size=60))
async def test_nothing_that_is_asked_breaks_it(tmp_path: Path, path: str, query: str, accept: str) -> None:
    async with registry(tmp_path) as made:
        headers = [("Accept", accept)]
        answer = await call(gateway_of(made), "GET", f"/ipfs/{path}?{query}", headers=headers)
        assert answer.status in (200, 400, 404, 406)
