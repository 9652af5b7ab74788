"""An image that is published through js-ipfs's RPC: its bytes and its pins."""

from __future__ import annotations

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import cid_text
from p2pregistry.ipfs.kubo import kubo_config, open_kubo
from p2pregistry.testing.js_ipfs import JsIpfs
from p2pregistry.testing.objects import pattern
from p2pregistry.testing.publishing import one_image
from tracker.catalog.check import BY
from tracker.ipfs_services import KuboService

pytestmark = pytest.mark.interop
LAYER = pattern(3 * (1 << 20) + 5, 77)


async def test_an_image_is_published_and_unpinned(daemon: JsIpfs) -> None:
    async with open_kubo(kubo_config(daemon.url)) as kubo:
        acme = await one_image(KuboService(kubo), "kubo", LAYER)
        publisher = acme.publisher()
        await acme.settle(publisher)
        assert await acme.said() == dict.fromkeys(("blob", "manifest", "claim"), ("published", None))
        root = Metainfo.of_bytes(LAYER).root
        assert await kubo.pin_ls(root) == await kubo.pin_ls(root, "recursive") == "recursive"
        assert await kubo.pin_ls(root, "direct") is None
        record = await acme.catalog.manifest("acme/api", acme.digest)
        assert record is not None
        assert await kubo.block_get(acme.digest.cid(), offline=True) == record.body
        await kubo.files_cp(f"/ipfs/{cid_text(root)}", "/published")
        assert await kubo.files_read("/published", 0, len(LAYER)) == LAYER
        await kubo.files_rm("/published")
        await acme.publishing.unpublish("acme/*", BY)
        await acme.settle(publisher)
        assert await kubo.pin_ls(root) is None
        stored = await one_image(KuboService(kubo, stored=True), "kubo", LAYER)
        await stored.settle(stored.publisher())
        assert (await stored.states())["blob"].sent == 0, "what is there is only pinned"
        assert await kubo.pin_ls(root) == "recursive"
