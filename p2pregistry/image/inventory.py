"""What an image is made of: its manifests, configs and layers, with the root CID of each.

Roots of manifests are reckoned from their bytes, and those of other blobs up to 1 MiB are their digests. Of a larger
blob a node or the tracker says what its claim names; any other registry's blobs have to be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound
from p2pregistry.image.registry import Fetched
from p2pregistry.oci.manifest import Descriptor, Manifest, parse_manifest
from p2pregistry.oci.media import INDEXES, is_foreign
from p2pregistry.oci.platforms import Platform, stated_platforms, wanted_children

#: An index may list indexes, but not deeper than this.
_DEPTH: Final = 8
#: The largest blob that is looked at, bytes: a manifest may state any size, and tables are made for it.
MAX_BLOB: Final = 1 << 40

Kind = Literal["index", "manifest", "config", "layer", "blob"]
#: How a root CID is known: from the digest or the bytes themselves, from the registry's word, or by reading the blob.
Known = Literal["bytes", "claim", "read"]


class Reads(Protocol):
    """What is needed of a registry."""

    def manifest(self, reference: str | Digest) -> Fetched: ...
    def root(self, digest: Digest) -> bytes | None: ...
    def blob(self, digest: Digest) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One part of an image; ``size`` in bytes. ``body``: of a manifest. ``root``: 36 bytes, None where not known."""

    kind: Kind
    digest: Digest
    size: int
    media_type: str
    platform: str = ""
    body: bytes | None = None
    root: bytes | None = None
    known: Known | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The parts, each once, the image itself first; and what belongs to it but is not in the registry."""

    items: tuple[Item, ...]
    missing: tuple[Descriptor, ...]


def take(registry: Reads, reference: str | Digest, platforms: Collection[Platform] | None) -> Inventory:
    """The parts of an image; of an index those for ``platforms``, None: all that are there.

    Manifests that an index lists and the registry lacks are left out and named, and so are layers that are kept
    elsewhere. Raises RegistryError.
    """
    found: dict[Digest, Item] = {}
    missing: dict[Digest, Descriptor] = {}

    def add(item: Item) -> None:
        found.setdefault(item.digest, item)

    def look(fetched: Fetched, platform: str, depth: int) -> None:
        manifest = parse_manifest(fetched.body, fetched.media_type or None)
        index = manifest.media_type in INDEXES
        root = Metainfo.of_bytes(fetched.body).root
        kind: Kind = "index" if index else "manifest"
        size = len(fetched.body)
        add(Item(kind, fetched.digest, size, manifest.media_type, platform, fetched.body, root, "bytes"))
        stated = stated_platforms(fetched.body) if index else {}
        for child in wanted_children(fetched.body, manifest.children(), platforms):
            if child.digest in found:
                continue
            if depth >= _DEPTH:
                raise BadContent("the index lists indexes that list indexes without an end")
            try:
                body = registry.manifest(child.digest)
            except NotFound:
                missing[child.digest] = child
                continue
            look(body, ", ".join(map(str, stated.get(child.digest, ()))), depth + 1)
        for item in _blobs(manifest, missing):
            add(item)

    look(registry.manifest(reference), "", 0)
    return Inventory(tuple(found.values()), tuple(missing.values()))


def _blobs(manifest: Manifest, missing: dict[Digest, Descriptor]) -> Iterator[Item]:
    config = manifest.config.digest if manifest.config else None
    for blob in manifest.required_blobs():
        if blob.size > MAX_BLOB:
            raise BadContent(f"the image names a blob of {blob.size} bytes, which is more than can be")
        kind: Kind = "config" if blob.digest == config else "blob" if manifest.config is None else "layer"
        item = Item(kind, blob.digest, blob.size, blob.media_type)
        if blob.digest.algorithm == "sha256" and blob.size <= PIECE_SIZE:
            item = replace(item, root=blob.digest.cid(), known="bytes")
        yield item
    missing.update({blob.digest: blob for blob in manifest.layers if is_foreign(blob.media_type)})


def with_roots(
    registry: Reads, items: Collection[Item], *, read: bool, progress: Callable[[int], None] = lambda _count: None
) -> list[Item]:
    """The items with the roots that the registry states. ``read``: what it does not state is found by reading the
    blob; ``progress`` is told of the bytes. Raises RegistryError."""
    done: list[Item] = []
    for item in items:
        if item.root is None and (root := registry.root(item.digest)) is not None:
            done.append(replace(item, root=root, known="claim"))
        elif item.root is None and read:
            hashes = b"".join(hash_ for hash_, _ in pieces(item, registry.blob(item.digest), progress))
            done.append(replace(item, root=Metainfo.of(item.digest, item.size, hashes).root, known="read"))
        else:
            done.append(item)
    return done


def pieces(item: Item, parts: Iterator[bytes], progress: Callable[[int], None]) -> Iterator[tuple[bytes, bytes]]:
    """A blob cut into pieces of 1 MiB: (sha256, bytes) of each; an empty blob has one, empty.

    Raises BadContent at the end, or as soon as there are too many bytes, unless size and digest are those of the item:
    nobody may rely on a piece before that.
    """
    whole = hashlib.new(item.digest.algorithm)
    buffer, size = bytearray(), 0
    for data in parts:
        whole.update(data)
        size += len(data)
        progress(len(data))
        if size > item.size:
            raise BadContent(f"the registry sends more than the {item.size} bytes of {item.digest}")
        buffer += data
        while len(buffer) >= PIECE_SIZE:
            piece = bytes(buffer[:PIECE_SIZE])
            del buffer[:PIECE_SIZE]
            yield hashlib.sha256(piece).digest(), piece
    if buffer or size == 0:
        yield hashlib.sha256(buffer).digest(), bytes(buffer)
    if size != item.size or whole.digest() != item.digest.raw:
        raise BadContent(f"what the registry sends for {item.digest} is something else")
