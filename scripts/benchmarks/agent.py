"""What runs inside a network namespace: it holds the namespace, and is the client that pulls there.

Commands are lines of JSON on standard input, answered in order by one line each; at end of input it exits, and a
namespace that nothing runs in any more is gone. Only the standard library is imported: there is one such process for
each machine, and what it takes of the processor is taken from what is measured.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CHUNK = 256 * 1024
TIMEOUT = 1800  # seconds without a byte; a run that stands still is for whoever watches it
Answer = dict[str, Any]


def pull(base: str, repository: str, tag: str, parallel: int, at: float) -> Answer:
    """Pull an image as container engines do: the manifest by tag, then its blobs, ``parallel`` at a time, each on a
    connection of its own, with its digest taken as it comes. Starts at the monotonic time ``at``.

    Answers seconds: in all, of the manifest, and to the first byte of a layer; and bytes. Raises ValueError where a
    digest is wrong.
    """
    time.sleep(max(0.0, at - time.monotonic()))
    start = time.monotonic()
    body = _get(f"{base}/v2/{repository}/manifests/{tag}", {"Accept": MANIFEST})
    manifest = json.loads(body)
    known = time.monotonic()
    firsts: list[float] = []

    def one(descriptor: Answer) -> int:
        first, size = _blob(f"{base}/v2/{repository}/blobs/{descriptor['digest']}", str(descriptor["digest"]))
        if descriptor is not manifest["config"]:
            firsts.append(first)
        return size

    with ThreadPoolExecutor(parallel) as pool:
        sizes = list(pool.map(one, [manifest["config"], *manifest["layers"]]))
    return {
        "seconds": time.monotonic() - start,
        "manifest": known - start,
        "first_byte": min(firsts) - start,
        "late": start - at if at else 0.0,
        "bytes": sum(sizes),
    }


def _blob(url: str, digest: str) -> tuple[float, int]:
    """Read a blob to its end; the monotonic time of its first byte, and its size."""
    connection, path = _connect(url)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"GET {url}: {answer.status} {answer.read(500)!r}")
        first, size, hasher = 0.0, 0, hashlib.sha256()
        while chunk := answer.read1(CHUNK):
            first = first or time.monotonic()
            size += len(chunk)
            hasher.update(chunk)
    finally:
        connection.close()
    if digest != f"sha256:{hasher.hexdigest()}":
        raise ValueError(f"GET {url}: {size} bytes with another digest")
    return first, size


def _get(url: str, headers: dict[str, str]) -> bytes:
    connection, path = _connect(url)
    try:
        connection.request("GET", path, headers=headers | {"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"GET {url}: {answer.status} {body[:500]!r}")
    return body


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=TIMEOUT), parts.path


def drain(url: str, blobs: dict[str, int], connections: int, seconds: float, chunk: int) -> Answer:
    """What many peers do at once: each connection asks for ranges of ``chunk`` bytes of the blobs (digest: size), one
    after the other and from the start again, and reads what comes. Answers how often which status came, and bytes.
    """
    statuses: dict[str, int] = {}
    got = 0
    lock = threading.Lock()
    until = time.monotonic() + seconds
    ranges = [(digest, start) for digest, size in blobs.items() for start in range(0, size, chunk)]

    def one(number: int) -> None:
        nonlocal got
        at = number * len(ranges) // connections
        connection, _ = _connect(url)
        buffer = memoryview(bytearray(CHUNK))
        try:
            while time.monotonic() < until:
                digest, start = ranges[at % len(ranges)]
                at += 1
                asked = {"Range": f"bytes={start}-{start + chunk - 1}"}
                connection.request("GET", f"/p2p/v1/blobs/{digest}", headers=asked)
                answer, count = connection.getresponse(), 0
                while more := answer.readinto(buffer):
                    count += more
                with lock:
                    statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
                    got += count
        finally:
            connection.close()

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(one, range(connections)))
    return {"statuses": statuses, "bytes": got}


def push(layout: str, tag: str, url: str, username: str, password: str) -> Answer:
    """Push the image of an image layout."""
    import httpx  # only where something is pushed
    import trio

    from p2pregistry import demo
    from p2pregistry.testing.images import Descriptor, Layout

    found = Layout(Path(layout))
    top = json.loads((found.root / "index.json").read_text())["manifests"][0]
    manifest = json.loads(found.read(top["digest"]))
    parts = [Descriptor(part["mediaType"], part["digest"], part["size"]) for part in _parts(manifest)]
    image = Descriptor(top["mediaType"], top["digest"], top["size"], tuple(parts))

    async def run() -> None:
        async with httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT), trust_env=False) as client:
            await demo.push(client, {"url": url, "username": username, "password": password}, found, image, tag)

    trio.run(run)
    return {"bytes": sum(part.size for part in parts)}


def _parts(manifest: Answer) -> list[Answer]:
    return [manifest["config"], *manifest["layers"]]


def metrics(url: str) -> Answer:
    """The text of a page of metrics."""
    return {"text": _get(f"{url}/metrics", {}).decode()}


def source(size: int) -> Answer:
    """Send ``size`` bytes to the first who connects; the port to connect to."""
    listener = socket.create_server(("0.0.0.0", 0))

    def send() -> None:
        with listener, listener.accept()[0] as stream:
            block = bytes(CHUNK)
            for start in range(0, size, CHUNK):
                stream.sendall(block[: size - start])

    threading.Thread(target=send, daemon=True).start()
    return {"port": listener.getsockname()[1]}


def sink(host: str, port: int, size: int) -> Answer:
    """Take ``size`` bytes; bytes a second, of all but the first fifth: a bucket may be full when it begins."""
    buffer = bytearray(CHUNK)
    got, begun = 0, (0, 0.0)
    with socket.create_connection((host, port), timeout=60) as stream:
        while got < size and (count := stream.recv_into(buffer)):
            got += count
            if not begun[0] and got >= size // 5:
                begun = (got, time.monotonic())
    return {"rate": (got - begun[0]) / (time.monotonic() - begun[1])}


COMMANDS: dict[str, Callable[..., Answer]] = {
    "pull": pull,
    "push": push,
    "drain": drain,
    "metrics": metrics,
    "source": source,
    "sink": sink,
    "hello": dict,
}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = COMMANDS[asked.pop("do")](**asked)
        except Exception as err:  # noqa: BLE001 - whoever asked decides what it means
            answer = {"error": f"{type(err).__name__}: {err}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
