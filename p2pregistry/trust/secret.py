"""Secrets that people and programs carry about: tokens with a prefix that scanners of leaked secrets can find.

``p2pr_<kind>_``, then 32 random bytes as base64url, then six characters of a checksum over all before it: what merely
looks like a secret is told apart without asking anybody. 256 random bits need no slow hash: the plain sha256 of one is
kept, and found again by it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import zlib
from typing import Final, Literal, get_args

Kind = Literal["pat", "robot", "refresh", "join", "setup"]
#: Every kind of secret.
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
#: What all of them begin with, the kind left out.
PREFIX: Final = "p2pr_"

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM: Final = re.compile(rf"{PREFIX}({'|'.join(KINDS)})_[A-Za-z0-9_-]{{43}}[0-9A-Za-z]{{6}}")


def new_secret(kind: Kind) -> str:
    """A new one, of 256 random bits."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    text = f"{PREFIX}{kind}_{random}"
    return text + checksum(text)


def kind_of(text: str) -> Kind | None:
    """What kind of secret this is, by its form and checksum; None if it is none. Says nothing of whether it is good."""
    match = _FORM.fullmatch(text)
    if match is None or checksum(text[:-6]) != text[-6:]:
        return None
    return next(kind for kind in KINDS if kind == match[1])


def is_secret(kind: Kind, text: str) -> bool:
    """Whether it has the form of a secret of this kind, and its checksum is right."""
    return kind_of(text) == kind


def hash_secret(text: str) -> bytes:
    """The sha256 under which a secret is kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def checksum(text: str) -> str:
    """Six characters of base62: the CRC-32 of the text."""
    rest = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = _DIGITS[digit] + digits
    return digits
