"""``up --demo``: push an image, pull it through two nodes, show where the bytes came from.

The image is new each time, so that a data directory that has seen an earlier demonstration shows the same.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import httpx
import trio

from p2pregistry import admin
from p2pregistry.errors import BadContent, RemoteError, Unreachable
from p2pregistry.screen import Screen
from p2pregistry.testing.images import MANIFEST, MIB, Descriptor, Layout, make_image

REPOSITORY = "demo/hello"
TAG = "latest"
PARALLEL = 3  # blobs at once, as the Docker engine does
CHUNK = 256 * 1024
NEWS = 10.0  # seconds until a node has heard that a tag has moved
PROVIDED = 10.0  # seconds until a node has told others what it has
SOURCES = ("tracker", "peer")
_METRIC = "p2pregistry_fetched_bytes_total"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull moved: bytes by source, and seconds."""

    fetched: Mapping[str, int]
    seconds: float


async def show(tracker: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], screen: Screen) -> None:
    """Run the demonstration on what ``up`` started. Raises RemoteError, BadContent when a digest is wrong."""
    with tempfile.TemporaryDirectory(prefix="p2pregistry-demo-") as folder:
        screen.step("Making an image of 4 layers")
        layout = Layout(Path(folder))
        image = await trio.to_thread.run_sync(lambda: make_image(layout, seed=secrets.token_hex(8)))
        timeout = httpx.Timeout(60)
        # trust_env=False: a proxy of the environment is not for this machine's own ports
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            try:
                screen.step("Pushing it to the tracker")
                start = trio.current_time()
                await push(client, tracker, layout, image)
                seconds = trio.current_time() - start
                size = sum(blob.size for blob in image.blobs)
                screen.note(f"pushed {REPOSITORY}:{TAG} to the tracker: {_mib(size)} MiB in {seconds:.2f} s")
                rows = []
                for i, node in enumerate(nodes[:2]):
                    screen.step(f"Pulling it through node {i + 1}")
                    pulled = await pull(client, node, image)
                    rows.append(_row(f"node {i + 1}", pulled))
                    await _provided(node)
            except httpx.HTTPError as err:
                raise Unreachable(f"the demonstration failed: {type(err).__name__}: {err}") from err
    if rows:
        head = ("pulled through", "MiB from tracker", "MiB from peers", "other", "seconds")
        screen.table("Where the bytes came from (every digest verified)", head, rows)
    _what_next(tracker, nodes, screen)


async def push(
    client: httpx.AsyncClient, tracker: Mapping[str, Any], layout: Layout, image: Descriptor, tag: str = TAG
) -> None:
    """Push as a container client does: each blob by POST and PUT, then the manifest."""
    base = f"{str(tracker['url']).rstrip('/')}/v2/{REPOSITORY}"
    auth = (str(tracker["username"]), str(tracker["password"]))
    for blob in image.blobs:
        answer = await client.post(f"{base}/blobs/uploads/", auth=auth)
        _expect(answer, 202, "start an upload")
        place = urljoin(str(answer.url), answer.headers["location"])
        place += ("&" if "?" in place else "?") + urlencode({"digest": blob.digest})
        headers = {"content-type": "application/octet-stream", "content-length": str(blob.size)}
        answer = await client.put(place, content=_chunks(layout.path(blob.digest)), headers=headers, auth=auth)
        _expect(answer, 201, "upload a blob")
    answer = await client.put(
        f"{base}/manifests/{tag}", content=layout.read(image.digest), headers={"content-type": MANIFEST}, auth=auth
    )
    _expect(answer, 201, "put the manifest")


async def pull(client: httpx.AsyncClient, node: Mapping[str, Any], image: Descriptor) -> Pulled:
    """Pull through a node and verify every digest."""
    base = f"{str(node['url']).rstrip('/')}/v2/{REPOSITORY}"
    before = await fetched_bytes(client, node)
    start = await pushed_manifest(client, base, image.digest)
    limit = trio.CapacityLimiter(PARALLEL)
    async with trio.open_nursery() as nursery:
        for blob in image.blobs:
            nursery.start_soon(_pull_blob, client, f"{base}/blobs/{blob.digest}", blob, limit)
    seconds = trio.current_time() - start
    after = await fetched_bytes(client, node)
    return Pulled({source: after[source] - before.get(source, 0) for source in after}, seconds)


