"""Manifests: what one refers to. The bytes are never rewritten.

Sources: OCI image-spec manifest.md, image-index.md, descriptor.md; Docker image manifest version 2, schema 2.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.media import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    IMAGES,
    INDEXES,
    OCI_INDEX,
    OCI_MANIFEST,
    bare,
    is_foreign,
)

#: Manifests that every registry should take are 4 MiB; ours takes this many bytes unless set otherwise.
MANIFEST_LIMIT = 8 << 20
#: The most that one manifest may refer to; far above any real one.
MAX_DESCRIPTORS = 20_000


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor: media type, digest, size in bytes, and the places it says the bytes are also to be had."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest. ``manifests`` is filled for an index, ``config`` and ``layers`` for an image or artifact.

    ``typed``: it says itself what it is, as every manifest should (distribution-spec, "Pushing Manifests")."""

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str | None
    annotations: dict[str, str] | None = None
    typed: bool = True

    def referrer_type(self) -> str | None:
        """The artifact type that a list of referrers states: its own, else that of the config; an index has none
        (distribution-spec, "Listing Referrers")."""
        return self.artifact_type or (self.config.media_type if self.config else None)

    def required_blobs(self) -> tuple[Descriptor, ...]:
        """The blobs that must be in the repository: config and layers, but not layers kept elsewhere; each once.

        What an index lists under another type than a manifest's is a blob: buildkit keeps its cache so.
        """
        found: dict[Digest, Descriptor] = {}
        listed = (item for item in self.manifests if item.media_type not in IMAGES | INDEXES)
        for item in (*((self.config,) if self.config else ()), *self.layers, *listed):
            if not is_foreign(item.media_type):
                found.setdefault(item.digest, item)
        return tuple(found.values())

    def children(self) -> tuple[Descriptor, ...]:
        """The manifests an index refers to, each once."""
        found = {item.digest: item for item in self.manifests if item.media_type in IMAGES | INDEXES}
        return tuple(found.values())


class _Descriptor(msgspec.Struct):
    mediaType: str  # noqa: N815 - the field's name in JSON
    digest: str
    size: int
    urls: list[str] | None = None
    data: str | None = None


class _Manifest(msgspec.Struct):
    schemaVersion: int  # noqa: N815
    mediaType: str | None = None  # noqa: N815
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    artifactType: str | None = None  # noqa: N815
    annotations: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(_Manifest)


def _bad(message: str, **detail: object) -> RequestError:
    return RequestError("MANIFEST_INVALID", message, detail=detail or None)


def _descriptor(raw: _Descriptor, where: str) -> Descriptor:
    if raw.size < 0 or raw.size >= 1 << 63:
        raise _bad("a size is not a number of bytes", field=f"{where}.size")
    try:
        digest = Digest.parse(raw.digest)
    except RequestError as err:
        raise _bad(err.message, field=f"{where}.digest") from err
    if raw.data is not None:
        try:
            data = base64.b64decode(raw.data, validate=True)
        except (binascii.Error, ValueError) as err:
            raise _bad("embedded data is not base64", field=f"{where}.data") from err
        if len(data) != raw.size or Digest.of(data, digest.algorithm) != digest:
            raise _bad("embedded data does not match its descriptor", field=f"{where}.data")
    return Descriptor(raw.mediaType, digest, raw.size, tuple(raw.urls or ()))


def _list(raw: list[_Descriptor] | None, where: str) -> tuple[Descriptor, ...]:
    if raw is None:
        return ()
    if len(raw) > MAX_DESCRIPTORS:
        raise _bad("too many entries", field=where)
    return tuple(_descriptor(item, f"{where}[{i}]") for i, item in enumerate(raw))


def _media_type(raw: _Manifest, content_type: str | None) -> str:
    stated = bare(content_type) if content_type else None
    if raw.mediaType is not None:
        if stated is not None and stated != raw.mediaType.lower():
            raise _bad("Content-Type and mediaType differ", field="mediaType")
        return raw.mediaType
    if stated is not None:
        return stated
    # mediaType is optional in OCI: tell an index from an image by what it holds
    return OCI_INDEX if raw.manifests is not None and raw.config is None else OCI_MANIFEST


def parse_manifest(body: bytes, content_type: str | None = None) -> Manifest:
    """Read a manifest that was sent with this Content-Type (None: unknown).

    Raises RequestError (MANIFEST_INVALID) that names the field at fault.
    """
    try:
        raw = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _bad(f"the manifest cannot be read: {str(err)[:200]}") from err
    if raw.schemaVersion != 2:
        raise _bad("only schemaVersion 2 is supported", field="schemaVersion")
    media_type = _media_type(raw, content_type)
    if media_type not in IMAGES | INDEXES:
        raise _bad(
            "this type of manifest is not supported",
            field="mediaType",
            mediaType=media_type[:200],
            supported=[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST],
        )
    if media_type in INDEXES:
        if raw.manifests is None:
            raise _bad("an index needs manifests", field="manifests")
        if raw.layers is not None or raw.config is not None:
            raise _bad("an index has neither config nor layers", field="layers" if raw.layers is not None else "config")
    else:
        if raw.config is None:
            raise _bad("an image manifest needs a config", field="config")
        if raw.layers is None:
            raise _bad("an image manifest needs layers", field="layers")
        if raw.manifests is not None:
            raise _bad("an image manifest has no manifests", field="manifests")
    return Manifest(
        media_type,
        _descriptor(raw.config, "config") if raw.config else None,
        _list(raw.layers, "layers"),
        _list(raw.manifests, "manifests"),
        _descriptor(raw.subject, "subject") if raw.subject else None,
        raw.artifactType,
        raw.annotations,
        raw.mediaType is not None,
    )
