"""Logs and metrics, one place for both programs.

structlog and prometheus_client are imported on first use: ``--help`` loads neither. Metrics carry no repository and no
user; every label child exists from the start, so that it shows as 0 and a rate over it is right from the first event.
"""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter, Gauge

Source = Literal["peer", "tracker", "ipfs", "upstream"]
Receiver = Literal["client", "peer", "gateway"]
ListenerName = Literal["pull", "registry", "peer", "gateway"]

SOURCES: Final[tuple[Source, ...]] = ("peer", "tracker", "ipfs", "upstream")
RECEIVERS: Final[tuple[Receiver, ...]] = ("client", "peer", "gateway")
LISTENERS: Final[tuple[ListenerName, ...]] = ("pull", "registry", "peer", "gateway")
ROUTES: Final = ("base", "blobs", "manifests", "uploads", "tags", "referrers", "p2p", "ipfs", "routing", "other")
STATUS_CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")
#: Seconds.
DURATION_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0)


# ------------------------------------------------------------------------------------------------------------- logs


def configure_logging(json: bool, level: str = "info") -> None:
    """Log to stderr, as JSON lines or for people, from ``level`` up. Once per process, by the daemons."""
    import structlog

    number = logging.getLevelNamesMapping()[level.upper()]
    # tracebacks without local variables: those hold tokens and passwords
    plain = structlog.dev.plain_traceback
    last: list[Any] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    if json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # the stream is looked up at each line: tests and service managers replace it
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


