"""Who sees what: each actor at each endpoint for each repository, in the tables below, every cell asked for real.

``REGISTRY`` is the registry API of the tracker, ``SWARM`` the peer APIs of a tracker and of a node, ``LOCAL`` the pull
API of a node, ``IPFS`` the gateways of both and the tracker's router, which know nobody: what is shown there counts for
nothing. A cell names the groups of endpoints that answer with content; all others must refuse, and a refusal must
be, to the byte but for names and digests, the one that the same actor gets for a repository that does not exist.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.have_news import Watch, read_news
from p2pregistry.messages import Announce, pack, read_announced
from p2pregistry.oci.media import OCI_MANIFEST
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.gate import Gate, MemoryDesk, plain
from p2pregistry.serve.held_blocks import HeldBlocks
from p2pregistry.serve.http import Handler, Headers, Request, Stream
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.blocks import BlockIndex
from p2pregistry.testing.gateway import cids_of, gateway_endpoints, gateway_of, public_blocks
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from p2pregistry.testing.members import Authority, Member, open_session
from p2pregistry.testing.node_stack import NAME, NodeStack, peer_id
from p2pregistry.testing.tracker_api import AUTHORIZATION, SERVICE, Registry, keyring, manifest_of
from p2pregistry.testing.visibility import (
    IMAGES,
    REPOSITORIES,
    Ask,
    Endpoint,
    Image,
    asking,
    cells,
    check,
    got,
    node_of,
    the_node,
    the_tracker,
    tracker_peers,
)
from p2pregistry.trust.access import AccessToken, parse_scopes, sign_access
from p2pregistry.trust.records import ANYONE, Caller
from p2pregistry.visible import Visible
from tracker.announces_check import node as node_announce
from tracker.catalog.check import BY
from tracker.front import by_path
from tracker.ipfs_routing import IpfsRouting

# read: manifest by tag and digest, HEAD of it, blob, a range of it, tags, referrers; list: catalogue; mount: with and
# without "from", into a repository of one's own; push: blob and manifest; token: pull in a token that was asked for.
REGISTRY = """
actor          | acme/public           | acme/private          | other/private | acme/unknown
anonymous      | read list token       |                       |               |
stranger       | read list token mount |                       |               |
member         | read list token mount |                       |               |
puller         | read list token mount | read list token mount |               |
owner          | all                   | all                   |               | push token
administrator  | all                   | all                   | all           | push token
narrow token   | read list token mount |                       |               |
"""

# tracker: manifest by tag and digest, claims, tags, records; blob, range, next, table, manifest by digest; announce.
# node: blob, range, table, manifest, have, and of an unfinished blob a piece, a range and have.
SWARM = """
actor          | acme/public  | acme/private | other/private | acme/unknown
unproven       |              |              |               |
other swarm    |              |              |               |
revoked        |              |              |               |
public grant   | tracker node |              |               |
private grant  | tracker node | tracker node |               |
grant of all   | tracker node | tracker node | tracker node  |
plain          | tracker node |              |               |
plain private  | tracker node | tracker node | tracker node  |
"""

# pull: manifest by tag and digest, HEAD, blob, range, tags; mirror: the same with ?ns=.
LOCAL = """
actor                         | acme/public | acme/private | other/private | acme/unknown
public grant                  | pull mirror |              |               |
private grant                 | pull mirror | pull mirror  |               |
public grant, later           | pull mirror |              |               |
tokens: none                  | mirror      |              |               |
tokens: for it                | pull mirror | pull mirror  |               |
tokens: for all               | pull mirror | pull mirror  |               |
tokens: other repository      | mirror      |              |               |
tokens: of another node       | mirror      |              |               |
tokens: of the registry       | mirror      |              |               |
tokens: expired               | mirror      |              |               |
"""

# ipfs: root, leaves, config and manifest as blocks and as CARs, HEAD, a range; routing: who has these.
IPFS = """
actor          | acme/public  | acme/private | other/private | acme/unknown
anonymous      | ipfs routing |              |               |
stranger       | ipfs routing |              |               |
member         | ipfs routing |              |               |
puller         | ipfs routing |              |               |
owner          | ipfs routing |              |               |
administrator  | ipfs routing |              |               |
narrow token   | ipfs routing |              |               |
of a node      | ipfs         |              |               |
"""


# ------------------------------------------------------------------------------------------------------------ registry


def basic(name: str, secret: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


async def people(made: Registry) -> dict[str, list[tuple[str, str]]]:
    """Everybody, with what they show."""
    accounts, secret = made.accounts, "correct horse"
    for name in ("sam", "max", "petra", "olga", "oscar"):
        await accounts.add_user(name, secret, BY)
    await accounts.add_organization("acme", "olga", BY)
    await accounts.add_organization("other", "oscar", BY)
    for name in ("max", "petra"):
        await accounts.set_member("acme", name, "member", BY)
    await accounts.add_team("acme", "readers", BY)
    await accounts.add_team_member("acme", "readers", "petra", BY)
    await accounts.set_grant("acme", "readers", "acme/priv*", ["pull"], BY)
    scopes = ["repository:acme/public:pull", "repository:olga/narrow/*:pull,push"]
    token = await accounts.add_token("personal", "olga", "narrow", BY, scopes=scopes)
    return {
        "anonymous": [],
        "stranger": [basic("sam", secret)],
        "member": [basic("max", secret)],
        "puller": [basic("petra", secret)],
        "owner": [basic("olga", secret)],
        "administrator": [AUTHORIZATION],
        "narrow token": [basic("olga", token.secret)],
    }


HOMES = {"stranger": "sam", "member": "max", "puller": "petra", "owner": "olga", "administrator": "pusher",
         "narrow token": "olga/narrow"}  # fmt: skip


def registry_endpoints(made: Registry, actor: str, shown: list[tuple[str, str]]) -> dict[str, list[Endpoint]]:
    """``mount`` for those who have a place to mount to."""

    async def catalogue(ask: Ask, repository: str) -> tuple[Answer, bool]:
        answer = await ask("GET", "/v2/_catalog")
        return answer, answer.status == 200 and repository in answer.json()["repositories"]

    def mount(query: str) -> Endpoint:
        async def ask_(ask: Ask, repository: str) -> tuple[Answer, bool]:
            mounts.append(repository)
            at = f"{HOMES[actor]}/m{len(mounts)}"
            blob = IMAGES[repository].blob
            answer = await ask("POST", f"/v2/{at}/blobs/uploads/?mount={blob}" + query.format(r=repository))
            lines = tuple((name, value.replace(at, "AT")) for name, value in answer.lines)
            return Answer(answer.status, answer.headers, answer.body, lines), answer.status == 201

        return ask_

    mounts: list[str] = []

    async def token(ask: Ask, repository: str) -> tuple[Answer, bool]:
        target = f"/token?service={SERVICE}&scope=repository:{repository}:pull"
        answer = await call(made.tokens, "GET", target, headers=shown)
        text = answer.json()["access_token"]
        said = json.loads(keyring().keys.payload(text, b"p2pregistry/v1/access"))
        allowed = bool(said["access"])
        # what it says of access is compared; its id, times and signature are its own
        return Answer(answer.status, answer.headers, json.dumps(said["access"]).encode(), ()), allowed

    async def referrers(ask: Ask, repository: str) -> tuple[Answer, bool]:
        """The list of a repository that is not there is empty, for who might see it."""
        answer = await ask("GET", f"/v2/{repository}/referrers/{IMAGES[repository].digest}")
        return answer, answer.status == 200 and len(answer.json()["manifests"]) == 1

    async def upload(ask: Ask, repository: str) -> tuple[Answer, bool]:
        answer = await ask("POST", f"/v2/{repository}/blobs/uploads/")
        return answer, answer.status == 202

    async def put(ask: Ask, repository: str) -> tuple[Answer, bool]:
        headers = [("Content-Type", OCI_MANIFEST)]
        answer = await ask("PUT", f"/v2/{repository}/manifests/1", IMAGES[repository].body, headers=headers)
        return answer, answer.status == 201 or answer.code == "MANIFEST_BLOB_UNKNOWN"

    async def delete(ask: Ask, repository: str) -> tuple[Answer, bool]:
        answer = await ask("DELETE", f"/v2/{repository}/manifests/2")
        if answer.status == 202:
            body, headers = IMAGES[repository].body, [("Content-Type", OCI_MANIFEST)]
            assert (await made("PUT", f"/v2/{repository}/manifests/2", body, headers=headers)).status == 201
        return answer, answer.status == 202

    read = [got(method, target) for method in ("GET", "HEAD") for target in (
        "/v2/{r}/manifests/1", "/v2/{r}/manifests/{m}", "/v2/{r}/blobs/{b}")]  # fmt: skip
    read += [got("GET", "/v2/{r}/blobs/{b}", 206), got("GET", "/v2/{r}/tags/list"), referrers]
    mounting = [mount("&from={r}"), mount("")] if actor in HOMES else []
    return {
        "read": read,
        "list": [catalogue],
        "token": [token],
        "mount": mounting,
        "push": [upload, put],
        "delete": [delete],
    }


async def test_the_registry(tmp_path: Path) -> None:
    expected = cells(REGISTRY)
    async with the_tracker(tmp_path / "t") as made:
        for actor, shown in (await people(made)).items():
            headers = [*shown, ("Host", SERVICE)]
            ask = asking(made.api, lambda _target, headers=headers: headers)  # type: ignore[misc]
            endpoints = registry_endpoints(made, actor, shown)
            for repository in REPOSITORIES:
                await check(ask, endpoints, repository, expected[actor, repository], actor)


async def test_no_manifest_makes_a_digest_its_own(tmp_path: Path) -> None:
    """A manifest pushed to a public repository that lists a private blob is refused; with a foreign layer, which need
    not be there, nobody gets the blob through it."""
    secret = IMAGES["other/private"].layer
    async with the_tracker(tmp_path / "t") as made:
        owner = (await people(made))["owner"]
        config = IMAGES["acme/public"].config
        listing = manifest_of(config, secret)
        foreign = listing.replace(b"oci.image.layer.v1.tar+gzip", b"oci.image.layer.nondistributable.v1.tar+gzip")
        headers = [*owner, ("Content-Type", OCI_MANIFEST)]
        refused = await call(made.api, "PUT", "/v2/acme/public/manifests/x", listing, headers=headers)
        assert (refused.status, refused.code) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert (await call(made.api, "PUT", "/v2/acme/public/manifests/y", foreign, headers=headers)).status == 201
        blob = Digest.of(secret)
        assert (await call(made.api, "GET", f"/v2/acme/public/blobs/{blob}", headers=owner)).status == 404
        peers = plain(tracker_peers(made), private=False)
        for target in (f"blobs/{blob}", f"blobs/{blob}/table", f"repositories/acme/public/blobs/{blob}/claims"):
            assert (await call(peers, "GET", f"/p2p/v1/{target}")).status == 404
        async with node_of(tmp_path / "n", made, ANYONE) as node:
            assert (await call(node.pull, "GET", "/v2/acme/public/manifests/y")).status == 200
            assert (await call(node.pull, "GET", f"/v2/acme/public/blobs/{blob}")).status == 404


# --------------------------------------------------------------------------------------------------------------- swarm

NOW = 1_000_000.0
URL = "https://registry.example.com"


@dataclass
class Actor:
    """A node as the two servers see it."""

    peer_id: str = ""
    headers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


@asynccontextmanager
async def gated(tracker: Handler, node: Handler) -> AsyncIterator[dict[str, tuple[Actor, Handler, Handler]]]:
    """Every actor of the table, with the two handlers it talks to."""
    authority, servers = Authority(clock=lambda: NOW), {"tracker": Member(), "node": Member()}
    desks = {name: MemoryDesk(authority, member.peer_id, clock=lambda: NOW) for name, member in servers.items()}
    gates: dict[str, Handler] = {"tracker": Gate(tracker, desks["tracker"]), "node": Gate(node, desks["node"])}
    found: dict[str, tuple[Actor, Handler, Handler]] = {}

    async def enter(name: str, pulls: tuple[str, ...]) -> Member:
        member = Member()
        actor = Actor(member.peer_id)
        for server, desk in desks.items():
            credential = authority.issue(member.peer_id, pulls=pulls)
            token = await open_session(desk, member, credential, servers[server].peer_id)
            actor.headers[server] = [("Authorization", f"Session {token}")]
        found[name] = (actor, gates["tracker"], gates["node"])
        return member

    found["unproven"] = found["other swarm"] = (Actor(), gates["tracker"], gates["node"])
    stranger = Member()
    foreign = authority.issue(stranger.peer_id, pulls=("**",), swarm="elsewhere")
    for server, desk in desks.items():
        with pytest.raises(RequestError, match="session"):
            await open_session(desk, stranger, foreign, servers[server].peer_id)
    revoked = await enter("revoked", ("**",))
    authority.revoked.add(revoked.peer_id)
    for name, pulls in (("public grant", ()), ("private grant", ("acme/**",)), ("grant of all", ("**",))):
        await enter(name, pulls)
    for name, private in (("plain", False), ("plain private", True)):
        found[name] = (Actor(), plain(tracker, private=private), plain(node, private=private))
    yield found


def swarm_endpoints(actor: Actor, node: Handler) -> dict[str, list[Endpoint]]:
    peer_id = actor.peer_id or "B" * 40

    async def announce(ask: Ask, repository: str) -> tuple[Answer, bool]:
        """Somebody who may have it is told of, and is told of nobody who may not."""
        blob = IMAGES[repository].blob
        said = Announce(peer_id=peer_id, url="http://10.0.0.1:1", swarm="default", want=(blob,))
        answer = await ask("POST", "/p2p/v1/announce", said.encode())
        if answer.status != 200:
            return answer, False
        told = read_announced(answer.body, 1)
        return Answer(200, {}, b"", ()), told.crowd[0].holding > 0 and bool(told.peers)

    async def following(ask: Ask, repository: str) -> tuple[Answer, bool]:
        body = pack(b"\1" * Metainfo.of_bytes(IMAGES[repository].layer).count)
        answer = await ask("POST", f"/p2p/v1/blobs/{IMAGES[repository].blob}/next", body)
        return answer, answer.status in (204, 206)

    async def records(ask: Ask, repository: str) -> tuple[Answer, bool]:
        answer = await ask("POST", "/p2p/v1/repositories", json.dumps({"names": [repository]}).encode())
        return answer, answer.status == 200 and len(answer.json()["records"]) == 1

    def have(data: Callable[[Image], bytes]) -> Endpoint:
        async def ask_(_ask: Ask, repository: str) -> tuple[Answer, bool]:
            watch = Watch(peer_id, "http://10.0.0.1:1", "", (Digest.of(data(IMAGES[repository])),))
            return await first_news(node, watch, actor.headers.get("node", []))

        return ask_

    def unfinished(first: int, last: int) -> Endpoint:
        async def ask_(ask: Ask, repository: str) -> tuple[Answer, bool]:
            blob = Digest.of(IMAGES[repository].layer[::-1])
            answer = await ask("GET", f"/p2p/v1/blobs/{blob}", headers=[("Range", f"bytes={first}-{last}")])
            return answer, answer.status in (206, 416)  # 416 too tells that something of it is here

        return ask_

    blob = [got("GET", "/p2p/v1/blobs/{b}"), got("HEAD", "/p2p/v1/blobs/{b}"), got("GET", "/p2p/v1/blobs/{b}", 206),
            got("GET", "/p2p/v1/blobs/{b}/table"), got("GET", "/p2p/v1/manifests/{m}")]  # fmt: skip
    named = "/p2p/v1/repositories/{r}/"
    resolve = [got("GET", named + rest) for rest in ("manifests/1", "manifests/{m}", "blobs/{b}/claims", "tags")]
    partial = [unfinished(0, PIECE_SIZE - 1), unfinished(5, 9), unfinished(PIECE_SIZE, PIECE_SIZE + 1)]
    watching = [have(lambda image: image.layer), have(lambda image: image.layer[::-1])]
    return {"tracker": [*blob, *resolve, records, following, announce], "node": [*blob, *partial, *watching]}


async def first_news(node: Handler, watch: Watch, headers: list[tuple[str, str]]) -> tuple[Answer, bool]:
    """What the first line of a have-stream says."""
    sent = [(name.lower(), value) for name, value in headers]
    try:
        response = await node(Request("POST", "/p2p/v1/have", sent, ScriptedBody([watch.encode()])))
    except RequestError as err:
        response = error_response(err)
        assert isinstance(response.body, bytes)
        return Answer(response.status, {}, response.body, tuple(response.headers)), False
    assert isinstance(response.body, Stream)
    line = await anext(aiter(response.body.chunks))
    assert isinstance(line, bytes)
    await response.body.chunks.aclose()  # type: ignore[union-attr]  # the gate's, around the node's
    news = read_news(line, 1)
    return Answer(response.status, {}, line, tuple(response.headers)), bool(news.have or news.full or news.peers)


async def test_the_swarm(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    expected = cells(SWARM)
    async with the_tracker(tmp_path / "t") as made, the_node(tmp_path / "n") as node:
        peers = tracker_peers(made)
        holder = Announce(
            peer_id="C" * 40, url="http://10.0.0.9:1", swarm="default", hold=tuple(i.blob for i in IMAGES.values())
        )
        await peers._announces.announce(holder, Caller(everything=True))
        async with gated(peers, node.api) as actors:
            for name, (actor, *handlers) in actors.items():
                endpoints = swarm_endpoints(actor, handlers[1])
                for server, handler in zip(("tracker", "node"), handlers, strict=True):
                    headers = actor.headers.get(server, [])
                    ask = asking(handler, lambda _target, headers=headers: headers)  # type: ignore[misc]
                    for repository in REPOSITORIES:
                        await check(ask, {server: endpoints[server]}, repository, expected[name, repository], name)


async def test_announces_of_what_a_node_may_not_pull_are_not_taken_up(tmp_path: Path) -> None:
    async with the_tracker(tmp_path / "t") as made:
        peers, blob = tracker_peers(made), IMAGES["acme/private"].blob

        async def announce(
            caller: Caller, *, want: tuple[Digest, ...] = (), hold: tuple[Digest, ...] = ()
        ) -> tuple[int, int]:
            said = Announce(peer_id=caller.peer_id, url="http://10.0.0.1:1", swarm="default", want=want, hold=hold)
            request = Request("POST", "/p2p/v1/announce", (), ScriptedBody([said.encode()]), caller=caller)
            body = (await peers(request)).body
            assert isinstance(body, bytes)
            crowd = read_announced(body, len(want)).crowd
            return (crowd[0].wanting, crowd[0].holding) if crowd else (0, 0)

        liar, inside, second = Caller("B" * 40), Caller("C" * 40, ("acme/*",)), Caller("D" * 40, ("acme/*",))
        await announce(liar, hold=(blob,))
        assert await announce(liar, want=(blob,)) == (0, 0)
        assert await announce(inside, want=(blob,)) == (0, 0), "the liar is nobody's source"
        assert await announce(second, want=(blob,)) == (1, 0)
        said = Announce(peer_id=inside.peer_id, url="http://10.0.0.1:1", swarm="default", leaving=True)
        with pytest.raises(RequestError, match="itself"):
            await peers(Request("POST", "/p2p/v1/announce", (), ScriptedBody([said.encode()]), caller=second))


# --------------------------------------------------------------------------------------------------------------- local


def local_endpoints() -> dict[str, list[Endpoint]]:
    def group(query: str) -> list[Endpoint]:
        paths = [f"/v2/{{r}}/{rest}{query}" for rest in ("manifests/1", "manifests/{m}", "blobs/{b}")]
        asked = [got(method, path) for method in ("GET", "HEAD") for path in paths]
        return [*asked, got("GET", f"/v2/{{r}}/blobs/{{b}}{query}", 206), got("GET", f"/v2/{{r}}/tags/list{query}")]

    return {"pull": group(""), "mirror": group(f"?ns={NAME}")}


def client_token(audience: str, *, scope: str, lasts: float = 300.0) -> list[tuple[str, str]]:
    now = int(time.time())
    token = AccessToken("k4.pid.x", audience, "sam", "1", now - 600, int(now + lasts), parse_scopes([scope]))
    return [("Authorization", "Bearer " + sign_access(keyring().signer, token))]


async def check_local(node: NodeStack, name: str, shown: Callable[[str], Headers]) -> None:
    """``shown`` gives what is shown for a repository."""
    expected = cells(LOCAL)
    for repository in REPOSITORIES:
        ask = asking(node.pull, lambda target: shown(next(one for one in IMAGES if one in target)))
        await check(ask, local_endpoints(), repository, expected[name, repository], name)


async def test_local_clients(tmp_path: Path) -> None:
    async with the_tracker(tmp_path / "t") as made:
        for name, own in (("public grant", ANYONE), ("private grant", Caller("N" * 40, ("acme/**",)))):
            async with node_of(tmp_path / name, made, own) as node:
                await check_local(node, name, lambda _repository: [])
                await check_local(node, name, lambda _repository: [("Authorization", "Bearer nonsense")])
                if own is not ANYONE:  # all of it is here now, and the grant is taken away
                    node.visible.become(ANYONE)
                    await check_local(node, "public grant, later", lambda _repository: [])


async def test_local_clients_with_tokens(tmp_path: Path) -> None:
    async with (
        the_tracker(tmp_path / "t") as made,
        node_of(tmp_path / "n", made, Caller("N" * 40, ("acme/**",)), auth=True) as node,
    ):
        mine = f"node:{peer_id('me')}"
        everything = " ".join(f"repository:{name}:pull" for name in IMAGES)
        await check_local(node, "tokens: for all", lambda _name: client_token(mine, scope=everything))
        await check_local(node, "tokens: for it", lambda name: client_token(mine, scope=f"repository:{name}:pull"))
        for actor, shown in {
            "tokens: none": [],
            "tokens: other repository": client_token(mine, scope="repository:acme/else:pull"),
            "tokens: of another node": client_token("node:" + "C" * 40, scope=everything),
            "tokens: of the registry": client_token(SERVICE, scope=everything),
            "tokens: expired": client_token(mine, scope=everything, lasts=-60.0),
        }.items():
            await check_local(node, actor, lambda _name, shown=shown: shown)  # type: ignore[misc]
        refused = await call(node.pull, "GET", "/v2/acme/private/manifests/1")
        challenge = refused.headers["www-authenticate"]
        assert (refused.status, challenge.split(" ")[0]) == (401, "Bearer")
        assert f'service="{mine}"' in challenge
        assert 'scope="repository:acme/private:pull"' in challenge


# ---------------------------------------------------------------------------------------------------------------- ipfs


async def test_ipfs_clients(tmp_path: Path) -> None:
    expected = cells(IPFS)
    async with the_tracker(tmp_path / "t") as made, the_node(tmp_path / "n") as node, trio.open_nursery() as nursery:
        blocks, announces = BlockIndex(node.index), tracker_peers(made)._announces
        routing = IpfsRouting(
            public_blocks(made),
            announces,
            lambda: ("C" * 40, URL),
            swarm="default",
            private=True,
            randrange=lambda low, _high: low,
        )
        holder = node_announce(1, hold=tuple(image.blob for image in IMAGES.values()), gateway=URL)
        await announces.announce(holder, Caller(everything=True))
        front = by_path({"/routing/v1/": routing}, gateway_of(made))
        for actor, shown in (await people(made)).items():
            ask = asking(front, lambda _target, shown=shown: shown)  # type: ignore[misc]
            for repository in REPOSITORIES:
                endpoints = gateway_endpoints(routing=True)
                await check(ask, endpoints, repository, expected[actor, repository], actor)
        nursery.start_soon(blocks.serve)
        held = HeldBlocks(blocks, node.index, Visible(node.index), node.store)
        with trio.fail_after(20):
            while any(not list(blocks.find(cids_of(IMAGES[name])[0])) for name in REPOSITORIES[:3]):
                await trio.sleep(0.01)
        ask = asking(IpfsGateway(held, Slots(4, 4), served=lambda _: None), lambda _target: [])
        for repository in REPOSITORIES:
            await check(ask, gateway_endpoints(routing=False), repository, expected["of a node", repository], "node")
        nursery.cancel_scope.cancel()
