"""Which tags rules let go: a decision about plain values.

A rule covers tags by globs over repository and tag. A tag that no rule covers is kept. One that is covered goes only if
no condition of any rule that covers it holds: rules say what to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from p2pregistry.globs import matches


@dataclass(frozen=True, slots=True)
class Rule:
    """``repositories`` and ``tags``: globs. What is kept: the ``keep_last`` tags that were pushed last; those that were
    pushed, or pulled or pushed, within so many seconds. None: no such condition. Raises ValueError without any."""

    id: int
    repositories: str
    tags: str
    keep_last: int | None = None
    pushed_within: float | None = None
    pulled_within: float | None = None

    def __post_init__(self) -> None:
        if self.keep_last is None and self.pushed_within is None and self.pulled_within is None:
            raise ValueError("a rule says what to keep: a number of tags, or an age")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag and when it was last pushed and pulled."""

    name: str
    pushed_at: datetime
    pulled_at: datetime | None

    @property
    def used_at(self) -> datetime:
        """The later of the two."""
        return self.pushed_at if self.pulled_at is None else max(self.pushed_at, self.pulled_at)


def to_go(repository: str, tags: Sequence[Tagged], rules: Iterable[Rule], now: datetime) -> list[str]:
    """The tags of the repository that go, in order."""
    covered: set[str] = set()
    kept: set[str] = set()
    newest = sorted(tags, key=lambda tag: (tag.pushed_at, tag.name), reverse=True)
    for rule in rules:
        if not matches(rule.repositories, repository):
            continue
        mine = [tag for tag in newest if matches(rule.tags, tag.name)]
        covered.update(tag.name for tag in mine)
        kept.update(tag.name for tag in mine[: rule.keep_last or 0])
        kept.update(tag.name for tag in mine if _within(tag.pushed_at, rule.pushed_within, now))
        # one that was pushed a moment ago has had no time to be pulled
        kept.update(tag.name for tag in mine if _within(tag.used_at, rule.pulled_within, now))
    return sorted(covered - kept)


def _within(at: datetime, seconds: float | None, now: datetime) -> bool:
    return seconds is not None and now - at <= timedelta(seconds=seconds)
