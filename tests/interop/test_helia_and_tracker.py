"""Helia, which knows nothing of us, fetches public images from a tracker that it finds by Delegated Routing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import cid_text
from p2pregistry.testing.clients import containers
from p2pregistry.testing.cluster import separate
from p2pregistry.testing.helia import Helia
from p2pregistry.testing.images import MIB, Layout, make_image

pytestmark = [pytest.mark.interop, pytest.mark.e2e]


def test_helia_fetches_a_pushed_image_through_routing_and_gateway(
    tmp_path: Path, helia_asking: Callable[[str], AbstractContextManager[Helia]]
) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=3 * MIB + 11)
    with (
        containers("skopeo", tmp_path / "skopeo") as tools,
        separate(tmp_path / "swarm") as swarm,
        helia_asking(str(swarm.tracker.facts["url"])) as helia,
    ):
        tools.push(layout, f"{swarm.tracker.registry}/acme/api:1", swarm)
        for part in (image, *image.parts):
            data = layout.read(part.digest)
            root = cid_text(Metainfo.of_bytes(data).root)
            assert helia.fetch(root, tmp_path / "fetched") == len(data)
            assert (tmp_path / "fetched").read_bytes() == data
        # what nobody has is not found: the tracker does not send its clients to itself for it
        nothing = cid_text(Metainfo.of_bytes(b"nothing").root)
        with pytest.raises(AssertionError):
            helia.fetch(nothing, tmp_path / "fetched")
