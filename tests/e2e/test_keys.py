"""Keys while everything runs: a new one takes over unnoticed, and a stolen one is worth nothing within moments."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from p2pregistry.digest import Digest
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.testing import postgres
from p2pregistry.testing.cluster import Daemon, eventually, separate
from p2pregistry.testing.images import Layout, make_image
from p2pregistry.testing.tracker_process import Client, Image, tracker
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from p2pregistry.trust.keys import KeySet, Signer, TrackerKeys, kid_of
from p2pregistry.trust.paserk import SECRET, Wrapping
from p2pregistry.trust.records import RepositoryClaim, Stamp, TagClaim, sign_repository, sign_tag
from tracker.embedded import embedded_postgres

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("keys")]

#: A node that hears of keys at once.
QUICK = {"tracker.poll": "0.2", "tags.max_age": "0.2"}
_OUR_HEADERS = ("content-type", "content-range", "p2p-wait")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    with postgres.running(lambda: embedded_postgres(tmp_path / "postgres")) as dsn:
        yield dsn


def keys(facts: Any, *arguments: str) -> Any:
    """What ``p2pregistry tracker keys`` prints with --json."""
    done = typed(facts, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def typed(facts: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "p2pregistry", "tracker", "keys", *arguments]
    return subprocess.run([*whole, "--json", "--data-dir", facts["data_dir"]], capture_output=True, text=True)


def signing(answer: Any) -> str:
    (kid,) = (key["kid"] for key in answer["keys"] if key["state"] == "signs")
    return str(kid)


def told(facts: Any, target: str) -> Any:
    """A document of the tracker's peer API."""
    connection = http.client.HTTPConnection(urlsplit(facts["peer_url"]).netloc, timeout=20)
    try:
        connection.request("GET", target)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def key_set(facts: Any) -> KeySet:
    found = told(facts, "/p2p/v1/swarm")
    return KeySet.verify(found["key_set"], found["root_key"])


def claim_kid(facts: Any, repository: str, reference: str) -> str | None:
    """Which key signed the claim that nodes are given."""
    answer = told(facts, f"/p2p/v1/repositories/{repository}/manifests/{reference}")
    return kid_of(answer["claims"][0]["claim"])


def status(node: Daemon, repository: str, reference: str = "1") -> int:
    """Of the manifest, from the node."""
    return node.request("GET", f"/v2/{repository}/manifests/{reference}").status


# ------------------------------------------------------------------------------------------------------------ rotation


@pytest.mark.slow
def test_a_new_key_takes_over_while_images_are_pushed_and_pulled(tmp_path: Path) -> None:
    layout, stop = Layout(tmp_path / "image"), threading.Event()
    pushed: list[str] = []
    failures: list[object] = []
    with separate(tmp_path / "swarm", tracker={"keys.overlap": "2"}) as swarm:
        nodes = [swarm.add_node(QUICK) for _ in range(2)]
        facts = swarm.tracker.facts

        def push() -> None:
            number = 0
            while not stop.is_set():
                try:
                    image = make_image(layout, layers=1, layer_bytes=20_000, seed=f"keys {number}")
                    swarm.push(layout, image, f"a/i{number}")
                    pushed.append(f"a/i{number}")
                    for node in nodes:
                        assert status(node, f"a/i{number}") == 200
                        for blob in image.blobs:
                            answer = node.request("GET", f"/v2/a/i{number}/blobs/{blob.digest}")
                            assert answer.status == 200
                except (AssertionError, OSError, http.client.HTTPException) as err:
                    failures.append(err)
                number += 1

        worker = threading.Thread(target=push)
        worker.start()
        try:
            first = signing(keys(facts, "list"))
            eventually("something is pushed", lambda: len(pushed) > 2)
            answer = keys(facts, "rotate")
            assert signing(answer) == first, "nodes have to hear of the new one first"
            assert len(key_set(facts).keys) == 2
            for node in nodes:
                eventually("a node has the new set", lambda at=node: at.status()["key_set"] == answer["version"])
            eventually("the new key signs", lambda: signing(keys(facts, "list")) != first)
            second = signing(keys(facts, "list"))
            before = len(pushed)
            eventually("more is pushed", lambda: len(pushed) > before + 3)
            eventually("old claims are signed anew", lambda: claim_kid(facts, pushed[0], "1") == second)
        finally:
            stop.set()
            worker.join()
        assert failures == []
        answer = keys(facts, "rotate", "--retire")
        assert "credentials" in answer["kept"][first], "it has signed something a moment ago"


