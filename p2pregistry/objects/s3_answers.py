"""What S3 answers in XML.

The answers come from a server that the operator chose, over TLS as a rule, and are read with care all the same: a
document type declaration, with which small answers can be made to unfold without end, is refused, and so is what is not
UTF-8. Elements are found by their local names, because servers differ in the namespace that they state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: The highest size that is believed: S3 knows none above 50 TB.
_SIZE_MOST: Final = 1 << 53


class BadAnswer(ValueError):
    """An answer is not what S3 says it is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a list: ``size`` in bytes, ``modified`` in seconds since 1970."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; ``next`` continues it, None at the end."""

    entries: tuple[Entry, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    number: str
    initiated: float


def error_code(data: bytes) -> str:
    """The code of an error document, "" if it is none: never anything that could not be logged as it is."""
    try:
        root = _document(data)
    except BadAnswer:
        return ""
    if _name(root) == "ErrorResponse":  # of some gateways
        root = next((child for child in root if _name(child) == "Error"), root)
    code = _text(root, "Code") if _name(root) == "Error" else ""
    return code if _CODE.fullmatch(code) else ""


def objects_page(data: bytes) -> Page:
    """An answer to ListObjectsV2. Raises BadAnswer."""
    root = _root(data, "ListBucketResult")
    entries = tuple(
        Entry(_required(child, "Key"), _size(_required(child, "Size")), _time(_text(child, "LastModified")))
        for child in _children(root, "Contents")
    )
    if _text(root, "IsTruncated").lower() != "true":
        return Page(entries, None)
    return Page(entries, _required(root, "NextContinuationToken"))


def uploads_page(data: bytes) -> tuple[tuple[Unfinished, ...], tuple[str, str] | None]:
    """An answer to ListMultipartUploads, and the markers (key, upload id) that continue it. Raises BadAnswer."""
    root = _root(data, "ListMultipartUploadsResult")
    found = tuple(
        Unfinished(_required(child, "Key"), _required(child, "UploadId"), _time(_text(child, "Initiated")))
        for child in _children(root, "Upload")
    )
    if _text(root, "IsTruncated").lower() != "true":
        return found, None
    return found, (_required(root, "NextKeyMarker"), _text(root, "NextUploadIdMarker"))


def upload_id(data: bytes) -> str:
    """An answer to CreateMultipartUpload. Raises BadAnswer."""
    return _required(_root(data, "InitiateMultipartUploadResult"), "UploadId")


def copied_etag(data: bytes) -> str:
    """An answer to UploadPartCopy. Raises BadAnswer."""
    return _required(_root(data, "CopyPartResult"), "ETag")


def completed(data: bytes) -> None:
    """An answer to CompleteMultipartUpload. Raises BadAnswer."""
    _root(data, "CompleteMultipartUploadResult")


def completion(etags: list[str]) -> bytes:
    """The body of CompleteMultipartUpload: parts 1, 2, ... with these tags."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{space}">{parts}</CompleteMultipartUpload>'.encode()


def _document(data: bytes) -> ElementTree.Element:
    try:
        text = data.decode()
    except UnicodeDecodeError as err:
        raise BadAnswer("an answer is not UTF-8") from err
    if "<!DOCTYPE" in text:
        raise BadAnswer("an answer declares a document type")
    try:
        return ElementTree.fromstring(text.lstrip())  # noqa: S314 - without a document type there is nothing to unfold
    except (ElementTree.ParseError, ValueError) as err:
        raise BadAnswer("an answer is not XML") from err


def _root(data: bytes, name: str) -> ElementTree.Element:
    root = _document(data)
    if _name(root) != name:
        raise BadAnswer(f"an answer is not a {name}")
    return root


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _name(child) == name)


def _text(element: ElementTree.Element, name: str) -> str:
    return next((child.text or "" for child in _children(element, name)), "").strip()


def _required(element: ElementTree.Element, name: str) -> str:
    text = _text(element, name)
    if not text:
        raise BadAnswer(f"an answer has no {name}")
    return text


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 16 or int(text) > _SIZE_MOST:
        raise BadAnswer("a size is no number of bytes")
    return int(text)


def _time(text: str) -> float:
    """Seconds since 1970; 0.0 where a server does not say, or says it in a way of its own."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
