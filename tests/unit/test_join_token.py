"""Join tokens: what is written is read again, and anything else is refused without being repeated."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import SettingsError
from p2pregistry.trust.join_token import PREFIX, JoinToken, format_join_token, parse_join_token

TOKEN = JoinToken("https://tracker.example.com:5051", "f" * 43, "k4.public." + "r" * 43, "s" * 43)


def encoded(document: object) -> str:
    return PREFIX + base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def test_what_is_written_is_read_again() -> None:
    text = format_join_token(TOKEN)
    assert parse_join_token(f"  {text}\n") == TOKEN
    assert text.isascii()
    assert not set(text) & set(" '\"$\\\n")


def test_the_secret_is_in_no_repr() -> None:
    assert TOKEN.secret not in repr(TOKEN)


@pytest.mark.parametrize(
    "change",
    [
        {"u": "http://tracker.example.com:5051"},
        {"u": "https://"},
        {"u": "https://user:secret@tracker.example.com"},
        {"u": "https://tracker.example.com:0"},
        {"u": "https://tracker.example.com:99999"},
        {"u": "https://tracker.example.com/\r\nX: y"},
        {"u": "https://tracker.example.com/?a=b"},
        {"f": "short"},
        {"f": "f" * 43 + "\n"},
        {"r": "k4.secret." + "r" * 43},
        {"s": ""},
        {"s": 7},
    ],
)
def test_a_token_that_is_not_in_form_is_refused(change: dict[str, object]) -> None:
    good = {"u": TOKEN.url, "f": TOKEN.fingerprint, "r": TOKEN.root_key, "s": TOKEN.secret}
    assert parse_join_token(encoded(good)) == TOKEN
    with pytest.raises(SettingsError) as failure:
        parse_join_token(encoded({**good, **change}))
    assert TOKEN.secret not in str(failure.value)
    assert failure.value.__cause__ is None


def attempt(text: str) -> JoinToken | None:
    """The token; None if it was refused, in words that do not repeat what was given."""
    try:
        return parse_join_token(text)
    except SettingsError as err:
        message = err.message
    assert TOKEN.secret not in message
    assert len(text) < 20 or text not in message
    return None


@given(st.text(), st.booleans())
def test_any_text_parses_or_is_refused(text: str, prefixed: bool) -> None:
    """Parses into something that is written and read again as itself, or raises SettingsError."""
    token = attempt(PREFIX + text if prefixed else text)
    assert token is None or parse_join_token(format_join_token(token)) == token


@given(st.integers(0, 400), st.characters(codec="ascii"))
def test_a_damaged_token_parses_or_is_refused(at: int, character: str) -> None:
    """As any text."""
    text = format_join_token(TOKEN)
    attempt(text[: at % len(text)] + character + text[at % len(text) + 1 :])
