"""Globs over names of repositories, tags and events.

``*`` stands for any characters within one part of a path, also for none; ``**`` for any characters, ``/`` included;
everything else for itself. So ``team/*`` is ``team/api`` but not ``team/api/old``, ``team/**`` is both, and
``**:v*`` (over ``repository:tag``) is each tag of any repository that begins with v. A pattern covers the whole name or
nothing. There are no classes and no escapes: the names have none of these characters.

Matching takes a fraction of a millisecond, whatever the pattern: patterns and names may be anybody's (a user chooses
the scopes of his tokens, and one request asks about many), and a backtracking expression can be made to take for ever.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

#: Characters of the longest pattern.
MAX_PATTERN: Final = 500
#: Patterns that are kept ready, and answers.
_COMPILED: Final = 2000
_ANSWERED: Final = 10_000


def check_glob(pattern: str) -> None:
    """Raises ValueError for what cannot be a pattern: empty, too long, or with characters that no name has."""
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise ValueError(f"a pattern has 1 to {MAX_PATTERN} characters")
    for character in pattern:
        if not (character.isascii() and (character.isalnum() or character in "._-/:*")):
            raise ValueError(f"a pattern is made of letters, digits and . _ - / : *, not of {character!r}")


@functools.lru_cache(maxsize=_ANSWERED)
def matches(pattern: str, name: str) -> bool:
    """Whether the pattern covers the whole of ``name``."""
    if not name.startswith(prefix(pattern)):
        return False
    glob = _compiled(pattern)
    return bool(glob.reached(name) & glob.end)


def begins(pattern: str, start: str) -> bool:
    """Whether the pattern covers some name that begins with ``start``, of whatever characters."""
    return bool(_compiled(pattern).reached(start))


def prefix(pattern: str) -> str:
    """What every name begins with that the pattern covers."""
    return pattern.partition("*")[0]


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns covers it."""
    return any(matches(pattern, name) for pattern in patterns)


def moved(pattern: str, name: str, to: str) -> str:
    """The pattern that covers the same names once the namespace ``name`` is called ``to``; only those that begin with
    that name change, because others are not about it."""
    rest = pattern[len(name) :]
    return to + rest if pattern.startswith(name) and (not rest or rest[0] in "/:") else pattern


class _Glob:
    """A pattern as sets of positions in it, each set one number with a bit for each: all positions take one step in one
    operation, whatever the pattern."""

    __slots__ = ("_any", "_letters", "_stars", "end")

    def __init__(self, pattern: str) -> None:
        parts = _parts(pattern)
        self.end = 1 << len(parts)
        self._letters: dict[str, int] = {}
        self._any = self._stars = 0  # where ** stands, and where * or **
        for at, part in enumerate(parts):
            if part in ("*", "**"):
                self._stars |= 1 << at
                self._any |= (part == "**") << at
            else:
                self._letters[part] = self._letters.get(part, 0) | 1 << at

    def reached(self, name: str) -> int:
        """Where in the pattern one may be after these characters."""
        letters, anywhere, stars = self._letters, self._any, self._stars
        reached = 1 | (1 & stars) << 1  # beyond a star too, which may stand for nothing; no two follow each other
        for character in name:
            stay = anywhere if character == "/" else stars
            reached = reached & stay | (reached & letters.get(character, 0)) << 1
            if not reached:
                return 0
            reached |= (reached & stars) << 1
        return reached


_compiled: Final = functools.lru_cache(maxsize=_COMPILED)(_Glob)


def _parts(pattern: str) -> list[str]:
    """Single characters, "*" and "**"; more stars in a row are two."""
    parts: list[str] = []
    for character in pattern:
        if character == "*" and parts and parts[-1] in ("*", "**"):
            parts[-1] = "**"
        else:
            parts.append(character)
    return parts
