"""Several ranges in one request: what is taken of them, how the answer is framed, and which pieces that needs."""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import random
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import RequestError
from p2pregistry.oci.ranges import MAX_RANGES, Multipart, parse_ranges
from p2pregistry.reading import piece_runs


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (None, None),
        ("bytes=3-4", [(3, 2)]),
        ("bytes=0-1,10-19,-5", [(0, 2), (10, 10), (95, 5)]),
        ("Bytes = 10-19 ,\t0-1 , ,", [(10, 10), (0, 2)]),  # as asked, not in order
        ("bytes=0-1,2-3", [(0, 2), (2, 2)]),  # they touch, and stay two
        ("bytes=50-,0-0", [(50, 50), (0, 1)]),
        ("bytes=0-0,500-600", [(0, 1)]),  # what is outside is left out
        ("bytes=0-0,-0", [(0, 1)]),
        ("bytes=-1000,5-6", [(0, 100)]),
        ("bytes=50-60,0-9,55-70", [(0, 10), (50, 21)]),
        ("bytes=0-,0-,0-,0-", [(0, 100)]),
        ("bytes=0-1,5-4", None),
        ("bytes=0-1,x", None),
        ("bytes=0-1,-", None),
        ("bytes=0-1;5-6", None),
        ("bytes=,", None),
        ("bytes,0-1", None),
        ("pages=0-1,2-3", None),
    ],
)
def test_several_ranges(header: str | None, parts: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(header, 100) == parts


@pytest.mark.parametrize("header", ["bytes=100-,200-300", "bytes=-0,-0", "bytes=100-101,"])
def test_none_of_them_in_the_blob(header: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_ranges(header, 100)
    assert (caught.value.status, caught.value.headers) == (416, {"Content-Range": "bytes */100"})


def test_as_many_as_clients_ask_for_and_no_more() -> None:
    size = 10 * MAX_RANGES + 100
    asked = [(10 * n, 5) for n in range(MAX_RANGES)]
    header = "bytes=" + ",".join(f"{offset}-{offset + length - 1}" for offset, length in asked)
    assert parse_ranges(header, size) == asked
    assert parse_ranges(header + ",9000-9001", size) is None
    assert parse_ranges("bytes=" + "," * 60_000, size) is None


@given(
    st.one_of(
        st.text(max_size=40),
        st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,20}( ?,[0-9]{0,3}-[0-9]{0,3}){0,20}", fullmatch=True),
        st.text(alphabet="bytes=0123456789-, ", max_size=60).map(lambda text: "bytes=" + text),
    ),
    st.integers(0, 2000),
)
def test_any_header_gives_parts_inside_or_is_refused_or_ignored(header: str, size: int) -> None:
    parts: list[tuple[int, int]] | RequestError | None
    try:
        parts = parse_ranges(header, size)
    except RequestError as err:
        parts = err
    if isinstance(parts, RequestError):
        assert parts.status == 416
        return
    if parts is None:
        return
    assert 1 <= len(parts) <= MAX_RANGES
    assert all(0 <= offset < offset + length <= size for offset, length in parts)
    ordered = sorted(parts)
    for (offset, length), (following, _) in itertools.pairwise(ordered):
        assert offset + length <= following  # no byte is sent twice


# ------------------------------------------------------------------------------------------------------------- framing


def framed(multipart: Multipart, data: bytes) -> bytes:
    parts = zip(multipart.heads, multipart.parts, strict=True)
    return b"".join(head + data[at : at + length] for head, (at, length) in parts) + multipart.tail


def read(content_type: str, body: bytes) -> list[tuple[str, str, bytes]]:
    """Content-Type, Content-Range and bytes of each part, by another's MIME parser."""
    message = email.parser.BytesParser(EmailMessage, policy=email.policy.HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body
    )
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    found = []
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found.append((str(part["content-type"]), str(part["content-range"]), content))
    return found


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 100)), min_size=1, max_size=8), st.randoms())
def test_another_parser_reads_what_was_framed(parts: list[tuple[int, int]], rng: random.Random) -> None:
    data = bytes(rng.choices(b"abc-", k=1000))
    multipart = Multipart(parts, len(data), "application/octet-stream", "0123456789abcdef" * 4)
    body = framed(multipart, data)
    assert len(body) == multipart.length
    assert read(multipart.content_type, body) == [
        ("application/octet-stream", f"bytes {at}-{at + length - 1}/1000", data[at : at + length])
        for at, length in parts
    ]


# -------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("ranges", "runs"),
    [
        ([(0, 1)], [(0, 1)]),
        ([(PIECE_SIZE - 1, 2)], [(0, 2)]),
        ([(0, PIECE_SIZE), (PIECE_SIZE, 1)], [(0, 2)]),
        ([(9 * PIECE_SIZE, 1), (0, 1), (5, 9), (5 * PIECE_SIZE, PIECE_SIZE + 1)], [(0, 1), (5, 7), (9, 10)]),
        ([(0, 10 * PIECE_SIZE), (PIECE_SIZE, 5)], [(0, 10)]),
    ],
)
def test_the_pieces_of_ranges(ranges: list[tuple[int, int]], runs: list[tuple[int, int]]) -> None:
    assert piece_runs(ranges) == runs


@given(st.lists(st.tuples(st.integers(0, 40 * PIECE_SIZE), st.integers(1, 4 * PIECE_SIZE)), min_size=1, max_size=20))
def test_runs_are_exactly_the_pieces_touched(ranges: list[tuple[int, int]]) -> None:
    runs = piece_runs(ranges)
    touched = {i for at, length in ranges for i in range(at // PIECE_SIZE, (at + length - 1) // PIECE_SIZE + 1)}
    assert [i for start, end in runs for i in range(start, end)] == sorted(touched)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(runs))
