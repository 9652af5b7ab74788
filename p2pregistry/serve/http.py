"""Requests and responses: what handlers see of HTTP.

A handler is an async function from a Request to a Response. It knows nothing of sockets; ``serve/listen`` sends what it
returns. A handler raises RegistryError to refuse; the listener turns that into the OCI error body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote

from p2pregistry.errors import RequestError
from p2pregistry.rate import Pace
from p2pregistry.store.base import FilePart, OpenBytes
from p2pregistry.trust.records import ANYONE, Caller

Headers = Sequence[tuple[str, str]]


class Body(Protocol):
    """The body of a request, read at most once."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks as they arrive. Raises RequestError (SIZE_INVALID) if the client stops short."""
        ...

    async def read(self, limit: int) -> bytes:
        """All of it. Raises RequestError with status 413 once it is longer than ``limit`` bytes."""
        ...


@dataclass(slots=True)
class Request:
    """One request. ``target`` is as sent; ``headers`` are (lower-case name, value) in the order they came."""

    method: str
    target: str
    headers: Headers
    body: Body
    client: str = ""  # address of the other end, for logs
    scheme: str = "http"
    gone: Callable[[], bool] = lambda: False  # whether the client has closed its side, so that no answer is wanted
    id: str = ""  # to find it by in logs and in the audit log
    account: str = ""  # whose credentials it has, once that is known
    caller: Caller = ANYONE  # which node it is of, on a peer listener (serve/gate)
    # who that is by now, for answers that take long; None inside: nobody any more. Unset: it cannot change
    recheck: Callable[[], Awaitable[Caller | None]] | None = None
    path: str = field(init=False)
    query: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        raw, _, query = self.target.partition("?")
        # errors="strict": a path that is not UTF-8 is the caller's mistake, not a reason to guess
        try:
            self.path = unquote(raw, errors="strict") if "%" in raw else raw
            self.query = (
                tuple(parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)) if query else ()
            )
        except ValueError as err:
            raise RequestError("NAME_INVALID", "the request path or query is not valid", status=400) from err

    def header(self, name: str) -> str | None:
        """The first header of this lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def header_all(self, name: str) -> list[str]:
        """Every header of this lower-case name: some clients send Accept on several lines."""
        return [value for key, value in self.headers if key == name]

    def param(self, name: str) -> str | None:
        """The first query parameter of this name."""
        for key, value in self.query:
            if key == name:
                return value
        return None

    def params(self, name: str) -> list[str]:
        return [value for key, value in self.query if key == name]


@dataclass(slots=True)
class BlobSlice:
    """A part of an open blob. The listener sends it with sendfile where it can, and closes the blob."""

    blob: OpenBytes
    offset: int
    length: int
    #: called with the number of bytes that went out, whether or not it was all
    sent: Callable[[int], None] | None = None
    #: awaited before each part is sent, of 256 KiB at most
    pace: Pace | None = None


@dataclass(slots=True)
class Stream:
    """Bytes that are made while they are sent: exactly ``length`` of them. A FilePart is sent before the next is taken.

    Where ``length`` is None each item goes out at once as one chunk (RFC 9112, 7.1), to an HTTP/1.0 client as it is.
    ``endless``: it ends when one side has had enough, so the listener cuts it off as soon as it stops accepting.

    The listener calls ``aclose`` on ``chunks`` in the same task whatever happens. A handler returns one only when the
    first bytes are at hand, so that a failure before them can still be an honest error status.
    """

    chunks: AsyncIterator[bytes] | AsyncIterator[FilePart | bytes]
    length: int | None
    sent: Callable[[int], None] | None = None
    pace: Pace | None = None
    endless: bool = False


@dataclass(slots=True)
class Response:
    """What to send. Content-Length follows from the body unless ``headers`` has one (an answer to HEAD)."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | BlobSlice | Stream = b""


Handler = Callable[[Request], Awaitable[Response]]
