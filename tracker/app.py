"""The tracker, put together: what runs, in which order it starts, and in which order it stops.

Start: ports (a taken one is an error before anything else happens), database and schema, keys, blobs, DHT, listeners.
Stop, within DEADLINE seconds: the listeners stop accepting; requests under way, uploads among them, have GRACE seconds;
then the DHT closes, then the database's connections, and the embedded Postgres last of all.
"""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pregistry import __version__, observe
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.lifetime import allow_open_files, orderly
from p2pregistry.objects.base import ObjectStore
from p2pregistry.routing.identity import base58, load_or_create_identity, peer_id_of
from p2pregistry.serve.endpoints import health
from p2pregistry.serve.http import Handler
from p2pregistry.serve.listen import open_listeners, open_unix_listener, serve
from p2pregistry.serve.peer_api import Slots
from p2pregistry.serve.tls import Certificates
from p2pregistry.trust.certificate import server_context
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from tracker import (
    front_parts,
    garbage_admin,
    hook_admin,
    identity_admin,
    key_admin,
    node_admin,
    policy_admin,
    repo_admin,
    status_admin,
)
from tracker.admin import AdminApi
from tracker.announces import Desk
from tracker.announces_postgres import PostgresAnnounces
from tracker.api import doors
from tracker.blobs import Blobs
from tracker.board import Pace
from tracker.bulletin import Bulletin
from tracker.cars import Cars
from tracker.catalog.changes import State
from tracker.catalog.changes_postgres import PostgresChanges
from tracker.catalog.garbage_postgres import PostgresGarbage
from tracker.catalog.history import TagHistory
from tracker.catalog.hooks_postgres import PostgresHooks
from tracker.catalog.ipfs_blocks import keep_filled
from tracker.catalog.ipfs_blocks_postgres import PostgresIpfsBlocks
from tracker.catalog.migrate import migrate as migrate_schema
from tracker.catalog.postgres import PostgresCatalog
from tracker.catalog.publishing import Publishing
from tracker.catalog.trail import By
from tracker.db import Db
from tracker.embedded import embedded_postgres
from tracker.feed import Feed, prune_daily
from tracker.front import by_path
from tracker.hook_runner import HookRunner
from tracker.identity.postgres import PostgresAccounts
from tracker.key_keeper import KeyFiles, KeyKeeper, open_keys
from tracker.keyring import Keyring
from tracker.named import Follower, Named
from tracker.node_admin import Facts
from tracker.node_parts import NodeParts
from tracker.notices import Notices
from tracker.peer_endpoints import TrackerPeerApi
from tracker.probe import Probe
from tracker.public_blocks import PublicBlocks
from tracker.publisher import Publisher, Service
from tracker.settings import TrackerSettings, read_secret
from tracker.signed import SignedRecords
from tracker.storage import open_objects
from tracker.sweeper import Pace as SweepPace
from tracker.sweeper import Sweeper
from tracker.uploads import Limits, Uploads
from tracker.webhook_client import WebhookClient, networks

if TYPE_CHECKING:
    from p2pregistry.routing.dht import DhtRouter

#: Seconds that requests under way may take at shutdown, and that the whole shutdown may take.
GRACE: Final = 10.0
DEADLINE: Final = 30.0

_log = observe.logger(__name__)
Ready = Callable[[dict[str, object]], None]
Listeners = dict[str, list[trio.SocketListener]]


async def run(settings: TrackerSettings, *, ready: Ready) -> None:
    """Serve until cancelled. Raises SettingsError or LocalError if it cannot start, or if its Postgres keeps dying.

    ``ready`` is called once everything listens, with url, peer_url, peer_id, metrics_url, pid, data_dir, username,
    password, libp2p (multiaddrs) and root_key.
    """
    settings.check()
    observe.configure_logging(settings.tracker.log_format == "json", settings.tracker.log_level)
    allow_open_files()
    await orderly(lambda stop: _live(settings, ready, stop), deadline=DEADLINE)


async def migrate(settings: TrackerSettings) -> list[str]:
    """Bring the database to this program's schema; the names of the files applied. Raises SettingsError, LocalError."""
    observe.configure_logging(settings.tracker.log_format == "json", settings.tracker.log_level)
    async with _database(settings, _data_dir(settings)) as (_, applied):
        return applied


async def new_epoch(settings: TrackerSettings) -> State:
    """Tell nodes that the database was restored from a backup. Raises SettingsError, LocalError."""
    observe.configure_logging(settings.tracker.log_format == "json", settings.tracker.log_level)
    async with _database(settings, _data_dir(settings)) as (db, _):
        return await PostgresChanges(db).new_epoch(By("operator", "command line"))


