"""The parts of an image with their root CIDs, and the CAR file of them, from a registry that may lie."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.car import CarReader, header, section
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, in_order
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.errors import BadContent, LocalError
from p2pregistry.image import listing
from p2pregistry.image.export import places, write_car
from p2pregistry.image.inventory import MAX_BLOB, Inventory, Item, take, with_roots
from p2pregistry.image.names import parse_image
from p2pregistry.oci.platforms import parse_platform
from p2pregistry.testing.images import Layout, make_image, make_index
from p2pregistry.testing.shelf import Shelf

SMALL, LARGE = b"small" * 1000, bytes(range(256)) * 4096 * 3 + b"tail"


def root_of(layout: Layout, digest: str) -> bytes:
    return Metainfo.of_bytes(layout.read(digest)).root


def blocks_of(path: Path) -> list[tuple[bytes, bytes]]:
    reader = CarReader()
    found = list(reader.feed(path.read_bytes()))
    reader.close()
    return found


def test_the_parts_of_an_image(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE)
    first, second = (part.digest for part in image.parts[1:])
    shelf = Shelf(layout, image.digest, {first: root_of(layout, first)})
    items = with_roots(shelf, take(shelf, "latest", None).items, read=False)
    assert [(item.kind, str(item.digest)) for item in items] == [
        ("manifest", image.digest),
        ("config", image.parts[0].digest),
        ("layer", first),
        ("layer", second),
    ]
    assert [item.known for item in items] == ["bytes", "bytes", "claim", None]
    assert items[0].root == root_of(layout, image.digest)
    assert items[1].root == Digest.parse(image.parts[0].digest).cid()
    assert shelf.read == []
    items = with_roots(shelf, items, read=True)
    assert (items[3].known, items[3].root) == ("read", root_of(layout, second))
    assert shelf.read == [second]


def test_of_an_index_all_that_is_there_or_what_is_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    index = make_index(layout, ("linux/amd64", "linux/arm64"), layers=1, layer_bytes=1000)
    amd, arm = index.parts
    shelf = Shelf(layout, index.digest)
    whole = take(shelf, "latest", None)
    assert [item.kind for item in whole.items] == ["index", *["manifest", "config", "layer"] * 2]
    assert [item.platform for item in whole.items if item.kind == "manifest"] == ["linux/amd64", "linux/arm64"]
    platform = parse_platform("linux/arm64")
    assert platform is not None
    only = take(shelf, "latest", [platform])
    assert {str(item.digest) for item in only.items} == {index.digest, arm.digest, *(p.digest for p in arm.parts)}
    layout.path(amd.digest).unlink()
    left = take(shelf, "latest", None)
    assert left.items == only.items
    assert [str(missing.digest) for missing in left.missing] == [amd.digest]


def test_indexes_within_indexes_have_an_end(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    top = make_image(layout, layers=1, layer_bytes=10)
    for _ in range(10):
        document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
        top = layout.add(document["mediaType"], json.dumps(document | {"manifests": [top.json()]}).encode())  # type: ignore[arg-type]
    with pytest.raises(BadContent, match="without an end"):
        take(Shelf(layout, top.digest), "latest", None)


def test_a_layer_of_any_size_cannot_be_claimed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    image = make_image(layout, layers=1, layer_bytes=10)
    document = json.loads(layout.read(image.digest))
    document["layers"][0]["size"] = MAX_BLOB + 1
    top = layout.add(image.media_type, json.dumps(document).encode())
    with pytest.raises(BadContent, match="more than can be"):
        take(Shelf(layout, top.digest), "latest", None)


@pytest.mark.parametrize("count", [1, 23, 24, 255, 256, 300])
def test_a_header_of_many_roots(count: int) -> None:
    roots = [CID_RAW_PREFIX + i.to_bytes(32) for i in range(count)]
    head = header(*roots)
    reader = CarReader()
    assert list(reader.feed(head + section(Digest.of(b"x").cid(), b"x"))) == [(Digest.of(b"x").cid(), b"x")]
    reader.close()
    assert all(root in head for root in roots)
    assert (
        b"\x65roots"
        + {1: b"\x81", 23: b"\x97", 24: b"\x98\x18", 255: b"\x98\xff", 256: b"\x99\x01\x00"}.get(count, b"\x99\x01\x2c")
        in head
    )


@given(st.integers(0, 60 * PIECE_SIZE), st.integers(0, 1000), st.integers(2, 5))
def test_each_place_follows_from_the_size(size: int, start: int, width: int) -> None:
    where = places(size, start, width=width)
    count = max(1, -(-size // PIECE_SIZE))
    at, pieces, nodes = start, iter(where.pieces), iter(where.nodes)
    # whatever the hashes are: here all ones
    for cid, block in in_order(b"\x01" * 32 * count, size, width=width):
        assert at == (next(pieces) if isinstance(block, int) else next(nodes))
        body = bytes(min(PIECE_SIZE, size - block * PIECE_SIZE)) if isinstance(block, int) else block
        at += len(section(cid, body))
    assert at == where.end
    assert list(pieces) == list(nodes) == []


def test_a_car_of_an_image(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE + 7)
    empty = layout.add("text/plain", b"")
    shelf = Shelf(layout, image.digest)
    items = [*take(shelf, "latest", None).items, Item("blob", Digest.parse(empty.digest), 0, "text/plain")]
    told: list[int] = []
    car = tmp_path / "image.car"
    roots = write_car(shelf, items, car, lambda _item, count: told.append(count))
    assert sum(told) == sum(item.size for item in items)
    assert roots == [root_of(layout, str(item.digest)) for item in items]
    assert car.read_bytes().startswith(header(*roots))
    # blob after blob, each depth first from its root: what a strict reader wants
    wanted = []
    for item in items:
        info = Metainfo.of_bytes(layout.read(str(item.digest)))
        wanted += [cid for cid, _ in in_order(info.hashes, info.size)]
    blocks = blocks_of(car)
    assert [cid for cid, _ in blocks] == wanted
    leaves = b"".join(block for cid, block in blocks if cid.startswith(CID_RAW_PREFIX))
    assert leaves == b"".join(layout.read(str(item.digest)) for item in items)
    assert [path.name for path in tmp_path.iterdir() if path != layout.root] == ["image.car"]


def blob(data: bytes, **other: object) -> Item:
    return replace(Item("layer", Digest.of(data), len(data), "x"), **other)  # type: ignore[arg-type]


class Liar(Shelf):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def blob(self, digest: Digest) -> Iterator[bytes]:
        yield from (self.data[:1000], self.data[1000:])


@pytest.mark.parametrize(
    ("item", "sent"),
    [
        (blob(SMALL), b"x" + SMALL[1:]),
        (blob(SMALL), SMALL[:-1]),
        (blob(SMALL), SMALL + b"x"),
        (blob(LARGE), LARGE[:-1] + b"x"),
        (blob(LARGE), LARGE[:PIECE_SIZE]),
        (blob(LARGE), LARGE + bytes(2 * PIECE_SIZE)),
        (blob(LARGE, size=len(LARGE) - 1), LARGE),
        (blob(LARGE, root=Digest.of(b"another").cid()), LARGE),
    ],
    ids=["changed", "short", "long", "changed-at-the-end", "cut", "longer", "size", "root"],
)
def test_what_does_not_verify_leaves_what_was_there(tmp_path: Path, item: Item, sent: bytes) -> None:
    car = tmp_path / "image.car"
    car.write_bytes(b"before")
    with pytest.raises(BadContent):
        write_car(Liar(sent), [item], car)
    assert car.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["image.car"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be written"):
        write_car(Liar(SMALL), [blob(SMALL)], tmp_path / "no" / "image.car")


def test_an_image_of_more_parts_than_a_header_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadContent, match="parts"):
        write_car(Liar(SMALL), [blob(SMALL)] * 65_536, tmp_path / "image.car")
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    car = tmp_path / "image.car"

    def second(_item: Item, _count: int) -> None:  # a process of the same number, in another container
        if not car.exists():
            write_car(Liar(SMALL), [blob(SMALL)], car)

    roots = write_car(Liar(LARGE), [blob(LARGE)], car, second)
    assert car.read_bytes().startswith(header(*roots))
    assert [path.name for path in tmp_path.iterdir()] == ["image.car"]


def test_what_people_and_programs_are_told(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE)
    first = image.parts[1].digest
    shelf = Shelf(layout, image.digest, {first: root_of(layout, first)})
    found = take(shelf, "latest", None)
    found = Inventory(tuple(with_roots(shelf, found.items, read=False)), found.missing)
    name = parse_image("acme/api:1")
    said = listing.document(name, found, "https://gw.example")
    assert said["image"] == "localhost:5000/acme/api:1"
    config, layer, unknown = said["parts"][1:]
    cid, short = config["cid"], config["digest"][7:19]
    assert cid == cid_text(Digest.parse(config["digest"]).cid())
    assert config["commands"] == {
        "ipfs_get": f"ipfs get -o {short} {cid}",
        "ipfs_cat": f"ipfs cat {cid} > {short}",
        "gateway_raw": f"curl -fo {short} -H 'Accept: application/vnd.ipld.raw' 'https://gw.example/ipfs/{cid}?format=raw'",
        "dag_export": f"ipfs dag export {cid} > {short}.car",
    }
    assert layer["cid"].startswith("bafybei")
    assert layer["commands"]["gateway_car"].endswith(f"'https://gw.example/ipfs/{layer['cid']}?format=car'")
    assert (unknown["cid"], unknown["known"], unknown["commands"]) == (None, None, {})
    text = "\n".join(listing.lines(name, found, "https://gw.example"))
    assert "as the registry's claim says" in text
    assert "--read" in text
    assert all(command in text for part in said["parts"] for command in part["commands"].values())


def test_a_manifest_moves_no_cursor(tmp_path: Path) -> None:
    item = Item("layer", Digest.of(b"x"), 1, "a\x1b[2Jb\r", platform="linux/\x9b")
    text = "".join(listing.lines(parse_image("acme/api:1"), Inventory((item,), ()), "https://gw.example"))
    assert "a?[2Jb?" in text
    assert text.isprintable()


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert listing.human(size) == text