class logger:  # noqa: N801 - read as a function, ``_log = logger(__name__)``
    """A logger that imports structlog at its first line. Until ``configure_logging``: warnings and up, to stderr."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        if not structlog.is_configured():
            configure_logging(json=False, level="warning")
        return getattr(structlog.get_logger().bind(logger=self._name), method)


# ---------------------------------------------------------------------------------------------------------- metrics


@functools.cache
def fetched() -> Counter:
    """``p2pregistry_fetched_bytes_total{source}``: bytes of blobs that came in, by the kind of place."""
    from prometheus_client import Counter

    counter = Counter("p2pregistry_fetched_bytes", "Bytes of blobs and manifests fetched.", ["source"])
    for source in SOURCES:
        counter.labels(source)
    return counter


@functools.cache
def served() -> Counter:
    """``p2pregistry_served_bytes_total{to}``: bytes of blobs that went out."""
    from prometheus_client import Counter

    counter = Counter("p2pregistry_served_bytes", "Bytes of blobs and manifests served.", ["to"])
    for receiver in RECEIVERS:
        counter.labels(receiver)
    return counter


@functools.cache
def stale_answers() -> Counter:
    """``p2pregistry_stale_answers_total``: answers to questions for a tag that nobody could confirm."""
    from prometheus_client import Counter

    return Counter("p2pregistry_stale_answers", "Tags answered from the last known record, with a Warning.")


def watch_feed(connected: Callable[[], bool], lag: Callable[[], float]) -> None:
    """``p2pregistry_feed_connected`` and ``p2pregistry_feed_lag_seconds``, of a node: asked when they are read."""
    stale_answers()
    gauges = _feed_gauges()
    gauges[0].set_function(lambda: float(connected()))
    gauges[1].set_function(lag)


@functools.cache
def _feed_gauges() -> tuple[Gauge, Gauge]:
    from prometheus_client import Gauge

    return (
        Gauge("p2pregistry_feed_connected", "Whether the tracker's changes are followed."),
        Gauge("p2pregistry_feed_lag_seconds", "Age of the last word of the tracker on what has changed; 0: away."),
    )


def watch_gateways(left_out: Callable[[], int]) -> None:
    """``p2pregistry_gateways_left_out``, of a node that fetches from IPFS: asked when it is read."""
    _gateways_gauge().set_function(lambda: float(left_out()))


@functools.cache
def _gateways_gauge() -> Gauge:
    from prometheus_client import Gauge

    return Gauge("p2pregistry_gateways_left_out", "IPFS gateways that are not asked now: banned, resting or busy.")


@functools.cache
def count_fetched(source: Source) -> Any:
    """The function to call with a number of bytes that came from ``source``."""
    return fetched().labels(source).inc


@functools.cache
def count_served(to: Receiver) -> Any:
    """The function to call with a number of bytes that went out ``to``; fits ``BlobSlice.sent``."""
    return served().labels(to).inc


class ListenerMetrics:
    """What one listener did. ``of`` gives the one instance per name."""

    def __init__(self, name: ListenerName) -> None:
        requests, seconds, connections = _listener_families()
        self._requests = {
            (route, status): requests.labels(name, route, status) for route in ROUTES for status in STATUS_CLASSES
        }
        self._observe = seconds.labels(name).observe
        self._connections = connections.labels(name)
        self.opened = self._connections.inc
        self.closed = self._connections.dec

    def done(self, path: str, status: int, seconds: float) -> None:
        """One request answered."""
        self._requests[route_class(path), STATUS_CLASSES[min(max(status // 100, 2), 5) - 2]].inc()
        self._observe(seconds)


@functools.cache
def listener_metrics(name: ListenerName) -> ListenerMetrics:
    """The metrics of the listener of this name."""
    return ListenerMetrics(name)


@functools.cache
def _listener_families() -> tuple[Any, Any, Any]:
    from prometheus_client import Counter, Gauge, Histogram

    requests = Counter("p2pregistry_requests", "Requests answered.", ["listener", "route", "status"])
    seconds = Histogram(
        "p2pregistry_request_seconds",
        "From the head of a request to the last byte of its answer.",
        ["listener"],
        buckets=DURATION_BUCKETS,
    )
    connections = Gauge("p2pregistry_open_connections", "Connections now open.", ["listener"])
    return requests, seconds, connections


@dataclass(frozen=True, slots=True)
class TrackerFigures:
    """Gauges of a tracker: its connections to the database by state, and bytes that its store can still take."""

    connections: Any
    free: Any


@functools.cache
def tracker_figures() -> TrackerFigures:
    """The one instance."""
    from prometheus_client import Gauge

    return TrackerFigures(
        Gauge("p2pregistry_database_connections", "Connections to Postgres.", ["state"]),
        Gauge("p2pregistry_store_free_bytes", "Bytes that the store of blobs can still take."),
    )


def watch_streams(count: Callable[[], int]) -> None:
    """``p2pregistry_feed_streams``, of a tracker: asked when it is read."""
    _streams_gauge().set_function(lambda: float(count()))


@functools.cache
def _streams_gauge() -> Gauge:
    from prometheus_client import Gauge

    return Gauge("p2pregistry_feed_streams", "Nodes that are being told of changes here.")


@dataclass(frozen=True, slots=True)
class IpfsFigures:
    """Of publishing to IPFS: jobs and bytes of content by service and state, bytes sent, jobs given up."""

    jobs: Any
    size: Any
    sent: Any
    failures: Any


@functools.cache
def ipfs_figures() -> IpfsFigures:
    """Made when they are first wanted."""
    from prometheus_client import Counter, Gauge

    return IpfsFigures(
        Gauge("p2pregistry_ipfs_jobs", "Jobs of publishing to IPFS.", ["service", "state"]),
        Gauge("p2pregistry_ipfs_bytes", "Bytes of blobs, manifests and claims.", ["service", "state"]),
        Counter("p2pregistry_ipfs_sent_bytes", "Bytes of CARs sent to services.", ["service"]),
        Counter("p2pregistry_ipfs_failures", "Jobs that are not tried again by themselves.", ["service"]),
    )


def route_class(path: str) -> str:
    """Which of ROUTES a path belongs to: a bounded label, whatever clients send."""
    if path.startswith("/v2/"):
        # the last match decides: repositories may be called "blobs"
        if "/blobs/uploads" in path:
            return "uploads"
        if "/blobs/" in path:
            return "blobs"
        if "/manifests/" in path:
            return "manifests"
        if path.endswith("/tags/list"):
            return "tags"
        if "/referrers/" in path:
            return "referrers"
        return "base" if path == "/v2/" else "other"
    return next((name for name in ("p2p", "ipfs", "routing") if path.startswith(f"/{name}/")), "other")


def exposition() -> tuple[str, bytes]:
    """Content type and body of ``/metrics`` (Prometheus text format 0.0.4)."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    fetched()
    served()
    for name in LISTENERS:
        listener_metrics(name)
    return CONTENT_TYPE_LATEST, generate_latest()