def test_after_a_rotation_through_one_of_two_trackers_both_sign_with_the_new_key(tmp_path: Path, database: str) -> None:
    shared = {
        "database.dsn": database,
        "keys.dir": str(tmp_path / "keys"),
        "storage.path": str(tmp_path / "blobs"),
        "keys.overlap": "1",
        "uploads.min_free": "0",
    }
    with tracker(tmp_path / "one", shared) as one, tracker(tmp_path / "two", shared) as two:
        assert key_set(one.facts).keys.keys() == key_set(two.facts).keys.keys()
        first = signing(keys(one.facts, "list"))
        version = keys(one.facts, "rotate")["version"]
        eventually("the other one serves the set", lambda: key_set(two.facts).version == version, within=8)

        def signer() -> str | None:
            Client(two).push("a/b", "1", Image.of(b"{}", [b"layer"]))
            return claim_kid(two.facts, "a/b", "1")

        eventually("the other one signs with the new key", lambda: signer() != first, within=15)
        assert signer() == signing(keys(two.facts, "list"))
        (line,) = audit(one.facts, "keys.rotate")
        assert line["actor"].startswith("operator:")


def audit(facts: Any, action: str) -> Any:
    whole = [sys.executable, "-m", "p2pregistry", "tracker", "audit", "--action", action, "--json"]
    done = subprocess.run([*whole, "--data-dir", facts["data_dir"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["audit"]


# -------------------------------------------------------------------------------------------------- the root elsewhere


def test_a_tracker_without_the_root_key_starts_and_the_root_signs_elsewhere(tmp_path: Path, database: str) -> None:
    sets = {"database.dsn": database, "keys.overlap": "0", "uploads.min_free": "0"}
    folder, safe = tmp_path / "tracker", tmp_path / "safe.key"
    with tracker(folder, sets) as process:
        Client(process).push("a/b", "1", Image.of(b"{}", [b"layer"]))
        first = signing(keys(process.facts, "list"))
    shutil.move(folder / "data" / "keys" / "root.key", safe)
    with tracker(folder, sets) as process:
        facts = process.facts
        refused = typed(facts, "rotate")
        assert refused.returncode != 0
        assert "--root-key" in refused.stderr
        answer = keys(facts, "rotate", "--root-key", str(safe))
        assert answer["root_here"] is False
        assert signing(answer) != first
        foreign = tmp_path / "foreign"
        TrackerKeys.load_or_create(foreign)
        refused = typed(facts, "rotate", "--root-key", str(foreign / "root.key"))
        assert refused.returncode != 0
        assert "not signed by the root key" in refused.stderr
        answer = keys(facts, "revoke", first, "--root-key", str(safe))
        assert first not in key_set(facts).keys
        eventually("claims are signed anew", lambda: claim_kid(facts, "a/b", "1") == signing(answer))
        assert not (folder / "data" / "keys" / "root.key").exists()
    secret = safe.read_text("ascii").strip().removeprefix(SECRET)
    assert secret not in (folder / "log").read_text("utf-8")


# --------------------------------------------------------------------------------------------------------- a stolen key


class Front:
    """Stands between nodes and the tracker, passes everything on, and lies where the thief of a key would."""

    def __init__(self, facts: Any) -> None:
        self.tracker = urlsplit(facts["peer_url"]).netloc
        self.lies: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                lie = outer.lies.get(self.path)
                self.answer(*((200, {"Content-Type": "application/json"}, lie) if lie else outer.ask(self)))

            do_POST = do_HEAD = do_GET

            def answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def ask(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        """What the tracker says."""
        connection = http.client.HTTPConnection(self.tracker, timeout=20)
        try:
            body = request.rfile.read(int(request.headers.get("Content-Length", "0")))
            sent = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            connection.request(request.command, request.path, body, sent)
            answer = connection.getresponse()
            found = {name: value for name, value in answer.getheaders() if name.lower() in _OUR_HEADERS}
            return answer.status, found, answer.read()
        finally:
            connection.close()


@contextmanager
def front(facts: Any) -> Iterator[Front]:
    found = Front(facts)
    worker = threading.Thread(target=found.server.serve_forever, args=(0.05,))
    worker.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        worker.join()
        found.server.server_close()


def stolen_key(database: str, keys_dir: Path, kid: str) -> Signer:
    """As somebody gets it who has both the database and the wrapping key."""
    with psycopg.connect(database) as connection:
        row = connection.execute("select secret from signing_keys where kid = %s", (kid,)).fetchone()
    assert row is not None
    return Signer.of(Wrapping.read((keys_dir / "wrapping.key").read_text("ascii").strip()).unwrap(row[0]))


def forged(signer: Signer, repository: str) -> tuple[str, dict[str, bytes]]:
    """A manifest that was never pushed: its digest, and what a tracker would say of it if it had been."""
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "forged": repository}).encode()
    digest, stamp = Digest.of(body), Stamp(1, 1_000_000)
    document = {
        "digest": str(digest),
        "media_type": OCI_MANIFEST,
        "manifest": base64.b64encode(body).decode("ascii"),
        "claims": [
            {
                "repository": repository,
                "claim": sign_manifest_claim(signer, ManifestClaim(repository, digest, ())),
            }
        ],
        "repository": sign_repository(signer, RepositoryClaim(repository, False, stamp, 1)),
        "tag": sign_tag(signer, TagClaim(repository, "1", digest, stamp, 1)),
    }
    answer = json.dumps(document).encode()
    base = f"/p2p/v1/repositories/{repository}/manifests"
    return str(digest), {f"{base}/1": answer, f"{base}/{digest}": answer}


def test_a_stolen_key_is_worth_nothing_once_it_is_revoked(tmp_path: Path, database: str) -> None:
    layout = Layout(tmp_path / "image")
    image = make_image(layout, layers=1, layer_bytes=20_000, seed="stolen")
    sets = {"database.dsn": database, "uploads.min_free": "0"}
    with separate(tmp_path / "swarm", tracker=sets) as swarm, front(swarm.tracker.facts) as thief:
        facts = swarm.tracker.facts
        quick = {**QUICK, "tracker.url": thief.url}
        node = swarm.add_node(quick)
        swarm.push(layout, image, "good/image")
        assert status(node, "good/image") == 200
        stolen = signing(keys(facts, "list"))
        signer = stolen_key(database, Path(facts["data_dir"]) / "keys", stolen)
        assert signer.kid == stolen
        digest, lies = forged(signer, "evil/early")
        _, more = forged(signer, "evil/late")
        thief.lies = {**lies, **more}
        assert status(node, "evil/early") == 200, "until it is revoked, the key is the tracker's"
        before = told(facts, "/p2p/v1/swarm")

        answer = keys(facts, "revoke", stolen)
        new = signing(answer)
        eventually("the node has the new set", lambda: node.status()["key_set"] == answer["version"], within=10)
        assert status(node, "evil/late") == 503
        eventually("what it vouched for is forgotten", lambda: status(node, "evil/early", digest) == 503, within=10)
        eventually("claims are signed anew", lambda: claim_kid(facts, "good/image", "1") == new)
        eventually("and taken", lambda: status(node, "good/image") == 200, within=10)
        for blob in image.blobs:
            assert node.request("GET", f"/v2/good/image/blobs/{blob.digest}").status == 200

        # the thief now repeats what the tracker said before, also to a node that has just started
        thief.lies["/p2p/v1/swarm"] = json.dumps(before).encode()
        log = tmp_path / "swarm" / "node1" / "log"
        for restarted in (False, True):
            if restarted:
                node = swarm.restart_node(0, quick)
            refused = log.read_text("utf-8").count("lower than")
            eventually("the old set is offered", lambda at=refused: log.read_text("utf-8").count("lower than") > at)
            assert node.status()["key_set"] == answer["version"]
            assert status(node, "evil/late") == 503
            assert status(node, "good/image") == 200
