"""HTTP/1.1 heads as bytes (RFC 9112), without I/O.

``plain_head`` is a second, narrow parser beside h11: it takes only the plain GET or HEAD that makes up nearly all
traffic, and says None to everything else, which then goes to h11. It may never accept what h11 refuses or read it
differently; a property test holds it to that. h11 alone costs 60 us a request, half of our whole budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

#: h11 ends a head at the same place.
END_OF_HEAD: Final = re.compile(rb"\n\r?\n")

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(GET|HEAD) ([!-~]+) HTTP/1\.1")
_FIELD = re.compile(rb"(" + _TOKEN + rb"+):([ -~]*)")
#: What a request line can still become; anything else is refused at its first wrong byte.
_PLAUSIBLE = re.compile(_TOKEN + rb"{1,32}(?: (?:[!-~]+(?: (?:H|HT|HTT|HTTP|HTTP/|HTTP/[0-9.]{1,3}\r?)?)?)?)?")
#: Fields that change what follows the head or the connection: h11's business.
_NOT_PLAIN = frozenset({"content-length", "transfer-encoding", "expect", "upgrade"})

_NAME = re.compile(_TOKEN.decode() + "+")
_OURS = frozenset({"connection", "transfer-encoding", "date", "keep-alive", "upgrade"})
_STATUS_LINE = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}


class Head(NamedTuple):
    """The head of a request. Header names are lower case, values latin-1."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool
    chunks: bool = True  # the client understands chunked bodies: HTTP/1.1


class Fields(NamedTuple):
    """Parsed header fields and the bytes they came from, kept because the next request mostly has the same."""

    raw: bytes
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool


def plausible_start(data: bytes) -> bool:
    """False if ``data``, the beginning of a connection or request, can no longer become a request line."""
    line, _, _ = data.partition(b"\n")
    return not line or _PLAUSIBLE.fullmatch(line) is not None


def plain_head(head: bytes, last: Fields | None = None) -> tuple[Head, Fields] | None:
    """A head without its final empty line, if it is plain; None if it is for h11. ``last`` saves work, no more."""
    line, _, raw = head.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        return None
    if last is None or last.raw != raw:
        last = _plain_fields(raw)
        if last is None:
            return None
    return Head(match[1].decode("ascii"), match[2].decode("ascii"), last.headers, last.keep_alive), last


def _plain_fields(raw: bytes) -> Fields | None:
    headers = []
    keep_alive = True
    hosts = connections = 0
    for line in raw.split(b"\r\n"):
        match = _FIELD.fullmatch(line)
        if match is None:
            return None
        name, value = match[1].lower().decode("ascii"), match[2].strip(b" ").decode("ascii")
        if name in _NOT_PLAIN:
            return None
        if name == "host":
            hosts += 1
        elif name == "connection":
            connections += 1
            option = value.lower()
            if option not in ("close", "keep-alive"):
                return None
            keep_alive = option == "keep-alive"
        headers.append((name, value))
    if hosts != 1 or connections > 1:
        return None
    return Fields(raw, tuple(headers), keep_alive)


def response_head(
    status: int,
    headers: Sequence[tuple[str, str]],
    length: int | None,
    *,
    to_head: bool,
    keep_alive: bool,
    date: str,
    chunks: bool = True,
) -> bytes:
    """The head of an answer with ``length`` bytes of body; ``to_head``: the answer to a HEAD request.

    With ``length`` None the body is chunked; without ``chunks`` too it lasts until the connection ends, which the
    caller sees to.

    Raises ValueError for what must not go on the wire: a field that would end its line or break the framing.
    """
    line = _STATUS_LINE.get(status)
    if line is None or status < 200:
        raise ValueError(f"status {status}")
    parts = [line, "Date: ", date, "\r\n"]
    said: str | None = None
    for name, value in headers:
        if not (value.isascii() and (value.isprintable() or not value)) or _NAME.fullmatch(name) is None:
            raise ValueError(f"header {name!r} cannot be sent")
        lower = name.lower()
        if lower == "content-length":
            said = value
            continue
        if lower in _OURS:
            raise ValueError(f"header {name!r} belongs to the listener")
        parts += (name, ": ", value, "\r\n")
    if length is None:
        if said is not None:
            raise ValueError(f"Content-Length {said} on a body of unknown length")
        if chunks and not to_head and status not in (204, 304):
            parts.append("Transfer-Encoding: chunked\r\n")
    elif status not in (204, 304):
        if said is not None and said != str(length) and not (to_head and length == 0 and said.isdigit()):
            raise ValueError(f"Content-Length {said} on a body of {length} bytes")
        parts += ("Content-Length: ", said if said is not None else str(length), "\r\n")
    parts.append("\r\n" if keep_alive else "Connection: close\r\n\r\n")
    return "".join(parts).encode("ascii")
