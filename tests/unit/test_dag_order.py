"""A DAG depth first: what a CAR in that order is made of."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.unixfs import PIECE_SIZE, build, in_order, links, piece_count
from p2pregistry.digest import CID_RAW_PREFIX


def hashes(count: int) -> bytes:
    return b"".join(hashlib.sha256(bytes([index])).digest() for index in range(count))


def walked(root: bytes, blocks: dict[bytes, bytes]) -> list[bytes]:
    """Every CID below the root, by following links."""
    found, stack = [], [root]
    while stack:
        cid = stack.pop()
        found.append(cid)
        if cid in blocks:
            stack += reversed(links(blocks[cid]))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 10, 27, 28])
def test_the_whole_dag_is_in_the_order_of_its_links(count: int) -> None:
    size = count * PIECE_SIZE - 7
    dag = build(hashes(count), size, width=3)
    steps = list(in_order(hashes(count), size, width=3))
    blocks = {cid: step for cid, step in steps if isinstance(step, bytes)}
    assert set(blocks.values()) == set(dag.blocks)
    assert [cid for cid, _ in steps] == walked(dag.root, blocks)
    assert [step for _, step in steps if isinstance(step, int)] == list(range(count))
    for cid, step in steps:
        if isinstance(step, int):
            assert cid == CID_RAW_PREFIX + hashes(count)[32 * step : 32 * step + 32]


@given(st.data(), st.integers(1, 60))
def test_of_a_range_there_is_what_leads_to_it_and_nothing_else(data: st.DataObject, count: int) -> None:
    size = count * PIECE_SIZE
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count + 3))
    whole = list(in_order(hashes(count), size, width=3))
    part = list(in_order(hashes(count), size, first, last, width=3))
    pieces = [step for _, step in part if isinstance(step, int)]
    assert pieces == list(range(first, min(last, count - 1) + 1))
    assert part[0] == whole[0]
    blocks = {cid: step for cid, step in whole if isinstance(step, bytes)}

    def leads(cid: bytes) -> bool:
        wanted = {CID_RAW_PREFIX + hashes(count)[32 * i : 32 * i + 32] for i in pieces}
        return bool(wanted & set(walked(cid, blocks)))

    assert part == [(cid, step) for cid, step in whole if leads(cid)]


def test_a_blob_of_one_piece_is_its_own_leaf() -> None:
    assert list(in_order(hashes(1), 9)) == [(CID_RAW_PREFIX + hashes(1), 0)]
    assert piece_count(0) == 1
    empty = hashlib.sha256(b"").digest()
    assert list(in_order(empty, 0)) == [(CID_RAW_PREFIX + empty, 0)]
