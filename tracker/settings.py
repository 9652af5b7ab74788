"""What a tracker can be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from p2pregistry.errors import SettingsError
from p2pregistry.globs import check_glob
from p2pregistry.messages import ZONE
from p2pregistry.settings import Port, Positive, Seconds, Section, Setting, Settings, Size
from tracker.addresses import check_networks, is_loopback
from tracker.ipfs_settings import Ipfs, check_ipfs
from tracker.storage_settings import S3, Kubo, Storage, check_storage

MIB = 1024 * 1024
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
Texts = tuple[str, ...]
#: The name of a node's label; its value is as a zone's.
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
Interval = Annotated[float, msgspec.Meta(ge=0.2, le=3600)]
Lifetime = Annotated[float, msgspec.Meta(ge=60, le=86400)]


class Tracker(Section, frozen=True):
    data_dir: Annotated[
        str, Setting("Where the tracker keeps its keys, blobs and, without a database of yours, Postgres.")
    ] = "/var/lib/p2pregistry/tracker"
    public_url: Annotated[
        str | None,
        Setting("The registry's URL as clients see it; unset: as it listens.", example="https://registry.example.com"),
    ] = None
    names: Annotated[
        Texts, Setting("Registry names this tracker is, as they stand in image names; nodes answer ?ns= for them.")
    ] = ()
    insecure: Annotated[
        bool, Setting("Listen beyond loopback without TLS; anyone on the network can then read passwords and images.")
    ] = False
    swarm: Annotated[str, Setting("The swarm this tracker serves; nodes of different swarms never meet.")] = "default"
    trusted_proxies: Annotated[
        Texts,
        Setting("Networks of proxies in front of the tracker, such as 10.0.0.0/24, whose X-Forwarded-For counts."),
    ] = ()
    access_log: Annotated[bool, Setting("Each request gets a line in the log.")] = True
    log_format: Annotated[Literal["console", "json"], Setting("How log lines are written to standard error.")] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("The least severe log lines that are written.")
    ] = "info"


class Registry(Section, frozen=True):
    host: Annotated[Texts, Setting("Addresses the registry API listens on.")] = ("127.0.0.1",)
    port: Annotated[Port, Setting("Port of the registry API (push and pull); 0 takes any free one.")] = 5050


class Limits(Section, frozen=True):
    per_address: Annotated[
        Positive,
        Setting(
            "The most requests a second to the registry API from one address (of IPv6: one network of 64 bits) that may"
            " last; ten times as many may come at once.",
            unit="requests/s",
        ),
    ] = 1000
    per_account: Annotated[
        Positive, Setting("The same for one account, wherever its requests come from.", unit="requests/s")
    ] = 1000


class Tls(Section, frozen=True):
    cert_file: Annotated[
        str | None,
        Setting(
            "The registry API's certificate and its chain, PEM; read again when it changes. Unset: plain HTTP.",
            example="/etc/p2pregistry/tls.crt",
        ),
    ] = None
    key_file: Annotated[
        str | None,
        Setting("The certificate's private key, PEM, without a password.", example="/etc/p2pregistry/tls.key"),
    ] = None


class Peer(Section, frozen=True):
    host: Annotated[str, Setting("Address the peer API listens on.")] = "127.0.0.1"
    port: Annotated[Port, Setting("Port of the peer API; 0 takes any free one.")] = 5051
    public_url: Annotated[
        str | None,
        Setting(
            "The peer API's URL as nodes reach it, which join tokens tell them; unset: as it listens.",
            example="https://registry.example.com:5051",
        ),
    ] = None
    plain: Annotated[
        bool, Setting("Speak plain HTTP with nodes, so that nobody knows who the other is; nodes need it set too.")
    ] = False
    plain_private: Annotated[
        bool, Setting("With peer.plain: send content of private repositories too, to anybody who reaches the port.")
    ] = False
    max_uploads: Annotated[Positive, Setting("How many transfers to nodes run at once; others wait their turn.")] = 4
    queue: Annotated[Size, Setting("How many transfers may wait; nodes beyond that are told to come back later.")] = 512


class Gateway(Section, frozen=True):
    enabled: Annotated[
        bool,
        Setting(
            "IPFS clients get blocks of public images at /ipfs/ of the registry's listener, and at /routing/v1/ hear"
            " who has them; not while auth.anonymous_pull is false."
        ),
    ] = True
    max_uploads: Annotated[
        Positive, Setting("How many transfers to IPFS clients run at once; others wait their turn.")
    ] = 16
    queue: Annotated[
        Size, Setting("How many such transfers may wait; clients beyond that are told to come back later.")
    ] = 512
    egress: Annotated[
        Positive | None,
        Setting("The most bytes a second sent to IPFS clients; unset: no limit.", unit="bytes/s", example=100 * MIB),
    ] = None
    private_addresses: Annotated[
        bool,
        Setting(
            "Name nodes whose gateway has a private address too; for IPFS clients in the same network as the nodes."
        ),
    ] = False


class Nodes(Section, frozen=True):
    credential_lifetime: Annotated[
        Seconds,
        Setting(
            "How long a node's credential is good; nodes renew theirs when half of that is over.",
            unit="seconds",
        ),
    ] = 86400.0


class Oidc(Section, frozen=True):
    issuer: Annotated[
        str | None,
        Setting(
            "Whose identity tokens let nodes in, exactly as they name it (iss); unset: join tokens only.",
            example="https://kubernetes.default.svc.cluster.local",
        ),
    ] = None
    audience: Annotated[str, Setting("What the tokens must be made for (aud), and for nobody else.")] = "p2pregistry"
    jwks_url: Annotated[
        str | None,
        Setting("Where the issuer publishes its keys; https.", example="https://kubernetes.default.svc/openid/v1/jwks"),
    ] = None
    jwks_file: Annotated[
        str | None,
        Setting("A file with the same, where the tracker cannot reach the issuer.", example="/etc/p2pregistry/jwks"),
    ] = None
    ca_file: Annotated[
        str | None,
        Setting(
            "Certificates to trust for jwks_url, PEM; unset: those of the system.",
            example="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        ),
    ] = None
    token_file: Annotated[
        str | None,
        Setting(
            "A file with the bearer token that jwks_url wants, read each time.",
            example="/var/run/secrets/kubernetes.io/serviceaccount/token",
        ),
    ] = None
    subjects: Annotated[
        Texts,
        Setting(
            "Globs over who may join (sub), such as system:serviceaccount:kube-system:p2pregistry-node; none: nobody."
        ),
    ] = ()
    pulls: Annotated[Texts, Setting("Globs over the private repositories that such a node may pull.")] = ()
    labels: Annotated[Texts, Setting("Labels that such a node gets, each name=value.")] = ()


class Announces(Section, frozen=True):
    interval: Annotated[
        Interval, Setting("How often a node that wants something tells what it wants and holds.", unit="seconds")
    ] = 3.0
    idle_interval: Annotated[
        Interval, Setting("How often a node that wants nothing tells what it holds.", unit="seconds")
    ] = 30.0
    rate: Annotated[
        Positive,
        Setting("Announces a second, of all nodes together, beyond which nodes are told to come less often."),
    ] = 300
    max_nodes: Annotated[Positive, Setting("Nodes that are remembered at once; others are turned away.")] = 50_000


class Feed(Section, frozen=True):
    keep: Annotated[
        Seconds,
        Setting(
            "How long it is kept that something is gone; a node that was away for longer reads everything again.",
            unit="seconds",
        ),
    ] = 30 * 86400.0
    history: Annotated[
        Seconds | None,
        Setting("How long it is kept where tags pointed; unset: for ever.", unit="seconds", example="31536000"),
    ] = None


class Libp2p(Section, frozen=True):
    host: Annotated[str, Setting("Address libp2p listens on.")] = "127.0.0.1"
    port: Annotated[Port, Setting("TCP port of libp2p; 0 takes any free one.")] = 5052
    announce: Annotated[Texts, Setting("Multiaddrs told to others in place of the ones found; needed behind NAT.")] = ()


class Metrics(Section, frozen=True):
    host: Annotated[str, Setting("Address of /metrics, /livez and /readyz.")] = "127.0.0.1"
    port: Annotated[Port, Setting("Port of /metrics, /livez and /readyz; 0 takes any free one.")] = 5053


class Database(Section, frozen=True):
    dsn: Annotated[
        str | None,
        Setting(
            "Your Postgres; unset: the tracker starts its own in its data directory.",
            example="host=db dbname=p2pregistry",
            secret=True,
        ),
    ] = None
    dsn_file: Annotated[
        str | None,
        Setting(
            "A file whose first line is the dsn, so that its password stands nowhere else.", example="/run/secrets/dsn"
        ),
    ] = None
    direct_dsn: Annotated[
        str | None,
        Setting(
            "The same server without the pooler that dsn may name, to hear of changes at once; unset: dsn.",
            example="host=db dbname=p2pregistry",
            secret=True,
        ),
    ] = None
    direct_dsn_file: Annotated[
        str | None, Setting("A file whose first line is the direct_dsn.", example="/run/secrets/direct-dsn")
    ] = None
    pool: Annotated[Positive, Setting("The most connections to Postgres.")] = 8
    statement_timeout: Annotated[Seconds, Setting("How long one SQL statement may take.", unit="seconds")] = 15.0


class Auth(Section, frozen=True):
    username: Annotated[
        str | None,
        Setting("An administrator that is made sure of at each start; unset: those that there are.", example="admin"),
    ] = None
    password_file: Annotated[
        str | None, Setting("A file whose first line is that user's password.", example="/run/secrets/password")
    ] = None
    service: Annotated[
        str | None,
        Setting(
            "What the registry calls itself in tokens; unset: the host of tracker.public_url, or p2pregistry.",
            example="registry.example.com",
        ),
    ] = None
    token_lifetime: Annotated[
        Lifetime, Setting("How long an access token is good, also after rights were taken away.", unit="seconds")
    ] = 900.0
    anonymous_pull: Annotated[
        bool, Setting("Anyone who reaches the registry may pull public repositories from it.")
    ] = True
    new_repositories: Annotated[
        Literal["private", "public"], Setting("What a repository is when it is pushed to for the first time.")
    ] = "private"


class Keys(Section, frozen=True):
    dir: Annotated[
        str | None,
        Setting(
            "Where root.key and wrapping.key are, the same for all trackers of a database; unset: the data directory.",
            example="/etc/p2pregistry/keys",
        ),
    ] = None
    wrapping_key_file: Annotated[
        str | None,
        Setting(
            "The file of the key (k4.local...) that the keys in the database are wrapped with; unset: keys.dir.",
            example="/run/secrets/wrapping.key",
        ),
    ] = None
    wrapping_key: Annotated[
        str | None, Setting("That key itself, for the environment.", example="k4.local.AAAA", secret=True)
    ] = None
    overlap: Annotated[
        Seconds,
        Setting("How long a new key is published before it signs, so that every node knows it.", unit="seconds"),
    ] = 600.0


class Uploads(Section, frozen=True):
    max_manifest_bytes: Annotated[Positive, Setting("The largest manifest that is accepted.", unit="bytes")] = 8 * MIB
    expiry: Annotated[Seconds, Setting("How long an unfinished upload is kept.", unit="seconds")] = 86400.0
    max_open: Annotated[
        Positive, Setting("Unfinished uploads of all trackers; clients beyond that come back later.")
    ] = 10_000
    max_active: Annotated[
        Positive, Setting("Requests of this tracker that bring bytes at once; clients beyond that come back later.")
    ] = 256
    min_free: Annotated[
        Size, Setting("With less room than this left on the disk no uploads are taken (status 429).", unit="bytes")
    ] = 1024 * MIB


class Collection(Section, frozen=True):
    interval: Annotated[
        Seconds | None,
        Setting(
            "How often rules of retention are applied and garbage is collected; unset: only when asked.", unit="seconds"
        ),
    ] = 3600.0
    grace: Annotated[
        Seconds,
        Setting("How long a blob that no manifest refers to is kept after it was asked for.", unit="seconds"),
    ] = 86400.0
    untagged: Annotated[
        Seconds | None,
        Setting(
            "How long a manifest without tag is kept after it was last pushed or pulled; unset: for ever.",
            unit="seconds",
            example="604800",
        ),
    ] = None


class Scrub(Section, frozen=True):
    interval: Annotated[
        Seconds | None,
        Setting("How often stored bytes are compared with their digests; unset: only when asked.", unit="seconds"),
    ] = 86400.0
    rate: Annotated[Positive, Setting("Bytes a second that are read for it.", unit="bytes")] = 10 * MIB
    age: Annotated[Seconds, Setting("How long a blob that was found sound is not looked at again.", unit="seconds")] = (
        30 * 86400.0
    )


class Webhooks(Section, frozen=True):
    allow_networks: Annotated[
        Texts,
        Setting(
            "Networks beside the public internet that webhooks may be sent to.",
            example='["10.1.0.0/16", "127.0.0.1/32"]',
        ),
    ] = ()
    timeout: Annotated[Seconds, Setting("How long one request may take.", unit="seconds")] = 15.0
    attempts: Annotated[Positive, Setting("Tries of one delivery, at pauses that grow to an hour.")] = 20
    keep: Annotated[Seconds, Setting("How long events can be replayed.", unit="seconds")] = 30 * 86400.0


class Audit(Section, frozen=True):
    keep: Annotated[
        Seconds | None,
        Setting("How long lines of the audit log are kept; unset: for ever.", unit="seconds", example="31536000"),
    ] = None


class TrackerSettings(Settings, frozen=True):
    """All settings of a tracker: ``settings.registry.port``."""

    tracker: Tracker = msgspec.field(default_factory=Tracker)
    registry: Registry = msgspec.field(default_factory=Registry)
    limits: Limits = msgspec.field(default_factory=Limits)
    tls: Tls = msgspec.field(default_factory=Tls)
    peer: Peer = msgspec.field(default_factory=Peer)
    gateway: Gateway = msgspec.field(default_factory=Gateway)
    nodes: Nodes = msgspec.field(default_factory=Nodes)
    oidc: Oidc = msgspec.field(default_factory=Oidc)
    announces: Announces = msgspec.field(default_factory=Announces)
    feed: Feed = msgspec.field(default_factory=Feed)
    libp2p: Libp2p = msgspec.field(default_factory=Libp2p)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    database: Database = msgspec.field(default_factory=Database)
    auth: Auth = msgspec.field(default_factory=Auth)
    keys: Keys = msgspec.field(default_factory=Keys)
    uploads: Uploads = msgspec.field(default_factory=Uploads)
    storage: Storage = msgspec.field(default_factory=Storage)
    s3: S3 = msgspec.field(default_factory=S3)
    kubo: Kubo = msgspec.field(default_factory=Kubo)
    ipfs: Ipfs = msgspec.field(default_factory=Ipfs)
    collection: Collection = msgspec.field(default_factory=Collection)
    scrub: Scrub = msgspec.field(default_factory=Scrub)
    webhooks: Webhooks = msgspec.field(default_factory=Webhooks)
    audit: Audit = msgspec.field(default_factory=Audit)

    def check(self) -> None:
        """Rules between values. Raises SettingsError."""
        if not self.registry.host:
            raise SettingsError("$.registry.host: at least one address is needed")
        if (self.tls.cert_file is None) != (self.tls.key_file is None):
            raise SettingsError("$.tls.key_file: tls.cert_file and tls.key_file are set together or not at all")
        plain = [("peer.host", self.peer.host)] if self.peer.plain else []
        if self.tls.cert_file is None:
            plain += [("registry.host", host) for host in self.registry.host]
        for path, host in plain:
            if not self.tracker.insecure and not is_loopback(host):
                raise SettingsError(
                    f"$.{path}: {host} is reachable from other machines and the tracker speaks plain HTTP there;"
                    " set tls.cert_file (registry.host), unset peer.plain (peer.host), put a TLS proxy in front, or set"
                    " tracker.insecure = true"
                    " on a network you trust"
                )
        url = self.tracker.public_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise SettingsError("$.tracker.public_url: must begin with http:// or https://")
        if self.database.dsn is not None and self.database.dsn_file is not None:
            raise SettingsError("$.database.dsn_file: database.dsn is set too; give one of them")
        if self.database.direct_dsn is not None and self.database.direct_dsn_file is not None:
            raise SettingsError("$.database.direct_dsn_file: database.direct_dsn is set too; give one of them")
        if self.feed.keep < 86400:
            raise SettingsError("$.feed.keep: nodes that were away for less than a day would read everything again")
        if self.keys.wrapping_key is not None and self.keys.wrapping_key_file is not None:
            raise SettingsError("$.keys.wrapping_key_file: keys.wrapping_key is set too; give one of them")
        if self.collection.grace < 300:
            raise SettingsError("$.collection.grace: less than 300 seconds would remove what clients are still pushing")
        check_networks("webhooks.allow_networks", self.webhooks.allow_networks)
        check_networks("tracker.trusted_proxies", self.tracker.trusted_proxies)
        if self.nodes.credential_lifetime < 60:
            raise SettingsError("$.nodes.credential_lifetime: less than a minute is no time to renew a credential in")
        url = self.peer.public_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise SettingsError("$.peer.public_url: must begin with http:// or https://")
        _check_oidc(self.oidc)
        check_storage(self.storage, self.s3, self.kubo)
        check_ipfs(self.ipfs, self.kubo)
        if (self.auth.username is None) != (self.auth.password_file is None):
            raise SettingsError(
                "$.auth.password_file: auth.username and auth.password_file are set together or not at all"
            )
        if not _SERVICE.fullmatch(self.service) or self.service.startswith("node:"):
            raise SettingsError(
                "$.auth.service: is up to 100 letters, digits and . _ : - and does not begin with node:"
            )

    @property
    def service(self) -> str:
        """What the registry calls itself in tokens."""
        host = urlsplit(self.tracker.public_url or "").hostname
        return self.auth.service or host or "p2pregistry"


def _check_oidc(oidc: Oidc) -> None:
    if oidc.issuer is None:
        return
    if (oidc.jwks_url is None) == (oidc.jwks_file is None):
        raise SettingsError("$.oidc.jwks_url: one of oidc.jwks_url and oidc.jwks_file is needed with oidc.issuer")
    if oidc.jwks_url is not None and not oidc.jwks_url.startswith("https://"):
        raise SettingsError("$.oidc.jwks_url: must begin with https://, since these keys let nodes in")
    for name in ("subjects", "pulls"):
        for index, pattern in enumerate(getattr(oidc, name)):
            try:
                check_glob(pattern)
            except ValueError as err:
                raise SettingsError(f"$.oidc.{name}[{index}]: {err}") from err
    for index, text in enumerate(oidc.labels):
        name, equals, value = text.partition("=")
        if not equals or not LABEL.fullmatch(name) or not ZONE.fullmatch(value):
            raise SettingsError(f"$.oidc.labels[{index}]: a label is name=value, such as zone=a")


def read_secret(path: str, setting: str) -> str:
    """The first line of a secret's file. Raises SettingsError that names ``setting``, never the content."""
    try:
        line = Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as err:
        raise SettingsError(f"$.{setting}: {path} cannot be read") from err
    if not line:
        raise SettingsError(f"$.{setting}: {path} is empty")
    return line
