"""Who one is at a registry: what a 401 asks for, and what the configuration files of container clients hold.

Sources: RFC 9110 "WWW-Authenticate"; distribution's "Token Authentication Specification"; docker's config.json and
podman's auth.json. Helper programs (``credsStore``, ``credHelpers``) are not asked.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import msgspec

_SCHEME: Final = re.compile(r"\s*([A-Za-z]+)(?:\s+|$)")
_PARAMETER: Final = re.compile(r'\s*([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)')
#: Under this key docker keeps what it knows of Docker Hub.
_HUB_KEY: Final = "index.docker.io"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password, or a refresh token (docker's "identity token")."""

    username: str
    password: str = field(default="", repr=False)
    refresh: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for: ``basic``, or ``bearer`` with where tokens are had and for what."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """A ``WWW-Authenticate`` header; None for a scheme that is not known here, or one that is not in form."""
    head = _SCHEME.match(header)
    if head is None:
        return None
    scheme, at, found = head[1].lower(), head.end(), dict[str, str]()
    while (part := _PARAMETER.match(header, at)) is not None:
        found[part[1].lower()] = re.sub(r"\\(.)", r"\1", part[2]) if part[2] is not None else part[3]
        at = part.end()
    if scheme == "basic":
        return Challenge("basic")
    if scheme == "bearer" and found.get("realm"):
        return Challenge("bearer", found["realm"], found.get("service", ""), found.get("scope", ""))
    return None


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct):
    auths: dict[str, _Entry | None] = {}


def from_config(data: bytes, host: str) -> Credentials | None:
    """What a docker config file or an auth.json of podman holds for a registry; None if nothing, or if it cannot be
    read. Keys may be URLs and may have a path."""
    try:
        auths = msgspec.json.decode(data, type=_Config).auths
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    entry = auths.get(host) or _by_host(auths, _HUB_KEY if host == "docker.io" else host)
    if entry is None:
        return None
    name, secret = entry.username, entry.password
    if entry.auth:
        try:
            name, _, secret = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except ValueError:
            return None
    if entry.identitytoken:
        return Credentials(name, refresh=entry.identitytoken)
    return Credentials(name, secret) if name and secret else None


def _by_host(auths: Mapping[str, _Entry | None], host: str) -> _Entry | None:
    for key, entry in auths.items():
        try:
            if entry is not None and urlsplit(key if "://" in key else f"//{key}").netloc == host:
                return entry
        except ValueError:  # no URL; somebody else's business
            continue
    return None
