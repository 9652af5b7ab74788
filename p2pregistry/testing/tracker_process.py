"""A tracker as a process of its own, and a client that pushes to it: for tests that kill one of them."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pregistry.admin import send
from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing import secrets_used
from p2pregistry.trust.join_token import parse_join_token

_USER = "pusher"
_PASSWORD = secrets_used.used("the-password-of-pusher", "the pusher's password", user=_USER)
AUTHORIZATION = "Basic " + base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
#: Seconds; only a test that fails takes as long.
_PATIENCE = 60


@dataclass
class TrackerProcess:
    """A running tracker; ``facts`` is what it said when it was ready."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def invite(self, path: Path, uses: int | None = None) -> Path:
        """Write a join token for so many nodes, None: any number, to a file for its owner only."""
        asked = {"uses": uses, "lasts": 3600.0}
        token = send(Path(self.facts["data_dir"]) / "admin.sock", "POST", "/node-tokens", asked)["token"]
        path.touch(0o600)
        path.write_text(secrets_used.used(token, "a join token") + "\n", encoding="ascii")
        secrets_used.used(parse_join_token(token).secret, "the secret of a join token")
        return path

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the registry API."""
        return http.client.HTTPConnection(self.facts["url"].removeprefix("http://"), timeout=_PATIENCE)


@contextmanager
def tracker(
    folder: Path, settings: Mapping[str, str] | None = None, *, administrator: bool = True
) -> Iterator[TrackerProcess]:
    """Run a tracker with its data in ``folder`` on free ports until the end of the block, or until it is killed.
    ``settings`` are others than usual, by ``section.key``; without ``administrator`` they name none.

    Whether it stops cleanly is checked: SIGTERM must end it with status 0, unless the test has killed it.
    """
    folder.mkdir(exist_ok=True)
    (folder / "password").write_text(_PASSWORD, encoding="utf-8")
    sets = {
        "registry.port": "0",
        "peer.port": "0",
        "peer.plain": "true",
        "libp2p.port": "0",
        "metrics.port": "0",
        **({"auth.username": _USER, "auth.password_file": str(folder / "password")} if administrator else {}),
        "auth.new_repositories": "public",
        **(settings or {}),
    }
    command = [sys.executable, "-m", "p2pregistry", "tracker", "run", "--json", "--data-dir", str(folder / "data")]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)  # noqa: S603 - ours
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the tracker did not start:\n{(folder / 'log').read_text('utf-8')[-3000:]}")
        secrets_used.used_in_url(sets.get("database.dsn", ""), "the database's password")
        secrets_used.check_arguments(process.pid)
        yield TrackerProcess(process, json.loads(line))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_PATIENCE) == 0
        secrets_used.check(folder)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass(frozen=True)
class Image:
    """Blobs, the first of them the config, and the manifest over them."""

    blobs: tuple[bytes, ...]
    manifest: bytes

    @classmethod
    def of(cls, config: bytes, layers: Sequence[bytes]) -> Image:
        """An image manifest over these."""

        def descriptor(kind: str, data: bytes) -> dict[str, object]:
            media_type = f"application/vnd.oci.image.{kind}"
            return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("config.v1+json", config),
            "layers": [descriptor("layer.v1.tar", layer) for layer in layers],
        }
        return cls((config, *layers), json.dumps(document).encode())

    @property
    def digest(self) -> Digest:
        """Of the manifest."""
        return Digest.of(self.manifest)

    @property
    def size(self) -> int:
        """Bytes that a push sends."""
        return sum(map(len, self.blobs)) + len(self.manifest)


class Client:
    """Pushes as docker does, and looks at what is there. ``sent`` is told each number of bytes before they go out."""

    def __init__(self, tracker: TrackerProcess, sent: Callable[[int], None] = lambda _: None) -> None:
        self._tracker = tracker
        self._sent = sent

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; a body goes out in chunks."""
        connection = self._tracker.connect()
        sent = {"Authorization": AUTHORIZATION, **{name.replace("_", "-"): value for name, value in headers.items()}}
        try:
            if body:
                sent["Transfer-Encoding"] = "chunked"
                connection.request(method, target, self._pieces(body), sent, encode_chunked=True)
            else:
                connection.request(method, target, headers=sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        for at in range(0, len(body), 64 << 10):
            piece = body[at : at + (64 << 10)]
            self._sent(len(piece))
            yield piece

    def push(self, repository: str, tag: str, image: Image) -> None:
        """Raises OSError or http.client.HTTPException if the tracker dies, AssertionError if it refuses."""
        for blob in image.blobs:
            status, headers, body = self.request("POST", f"/v2/{repository}/blobs/uploads/")
            assert status == 202, body
            status, headers, body = self.request("PATCH", headers["location"], blob)
            assert status == 202, body
            status, headers, body = self.request("PUT", f"{headers['location']}?digest={Digest.of(blob)}")
            assert status == 201, body
        target = f"/v2/{repository}/manifests/{tag}"
        status, _, body = self.request("PUT", target, image.manifest, Content_Type=OCI_MANIFEST)
        assert status == 201, body

    def blobs_there(self, repository: str, image: Image) -> list[bool]:
        """Which blobs are there; what is there must be whole and right."""
        found = []
        for blob in image.blobs:
            status, _, body = self.request("GET", f"/v2/{repository}/blobs/{Digest.of(blob)}")
            assert status in (200, 404), body
            assert status == 404 or body == blob
            found.append(status == 200)
        return found

    def tag_there(self, repository: str, tag: str, image: Image) -> bool:
        """Whether the tag is there; it must then be this image's, and every blob of it there."""
        status, _, body = self.request("GET", f"/v2/{repository}/manifests/{tag}")
        assert status in (200, 404), body
        if status == 404:
            return False
        assert body == image.manifest
        assert all(self.blobs_there(repository, image))
        return True
