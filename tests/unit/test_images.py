"""The images made for tests and the demonstration are what OCI says they are."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from p2pregistry.testing.images import INDEX, MANIFEST, MIB, Layout, busybox_rootfs, make_image, make_index


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_digests_sizes_and_diff_ids_are_right(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    top = make_image(layout, layers=3, layer_bytes=2 * MIB + 5)
    manifest = json.loads(layout.read(top.digest))
    assert top.media_type == manifest["mediaType"] == MANIFEST
    for part in (manifest["config"], *manifest["layers"], top.json()):
        data = layout.read(part["digest"])
        assert (sha256(data), len(data)) == (part["digest"], part["size"])
    config = json.loads(layout.read(manifest["config"]["digest"]))
    diff_ids = [sha256(gzip.decompress(layout.read(layer["digest"]))) for layer in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == diff_ids
    assert len(set(diff_ids)) == 3
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(layout.read(layer["digest"])), mode="r:gz") as tar:
            assert sum(entry.size for entry in tar) == 2 * MIB + 5


def test_the_same_seed_gives_the_same_image(tmp_path: Path) -> None:
    digests = [make_image(Layout(tmp_path / str(i)), layer_bytes=MIB, seed=seed).digest for i, seed in enumerate("aab")]
    assert digests[0] == digests[1] != digests[2]


def test_an_index_names_an_image_for_each_platform(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    top = make_index(layout, layer_bytes=1000)
    index = json.loads(layout.read(top.digest))
    assert index["mediaType"] == INDEX
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    assert len(top.blobs) == 2 * 3
    assert json.loads((tmp_path / "index.json").read_text())["manifests"][0]["digest"] == top.digest
    assert not list(tmp_path.glob(".layer-*"))


def test_a_root_file_system_is_the_first_layer(tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF not really")
    rootfs = busybox_rootfs(tmp_path / "rootfs.tar", program)
    layout = Layout(tmp_path / "image")
    top = make_image(layout, layers=1, layer_bytes=10, rootfs=rootfs, command=("/bin/echo", "hello"))
    with tarfile.open(fileobj=io.BytesIO(layout.read(top.parts[1].digest)), mode="r:gz") as tar:
        assert tar.getmember("bin/busybox").mode == 0o755
        assert tar.getmember("bin/echo").linkname == "busybox"
    assert json.loads(layout.read(top.parts[0].digest))["config"]["Cmd"] == ["/bin/echo", "hello"]
