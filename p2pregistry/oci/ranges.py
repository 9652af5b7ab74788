"""Byte ranges: ``Range`` of a request (RFC 9110 section 14) and ``Content-Range`` of an upload (distribution-spec)."""

from __future__ import annotations

import re

from p2pregistry.errors import RequestError

_SPEC = re.compile(r"(\d{0,18})-(\d{0,18})")
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
