"""A tracker's parts in memory with one image that is to be published to IPFS."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.objects.memory import MemoryObjects
from tracker.blobs import Blobs
from tracker.cars import Cars
from tracker.catalog.check import BY, Signer, manifest
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.publishing import Progress
from tracker.catalog.publishing_memory import MemoryPublishing
from tracker.publisher import Publisher, Service


@dataclass
class Here:
    """A tracker's parts, with one image of one blob in acme/api."""

    catalog: MemoryCatalog
    objects: MemoryObjects
    publishing: MemoryPublishing
    digest: Digest
    service: Service
    name: str

    def publisher(self, **other: object) -> Publisher:
        cars = Cars(self.catalog, Blobs(self.catalog, self.objects), self.publishing)
        return Publisher(self.publishing, cars.open, {self.name: self.service}, draw=lambda: 0.5, **other)  # type: ignore[arg-type]

    async def settle(self, publisher: Publisher) -> None:
        """Until nothing is due."""
        while True:
            done = await publisher.once()
            if not done and not publisher.resting():
                return
            await trio.sleep(0.0 if done else 0.01)

    async def again(self, publisher: Publisher) -> None:
        """The same, with what waits made due."""
        await self.publishing.retry(BY)
        await self.settle(publisher)

    async def states(self) -> dict[str, Progress]:
        """By kind."""
        image = await self.publishing.image("acme/api", self.digest)
        assert image is not None
        kinds = {item.cid: item.kind for item in image.items}
        return {kinds[one.cid]: one for one in await self.publishing.states(list(kinds))}

    async def said(self) -> dict[str, tuple[str, str | None]]:
        return {kind: (one.state, one.error) for kind, one in (await self.states()).items()}


async def one_image(service: Service, name: str, layer: bytes) -> Here:
    """``name``: of the service."""
    catalog, objects = MemoryCatalog(private=False), MemoryObjects()
    blob = Metainfo.of_bytes(layer)
    await objects.put("u/aa/layer", layer)
    await catalog.add_blob("acme/api", blob, "u/aa/layer", BY)
    pushed = manifest(b"{}", [blob])
    await catalog.put_manifest("acme/api", pushed, ["v1"], Signer(), BY)
    publishing = MemoryPublishing(catalog)
    await publishing.publish("acme/*", BY)
    return Here(catalog, objects, publishing, pushed.digest, service, name)
