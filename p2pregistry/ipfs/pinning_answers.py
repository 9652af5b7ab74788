"""What services that keep IPFS content answer: the Pinning Service API 1.0.0
(https://ipfs.github.io/pinning-services-api-spec/), and what uploads of CARs are answered with.

The answers come from outside: of bounded length, only the fields that are needed, in the form that is expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from p2pregistry.digest import parse_cid
from p2pregistry.errors import BadContent, RemoteBusy, RemoteError, RequestError, Unreachable

_JSON_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_REQUEST: Final = re.compile(r"[\x21-\x7e]{1,255}")
#: Of a peer, as a daemon can dial it; and how many of them count (the specification allows 20).
_MULTIADDR: Final = re.compile(r"(?:/[A-Za-z0-9.:_-]{1,100}){2,12}/p2p/[A-Za-z0-9]{20,100}")
_DELEGATES: Final = 20
#: Seconds that a service may make us wait, at most.
WAIT_MOST: Final = 3600.0
_T = TypeVar("_T")

Status = Literal["queued", "pinning", "pinned", "failed"]


class ServiceRefused(RemoteError):
    """The service answered that it will not; ``answered`` is the status."""

    def __init__(self, message: str, answered: int) -> None:
        super().__init__(message)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin at a service: what it calls it, how far it is, the CID as text, what the service says besides, the
    multiaddrs at which it wants to be given the content, and the name that it was given."""

    request: str
    status: Status
    cid: str
    info: str
    delegates: tuple[str, ...] = ()
    name: str = ""


class _Object(msgspec.Struct):
    cid: Annotated[str, msgspec.Meta(max_length=200)]
    name: str | None = None


class _Pin(msgspec.Struct):
    requestid: Annotated[str, msgspec.Meta(max_length=255)]
    status: Status
    pin: _Object
    info: dict[str, object] | None = None
    delegates: list[str] | None = None


class _Pins(msgspec.Struct):
    results: Annotated[list[_Pin], msgspec.Meta(max_length=1000)]


class _Failure(msgspec.Struct):
    reason: str = ""
    details: str | None = None


class _Failed(msgspec.Struct):
    error: _Failure | None = None


def _read(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except _JSON_ERRORS as err:
        raise BadContent("an answer of the service is not understood") from err


def _pin(found: _Pin) -> Pin:
    if not _REQUEST.fullmatch(found.requestid):
        raise BadContent("an answer of the service is not understood")
    details = (found.info or {}).get("status_details")
    told = _shown(details) if isinstance(details, str) else ""
    delegates = tuple(one for one in (found.delegates or ()) if _MULTIADDR.fullmatch(one))[:_DELEGATES]
    return Pin(found.requestid, found.status, _shown(found.pin.cid), told, delegates, found.pin.name or "")


def pin(data: bytes) -> Pin:
    """A PinStatus. Raises BadContent."""
    return _pin(_read(data, _Pin))


def pins(data: bytes) -> list[Pin]:
    """PinResults. Raises BadContent."""
    return [_pin(one) for one in _read(data, _Pins).results]


def uploaded_root(data: bytes) -> bytes | None:
    """The CID that an answer to an upload names, under ``cid``, ``root`` or ``value.cid``, as text or as
    ``{"/": text}``, in its last line; None if it names none that could be compared. Never raises."""
    try:
        answer = msgspec.json.decode(data.rstrip().rpartition(b"\n")[2])
    except _JSON_ERRORS:
        return None
    if isinstance(answer, dict) and isinstance(answer.get("value"), dict):
        answer = answer["value"]
    if not isinstance(answer, dict):
        return None
    for name in ("cid", "root"):
        said = answer.get(name)
        text = said.get("/") if isinstance(said, dict) else said
        if isinstance(text, str):
            try:
                return parse_cid(text)
            except RequestError:
                return None
    return None


def refusal(status: int, data: bytes, retry_after: str | None, now: float) -> RemoteError:
    """The error that an answer of this status is. ``now``: seconds since 1970."""
    try:
        failure = _read(data, _Failed).error or _Failure()
        said = _shown(f"{failure.reason} {failure.details or ''}")
    except BadContent:
        said = ""
    told = f"the service answers {status} {said}".rstrip()
    if status == 429:
        return RemoteBusy("the service has too much to do", wait(retry_after, now))
    if status >= 500 or status == 408:
        return Unreachable(told)
    if status in (401, 403):
        return ServiceRefused(f"{told}: the token is wrong, or may not do this", status)
    if 300 <= status < 400:
        return ServiceRefused(f"{told}: it leads elsewhere, and the token is not sent there", status)
    return ServiceRefused(told, status)


def wait(retry_after: str | None, now: float) -> float:
    """Seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3), 1.0 where it cannot be read."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), WAIT_MOST)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - now), WAIT_MOST)
    except (ValueError, OverflowError, TypeError):
        return 1.0


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:200]).strip()
