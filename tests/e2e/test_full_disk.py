"""A node whose disk is full: a real file system without room, in a real process."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from p2pregistry.testing.cluster import Daemon, Separate, separate
from p2pregistry.testing.images import MIB, Descriptor, Layout, make_image

pytestmark = pytest.mark.e2e
ROOM = 40 * MIB
#: The node notices that there is no room only when a write fails.
FILLS = {"cache.min_free": "0"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room where the first node of the swarm keeps its data."""
    place = tmp_path / "swarm" / "node1" / "data"
    place.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"mount: this machine does not let us make a small file system ({made.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def push(swarm: Separate, folder: Path, name: str, size: int) -> Descriptor:
    layout = Layout(folder / name)
    made = make_image(layout, layers=1, layer_bytes=size, seed=name)
    swarm.push(layout, made, f"acme/{name}")
    return made


def pulled(node: Daemon, name: str, image: Descriptor) -> bool:
    """Whether all of it came, right; else the client could see that it did not."""
    assert node.request("GET", f"/v2/acme/{name}/manifests/1").status == 200
    for blob in image.parts:
        try:
            answer = node.request("GET", f"/v2/acme/{name}/blobs/{blob.digest}")
        except (HTTPException, OSError):
            return False  # it broke off
        if answer.status != 200:
            assert answer.status in (429, 503)
            assert json.loads(answer.body)["errors"][0]["code"] in ("TOOMANYREQUESTS", "UNAVAILABLE")
            return False
        assert "sha256:" + hashlib.sha256(answer.body).hexdigest() == blob.digest
    return True


def test_without_room_a_pull_fails_cleanly_others_go_on_and_nothing_is_corrupted(
    small_disk: Path, tmp_path: Path
) -> None:
    with separate(tmp_path / "swarm") as swarm:
        first, large, third = (
            push(swarm, tmp_path, name, size)
            for name, size in (("first", 12 * MIB), ("large", 2 * ROOM), ("third", 6 * MIB))
        )
        node = swarm.add_node(FILLS)
        assert node.facts["data_dir"] == str(small_disk)
        assert pulled(node, "first", first)
        assert not pulled(node, "large", large)
        assert pulled(node, "third", third), "there is room for this one"
        assert pulled(node, "first", first)
        assert node.status()["pid"] == node.facts["pid"], "it lives on"
        node = swarm.restart_node(0, FILLS)
        assert pulled(node, "first", first)
        assert pulled(node, "third", third)
