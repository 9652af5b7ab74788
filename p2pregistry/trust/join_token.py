"""The join token: what an operator carries from the tracker to a new machine.

``p2pr_join_`` and URL-safe base64 of JSON: where the tracker's peer API is, the fingerprint of its TLS key, its root
key, and a secret. The node checks the first three before it shows the last to anybody, so that somebody in the middle
learns nothing that helps to join.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import msgspec

from p2pregistry.errors import SettingsError

PREFIX: Final = "p2pr_join_"
#: Characters of the longest token.
MAX_JOIN_TOKEN: Final = 4000

_FINGERPRINT: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_ROOT: Final = re.compile(r"k4\.public\.[A-Za-z0-9_-]{43}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``url``: https, of the tracker's peer API; ``fingerprint``: of its TLS key (``proof.fingerprint``); ``root_key``:
    k4.public; ``secret``: 32 random bytes, URL-safe base64."""

    url: str
    fingerprint: str
    root_key: str
    secret: str = field(repr=False)


class _Token(msgspec.Struct):
    u: str
    f: str
    r: str
    s: str


def format_join_token(token: JoinToken) -> str:
    """One word that ``parse_join_token`` reads."""
    raw = msgspec.json.encode(_Token(token.url, token.fingerprint, token.root_key, token.secret))
    return PREFIX + base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def parse_join_token(text: str) -> JoinToken:
    """Raises SettingsError that says what is wrong, never what the token holds."""
    word = text.strip()
    if not word.startswith(PREFIX):
        raise SettingsError(f"this is no join token: one begins with {PREFIX}")
    if len(word) > MAX_JOIN_TOKEN:
        raise SettingsError("this is no join token: it is too long")
    encoded = word.removeprefix(PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        raw = msgspec.json.decode(data, type=_Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        # not "from": what could not be read may be most of the secret
        raise SettingsError("this join token is not whole; copy it again") from None
    good = _FINGERPRINT.fullmatch(raw.f) and _ROOT.fullmatch(raw.r) and _SECRET.fullmatch(raw.s) and _https(raw.u)
    if not good:
        raise SettingsError("this join token is not whole; copy it again")
    return JoinToken(raw.u.rstrip("/"), raw.f, raw.r, raw.s)


def _https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \"'<>\\")
    bare = not parts.query and not parts.fragment and "@" not in parts.netloc
    return plain and bare and parts.scheme == "https" and bool(parts.hostname) and port != 0
