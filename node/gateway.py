"""A node's gateway for IPFS clients, which has a listener of its own where the settings say so."""

from __future__ import annotations

from dataclasses import dataclass

from node.settings import NodeSettings
from p2pregistry.observe import count_served
from p2pregistry.rate import Limiter
from p2pregistry.serve.held_blocks import HeldBlocks
from p2pregistry.serve.http import Handler
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.blocks import BlockIndex
from p2pregistry.store.cache import Cache
from p2pregistry.store.index import Index
from p2pregistry.visible import Visible


@dataclass(frozen=True, slots=True)
class NodeGateway:
    """What finds blocks, which wants to hear of blobs that come and go, and the handler of the listener."""

    blocks: BlockIndex
    handler: Handler


def open_gateway(settings: NodeSettings, index: Index, visible: Visible, cache: Cache) -> NodeGateway | None:
    """None where the settings name no address to listen on."""
    stated = settings.gateway
    if stated.host is None:
        return None
    blocks = BlockIndex(index)
    pace = None if stated.egress is None else Limiter(stated.egress).take
    handler = IpfsGateway(
        HeldBlocks(blocks, index, visible, cache),
        Slots(stated.max_uploads, stated.queue),
        served=count_served("gateway"),
        pace=pace,
    )
    return NodeGateway(blocks, handler)
