"""Answers to who has a block, as IPFS clients ask. Pure.

Source: Delegated Routing V1 HTTP API (https://specs.ipfs.tech/routing/http-routing-v1/), filters: IPIP-484; nothing
found is 200 with nothing in it: IPIP-513.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from p2pregistry.content.any_cid import read_cid
from p2pregistry.errors import RequestError

#: What a provider of ours speaks: the trustless gateway.
PROTOCOL: Final = "transport-ipfs-gateway-http"
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
PREFIX: Final = "/routing/v1/providers/"
#: Providers in an answer.
MAX_PROVIDERS: Final = 20
#: Characters of one filter, and names in it.
_MAX_FILTER: Final = 1024
_MAX_NAMES: Final = 64
#: Names that only have a meaning within some network.
_LOCAL: Final = (".local", ".localhost", ".internal", ".lan", ".home.arpa", ".test", ".invalid")


@dataclass(frozen=True, slots=True)
class Provider:
    """Who has it: a peer id in base58, and the multiaddr of its gateway."""

    peer_id: str
    address: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Names of which at least one is to be there, where there are any, and names of which none is."""

    some: frozenset[str] = frozenset()
    none: frozenset[str] = frozenset()

    def passes(self, names: frozenset[str]) -> bool:
        """Whether something that has these names is wanted."""
        return not names & self.none and (not self.some or bool(names & self.some))


@dataclass(frozen=True, slots=True)
class Question:
    """Who has the block of ``cid`` (binary, version 1), by which addresses, with which protocols."""

    cid: bytes
    addresses: Filter
    protocols: Filter

    def select(self, providers: Iterable[Provider]) -> list[Provider]:
        """Those that are asked for, at most MAX_PROVIDERS."""
        if not self.protocols.passes(frozenset((PROTOCOL,))):
            return []
        return [one for one in providers if self.addresses.passes(_names(one.address))][:MAX_PROVIDERS]


def read_question(path: str, query: Sequence[tuple[str, str]]) -> Question:
    """A question for providers. Raises RequestError: 400 for a path that there is not, 501 for what we do not answer,
    422 for what makes no sense."""
    text = path.removeprefix(PREFIX)
    if text == path or "/" in text:
        if path.startswith(("/routing/v1/peers", "/routing/v1/ipns", "/routing/v1/providers")):
            raise RequestError("UNSUPPORTED", "only providers are told here", status=501)
        raise RequestError("NAME_UNKNOWN", "there is no such endpoint", status=400)
    try:
        cid = read_cid(text)
    except ValueError as err:
        raise _senseless("cid", "not a CID", text) from err
    first = dict(reversed(query))
    return Question(
        cid,
        _filter("filter-addrs", first.get("filter-addrs")),
        _filter("filter-protocols", first.get("filter-protocols")),
    )


def _filter(field: str, text: str | None) -> Filter:
    if not text:
        return Filter()
    names = [name.strip() for name in text.lower().split(",") if name.strip()]
    if len(text) > _MAX_FILTER or len(names) > _MAX_NAMES:
        raise _senseless(field, f"{field} has {_MAX_NAMES} names at most", text)
    unwanted = frozenset(name[1:] for name in names if name.startswith("!"))
    return Filter(frozenset(name for name in names if not name.startswith("!")), unwanted)


def _senseless(field: str, message: str, value: str) -> RequestError:
    return RequestError("UNSUPPORTED", message, status=422, detail={field: value[:160]})


def multiaddr(url: str) -> str | None:
    """The address of the gateway at a base URL; None if it cannot be written as one: it has a path."""
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError:
        return None
    if split.scheme not in ("http", "https") or not host or split.path not in ("", "/"):
        return None
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    port = port or (443 if split.scheme == "https" else 80)
    return f"/{kind}/{host}/tcp/{port}{'/tls' if split.scheme == 'https' else ''}/http"


def _names(address: str) -> frozenset[str]:
    """The protocols in one of our addresses; TLS and HTTP together are also called https."""
    parts = address.split("/")
    found = {parts[1], *parts[3:4], *parts[5:]}
    return frozenset(found | {"https"} if {"tls", "http"} <= found else found)


def is_public(url: str) -> bool:
    """Whether the host of a URL has a meaning everywhere: a global address, or a name that may have one."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_LOCAL) and not host.rpartition(".")[2].isdigit()


def encode(providers: Iterable[Provider], *, lines: bool) -> bytes:
    """The body of an answer: one document, or a line for each."""
    records = [
        {"Schema": "peer", "ID": one.peer_id, "Addrs": [one.address], "Protocols": [PROTOCOL]} for one in providers
    ]
    if lines:
        return b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    return msgspec.json.encode({"Providers": records})
