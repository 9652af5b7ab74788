"""DAGs of ours as others make them, and others' of any layout as we read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from p2pregistry.content.dag import CarWalk, Walk, any_cid, matches
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, in_order
from p2pregistry.digest import cid_text
from p2pregistry.errors import BadContent
from p2pregistry.image.export import write_car
from p2pregistry.image.inventory import Item, take
from p2pregistry.testing.helia import Helia
from p2pregistry.testing.images import Layout, make_image
from p2pregistry.testing.libkubo import Kubo
from p2pregistry.testing.objects import pattern
from p2pregistry.testing.shelf import Shelf

pytestmark = pytest.mark.interop

SIZES = [0, 1, PIECE_SIZE, PIECE_SIZE + 1, 5 * PIECE_SIZE + 7]
#: What kubo, nerdctl and the pinning services made, and make.
OTHERS = {
    "2015": {"chunk": 256 << 10, "width": 174, "raw": False, "version": 0},
    "kubo-cid-1": {"chunk": 256 << 10, "width": 174, "raw": True, "version": 1},
    "deep": {"chunk": 64 << 10, "width": 3, "raw": True, "version": 1},
    "dag-pb-leaves": {"chunk": 1 << 20, "width": 1024, "raw": False, "version": 1},
}


@pytest.mark.parametrize("size", SIZES)
def test_helia_gives_a_file_the_root_that_we_give_it(helia_node: Helia, tmp_path: Path, size: int) -> None:
    data = pattern(size)
    (tmp_path / "file").write_bytes(data)
    assert helia_node.add(tmp_path / "file") == cid_text(Metainfo.of_bytes(data).root)


def read_blocks(root: str, size: int, start: int, end: int, block: Callable[[bytes], bytes | None]) -> bytes:
    """A range of a file, by its blocks; each is compared with its CID."""
    cid = any_cid(root)
    assert cid is not None
    walk, found = Walk(cid, size, start, end), bytearray()
    while not walk.done:
        for want in walk.wanted(4):
            data = block(want.cid)
            assert data is not None
            assert matches(want.cid, data)
            walk.take(want, data)
        found += b"".join(walk.ready())
    return bytes(found)


@pytest.mark.parametrize("size", [1, 256 << 10, (256 << 10) + 1, 5 * PIECE_SIZE + 7])
@pytest.mark.parametrize("layout", OTHERS)
def test_layouts_of_others_are_walked(helia_node: Helia, tmp_path: Path, layout: str, size: int) -> None:
    data = pattern(size)
    (tmp_path / "file").write_bytes(data)
    root = helia_node.add(tmp_path / "file", **OTHERS[layout])
    cid = any_cid(root)
    assert cid is not None
    with httpx.Client(base_url=helia_node.gateway, trust_env=False, timeout=30) as client:

        def block(wanted: bytes) -> bytes:
            headers = {"Accept": "application/vnd.ipld.raw"}
            answer = client.get(f"/ipfs/{cid_text(wanted)}?format=raw", headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.ipld.raw")
            return answer.content

        assert read_blocks(root, size, 0, size, block) == data
        assert read_blocks(root, size, size // 3, size // 2 + 1, block) == data[size // 3 : size // 2 + 1]
        accept = "application/vnd.ipld.car; version=1; order=dfs; dups=y"
        for start, end in ((0, size), (size // 3, size // 2 + 1)):
            query = f"format=car&dag-scope=entity&entity-bytes={start}:{end - 1}"
            answer = client.get(f"/ipfs/{cid_text(cid)}?{query}", headers={"Accept": accept})
            assert answer.headers["content-type"] == accept
            walk = CarWalk(cid, size, start, end, ordered=True)
            if layout == "deep" and size > PIECE_SIZE and start:
                # this Helia leaves out the leaves of a range of a deep tree, and answers 200 all the same
                with pytest.raises(BadContent):
                    walk.feed(answer.content)
                continue
            assert b"".join(walk.feed(answer.content)) == data[start:end]
            walk.close()


def test_helia_takes_an_exported_image(helia_node: Helia, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE + 5)
    shelf = Shelf(layout, image.digest)
    items = list(take(shelf, "latest", None).items)
    roots = [cid_text(root) for root in write_car(shelf, items, tmp_path / "image.car")]
    assert helia_node.take_car(tmp_path / "image.car") == roots
    check_files(items, roots, layout, tmp_path, helia_node.fetch)


def check_files(
    items: list[Item], roots: list[str], layout: Layout, folder: Path, fetch: Callable[[str, Path], object]
) -> None:
    """Each root is the file of its item."""
    for item, root in zip(items, roots, strict=True):
        fetch(root, folder / "fetched")
        assert (folder / "fetched").read_bytes() == layout.read(str(item.digest))


@pytest.mark.parametrize("size", SIZES)
def test_kubo_fetches_our_dag_over_bitswap_and_gives_it_back(
    kubos: tuple[Kubo, Kubo], tmp_path: Path, size: int
) -> None:
    data = pattern(size)
    info = Metainfo.of_bytes(data)
    first, second = kubos
    blocks = [
        (cid, data[block * PIECE_SIZE :][:PIECE_SIZE] if isinstance(block, int) else block)
        for cid, block in in_order(info.hashes, size)
    ]
    first.put(blocks)
    assert second.download(cid_text(info.root), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    # block by block the same, so that whoever asks it for ours gets ours
    assert [second.block(cid) for cid, _block in blocks] == [block for _cid, block in blocks]


def test_what_kubo_makes_by_itself_is_walked(kubos: tuple[Kubo, Kubo], tmp_path: Path) -> None:
    data = pattern(3 * PIECE_SIZE + 5)
    (tmp_path / "file").write_bytes(data)
    root = kubos[0].add(tmp_path / "file")
    assert root.startswith("Qm")
    assert read_blocks(root, len(data), 0, len(data), kubos[0].block) == data
