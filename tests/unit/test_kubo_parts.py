"""How a draft lies in an IPFS daemon's files."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, build, links
from p2pregistry.errors import BadContent
from p2pregistry.objects.kubo_parts import (
    Part,
    chain,
    hashes_of,
    made,
    object_directory,
    parse_part,
    part_directory,
    part_hashes,
    tree,
)
from p2pregistry.testing.objects import pattern

PARTS = st.builds(
    Part,
    generation=st.integers(0, 3),
    written=st.integers(0, 5),
    offset=st.integers(0, 3).map(lambda pieces: pieces * PIECE_SIZE),
    size=st.integers(1, 3 * PIECE_SIZE),
    token=st.sampled_from(["00000000", "ffffffff"]),
)


@given(st.lists(PARTS, max_size=8), st.randoms())
def test_whatever_parts_there_are_they_make_up_a_draft_without_gaps(parts: list[Part], random: object) -> None:
    found = chain(parts)
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert chain(parts) == found
    at = 0
    for part in found:
        assert part.offset == at
        at = part.end
    assert found == sorted(found, key=lambda part: part.offset)
    assert {parse_part(part.name) for part in parts} == set(parts)


@given(st.text(max_size=80))
def test_any_name_is_a_part_or_none(name: str) -> None:
    part = parse_part(name)
    assert part is None or part.name == name


def test_a_later_part_replaces_what_it_begins_in() -> None:
    first, tail = Part(1, 1, 0, PIECE_SIZE, "aaaaaaaa"), Part(1, 2, PIECE_SIZE, 5, "aaaaaaaa")
    longer = Part(1, 3, PIECE_SIZE, PIECE_SIZE, "aaaaaaaa")
    assert chain([first, tail]) == [first, tail]
    assert chain([first, tail, longer]) == [first, longer]
    other = Part(2, 1, 0, 7, "bbbbbbbb")
    assert chain([first, tail, longer, other]) == [other], "who came later knows what went before"
    assert chain([tail]) == []


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE])
def test_a_part_gives_its_hashes_back(size: int) -> None:
    data = pattern(size)
    hashes = hashes_of(data)
    file = tree(hashes, size)
    assert file.root.cid == Metainfo.of_bytes(data).root
    block = file.blocks[0] if file.blocks else b""
    assert part_hashes(file.root.cid, size, block) == hashes
    if size > PIECE_SIZE:
        with pytest.raises(BadContent):
            part_hashes(file.root.cid, size + PIECE_SIZE, block)
        with pytest.raises(BadContent):
            part_hashes(file.root.cid, size, build(hashes_of(pattern(size, 1)), size).blocks[0])


def test_directories_name_their_file_and_are_like_no_other() -> None:
    root = tree(hashes_of(b"bytes"), 5).root
    blocks = [
        object_directory(root, 1),
        object_directory(root, 2),
        part_directory(root, "a"),
        part_directory(root, "b"),
    ]
    assert len({hashlib.sha256(block).digest() for block in blocks}) == 4
    assert all(root.cid in links(block) for block in blocks)
    assert made([".bytes", ".made-1700000000250"]) == 1_700_000_000.25
    assert made([".bytes"]) == 0.0
