"""Two tracker processes on one database: it does not matter which of them a node asks."""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pregistry.digest import Digest
from p2pregistry.messages import Announce, Announced, Crowd, read_announced
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.announces_check import names, node, peer

pytestmark = pytest.mark.e2e
PATIENCE = 30.0
LAYER = random.Random(5).randbytes(100_000)
IMAGE = Image.of(b"{}", [LAYER])
DIGEST = Digest.of(LAYER)


def request(url: str, method: str, target: str, body: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()
    finally:
        connection.close()


def announce(process: TrackerProcess, said: Announce) -> Announced:
    answer = request(process.facts["peer_url"], "POST", "/p2p/v1/announce", said.encode())
    return read_announced(answer, len(said.want))


def test_what_one_is_told_the_other_knows(tmp_path: Path, database: str) -> None:
    settings = {"database.dsn": database, "keys.dir": str(tmp_path / "keys")}
    with tracker(tmp_path / "one", settings) as one, tracker(tmp_path / "two", settings) as two:
        Client(one).push("acme/api", "1", IMAGE)
        announce(one, node(1, (), (DIGEST,), zone="here"))
        found = announce(two, node(2, (DIGEST,)))
        assert [(seen.peer_id, seen.zone, seen.hold) for seen in found.peers] == [(peer(1), "here", [0])]
        assert names(announce(one, node(3, (DIGEST,)))) == {peer(1), peer(2)}
        announce(two, node(1, leaving=True))
        assert names(announce(one, node(3, (DIGEST,)))) == {peer(2)}
        metrics = request(two.facts["metrics_url"], "GET", "/metrics").decode()
        assert "p2pregistry_announces_total 2.0" in metrics
        assert "p2pregistry_nodes_known 2.0" in metrics


def test_a_crowd_that_comes_at_once_finds_itself_across_processes(tmp_path: Path, database: str) -> None:
    settings = {"database.dsn": database, "keys.dir": str(tmp_path / "keys")}
    with tracker(tmp_path / "one", settings) as one, tracker(tmp_path / "two", settings) as two:
        Client(one).push("acme/api", "1", IMAGE)

        def come(number: int) -> Announced:
            return announce((one, two)[number % 2], node(number, (DIGEST,)))

        with ThreadPoolExecutor(16) as crowd:
            list(crowd.map(come, range(16)))
            answers = list(crowd.map(come, range(16)))
        for number, answer in enumerate(answers):
            assert names(answer) == {peer(other) for other in range(16)} - {peer(number)}
            assert answer.crowd == [Crowd(15, 0)]


def test_nodes_find_each_other_while_postgres_restarts(tmp_path: Path) -> None:
    with tracker(tmp_path / "one") as process:
        Client(process).push("acme/api", "1", IMAGE)
        announce(process, node(1, (), (DIGEST,)))
        assert names(announce(process, node(2, (DIGEST,)))) == {peer(1)}
        pid = Path(process.facts["data_dir"], "postgres", "data", "postmaster.pid")
        os.kill(int(pid.read_text("ascii").split("\n")[0]), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert peer(1) in names(announce(process, node(2, (DIGEST,))))
            if Client(process).request("GET", "/v2/acme/api/manifests/1")[0] == 200:
                return
        raise AssertionError("Postgres did not come back")
