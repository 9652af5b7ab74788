"""The feed of a tracker process: through a Postgres that dies, and another epoch while nodes listen."""

from __future__ import annotations

import http.client
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from p2pregistry.feed_messages import EventReader, Interest
from p2pregistry.testing.feed_model import FeedModel
from p2pregistry.testing.postgres import running
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
INTEREST = Interest(frozenset({"acme/api"}), frozenset({"library/*"}))


class Listener:
    """A node's stream over a socket."""

    def __init__(self, process: TrackerProcess, model: FeedModel) -> None:
        self.model = model
        self._reader = EventReader()
        url = urlsplit(process.facts["peer_url"])
        self.connection = http.client.HTTPConnection(url.netloc, timeout=60)
        self.connection.request("POST", "/p2p/v1/changes", model.request().encode())
        self._answer = self.connection.getresponse()
        assert self._answer.status == 200
        assert self._answer.headers["content-type"] == "text/event-stream"

    def until(self, **tags: Image) -> None:
        """Until the tags of acme/api are these."""
        while not self.model.cursor.epoch or {tag: str(digest) for (_, tag), digest in self.model.tags.items()} != {
            tag: str(image.digest) for tag, image in tags.items()
        }:
            data = self._answer.read1(1 << 16)
            assert data, "the stream has ended"
            self.model.apply(self._reader.feed(data))


@contextmanager
def listening(process: TrackerProcess, model: FeedModel) -> Iterator[Listener]:
    listener = Listener(process, model)
    try:
        yield listener
    finally:
        listener.connection.close()


def streams(process: TrackerProcess) -> float:
    with urllib.request.urlopen(f"{process.facts['metrics_url']}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("p2pregistry_feed_streams "))


def image(rng: random.Random) -> Image:
    return Image.of(rng.randbytes(50), [rng.randbytes(1000)])


def push_once_it_is_back(client: Client, repository: str, tag: str, pushed: Image) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            client.push(repository, tag, pushed)
        except AssertionError:  # 503
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
        else:
            return


def test_a_stream_outlives_the_database(tmp_path: Path) -> None:
    rng = random.Random(4)
    first, second, third = (image(rng) for _ in range(3))
    with tracker(tmp_path) as process:
        client, model = Client(process), FeedModel(INTEREST)
        with listening(process, model) as listener:
            client.push("acme/api", "1", first)
            listener.until(**{"1": first})
            assert streams(process) == 1
            pid = Path(process.facts["data_dir"], "postgres", "data", "postmaster.pid")
            os.kill(int(pid.read_text("ascii").split("\n")[0]), signal.SIGKILL)
            push_once_it_is_back(client, "acme/api", "1", second)
            listener.until(**{"1": second})
        client.push("acme/api", "2", third)
        with listening(process, model) as listener:
            listener.until(**{"1": second, "2": third})
        status, _, _ = client.request("DELETE", "/v2/acme/api/manifests/2")
        assert status == 202
        with listening(process, model) as listener:
            listener.until(**{"1": second})


def test_another_epoch_is_told_while_nodes_listen(tmp_path: Path) -> None:
    rng = random.Random(5)
    first, second = image(rng), image(rng)
    server = running(lambda: embedded_postgres(tmp_path / "pg"))
    with server as dsn, tracker(tmp_path / "tracker", {"database.dsn": dsn}) as process:
        client, model = Client(process), FeedModel(INTEREST)
        client.push("acme/api", "1", first)
        with listening(process, model) as listener:
            listener.until(**{"1": first})
            model.tags["acme/api", "lost"] = second.digest  # the backup is from before that
            epoch = model.cursor.epoch
            command = [sys.executable, "-m", "p2pregistry", "tracker", "new-epoch"]
            command += ["--database", dsn, "--data-dir", process.facts["data_dir"]]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert f"epoch {epoch + 1} begins" in done.stderr
            listener.until(**{"1": first})
            assert model.cursor.epoch == epoch + 1
            client.push("acme/api", "1", second)
            listener.until(**{"1": second})
