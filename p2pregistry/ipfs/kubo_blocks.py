"""A local Kubo as a place that blocks come from: ``block/get`` and ``dag/export`` of its RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from p2pregistry.errors import NotFound, StorageFull, Unreachable
from p2pregistry.ipfs.gateway_client import Body, TooLong
from p2pregistry.ipfs.http import Oversize, make_client
from p2pregistry.ipfs.kubo import MAX_BLOCK, Kubo, KuboConfig
from p2pregistry.ipfs.kubo_answers import NotInTime


class KuboBlocks:
    """See GatewayClient. ``timeout``: seconds that the daemon may look for a block in its network."""

    def __init__(self, config: KuboConfig, *, requests: int = 8, timeout: float = 10.0) -> None:
        self.name = config.url
        self.ranges = False  # dag/export gives whole files only
        self._client = make_client(connections=requests, ca_file=config.ca_file)
        self._kubo = Kubo(config, self._client)
        self._turn = trio.CapacityLimiter(requests)
        self._timeout = timeout

    @asynccontextmanager
    async def block(self, cid: bytes) -> AsyncIterator[Body]:
        """A block. Entering raises NotFound, RemoteError."""
        with _as_of_gateways():
            async with self._turn:
                data = await self._kubo.block_get(cid, timeout=self._timeout)
        yield Body(_once(data), MAX_BLOCK, self.name)

    @asynccontextmanager
    async def car(self, cid: bytes, start: int, end: int, most: int) -> AsyncIterator[Body]:  # noqa: ARG002
        """A CAR of all below a root, each block once. Entering raises NotFound, RemoteError."""
        with _as_of_gateways():
            async with self._turn, self._kubo.dag_export(cid, timeout=self._timeout) as chunks:
                yield Body(chunks, most, self.name)

    async def probe(self) -> None:
        """Raises RemoteError unless the daemon answers."""
        await self._kubo.version()

    async def aclose(self) -> None:
        """Let go of its connections."""
        await self._client.aclose()


@contextmanager
def _as_of_gateways() -> Iterator[None]:
    """What was looked for in vain is not there, a full disk of the daemon's is none of ours, and that a block is large
    may be the fault of who named it."""
    try:
        yield
    except NotInTime as err:
        raise NotFound("BLOB_UNKNOWN", err.message) from err
    except Oversize as err:
        raise TooLong(err.message) from err
    except StorageFull as err:
        raise Unreachable(err.message) from err


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
