"""What two nodes tell each other when they meet: ``/p2pregistry/hello/1``.

One JSON object each way, its length in front as an unsigned varint, at most 8 KiB:
``{"urls": ["http://192.0.2.7:5001"], "zone": "rack-4", "version": "0.1.0"}``. Unknown members are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from p2pregistry.errors import BadContent
from p2pregistry.routing.kad.wire import varint

MAX_HELLO = 8192
_MAX_URLS = 8
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class Hello:
    """``urls``: base URLs of the sender's peer API, best first; none if it serves no blobs."""

    urls: tuple[str, ...] = ()
    zone: str = ""
    version: str = ""


def encode_hello(hello: Hello) -> bytes:
    """The hello with its length in front."""
    body = json.dumps({"urls": list(hello.urls), "zone": hello.zone, "version": hello.version}).encode()
    return varint(len(body)) + body


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise BadContent("a hello holds something that is no short text")
    return value


def decode_hello(body: bytes) -> Hello:
    """Read a hello, without its length. Raises BadContent."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadContent("a hello that is no JSON") from error
    if not isinstance(value, dict):
        raise BadContent("a hello that is no JSON object")
    urls = value.get("urls", [])
    if not isinstance(urls, list) or len(urls) > _MAX_URLS:
        raise BadContent("a hello without a list of URLs")
    good = tuple(_text(url) for url in urls)
    if not all(url.startswith(("http://", "https://")) for url in good):
        raise BadContent("a hello with a URL that is not HTTP")
    return Hello(good, _text(value.get("zone", "")), _text(value.get("version", "")))


def split_hello(data: bytes) -> bytes | None:
    """The hello's body once all of it has arrived, else None. Raises BadContent if it is too long."""
    length = 0
    for i in range(3):
        if i >= len(data):
            return None
        length |= (data[i] & 0x7F) << 7 * i
        if data[i] < 0x80:
            if length > MAX_HELLO:
                break
            return data[i + 1 : i + 1 + length] if len(data) > i + length else None
    raise BadContent("a hello that is too long")
