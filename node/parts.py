"""Parts of a node that follow from its settings alone."""

from __future__ import annotations

from node.settings import NodeSettings
from p2pregistry.errors import SettingsError, Unreachable
from p2pregistry.rate import Rates
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.trust.keys import check_root_public


def make_tracker(settings: NodeSettings, speaker: Speaker | None) -> TrackerSource | None:
    """None where the settings name no tracker. Raises SettingsError."""
    if settings.tracker.root_key is not None:
        check_root_public(settings.tracker.root_key)
    if settings.tracker.url is None:
        return None
    try:
        return TrackerSource(
            settings.tracker.url,
            timeout=settings.tracker.timeout,
            peer_id=settings.tracker.peer_id or "",
            plain=settings.peer.plain,
            speaker=speaker,
        )
    except Unreachable as err:
        raise SettingsError(f"$.tracker.url: {err.message}") from err


def make_rates(settings: NodeSettings) -> Rates:
    """Limits in bytes a second."""
    peer = settings.peer
    return Rates(
        egress=peer.egress,
        ingress=peer.ingress,
        egress_other_zones=peer.egress_other_zones,
        ingress_other_zones=peer.ingress_other_zones,
        zone=settings.node.zone,
    )
