"""Byte ranges: ``Range`` of a request (RFC 9110 section 14) and ``Content-Range`` of an upload (distribution-spec)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pregistry.errors import RequestError

_SPEC = re.compile(r"(\d{0,18})-(\d{0,18})")
#: Ranges in one request; with more of them the whole is the answer. Clients that pull lazily ask for up to 200.
MAX_RANGES: Final = 256
_UPLOAD = re.compile(r"(\d{1,18})-(\d{1,18})")


def _unsatisfiable(size: int, header: str) -> RequestError:
    return RequestError(
        "SIZE_INVALID",
        "the range lies outside the blob",
        status=416,
        detail={"range": header[:100], "size": size},
        headers={"Content-Range": f"bytes */{size}"},
    )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The part of a blob of ``size`` bytes that a request asks for, as (offset, length).

    None means the whole: there was no header, or it is one that a server may ignore (another unit, several ranges,
    not a range at all). Raises RequestError with status 416 and a Content-Range header where nothing of the range
    exists, the backward range ``500-0`` included.
    """
    if header is None:
        return None
    unit, equals, spec = header.partition("=")
    match = _SPEC.fullmatch(spec.strip())
    if unit.strip().lower() != "bytes" or not equals or match is None or spec.strip() == "-":
        return None
    first, last = match.groups()
    if not first:  # the last N bytes
        length = min(int(last), size)
        if length == 0:
            raise _unsatisfiable(size, header)
        return size - length, length
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if start >= size or end < start:
        raise _unsatisfiable(size, header)
    return start, end - start + 1


def parse_ranges(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """As ``parse_range``, for a request that may ask for several parts: (offset, length) of each in the order asked.

    What lies outside the blob is left out. Ranges that overlap are joined, in ascending order, so an answer is never
    longer than the blob and its part heads (RFC 9110, 14.2 and 15.3.7.2); those that only touch are not, because
    clients count the parts. None, the whole, also for more than MAX_RANGES.
    """
    if header is None or "," not in header:
        part = parse_range(header, size)
        return None if part is None else [part]
    unit, equals, listed = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals or listed.count(",") > 2 * MAX_RANGES:
        return None
    specs = [spec for spec in (item.strip() for item in listed.split(",")) if spec]  # a list may have empty items
    if not 0 < len(specs) <= MAX_RANGES:
        return None
    parts = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        if start < end:
            parts.append((start, end - start))
    if not parts:
        raise _unsatisfiable(size, header)
    return _without_overlaps(parts)


def _without_overlaps(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(parts):
        if joined and offset < sum(joined[-1]):
            start, had = joined[-1]
            joined[-1] = (start, max(had, offset + length - start))
        else:
            joined.append((offset, length))
    return parts if len(joined) == len(parts) else joined


@dataclass(frozen=True, slots=True)
class Multipart:
    """The framing of several parts in one answer (RFC 9110, 14.6): before each part its head, after all the tail.

    ``boundary``, of 1 to 70 characters, must not occur in the blob. Its own digest does not: nobody can make a blob
    that contains it.
    """

    parts: Sequence[tuple[int, int]]
    size: int
    media_type: str
    boundary: str
    heads: list[bytes] = field(init=False)
    tail: bytes = field(init=False)
    length: int = field(init=False)  # of the whole body, bytes

    def __post_init__(self) -> None:
        heads = [
            (
                f"\r\n--{self.boundary}\r\nContent-Type: {self.media_type}\r\n"
                f"Content-Range: {content_range(offset, length, self.size)}\r\n\r\n"
            ).encode("ascii")
            for offset, length in self.parts
        ]
        heads[0] = heads[0][2:]  # the line break belongs to the boundary, and there is nothing before the first
        tail = f"\r\n--{self.boundary}--\r\n".encode("ascii")
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "tail", tail)
        object.__setattr__(self, "length", sum(map(len, heads)) + sum(length for _, length in self.parts) + len(tail))

    @property
    def content_type(self) -> str:
        """The Content-Type of the answer."""
        return f"multipart/byteranges; boundary={self.boundary}"


def content_range(offset: int, length: int, size: int) -> str:
    """The Content-Range of a 206."""
    return f"bytes {offset}-{offset + length - 1}/{size}"


def parse_content_range(header: str) -> tuple[int, int]:
    """``a-b`` of an upload's chunk (no unit), both inclusive. Raises RequestError (BLOB_UPLOAD_INVALID, 400)."""
    match = _UPLOAD.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise RequestError(
            "BLOB_UPLOAD_INVALID",
            "Content-Range of an upload is <first>-<last>",
            detail={"content-range": header[:100]},
        )
    return int(match[1]), int(match[2])
