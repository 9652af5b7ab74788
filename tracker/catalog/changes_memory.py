"""Changes in memory: those of a ``MemoryCatalog``, which notes them here as the triggers do in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tracker.catalog.changes import PRUNED_AT_ONCE, Change, Kind, Page, Scope, State
from tracker.catalog.trail import By

if TYPE_CHECKING:
    from tracker.catalog.memory import Repository


@dataclass(slots=True)
class _Noted:
    number: int
    at: float
    gone: bool
    public_until: int = 0


class MemoryChanges:
    """``Changes`` over the repositories of a catalog. ``heard`` is called at each change, as a database notifies."""

    def __init__(self, content: Mapping[str, Repository]) -> None:
        self._content = content
        self._state = State(1, 0)
        self._noted: dict[tuple[Kind, str, str], _Noted] = {}
        self.heard: Callable[[], None] = lambda: None

    @property
    def now(self) -> State:
        """As ``state``, at once."""
        return self._state

    def note(
        self, kind: Kind, repository: str = "", name: str = "", *, gone: bool = False, was_public: bool = False
    ) -> int:
        """A change; its number."""
        self._state = self._state._replace(number=self._state.number + 1)
        number = self._state.number
        before = self._noted.get((kind, repository, name))
        until = number if was_public else 0 if before is None else before.public_until
        self._noted[kind, repository, name] = _Noted(number, trio.current_time(), gone, until)
        self.heard()
        return number

    def number(self, kind: Kind, repository: str, name: str = "") -> int:
        """Of the latest change, 0 if there was none."""
        found = self._noted.get((kind, repository, name))
        return 0 if found is None else found.number

    async def state(self) -> State:
        await trio.lowlevel.checkpoint()
        return self._state

    async def since(self, after: int, limit: int, scope: Scope | None = None) -> Page:
        await trio.lowlevel.checkpoint()
        found = sorted((noted.number, key) for key, noted in self._noted.items() if noted.number > after)
        wanted = [
            self._change(*key)
            for _, key in found
            if scope is None or key[0] in ("node", "keys") or scope.admits(key[1])
        ]
        page = tuple(wanted[:limit])
        return Page(self._state, page, page[-1].number if len(page) >= limit else self._state.number)

    def _change(self, kind: Kind, repository: str, name: str) -> Change:
        noted = self._noted.get((kind, repository, name), _Noted(0, 0.0, gone=False))
        found = self._content.get(repository)
        private = None if found is None else found.private
        digest = None if found is None or kind != "tag" else found.tags.get(name)
        since = self.number("repository", repository) if kind == "tag" else 0
        return Change(noted.number, kind, repository, name, digest, noted.gone, private, since, noted.public_until)

    async def tags(self, repositories: Sequence[str], after: tuple[str, str], limit: int) -> list[Change]:
        await trio.lowlevel.checkpoint()
        named = {name: self._content[name] for name in repositories if name in self._content}
        places = sorted((name, tag) for name, found in named.items() for tag in found.tags)
        return [self._change("tag", *place) for place in places if place > after][:limit]

    async def repositories(self, names: Sequence[str]) -> list[Change]:
        await trio.lowlevel.checkpoint()
        return [self._change("repository", name, "") for name in sorted(set(names) & self._content.keys())]

    async def repositories_from(self, prefix: str, after: str, limit: int) -> list[Change]:
        names = [name for name in self._content if name.startswith(prefix) and name > after]
        return (await self.repositories(names))[:limit]

    async def prune(self, keep: float) -> int:
        await trio.lowlevel.checkpoint()
        old = [
            (noted.number, key)
            for key, noted in self._noted.items()
            if noted.at < trio.current_time() - keep and self._is_tombstone(*key)
        ]
        for number, key in sorted(old)[:PRUNED_AT_ONCE]:
            del self._noted[key]
            self._state = self._state._replace(pruned=max(self._state.pruned, number))
        return len(old[:PRUNED_AT_ONCE])

    def _is_tombstone(self, kind: Kind, repository: str, name: str) -> bool:
        found = self._content.get(repository)
        return (kind == "repository" and found is None) or (kind == "tag" and (found is None or name not in found.tags))

    async def new_epoch(self, by: By) -> State:  # noqa: ARG002 - nothing is written down here
        await trio.lowlevel.checkpoint()
        self._state = self._state._replace(epoch=self._state.epoch + 1)
        self.heard()
        return self._state
