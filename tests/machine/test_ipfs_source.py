"""A source over gateways that are wrong in every way: no wrong byte comes out, and it is known whose fault it was."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pregistry.content import car, dag
from p2pregistry.content.dag import Hint, any_cid, read_hint
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.errors import (
    BadContent,
    NotFound,
    NotYet,
    RegistryError,
    RemoteBusy,
    RemoteError,
    SettingsError,
    Unreachable,
)
from p2pregistry.ipfs.gateway_client import GatewayClient
from p2pregistry.ipfs.kubo import kubo_config
from p2pregistry.ipfs.kubo_blocks import KuboBlocks
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.tls import server_context
from p2pregistry.sources.ipfs import Common, IpfsSource, Known, Mode
from p2pregistry.testing.dags import MadeDag, dag_pb, make_dag, unixfs_data
from p2pregistry.testing.http import running
from p2pregistry.testing.ipfs_gateway import StubGateway, stub_gateway
from p2pregistry.testing.kubo import StubKubo, refused, stub_kubo
from p2pregistry.testing.seaweed import write_certificate
from p2pregistry.testing.sources import read

MIB = 1 << 20
DATA = random.Random(21).randbytes(5 * MIB + 1234)
INFO = Metainfo.of_bytes(DATA)


@asynccontextmanager
async def gateway(
    stub: StubGateway | None = None,
    *,
    mode: Mode = "auto",
    table: bool = True,
    hints: tuple[Hint, ...] = (),
    **options: Any,
) -> AsyncIterator[tuple[IpfsSource, StubGateway]]:
    if stub is None:
        stub = StubGateway()
        stub.add(DATA)
    known = Known(INFO.ref, INFO if table else None, hints)
    async with stub_gateway(stub) as (url, _):
        source = IpfsSource(
            GatewayClient(url, **{"timeout": 5.0, **options}), Common({INFO.digest: known}.get), mode=mode
        )
        try:
            with trio.fail_after(20):
                yield source, stub
        finally:
            await source.aclose()


async def all_of(source: IpfsSource) -> bytes:
    return await read(source, INFO.digest, 0, len(DATA))


async def failure(source: IpfsSource, mode: str) -> RegistryError:
    with pytest.raises((RemoteError, NotFound)) as caught:
        await (all_of(source) if mode != "raw" else read(source, INFO.digest, MIB, MIB))
    return caught.value


@pytest.mark.parametrize("mode", ["raw", "car"])
@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("wrong block", "banned"),
        ("endless", "ok"),
        ("broken", "ok"),
        ("html", "ok"),
        ("redirect", "ok"),
        ("gzip", "ok"),
        ("dies", "ok"),
        ("hangs", "ok"),
        ("busy", "busy"),
        ("unavailable", "busy"),
    ],
)
async def test_whatever_a_gateway_does_it_is_refused(fault: Any, state: str, mode: Mode) -> None:
    async with gateway(mode=mode, timeout=0.3 if fault == "hangs" else 5.0) as (source, stub):
        stub.fault = fault
        banned: list[str] = []
        source.banned = banned.append
        if (fault, mode) == ("endless", "car"):
            state = "banned"  # that is no CAR
        err = await failure(source, mode)
        assert source.health.state == state
        assert bool(banned) == (state == "banned")
        if state == "busy":
            assert isinstance(err, RemoteBusy)
            assert err.retry_after == (7.0 if fault == "busy" else 5.0)


async def test_a_car_with_a_huge_section_bans() -> None:
    async with gateway(mode="car") as (source, stub):
        stub.fault = "huge section"
        await failure(source, "car")
        assert source.health.state == "banned"


async def test_a_car_that_is_cut_short_and_answered_200_is_a_failure() -> None:
    async with gateway(mode="car") as (source, stub):
        stub.fault = "cut"
        assert "cut short" in (await failure(source, "car")).message
        assert source.health.state == "ok"


@pytest.mark.parametrize("fault", ["dies", "endless", "html"])
async def test_who_begins_well_and_never_ends_well_is_left_out(fault: Any) -> None:
    async with gateway() as (source, stub):
        stub.fault = fault
        for _ in range(3):
            await failure(source, "raw")
            source.health.failed_at -= 2
        assert source.health.state == "resting"


async def test_a_hint_to_blocks_that_are_too_large_is_not_the_gateways_fault() -> None:
    made = make_dag(DATA, chunk=4 * MIB, width=3)
    for mode in ("raw", "car"):
        async with gateway(StubGateway(dict(made.blocks)), mode=mode, hints=(Hint(made.root),)) as (source, stub):
            with pytest.raises((NotFound, RemoteError)):
                await read(source, INFO.digest, 0, MIB)
            with pytest.raises(NotFound):
                await read(source, INFO.digest, 0, MIB)
            count = len(stub.asked)
            with pytest.raises(NotFound):
                await read(source, INFO.digest, 0, MIB)
            assert len(stub.asked) == count
            assert source.health.state == "ok"


async def test_failures_leave_a_gateway_out_until_a_probe_is_answered() -> None:
    async with gateway() as (source, stub):
        stub.fault = "broken"
        for _ in range(3):
            assert isinstance(await failure(source, "raw"), Unreachable)
            source.health.failed_at -= 2
        count = len(stub.asked)
        err = await failure(source, "raw")
        assert isinstance(err, RemoteBusy)
        assert err.retry_after > 10
        assert len(stub.asked) == count, "it is not asked"
        source.health.until = 0.0
        await source.probe()
        assert source.health.state == "resting"
        stub.fault, source.health.until = None, 0.0
        await source.probe()
        assert source.health.state == "ok"
        assert stub.probes == 2
        assert await all_of(source) == DATA


@pytest.mark.parametrize("fault", ["html", "redirect", "broken", "hangs", "endless"])
async def test_a_probe_tells_what_is_no_gateway(fault: Any) -> None:
    async with gateway(timeout=0.3 if fault == "hangs" else 5.0) as (source, stub):
        stub.fault = fault
        await source.probe()
        assert source.health.state == "resting"


async def test_a_gateway_without_the_blob_is_not_asked_for_each_piece() -> None:
    async with gateway(StubGateway()) as (source, stub):
        for _ in range(10):
            with pytest.raises(NotFound):
                await read(source, INFO.digest, MIB, MIB)
        assert len(stub.asked) == 1
        assert source.health.state == "ok"


async def test_a_gateway_with_part_of_a_blob() -> None:
    stub = StubGateway()
    stub.add(DATA)
    del stub.blocks[CID_RAW_PREFIX + INFO.hash(2)]
    async with gateway(stub) as (source, _):
        assert await read(source, INFO.digest, MIB, MIB) == DATA[MIB : 2 * MIB]
        with pytest.raises(NotYet):
            await read(source, INFO.digest, 2 * MIB, MIB)
        assert await read(source, INFO.digest, 3 * MIB, MIB) == DATA[3 * MIB : 4 * MIB]


async def test_a_gateway_without_cars_is_asked_for_blocks() -> None:
    async with gateway(mode="car") as (source, stub):
        stub.fault = "no car"
        assert await all_of(source) == DATA
        assert await all_of(source) == DATA
        assert [what for what, *_ in stub.asked].count("car") == 1
        assert source.health.state == "ok"


async def test_many_neighbours_come_in_a_car_of_that_range_and_single_pieces_as_blocks() -> None:
    async with gateway() as (source, stub):
        assert await read(source, INFO.digest, MIB, 4 * MIB) == DATA[MIB : 5 * MIB]
        assert stub.asked == [("car", cid_text(INFO.root), f"{MIB}:{5 * MIB - 1}")]
        assert await read(source, INFO.digest, MIB, MIB) == DATA[MIB : 2 * MIB]
        assert stub.asked[1:] == [("raw", cid_text(CID_RAW_PREFIX + INFO.hash(1)), "")]


async def test_bytes_go_out_before_the_block_is_whole_but_not_the_last_one() -> None:
    for offset, length in ((0, MIB), (100, MIB - 300), (0, 1), (MIB - 1, 1)):
        async with gateway() as (source, stub):
            stub.fault = "wrong block"
            at, view = 0, memoryview(bytearray(length))
            try:
                async with source.fetch(INFO.digest, offset, length) as incoming:
                    while at < length:
                        at += await incoming.read_into(view[at:])
            except RemoteError:
                assert at < length
                assert at or length == 1
            else:
                raise AssertionError("bytes of a block that is wrong have come out whole")


async def test_the_connection_is_used_again() -> None:
    async with gateway(requests=1) as (source, _):
        for offset in range(0, 4 * MIB, MIB):
            assert await read(source, INFO.digest, offset, MIB) == DATA[offset : offset + MIB]
        assert await all_of(source) == DATA
        assert await read(source, INFO.digest, 0, MIB) == DATA[:MIB]


# ------------------------------------------------------------------------------------------ other layouts, by hint


def elsewhere(made: MadeDag) -> StubGateway:
    return StubGateway(dict(made.blocks))


FOREIGN: dict[str, dict[str, Any]] = {
    "256 KiB, dag-pb leaves, CIDs of version 0": {"leaves": "file", "v0": True},
    "256 KiB, raw leaves": {},
    "1 MiB with bytes beside links": {"chunk": MIB, "inline": 1000, "width": 3},
    "leaves of the type Raw": {"leaves": "typed-raw", "chunk": 100_000},
}


@pytest.mark.parametrize("mode", ["auto", "raw", "car"])
@pytest.mark.parametrize("name", FOREIGN)
async def test_a_hint_to_another_layout(name: str, mode: Mode) -> None:
    made = make_dag(DATA, **FOREIGN[name])
    async with gateway(elsewhere(made), mode=mode, hints=(Hint(made.root),)) as (source, stub):
        for offset in range(0, len(DATA), MIB):
            length = min(MIB, len(DATA) - offset)
            assert await read(source, INFO.digest, offset, length) == DATA[offset : offset + length]
        assert await all_of(source) == DATA
        assert source.health.state == "ok"
        there = {cid_text(cid) for cid in stub.blocks}
        assert sum(cid not in there for _what, cid, _range in stub.asked) == 1, "our own layout is looked for once"


async def test_a_hint_with_a_cid_of_version_0_and_a_path() -> None:
    made = make_dag(DATA, leaves="file", v0=True)
    folder = made.put(CID_DAG_PB_PREFIX, dag_pb(b"\x08\x01", [made.root], ["layer.tar"], v0=True))
    top = made.put(CID_DAG_PB_PREFIX, dag_pb(b"\x08\x01", [folder], ["blobs"]))
    hint = read_hint(f"ipfs://{cid_text(top)}/blobs/layer.tar")
    assert hint is not None
    assert any_cid(cid_text(top)) == top
    async with gateway(elsewhere(made), hints=(hint,)) as (source, _):
        assert await read(source, INFO.digest, 0, MIB) == DATA[:MIB]


async def test_a_directory_that_is_not_there_is_asked_for_once() -> None:
    hint = Hint(CID_DAG_PB_PREFIX + bytes(32), ("a", "b"))
    async with gateway(StubGateway(), hints=(hint,)) as (source, stub):
        for _ in range(5):
            with pytest.raises(NotFound):
                await read(source, INFO.digest, 0, MIB)
        assert len(stub.asked) == 2


async def test_a_hint_that_leads_to_other_bytes_is_not_the_gateways_fault() -> None:
    other = bytearray(DATA)
    other[3 * MIB] ^= 1
    made, good = make_dag(bytes(other)), make_dag(DATA, chunk=500_000)
    stub = elsewhere(made)
    stub.blocks |= good.blocks
    async with gateway(stub, hints=(Hint(made.root), Hint(good.root))) as (source, _):
        with pytest.raises(Unreachable, match="something else"):
            await read(source, INFO.digest, 3 * MIB, MIB)
        assert source.health.state == "ok"
        assert await read(source, INFO.digest, 3 * MIB, MIB) == DATA[3 * MIB : 4 * MIB], "the next one is tried"


@pytest.mark.parametrize("chunk", [300_000, MIB + MIB // 2])
async def test_a_gateway_that_lies_under_a_hint_is_banned_and_the_hint_is_not(chunk: int) -> None:
    made = make_dag(DATA, chunk=chunk, width=30)  # of the blocks some reach over the end of a piece
    async with gateway(elsewhere(made), mode="raw", hints=(Hint(made.root),)) as (source, stub):
        stub.fault = "wrong block"
        stub.spared = {
            made.root,
            *(CID_RAW_PREFIX + Digest.of(DATA[at : at + 300_000]).raw for at in (0, 300_000, 600_000)),
        }
        with pytest.raises(RemoteError):
            await read(source, INFO.digest, 0, 2 * MIB)
        assert source.health.state == "banned"
        source.health.state, stub.fault = "ok", None
        assert await read(source, INFO.digest, 0, 2 * MIB) == DATA[: 2 * MIB]


@pytest.mark.parametrize(
    ("fault", "mode"), [("endless", "raw"), ("endless", "car"), ("strange section", "car"), ("long", "raw")]
)
async def test_what_one_gateway_does_under_a_hint_spoils_it_for_no_other(fault: Any, mode: Mode) -> None:
    made = make_dag(DATA)
    common = Common({INFO.digest: Known(INFO.ref, INFO, (Hint(made.root),))}.get)
    bad = StubGateway(dict(made.blocks), fault=fault)
    async with stub_gateway(bad) as (there, _), stub_gateway(elsewhere(made)) as (url, _):
        with trio.fail_after(20):
            liar, honest = (IpfsSource(GatewayClient(at), common, mode=mode) for at in (there, url))
            for _ in range(2):
                with pytest.raises((NotFound, RemoteError)):
                    await all_of(liar)
            assert await all_of(honest) == DATA
        for source in (liar, honest):
            await source.aclose()


async def test_what_is_there_in_part_is_taken_from_the_next_place(autojump_clock: trio.testing.MockClock) -> None:
    part, whole = make_dag(DATA, chunk=500_000), make_dag(DATA, chunk=400_000)
    del part.blocks[CID_RAW_PREFIX + Digest.of(DATA[4_000_000:4_500_000]).raw]
    hints = (Hint(part.root), Hint(whole.root))
    common = Common({INFO.digest: Known(INFO.ref, INFO, hints)}.get)
    source = IpfsSource(InMemory(part.blocks | whole.blocks), common)
    assert await read(source, INFO.digest, 0, MIB) == DATA[:MIB]
    with pytest.raises((NotYet, Unreachable)):
        await read(source, INFO.digest, 3 * MIB, len(DATA) - 3 * MIB)  # in its course it is too late
    assert await read(source, INFO.digest, 4 * MIB, MIB) == DATA[4 * MIB : 5 * MIB]
    common = Common({INFO.digest: Known(INFO.ref, None, hints)}.get)
    source = IpfsSource(InMemory(part.blocks | whole.blocks), common)
    assert Metainfo.of_table(INFO.ref, await source.table(INFO.ref)) == INFO


async def test_hints_that_are_no_such_file_are_passed_over() -> None:
    short, folder = make_dag(DATA[:-1]), MadeDag()
    folder.root = folder.put(CID_DAG_PB_PREFIX, dag_pb(b"\x08\x01"))
    lying = MadeDag()
    leaf = lying.put(CID_RAW_PREFIX, bytes(2000))
    lying.root = lying.put(CID_DAG_PB_PREFIX, dag_pb(unixfs_data(b"", [len(DATA)]), [leaf]))
    stub = StubGateway(short.blocks | folder.blocks | lying.blocks)
    hints = (Hint(short.root), Hint(folder.root), Hint(lying.root), Hint(short.root, ("a",)), Hint(folder.root, ("a",)))
    async with gateway(stub, mode="raw", hints=hints) as (source, _):
        with pytest.raises((NotFound, Unreachable)):
            await read(source, INFO.digest, 0, MIB)
        with pytest.raises(NotFound):
            await read(source, INFO.digest, 0, MIB)
        assert source.health.state == "ok"
        count = len(stub.asked)
        with pytest.raises(NotFound):
            await read(source, INFO.digest, 0, MIB)
        assert len(stub.asked) == count, "nobody is asked again"


async def test_the_table_is_made_from_the_bytes_where_only_a_hint_has_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made = make_dag(DATA, leaves="file", v0=True)
    common = Common({INFO.digest: Known(INFO.ref, None, (Hint(made.root),))}.get)
    source = IpfsSource(InMemory(made.blocks), common)
    assert Metainfo.of_table(INFO.ref, await source.table(INFO.ref)) == INFO
    wrong = make_dag(bytes(len(DATA)), leaves="file", v0=True)
    common = Common({INFO.digest: Known(INFO.ref, None, (Hint(wrong.root),))}.get)
    with pytest.raises(NotFound):
        await IpfsSource(InMemory(wrong.blocks), common).table(INFO.ref)
    assert len(common.wrong) == 1


class InMemory:
    """Blocks without a gateway."""

    name, ranges = "memory", False

    def __init__(self, blocks: dict[bytes, bytes]) -> None:
        self._blocks = blocks

    @asynccontextmanager
    async def block(self, cid: bytes) -> AsyncIterator[Any]:
        if cid not in self._blocks:
            raise NotFound("BLOB_UNKNOWN", "not here")
        yield Parts([self._blocks[cid]])

    def car(self, cid: bytes, start: int, end: int, most: int) -> Any:
        raise AssertionError("not asked for")

    async def probe(self) -> None: ...
    async def aclose(self) -> None: ...


class Parts:
    ordered = False

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def next(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._parts.pop(0) if self._parts else b""


async def test_a_gateway_that_looks_in_vain_for_long_is_asked_for_the_next_place() -> None:
    class Slow(InMemory):
        @asynccontextmanager
        async def block(self, cid: bytes) -> AsyncIterator[Any]:
            if cid not in self._blocks:
                raise Unreachable("it sent nothing for ten seconds")
            async with super().block(cid) as body:
                yield body

    good = make_dag(DATA, chunk=400_000)
    hints = (Hint(CID_DAG_PB_PREFIX + bytes(32)), Hint(good.root))
    source = IpfsSource(Slow(good.blocks), Common({INFO.digest: Known(INFO.ref, INFO, hints)}.get))
    for _ in range(2):
        with pytest.raises(Unreachable):
            await read(source, INFO.digest, 0, MIB)
    assert await read(source, INFO.digest, 0, MIB) == DATA[:MIB]
    assert source.health.state == "ok"
    alone = IpfsSource(Slow({}), Common({INFO.digest: Known(INFO.ref, INFO)}.get))
    for _ in range(2):
        with pytest.raises(Unreachable):  # which may be over in a moment, where there is no other place
            await read(alone, INFO.digest, 0, MIB)


async def test_the_table_where_a_car_comes_in_no_order(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dag, "MAX_STORE", 2 * MIB)
    made = make_dag(DATA, chunk=300_000)
    # as they were made: the root last
    back = car.header(made.root) + b"".join(car.section(cid, block) for cid, block in made.blocks.items())

    class Backwards(InMemory):
        ranges = True

        @asynccontextmanager
        async def car(self, cid: bytes, start: int, end: int, most: int) -> AsyncIterator[Any]:
            yield Parts([back[at : at + 100_000] for at in range(0, len(back), 100_000)])

    common = Common({INFO.digest: Known(INFO.ref, None, (Hint(made.root),))}.get)
    source = IpfsSource(Backwards(made.blocks), common, mode="car")
    assert Metainfo.of_table(INFO.ref, await source.table(INFO.ref)) == INFO


async def test_a_wrong_hint_while_a_gateway_is_busy_is_not_its_fault(autojump_clock: trio.testing.MockClock) -> None:
    folder = MadeDag()
    folder.root = folder.put(CID_DAG_PB_PREFIX, dag_pb(b"\x08\x01"))

    class Busy(InMemory):
        @asynccontextmanager
        async def block(self, cid: bytes) -> AsyncIterator[Any]:
            async with super().block(cid) as body:
                yield body
            source.health.busy(60.0, trio.current_time())  # so it answered another request

    common = Common({INFO.digest: Known(INFO.ref, None, (Hint(folder.root),))}.get)
    source = IpfsSource(Busy(folder.blocks), common)
    source.well = lambda: None  # type: ignore[method-assign]
    with pytest.raises((NotFound, RemoteError)) as caught:
        await source.table(INFO.ref)
    assert not isinstance(caught.value, BadContent), "for which it would be banned"


async def test_a_gateway_that_heeds_no_ranges_of_a_large_file_is_asked_for_blocks() -> None:
    big = random.Random(22).randbytes(12 * MIB)
    info = Metainfo.of_bytes(big)
    stub = StubGateway(ranges=False)
    stub.add(big)
    async with stub_gateway(stub) as (url, _):
        source = IpfsSource(GatewayClient(url), Common({info.digest: Known(info.ref, info)}.get), mode="car")
        with pytest.raises(RemoteError):
            await read(source, info.digest, 8 * MIB, 4 * MIB)
        assert source.health.state == "ok", "it is no lie"
        assert await read(source, info.digest, 8 * MIB, 4 * MIB) == big[8 * MIB :]
        await source.aclose()


async def test_over_tls_with_certificates_of_ones_own(tmp_path: Path) -> None:
    write_certificate(tmp_path / "crt", tmp_path / "key")
    stub = StubGateway()
    stub.add(DATA)
    context = server_context(tmp_path / "crt", tmp_path / "key")
    known = {INFO.digest: Known(INFO.ref, INFO)}.get
    async with running(stub, tls=context) as url:
        assert url.startswith("https://")
        good = IpfsSource(GatewayClient(url, ca_file=tmp_path / "crt"), Common(known))
        assert await all_of(good) == DATA
        bad = IpfsSource(GatewayClient(url), Common(known))
        with pytest.raises(Unreachable):
            await all_of(bad)
        assert len(stub.asked) > 0
        for source in (good, bad):
            await source.aclose()


@asynccontextmanager
async def kubo(stub: StubKubo, *, mode: Mode = "auto") -> AsyncIterator[IpfsSource]:
    async with stub_kubo(stub) as (url, _):
        places = KuboBlocks(kubo_config(url), timeout=5.0)
        source = IpfsSource(places, Common({INFO.digest: Known(INFO.ref, INFO)}.get), mode=mode)
        try:
            with trio.fail_after(20):
                yield source
        finally:
            await source.aclose()


async def test_a_kubo_that_lies_or_fails() -> None:
    stub = StubKubo()
    stub.add(DATA)
    stub.drop_after = 2 * MIB
    async with kubo(stub, mode="car") as source:
        assert "cut short" in (await failure(source, "car")).message
        assert source.health.state == "ok"
        assert await read(source, INFO.digest, MIB, MIB) == DATA[MIB : 2 * MIB], "a part is taken block by block"
    stub.blocks[CID_RAW_PREFIX + INFO.hash(1)] = bytes(MIB)
    async with kubo(stub) as source:
        await failure(source, "raw")
        assert source.health.state == "banned"
    stub.scripted["block/get"] = [refused("write /data: no space left on device"), refused("something else")]
    async with kubo(stub) as source:
        for _ in range(2):
            assert isinstance(await failure(source, "raw"), RemoteError)
        assert source.health.state == "ok"


async def test_a_hint_to_a_large_block_of_a_kubo_is_not_its_fault() -> None:
    large = bytes(3 * MIB)
    hint = Hint(CID_RAW_PREFIX + Digest.of(large).raw)
    stub = StubKubo()
    stub.blocks[hint.root] = large
    async with stub_kubo(stub) as (url, _):
        source = IpfsSource(KuboBlocks(kubo_config(url)), Common({INFO.digest: Known(INFO.ref, INFO, (hint,))}.get))
        with trio.fail_after(20), pytest.raises((NotFound, RemoteError)):
            await read(source, INFO.digest, 0, MIB)
        assert source.health.state == "ok"
        await source.aclose()


async def test_what_a_kubo_does_not_find_in_its_network_it_has_not_got() -> None:
    async with kubo(StubKubo()) as source:
        for _ in range(3):
            with pytest.raises(NotFound):
                await read(source, INFO.digest, MIB, MIB)
        assert source.health.state == "ok"


async def test_bytes_from_gateways_are_held_to_a_rate() -> None:
    taken: list[int] = []

    async def pace(count: int) -> None:
        await trio.lowlevel.checkpoint()
        taken.append(count)

    stub = StubGateway()
    stub.add(DATA)
    async with stub_gateway(stub) as (url, _):
        source = IpfsSource(GatewayClient(url), Common({INFO.digest: Known(INFO.ref, INFO)}.get, pace=pace))
        await read(source, INFO.digest, 0, MIB)
        assert sum(taken) == MIB
        await source.table(INFO.ref)
        await all_of(source)
        assert sum(taken) > 2 * MIB
        await source.aclose()


async def test_who_has_not_got_the_empty_block_is_a_gateway_all_the_same() -> None:
    async def none(_request: Request) -> Response:
        return Response(404)

    async with running(none) as url:
        source = IpfsSource(GatewayClient(url), Common({}.get))
        source.health.failed("no", 0.0, at_once=True)
        source.health.until = 0.0
        await source.probe()
        assert source.health.state == "ok"
        await source.aclose()


async def test_a_url_that_is_none() -> None:
    for url in ("", "ftp://x", "https://user:pass@x", "https://x?y", "https://", "http://x/ y", "https://x#y"):
        with pytest.raises(SettingsError):
            GatewayClient(url)
