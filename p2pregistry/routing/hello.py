"""What two nodes tell each other when they meet: ``/p2pregistry/hello/1``.

One JSON object each way, its length in front as an unsigned varint, at most 80 KiB:
``{"urls": ["http://192.0.2.7:5001"], "zone": "rack-4", "version": "0.1.0"}``. Unknown members are ignored.

In a swarm with credentials it has two more: ``"credential"``, a token (trust/records), and ``"addrs"``, multiaddrs at
which the sender listens, because there the library's own way to learn them is closed to who is not introduced yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from p2pregistry.errors import BadContent
from p2pregistry.routing.kad.wire import varint
from p2pregistry.trust.records import MAX_RECORD

MAX_HELLO = 80 << 10
_MAX_LIST = 8
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class Hello:
    """``urls``: base URLs of the sender's peer API, best first; none if it serves no blobs."""

    urls: tuple[str, ...] = ()
    zone: str = ""
    version: str = ""
    credential: str = ""
    addrs: tuple[str, ...] = ()


def encode_hello(hello: Hello) -> bytes:
    """The hello with its length in front."""
    value: dict[str, object] = {"urls": list(hello.urls), "zone": hello.zone, "version": hello.version}
    if hello.credential:
        value |= {"credential": hello.credential, "addrs": list(hello.addrs)}
    body = json.dumps(value).encode()
    return varint(len(body)) + body


def _text(value: object, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise BadContent("a hello holds something that is no short text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        raise BadContent("a hello holds something that is no short list")
    return tuple(_text(item) for item in value)


def decode_hello(body: bytes) -> Hello:
    """Read a hello, without its length. Raises BadContent."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadContent("a hello that is no JSON") from error
    if not isinstance(value, dict):
        raise BadContent("a hello that is no JSON object")
    urls = _texts(value.get("urls", []))
    if not all(url.startswith(("http://", "https://")) for url in urls):
        raise BadContent("a hello with a URL that is not HTTP")
    zone, version = _text(value.get("zone", "")), _text(value.get("version", ""))
    credential = _text(value.get("credential", ""), MAX_RECORD)
    return Hello(urls, zone, version, credential, _texts(value.get("addrs", [])))


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
