"""Real clients push to the tracker and pull from the nodes: the Docker engine, podman, skopeo, buildah, containerd."""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from p2pregistry.testing.clients import (
    Containerd,
    Containers,
    Docker,
    architecture,
    containerd,
    containers,
    docker,
    runnable,
)
from p2pregistry.testing.cluster import Cluster, Counters, Daemon, eventually, up
from p2pregistry.testing.images import MIB, Layout, make_image, make_index

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("clients")]
PLATFORM = f"linux/{architecture()}"
#: Seconds that docker, podman and skopeo wait for an answer to a TLS handshake before they try plain HTTP.
TLS_WAIT = 10.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Docker]:
    with docker(tmp_path) as found:
        yield found


@pytest.fixture
def under(tmp_path: Path) -> Iterator[Containerd]:
    with containerd(tmp_path) as found:
        yield found


def tools(program: str, folder: Path, cluster: Cluster) -> Iterator[Containers]:
    (folder / "tools").mkdir()
    with containers(program, folder / "tools") as found:
        found.login(cluster.tracker.registry, cluster)
        yield found


@pytest.fixture
def podman(tmp_path: Path, cluster: Cluster) -> Iterator[Containers]:
    yield from tools("podman", tmp_path, cluster)


@pytest.fixture
def skopeo(tmp_path: Path, cluster: Cluster) -> Iterator[Containers]:
    yield from tools("skopeo", tmp_path, cluster)


@pytest.fixture
def buildah(tmp_path: Path, cluster: Cluster) -> Iterator[Containers]:
    yield from tools("buildah", tmp_path, cluster)


def image(folder: Path, *, layers: int = 3, rootfs: Path | None = None, command: tuple[str, ...] = ("/x",)) -> Layout:
    """An image whose bytes no other test has, so that none comes from an earlier pull."""
    folder.mkdir(exist_ok=True)
    layout = Layout(folder / "image")
    make_image(
        layout, layers=layers, layer_bytes=MIB, seed=str(folder), platform=PLATFORM, rootfs=rootfs, command=command
    )
    return layout


def top(layout: Layout) -> str:
    """The digest of a layout's image."""
    digest: str = json.loads((layout.root / "index.json").read_bytes())["manifests"][0]["digest"]
    return digest


def fetched(node: Daemon, before: Counters) -> int:
    """Bytes the node fetched since ``before``, from anywhere."""
    return sum((node.counters() - before).fetched.values())


def test_docker_pushes_pulls_through_both_nodes_and_runs(cluster: Cluster, engine: Docker, tmp_path: Path) -> None:
    rootfs, command, says = runnable(tmp_path / "rootfs.tar")
    layout = Layout(tmp_path / "image")
    made = make_image(
        layout, layers=3, layer_bytes=MIB, seed=str(tmp_path), platform=PLATFORM, rootfs=rootfs, command=command
    )
    pushing = f"{cluster.tracker.localhost}/acme/hello:1"
    engine.load(layout, made, pushing)
    engine.login(cluster.tracker.localhost, cluster)
    digest = one(r"digest: (sha256:[0-9a-f]{64})", engine("push", pushing))
    for node in cluster.nodes:
        engine.forget()
        before = node.counters()
        name = f"{node.localhost}/acme/hello:1"
        began = time.monotonic()
        assert one(r"Digest: (sha256:[0-9a-f]{64})", engine("pull", name)) == digest
        assert time.monotonic() - began < TLS_WAIT
        assert fetched(node, before) > 3 * MIB
        assert engine("run", "--rm", "--network", "none", name).strip() == says
        node.all_provided()


def test_docker_is_refused_without_the_password(cluster: Cluster, engine: Docker, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=1, layer_bytes=1000, seed=str(tmp_path), platform=PLATFORM)
    name = f"{cluster.tracker.localhost}/acme/refused:1"
    engine.load(layout, made, name)
    with pytest.raises(AssertionError, match="denied: requested access to the resource is denied"):
        engine("push", name)
    pair = base64.b64encode(f"{cluster.username}:{cluster.password}".encode()).decode()
    headers = {"Authorization": f"Basic {pair}"}
    assert cluster.tracker.request("GET", "/v2/acme/refused/manifests/1", headers=headers).status == 404


