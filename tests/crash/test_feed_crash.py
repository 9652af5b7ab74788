"""kill -9 of a node that follows changes: it loses nothing, and nothing that was over comes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing.cluster import eventually
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.tracker_process import Client, Image, tracker

ROUNDS = 8
REPO = "crash/tags"
TAGS = ("a", "b", "c")
#: A digest that stands for "there is no such tag".
GONE = ""


class Mover:
    """Moves and deletes tags without pause. ``order`` has every state that each tag has been in, oldest first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        image = Image.of(b"{}", [b"layer"])
        client.push(REPO, "base", image)
        self._document = json.loads(image.manifest)
        self.order: dict[str, list[str]] = {tag: [GONE] for tag in TAGS}
        self._number = 0
        self._stop = threading.Event()

    def move(self, tag: str) -> None:
        self._number += 1
        if self._number % 7 == 0 and self.order[tag][-1] != GONE:
            self.order[tag].append(f"{GONE}")
            status, _, body = self._client.request("DELETE", f"/v2/{REPO}/manifests/{tag}")
            assert status == 202, body
            return
        manifest = json.dumps(self._document | {"annotations": {"number": str(self._number)}}).encode()
        self.order[tag].append(str(Digest.of(manifest)))
        status, _, body = self._client.request(
            "PUT", f"/v2/{REPO}/manifests/{tag}", manifest, Content_Type=OCI_MANIFEST
        )
        assert status == 201, body

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Until the end of the block."""
        self._stop.clear()

        def run() -> None:
            while not self._stop.is_set():
                self.move(random.choice(TAGS))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


class Watcher:
    """What a client of the node sees, across its crashes: each tag goes forward only."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self._at = dict.fromkeys(TAGS, 0)
        self.seen = 0

    def look(self, node: NodeProcess) -> None:
        """Raises OSError or http.client.HTTPException once the node is dead."""
        for tag in TAGS:
            digest = served(node, tag)
            states = self._mover.order[tag]
            at = next((place for place in range(self._at[tag], len(states)) if states[place] == digest), None)
            assert at is not None, f"{tag} went back to {digest or 'nothing'}"
            self.seen += at > self._at[tag]
            self._at[tag] = at


def served(node: NodeProcess, tag: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(node.url).netloc, timeout=30)
    try:
        connection.request("HEAD", f"/v2/{REPO}/manifests/{tag}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 404)
        return answer.headers["Docker-Content-Digest"] if answer.status == 200 else GONE
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.e2e
def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        mover = Mover(Client(process))
        watcher = Watcher(mover)
        for number in range(ROUNDS + 1):
            # what is in the index would be served for an hour: it must be right
            with node_process(tmp_path / "node", str(process.facts["peer_url"]), tags__max_age=3600.0) as node:
                with mover.moving():
                    eventually("the node follows", lambda node=node: node.status()["feed_connected"])
                    until = time.monotonic() + random.uniform(0.2, 1.5)
                    killer = threading.Timer(until - time.monotonic(), node.kill)
                    if number < ROUNDS:
                        killer.start()
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        while number < ROUNDS or time.monotonic() < until:
                            watcher.look(node)
                    if number < ROUNDS:
                        killer.join()
                if number == ROUNDS:
                    for tag in TAGS:
                        eventually(
                            "the node has the last state", lambda tag=tag: served(node, tag) == mover.order[tag][-1]
                        )
    assert watcher.seen > ROUNDS
