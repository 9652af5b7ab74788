"""Real clients log in to a real tracker and work with private repositories: with a password, with what ``docker login``
keeps in its place, with robots' tokens; and what becomes of it when any of these is wrong, has expired or was revoked.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import trio

from p2pregistry.testing.clients import Containerd, Containers, Docker, architecture, containerd, containers, docker
from p2pregistry.testing.images import MIB, Layout, make_image
from p2pregistry.testing.postgres import fresh_database, running
from p2pregistry.testing.secrets_used import used
from p2pregistry.testing.tracker_process import TrackerProcess, tracker
from p2pregistry.trust.secret import is_secret
from tracker.catalog.postgres import PostgresCatalog
from tracker.catalog.trail import SYSTEM
from tracker.db import Db
from tracker.embedded import embedded_postgres
from tracker.identity.base import Accounts
from tracker.identity.postgres import PostgresAccounts

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("clients")]
PLATFORM = f"linux/{architecture()}"
#: Seconds for which access tokens are good here: the least that can be set.
LIFETIME = 60
REFUSED = "denied|unauthorized|authentication required|invalid username/password|401"
T = TypeVar("T")


@dataclass(frozen=True)
class User:
    """Who logs in."""

    username: str
    password: str


ANN, BOB = User("ann", "p:w\u00e9 of ann"), User("bob", "password of bob")


@dataclass
class Hub:
    """A tracker whose new repositories are private, with the users ann and bob."""

    process: TrackerProcess
    dsn: str

    @property
    def registry(self) -> str:
        return urlsplit(str(self.process.facts["url"])).netloc

    @property
    def localhost(self) -> str:
        """Docker trusts it without TLS, and takes it for a registry."""
        return f"localhost:{self.registry.rpartition(':')[2]}"

    def accounts(self, work: Callable[[Accounts], Awaitable[T]]) -> T:
        """Do something with the accounts, as another tracker of the same database would."""

        async def run() -> T:
            db = Db(self.dsn)
            try:
                return await work(PostgresAccounts(db, lambda *_: ""))
            finally:
                db.close()

        return trio.run(run)

    def robot(self, *scopes: str) -> tuple[User, int]:
        """A robot of ann's, and the number of its token."""

        async def work(accounts: Accounts) -> tuple[User, int]:
            made = await accounts.add_token("robot", ANN.username, "ci", SYSTEM, scopes=scopes)
            return User("robot", made.secret), made.token.id

        return self.accounts(work)

    def revoke(self, token_id: int) -> None:
        self.accounts(lambda accounts: accounts.revoke_token(ANN.username, token_id, SYSTEM))

    def status(self, name: str, user: User | None = None) -> int:
        """Of the tag 1 of a repository."""
        connection = http.client.HTTPConnection(self.registry, timeout=30)
        headers = {}
        if user is not None:
            pair = f"{user.username}:{user.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        try:
            connection.request("HEAD", f"/v2/{name}/manifests/1", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    home = folder / "postgres"
    with running(lambda: embedded_postgres(home)) as server, fresh_database(server, "logins") as dsn:
        settings = {"database.dsn": dsn, "auth.new_repositories": "private", "auth.token_lifetime": str(LIFETIME)}
        with tracker(folder / "tracker", settings) as process:
            found = Hub(process, dsn)
            for user in (ANN, BOB):
                used(user.password, "a user's password", user=user.username)
                found.accounts(lambda accounts, user=user: accounts.add_user(user.username, user.password, SYSTEM))  # type: ignore[misc]
            yield found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Docker]:
    with docker(tmp_path) as found:
        yield found


@pytest.fixture
def under(tmp_path: Path) -> Iterator[Containerd]:
    with containerd(tmp_path) as found:
        yield found


@pytest.fixture(params=["skopeo", "podman", "buildah"])
def tool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Containers]]:
    with containers(request.param, tmp_path / "tools") as found:
        yield request.param, found


@pytest.fixture
def skopeo(tmp_path: Path) -> Iterator[Containers]:
    with containers("skopeo", tmp_path / "skopeo") as found:
        yield found