async def pushed_manifest(client: httpx.AsyncClient, base: str, digest: str) -> float:
    """Wait until the node serves what was just pushed; when it was asked for that. A node that knows the tag from an
    earlier demonstration hears a moment later that it has moved."""
    with trio.move_on_after(NEWS):
        while True:
            start = trio.current_time()
            answer = await client.get(f"{base}/manifests/{TAG}", headers={"accept": MANIFEST})
            _expect(answer, 200, "get the manifest")
            if "sha256:" + hashlib.sha256(answer.content).hexdigest() == digest:
                return start
            await trio.sleep(0.02)
    raise BadContent("the demonstration failed: the node served another manifest than was pushed")


async def _provided(node: Mapping[str, Any]) -> None:
    """Wait until others can find what the node has now: a moment, and a person would not be faster."""
    socket = Path(str(node["data_dir"])) / "admin.sock"
    deadline = trio.current_time() + PROVIDED
    while trio.current_time() < deadline:
        status = await trio.to_thread.run_sync(admin.get, socket, "/status")
        if not status["provides_waiting"]:
            return
        await trio.sleep(0.05)


async def _pull_blob(client: httpx.AsyncClient, url: str, blob: Descriptor, limit: trio.CapacityLimiter) -> None:
    hasher = hashlib.sha256()
    async with limit, client.stream("GET", url) as answer:
        _expect(answer, 200, "get a blob")
        async for chunk in answer.aiter_raw():
            hasher.update(chunk)
    if "sha256:" + hasher.hexdigest() != blob.digest:
        raise BadContent(f"the demonstration failed: the bytes of {blob.digest} are wrong")


async def fetched_bytes(client: httpx.AsyncClient, node: Mapping[str, Any]) -> dict[str, int]:
    """Bytes this node has fetched since it started, by source, from its /metrics."""
    answer = await client.get(urljoin(f"{node['metrics_url']}/", "/metrics"))
    _expect(answer, 200, "read the metrics")
    return counters(answer.text, _METRIC, "source")


def counters(text: str, name: str, label: str) -> dict[str, int]:
    """The values of the counter ``name`` by its one label, from Prometheus' text format."""
    found = {}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith(f'{name}{{{label}="'):
            found[series.split('"')[1]] = int(float(value))
    return found


def _expect(answer: httpx.Response, status: int, what: str) -> None:
    if answer.status_code != status:
        request = f"{answer.request.method} {answer.request.url.path}"
        raise RemoteError(f"the demonstration failed: {request} to {what} was answered {answer.status_code}")


def _row(name: str, pulled: Pulled) -> tuple[str, ...]:
    cells = [_mib(pulled.fetched.get(source, 0)) for source in SOURCES]
    other = sum(amount for source, amount in pulled.fetched.items() if source not in SOURCES)
    return (name, *cells, _mib(other), f"{pulled.seconds:.2f}")


def _mib(amount: int) -> str:
    return f"{amount / MIB:.1f}"


def _what_next(tracker: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], screen: Screen) -> None:
    push_to = str(tracker["url"]).partition("://")[2].rstrip("/")
    rows = [("push yours", f"docker push {push_to}/me/app:1   (after docker login, as above)")]
    if nodes:
        port = str(nodes[-1]["url"]).rstrip("/").rpartition(":")[2]
        rows.append(("pull it", f"docker pull localhost:{port}/me/app:1"))
        rows.append(
            ("the image made here", f"skopeo inspect --tls-verify=false docker://localhost:{port}/{REPOSITORY}:{TAG}")
        )
    screen.panel("What to type next", rows)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(CHUNK):
            yield chunk
