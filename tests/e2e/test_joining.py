"""Real trackers and nodes: joining a swarm, staying in it, and being put out of it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.joining import Joining
from node.settings import NodeSettings
from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.wire import Client as PeerClient
from p2pregistry.testing import secrets_used
from p2pregistry.testing.issuer import NAME, SUBJECT, issuing
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from p2pregistry.trust.certificate import server_context
from p2pregistry.trust.join_token import JoinToken, format_join_token, parse_join_token

pytestmark = pytest.mark.e2e
IMAGE = Image.of(b"{}", [b"layer" * 300_000])
REAL = {"peer.plain": "false"}
PATIENCE = 30.0


def typed(process: TrackerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--data-dir", process.facts["data_dir"]]
    return subprocess.run(whole, capture_output=True, text=True)


def invite(process: TrackerProcess, folder: Path, *options: str) -> Path:
    """A file with a join token, as an operator makes one."""
    done = typed(process, "node-token", *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.strip() not in done.stderr
    folder.mkdir(exist_ok=True)
    path = folder / "join-token"
    path.touch(0o600)
    path.write_text(secrets_used.used(done.stdout.strip(), "a join token"))
    secrets_used.used(parse_join_token(done.stdout).secret, "the secret of a join token")
    return path


def node(folder: Path, **sets: object) -> Any:
    """A node that is no plain one; it asks the tracker every second what is new."""
    return node_process(folder, **{"peer__plain": "false", "tracker__poll": 1, **sets})


def joined(folder: Path, token: Path, **sets: object) -> Any:
    return node(folder, tracker__join_file=token, **sets)


@contextmanager
def refused(words: str) -> Iterator[None]:
    """Within, a node does not start and says why."""
    with pytest.raises(AssertionError) as caught:
        yield
    assert words in str(caught.value)


def pulled(process: NodeProcess, repository: str = "acme/api") -> bool:
    """Whether the image comes through this node."""
    import http.client

    connection = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", f"/v2/{repository}/manifests/v1")
        answer = connection.getresponse()
        if (answer.status, answer.read()) != (200, IMAGE.manifest):
            return False
        for blob in IMAGE.blobs:
            connection.request("GET", f"/v2/{repository}/blobs/{Digest.of(blob)}")
            answer = connection.getresponse()
            if (answer.status, answer.read()) != (200, blob):
                return False
        return True
    finally:
        connection.close()


def eventually(what: str, check: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_node_joins_pulls_and_starts_again_without_the_token(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", REAL) as process:
        assert process.facts["peer_url"].startswith("https://")
        Client(process).push("acme/api", "v1", IMAGE)
        token = invite(process, tmp_path / "one", "--label", "zone=a")
        secret = parse_join_token(token.read_text()).secret
        with joined(tmp_path / "one", token) as one:
            assert one.peer_url.startswith("https://")
            assert pulled(one)
            peer_id = one.facts["peer_id"]
        token.unlink()
        with node(tmp_path / "one") as one:
            assert one.facts["peer_id"] == peer_id
            assert pulled(one)
        listed = json.loads(typed(process, "node", "list", "--json").stdout)["nodes"]
        assert [(found["peer_id"], found["labels"]) for found in listed] == [(peer_id, {"zone": "a"})]
    with node(tmp_path / "one") as one:
        assert pulled(one), "with the tracker away"
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".mdb":
            assert secret.encode() not in path.read_bytes(), path


def test_a_single_use_token_is_for_one_node_and_an_expired_one_for_none(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", REAL) as process:
        token = invite(process, tmp_path / "one")
        with joined(tmp_path / "one", token):
            pass
        with refused("this join token has been used by another node"), joined(tmp_path / "two", token):
            pass
        expired = invite(process, tmp_path / "three", "--expires", "1ms")
        with refused("this join token has expired"), joined(tmp_path / "three", expired):
            pass
        with refused("this node has not joined a swarm"), node(tmp_path / "four"):
            pass
        stopped = invite(process, tmp_path / "five", "--multi")
        number = json.loads(typed(process, "node-tokens", "list", "--json").stdout)["tokens"][-1]["id"]
        assert typed(process, "node-tokens", "revoke", str(number)).returncode == 0
        with refused("this join token has been revoked"), joined(tmp_path / "five", stopped):
            pass


class Middle:
    """Somebody who answers in the tracker's place, by TLS with a key of his own; ``heard``: all that he was sent."""

    def __init__(self) -> None:
        import socket

        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context: ssl.SSLContext = server_context(Ed25519PrivateKey.generate())
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        self.visits = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            plain.settimeout(PATIENCE)
            try:
                with self._context.wrap_socket(plain, server_side=True) as secure:
                    while data := secure.recv(65536):
                        self.heard += data
            except OSError:
                pass  # the node went away, as it should

    def close(self) -> None:
        import socket

        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_somebody_in_the_middle_is_sent_nothing(tmp_path: Path) -> None:
    middle = Middle()
    with tracker(tmp_path / "tracker", REAL) as process:
        token = invite(process, tmp_path / "one")
        known = parse_join_token(token.read_text())
        token.write_text(format_join_token(JoinToken(middle.url, known.fingerprint, known.root_key, known.secret)))
        with refused("before anything secret was sent"), joined(tmp_path / "one", token):
            pass
    middle.close()
    assert middle.visits == 1
    assert middle.heard == b""


