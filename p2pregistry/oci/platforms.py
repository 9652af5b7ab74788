"""Platforms: which images of an index are for which machine.

Sources: OCI image-spec image-index.md ("platform"), and how containerd normalises them. A platform is written
``os/architecture`` or ``os/architecture/variant``; ``all`` is every one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.oci.manifest import Descriptor

_PART: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}
#: An architecture by this name is one of another with a variant.
_VARIANTS: Final = {"armhf": ("arm", "v7"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"), "armel": ("arm", "v6")}
#: What an architecture without a variant is.
_FIRST: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture, and "" or a variant of it, as Go names them."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform | None:
    """A platform as a person writes it; None for "all". Raises ValueError."""
    if text.lower() == "all":
        return None
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"a platform is like linux/amd64 or linux/arm/v7, or all; not {text[:80]!r}")
    return _normal(*parts)


def read_platforms(texts: Iterable[str]) -> tuple[Platform, ...] | None:
    """The platforms that are named; None: all. Raises ValueError."""
    found = [parse_platform(text) for text in texts]
    return None if None in found else tuple(platform for platform in found if platform is not None)


def this_platform(machine: str, system: str = "linux") -> Platform:
    """The platform of a machine that the kernel calls so (``uname -m``); containers run on Linux."""
    return _normal(system, machine.lower() or "amd64")


def _normal(system: str, architecture: str, variant: str = "") -> Platform:
    if architecture in _VARIANTS and not variant:
        architecture, variant = _VARIANTS[architecture]
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture == "arm64" and variant == "8":
        variant = "v8"
    elif architecture == "arm" and variant.isdigit():
        variant = f"v{variant}"
    return Platform(system, architecture, variant)


def fits(wanted: Platform, found: Platform) -> bool:
    """Whether an image for ``found`` is one for ``wanted``: without a variant each variant is."""
    if (wanted.os, wanted.architecture) != (found.os, found.architecture):
        return False
    usual = _FIRST.get(wanted.architecture, "")
    return not wanted.variant or wanted.variant == (found.variant or usual)


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Entry(msgspec.Struct):
    digest: str
    platform: msgspec.Raw = msgspec.Raw()


class _Index(msgspec.Struct):
    manifests: list[_Entry] = []


def wanted_children(
    body: bytes, children: Iterable[Descriptor], platforms: Collection[Platform] | None
) -> list[Descriptor]:
    """Of what an index lists, in its order: the images for one of these platforms (None: for all).

    What states no platform may be for any, and is wanted; what is for an unknown one (an attestation) is not, unless
    all are.
    """
    if platforms is None:
        return list(children)
    stated = stated_platforms(body)
    return [
        child
        for child in children
        if child.digest not in stated
        or any(fits(wanted, found) for wanted in platforms for found in stated[child.digest])
    ]


def stated_platforms(body: bytes) -> dict[Digest, list[Platform]]:
    """The platforms that an index states for its entries. A platform that cannot be read is one that no machine has."""
    try:
        entries = msgspec.json.decode(body, type=_Index).manifests
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    found: dict[Digest, list[Platform]] = {}
    open_to_all: set[Digest] = set()
    for entry in entries:
        digest = Digest.parse(entry.digest)  # as parse_manifest has done
        raw = bytes(entry.platform)
        if raw in (b"", b"null"):
            open_to_all.add(digest)
            continue
        try:
            stated = msgspec.json.decode(raw, type=_Platform)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            stated = _Platform()
        platform = _normal(stated.os.lower(), stated.architecture.lower(), stated.variant.lower())
        found.setdefault(digest, []).append(platform)
    return {digest: listed for digest, listed in found.items() if digest not in open_to_all}
