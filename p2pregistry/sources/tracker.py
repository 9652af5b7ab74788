"""The tracker's peer API, seen from a node: blobs as from any peer, and what only the tracker knows."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, Unreachable
from p2pregistry.sources.peer import JSON_ERRORS, MAX_JSON, PeerSource, RemoteManifest, read_manifest


class Swarm(msgspec.Struct):
    """What the tracker tells of itself: the swarm's name, the registry names it is, where its DHT node listens (multi-
    addresses), its public root key and signed key set."""

    swarm: str
    root_key: str
    key_set: str
    names: list[str] = []
    libp2p: list[str] = []


class _Tags(msgspec.Struct):
    tags: list[str]


class _Claims(msgspec.Struct):
    claims: list[str]


class TrackerSource(PeerSource):
    """The tracker. After a failure it is left alone for ``rest`` seconds: pulls do not each wait for a dead one."""

    kind = "tracker"

    def __init__(self, url: str, *, timeout: float = 3.0, rest: float = 3.0) -> None:
        super().__init__("tracker", url, connect_timeout=timeout, head_timeout=timeout)
        self._rest = rest
        self._down_until = 0.0

    @property
    def down(self) -> bool:
        """Whether it failed a moment ago."""
        return trio.current_time() < self._down_until

    async def _ask(self, target: str, limit: int = MAX_JSON) -> bytes:
        if self.down:
            raise Unreachable("the tracker did not answer a moment ago")
        try:
            return await self.client.get(target, limit=limit)
        except Unreachable:
            self._down_until = trio.current_time() + self._rest
            raise

    async def swarm(self) -> Swarm:
        """Raises RemoteError."""
        try:
            return msgspec.json.decode(await self._ask("/p2p/v1/swarm", 1 << 20), type=Swarm)
        except NotFound as err:  # every tracker has this: the URL is that of something else
            raise BadContent("what answers at the tracker's URL is no tracker's peer API") from err
        except JSON_ERRORS as err:
            raise BadContent("the tracker's answer about the swarm cannot be read") from err

    async def resolve(self, repository: str, reference: str | Digest) -> RemoteManifest:
        """The manifest behind a tag or digest of a repository, with its claims. Raises NotFound (MANIFEST_UNKNOWN)."""
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/manifests/{reference}")
        except NotFound as err:
            raise NotFound("MANIFEST_UNKNOWN", "the manifest is not known to the tracker") from err
        return read_manifest(data, reference if isinstance(reference, Digest) else None)

    async def tags(self, repository: str, after: str, limit: int) -> list[str]:
        """Tags greater than ``after`` in ASCII order. Raises NotFound (NAME_UNKNOWN)."""
        query = f"?n={limit}" + (f"&last={quote(after, safe='')}" if after else "")
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/tags{query}")
            return msgspec.json.decode(data, type=_Tags).tags
        except NotFound as err:
            raise NotFound("NAME_UNKNOWN", "the repository is not known to the tracker") from err
        except JSON_ERRORS as err:
            raise BadContent("the tracker's list of tags cannot be read") from err

    async def blob_claims(self, repository: str, digest: Digest) -> list[str]:
        """Claims of this repository that name the blob. Raises NotFound or RemoteError."""
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/blobs/{digest}/claims")
            return msgspec.json.decode(data, type=_Claims).claims
        except JSON_ERRORS as err:
            raise BadContent("the tracker's claims cannot be read") from err
