"""Secrets with a prefix and a checksum."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.trust.secret import KINDS, Kind, checksum, hash_secret, is_secret, kind_of, new_secret


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_one_is_of_its_kind_and_of_no_other(kind: Kind) -> None:
    text = new_secret(kind)
    assert re.fullmatch(rf"p2pr_{kind}_[A-Za-z0-9_-]{{43}}[0-9A-Za-z]{{6}}", text)
    assert [other for other in KINDS if is_secret(other, text)] == [kind] == [kind_of(text)]
    assert new_secret(kind) != text


def test_what_is_kept_is_the_plain_hash() -> None:
    text = new_secret("pat")
    assert hash_secret(text) == hashlib.sha256(text.encode()).digest()
    assert checksum("") == "000000"


@given(st.text() | st.from_regex(r"p2pr_[a-z]+_[A-Za-z0-9_-]{40,50}", fullmatch=True))
def test_text_that_was_not_made_here_is_no_secret(text: str) -> None:
    """Any text is looked at without an error, and what is taken has the right checksum."""
    found = kind_of(text)
    assert found is None or text.endswith(checksum(text[:-6]))
    assert len(hash_secret(text)) == 32


@given(st.sampled_from(KINDS), st.integers(0, 200), st.characters(codec="ascii"))
def test_one_wrong_character_is_noticed(kind: Kind, at: int, other: str) -> None:
    """A CRC-32 notices every single wrong character of the part that it covers."""
    text = new_secret(kind)
    at %= len(text)
    changed = text[:at] + other + text[at + 1 :]
    assert (kind_of(changed) is not None) == (changed == text)