async def _live(settings: TrackerSettings, ready: Ready, stop: trio.Event) -> None:
    data = _data_dir(settings)
    async with AsyncExitStack() as stack:
        listeners = await _listen(settings, data, stack)
        credentials = _credentials(settings)
        certificates = _certificates(settings)
        db, _ = await stack.enter_async_context(_database(settings, data))
        keeper = await open_keys(db, _key_files(settings, data), overlap=settings.keys.overlap)
        objects = await stack.enter_async_context(open_objects(settings, data))
        known = NodeParts(settings, keeper.keyring, db)
        router = await _router(settings, data, known, stack)
        ipfs = await _ipfs_services(settings, stack)
        contexts = _contexts(settings, keeper.keyring, certificates)
        accounts = await _accounts(settings, db, keeper, credentials)
        parts = _assemble(settings, keeper, accounts, db, objects, router, known, listeners, ipfs)
        if await accounts.needs_setup():
            _log.warning("there is no administrator; make the first one with: p2pregistry tracker setup-url")
        async with trio.open_nursery() as nursery:
            for task in parts.tasks:
                nursery.start_soon(task)
            if certificates is not None:
                nursery.start_soon(certificates.watch)
            async with trio.open_nursery() as servers:
                for name, handler in parts.handlers.items():
                    await servers.start(_serve, name, handler, listeners[name], stop, contexts.get(name))
                facts = _facts(settings, listeners, keeper, credentials, router)
                ready(facts)
                urls = {key: facts[key] for key in ("url", "peer_url", "metrics_url")}
                _log.info("ready", version=__version__, **urls)
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs: handlers on their listeners, and tasks without an end."""

    handlers: dict[str, Handler]
    tasks: tuple[Callable[[], Awaitable[None]], ...]


def _assemble(
    settings: TrackerSettings,
    keeper: KeyKeeper,
    accounts: PostgresAccounts,
    db: Db,
    objects: ObjectStore,
    router: DhtRouter,
    known: NodeParts,
    listeners: Listeners,
    ipfs_services: Mapping[str, Service],
) -> _Parts:
    catalog = PostgresCatalog(db, private=settings.auth.new_repositories == "private")
    uploads = Uploads(catalog, catalog.sessions, objects, _limits(settings))
    keyring = keeper.keyring
    url = _registry_url(settings, listeners).rstrip("/")
    bulletin = _bulletin(settings, keyring, router, known, url)
    garbage = PostgresGarbage(db)
    sweeper = Sweeper(catalog, garbage, objects, _pace(settings))
    probe = Probe(db, objects, settings.uploads.min_free)
    hooks = PostgresHooks(db)
    named = Named(catalog)
    announces = _announces(settings, db, named)
    signed = SignedRecords(lambda: keyring.signer)
    history = TagHistory(db)
    feed = Feed(PostgresChanges(db), signed, listen=Notices(_direct(settings, db)).run, keep=settings.feed.keep)
    observe.watch_streams(lambda: feed.open_streams)

    def node_facts() -> Facts:
        return known.facts(_peer_url(settings, listeners))

    services = front_parts.services(settings, db, keyring, accounts, catalog, known.nodes, node_facts)
    blobs, blocks = Blobs(catalog, objects), PostgresIpfsBlocks(db)
    public = PublicBlocks(blocks, catalog, blobs, lookups=max(1, settings.database.pool // 4))
    ipfs = front_parts.ipfs(settings, public, announces, lambda: (keyring.peer_id, url))
    peers = TrackerPeerApi(
        catalog,
        blobs,
        Slots(settings.peer.max_uploads, settings.peer.queue),
        bulletin,
        signed,
        named=named,
        announces=announces,
        feed=feed,
        pulled=sweeper.pulls.count,
    )
    admin = AdminApi(
        status_admin.routes(catalog.sessions, objects, lambda: probe.reason),
        hook_admin.routes(hooks),
        garbage_admin.routes(sweeper, garbage),
        policy_admin.routes(catalog.policies),
        repo_admin.routes(catalog, uploads, history),
        key_admin.routes(keeper),
        node_admin.routes(known.nodes, node_facts),
        identity_admin.routes(accounts, url),
    )
    handlers: dict[str, Handler] = {
        "registry": front_parts.front(settings, services, objects, uploads, sweeper.pulls.count, ipfs),
        "peer": known.gate(peers, bulletin),
        "metrics": health(lambda: probe.reason, lambda: probe.parts),
        "admin": by_path(doors.private(services), admin),
    }
    runner = _hook_runner(settings, hooks)
    publisher = _publisher(settings, services.publishing, Cars(catalog, blobs, services.publishing), ipfs_services)
    tasks = [uploads.run, probe.run, announces.run, sweeper.run, runner.run, keeper.run, bulletin.run, accounts.run]
    tasks += [feed.run, Follower(db, named).run, partial(keep_filled, blocks), publisher.run]
    if settings.feed.history is not None:
        tasks.append(partial(prune_daily, partial(history.prune, settings.feed.history)))
    if known.desk is not None:
        tasks.append(known.desk.run)
    return _Parts(handlers, tuple(tasks))


def _publisher(
    settings: TrackerSettings, publishing: Publishing, cars: Cars, services: Mapping[str, Service]
) -> Publisher:
    said = settings.ipfs
    return Publisher(
        publishing,
        cars.open,
        services,
        encrypted=said.encrypted,
        concurrency=said.concurrency,
        rate=said.rate,
        attempts=said.attempts,
        verify=said.verify,
    )


async def _ipfs_services(settings: TrackerSettings, stack: AsyncExitStack) -> dict[str, Service]:
    if not settings.ipfs.services:
        return {}
    from tracker.ipfs_services import open_services  # httpx: a quarter of a second, for who needs it

    return await open_services(settings, stack)


def _bulletin(settings: TrackerSettings, keyring: Keyring, router: DhtRouter, known: NodeParts, url: str) -> Bulletin:
    return Bulletin(
        keyring,
        swarm=settings.tracker.swarm,
        names=settings.tracker.names,
        libp2p=lambda: _multiaddrs(settings, router),
        token_url=url + "/token",
        revoked=known.nodes.revoked,
    )


def _pace(settings: TrackerSettings) -> SweepPace:
    collection, scrub = settings.collection, settings.scrub
    return SweepPace(
        collection.interval, collection.grace, collection.untagged, scrub.interval, float(scrub.rate), scrub.age
    )


def _hook_runner(settings: TrackerSettings, hooks: PostgresHooks) -> HookRunner:
    stated = settings.webhooks
    client = WebhookClient(networks(stated.allow_networks), timeout=stated.timeout)
    source = settings.tracker.public_url or f"urn:p2pregistry:{settings.tracker.swarm}"
    keep = (stated.keep, settings.audit.keep)
    return HookRunner(hooks, client.post, source=source, attempts=stated.attempts, keep=keep[0], keep_audit=keep[1])


def _limits(settings: TrackerSettings) -> Limits:
    stated = settings.uploads
    return Limits(stated.expiry, stated.max_open, stated.max_active, stated.min_free)


def _announces(settings: TrackerSettings, db: Db, named: Named) -> PostgresAnnounces:
    stated = settings.announces
    pace = Pace(stated.interval, stated.idle_interval, stated.rate)
    randrange = random.Random().randrange  # noqa: S311 - chance, not secrets
    return PostgresAnnounces(db, Desk(named, pace=pace, randrange=randrange, limit=stated.max_nodes))


# -------------------------------------------------------------------------------------------------------------- parts


def _data_dir(settings: TrackerSettings) -> Path:
    data = Path(settings.tracker.data_dir)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise LocalError(f"{data} cannot be made: {err.strerror}") from err
    return data.resolve()


@asynccontextmanager
async def _database(settings: TrackerSettings, data: Path) -> AsyncIterator[tuple[Db, list[str]]]:
    """The database at this program's schema, and the migrations that were applied."""
    chosen = settings.database
    dsn = chosen.dsn if chosen.dsn_file is None else read_secret(chosen.dsn_file, "database.dsn_file")
    async with AsyncExitStack() as stack:
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(data / "postgres"))
        db = Db(dsn, size=chosen.pool, statement_timeout=chosen.statement_timeout)
        stack.callback(db.close)
        applied = await migrate_schema(db)
        if applied:
            _log.info("the database has been migrated", files=applied)
        yield db, applied


