"""Pins: images that an operator wants to stay on a node, kept beside the index so that they outlive it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RequestError
from p2pregistry.oci.manifest import Descriptor, parse_manifest
from p2pregistry.oci.platforms import Platform, read_platforms, wanted_children
from p2pregistry.store.records import StoredManifest

_KEY: Final = "pins"
#: Pins of a node, and manifests of an image.
MOST_PINS, MOST_MANIFESTS = 1000, 1000


class Pin(msgspec.Struct, frozen=True):
    """One pin: the tag (the pin follows it) or the digest, the digest of the image that is kept now ("": none yet), and
    the platforms ("all" is one)."""

    repository: str
    reference: str
    digest: str = ""
    platforms: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[Platform, ...] | None:
        """The platforms; None: all."""
        return read_platforms(self.platforms)

    def __str__(self) -> str:
        return f"{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


@dataclass(frozen=True, slots=True)
class Image:
    """What an image needs: blobs, each once, and the manifests that are not here yet."""

    blobs: tuple[Descriptor, ...]
    missing: tuple[Digest, ...] = ()


def needs(
    digest: Digest, manifest: Callable[[Digest], StoredManifest | None], platforms: Sequence[Platform] | None
) -> Image:
    """What the image behind this manifest needs, as far as its manifests are here."""
    blobs: dict[Digest, Descriptor] = {}
    seen, todo, missing = {digest}, [digest], list[Digest]()
    while todo:
        stored = manifest(todo[0])
        here = todo.pop(0)
        if stored is None:
            missing.append(here)
            continue
        try:
            parsed = parse_manifest(stored.body, stored.media_type)
        except RequestError:
            continue  # the tracker took it, so it is of a kind that is newer than this program
        for blob in parsed.required_blobs():
            blobs.setdefault(blob.digest, blob)
        for child in wanted_children(stored.body, parsed.children(), platforms):
            if child.digest not in seen and len(seen) < MOST_MANIFESTS:
                seen.add(child.digest)
                todo.append(child.digest)
    return Image(tuple(blobs.values()), tuple(missing))


class Records(Protocol):
    """The part of the index that is used here."""

    def manifest(self, digest: Digest) -> StoredManifest | None: ...
    def get_meta(self, key: str) -> bytes | None: ...
    async def put_meta(self, key: str, value: bytes) -> None: ...


class Pins:
    """All pins of a node. ``kept`` is told which blobs they keep, at once and whenever that changes."""

    def __init__(self, records: Records, kept: Callable[[frozenset[Digest]], None]) -> None:
        """Raises LocalError for pins that cannot be read: to go on would be to let go of them."""
        self._records, self._kept = records, kept
        try:
            found = msgspec.json.decode(records.get_meta(_KEY) or b"[]", type=list[Pin])
            self._pins = {(pin.repository, pin.reference): pin for pin in found if pin.wanted != ()}
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as err:
            raise LocalError("the pins beside the index cannot be read") from err
        self._tell()

    def all(self) -> list[Pin]:
        """In order of their names."""
        return sorted(self._pins.values(), key=str)

    def get(self, repository: str, reference: str) -> Pin | None:
        """The pin of this tag or digest."""
        return self._pins.get((repository, reference))

    async def put(self, pin: Pin) -> None:
        """Add or replace one, durably. Raises LocalError, RequestError (too many)."""
        name = (pin.repository, pin.reference)
        if name not in self._pins and len(self._pins) >= MOST_PINS:
            raise RequestError("DENIED", f"a node has at most {MOST_PINS} pins")
        await self._save({**self._pins, name: pin})

    async def drop(self, repository: str, reference: str) -> None:
        """Remove one, durably; what it kept may go from now on. Raises NotFound, LocalError."""
        left = dict(self._pins)
        if left.pop((repository, reference), None) is None:
            raise NotFound("NAME_UNKNOWN", "there is no such pin")
        await self._save(left)

    async def keep(self, repository: str, reference: str, digest: Digest) -> None:
        """From now on the pin keeps this image, whose manifests are here, and not the one before."""
        pin = self.get(repository, reference)
        if pin is not None and pin.digest != str(digest):
            await self.put(msgspec.structs.replace(pin, digest=str(digest)))
        elif pin is not None:
            self._tell()

    async def _save(self, pins: dict[tuple[str, str], Pin]) -> None:
        await self._records.put_meta(_KEY, msgspec.json.encode(list(pins.values())))
        self._pins = pins
        self._tell()

    def needs(self, pin: Pin) -> Image:
        """What the image needs that the pin keeps now."""
        if not pin.digest:
            return Image(())
        return needs(Digest.parse(pin.digest), self._records.manifest, pin.wanted)

    def _tell(self) -> None:
        self._kept(frozenset(blob.digest for pin in self._pins.values() for blob in self.needs(pin).blobs))
