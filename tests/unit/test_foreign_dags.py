"""Files of any layout are walked; what does not add up is refused, and said to be the root's fault or the sender's."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.content import dag
from p2pregistry.content.car import header, section
from p2pregistry.content.dag import (
    BadDag,
    CarWalk,
    Hint,
    Nodes,
    TooMuch,
    Walk,
    any_cid,
    matches,
    read_directory,
    read_hint,
    read_node,
)
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, cid_text
from p2pregistry.errors import BadContent
from p2pregistry.testing.dags import MadeDag, dag_pb, depth_first, make_dag, unixfs_data

DATA = random.Random(3).randbytes(10_000)
LAYOUTS: dict[str, dict[str, Any]] = {
    "raw leaves": {},
    "dag-pb leaves of version 0": {"leaves": "file", "v0": True},
    "dag-pb leaves of the type Raw": {"leaves": "typed-raw"},
    "bytes beside links": {"inline": 7},
    "bytes beside links, dag-pb leaves": {"inline": 13, "leaves": "file"},
    "a chain": {"width": 2, "chunk": 1000},
}


def layout(name: str, data: bytes = DATA) -> MadeDag:
    return make_dag(data, **{"chunk": 100, "width": 4, **LAYOUTS[name]})


def walked(made: MadeDag, walk: Walk, draw: random.Random, window: int = 3) -> bytes:
    """Everything a walk gives, its blocks taken in any order."""
    out = b""
    while not walk.done:
        wanted = walk.wanted(window)
        if wanted:
            want = draw.choice(wanted)
            assert matches(want.cid, made.blocks[want.cid])
            walk.take(want, made.blocks[want.cid])
        out += b"".join(walk.ready())
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_range_of_any_layout_in_any_order(name: str) -> None:
    made, draw, nodes = layout(name), random.Random(1), Nodes()
    for start, end in ((0, 10_000), (0, 1), (9_999, 10_000), (95, 105), (1_234, 7_777), (0, 0)):
        assert walked(made, Walk(made.root, 10_000, start, end), draw) == DATA[start:end]
        assert walked(made, Walk(made.root, 10_000, start, end, nodes=nodes), draw) == DATA[start:end]


def test_known_nodes_are_not_asked_for_again() -> None:
    made, nodes = layout("raw leaves"), Nodes()
    walked(made, Walk(made.root, 10_000, 0, 10_000, nodes=nodes), random.Random(1))
    wanted = Walk(made.root, 10_000, 250, 320, nodes=nodes).wanted(100)
    assert [(want.cid[:4], want.offset) for want in wanted] == [(CID_RAW_PREFIX, 200), (CID_RAW_PREFIX, 300)]


def test_nodes_are_bounded() -> None:
    made, nodes = layout("raw leaves"), Nodes(most=10)
    walked(made, Walk(made.root, 10_000, 0, 10_000, nodes=nodes), random.Random(1))
    assert sum(nodes.get(cid) is not None for cid in made.blocks) <= 10


def test_our_own_layout_needs_no_inner_node_where_its_table_is_known() -> None:
    data = random.Random(4).randbytes(3_000_000)
    info = Metainfo.of_bytes(data)
    walk = Walk.of_pieces(info, 1_000_000, 2_100_000)
    assert [want.cid for want in walk.wanted(9)] == [CID_RAW_PREFIX + info.hash(index) for index in (0, 1, 2)]
    for want in walk.wanted(9):
        walk.take(want, data[want.offset : want.offset + want.size])
    assert b"".join(walk.ready()) == data[1_000_000:2_100_000]


def car(made: MadeDag, cids: list[bytes], *, v0: bool = False) -> bytes:
    def sent(cid: bytes) -> bytes:
        return cid[2:] if v0 and cid[:4] == CID_DAG_PB_PREFIX else cid

    return header(made.root) + b"".join(section(sent(cid), made.blocks[cid]) for cid in cids)


def fed(walk: CarWalk, data: bytes, step: int) -> bytes:
    out = b""
    for at in range(0, len(data), step):
        out += b"".join(walk.feed(data[at : at + step]))
    walk.close()
    return out


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("step", [1, 77, 100_000])
def test_a_car_depth_first(name: str, step: int) -> None:
    made = layout(name)
    data = car(made, depth_first(made), v0=name.endswith("0"))
    assert fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=True), data, step) == DATA
    # a gateway that sends the whole file where a part was asked for
    assert fed(CarWalk(made.root, 10_000, 5_000, 5_500, ordered=True), data, step) == DATA[5_000:5_500]


def test_a_car_in_any_order_and_without_duplicates() -> None:
    data = b"ab" * 5_000
    made = make_dag(data, chunk=100, width=4)
    cids = list(made.blocks)
    random.Random(5).shuffle(cids)
    assert fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=False), car(made, cids), 999) == data
    once = list(dict.fromkeys(depth_first(made)))
    assert fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=False), car(made, once), 999) == data
    with pytest.raises(BadContent):
        fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=True), car(made, once), 999)


def test_of_many_equal_blocks_one_beside_the_range_serves_for_it() -> None:
    made = make_dag(bytes(10_000), chunk=100, width=200)
    whole = car(made, depth_first(made))
    assert fed(CarWalk(made.root, 10_000, 4_000, 4_300, ordered=True), whole, 500) == bytes(300)


def test_cars_that_are_refused() -> None:
    made = layout("raw leaves")
    order = depth_first(made)
    stray = made.put(CID_RAW_PREFIX, b"not of this file")
    bad = car(made, order[:3]) + section(order[3], b"wrong bytes")
    huge = car(made, order[:3]) + b"\xff\xff\xff\x7f"
    for data in (car(made, order[:-1]), car(made, [*order[:5], stray]), bad, huge, car(made, order[1:]), b"", b"\0"):
        with pytest.raises(BadContent) as caught:
            fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=True), data, 400)
        assert not isinstance(caught.value, BadDag), "the sender is to blame"


def test_cids_of_other_kinds_in_a_car_are_the_fault_of_a_root_that_is_not_ours() -> None:
    made = layout("raw leaves")
    body = b"\x01\x55\x00\x03abc"
    data = header(made.root) + bytes([len(body)]) + body + car(made, depth_first(made))
    for foreign in (True, False):
        with pytest.raises(BadContent) as caught:
            fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=False, foreign=foreign), data, 400)
        assert isinstance(caught.value, BadDag) == foreign


def test_a_car_with_far_too_much_is_refused() -> None:
    data = bytes(1 << 20) + random.Random(6).randbytes(6 << 20)
    made = make_dag(data, chunk=1 << 20, width=10)
    end = len(data)
    with pytest.raises(TooMuch):
        fed(CarWalk(made.root, end, end - 5, end, ordered=True), car(made, depth_first(made)), 1 << 20)


def test_a_car_with_more_beside_the_range_than_is_remembered_is_no_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dag, "_MOST_ASIDE", 50)
    made = layout("raw leaves")
    with pytest.raises(TooMuch):
        fed(CarWalk(made.root, 10_000, 9_900, 10_000, ordered=True), car(made, depth_first(made)), 400)


def refused(made: MadeDag, size: int, end: int | None = None) -> None:
    with pytest.raises(BadDag):
        walked(made, Walk(made.root, size, 0, size if end is None else end), random.Random(1))


def test_sizes_that_do_not_add_up_are_refused() -> None:
    refused(layout("raw leaves"), 9_999)
    refused(layout("raw leaves"), 10_001)
    refused(make_dag(b"one leaf"), 7)
    made = MadeDag()
    leaf = made.put(CID_RAW_PREFIX, bytes(100))
    for data in (
        unixfs_data(b"", [100, 100], size=150),
        unixfs_data(b"", [100]),
        unixfs_data(b"", [90, 110]),
        unixfs_data(b"", [200, 0]),
        unixfs_data(b"", [100, 100], kind=1),
        unixfs_data(b"", [100, 100], kind=0),
        unixfs_data(b"", [100, 100], kind=5),
        b"\xff",
    ):
        made.root = made.put(CID_DAG_PB_PREFIX, dag_pb(data, [leaf, leaf]))
        refused(made, 200)


def test_depth_and_number_of_blocks_are_bounded() -> None:
    made = MadeDag()
    cid = made.put(CID_RAW_PREFIX, b"x")
    for _ in range(60):
        cid = made.put(CID_DAG_PB_PREFIX, dag_pb(unixfs_data(b"", [1]), [cid]))
    made.root = cid
    refused(made, 1)
    crumbs = make_dag(bytes(40_000), chunk=1, width=200)
    refused(crumbs, 40_000)
    assert walked(crumbs, Walk(crumbs.root, 40_000, 39_000, 39_100), random.Random(1)) == bytes(100)


def test_a_bomb_of_equal_links_is_not_followed() -> None:
    made, size = MadeDag(), 1
    cid = made.put(CID_RAW_PREFIX, b"x")
    for _ in range(20):
        cid = made.put(CID_DAG_PB_PREFIX, dag_pb(unixfs_data(b"", [size] * 100), [cid] * 100))
        size *= 100
    made.root = cid
    refused(made, size)
    refused(made, size, 1 << 20)


def test_links_of_other_kinds_are_refused() -> None:
    for cid in (b"\x01\x71\x12\x20" + bytes(32), b"\x01\x55\x00\x03abc", b"\x01\x55\x13\x40" + bytes(64), b""):
        with pytest.raises(BadDag):
            read_node(dag_pb(unixfs_data(b"", [3]), [cid]))


def test_cids_as_people_write_them() -> None:
    v1 = CID_DAG_PB_PREFIX + bytes.fromhex("29f2d17be6139079dc48696d1f582a8530eb9805b561eda517e22a892c7e3f1f")
    assert any_cid("QmRJzsvyCQyizr73Gmms8ZRtvNxmgqumxc2KUp71dfEmoj") is not None
    assert any_cid(cid_text(v1)) == v1
    raw = CID_RAW_PREFIX + v1[4:]
    assert any_cid(cid_text(raw)) == raw
    assert any_cid("f" + v1.hex()) == v1
    for text in ("", "Qm", "b", "bafk", "Qm" + "0" * 44, "z0", "f0155", cid_text(v1) + "a", "bafkqaaa", "ü" * 59):
        assert any_cid(text) is None


def test_a_cid_of_version_0_is_that_of_the_same_block() -> None:
    # the empty directory, which every IPFS node knows
    block = b"\x0a\x02\x08\x01"
    cid = any_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")
    assert cid is not None
    assert matches(cid, block)
    assert read_directory(block) == {}


def test_hints() -> None:
    root = CID_RAW_PREFIX + bytes(32)
    text = cid_text(root)
    assert read_hint(f"ipfs://{text}") == Hint(root)
    assert read_hint(f"ipfs://{text}/a/b%20c/?x=1") == Hint(root, ("a", "b%20c"))
    for url in ("https://example.com/x", "ipfs://", "ipfs://x", f"ipfs://{text}" + "/a" * 9, f"IPFS:{text}"):
        assert read_hint(url) is None


@given(st.text(max_size=100), st.booleans())
def test_any_url_is_a_hint_or_none(text: str, ours: bool) -> None:
    hint = read_hint(f"ipfs://{cid_text(CID_RAW_PREFIX + bytes(32))}/{text}" if ours else f"ipfs://{text}")
    assert hint is None or len(hint.root) == 36


def test_a_directory() -> None:
    one, two = CID_RAW_PREFIX + bytes(32), CID_DAG_PB_PREFIX + bytes(32)
    block = dag_pb(b"\x08\x01", [one, two], ["layer", "ü"], v0=True)
    assert read_directory(block) == {"layer": one, "ü": two}
    with pytest.raises(BadDag):
        read_directory(dag_pb(unixfs_data(b"file")))
    with pytest.raises(BadDag):
        read_node(block)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_node_or_refused(data: bytes) -> None:
    for read in (read_node, read_directory):
        with contextlib.suppress(BadDag):
            read(data)


@settings(max_examples=150)
@given(st.data())
def test_a_node_with_any_change_is_read_or_refused(data: st.DataObject) -> None:
    made = layout(data.draw(st.sampled_from(sorted(LAYOUTS))))
    block = bytearray(made.blocks[data.draw(st.sampled_from(sorted(made.blocks)))])
    for _ in range(data.draw(st.integers(1, 4))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    try:
        node = read_node(bytes(block))
    except BadDag:
        return
    assert node.size == len(node.data) + sum(size for _cid, size in node.links)


@given(st.binary(max_size=400), st.integers(1, 50), st.booleans())
def test_any_bytes_are_a_car_or_refused(data: bytes, step: int, ordered: bool) -> None:
    made = layout("raw leaves")
    with pytest.raises(BadContent):
        fed(CarWalk(made.root, 10_000, 0, 10_000, ordered=ordered), data, step)


@settings(max_examples=100)
@given(st.data(), st.booleans())
def test_a_car_with_any_change_gives_the_right_bytes_or_none(data: st.DataObject, ordered: bool) -> None:
    """However it is split: never wrong bytes."""
    made = make_dag(DATA[:1_500], chunk=100, width=4, leaves="file", v0=True)
    blob = bytearray(car(made, depth_first(made), v0=True))
    for _ in range(data.draw(st.integers(0, 2))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    walk, out = CarWalk(made.root, 1_500, 0, 1_500, ordered=ordered), b""
    try:
        for part in (blob[:cut], blob[cut:]):
            out += b"".join(walk.feed(bytes(part)))
        walk.close()
    except BadContent:
        assert DATA.startswith(out)
        return
    assert out == DATA[:1_500]


@settings(max_examples=60)
@given(
    st.binary(min_size=0, max_size=3_000),
    st.integers(50, 700),
    st.integers(2, 6),
    st.sampled_from(["raw", "file", "typed-raw"]),
    st.integers(0, 40),
    st.integers(),
)
def test_any_file_in_any_layout(data: bytes, chunk: int, width: int, leaves: Any, inline: int, seed: int) -> None:
    made, draw = make_dag(data, chunk=chunk, width=width, leaves=leaves, inline=inline), random.Random(seed)
    assert walked(made, Walk(made.root, len(data), 0, len(data)), draw, draw.randrange(1, 5)) == data
    start = draw.randrange(len(data) + 1)
    end = draw.randrange(start, len(data) + 1)
    assert walked(made, Walk(made.root, len(data), start, end), draw) == data[start:end]
    whole = car(made, depth_first(made))
    if data:
        assert fed(CarWalk(made.root, len(data), start, end, ordered=True), whole, 501) == data[start:end]
