"""``image cid`` and ``image export`` against a tracker and a node, each as a process."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pregistry.content.car import CarReader
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX, cid_text
from p2pregistry.ports import free_ports
from p2pregistry.testing.clients import containers, need
from p2pregistry.testing.cluster import Cluster, eventually, separate
from p2pregistry.testing.images import Layout, make_image, make_index

pytestmark = pytest.mark.e2e


def command(*words: str, stdin: str = "", home: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "p2pregistry", "image", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(home), "PATH": "/usr/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.returncode == status, done.stderr
    return done


def test_both_programs_state_the_roots_of_claims_and_a_car_is_made(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE)
    with separate(tmp_path / "swarm", nodes=1) as swarm:
        swarm.push(layout, image, "acme/api")
        _check(swarm, layout, [image.digest, *(part.digest for part in image.parts)], tmp_path)
        # a repository that is not for everybody: the password comes from standard input
        _private(swarm, tmp_path)


def _check(swarm: Cluster, layout: Layout, digests: list[str], folder: Path) -> None:
    roots = {digest: cid_text(Metainfo.of_bytes(layout.read(digest)).root) for digest in digests}
    for where, tag in ((swarm.tracker, "1"), (swarm.nodes[0], "1")):
        said = json.loads(command("cid", f"{where.registry}/acme/api:{tag}", "--json", home=folder).stdout)
        assert {part["digest"]: part["cid"] for part in said["parts"]} == roots
        assert [part["known"] for part in said["parts"]] == ["bytes", "bytes", "claim", "claim"]
    # nothing was fetched to say so
    assert swarm.nodes[0].counters().fetched.get("tracker", 0) < PIECE_SIZE
    car = folder / "image.car"
    done = command("export", f"{swarm.nodes[0].localhost}/acme/api:1", "--car", str(car), "--json", home=folder)
    assert [part["cid"] for part in json.loads(done.stdout)["parts"]] == [roots[digest] for digest in digests]
    reader = CarReader()
    leaves = b"".join(block for cid, block in reader.feed(car.read_bytes()) if cid.startswith(CID_RAW_PREFIX))
    reader.close()
    assert leaves == b"".join(layout.read(digest) for digest in digests)
    refused = command("export", f"{swarm.tracker.registry}/acme/api:2", "--car", str(car), home=folder, status=1)
    assert refused.stderr.endswith("has no acme/api manifest 2\n")
    assert len(refused.stderr.splitlines()) == 1


def _private(swarm: Cluster, folder: Path) -> None:
    layout = Layout(folder / "second")
    index = make_index(layout, layers=1, layer_bytes=1000)
    for part in index.parts:
        swarm.push(layout, part, "acme/secret", part.digest)
    swarm.push(layout, index, "acme/secret")
    made_private = swarm.tracker.request(
        "PUT",
        "/api/v1/repositories/acme%2Fsecret/visibility",
        b'{"private": true}',
        {"Content-Type": "application/json", "Authorization": basic(swarm)},
    )
    assert made_private.status == 204, made_private
    name = f"{swarm.tracker.registry}/acme/secret:1"
    assert "credentials" in command("cid", name, home=folder, status=1).stderr
    login = ("--username", swarm.username, "--password-stdin")
    said = json.loads(command("cid", name, "--json", *login, stdin=swarm.password + "\n", home=folder).stdout)
    assert [part["platform"] for part in said["parts"] if part["kind"] == "manifest"] == ["linux/amd64", "linux/arm64"]


@contextmanager
def another_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry, which knows nothing of root CIDs."""
    need("docker-registry")
    (port,) = free_ports(1)
    (folder / "data").mkdir(parents=True)
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    with (folder / "log").open("wb") as log:
        command = ["docker-registry", "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually("docker-registry listens", lambda: _listens(port), within=20)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_any_registry_will_do(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=1, layer_bytes=2 * PIECE_SIZE)
    digests = [image.digest, *(part.digest for part in image.parts)]
    roots = {digest: cid_text(Metainfo.of_bytes(layout.read(digest)).root) for digest in digests}
    with containers("skopeo", tmp_path / "skopeo") as tools, another_registry(tmp_path / "other") as registry:
        tools(
            "skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout.root}:latest", f"docker://{registry}/a/b:1"
        )
        said = json.loads(command("cid", f"{registry}/a/b:1", "--json", home=tmp_path).stdout)
        assert {part["digest"]: part["cid"] for part in said["parts"]} == roots | {digests[2]: None}
        said = json.loads(command("cid", f"{registry}/a/b:1", "--json", "--read", home=tmp_path).stdout)
        assert {part["digest"]: part["cid"] for part in said["parts"]} == roots
        assert said["parts"][2]["known"] == "read"
        done = command("export", f"{registry}/a/b:1", "--car", str(tmp_path / "it.car"), "--json", home=tmp_path)
        assert {part["digest"]: part["cid"] for part in json.loads(done.stdout)["parts"]} == roots


def basic(swarm: Cluster) -> str:
    import base64

    return "Basic " + base64.b64encode(f"{swarm.username}:{swarm.password}".encode()).decode()
