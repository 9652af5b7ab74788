"""The registry's listener, put together from settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from p2pregistry.objects.base import ObjectStore
from p2pregistry.observe import count_served
from p2pregistry.rate import Limiter
from p2pregistry.serve.http import Handler
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.serve.turnstile import Turnstile
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from p2pregistry.trust.paserk import PUBLIC, read_key
from tracker.announces import Announces
from tracker.api import doors
from tracker.api.asked import IpfsSetup, Services
from tracker.authentication import Authentication
from tracker.catalog.base import Catalog
from tracker.catalog.listing import PostgresListing
from tracker.catalog.nodes import Nodes
from tracker.catalog.publishing_postgres import PostgresPublishing
from tracker.db import Db
from tracker.face import Face
from tracker.front import by_path
from tracker.identity.base import Accounts
from tracker.ipfs_routing import IpfsRouting
from tracker.keyring import Keyring
from tracker.node_admin import Facts
from tracker.public_blocks import PublicBlocks
from tracker.push_api import Pulled, RegistryApi
from tracker.settings import TrackerSettings
from tracker.throttle import Logins, PostgresCounters
from tracker.token_api import TokenApi
from tracker.uploads import Uploads
from tracker.webhook_client import networks


def services(
    settings: TrackerSettings,
    db: Db,
    keyring: Keyring,
    accounts: Accounts,
    catalog: Catalog,
    nodes: Nodes,
    facts: Callable[[], Facts],
) -> Services:
    """What the JSON API works with, behind both of its doors."""
    logins = Logins(PostgresCounters(db))
    authentication = Authentication(accounts, logins, lambda: keyring.keys, service=settings.service)
    setup = IpfsSetup(settings.ipfs.services, settings.ipfs.encrypted)
    return Services(
        accounts,
        catalog,
        PostgresListing(db),
        nodes,
        facts,
        keyring,
        authentication,
        PostgresPublishing(db),
        setup,
    )


def ipfs(
    settings: TrackerSettings, blocks: PublicBlocks, announces: Announces, own: Callable[[], tuple[str, str]]
) -> dict[str, Handler]:
    """What is served to IPFS clients, by path. Who wants no pulls without an account wants none by them either.
    ``own`` gives this tracker's peer id and URL."""
    stated = settings.gateway
    if not stated.enabled or not settings.auth.anonymous_pull:
        return {}
    pace = None if stated.egress is None else Limiter(stated.egress).take
    slots = Slots(stated.max_uploads, stated.queue)
    randrange = random.Random().randrange  # noqa: S311 - chance, not secrets
    return {
        "/ipfs/": IpfsGateway(blocks, slots, served=count_served("gateway"), pace=pace),
        "/routing/v1/": IpfsRouting(
            blocks, announces, own, swarm=settings.tracker.swarm, private=stated.private_addresses, randrange=randrange
        ),
    }


def front(
    settings: TrackerSettings,
    services: Services,
    objects: ObjectStore,
    uploads: Uploads,
    pulled: Pulled,
    ipfs: Mapping[str, Handler],
) -> Handler:
    """What the registry's listener serves; ``ipfs``: what of it is for IPFS clients."""
    catalog, keyring = services.catalog, services.keyring

    def sign(claim: ManifestClaim) -> str:
        return sign_manifest_claim(keyring.signer, claim)

    registry = RegistryApi(
        catalog,
        objects,
        uploads,
        sign,
        services.authentication,
        public_url=settings.tracker.public_url,
        manifest_limit=settings.uploads.max_manifest_bytes,
        pulled=pulled,
    )
    tokens = TokenApi(
        services.authentication,
        services.accounts,
        catalog,
        lambda: keyring.signer,
        issuer=read_key(keyring.root_public, PUBLIC).to_paserk_id(),
        lifetime=int(settings.auth.token_lifetime),
    )
    return Face(
        by_path({"/token": tokens, **doors.public(services), **ipfs}, registry),
        listener="registry",
        trusted=networks(settings.tracker.trusted_proxies),
        access_log=settings.tracker.access_log,
        per_address=Turnstile(settings.limits.per_address),
        per_account=Turnstile(settings.limits.per_account),
    )
