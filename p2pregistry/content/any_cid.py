"""CIDs as clients write them: any spelling that multibase has in use, and CIDv0.

We write one spelling only (base32, ``digest.cid_text``) and compare bytes. Source: the CID specification
(https://github.com/multiformats/cid) and the multibase table.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX

#: The longest text that is looked at: a CID of a hash of 128 bytes in base16, and some more.
MAX_TEXT: Final = 320
#: The CID of nothing at all, whose hash is the content itself: clients ask for it to find out whether this is a
#: trustless gateway (specification "Dedicated Probe Paths").
PROBE: Final = b"\x01\x55\x00\x00"
PROBE_TEXT: Final = "bafkqaaa"

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def read_cid(text: str) -> bytes:
    """The CID in binary form, version 1: of version 0, which names a dag-pb block, what it is in version 1.

    Raises ValueError where it is no CID. One with a codec or hash that we do not have is none the less a CID.
    """
    if not 2 <= len(text) <= MAX_TEXT or not text.isascii():
        raise ValueError("not a CID")
    try:
        return _version_0(text) if len(text) == 46 and text.startswith("Qm") else _checked(_multibase(text))
    except ValueError as err:
        raise ValueError("not a CID") from err


def is_ours(cid: bytes) -> bool:
    """Whether it can be of a block in one of our DAGs: raw or dag-pb, sha2-256."""
    return len(cid) == 36 and cid[:4] in (CID_RAW_PREFIX, CID_DAG_PB_PREFIX)


def _version_0(text: str) -> bytes:
    hashed = _digits(text, _BASE58)
    return CID_DAG_PB_PREFIX + hashed[2:] if len(hashed) == 34 and hashed[:2] == b"\x12\x20" else _no()


def _multibase(text: str) -> bytes:
    """The bytes behind a text with its base in front. Raises ValueError."""
    base, rest = text[0], text[1:]
    if base in "bB":
        return _base32(rest if base == "B" else rest.upper() if rest.lower() == rest else "?")
    if base in "kK":
        return _digits(rest.lower() if base == "K" else rest, _BASE36)
    if base == "z":
        return _digits(rest, _BASE58)
    if base in "fF":
        return bytes.fromhex(rest) if rest.isalnum() else _no()
    if base in "uU":
        return _base64url(rest)
    return _no()


def _no() -> bytes:
    raise ValueError("not a CID")


def _base32(text: str) -> bytes:
    found = base64.b32decode(text + "=" * (-len(text) % 8))
    if base64.b32encode(found).decode("ascii").rstrip("=") != text:
        _no()  # bits beyond the last byte
    return found


def _base64url(text: str) -> bytes:
    found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(found).decode("ascii").rstrip("=") != text:
        _no()
    return found


def _places(alphabet: str) -> Mapping[str, int]:
    return {letter: place for place, letter in enumerate(alphabet)}


_PLACES: Final = {alphabet: _places(alphabet) for alphabet in (_BASE58, _BASE36)}


def _digits(text: str, alphabet: str) -> bytes:
    """A number in some base; each digit 0 in front of it is a byte 0."""
    places, number = _PLACES[alphabet], 0
    for letter in text:
        if letter not in places:
            _no()
        number = number * len(alphabet) + places[letter]
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _checked(cid: bytes) -> bytes:
    """``cid`` if version, codec, hash and the length of the hash are as they must be. Raises ValueError."""
    version, at = _varint(cid, 0)
    if version != 1:
        _no()
    for _ in ("codec", "hash"):
        _, at = _varint(cid, at)
    length, at = _varint(cid, at)
    if length > 128 or len(cid) != at + length:
        _no()
    return cid


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in the shortest form, of nine bytes at most (multiformats unsigned-varint)."""
    value = 0
    for used, byte in enumerate(data[at : at + 9]):
        value |= (byte & 0x7F) << 7 * used
        if byte < 0x80:
            if byte == 0 and used:
                break
            return value, at + used + 1
    raise ValueError("not a CID")
