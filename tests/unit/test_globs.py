"""Globs cover what they say, whole names only, and take no time that a name could stretch."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.globs import MAX_PATTERN, begins, check_glob, matches, matches_any, prefix

PATTERNS = st.lists(st.sampled_from(["*", "**", "a", "b", "/", ":", "."]), max_size=12).map("".join)
NAMES = st.text("ab/:.", max_size=14)


def expression(pattern: str) -> str:
    """The same as a regular expression, written down another way."""
    words = re.split(r"(\*+)", pattern)
    return "".join(
        re.escape(word) if not word.startswith("*") else "[^/]*" if word == "*" else "(?:.|\n)*" for word in words
    )


@given(PATTERNS, NAMES)
def test_a_pattern_covers_what_its_regular_expression_does(pattern: str, name: str) -> None:
    assert matches(pattern, name) == (re.fullmatch(expression(pattern), name) is not None)


@given(st.text(max_size=30))
def test_a_pattern_without_stars_covers_only_itself(name: str) -> None:
    plain = name.replace("*", "")
    assert matches(plain, plain)
    assert not matches(plain, plain + "x")
    assert matches("**", name)


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("team/*", "team/api", True),
        ("team/*", "team/api/old", False),
        ("team/*", "team", False),
        ("team/*", "team/", True),
        ("team/**", "team/api/old", True),
        ("**/api", "a/b/api", True),
        ("**/api", "api", False),
        ("*", "a/b", False),
        ("**", "a/b", True),
        ("****", "a/b", True),
        ("**:v*", "team/api:v1.2", True),
        ("**:v*", "team/api:latest", False),
        ("team/*:v*.*.*", "team/api:v1.2.3", True),
        ("team/*:v*.*.*", "team/api:v1.2", False),
        ("a.c", "abc", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_what_is_covered(pattern: str, name: str, covered: bool) -> None:
    assert matches(pattern, name) is covered
    assert matches_any(["x", pattern], name) is covered


def test_no_pattern_covers_nothing() -> None:
    assert not matches_any([], "a")


def test_the_worst_patterns_do_not_hold_up_everybody() -> None:
    # a backtracking matcher would not come back within the age of the universe; and of one request of a user, who has
    # chosen the scopes of his token, as many as this are looked at: with sets of positions that took two minutes
    began = time.process_time()
    for n in range(2500):
        assert not matches("*a" * (MAX_PATTERN // 2), "a" * 240 + f"b{n}")
    assert time.process_time() - began < 20


@pytest.mark.parametrize("pattern", ["", "a" * (MAX_PATTERN + 1), "a b", "[ab]", "ä*", "a\0", "a?"])
def test_what_cannot_be_a_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="a pattern"):
        check_glob(pattern)


def test_a_pattern_may_have_what_names_have() -> None:
    check_glob("team-a/api_1.x/**:V*")


@given(PATTERNS, NAMES, NAMES)
def test_a_pattern_begins_whatever_a_name_that_it_covers_begins_with(pattern: str, start: str, rest: str) -> None:
    if matches(pattern, start + rest):
        assert begins(pattern, start)
        assert (start + rest).startswith(prefix(pattern))


def test_what_a_pattern_begins() -> None:
    assert begins("team/*:v*", "team/api:")
    assert begins("team/*", "team/api:")
    assert not begins("team/*:v*", "team/api/old:")
    assert not begins("team/api", "team/api:")
