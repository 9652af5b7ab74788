"""A registry in memory, with the content of an image layout, for what reads images from registries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.image.registry import Fetched
from p2pregistry.testing.images import Layout


class Shelf:
    """``top``: the manifest under every tag. ``roots``: the root CIDs that it states. ``read``: blobs
    that it was asked for."""

    def __init__(self, layout: Layout, top: str, roots: Mapping[str, bytes] | None = None) -> None:
        self.layout, self.top, self.roots = layout, top, roots or {}
        self.read: list[str] = []

    def manifest(self, reference: str | Digest) -> Fetched:
        try:
            body = self.layout.read(str(reference) if isinstance(reference, Digest) else self.top)
        except FileNotFoundError:
            raise NotFound("MANIFEST_UNKNOWN", "no such manifest") from None
        return Fetched(Digest.of(body), json.loads(body)["mediaType"], body)

    def root(self, digest: Digest) -> bytes | None:
        return self.roots.get(str(digest))

    def blob(self, digest: Digest) -> Iterator[bytes]:
        self.read.append(str(digest))
        data = self.layout.read(str(digest))
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]
