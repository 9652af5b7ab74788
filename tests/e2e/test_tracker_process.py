"""The tracker as a process: its Postgres may die under it, and a signal lets uploads finish."""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from pathlib import Path

import pytest

from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
PATIENCE = 30.0
IMAGE = Image.of(b"{}", [random.Random(1).randbytes(1_500_000), b""])


def postgres_of(process: TrackerProcess) -> int:
    """Its postmaster's process id; 0 between two of them."""
    pid = Path(process.facts["data_dir"], "postgres", "data", "postmaster.pid")
    try:
        return int(pid.read_text("ascii").split("\n")[0])
    except (FileNotFoundError, ValueError):
        return 0


def get(url: str, path: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_heals_when_its_postgres_is_killed(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "1", IMAGE)
        assert get(process.facts["metrics_url"], "/readyz") == 200
        killed = postgres_of(process)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        seen: set[int] = set()
        while time.monotonic() < deadline:
            status, headers, body = client.request("GET", "/v2/acme/api/manifests/1")
            seen.add(status)
            # until they notice, connections of the one that was killed go on answering
            if status == 200 and postgres_of(process) != killed and get(process.facts["metrics_url"], "/readyz") == 200:
                break
            if status == 200:
                continue
            assert status == 503, body
            assert headers["content-type"] == "application/json"
        assert body == IMAGE.manifest
        assert seen <= {200, 503}
        client.push("acme/api", "2", IMAGE)
        assert client.tag_there("acme/api", "2", IMAGE)
        while get(process.facts["metrics_url"], "/readyz") != 200:
            assert time.monotonic() < deadline
        assert get(process.facts["metrics_url"], "/livez") == 200


def test_what_was_pushed_is_there_after_a_restart(tmp_path: Path) -> None:
    keys = []
    for number in range(2):
        with tracker(tmp_path / "tracker") as process:
            keys.append((process.facts["root_key"], process.facts["libp2p"][0].rpartition("/")[2]))
            if number == 0:
                Client(process).push("acme/api", "1", IMAGE)
            assert Client(process).tag_there("acme/api", "1", IMAGE)
    assert keys[0] == keys[1]


def test_an_upload_under_way_is_finished_before_it_stops(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        told = False

        def sent(_: int) -> None:
            nonlocal told
            if not told:
                told = True
                process.process.send_signal(signal.SIGTERM)

        client = Client(process)
        _, headers, _ = client.request("POST", "/v2/acme/api/blobs/uploads/")
        status, headers, body = Client(process, sent).request("PATCH", headers["location"], IMAGE.blobs[1])
        assert (status, headers["range"]) == (202, f"0-{len(IMAGE.blobs[1]) - 1}"), body
        assert process.process.wait(PATIENCE) == 0
