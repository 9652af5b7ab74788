"""Globs over names of repositories, tags and events.

``*`` stands for any characters within one part of a path, also for none; ``**`` for any characters, ``/`` included;
everything else for itself. So ``team/*`` is ``team/api`` but not ``team/api/old``, ``team/**`` is both, and
``**:v*`` (over ``repository:tag``) is each tag of any repository that begins with v. A pattern covers the whole name or
nothing. There are no classes and no escapes: the names have none of these characters.

Matching takes time proportional to pattern times name at most, whatever the pattern: patterns are an operator's, names
are anybody's, and a backtracking expression can be made to take for ever by both together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Characters of the longest pattern.
MAX_PATTERN: Final = 500


def check_glob(pattern: str) -> None:
    """Raises ValueError for what cannot be a pattern: empty, too long, or with characters that no name has."""
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise ValueError(f"a pattern has 1 to {MAX_PATTERN} characters")
    for character in pattern:
        if not (character.isascii() and (character.isalnum() or character in "._-/:*")):
            raise ValueError(f"a pattern is made of letters, digits and . _ - / : *, not of {character!r}")


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern covers the whole of ``name``."""
    parts = _parts(pattern)
    return len(parts) in _reached(parts, name)


def begins(pattern: str, start: str) -> bool:
    """Whether the pattern covers some name that begins with ``start``, of whatever characters."""
    return bool(_reached(_parts(pattern), start))


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


def _parts(pattern: str) -> list[str]:
    """Single characters, "*" and "**"; more stars in a row are two."""
    parts: list[str] = []
    for character in pattern:
        if character == "*" and parts and parts[-1] in ("*", "**"):
            parts[-1] = "**"
        else:
            parts.append(character)
    return parts


def _reached(parts: list[str], name: str) -> set[int]:
    """Where in the pattern one may be after these characters: a set of positions, as for any regular language."""
    reached = _onward(parts, {0})
    for character in name:
        following: set[int] = set()
        for at in reached:
            if at == len(parts):
                continue
            part = parts[at]
            if part == "**" or (part == "*" and character != "/"):
                following.add(at)
            elif part == character:
                following.add(at + 1)
        if not following:
            return following
        reached = _onward(parts, following)
    return reached


def _onward(parts: list[str], reached: set[int]) -> set[int]:
    """Those positions too that are reached through stars that stand for nothing."""
    found = set(reached)
    for at in reached:
        while at < len(parts) and parts[at] in ("*", "**"):
            at += 1
            found.add(at)
    return found
