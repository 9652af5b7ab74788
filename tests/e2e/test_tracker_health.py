"""What a load balancer and a person see of a tracker: readiness by part, figures, the access log, request ids."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
PATIENCE = 30.0


def get(process: TrackerProcess, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(process.facts["metrics_url"].removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def until(process: TrackerProcess, status: int, words: str = "") -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        found, text = get(process, "/readyz")
        if found == status and words in text:
            return text
        assert time.monotonic() < deadline, text


def test_readiness_says_which_part_fails(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        text = until(process, 200, "bytes are free")
        assert "database: ok\nstore: ok\ndisk: " in text
        blobs = Path(process.facts["data_dir"]) / "blobs"
        shutil.move(blobs / "uploads", tmp_path / "away")
        text = until(process, 503)
        assert "not ready: the store does not answer" in text
        assert "database: ok" in text
        assert get(process, "/livez") == (200, "ok\n")
        shutil.move(tmp_path / "away", blobs / "uploads")
        until(process, 200)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the children of Postgres from /proc")
def test_a_tracker_whose_database_is_away_is_not_ready_and_heals(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        until(process, 200)
        data = Path(process.facts["data_dir"], "postgres", "data")
        postmaster = int((data / "postmaster.pid").read_text("ascii").split("\n")[0])
        os.kill(postmaster, signal.SIGSTOP)  # nobody is let in any more
        for backend in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text("ascii").split():
            os.kill(int(backend), signal.SIGKILL)
        text = until(process, 503)
        assert "not ready: the database does not answer" in text
        assert get(process, "/livez") == (200, "ok\n")
        os.kill(postmaster, signal.SIGCONT)
        until(process, 200)


def test_a_nearly_full_disk_refuses_pushes_and_serves_on(tmp_path: Path) -> None:
    image = Image.of(b"{}", [b"layer"])
    with tracker(tmp_path / "tracker") as process:
        Client(process).push("acme/api", "1", image)
    with tracker(tmp_path / "tracker", {"uploads.min_free": "500TiB"}) as process:
        until(process, 200, "pushes are refused")
        client = Client(process)
        status, headers, body = client.request("POST", "/v2/acme/api/blobs/uploads/")
        assert (status, json.loads(body)["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
        assert "retry-after" in headers
        assert client.tag_there("acme/api", "1", image)


def test_requests_are_logged_with_their_ids_and_without_secrets(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", {"tracker.trusted_proxies": "127.0.0.0/8"}) as process:
        client = Client(process)
        client.push("acme/api", "1", Image.of(b"{}", [b"layer"]))
        _, headers, _ = client.request(
            "GET", "/v2/acme/api/manifests/1", X_Forwarded_For="198.51.100.7", X_Request_Id="from-the-proxy"
        )
        assert headers["x-request-id"] == "from-the-proxy"
        metrics = get(process, "/metrics")[1]
        for name in (
            'listener="registry",route="manifests",status="2xx"',
            "p2pregistry_store_free_bytes",
            'state="used"',
        ):
            assert name in metrics
    log = (tmp_path / "tracker" / "log").read_text("utf-8")
    lines = [json.loads(line) for line in log.splitlines() if '"request"' in line]
    (asked,) = (line for line in lines if line.get("id") == "from-the-proxy")
    assert (asked["client"], asked["account"], asked["status"]) == ("198.51.100.7", "pusher", 200)
    assert "Basic" not in log
    assert "c2VjcmV0" not in log
