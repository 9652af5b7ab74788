"""Real OCI images made from nothing, for the demonstration and the tests: an image layout in a directory.

The same arguments give the same digests. Layers are tar files of random bytes inside gzip "stored" blocks: valid gzip,
fast to make, and the same on every zlib. Sources: OCI image-spec image-layout.md, layer.md, config.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CREATED = "2023-11-14T22:13:20Z"
_MTIME = 1_700_000_000  # the same moment, in seconds


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob or manifest of a layout. ``digest`` is the text form; ``parts`` are what a manifest or index names."""

    media_type: str
    digest: str
    size: int
    parts: tuple[Descriptor, ...] = ()
    platform: str = ""  # "linux/amd64" for the manifests of an index
    diff_id: str = field(default="", compare=False)  # of a layer: the digest of its tar

    def json(self) -> dict[str, Any]:
        """As OCI writes it."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform:
            system, _, architecture = self.platform.partition("/")
            document["platform"] = {"os": system, "architecture": architecture}
        return document

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers of an image, or of every image of an index."""
        if self.media_type == INDEX:
            return tuple(blob for manifest in self.parts for blob in manifest.blobs)
        return self.parts


class Layout:
    """An image layout directory: ``skopeo copy oci:DIR:latest ...`` reads it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest are."""
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        """The bytes of a small blob or manifest."""
        return self.path(digest).read_bytes()

    def add(self, media_type: str, data: bytes, parts: Sequence[Descriptor] = (), platform: str = "") -> Descriptor:
        """Store a config, manifest or other small document."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.path(digest).write_bytes(data)
        return Descriptor(media_type, digest, len(data), tuple(parts), platform)

    def add_layer(self, tar: Iterable[bytes]) -> Descriptor:
        """Store a tar file as a gzip layer, a chunk at a time."""
        whole, inner, size = hashlib.sha256(), hashlib.sha256(), 0
        packer = zlib.compressobj(0, zlib.DEFLATED, 31)
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".layer-", delete=False) as file:

            def put(data: bytes) -> None:
                nonlocal size
                whole.update(data)
                size += file.write(data)

            for chunk in tar:
                inner.update(chunk)
                put(packer.compress(chunk))
            put(packer.flush())
        digest = "sha256:" + whole.hexdigest()
        Path(file.name).replace(self.path(digest))
        return Descriptor(LAYER, digest, size, diff_id="sha256:" + inner.hexdigest())

    def tag(self, top: Descriptor, name: str = "latest") -> None:
        """Write index.json so that ``oci:DIR:name`` is ``top``."""
        entry = top.json() | {"annotations": {"org.opencontainers.image.ref.name": name}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        (self.root / "index.json").write_bytes(_compact(index))


def make_image(
    layout: Layout,
    *,
    layers: int = 4,
    layer_bytes: int = 3 * MIB,
    seed: str = "0",
    platform: str = "linux/amd64",
    rootfs: Path | None = None,
    command: Sequence[str] = ("/bin/sh",),
    tag: str = "latest",
) -> Descriptor:
    """An image of ``layers`` layers of about ``layer_bytes`` bytes each, on top of ``rootfs`` (a tar file) if given."""
    made = [layout.add_layer(_file_chunks(rootfs))] if rootfs is not None else []
    made += [
        layout.add_layer(_random_tar(f"{seed}/{platform}/{i}", f"data/layer-{i}", layer_bytes)) for i in range(layers)
    ]
    system, _, architecture = platform.partition("/")
    config = {
        "created": _CREATED,
        "architecture": architecture,
        "os": system,
        "config": {"Cmd": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in made]},
        "history": [{"created": _CREATED, "created_by": f"layer {i}"} for i in range(len(made))],
    }
    parts = [layout.add(CONFIG, _compact(config)), *made]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": parts[0].json(),
        "layers": [layer.json() for layer in made],
    }
    top = layout.add(MANIFEST, _compact(manifest), parts, platform)
    layout.tag(top, tag)
    return top


def make_index(
    layout: Layout,
    platforms: Sequence[str] = ("linux/amd64", "linux/arm64"),
    *,
    layers: int = 2,
    layer_bytes: int = MIB,
    seed: str = "0",
    tag: str = "latest",
) -> Descriptor:
    """A multi-architecture image: an index of one image for each of ``platforms``."""
    images = [
        make_image(layout, layers=layers, layer_bytes=layer_bytes, seed=seed, platform=platform)
        for platform in platforms
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image.json() for image in images]}
    top = layout.add(INDEX, _compact(document), images)
    layout.tag(top, tag)
    return top


def busybox_rootfs(
    out: Path, busybox: Path, applets: Sequence[str] = ("sh", "echo", "cat", "ls", "true", "sha256sum")
) -> Path:
    """Write ``out``, a tar file of a root file system whose programs are one static busybox. Returns ``out``."""
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        program = _entry("bin/busybox", tarfile.REGTYPE, 0o755)
        program.size = busybox.stat().st_size
        with busybox.open("rb") as file:
            tar.addfile(program, file)
        for name in applets:
            link = _entry(f"bin/{name}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
    return out


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, _MTIME
    return entry


def _random_tar(seed: str, folder: str, size: int) -> Iterator[bytes]:
    """A tar file of one folder and two files of random bytes, ``size`` bytes together, a chunk at a time."""
    source = random.Random(seed)  # noqa: S311  # test data: the same seed gives the same bytes
    yield _entry(folder, tarfile.DIRTYPE, 0o755).tobuf(tarfile.GNU_FORMAT)
    written = tarfile.BLOCKSIZE
    for name, length in (("a.bin", size // 3), ("b.bin", size - size // 3)):
        entry = _entry(f"{folder}/{name}", tarfile.REGTYPE, 0o644)
        entry.size = length
        yield entry.tobuf(tarfile.GNU_FORMAT)
        for start in range(0, length, MIB):
            yield source.randbytes(min(MIB, length - start))
        padding = -length % tarfile.BLOCKSIZE
        yield bytes(padding)
        written += tarfile.BLOCKSIZE + length + padding
    written += 2 * tarfile.BLOCKSIZE
    yield bytes(2 * tarfile.BLOCKSIZE + -written % tarfile.RECORDSIZE)


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        while chunk := file.read(MIB):
            yield chunk


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