def test_docker_refuses_to_push_to_a_node_with_our_reason(cluster: Cluster, engine: Docker, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=1, layer_bytes=1000, seed=str(tmp_path), platform=PLATFORM)
    name = f"{cluster.nodes[0].localhost}/acme/wrong:1"
    engine.load(layout, made, name)
    with pytest.raises(AssertionError, match="push to the tracker"):
        engine("push", name)


@pytest.mark.parametrize("program", ["podman", "buildah"])
def test_podman_and_buildah_push_and_pull(
    program: str, cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tool: Containers = request.getfixturevalue(program)
    layout = image(tmp_path)
    taken = tool(program, "pull", "--quiet", f"oci:{layout.root}:latest").split()[-1]
    told = tmp_path / "digest"
    to = f"docker://{cluster.tracker.registry}/acme/{program}:1"
    tool(program, "push", "--quiet", "--tls-verify=false", "--digestfile", str(told), taken, to)
    for node in cluster.nodes:
        tool(program, "rmi", "--all", "--force")
        before = node.counters()
        name = f"{node.registry}/acme/{program}:1"
        tool(program, "pull", "--quiet", "--tls-verify=false", name)
        assert fetched(node, before) > 3 * MIB
        name_field = "{{.Repository}}" if program == "podman" else "{{.Name}}"
        listed = tool(program, "images", "--digests", "--format", name_field + ":{{.Tag}} {{.Digest}}")
        assert [name, told.read_text()] in [line.split() for line in listed.splitlines()]
        node.all_provided()


def test_skopeo_copies_every_architecture_byte_for_byte(cluster: Cluster, skopeo: Containers, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    index = make_index(layout, seed=str(tmp_path))
    skopeo.push(layout, f"{cluster.tracker.registry}/acme/many:1", cluster, "--all")
    for number, node in enumerate(cluster.nodes):
        pulled = Layout(tmp_path / f"pulled{number}")
        skopeo.pull(f"{node.registry}/acme/many:1", pulled.root, "--all")
        assert top(pulled) == index.digest
        for digest in [index.digest, *(part.digest for part in index.parts), *(blob.digest for blob in index.blobs)]:
            assert pulled.read(digest) == layout.read(digest)
        node.all_provided()


def test_skopeo_reads_a_name_with_many_parts(cluster: Cluster, skopeo: Containers, tmp_path: Path) -> None:
    layout = image(tmp_path, layers=1)
    name = "a/blobs/uploads/manifests/tags"
    skopeo.push(layout, f"{cluster.tracker.registry}/{name}:v1.0-rc_2", cluster)
    said = skopeo("skopeo", "inspect", "--tls-verify=false", f"docker://{cluster.nodes[0].registry}/{name}:v1.0-rc_2")
    found = json.loads(said)
    assert found["Digest"] == top(layout)
    assert found["RepoTags"] == ["v1.0-rc_2"]


def test_a_moved_tag_is_seen_through_a_node(cluster: Cluster, skopeo: Containers, tmp_path: Path) -> None:
    old, new = (image(tmp_path / name, layers=1) for name in ("old", "new"))
    node = cluster.nodes[0]

    def seen() -> str:
        return node.request("HEAD", "/v2/acme/moving/manifests/latest").headers["docker-content-digest"]

    skopeo.push(old, f"{cluster.tracker.registry}/acme/moving:latest", cluster)
    assert seen() == top(old)
    skopeo.push(new, f"{cluster.tracker.registry}/acme/moving:latest", cluster)
    # tags.max_age is 2 s; the rest is for a busy machine
    eventually("the node follows the tag", lambda: seen() == top(new), within=6)


def test_ctr_pushes_and_pulls(cluster: Cluster, under: Containerd, tmp_path: Path) -> None:
    layout = image(tmp_path)
    pushing = f"{cluster.tracker.localhost}/acme/ctr"
    under.load(layout, pushing)
    account = f"{cluster.username}:{cluster.password}"
    under.ctr("images", "push", "--plain-http", "--user", account, f"{pushing}:latest")
    for node in cluster.nodes:
        under.forget()
        before = node.counters()
        name = f"{node.registry}/acme/ctr:latest"
        under.ctr("images", "pull", "--plain-http", name)
        assert top(layout) in under.ctr("images", "ls", f"name=={name}")
        assert fetched(node, before) > 3 * MIB
        node.all_provided()


def test_a_node_is_a_mirror_of_the_names_of_its_tracker_only(
    cluster: Cluster, under: Containerd, tmp_path: Path
) -> None:
    layout = image(tmp_path)
    name = f"{cluster.tracker.localhost}/acme/mirrored"
    under.load(layout, name)
    under.ctr("images", "push", "--plain-http", "--user", f"{cluster.username}:{cluster.password}", f"{name}:latest")
    under.forget()
    node = cluster.nodes[0]
    nobody = "http://127.0.0.1:9"  # so that all that comes, comes from the mirror
    hosts = under.hosts(cluster.tracker.localhost, node.facts["url"], nobody)
    before = node.counters()
    under.ctr("images", "pull", "--hosts-dir", str(hosts), f"{name}:latest")
    assert fetched(node, before) > 3 * MIB

    before = node.counters()
    hosts = under.hosts("registry.example.com:5000", node.facts["url"], nobody)
    with pytest.raises(AssertionError):
        under.ctr("images", "pull", "--hosts-dir", str(hosts), "registry.example.com:5000/acme/mirrored:latest")
    assert (node.counters() - before).served["client"] == 0
    answer = node.request("GET", "/v2/acme/mirrored/manifests/latest?ns=docker.io")
    assert (answer.status, error_code(answer.body)) == (404, "NAME_UNKNOWN")


def test_looking_at_a_cold_blob_fetches_nothing(cluster: Cluster, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=2, layer_bytes=2 * MIB, seed=str(tmp_path))
    cluster.push(layout, made, "acme/cold")
    node = cluster.nodes[0]
    before, held = node.counters(), node.status()["blobs"]
    assert node.request("HEAD", "/v2/acme/cold/manifests/1").status == 200
    for blob in made.blobs:
        answer = node.request("HEAD", f"/v2/acme/cold/blobs/{blob.digest}")
        assert answer.status == 200
        assert answer.headers["content-length"] == str(blob.size)
        assert answer.headers["docker-content-digest"] == blob.digest
    assert fetched(node, before) == 0
    assert node.status()["downloads"] == 0
    assert node.status()["blobs"] == held


def test_a_node_takes_no_push(cluster: Cluster) -> None:
    for method, target in (
        ("POST", "/v2/acme/x/blobs/uploads/"),
        ("PUT", "/v2/acme/x/manifests/1"),
        ("PATCH", "/v2/acme/x/blobs/uploads/1"),
        ("DELETE", f"/v2/acme/x/blobs/sha256:{'0' * 64}"),
    ):
        answer = cluster.nodes[0].request(method, target)
        assert answer.status == 405
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
        assert error_code(answer.body) == "UNSUPPORTED"


@pytest.mark.parametrize("which", ["url", "metrics_url"])
def test_a_tls_handshake_on_a_plain_port_is_answered_at_once(which: str, cluster: Cluster) -> None:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for daemon in (cluster.tracker, cluster.nodes[0]):
        where = urlsplit(daemon.facts[which])
        with socket.create_connection((where.hostname, where.port), timeout=2) as connection:
            connection.sendall(hello)
            assert connection.recv(100)[:12] in (b"", b"HTTP/1.1 400")


def test_skopeo_does_not_wait_for_tls(cluster: Cluster, skopeo: Containers, tmp_path: Path) -> None:
    skopeo.push(image(tmp_path, layers=1), f"{cluster.tracker.registry}/acme/quick:1", cluster)
    for daemon in (cluster.tracker, cluster.nodes[0]):
        began = time.monotonic()
        skopeo.pull(f"{daemon.registry}/acme/quick:1", tmp_path / f"pulled-{daemon.port}")
        assert time.monotonic() - began < TLS_WAIT


def error_code(body: bytes) -> str:
    """The first error's code (distribution-spec "Error Codes")."""
    code: str = json.loads(body)["errors"][0]["code"]
    return code


def one(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    assert len(found) == 1, text
    return str(found[0])
