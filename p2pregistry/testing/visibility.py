"""What the tests of who sees what have in common: repositories of every kind, and endpoints that are asked about each.

A refusal must be the one that the same actor gets for a repository that does not exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.serve.http import Handler, Headers, Request, Response
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.records import RepositoryRecord, StoredManifest
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.http import running
from p2pregistry.testing.node_stack import NAME, NodeStack, node_stack
from p2pregistry.testing.sharing import Sharer, sharing
from p2pregistry.testing.tracker_api import Registry, keyring, manifest_of, registry
from p2pregistry.trust.claims import sign_manifest_claim
from p2pregistry.trust.records import Caller, Stamp
from tracker.blobs import Blobs
from tracker.catalog.check import BY
from tracker.peer_endpoints import Swarm, TrackerPeerApi
from tracker.signed import SignedRecords

REPOSITORIES = ("acme/public", "acme/private", "other/private", "acme/unknown")


def cells(table: str) -> dict[tuple[str, str], set[str]]:
    """(actor, repository) -> what is allowed."""
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    assert tuple(head[1:]) == REPOSITORIES
    return {(row[0], name): set(cell.split()) for row in rows for name, cell in zip(head[1:], row[1:], strict=True)}


@dataclass(frozen=True)
class Image:
    """What is in a repository, or would be."""

    layer: bytes
    config: bytes

    @classmethod
    def of(cls, name: str) -> Image:
        return cls(name.encode() * 200_000, json.dumps({"of": name}).encode())

    @cached_property
    def body(self) -> bytes:
        return manifest_of(self.config, self.layer)

    @cached_property
    def digest(self) -> Digest:
        return Digest.of(self.body)

    @cached_property
    def blob(self) -> Digest:
        return Digest.of(self.layer)


IMAGES = {name: Image.of(name) for name in (*REPOSITORIES, "acme/nothing", "other/nothing")}
_UPLOAD = re.compile(r"[0-9a-f]{8}-?[0-9a-f-]{20,}|p2pr_[A-Za-z0-9_-]+")


def twin(repository: str) -> str:
    """A repository of the same namespace that does not exist."""
    return repository.partition("/")[0] + "/nothing"


def shape(answer: Answer, repository: str) -> tuple[int, list[tuple[str, str]], str]:
    """A refusal without the names that were asked for."""
    image = IMAGES[repository]

    def bare(text: str) -> str:
        for word in (str(image.digest), str(image.blob), repository, repository.replace("/", "%2F")):
            text = text.replace(word, "X")
        return _UPLOAD.sub("U", text)

    return answer.status, [(name, bare(value)) for name, value in answer.lines], bare(answer.body.decode("latin-1"))


class Ask(Protocol):
    """A request of an actor."""

    async def __call__(self, method: str, target: str, body: bytes = b"", *, headers: Headers = ()) -> Answer: ...


def asking(handler: Handler, shown: Callable[[str], Headers]) -> Ask:
    """Requests to a handler; ``shown`` gives what the actor shows, by the target."""

    async def ask(method: str, target: str, body: bytes = b"", *, headers: Headers = ()) -> Answer:
        return await call(handler, method, target, body, headers=[*shown(target), *headers])

    return ask


#: An endpoint: asked about a repository, the answer and whether it shows anything.
Endpoint = Callable[[Ask, str], Awaitable[tuple[Answer, bool]]]


def got(method: str, target: str, status: int = 200) -> Endpoint:
    """A request for {r}, the repository, {m}, its manifest, or {b}, its blob."""

    async def ask(ask: Ask, repository: str) -> tuple[Answer, bool]:
        image = IMAGES[repository]
        headers = (("Range", "bytes=5-9"),) if status == 206 else ()
        answer = await ask(method, target.format(r=repository, m=image.digest, b=image.blob), headers=headers)
        return answer, answer.status == status

    return ask


async def check(ask: Ask, endpoints: dict[str, list[Endpoint]], repository: str, allowed: set[str], actor: str) -> None:
    """Each endpoint of each group does as the cell says, and refuses as if there were no such repository."""
    for group, members in endpoints.items():
        for number, endpoint in enumerate(members):
            answer, shown = await endpoint(ask, repository)
            where = f"{actor}: {repository}: {group} {number}: {answer}"[:1500]
            assert shown == (group in allowed or "all" in allowed), where
            if not shown:
                other, _ = await endpoint(ask, twin(repository))
                assert shape(answer, repository) == shape(other, twin(repository)), where


@asynccontextmanager
async def the_tracker(root: Path) -> AsyncIterator[Registry]:
    """With all images in their repositories."""
    await trio.Path(root).mkdir()
    ring = keyring()
    async with registry(root, private=True, sign=lambda claim: sign_manifest_claim(ring.signer, claim)) as made:
        for name in REPOSITORIES[:3]:
            image = IMAGES[name]
            for data in (image.config, image.layer):
                await made.push_blob(name, data)
            for tag in ("1", "2"):
                put = await made(
                    "PUT", f"/v2/{name}/manifests/{tag}", image.body, headers=[("Content-Type", OCI_MANIFEST)]
                )
                assert put.status == 201
            about = {"mediaType": OCI_MANIFEST, "digest": str(image.digest), "size": len(image.body)}
            note = manifest_of(image.config, subject=about)
            put = await made(
                "PUT", f"/v2/{name}/manifests/{Digest.of(note)}", note, headers=[("Content-Type", OCI_MANIFEST)]
            )
            assert put.status == 201
        await made.catalog.set_visibility("acme/public", False, BY)
        yield made


def tracker_peers(made: Registry) -> TrackerPeerApi:
    ring = keyring()

    def swarm() -> Swarm:
        return Swarm("default", (NAME,), (), ring.root_public, ring.key_set)

    signed = SignedRecords(lambda: ring.signer)
    return TrackerPeerApi(made.catalog, Blobs(made.catalog, made.objects), Slots(16, 64), swarm, signed)


@asynccontextmanager
async def node_of(root: Path, made: Registry, own: Caller, *, auth: bool = False) -> AsyncIterator[NodeStack]:
    """A node that may pull what ``own`` says, at this tracker."""
    peers = tracker_peers(made)

    async def handle(request: Request) -> Response:
        request.caller = own
        return await peers(request)

    async with running(handle, grace=0.0) as url, node_stack(root, tracker=url, own=own, auth=auth) as node:
        assert node.tracker is not None
        await node.trust.learn(await node.tracker.swarm())
        yield node


@asynccontextmanager
async def the_node(root: Path) -> AsyncIterator[Sharer]:
    """A node that has everything, of each repository a finished blob and one that has only begun."""
    await trio.Path(root).mkdir()
    async with sharing(root) as node:
        for number, name in enumerate(REPOSITORIES[:3], start=1):
            image = IMAGES[name]
            config = Metainfo.of_bytes(image.config)
            info, growing = Metainfo.of_bytes(image.layer), Metainfo.of_bytes(image.layer[::-1])
            await node.index.put_metainfo(info)
            await node.index.put_metainfo(growing)
            refs: list[BlobRef] = [info.ref, growing.ref, config.ref]
            await node.index.put_manifest(
                name, StoredManifest(image.digest, OCI_MANIFEST, image.body), f"claim {number}", refs
            )
            record = RepositoryRecord(name != "acme/public", Stamp(1, number), f"record {number}")
            await node.index.put_repository(name, record)
            staged = await node.store.stage(info.digest.hex)
            await staged.write_at(0, image.layer)
            await staged.commit(info.digest)
            await node.index.put_blob(info.digest, info.size, 0.0)
            await node.store.put(config.digest, image.config)
            await node.index.put_blob(config.digest, config.size, 0.0)
            await node.begin(image.layer[::-1], [0], claimed=False)
        yield node
        node.haves.close()
