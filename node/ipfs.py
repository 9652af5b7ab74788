"""IPFS as a node has it: the gateways that its settings name, for its flights and for manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from p2pregistry import observe
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, SettingsError
from p2pregistry.rate import Limiter
from p2pregistry.trust.records import ANYONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from node.settings import NodeSettings
    from p2pregistry.crowd.gateways import Gateways
    from p2pregistry.ipfs.kubo import KuboConfig
    from p2pregistry.sources.ipfs import Blocks, Common, IpfsSource
    from p2pregistry.store.index import Index
    from p2pregistry.surroundings import Finder
    from p2pregistry.visible import Visible


def make_gateways(settings: NodeSettings, index: Index) -> Gateways | None:
    """None where IPFS is off. Raises SettingsError."""
    stated = settings.ipfs
    if stated.use == "off":
        return None

    from p2pregistry.crowd.gateways import Gateways  # a quarter of a second: httpx
    from p2pregistry.ipfs.gateway_client import GatewayClient
    from p2pregistry.ipfs.kubo_blocks import KuboBlocks
    from p2pregistry.sources.ipfs import IpfsSource

    kubo = None if stated.kubo is None else _kubo(settings)

    def make(common: Common) -> Sequence[IpfsSource]:
        places: list[Blocks] = []
        if kubo is not None:
            places.append(KuboBlocks(kubo, requests=stated.requests, timeout=stated.timeout))
        for url in stated.gateways:
            client = GatewayClient(url, requests=stated.requests, timeout=stated.timeout, ca_file=_path(stated.ca_file))
            places.append(client)
        return [IpfsSource(blocks, common, mode=stated.mode) for blocks in places]

    gateways = Gateways(
        make,
        info=index.metainfo,
        pace=None if stated.rate is None else Limiter(stated.rate).take,
        fetched=lambda count: observe.count_fetched("ipfs")(count),
    )
    observe.watch_gateways(lambda: gateways.left_out)
    return gateways


def _kubo(settings: NodeSettings) -> KuboConfig:
    from p2pregistry.ipfs.kubo import kubo_config

    stated, secret = settings.ipfs, None
    if stated.kubo_secret_file is not None:
        try:
            secret = Path(stated.kubo_secret_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as err:
            raise SettingsError("$.ipfs.kubo_secret_file: cannot be read") from err
    try:
        return kubo_config(stated.kubo or "", secret=secret, ca_file=_path(stated.ca_file))
    except SettingsError as err:
        raise SettingsError(f"$.ipfs.kubo: {err.message}") from err


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def around(settings: NodeSettings, finder: Finder, gateways: Gateways | None, visible: Visible) -> Finder:
    """The finder that flights have."""
    if gateways is None:
        return finder
    from p2pregistry.crowd.gateways import WithGateways

    private = settings.ipfs.private
    return WithGateways(
        finder,
        gateways,
        last=settings.ipfs.use == "fallback",
        allowed=lambda digest: private or visible.may_have(ANYONE, digest),
    )


def manifests(
    settings: NodeSettings, gateways: Gateways | None, visible: Visible
) -> Callable[[str, Digest], Awaitable[bytes]] | None:
    """What gives the bytes of a manifest of a repository."""
    if gateways is None:
        return None

    async def manifest(repository: str, digest: Digest) -> bytes:
        if not (settings.ipfs.private or visible.public(repository)):
            raise NotFound("MANIFEST_UNKNOWN", "a private repository is no concern of gateways")
        return await gateways.manifest(digest)

    return manifest
