"""What a node can be told."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec

from p2pregistry.errors import SettingsError
from p2pregistry.feed_messages import MOST_PATTERNS, MOST_REPOSITORIES
from p2pregistry.messages import ZONE, is_base_url
from p2pregistry.oci.platforms import read_platforms
from p2pregistry.settings import Port, Positive, Seconds, Section, Setting, Settings, Size
from p2pregistry.warm.choose import full_pattern

MIB = 1024 * 1024
GIB = 1024 * MIB
Texts = tuple[str, ...]
#: As the clients of gateways and of Kubo want it.
BASE_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
T = TypeVar("T")


class Node(Section, frozen=True):
    data_dir: Annotated[str, Setting("Where the node keeps its identity, index and blobs.")] = (
        "/var/lib/p2pregistry/node"
    )
    zone: Annotated[str, Setting("A name for where this machine is; peers of the same zone are preferred.")] = ""
    swarm: Annotated[str, Setting("The swarm this node belongs to; nodes of different swarms never meet.")] = "default"
    log_format: Annotated[Literal["console", "json"], Setting("How log lines are written to standard error.")] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("The least severe log lines that are written.")
    ] = "info"
    clock_offset: Annotated[
        float,
        Setting("Seconds that are added to this machine's clock; for tests of a clock that is wrong."),
    ] = 0.0


class Pull(Section, frozen=True):
    host: Annotated[Texts, Setting("Addresses the pull API listens on; keep it on loopback.")] = ("127.0.0.1", "::1")
    port: Annotated[Port, Setting("Port of the pull API; 0 takes any free one.")] = 5000
    hosts: Annotated[
        Texts,
        Setting(
            "Host names that clients may use for this node, besides localhost and the addresses it listens on.",
            example=["node.example.com"],
        ),
    ] = ()
    require_client_auth: Annotated[
        bool,
        Setting(
            "Whether each client shows a token that the tracker gave it for this node; false: whoever can connect may "
            "pull what the node may."
        ),
    ] = False


class Peer(Section, frozen=True):
    host: Annotated[str, Setting("Address the peer API listens on.")] = "0.0.0.0"  # noqa: S104  # peers are other machines
    port: Annotated[Port, Setting("Port of the peer API; 0 takes any free one.")] = 5001
    advertise: Annotated[
        str | None,
        Setting(
            "The base URL peers are told; unset: the address used toward the tracker.", example="https://10.0.0.7:5001"
        ),
    ] = None
    plain: Annotated[
        bool, Setting("Speak plain HTTP with peers and the tracker, so that nobody knows who the other is.")
    ] = False
    plain_private: Annotated[
        bool, Setting("With peer.plain: send content of private repositories too, to anybody who reaches the port.")
    ] = False
    max_uploads: Annotated[
        Positive, Setting("Pieces sent to peers at the same time; more of them wait their turn.")
    ] = 5
    egress: Annotated[
        Size | None,
        Setting("The most bytes a second sent to peers; unset: no limit.", unit="bytes/s", example=100 * MIB),
    ] = None
    ingress: Annotated[
        Size | None,
        Setting("The most bytes a second fetched for blobs; unset: no limit.", unit="bytes/s", example=200 * MIB),
    ] = None
    egress_other_zones: Annotated[
        Size | None,
        Setting(
            "The same for what is sent to peers of other zones; it counts in both.", unit="bytes/s", example=20 * MIB
        ),
    ] = None
    ingress_other_zones: Annotated[
        Size | None,
        Setting("The same for what comes from other zones, the tracker included.", unit="bytes/s", example=20 * MIB),
    ] = None
    queue: Annotated[
        Positive, Setting("Pieces that may wait their turn; who asks for one more is told to come later.")
    ] = 256


class Gateway(Section, frozen=True):
    host: Annotated[
        str | None,
        Setting(
            "Address of a gateway for IPFS clients, which gives public images to anybody by plain HTTP; unset: none.",
            example="10.0.0.7",
        ),
    ] = None
    port: Annotated[Port, Setting("Port of the gateway; 0 takes any free one.")] = 5004
    advertise: Annotated[
        str | None,
        Setting(
            "The gateway's base URL as IPFS clients reach it, which the tracker tells them; unset: the address used"
            " toward the tracker.",
            example="https://node-1.example.com",
        ),
    ] = None
    max_uploads: Annotated[
        Positive, Setting("Transfers to IPFS clients at the same time; more of them wait their turn.")
    ] = 4
    queue: Annotated[
        Size, Setting("Transfers that may wait their turn; who asks for one more is told to come later.")
    ] = 256
    egress: Annotated[
        Positive | None,
        Setting("The most bytes a second sent to IPFS clients; unset: no limit.", unit="bytes/s", example=20 * MIB),
    ] = None


class Libp2p(Section, frozen=True):
    host: Annotated[str, Setting("Address libp2p listens on.")] = "0.0.0.0"  # noqa: S104  # peers are other machines
    port: Annotated[Port, Setting("TCP port of libp2p; 0 takes any free one.")] = 5002
    announce: Annotated[
        str | None,
        Setting("The IP address told to others; unset: the one used toward the tracker.", example="10.0.0.7"),
    ] = None
    bootstrap: Annotated[Texts, Setting("Multiaddrs with /p2p/ of peers to join through, besides the tracker's.")] = ()


class Metrics(Section, frozen=True):
    host: Annotated[str, Setting("Address of /metrics, /livez and /readyz.")] = "127.0.0.1"
    port: Annotated[Port, Setting("Port of /metrics, /livez and /readyz; 0 takes any free one.")] = 5003


class Tracker(Section, frozen=True):
    url: Annotated[
        str | None,
        Setting("Base URL of the tracker's peer API; unset: peers only.", example="https://registry.example.com:5051"),
    ] = None
    peer_id: Annotated[
        str | None,
        Setting("The tracker's peer id, which TLS with it must prove; needed for an https URL.", example="12D3KooW..."),
    ] = None
    root_key: Annotated[
        str | None,
        Setting(
            "The tracker's root key (k4.public...); unset: trust the first one seen and keep it.",
            example="k4.public.AAAA",
        ),
    ] = None
    join_file: Annotated[
        str | None,
        Setting(
            "A file with the join token, for the first start; it may be gone later.", example="/run/secrets/join-token"
        ),
    ] = None
    id_token_file: Annotated[
        str | None,
        Setting(
            "A file with an identity token to join with in place of a join token: Kubernetes projects one.",
            example="/var/run/secrets/p2pregistry/token",
        ),
    ] = None
    names: Annotated[
        Texts | None,
        Setting(
            "Registry names answered for in ?ns=; unset: the names the tracker says it has.",
            example=["registry.example.com"],
        ),
    ] = None
    timeout: Annotated[Seconds, Setting("How long the tracker may take to begin an answer.", unit="seconds")] = 10.0
    poll: Annotated[
        Annotated[float, msgspec.Meta(ge=0.2, le=30)],
        Setting("How often the tracker is asked for new keys and for revoked nodes.", unit="seconds"),
    ] = 20.0
    offline_grace: Annotated[
        Seconds,
        Setting("How long after their end credentials of nodes hold while the tracker is away.", unit="seconds"),
    ] = 86400.0


class Cache(Section, frozen=True):
    max_bytes: Annotated[
        Size | None,
        Setting("The most the blobs may take; the least recently used go first.", unit="bytes", example=50 * GIB),
    ] = None
    min_free: Annotated[Size, Setting("Room kept free on the disk that holds the blobs.", unit="bytes")] = GIB
    partial_age: Annotated[
        Seconds, Setting("How long an unfinished download is kept for a later pull to go on from.", unit="seconds")
    ] = 86400.0


class Tags(Section, frozen=True):
    max_age: Annotated[Seconds, Setting("How old a tag may be before the tracker is asked again.", unit="seconds")] = (
        2.0
    )
    max_stale: Annotated[
        Seconds | None,
        Setting(
            "How old a tag may be served while the tracker does not answer; unset: any age.",
            unit="seconds",
            example=86400.0,
        ),
    ] = None

    peer_stale: Annotated[
        Seconds | None,
        Setting(
            "How old the record of a tag may be that a peer gives while the tracker does not answer; unset: as "
            "tags.max_stale.",
            unit="seconds",
            example=86400.0,
        ),
    ] = None


class Sync(Section, frozen=True):
    patterns: Annotated[
        Texts,
        Setting(
            "Globs over repository:tag (without a colon: each tag) whose tags and manifests are kept here unasked.",
            example=["library/**"],
        ),
    ] = ()
    repositories: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MOST_REPOSITORIES)],
        Setting("Repositories whose tags are kept up to date because somebody asked for one; the last ones stay."),
    ] = 1000
    poll: Annotated[
        Annotated[float, msgspec.Meta(ge=0.2)],
        Setting(
            "How often the tracker is asked for the tags under all patterns while it does not tell of changes itself.",
            unit="seconds",
        ),
    ] = 30.0


class Prefetch(Section, frozen=True):
    patterns: Annotated[
        Texts,
        Setting("As sync.patterns; the layers are fetched too, ahead of any pull.", example=["acme/*:prod-*"]),
    ] = ()
    platforms: Annotated[
        Texts,
        Setting(
            "Of images for several platforms, which are kept: as linux/arm64, or all; unset: this machine's.",
            example=["linux/amd64", "linux/arm64"],
        ),
    ] = ()
    max_bytes: Annotated[
        Size,
        Setting(
            "The most that layers fetched ahead may take until a client asks for them; the oldest go first.",
            unit="bytes",
        ),
    ] = 10 * GIB
    rate: Annotated[
        Annotated[int, msgspec.Meta(ge=64 * 1024)] | None,
        Setting("The most bytes a second fetched ahead; unset: no limit.", unit="bytes/s", example=20 * MIB),
    ] = None
    concurrency: Annotated[Positive, Setting("Layers fetched ahead at once.")] = 2


class Fetch(Section, frozen=True):
    in_flight: Annotated[Size, Setting("The most bytes on their way to this node at once.", unit="bytes")] = 32 * MIB
    window: Annotated[
        Size,
        Setting("How far ahead of each reader pieces are fetched in order, not rarest first.", unit="bytes"),
    ] = 8 * MIB
    flights: Annotated[Positive, Setting("Blobs fetched at once; more of them wait their turn.")] = 16
    rest: Annotated[
        bool,
        Setting("Where a client asks for a part of a blob the rest follows; false: only what is asked for."),
    ] = True
    sources: Annotated[Positive, Setting("The most peers one blob is fetched from at once.")] = 8
    stall: Annotated[
        Seconds, Setting("How long a source may send nothing before its piece is asked elsewhere.", unit="seconds")
    ] = 5.0
    linger: Annotated[
        Seconds,
        Setting(
            "How long a download without a reader goes on before it pauses; what is here stays shared.", unit="seconds"
        ),
    ] = 60.0


class Ipfs(Section, frozen=True):
    use: Annotated[
        Literal["off", "on", "fallback"],
        Setting(
            "Whether blobs are fetched from IPFS: off; on: beside peers and the tracker; fallback: only what no peer "
            "has and the tracker does not deliver. A gateway that is asked learns which public content this node wants."
        ),
    ] = "off"
    gateways: Annotated[
        Texts,
        Setting(
            "Trustless gateways, as base URLs; redirects are not followed, so none that sends each CID to a host name "
            "of its own.",
            example=["https://trustless-gateway.link"],
        ),
    ] = ()
    kubo: Annotated[
        str | None,
        Setting("The RPC of a Kubo of yours, which may look in its network.", example="http://127.0.0.1:5001"),
    ] = None
    kubo_secret_file: Annotated[
        str | None,
        Setting(
            "A file with the secret of the RPC, as in Kubo's API.Authorizations; unset: it wants none.",
            example="/run/secrets/kubo",
        ),
    ] = None
    ca_file: Annotated[
        str | None,
        Setting(
            "Certificates, in PEM, that are trusted of gateways and Kubo beside the public ones.",
            example="/etc/p2pregistry/gateways.pem",
        ),
    ] = None
    mode: Annotated[
        Literal["auto", "raw", "car"],
        Setting("How blobs are asked for: raw: block by block; car: many blocks in one answer; auto: as suits both."),
    ] = "auto"
    private: Annotated[
        bool,
        Setting("Ask gateways for content of private repositories too, and so tell them which; for gateways of yours."),
    ] = False
    requests: Annotated[Positive, Setting("Requests to one gateway at the same time.")] = 8
    timeout: Annotated[
        Seconds, Setting("How long a gateway may send nothing before a request is given up.", unit="seconds")
    ] = 15.0
    rate: Annotated[
        Size | None,
        Setting(
            "The most bytes a second fetched from all gateways together; unset: no limit.",
            unit="bytes/s",
            example=50 * MIB,
        ),
    ] = None


class NodeSettings(Settings, frozen=True):
    """All settings of a node: ``settings.cache.max_bytes``."""

    node: Node = msgspec.field(default_factory=Node)
    pull: Pull = msgspec.field(default_factory=Pull)
    peer: Peer = msgspec.field(default_factory=Peer)
    gateway: Gateway = msgspec.field(default_factory=Gateway)
    libp2p: Libp2p = msgspec.field(default_factory=Libp2p)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    tracker: Tracker = msgspec.field(default_factory=Tracker)
    cache: Cache = msgspec.field(default_factory=Cache)
    tags: Tags = msgspec.field(default_factory=Tags)
    fetch: Fetch = msgspec.field(default_factory=Fetch)
    sync: Sync = msgspec.field(default_factory=Sync)
    prefetch: Prefetch = msgspec.field(default_factory=Prefetch)
    ipfs: Ipfs = msgspec.field(default_factory=Ipfs)

    def clock(self) -> float:
        """This machine's clock, unix seconds."""
        return time.time() + self.node.clock_offset

    def check(self) -> None:
        """Rules between values. Raises SettingsError."""
        for path, url in (("tracker.url", self.tracker.url), ("peer.advertise", self.peer.advertise)):
            if url is not None and not url.startswith(("http://", "https://")):
                raise SettingsError(f"$.{path}: must begin with http:// or https://")
            if url is not None and url.startswith("http://") and not self.peer.plain:
                raise SettingsError(f"$.{path}: must begin with https:// unless peer.plain is set")
        if self.gateway.advertise is not None and not is_base_url(self.gateway.advertise):
            raise SettingsError("$.gateway.advertise: is http:// or https://, a host and perhaps a port")
        if self.tracker.offline_grace > 30 * 86400:
            # a tracker lists a revoked node no longer than that after the end of its credential
            raise SettingsError(
                "$.tracker.offline_grace: at most 30 days, after which nobody remembers who was revoked"
            )
        if self.tracker.root_key is not None and not self.tracker.root_key.startswith("k4.public."):
            raise SettingsError("$.tracker.root_key: must be a PASERK public key (k4.public...)")
        if ZONE.fullmatch(self.node.zone) is None:
            raise SettingsError("$.node.zone: up to 64 of letters, digits and . _ : / -")
        if len({*self.sync.patterns, *self.prefetch.patterns}) > MOST_PATTERNS:
            raise SettingsError(f"$.sync.patterns: with prefetch.patterns at most {MOST_PATTERNS}")
        if not self.pull.host:
            raise SettingsError("$.pull.host: at least one address is needed")
        for section, patterns in (("sync", self.sync.patterns), ("prefetch", self.prefetch.patterns)):
            for pattern in patterns:
                _check(f"$.{section}.patterns", full_pattern, pattern)
        _check("$.prefetch.platforms", read_platforms, self.prefetch.platforms)
        self._check_ipfs()

    def _check_ipfs(self) -> None:
        places = [*self.ipfs.gateways, *(() if self.ipfs.kubo is None else (self.ipfs.kubo,))]
        if self.ipfs.use != "off" and not places:
            raise SettingsError("$.ipfs.gateways: with ipfs.use at least one, or ipfs.kubo, is needed")
        for url in self.ipfs.gateways:
            _check("$.ipfs.gateways", check_base, url)
        if self.ipfs.kubo is not None:
            _check("$.ipfs.kubo", check_base, self.ipfs.kubo)
        if len({url.rstrip("/") for url in places}) < len(places):
            raise SettingsError("$.ipfs.gateways: each place once")
        if self.ipfs.kubo_secret_file is not None and self.ipfs.kubo is None:
            raise SettingsError("$.ipfs.kubo_secret_file: without ipfs.kubo it is of no use")


def check_base(url: str) -> None:
    """Raises ValueError for what is no base URL: a user, a query, anything but http and https."""
    if BASE_URL.fullmatch(url) is None:
        raise ValueError("one is not a URL such as https://gateway.example, without user or query")


def _check(path: str, read: Callable[[T], object], value: T) -> None:
    """Raises SettingsError where this cannot be read."""
    try:
        read(value)
    except ValueError as err:
        raise SettingsError(f"{path}: {err}") from err
