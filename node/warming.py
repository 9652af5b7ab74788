"""What the node keeps warm: made from the settings, and what its operator may ask of it over the admin socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import msgspec

from node.settings import NodeSettings
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.flights import Flights
from p2pregistry.oci.platforms import Platform, read_platforms, this_platform
from p2pregistry.resolve import Resolver
from p2pregistry.serve.http import Request
from p2pregistry.store.base import Blob
from p2pregistry.store.cache import Cache
from p2pregistry.store.index import Index
from p2pregistry.warm.choose import Patterns, full_pattern, split_reference
from p2pregistry.warm.fetch import Fetcher
from p2pregistry.warm.pins import Pins
from p2pregistry.warm.warmer import Asked, Warmer

if TYPE_CHECKING:
    from node.app import Node

#: Bytes of a question over the admin socket.
_MOST = 1 << 20
T = TypeVar("T")


class AskedFor:
    """The cache as clients see it: what they open has been asked for."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def open(self, digest: Digest) -> Blob:
        """See Cache."""
        blob = await self._cache.open(digest)
        await self._cache.asked(digest)
        return blob


def make_warmer(settings: NodeSettings, index: Index, cache: Cache, resolver: Resolver, flights: Flights) -> Warmer:
    """What keeps images warm on this node. From here on the cache keeps what is pinned. Raises LocalError."""

    def keep(blobs: frozenset[Digest]) -> None:
        cache.kept = blobs

    stated = settings.prefetch
    fetcher = Fetcher(index, resolver, flights, cache.pin, slots=stated.concurrency, limit=stated.max_bytes)
    patterns = Patterns(
        tuple(full_pattern(pattern) for pattern in settings.sync.patterns),
        tuple(full_pattern(pattern) for pattern in stated.patterns),
    )
    return Warmer(
        index, resolver, fetcher, Pins(index, keep), patterns, _platforms(stated.platforms), poll=settings.sync.poll
    )


def _platforms(texts: tuple[str, ...]) -> tuple[Platform, ...] | None:
    """Those that are named, else this machine's; None: all."""
    return read_platforms(texts or (str(this_platform(os.uname().machine)),))


class _Image(msgspec.Struct):
    image: str
    platforms: tuple[str, ...] = ()


class _Gc(msgspec.Struct):
    dry_run: bool = False
    max_bytes: int | None = None


async def warming(request: Request, node: Node) -> object:
    """The answer, to be sent as JSON; None for what is asked elsewhere. Raises RequestError, LocalError."""
    if node.warmer is None:
        return None
    match request.method, request.path:
        case "POST", "/prefetch":
            return _begun(node.warmer.ask(*_wanted(node, await _read(request, _Image))))
        case "GET", "/prefetch":
            return _begun(node.warmer.asked(_number(request.param("number") or "")))
        case "DELETE", "/prefetch":
            asked = node.warmer.under_way(*_named(node, request.param("image") or ""))
            asked.scope.cancel()
            return _begun(asked)
        case "GET", "/pins":
            return {"pins": _pins(node, node.warmer)}
        case "POST", "/pins":
            wanted = await _read(request, _Image)
            repository, reference, _ = _wanted(node, wanted)
            platforms = wanted.platforms or tuple(str(platform) for platform in node.warmer.platforms or ("all",))
            return _begun(await node.warmer.pin(repository, reference, platforms))
        case "DELETE", "/pins":
            await node.warmer.unpin(*_named(node, request.param("image") or ""))
            return {}
        case "POST", "/gc":
            return await _collect(node.cache, await _read(request, _Gc))
    return None


async def _read(request: Request, kind: type[T]) -> T:
    body = await request.body.read(_MOST)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise RequestError("UNSUPPORTED", f"this is not understood: {err}", status=400) from err


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1


def _named(node: Node, image: str) -> tuple[str, str]:
    """The repository and the tag or digest of an image's name, which may begin with a registry's."""
    first, slash, rest = image.partition("/")
    if slash and (":" in first or first == "localhost" or first in node.names):
        image = rest
    repository, reference = split_reference(image)
    return repository, str(reference)


def _wanted(node: Node, asked: _Image) -> tuple[str, str, tuple[Platform, ...] | None]:
    assert node.warmer is not None
    try:
        platforms = read_platforms(asked.platforms) if asked.platforms else node.warmer.platforms
    except ValueError as err:
        raise RequestError("UNSUPPORTED", str(err), status=400) from err
    return (*_named(node, asked.image), None if platforms is None else tuple(platforms))


def _begun(asked: Asked) -> dict[str, object]:
    return {"number": asked.job.number, "image": str(asked.job), **asked.progress.as_json()}


def _pins(node: Node, warmer: Warmer) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for pin in warmer.pins.all():
        image = warmer.pins.needs(pin)
        here = sum(blob.size for blob in image.blobs if node.index.blob(blob.digest) is not None)
        total = sum(blob.size for blob in image.blobs)
        found.append(
            {
                "image": str(pin),
                "digest": pin.digest or None,
                "platforms": list(pin.platforms),
                "total": total,
                "here": here,
                "complete": bool(pin.digest) and not image.missing and here == total,
            }
        )
    return found


async def _collect(cache: Cache, asked: _Gc) -> dict[str, object]:
    gone = await (cache.surplus if asked.dry_run else cache.trim)(asked.max_bytes)
    return {
        "dry_run": asked.dry_run,
        "blobs": [{"digest": str(digest), "size": size} for digest, size in gone],
        "bytes": sum(size for _, size in gone),
    }
