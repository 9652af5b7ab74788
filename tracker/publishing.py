"""What of a repository is published to IPFS, and how often that is tried: decisions only.

Published of an image is what a node needs that knows its tag and its claim and has nobody left to ask: each blob that
the signed claim names, the manifest, and the text of the claim, these two as one raw block each. Of an index its
children are images of the repository like any other.

What was published cannot be taken back: somebody may have it. So only public repositories are, and of private ones, if
the operator says so, images all of whose layers are encrypted. Their configurations and manifests are not encrypted,
and are published too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import CID_RAW_PREFIX, Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.manifest import parse_manifest

Kind = Literal["blob", "manifest", "claim"]
State = Literal["queued", "publishing", "published", "failed", "unpinning", "removed"]

#: Seconds before the second try, doubled from then on, up to the longest.
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 3600.0
#: The largest block that every IPFS software takes, bytes.
BLOCK_MOST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """Something to be published: the root of its DAG (36 bytes) and its size in bytes. ``digest``: the blob's or the
    manifest's, also of a claim."""

    cid: bytes
    kind: Kind
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest as a repository has it. ``encrypted``: all its layers are, and there are some."""

    digest: Digest
    manifest: Item
    claim: Item
    blobs: tuple[Item, ...]
    children: tuple[Digest, ...] = ()
    encrypted: bool = False

    @property
    def items(self) -> tuple[Item, ...]:
        """Blobs first: who finds a claim finds what it names."""
        return (*self.blobs, self.manifest, self.claim)


def image_of(digest: Digest, media_type: str, body: bytes, claim: str, blobs: Iterable[BlobRef]) -> Image:
    """From what a repository holds."""
    encrypted, children = looked_into(body, media_type)
    text = claim.encode()
    return Image(
        digest,
        block(hashlib.sha256(body).digest(), "manifest", digest, len(body)),
        block(hashlib.sha256(text).digest(), "claim", digest, len(text)),
        tuple(Item(ref.root, "blob", ref.digest, ref.size) for ref in blobs),
        children,
        encrypted,
    )


def block(sha256: bytes, kind: Kind, digest: Digest, size: int) -> Item:
    """What is published as one raw block."""
    return Item(CID_RAW_PREFIX + sha256, kind, digest, size)


def looked_into(body: bytes, media_type: str) -> tuple[bool, tuple[Digest, ...]]:
    """Whether all layers of a manifest are encrypted (ocicrypt's media types), and the manifests that it lists."""
    try:
        parsed = parse_manifest(body, media_type)
    except RequestError:
        return False, ()
    layers = parsed.layers
    encrypted = bool(layers) and all(layer.media_type.endswith("+encrypted") for layer in layers)
    return encrypted, tuple(child.digest for child in parsed.children())


def wanted(images: Sequence[Image], *, private: bool, encrypted: bool) -> dict[bytes, Item]:
    """What is to be published of a repository with these images, by CID. ``encrypted``: of private ones, encrypted
    images are."""
    if private and not encrypted:
        return {}
    chosen = list(images) if not private else _encrypted(images)
    found: dict[bytes, Item] = {}
    for image in chosen:
        for item in image.items:
            found.setdefault(item.cid, item)
    return found


def _encrypted(images: Sequence[Image]) -> list[Image]:
    """Images that are, and indexes whose children that are here all are."""
    known = {image.digest: image for image in images}
    chosen: list[Image] = []
    for image in images:
        here = [known[child] for child in image.children if child in known]
        # what an index lists as a blob is not encrypted: buildkit keeps its cache so
        if image.encrypted or (here and not image.blobs and all(child.encrypted for child in here)):
            chosen.append(image)
    return chosen


def pause(attempts: int, draw: float, *, most: int, asked: float = 0.0) -> float | None:
    """Seconds until the next try after so many ``attempts``; None after ``most`` of them. ``draw`` from 0 to 1 spreads
    tries that would come together. ``asked``: what the service wants to be waited."""
    if attempts >= most:
        return None
    wait = FIRST_PAUSE * 2.0 ** min(max(0, attempts - 1), 20)
    return max(asked, min(LONGEST_PAUSE, wait) * (0.75 + 0.5 * draw))


def too_large(item: Item) -> str | None:
    """Why something can never be published; None: it can be."""
    if item.kind == "blob" or item.size <= BLOCK_MOST:
        return None
    return f"a {item.kind} of {item.size} bytes does not fit into one block of IPFS"
