"""The seam ``Policies``: how much a namespace may hold, and which tags never move.

A namespace is the first part of a repository's name. It holds each blob once, in however many of its repositories it
is. An immutable tag is one that some pattern covers (``globs``, over ``repository:tag``): it can be made, and
pushed again as it is, but neither moved nor deleted. An older tag that a new pattern covers stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from p2pregistry.errors import NotFound, RequestError
from p2pregistry.globs import check_glob, matches_any
from p2pregistry.oci.reference import check_name
from tracker.catalog.trail import By
from tracker.units import size

#: Seconds between two notes that the quota of one namespace is exceeded: a client tries again and again.
WARN_EVERY: Final = 3600


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes that a namespace may hold (None: any number) and holds."""

    namespace: str
    quota: int | None
    used: int


@dataclass(frozen=True, slots=True)
class ImmutableTags:
    """A pattern, and since when it is there."""

    pattern: str
    created: datetime


class QuotaExceeded(RequestError):
    """A namespace would hold more than it may; sizes in bytes."""

    def __init__(self, quota: Quota, added: int) -> None:
        limit = quota.quota or 0
        super().__init__(
            "DENIED",
            f"the quota of {quota.namespace} is {size(limit)} ({limit} bytes):"
            f" {quota.used} bytes are used, and {added} more do not fit",
            detail={"namespace": quota.namespace, "quota": limit, "used": quota.used, "added": added},
        )
        self.quota = quota
        self.added = added


class Policies(Protocol):
    """Each method is one transaction. A failed database raises LocalError."""

    async def quotas(self, *, after: str = "", limit: int = 1000) -> list[Quota]:
        """Namespaces by name, those greater than ``after``, with or without quota."""

    async def set_quota(self, namespace: str, quota: int | None, by: By) -> Quota:
        """Bytes, or None for no bound. What is there already stays, however much it is. Raises RequestError
        (NAME_INVALID), and NotFound (NAME_UNKNOWN) where there is neither a quota nor anything else to unset."""

    async def check_quota(self, repository: str, added: int) -> None:
        """Early refusal of ``added`` bytes that may be new in the repository's namespace. Raises QuotaExceeded."""

    async def exceeded(self, repository: str, refusal: QuotaExceeded, by: By) -> None:
        """Write down that it was, unless that was done in the last WARN_EVERY seconds: on its own, because the
        transaction that met it is rolled back."""

    async def immutable_tags(self) -> list[ImmutableTags]:
        """All patterns, in their order."""

    async def add_immutable(self, pattern: str, by: By) -> bool:
        """False if it is there already. Raises RequestError (INVALID)."""

    async def remove_immutable(self, pattern: str, by: By) -> bool:
        """False if it is not there."""

    async def immutable(self, repository: str, tags: Sequence[str]) -> set[str]:
        """Those of the tags that a pattern covers, whether or not they exist."""


def namespace_of(repository: str) -> str:
    """The first part of its name."""
    return repository.partition("/")[0]


def check_namespace(namespace: str) -> None:
    """Raises RequestError (NAME_INVALID)."""
    check_name(namespace)
    if "/" in namespace:
        raise RequestError("NAME_INVALID", "a namespace is the first part of a repository's name, without a slash")


def check_pattern(pattern: str) -> None:
    """Raises RequestError (INVALID)."""
    try:
        check_glob(pattern)
    except ValueError as err:
        raise RequestError("INVALID", str(err), status=400) from err
    if ":" not in pattern:
        raise RequestError("INVALID", "a pattern covers repository:tag, as in team/**:v*", status=400)


def check_room(quota: Quota, added: int) -> None:
    """Whether ``added`` bytes more fit. Raises QuotaExceeded."""
    if quota.quota is not None and quota.used + added > quota.quota:
        raise QuotaExceeded(quota, added)


def covered(patterns: Sequence[str], repository: str, tags: Sequence[str]) -> set[str]:
    """Those of the tags that a pattern covers."""
    return {tag for tag in tags if matches_any(patterns, f"{repository}:{tag}")}


def no_namespace(namespace: str) -> NotFound:
    """That there is nothing to unset."""
    return NotFound("NAME_UNKNOWN", "there is no such namespace", detail={"namespace": namespace})


def never_moves(repository: str, tag: str) -> RequestError:
    """The refusal to move or delete an immutable tag."""
    return RequestError(
        "DENIED",
        f"the tag {tag} of {repository} is immutable: it can be neither moved nor deleted",
        detail={"name": repository, "tag": tag},
    )
