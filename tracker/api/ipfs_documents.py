"""What the JSON API says of publishing to IPFS; see ``documents``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tracker.api.documents import Count, Document, Line

IpfsState = Literal["queued", "publishing", "published", "failed", "unpinning", "removed"]


class IpfsPattern(Document, frozen=True):
    """A glob over names of repositories: those that are public are published to IPFS."""

    pattern: Annotated[Line, Meta(examples=["acme/**"])]


class IpfsNamed(msgspec.Struct, frozen=True):
    """A pattern, since when it has been there, and who said so."""

    pattern: str
    created_at: datetime
    created_by: str


class IpfsFigure(msgspec.Struct, frozen=True):
    """How many blobs, manifests and claims are in a state at a service, and their bytes."""

    service: str
    state: IpfsState
    count: int
    size: int


class IpfsProgress(msgspec.Struct, frozen=True):
    """How something fares at a service. ``sent``: bytes of its CAR. ``next_at``: when it is tried again or looked at,
    null: not by itself. ``error``: why it failed last, or null, as it always is for who may not administer."""

    service: str
    state: IpfsState
    sent: int
    attempts: int
    next_at: datetime | None
    error: str | None
    updated_at: datetime


class IpfsItem(msgspec.Struct, frozen=True):
    """A blob, a manifest, or the text of a signed claim. ``cid``: its root. ``digest``: of the blob or the manifest,
    also of the manifest that a claim is about."""

    kind: Literal["blob", "manifest", "claim"]
    digest: str
    size: int
    cid: str
    services: list[IpfsProgress]


class IpfsFailures(Document, frozen=True):
    """How many failures are shown."""

    n: Count = 100


class Ipfs(msgspec.Struct, frozen=True):
    """What is published to IPFS, where, and what fails, latest first. ``encrypted``: encrypted images of private
    repositories are published too."""

    services: list[str]
    encrypted: bool
    patterns: list[IpfsNamed]
    figures: list[IpfsFigure]
    failures: list[IpfsItem]


class IpfsRetried(msgspec.Struct, frozen=True):
    """How many were due again."""

    retried: int


class IpfsRepository(msgspec.Struct, frozen=True):
    """``published``: a pattern names it. What is private is not published all the same, but for encrypted images."""

    published: bool
    figures: list[IpfsFigure]


class IpfsImage(msgspec.Struct, frozen=True):
    """All that an image consists of. ``children``: the manifests that an index lists, which are images themselves."""

    digest: str
    published: bool
    children: list[str]
    items: list[IpfsItem]