def image(folder: Path, layers: int = 2) -> Layout:
    """An image of its own."""
    layout = Layout(folder / "image")
    make_image(layout, layers=layers, layer_bytes=MIB // 4, seed=str(folder), platform=PLATFORM)
    return layout


def kept(engine: Docker, registry: str) -> dict[str, str]:
    """What docker keeps of a login, ``auth`` read."""
    document = json.loads((engine.folder / "config" / "config.json").read_text("utf-8"))
    found: dict[str, str] = document.get("auths", {}).get(registry, {})
    return found | ({"auth": base64.b64decode(found["auth"]).decode()} if "auth" in found else {})


def test_docker_logs_in_pushes_pulls_and_logs_out(hub: Hub, engine: Docker, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=2, layer_bytes=MIB // 4, seed=str(tmp_path), platform=PLATFORM)
    name = f"{hub.localhost}/ann/docker:1"
    engine.load(layout, made, name)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("push", name)
    engine.login(hub.localhost, ANN)
    mine = kept(engine, hub.localhost)
    assert mine["auth"] in ("ann:", "")
    assert is_secret("refresh", mine["identitytoken"]), "kept in place of the password"
    for _ in range(2):
        engine("push", name)
    # another tag has another token; a blob is mounted from the first
    other = f"{hub.localhost}/ann/docker2:1"
    engine("tag", name, other)
    engine("push", other)
    engine.forget()
    engine("pull", name)
    engine.forget()
    engine.login(hub.localhost, BOB)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("pull", name)
    engine("logout", hub.localhost)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("pull", name)
    assert [hub.status("ann/docker", who) for who in (ANN, BOB, None)] == [200, 401, 401]


def test_what_docker_keeps_can_be_revoked(hub: Hub, engine: Docker, skopeo: Containers, tmp_path: Path) -> None:
    name = f"{hub.localhost}/ann/kept:1"
    skopeo.push(image(tmp_path), name, ANN)
    engine.login(hub.localhost, ANN)
    engine("pull", name)
    engine.forget()
    tokens = hub.accounts(lambda accounts: accounts.tokens(ANN.username, kind="refresh"))
    assert tokens[0].name == "docker"
    assert kept(engine, hub.localhost)["identitytoken"].endswith(tokens[0].hint)
    hub.revoke(tokens[0].id)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("pull", name)
    engine.login(hub.localhost, ANN)
    engine("pull", name)


def test_docker_with_a_robots_token_for_a_password(
    hub: Hub, engine: Docker, skopeo: Containers, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "image")
    made = make_image(layout, layers=1, layer_bytes=1000, seed=str(tmp_path), platform=PLATFORM)
    name = f"{hub.localhost}/ann/robots/app:1"
    robot, number = hub.robot("repository:ann/robots/*:pull,push")
    engine.login(hub.localhost, robot)
    assert "identitytoken" not in kept(engine, hub.localhost), "it would outlive the robot's"
    engine.load(layout, made, name)
    engine("push", name)
    elsewhere = f"{hub.localhost}/ann/elsewhere:1"
    engine("tag", name, elsewhere)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("push", elsewhere)
    engine.forget()
    engine("pull", name)
    engine.forget()
    hub.revoke(number)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("pull", name)
    with pytest.raises(AssertionError, match=REFUSED):
        engine.login(hub.localhost, robot)


def test_docker_is_told_of_a_wrong_password(hub: Hub, engine: Docker) -> None:
    for user in (User(ANN.username, BOB.password), User("nobody", ANN.password), User(ANN.username, "x")):
        with pytest.raises(AssertionError, match=REFUSED):
            engine.login(hub.localhost, user)
    engine.login(hub.localhost, ANN)


def test_docker_pulls_what_is_public_without_a_login(
    hub: Hub, engine: Docker, skopeo: Containers, tmp_path: Path
) -> None:
    name = f"{hub.localhost}/ann/public:1"
    skopeo.push(image(tmp_path), name, ANN)
    with pytest.raises(AssertionError, match=REFUSED):
        engine("pull", name)

    async def publish() -> None:
        db = Db(hub.dsn)
        try:
            await PostgresCatalog(db).set_visibility("ann/public", False, SYSTEM)
        finally:
            db.close()

    trio.run(publish)
    engine("pull", name)


def test_podman_buildah_and_skopeo_log_in(hub: Hub, tool: tuple[str, Containers], tmp_path: Path) -> None:
    program, run = tool
    layout, name = image(tmp_path), f"{hub.registry}/ann/{program}:1"

    def login(user: User) -> str:
        options = ("--tls-verify=false", "--username", user.username, "--password-stdin")
        return run(program, "login", *options, hub.registry, stdin=user.password)

    def copy(source: str, to: str, *options: str) -> str:
        if program == "skopeo":
            return run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", source, to)
        if to.startswith("docker:"):
            taken = run(program, "pull", "--quiet", source).split()[-1]
            return run(program, "push", "--quiet", "--tls-verify=false", taken, to)
        run(program, "rmi", "--all", "--force")
        return run(program, "pull", "--quiet", "--tls-verify=false", source)

    with pytest.raises(AssertionError, match=REFUSED):
        login(User(ANN.username, BOB.password))
    with pytest.raises(AssertionError, match=REFUSED):
        copy(f"oci:{layout.root}:latest", f"docker://{name}")
    login(ANN)
    copy(f"oci:{layout.root}:latest", f"docker://{name}")
    copy(f"docker://{name}", f"oci:{tmp_path / 'mine'}:latest")
    robot, number = hub.robot(f"repository:ann/{program}:pull")
    login(robot)
    copy(f"docker://{name}", f"oci:{tmp_path / 'robots'}:latest")
    with pytest.raises(AssertionError, match=REFUSED):
        copy(f"oci:{layout.root}:latest", f"docker://{name}")
    hub.revoke(number)
    with pytest.raises(AssertionError, match=REFUSED):
        copy(f"docker://{name}", f"oci:{tmp_path / 'revoked'}:latest")
    run(program, "logout", hub.registry)
    with pytest.raises(AssertionError, match=REFUSED):
        copy(f"docker://{name}", f"oci:{tmp_path / 'nobody'}:latest")


def test_skopeo_deletes_with_a_scope_of_its_own(hub: Hub, skopeo: Containers, tmp_path: Path) -> None:
    """It asks for ``repository:NAME:*``."""
    name = f"{hub.registry}/ann/deleted:1"
    skopeo.push(image(tmp_path), name, ANN)
    skopeo.login(hub.registry, BOB)
    with pytest.raises(AssertionError, match=REFUSED):
        skopeo("skopeo", "delete", "--tls-verify=false", f"docker://{name}")
    skopeo.login(hub.registry, ANN)
    skopeo("skopeo", "delete", "--tls-verify=false", f"docker://{name}")
    assert hub.status("ann/deleted", ANN) == 404


def test_ctr_with_credentials(hub: Hub, under: Containerd, tmp_path: Path) -> None:
    name = f"{hub.localhost}/ann/ctr"
    under.load(image(tmp_path), name)

    def ctr(command: str, user: User | None) -> str:
        who = () if user is None else ("--user", f"{user.username}:{user.password}")
        return under.ctr("images", command, "--plain-http", *who, f"{name}:latest")

    for user in (None, BOB, User(ANN.username, BOB.password)):
        with pytest.raises(AssertionError):
            ctr("push", user)
    ctr("push", ANN)
    under.forget()
    for user in (None, BOB, User(ANN.username, BOB.password)):
        with pytest.raises(AssertionError):
            ctr("pull", user)
    robot, number = hub.robot("repository:ann/ctr:pull")
    for user in (ANN, robot):
        ctr("pull", user)
        under.forget()
    hub.revoke(number)
    with pytest.raises(AssertionError):
        ctr("pull", robot)


def test_tokens_that_expire_during_a_pull(hub: Hub, engine: Docker, skopeo: Containers, tmp_path: Path) -> None:
    """docker and skopeo get another in time. containerd 1.6 keeps each token as long as it pulls: it is told that the
    token has expired, gives up, and has a new one when it is asked to go on."""
    layout = image(tmp_path, layers=8)
    for name in ("docker", "skopeo", "ctr"):
        skopeo.push(layout, f"{hub.registry}/ann/long-{name}:1", ANN)
    with slow(hub, after=2, seconds=LIFETIME + 8) as proxy, ThreadPoolExecutor() as pool:
        registry = f"localhost:{proxy.port}"
        engine.login(registry, ANN)
        skopeo.login(registry, ANN)
        under = Containerd(engine.folder, engine.containerd)
        who = ("--plain-http", "--max-concurrent-downloads", "1", "--user", f"{ANN.username}:{ANN.password}")
        pulls = [
            pool.submit(engine, "pull", f"{registry}/ann/long-docker:1"),
            pool.submit(
                skopeo, "skopeo", "copy", "-q", "--src-tls-verify=false",
                f"docker://{registry}/ann/long-skopeo:1", f"dir:{tmp_path / 'pulled'}",
            ),
        ]  # fmt: skip
        pull = ("images", "pull", *who, f"{registry}/ann/long-ctr:1")
        refused = ""
        try:
            under.ctr(*pull)
        except AssertionError as err:
            refused = str(err)
        if refused:
            assert "invalid_token" in refused
            told = [text for text in proxy.challenges if "error=" in text]
            assert told
            assert all(text.endswith('scope="repository:ann/long-ctr:pull",error="invalid_token"') for text in told)
            under.ctr(*pull)
        for one in pulls:
            one.result()


@dataclass
class Slow:
    """A proxy in front of the tracker. The answers for blobs of a repository after the first few wait until some
    seconds after the first of those that wait."""

    hub: Hub
    after: int
    seconds: float
    port: int = 0
    challenges: list[str] = field(default_factory=list)
    _blobs: Counter[str] = field(default_factory=Counter)
    _until: dict[str, float] = field(default_factory=dict)

    def wait(self, path: str) -> None:
        """Before this is answered."""
        repository, blobs, _ = path.partition("/blobs/")
        if blobs:
            self._blobs[repository] += 1
            if self._blobs[repository] > self.after:
                until = self._until.setdefault(repository, time.monotonic() + self.seconds)
                time.sleep(max(0.0, until - time.monotonic()))


@contextmanager
def slow(hub: Hub, *, after: int, seconds: float) -> Iterator[Slow]:
    """On a free port of localhost."""
    proxy = Slow(hub, after, seconds)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(hub.registry, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if answer.status == 200:
                proxy.wait(self.path)
            proxy.challenges += answer.headers.get_all("www-authenticate") or []
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
