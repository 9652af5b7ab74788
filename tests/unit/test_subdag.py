"""A block of a DAG and what hangs below it: exactly the blocks that a client needs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content import subdag
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.subdag import LEAVES, Place, depth, extent, inner_place, pieces, walk
from p2pregistry.content.unixfs import PIECE_SIZE, build, links
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest

WIDTH = 3


def table(count: int, short: int = 0) -> Metainfo:
    """Of a blob of so many different pieces; the last has ``short`` bytes less. Nodes have three links each."""
    hashes = b"".join(hashlib.sha256(bytes([index])).digest() for index in range(count))
    size = count * PIECE_SIZE - short
    return Metainfo(Digest.of(b"x"), size, build(hashes, size, width=WIDTH).root, hashes)


def below(info: Metainfo, root: bytes, at: int, part: tuple[int, int] | None) -> list[bytes]:
    """By following links: the blocks below one whose bytes begin at ``at``, and of those only the ones that have bytes
    between the two of ``part``, counted from there. Nodes are the full ones of a tree of three links each."""
    nodes = {
        CID_DAG_PB_PREFIX + hashlib.sha256(block).digest(): block
        for block in build(info.hashes, info.size, width=WIDTH).blocks
    }
    order = {CID_RAW_PREFIX + info.hash(index): index for index in range(info.count)}

    def span(cid: bytes) -> tuple[int, int]:
        """The first byte below a block and the one after the last."""
        if cid in order:
            return order[cid] * PIECE_SIZE, order[cid] * PIECE_SIZE + info.length(order[cid])
        spans = [span(child) for child in links(nodes[cid])]
        return spans[0][0], spans[-1][1]

    def visit(cid: bytes) -> list[bytes]:
        begin, end = span(cid)
        if cid != root and part is not None and (end - at <= part[0] or begin - at > part[1]):
            return []
        return [cid, *(one for child in links(nodes.get(cid, b"")) for one in visit(child))]

    return visit(root)


COUNTS = st.integers(1, 30)


@given(COUNTS, st.integers(0, PIECE_SIZE - 1), st.data())
def test_the_blocks_below_are_those_that_links_lead_to(count: int, short: int, data: st.DataObject) -> None:
    info = table(count, short)
    place, sha256 = data.draw(st.sampled_from([*blocks_of(info)]))
    cid = (CID_RAW_PREFIX if place.level == LEAVES else CID_DAG_PB_PREFIX) + sha256
    begin, length = extent(info.size, place, WIDTH)
    first = data.draw(st.integers(0, length - 1))
    for part in (None, (first, data.draw(st.integers(first, length - 1)))):
        found = list(walk(info, place, part, width=WIDTH))
        assert [one for one, _ in found] == below(info, cid, begin, part)
        for one, step in found:
            if isinstance(step, bytes):
                assert CID_DAG_PB_PREFIX + hashlib.sha256(step).digest() == one
            else:
                assert CID_RAW_PREFIX + info.hash(step) == one


def blocks_of(info: Metainfo) -> list[tuple[Place, bytes]]:
    return list(subdag.blocks(info, width=WIDTH))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10, 27, 28])
def test_every_block_has_a_place_of_its_own(count: int) -> None:
    info = table(count)
    found = blocks_of(info)
    assert [place for place, _ in found[:count]] == [Place(0, index) for index in range(count)]
    inner = [place for place, _ in found[count:]]
    assert len(set(inner)) == len(inner) == len(build(info.hashes, info.size, width=WIDTH).blocks)
    assert max((place.level for place, _ in found)) == depth(count, WIDTH)
    with pytest.raises(IndexError):
        inner_place(count, len(inner), WIDTH)
    for level in range(1, depth(count, WIDTH) + 1):  # what is below the nodes of a level is the whole
        row = sorted((place for place in inner if place.level == level), key=lambda place: place.index)
        assert [piece for place in row for piece in range(pieces(info.size, place, WIDTH)[0],
                pieces(info.size, place, WIDTH)[1] + 1)] == list(range(count))  # fmt: skip


def test_the_extent_of_a_block() -> None:
    size = 5 * PIECE_SIZE - 10
    assert extent(size, Place(0, 4), WIDTH) == (4 * PIECE_SIZE, PIECE_SIZE - 10)
    assert extent(size, Place(1, 0), WIDTH) == (0, 3 * PIECE_SIZE)
    assert extent(size, Place(1, 1), WIDTH) == (3 * PIECE_SIZE, 2 * PIECE_SIZE - 10)
    assert extent(size, Place(2, 0), WIDTH) == (0, size)
    assert extent(0, Place(0, 0)) == (0, 0)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_the_beginning_of_a_hash(sha256: bytes) -> None:
    assert subdag.key_of(sha256).to_bytes(8, "big", signed=True) == sha256[:8]
