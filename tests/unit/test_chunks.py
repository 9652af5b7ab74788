"""Bodies in chunks, however they are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import Unreachable
from p2pregistry.sources.chunks import Chunks


def body(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def decode(data: bytes, splits: list[int]) -> tuple[bytes, bool]:
    chunks, found, at = Chunks(), b"", 0
    for split in [*sorted(split % (len(data) + 1) for split in splits), len(data)]:
        found += b"".join(chunks.feed(data[at:split]))
        at = split
    return found, chunks.done


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 10_000), max_size=20))
def test_what_was_sent_comes_out(parts: list[bytes], splits: list[int]) -> None:
    assert decode(body(*parts), splits) == (b"".join(parts), True)


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=5))
def test_any_bytes_give_a_body_or_our_error(data: bytes, splits: list[int]) -> None:
    try:
        found, _ = decode(data, splits)
    except Unreachable:
        return
    assert len(found) <= len(data)


@pytest.mark.parametrize(
    "data",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"3\r\nabc\rX", b"1" * 9 + b"\r\n", b"1;" + b"x" * 300, b" 1\r\n"],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(Unreachable):
        decode(data, [])


def test_extensions_are_passed_over_and_the_end_is_not_taken_too_early() -> None:
    assert decode(b"1;a=b\r\nx\r\n0\r\n\r", []) == (b"x", False)
    assert decode(b"A \r\n0123456789\r\n0\r\n\r\n", []) == (b"0123456789", True)
