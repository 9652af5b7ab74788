"""Policies in memory: for tests, and the plainest statement of what they do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from p2pregistry.globs import moved
from tracker.catalog.policies import (
    WARN_EVERY,
    ImmutableTags,
    Quota,
    QuotaExceeded,
    check_namespace,
    check_pattern,
    check_room,
    covered,
    namespace_of,
    no_namespace,
)
from tracker.catalog.trail import By

if TYPE_CHECKING:
    from tracker.catalog.memory import MemoryCatalog


class MemoryPolicies:
    """``Policies`` over what a catalog in memory has. Each method is a checkpoint and otherwise atomic; those without
    await are for the catalog's own methods."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog
        self._quotas: dict[str, int | None] = {}
        self._patterns: dict[str, datetime] = {}
        self._warned: dict[str, float] = {}

    async def quotas(self, *, after: str = "", limit: int = 1000) -> list[Quota]:
        await trio.lowlevel.checkpoint()
        names = {namespace_of(repository) for repository in self._catalog.content} | self._quotas.keys()
        return [self.quota(name) for name in sorted(names) if name > after][: max(0, limit)]

    async def set_quota(self, namespace: str, quota: int | None, by: By) -> Quota:
        await trio.lowlevel.checkpoint()
        check_namespace(namespace)
        there = {namespace_of(repository) for repository in self._catalog.content}
        if quota is None and namespace not in self._quotas and namespace not in there:
            raise no_namespace(namespace)
        self._quotas[namespace] = quota
        self._warned.pop(namespace, None)
        self._catalog.written.append((by, "quota.set", namespace))
        return self.quota(namespace)

    async def check_quota(self, repository: str, added: int) -> None:
        await trio.lowlevel.checkpoint()
        check_room(self.quota(namespace_of(repository)), added)

    async def exceeded(self, repository: str, refusal: QuotaExceeded, by: By) -> None:
        await trio.lowlevel.checkpoint()
        now, namespace = trio.current_time(), refusal.quota.namespace
        if now >= self._warned.get(namespace, now):
            self._warned[namespace] = now + WARN_EVERY
            self._catalog.written.append((by, "quota.exceeded", repository))

    async def immutable_tags(self) -> list[ImmutableTags]:
        await trio.lowlevel.checkpoint()
        return [ImmutableTags(pattern, created) for pattern, created in sorted(self._patterns.items())]

    async def add_immutable(self, pattern: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        check_pattern(pattern)
        if pattern in self._patterns:
            return False
        self._patterns[pattern] = datetime.now(UTC)
        self._catalog.written.append((by, "immutable.add", pattern))
        return True

    async def remove_immutable(self, pattern: str, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if self._patterns.pop(pattern, None) is None:
            return False
        self._catalog.written.append((by, "immutable.remove", pattern))
        return True

    async def immutable(self, repository: str, tags: Sequence[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return self.covered(repository, tags)

    def quota(self, namespace: str) -> Quota:
        """What the namespace may hold and holds."""
        repositories = [found for name, found in self._catalog.content.items() if namespace_of(name) == namespace]
        blobs = {digest for found in repositories for digest in found.blobs}
        used = sum(self._catalog.blobs[digest].metainfo.size for digest in blobs)
        return Quota(namespace, self._quotas.get(namespace), used)

    def covered(self, repository: str, tags: Sequence[str]) -> set[str]:
        """Those of the tags that a pattern covers."""
        return covered(list(self._patterns), repository, tags)

    def rename_namespace(self, name: str, to: str) -> None:
        """With its quota, unless the new name has one, and the patterns that begin with it."""
        quota = self._quotas.pop(name, None)
        if quota is not None and self._quotas.get(to) is None:
            self._quotas[to] = quota
        self._patterns = {moved(pattern, name, to): created for pattern, created in self._patterns.items()}
