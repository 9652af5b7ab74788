"""The seam ``IpfsBlocks``: which blob a block of an IPFS DAG is of."""

from __future__ import annotations

from typing import Final, Protocol

import trio

from p2pregistry.content.subdag import BlockOf, Whole
from p2pregistry.errors import LocalError
from p2pregistry.observe import logger

#: Seconds between two looks for blobs that an older tracker has stored; blobs that are taken at once.
LOOK: Final = 30.0
BATCH: Final = 20

_log = logger(__name__)


class IpfsBlocks(Protocol):
    """Only what anybody may have is found: blocks of sound blobs that a claim in a public repository names, manifests
    of public repositories, and their claims. The answer is of the moment it is asked for."""

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        """The block of this CID (36 bytes), whichever public blob it is of. Raises LocalError."""

    async def fill(self, limit: int = BATCH) -> int:
        """Index some of the blobs that are not yet, because an older program stored them; how many. Raises
        LocalError."""


async def keep_filled(blocks: IpfsBlocks) -> None:
    """Index what is not, for ever."""
    while True:
        try:
            while await blocks.fill() == BATCH:
                await trio.lowlevel.checkpoint()
        except LocalError as err:
            _log.warning("blocks that an older tracker has stored cannot be indexed now", error=err.message)
        await trio.sleep(LOOK)
