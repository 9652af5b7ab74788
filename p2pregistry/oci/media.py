"""Media types of manifests and blobs, OCI's and Docker's. Both are accepted and served as they were pushed."""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCTET_STREAM = "application/octet-stream"
#: CARv1, in which piece tables travel.
CAR = "application/vnd.ipld.car"
#: With a blob, a node and the tracker say the root CID of its DAG. IPFS gateways that put files together use this name.
ROOT_HEADER = "X-Ipfs-Roots"

IMAGES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})

#: Layers that need not be in the registry: they are fetched from elsewhere (image-spec layer.md, Docker schema 2).
_FOREIGN_PREFIXES = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


def is_foreign(media_type: str) -> bool:
    """Whether a layer of this type may be absent from the registry."""
    return media_type.startswith(_FOREIGN_PREFIXES)


def bare(content_type: str) -> str:
    """A Content-Type without its parameters, lower case."""
    return content_type.partition(";")[0].strip().lower()