def start(folder: Path, how: str, path: Path) -> None:
    """Start a node that is given its token in this way, and stop it."""
    word = path.read_text().strip()
    given = {"argument": ["--join", word], "file": ["--join", f"@{path}"], "input": ["--join", "-"]}.get(how, [])
    sets = ["pull.port=0", "peer.port=0", "peer.host=127.0.0.1", "libp2p.port=0", "metrics.port=0"]
    command = [sys.executable, "-m", "p2pregistry", "node", "run", "--json", "--data-dir", str(folder)]
    command += [*given, *(part for text in sets for part in ("--set", text))]
    env = os.environ | ({"P2PREGISTRY_JOIN_TOKEN": word} if how == "environment" else {})
    with subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(word + "\n" if how == "input" else "")
            running.stdin.close()
            assert json.loads(running.stdout.readline())["peer_id"]
            running.terminate()
            assert running.wait(PATIENCE) == 0
        finally:
            running.kill()


def test_a_token_is_given_in_any_way(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", REAL) as process:
        path = invite(process, tmp_path / "tokens", "--uses", "4")
        for how in ("argument", "file", "input", "environment"):
            start(tmp_path / how, how, path)
        assert len(json.loads(typed(process, "node", "list", "--json").stdout)["nodes"]) == 4


class Machine:
    """A member of the swarm in this very process."""

    def __init__(self, token: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.peer_id = base58(peer_id_of(self.key))
        self._values: dict[str, bytes] = {}
        self._token = token
        self.credential = ""

    def get_meta(self, key: str) -> bytes | None:
        return self._values.get(key)

    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None:
        self._values[key] = value

    async def join(self) -> None:
        joining = Joining(NodeSettings(), self, self.key, self._token.read_text())
        self.credential = (await joining.join()).token

    async def gets(self, url: str, peer_id: str, target: str) -> bool:
        """Whether the server with this peer id gives it this."""
        client = PeerClient(url, peer_id=peer_id, speaker=Speaker(self.key, lambda: self.credential))
        try:
            await client.get(target, limit=1 << 24)
        except RegistryError:
            return False
        finally:
            client.close()
        return True


def test_a_revoked_node_is_refused_by_the_tracker_and_within_a_moment_by_others(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", REAL) as process:
        Client(process).push("acme/api", "v1", IMAGE)
        tracker_id, tracker_url = process.facts["peer_id"], process.facts["peer_url"]
        with joined(tmp_path / "one", invite(process, tmp_path / "one")) as one:
            assert pulled(one)
            machine = Machine(invite(process, tmp_path / "machine"))
            target = f"/p2p/v1/blobs/{Digest.of(IMAGE.blobs[1])}"

            async def story() -> None:
                await machine.join()
                assert await machine.gets(tracker_url, tracker_id, target)
                assert await machine.gets(one.peer_url, one.facts["peer_id"], target)
                await trio.to_thread.run_sync(revoke)
                with trio.fail_after(3.0):  # a tracker looks every two seconds
                    while await machine.gets(tracker_url, tracker_id, target):
                        await trio.sleep(0.05)
                with trio.fail_after(10.0):  # this node asks every second
                    while await machine.gets(one.peer_url, one.facts["peer_id"], target):
                        await trio.sleep(0.05)

            def revoke() -> None:
                assert typed(process, "node", "revoke", machine.peer_id).returncode == 0

            trio.run(story)
            assert pulled(one)
        shown = json.loads(typed(process, "node", "show", machine.peer_id, "--json").stdout)
        assert shown["revoked_at"] is not None
        assert typed(process, "node", "restore", machine.peer_id).returncode == 0
        assert typed(process, "node", "restore", machine.peer_id).returncode == 1
        actions = {line["action"] for line in json.loads(typed(process, "audit", "--json").stdout)["audit"]}
        assert {"node-token.add", "node.enrol", "node.revoke", "node.restore"} <= actions


def test_a_stranger_gets_nothing_without_a_session(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker", REAL) as process:
        Client(process).push("acme/api", "v1", IMAGE)
        target = f"/p2p/v1/blobs/{Digest.of(IMAGE.blobs[1])}"

        async def asks() -> None:
            client = PeerClient(process.facts["peer_url"], peer_id=process.facts["peer_id"])
            async with client.request("GET", target) as answer:
                assert answer.status == 401
                assert answer.headers["p2p-session"] == "required"
            client.close()

        trio.run(asks)


def test_what_the_operator_gives_a_node_is_in_its_credential_soon(tmp_path: Path) -> None:
    with (
        tracker(tmp_path / "tracker", REAL) as process,
        joined(tmp_path / "one", invite(process, tmp_path / "one")) as one,
    ):
        before = json.loads(typed(process, "node", "show", one.facts["peer_id"], "--json").stdout)
        done = typed(process, "node", "set", one.facts["peer_id"], "--pull", "acme/**")
        assert done.returncode == 0, done.stderr

        def renewed() -> bool:
            now = json.loads(typed(process, "node", "show", one.facts["peer_id"], "--json").stdout)
            return bool(now["renewed_at"] > before["renewed_at"] and now["pulls"] == ["acme/**"])

        eventually("it has not renewed", renewed)


def status(process: NodeProcess, target: str) -> int:
    import http.client

    connection = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", target)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_private_image_comes_through_nodes_that_may_pull_it_and_no_others(tmp_path: Path) -> None:
    with (
        tracker(tmp_path / "tracker", {**REAL, "auth.new_repositories": "private"}) as process,
        joined(tmp_path / "inside", invite(process, tmp_path / "inside", "--pull", "acme/**")) as inside,
        joined(tmp_path / "outside", invite(process, tmp_path / "outside")) as outside,
    ):
        Client(process).push("acme/api", "v1", IMAGE)
        assert pulled(inside)
        manifest, blob = Digest.of(IMAGE.manifest), Digest.of(IMAGE.blobs[-1])
        targets = ("manifests/v1", f"manifests/{manifest}", f"blobs/{blob}", "tags/list", "manifests/v1?ns=localhost")
        for target in targets:
            assert status(outside, f"/v2/acme/api/{target}") == status(outside, f"/v2/acme/none/{target}") == 404
        done = typed(process, "node", "set", outside.facts["peer_id"], "--pull", "acme/**")
        assert done.returncode == 0, done.stderr
        eventually("the grant does not reach the node", lambda: pulled(outside))
    with node(tmp_path / "inside") as inside:
        assert pulled(inside), "with the tracker away: its credential says so"


def test_a_node_joins_by_who_kubernetes_says_it_is(tmp_path: Path) -> None:
    with issuing(tmp_path) as issuer:
        settings = REAL | {
            "oidc.issuer": NAME,
            "oidc.jwks_url": issuer.url,
            "oidc.ca_file": str(tmp_path / "issuer.pem"),
            "oidc.subjects": SUBJECT,
            "oidc.labels": "zone=k8s",
        }
        with tracker(tmp_path / "tracker", settings) as process:
            told = json.loads(typed(process, "node", "settings", "--json").stdout)
            stated = {f"tracker__{key}": told[key] for key in ("url", "peer_id", "root_key")}
            path = tmp_path / "projected"
            path.write_text(issuer.token(time.time(), sub="system:serviceaccount:default:other"))
            why = refused("lets no node in as system:serviceaccount:default:other")
            with why, node(tmp_path / "one", tracker__id_token_file=path, **stated):
                pass
            path.write_text(secrets_used.used(issuer.token(time.time()), "an identity token"))
            with node(tmp_path / "one", tracker__id_token_file=path, **stated) as one:
                shown = json.loads(typed(process, "node", "show", one.facts["peer_id"], "--json").stdout)
                assert (shown["joined_by"], shown["labels"]) == (SUBJECT, {"zone": "k8s"})