def _direct(settings: TrackerSettings, db: Db) -> str:
    """Where to listen: LISTEN needs the server itself."""
    chosen = settings.database
    if chosen.direct_dsn_file is not None:
        return read_secret(chosen.direct_dsn_file, "database.direct_dsn_file")
    return chosen.direct_dsn or db.dsn


def _credentials(settings: TrackerSettings) -> tuple[str, str] | None:
    auth = settings.auth
    if auth.username is None or auth.password_file is None:
        return None
    return auth.username, read_secret(auth.password_file, "auth.password_file")


def _key_files(settings: TrackerSettings, data: Path) -> KeyFiles:
    stated = settings.keys
    file = None if stated.wrapping_key_file is None else Path(stated.wrapping_key_file)
    return KeyFiles(Path(stated.dir or data / "keys"), file, stated.wrapping_key)


async def _accounts(
    settings: TrackerSettings, db: Db, keeper: KeyKeeper, credentials: tuple[str, str] | None
) -> PostgresAccounts:
    """The accounts; the administrator of the settings is among them."""

    def sign(repository: str, digest: Digest, blobs: Sequence[BlobRef]) -> str:
        return sign_manifest_claim(keeper.keyring.signer, ManifestClaim(repository, digest, tuple(blobs)))

    accounts = PostgresAccounts(db, sign, anonymous_pull=settings.auth.anonymous_pull)
    if credentials is not None:
        await accounts.ensure_administrator(*credentials)
    return accounts


