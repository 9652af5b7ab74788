"""A registry API over a catalog in memory and blobs in files, for tests without a database."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pregistry.digest import Digest
from p2pregistry.objects.files import FileObjects, open_file_objects
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from p2pregistry.testing.members import Authority
from p2pregistry.trust.claims import ManifestClaim
from tracker.authentication import Authentication
from tracker.catalog.memory import MemoryCatalog
from tracker.identity.memory import MemoryAccounts
from tracker.keyring import Keyring
from tracker.push_api import RegistryApi
from tracker.signed import SignedRecords
from tracker.throttle import Logins, MemoryCounters
from tracker.token_api import TokenApi
from tracker.uploads import Limits, Uploads

USER, PASSWORD = "pusher", "a:b\u00e9 and more"
#: What the registry calls itself.
SERVICE = "registry.example.com"
AUTHORITY = Authority()
#: The records that this authority signs.
SIGNED = SignedRecords(lambda: AUTHORITY.signer)
AUTHORIZATION = ("Authorization", "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


@dataclass
class Registry:
    """The API and what is below it; ``claims`` are those that were signed."""

    api: RegistryApi
    catalog: MemoryCatalog
    objects: FileObjects
    uploads: Uploads
    accounts: MemoryAccounts
    tokens: TokenApi
    claims: list[ManifestClaim] = field(default_factory=list)

    async def __call__(self, method: str, target: str, body: bytes | ScriptedBody = b"", **options: Any) -> Answer:
        """A request with the account's credentials."""
        headers = [AUTHORIZATION, *options.pop("headers", ())]
        return await call(self.api, method, target, body, headers=headers, **options)

    async def drafts(self) -> list[str]:
        """Names of uploads that have bytes."""
        return [stored.name async for stored in self.objects.drafts()]

    async def push_blob(self, repository: str, data: bytes) -> Digest:
        """A blob, by one POST."""
        digest = Digest.of(data)
        answer = await self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", data)
        assert answer.status == 201, answer
        return digest

    async def push_image(self, repository: str, tag: str, *layers: bytes) -> tuple[Digest, bytes]:
        """An image of these layers; gives the digest and the bytes of its manifest."""
        config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
        for blob in (config, *layers):
            await self.push_blob(repository, blob)
        body = manifest_of(config, *layers)
        answer = await self("PUT", f"/v2/{repository}/manifests/{tag}", body, headers=[("Content-Type", OCI_MANIFEST)])
        assert answer.status == 201, answer
        return Digest.of(body), body


def manifest_of(config: bytes, *layers: bytes, **more: object) -> bytes:
    """The bytes of an image manifest."""

    def descriptor(kind: str, data: bytes) -> dict[str, object]:
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar+gzip", layer) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


@functools.cache
def keyring() -> Keyring:
    """Keys for all tests of a process."""
    return Keyring.fresh()


@asynccontextmanager
async def registry(root: Path, **options: Any) -> AsyncIterator[Registry]:
    """Over ``root``, with an administrator (USER). ``anonymous_pull``, ``private`` (new repositories; else they are
    public), ``clock``, ``logins``, ``sign``, ``expiry`` and ``limit`` (of uploads) are as their names say; other
    ``options`` go to RegistryApi."""
    async with open_file_objects(root) as objects:
        catalog = MemoryCatalog(private=options.pop("private", False))
        limits = Limits(expiry=options.pop("expiry", 3600.0), open=options.pop("limit", 100), wait=0.0)
        uploads = Uploads(catalog, catalog.sessions, objects, limits)
        accounts = MemoryAccounts(catalog, anonymous_pull=options.pop("anonymous_pull", True))
        await accounts.ensure_administrator(USER, PASSWORD)
        ring, clock = keyring(), options.pop("clock", time.time)
        logins = options.pop("logins", None) or Logins(MemoryCounters())
        shown = Authentication(accounts, logins, lambda: ring.keys, service=SERVICE, clock=clock)
        tokens = TokenApi(
            shown, accounts, catalog, lambda: ring.signer, issuer="k4.pid.test", lifetime=300, clock=clock
        )
        claims: list[ManifestClaim] = []

        def sign(claim: ManifestClaim) -> str:
            claims.append(claim)
            return f"claim {len(claims)}"

        api = RegistryApi(catalog, objects, uploads, options.pop("sign", sign), shown, **options)
        yield Registry(api, catalog, objects, uploads, accounts, tokens, claims)
