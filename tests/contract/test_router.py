"""Both routers keep the promises of the seam."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from p2pregistry.routing.base import Peer, Router
from p2pregistry.routing.memory import MemoryNetwork
from p2pregistry.testing.routing import check_router


async def test_memory_router() -> None:
    @asynccontextmanager
    async def make(count: int) -> AsyncIterator[Sequence[tuple[Router, Peer]]]:
        network = MemoryNetwork()
        peers = [Peer(f"peer-{i}", f"http://192.0.2.{i}:5001", f"zone-{i}") for i in range(count)]
        yield [(network.router(peer), peer) for peer in peers]

    await check_router(make)


async def test_dht_router(tmp_path: Path) -> None:
    from p2pregistry.routing.dht import DhtConfig, Hello, open_dht

    @asynccontextmanager
    async def make(count: int) -> AsyncIterator[Sequence[tuple[Router, Peer]]]:
        made: list[tuple[Router, Peer]] = []
        bootstrap: list[str] = []
        async with AsyncExitStack() as stack:
            for i in range(count):
                hello = Hello((f"http://192.0.2.{i}:5001",), f"zone-{i}")
                config = DhtConfig(tmp_path / f"{i}.key", "127.0.0.1", 0, bootstrap=tuple(bootstrap), hello=hello)
                router = await stack.enter_async_context(open_dht(config))
                bootstrap = bootstrap or router.addrs
                made.append((router, Peer(router.peer_id, hello.urls[0], hello.zone)))
            yield made

    await check_router(make)
