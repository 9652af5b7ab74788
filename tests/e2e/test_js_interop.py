"""js-libp2p finds what we provide, and we find what it provides."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.dht import KAD_PROTOCOL, DhtConfig, DhtRouter, open_dht
from p2pregistry.routing.hello import Hello
from p2pregistry.routing.kad.wire import Contact, blob_key
from p2pregistry.testing.foreign import CannotInstall
from p2pregistry.testing.js_libp2p import install, js_node
from p2pregistry.testing.routing import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.interop, pytest.mark.slow]


@pytest.fixture(scope="module")
def js() -> Path:
    try:
        return install()
    except CannotInstall as error:
        pytest.skip(f"js-libp2p is installed with npm: {error}")


@asynccontextmanager
async def ours(tmp_path: Path, count: int) -> AsyncIterator[list[DhtRouter]]:
    made: list[DhtRouter] = []
    async with AsyncExitStack() as stack:
        for i in range(count):
            bootstrap = tuple(made[0].addrs) if made else ()
            hello = Hello((f"http://192.0.2.{i}:5001",))
            config = DhtConfig(tmp_path / f"{i}.key", "127.0.0.1", 0, bootstrap=bootstrap, hello=hello)
            made.append(await stack.enter_async_context(open_dht(config)))
        yield made


async def found_by_us(node: DhtRouter, digest: Digest) -> set[str]:
    """Provider ids by our look-up, without a hello: js-libp2p has none."""
    from p2pregistry.routing.identity import base58

    found: list[Contact] = []
    await node.driver.find_providers(blob_key(digest.raw), found.append)
    return {base58(contact.peer_id) for contact in found}


async def test_js_finds_ours_and_we_find_its(tmp_path: Path, js: Path) -> None:
    async with (
        ours(tmp_path, 3) as nodes,
        js_node(js, KAD_PROTOCOL, nodes[0].addrs[0]) as first,
        js_node(js, KAD_PROTOCOL, nodes[1].addrs[0]) as second,
    ):
        both = {first.peer_id, second.peer_id}
        await eventually(
            lambda: {p for n in nodes[:2] for p in both if _in_table(n, p)} == both, seconds=30
        )  # we noticed that they are servers
        mine, its, gone = (Digest.of(b"%d" % n) for n in range(3))

        nodes[2].hold([mine, gone])
        with trio.fail_after(30):
            for asker in (first, second):
                for digest in (mine, gone):
                    while await asker.tell("find", digest.hex) != [nodes[2].peer_id]:
                        await trio.lowlevel.checkpoint()

        assert await first.tell("provide", its.hex) is True
        with trio.fail_after(30):
            while await found_by_us(nodes[2], its) != {first.peer_id}:
                await trio.lowlevel.checkpoint()

        nodes[2].drop([gone])  # a withdrawal means nothing to js-libp2p, and harms nothing
        await eventually(lambda: all(not n.driver.store.find(blob_key(gone.raw), 0) for n in nodes))
        assert await first.tell("find", mine.hex) == [nodes[2].peer_id]


def _in_table(node: DhtRouter, peer_id: str) -> bool:
    from p2pregistry.routing.identity import base58

    return peer_id in {base58(contact.peer_id) for contact in node.driver.table.contacts()}