def _certificates(settings: TrackerSettings) -> Certificates | None:
    cert, key = settings.tls.cert_file, settings.tls.key_file
    return None if cert is None or key is None else Certificates(Path(cert), Path(key))


def _contexts(
    settings: TrackerSettings, keyring: Keyring, certificates: Certificates | None
) -> dict[str, Callable[[], ssl.SSLContext]]:
    """Of the listeners that speak TLS: what it is spoken with, asked for each connection."""
    contexts: dict[str, Callable[[], ssl.SSLContext]] = {}
    if certificates is not None:
        contexts["registry"] = certificates.context
    if not settings.peer.plain:
        context = server_context(keyring.peer_key)
        contexts["peer"] = lambda: context
    return contexts


async def _router(settings: TrackerSettings, data: Path, known: NodeParts, stack: AsyncExitStack) -> DhtRouter:
    from p2pregistry.routing.dht import DhtConfig, kad_protocol, open_dht  # half a second and 80 MB: not for --help
    from p2pregistry.routing.hello import Hello

    key_file = data / "keys" / "identity.key"
    own = base58(peer_id_of(await trio.to_thread.run_sync(load_or_create_identity, key_file)))
    announced = [text.split("/")[2] for text in settings.libp2p.announce if text.startswith(("/ip4/", "/ip6/"))]
    config = DhtConfig(
        key_file=key_file,
        host=settings.libp2p.host,
        port=settings.libp2p.port,
        announce=announced[0] if announced else None,
        hello=Hello(version=__version__),
        protocol=kad_protocol(settings.tracker.swarm),
        credential=lambda: None if known.desk is None else known.own_credential(own, time.time()),
        judge=known.desk,
    )
    return await stack.enter_async_context(open_dht(config))


def _multiaddrs(settings: TrackerSettings, router: DhtRouter) -> tuple[str, ...]:
    own = f"/p2p/{router.peer_id}"
    stated = tuple(text if "/p2p/" in text else text + own for text in settings.libp2p.announce)
    return stated or tuple(text if "/p2p/" in text else text + own for text in router.addrs)


# ---------------------------------------------------------------------------------------------------------- listeners


async def _listen(settings: TrackerSettings, data: Path, stack: AsyncExitStack) -> Listeners:
    """Every port at once; closed when ``stack`` ends, if ``serve`` has not done it before."""
    wanted = {
        "registry": [(host, settings.registry.port) for host in settings.registry.host],
        "peer": [(settings.peer.host, settings.peer.port)],
        "metrics": [(settings.metrics.host, settings.metrics.port)],
    }
    opened: Listeners = {}
    for name, addresses in wanted.items():
        opened[name] = await open_listeners(addresses)
        stack.callback(_close, opened[name])
    opened["admin"] = [open_unix_listener(data / "admin.sock")]
    stack.callback(_close, opened["admin"])
    return opened


def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()


async def _serve(
    name: str,
    handler: Handler,
    listeners: list[trio.SocketListener],
    stop: trio.Event,
    tls: Callable[[], ssl.SSLContext] | None,
    task_status: Any,
) -> None:
    metrics = observe.listener_metrics(name) if name == "registry" or name == "peer" else None
    await serve(handler, listeners, grace=GRACE, stop=stop, metrics=metrics, tls=tls, task_status=task_status)


def _url(listeners: Sequence[trio.SocketListener], scheme: str = "http") -> str:
    address, port = listeners[0].socket.getsockname()[:2]
    # a wildcard is no address to connect to
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))  # noqa: S104 - compared only
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _registry_url(settings: TrackerSettings, listeners: Listeners) -> str:
    scheme = "http" if settings.tls.cert_file is None else "https"
    return settings.tracker.public_url or _url(listeners["registry"], scheme)


def _peer_url(settings: TrackerSettings, listeners: Listeners) -> str:
    return _url(listeners["peer"], "http" if settings.peer.plain else "https")


def _facts(
    settings: TrackerSettings,
    listeners: Listeners,
    keeper: KeyKeeper,
    credentials: tuple[str, str] | None,
    router: DhtRouter,
) -> dict[str, object]:
    username, password = credentials or (None, None)
    return {
        "url": _registry_url(settings, listeners),
        "peer_url": _peer_url(settings, listeners),
        "peer_id": keeper.keyring.peer_id,
        "metrics_url": _url(listeners["metrics"]),
        "pid": os.getpid(),
        "data_dir": str(_data_dir(settings)),
        "username": username,
        "password": password,
        "libp2p": list(_multiaddrs(settings, router)),
        "root_key": keeper.keyring.root_public,
    }
