"""How drafts lie in S3 and how they are joined: decisions on plain values."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.objects.s3_parts import (
    PARTS_MOST,
    Part,
    chain,
    cut,
    identity,
    next_generation,
    parse_part,
    plan,
    plan_equal,
    slices,
)

LEAST, LENGTH = 50, 80
SIZES = st.lists(st.integers(1, 2 * LENGTH), min_size=1, max_size=40)


def row(sizes: list[int], generation: int = 1, start: int = 0, token: str = "0" * 8) -> list[Part]:
    ends = list(accumulate(sizes, initial=start))
    return [Part(generation, first, last - first, token) for first, last in pairwise(ends)]


def covered(segments: list) -> list[tuple[int, int]]:
    """The ranges of the draft that segments take, in order."""
    return [
        (piece.part.offset + piece.skip, piece.part.offset + piece.skip + piece.length)
        for segment in segments
        for piece in segment.slices
    ]


def assert_covers(segments: list, total: int) -> None:
    ranges = covered(segments)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(ranges))


@given(
    st.integers(0, 10**14), st.integers(0, 10**15), st.integers(1, 10**9), st.from_regex("[0-9a-f]{8}", fullmatch=True)
)
def test_a_part_is_read_back_from_its_name(generation: int, offset: int, size: int, token: str) -> None:
    part = Part(generation, offset, size, token)
    assert parse_part(part.name) == part


@given(st.text(max_size=70))
def test_other_names_are_no_parts(name: str) -> None:
    part = parse_part(name)
    assert part is None or part.name == name


@given(SIZES)
def test_every_byte_is_joined_once_in_order_and_no_part_but_the_last_is_too_small(sizes: list[int]) -> None:
    parts = row(sizes)
    segments = plan(parts, LEAST)
    assert_covers(segments, sum(sizes))
    assert all(segment.length >= LEAST for segment in segments[:-1])
    assert all(segment.slices[0].part.size == segment.length for segment in segments if segment.copy)


@given(st.integers(1, 3000))
def test_what_comes_in_one_go_is_copied_by_the_server_alone(size: int) -> None:
    parts = row(cut(size, LENGTH))
    assert sum(part.size for part in parts) == size
    assert all(segment.copy for segment in plan(parts, LEAST))


@given(SIZES)
def test_equal_parts_are_equal_but_for_the_last(sizes: list[int]) -> None:
    segments = plan_equal(row(sizes), LENGTH, LEAST)
    assert_covers(segments, sum(sizes))
    assert all(segment.length == LENGTH for segment in segments[:-1])
    assert 0 < segments[-1].length <= LENGTH
    for segment in segments:
        if segment.copy:
            piece = segment.slices[0]
            assert piece.length == piece.part.size or piece.part.size > LEAST


def test_an_object_of_any_size_fits_into_one_multipart_upload() -> None:
    parts = row([LEAST] * (2 * PARTS_MOST))
    for segments in (plan(parts, LEAST), plan_equal(parts, LEAST, LEAST)):
        assert len(segments) <= PARTS_MOST
        assert_covers(segments, sum(part.size for part in parts))


@given(SIZES, st.data())
def test_slices_are_the_bytes_that_were_asked_for(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    offset = data.draw(st.integers(0, total))
    length = data.draw(st.integers(0, total - offset))
    found = [(piece.part.offset + piece.skip, piece.length) for piece in slices(row(sizes), offset, length)]
    assert sum(size for _, size in found) == length
    for at, size in found:
        assert at == offset
        offset += size


@given(SIZES, st.permutations(range(40)))
def test_the_order_in_which_parts_are_listed_does_not_matter(sizes: list[int], order: list[int]) -> None:
    parts = row(sizes)
    assert chain([parts[i] for i in order if i < len(parts)]) == parts


@given(SIZES, st.data())
def test_a_draft_ends_where_a_part_is_missing(sizes: list[int], data: st.DataObject) -> None:
    parts = row(sizes)
    gone = data.draw(st.integers(0, len(parts) - 1))
    assert chain(parts[:gone] + parts[gone + 1 :]) == parts[:gone]


@given(SIZES, SIZES, SIZES, st.data())
def test_the_later_holders_bytes_count_whatever_an_earlier_one_still_writes(
    first: list[int], stale: list[int], later: list[int], data: st.DataObject
) -> None:
    ours = row(first)
    taken = data.draw(st.integers(0, len(ours)))  # parts that were recorded when the other took over
    base = ours[taken - 1].end if taken else 0
    late = row(stale, 1, ours[-1].end)
    new = row(later, 2, base, "1" * 8)
    assert chain(ours + late + new) == ours[:taken] + new


def test_a_generation_is_above_all_others_also_where_the_clock_is_behind() -> None:
    assert next_generation([], 1000.0) == 1_000_000
    assert next_generation(row([5], 2_000_000), 1000.0) == 2_000_001
    assert next_generation(row([5], 1_000), 1000.0) == 1_000_000


def test_an_identity_is_that_of_these_bytes_only() -> None:
    one, other = row([5, 6]), row([5, 6], token="1" * 8)
    assert identity(one) == identity(row([5, 6]))
    assert len({identity(one), identity(other), identity(one[:1]), identity([])}) == 4
