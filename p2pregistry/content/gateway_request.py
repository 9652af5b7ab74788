"""What a request to a trustless gateway asks for. Pure.

Sources: the Trustless Gateway specification (https://specs.ipfs.tech/http-gateways/trustless-gateway/) and, for the
headers both have, the Path Gateway specification. ``format`` in the query goes before the Accept header, and so does
each ``car-*`` before the parameter of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlencode

from p2pregistry.content.any_cid import PROBE, PROBE_TEXT, is_ours, read_cid
from p2pregistry.digest import cid_text
from p2pregistry.errors import NotFound, RequestError

RAW: Final = "application/vnd.ipld.raw"
CAR: Final = "application/vnd.ipld.car"
PREFIX: Final = "/ipfs/"
#: Characters of Accept that are looked at, and entries in it.
_MAX_ACCEPT: Final = 4096
_MAX_ENTRIES: Final = 32
_SCOPES: Final = ("block", "entity", "all")
_RANGE: Final = re.compile(r"(-?\d{1,18}):(\*|-?\d{1,18})")
_WHAT: Final = "ask for format=raw (a block) or format=car (a CAR), or with Accept for application/vnd.ipld.raw or .car"

Format = Literal["raw", "car"]
_FORMATS: Final[Mapping[str, Format]] = {"raw": "raw", "car": "car"}
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Bytes:
    """``entity-bytes``: both ends are included; a negative number counts from the end; ``last`` None: up to it."""

    first: int
    last: int | None

    def within(self, size: int) -> tuple[int, int] | None:
        """The first and the last byte of these in a file of ``size`` bytes; None: it has none of them."""
        first = self.first if self.first >= 0 else max(0, size + self.first)
        last = size - 1 if self.last is None else self.last if self.last >= 0 else size + self.last
        last = min(last, size - 1)
        return (first, last) if first <= last else None

    def __str__(self) -> str:
        return f"{self.first}:{'*' if self.last is None else self.last}"


@dataclass(frozen=True, slots=True)
class Asked:
    """``cid``: in binary form, version 1; ``text``: in the spelling that we use. The rest is of a CAR: how much of the
    DAG, and whether a block that occurs several times is sent as often. ``location``: the URL that asks for the same
    without an Accept header; "": that of the request does."""

    cid: bytes
    text: str
    format: Format
    scope: str = "all"
    part: Bytes | None = None
    dups: bool = False
    location: str = ""

    @property
    def probe(self) -> bool:
        """Whether it is for the CID of nothing."""
        return self.cid == PROBE

    @property
    def etag(self) -> str:
        """Of the answer: content under a CID never changes, so this is all that tells two answers apart."""
        if self.format == "raw":
            return f'"{self.text}.raw"'
        scope = self.scope if self.part is None else f"{self.scope}.{self.part}"
        return f'"{self.text}.car.{scope}.{"y" if self.dups else "n"}"'

    @property
    def content_type(self) -> str:
        """Of the answer, with all that is decided about a CAR."""
        return RAW if self.format == "raw" else f"{CAR}; version=1; order=dfs; dups={'y' if self.dups else 'n'}"

    @property
    def filename(self) -> str:
        """Under which a browser would save it."""
        return f"{self.text}.{'bin' if self.format == 'raw' else 'car'}"


def read_request(path: str, query: Query, accept: Sequence[str]) -> Asked:
    """What is asked for. ``path`` is decoded, ``accept`` are the values of all Accept headers.

    Raises RequestError with status 400 (no format, no CID, a value that cannot be read) or 406 (a format or a form of
    CAR that we do not make), and NotFound for a path below a CID and for a CID that cannot be of ours.
    """
    first = dict(reversed(query))
    stated = first.get("format")
    entries = read_accept(accept)
    wanted = _format(stated, entries)
    cid, text = _cid(path, wanted)
    if wanted == "raw":
        return Asked(cid, text, wanted, location=_location(text, first, {}, needed=stated is None))
    dups = _car_form(first, entries)
    scope, part = first.get("dag-scope", "all"), None
    if scope not in _SCOPES:
        raise _bad("dag-scope", f"dag-scope is one of {', '.join(_SCOPES)}", scope)
    if "entity-bytes" in first:
        scope, part = "entity", _bytes(first["entity-bytes"])
    form = {"car-version": "1", "car-order": "dfs", "car-dups": "y" if dups else "n"}
    needed = stated is None or (any(kind == CAR and parameters for kind, parameters, _ in entries) and not _same(first))
    return Asked(cid, text, wanted, scope, part, dups, _location(text, first, form, needed=needed))


def _bad(field: str, message: str, value: str, status: int = 400) -> RequestError:
    return RequestError("UNSUPPORTED", message, status=status, detail={field: value[:160]})


def _same(first: dict[str, str]) -> bool:
    return all(name in first for name in ("car-version", "car-order", "car-dups"))


# ---------------------------------------------------------------------------------------------------------- the format


Entry = tuple[str, dict[str, str], float]


def read_accept(accept: Sequence[str]) -> list[Entry]:
    """The entries of all Accept headers, those that are wanted most first: media type, parameters, weight. Those of
    weight 0 are left out."""
    found: list[Entry] = []
    for item in ",".join(accept)[:_MAX_ACCEPT].split(",")[:_MAX_ENTRIES]:
        kind, *rest = [part.strip() for part in item.split(";")]
        pairs = [part.partition("=") for part in rest]
        parameters = {name.strip().lower(): value.strip().strip('"').lower() for name, _, value in pairs}
        weight = _weight(parameters.pop("q", "1"))
        if kind and weight > 0:
            found.append((kind.lower(), parameters, weight))
    return sorted(found, key=lambda entry: -entry[2])


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.\d{0,3})?", text) else 1.0


def _format(stated: str | None, entries: Sequence[Entry]) -> Format:
    if stated is not None:
        if stated in _FORMATS:
            return _FORMATS[stated]
        raise _bad("format", f"this gateway gives verifiable answers only: {_WHAT}", stated, 406)
    for kind, parameters, _ in entries:
        if kind == RAW:
            return "raw"
        if kind == CAR and _can(parameters):
            return "car"
    if entries and not any(kind.endswith("/*") for kind, _, _ in entries):
        raise _bad("accept", f"this gateway gives verifiable answers only: {_WHAT}", entries[0][0], 406)
    raise _bad("format", f"say what you want: {_WHAT}", "")


def _can(parameters: dict[str, str]) -> bool:
    """Whether it is a form of CAR that we make: version 1, in depth-first order, which is also an unknown one."""
    return (
        parameters.get("version", "1") == "1"
        and parameters.get("order", "dfs") in ("dfs", "unk", "")
        and parameters.get("dups", "n") in ("y", "n", "")
    )


def _car_form(first: dict[str, str], entries: Sequence[Entry]) -> bool:
    """Whether blocks are repeated. Raises RequestError with status 406 for what we do not make."""
    listed = [parameters for kind, parameters, _ in entries if kind == CAR]
    known = {name: first[f"car-{name}"] for name in ("version", "order", "dups") if f"car-{name}" in first}
    if not listed:
        listed.append({})
    for parameters in listed:
        form = {**parameters, **known}
        if _can(form):
            return form.get("dups") == "y"
    raise _bad(
        "car",
        "a CAR is made with version=1, order=dfs and dups=y or dups=n",
        ";".join(f"{name}={value}" for name, value in {**listed[0], **known}.items()),
        406,
    )


# ------------------------------------------------------------------------------------------------------------- the CID


def _cid(path: str, wanted: Format) -> tuple[bytes, str]:
    text, slash, below = path.removeprefix(PREFIX).partition("/")
    try:
        cid = read_cid(text)
    except ValueError as err:
        raise _bad("cid", "the path is /ipfs/ and a CID", text) from err
    if below or (slash and wanted == "raw"):
        if wanted == "raw":
            raise _bad("path", "a block is asked for by its CID alone", below)
        raise unknown()  # what is here are files, and nothing is below a file
    if cid == PROBE:
        return cid, PROBE_TEXT
    if not is_ours(cid):
        raise unknown()
    return cid, cid_text(cid)


def unknown() -> NotFound:
    """The answer for a CID of which nothing is here, or nothing that is for everybody: which one is not said."""
    return NotFound("BLOB_UNKNOWN", "there is no such block here")


def _bytes(text: str) -> Bytes:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise _bad("entity-bytes", "entity-bytes is from:to, both numbers of bytes, or * for the end", text)
    first, last = int(found[1]), None if found[2] == "*" else int(found[2])
    if last is not None and (first < 0) == (last < 0) and last < first:
        raise _bad("entity-bytes", "entity-bytes ends before it begins", text)
    return Bytes(first, last)


def _location(text: str, first: dict[str, str], form: dict[str, str], *, needed: bool) -> str:
    if not needed:
        return ""
    kept = {name: first[name] for name in ("dag-scope", "entity-bytes") if name in first} if form else {}
    query = {"format": "car" if form else "raw"} | form | kept
    return f"{PREFIX}{text}?{urlencode(query, safe=':*')}"
