"""A real tracker tells a real receiver, by what an operator types; and the audit log is read the same way."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.webhooks import SIGNATURE, verify

pytestmark = pytest.mark.e2e
PATIENCE = 60.0
IMAGE = Image.of(b"{}", [b"layer"])


class Receiver:
    """Answers with the statuses in ``answers``, then 204. What came is in ``got``."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[tuple[str, dict[str, str], bytes]] = queue.SimpleQueue()
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.put((self.path, dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/in"

    def next(self) -> tuple[str, dict[str, str], bytes]:
        return self.got.get(timeout=PATIENCE)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        thread.join()
        receiver.server.server_close()


def command(process: TrackerProcess, *arguments: str) -> Any:
    """What ``p2pregistry tracker ... --json`` prints."""
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--json"]
    whole += ["--data-dir", process.facts["data_dir"]]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pushes_and_deletions_are_told_signed_and_can_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of more than sixteen bytes\n")
    secret = b"a secret of more than sixteen bytes"
    settings = {"webhooks.allow_networks": "127.0.0.0/8"}
    with receiving() as receiver, tracker(tmp_path / "tracker", settings) as process:
        hook = command(process, "webhook", "add", receiver.url, "--secret-file", str(tmp_path / "secret"))["id"]
        client = Client(process)
        receiver.answers = [302]  # not followed, tried again
        client.push("acme/api", "1", IMAGE)
        first, second = receiver.next(), receiver.next()
        assert (first[0], second[0]) == ("/in", "/in")
        assert first[2] == second[2]
        _, headers, body = second
        assert headers["Content-Type"] == "application/cloudevents+json"
        assert verify(secret, headers[SIGNATURE], body, time.time())
        event = json.loads(body)
        assert (event["type"], event["subject"]) == ("p2pregistry.push", "acme/api:1")
        assert event["data"]["actor"] == "pusher"
        assert client.request("DELETE", "/v2/acme/api/manifests/1")[0] == 202
        deleted = json.loads(receiver.next()[2])
        assert (deleted["type"], deleted["subject"]) == ("p2pregistry.delete", "acme/api:1")
        assert command(process, "webhook", "replay", str(hook))["replayed"] == 2
        again = {json.loads(receiver.next()[2])["id"] for _ in range(2)}
        assert again == {event["id"], deleted["id"]}
        command(process, "quota", "set", "acme", "1B")
        assert client.request("POST", "/v2/acme/api/blobs/uploads/")[0] == 403
        exceeded = json.loads(receiver.next()[2])
        assert (exceeded["type"], exceeded["data"]["namespace"]) == ("p2pregistry.quota", "acme")
        states = {one["state"] for one in settled(process, hook)}
        assert states == {"delivered"}
        log = command(process, "audit", "--repository", "acme/api", "--action", "manifest")["audit"]
        (line,) = log
        assert (line["action"], line["actor"], line["address"]) == ("manifest.push", "pusher", "127.0.0.1")
        assert command(process, "audit", "--action", "webhook.add")["audit"][0]["actor"].startswith("operator")
        assert "secret of more" not in (tmp_path / "tracker" / "log").read_text()


def settled(process: TrackerProcess, hook: int) -> list[dict[str, Any]]:
    """Deliveries, once the outcome of the last ones is recorded."""
    give_up = time.monotonic() + PATIENCE
    while True:
        found: list[dict[str, Any]] = command(process, "webhook", "deliveries", str(hook))["deliveries"]
        if all(one["state"] != "waiting" for one in found) or time.monotonic() > give_up:
            return found


def test_nothing_is_sent_to_the_inside_unless_it_was_allowed(tmp_path: Path) -> None:
    with receiving() as receiver, tracker(tmp_path / "tracker") as process:
        made = command(process, "webhook", "add", receiver.url.replace("127.0.0.1", "localhost"))
        assert len(made["secret"]) >= 32
        Client(process).push("acme/api", "1", IMAGE)
        give_up = time.monotonic() + PATIENCE
        while True:
            (seen,) = command(process, "webhook", "deliveries", str(made["id"]))["deliveries"] or [{"last_error": None}]
            if seen["last_error"] is not None:
                break
            assert time.monotonic() < give_up
        assert "allow_networks" in seen["last_error"]
        assert receiver.got.empty()
