"""A node and a tracker over TLS, in one process: joining, staying, and what somebody in the middle gets to see."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.joining import Joining
from node.membership import MEMBERSHIP, decode, encode
from node.settings import NodeSettings
from node.settings import Tracker as TrackerSection
from p2pregistry.errors import LocalError, SettingsError
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.serve.http import Request, Response
from p2pregistry.sessions import NONCE_PATH, Nonces, encode_nonce
from p2pregistry.testing.handlers import ScriptedBody
from p2pregistry.testing.http import PATIENCE, running
from p2pregistry.trust.certificate import server_context
from p2pregistry.trust.join_token import JoinToken, format_join_token, parse_join_token
from p2pregistry.trust.proof import fingerprint
from p2pregistry.trust.records import sign_credential, verify_credential
from tracker.catalog.nodes import Grant
from tracker.catalog.nodes_check import BY
from tracker.catalog.nodes_memory import MemoryNodes
from tracker.enrolment import Enrolment
from tracker.keyring import Keyring
from tracker.peer_endpoints import Swarm

GRANT = Grant("default", ("acme/**",), {"zone": "a"})


class Memory:
    """What a node keeps, across its starts."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get_meta(self, key: str) -> bytes | None:
        return self.values.get(key)

    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None:
        assert not rebuildable, "it must outlive the index"
        self.values[key] = value


class Tracker:
    """The part of a tracker that lets nodes in; ``heard`` is every body that was sent to it."""

    def __init__(self, keyring: Keyring | None = None) -> None:
        self.keyring = keyring or Keyring.fresh()
        self.nodes = MemoryNodes()
        self.nonces = Nonces(self.keyring.nonce_key, secrets.token_bytes)
        self.used: set[str] = set()
        self.heard: list[bytes] = []
        self.lasts = 86400.0
        self.url = ""
        self.subjects: dict[str, str] = {}

    def swarm(self) -> dict[str, object]:
        found = msgspec.to_builtins(Swarm("default", (), (), self.keyring.root_public, self.keyring.key_set))
        return {**found, "time": time.time()}

    async def take(self, nonce: str) -> bool:
        fresh = nonce not in self.used and self.nonces.good(nonce, time.time())
        self.used.add(nonce)
        return fresh

    async def subject(self, token: str) -> str:
        return self.subjects[token]

    async def __call__(self, request: Request) -> Response:
        body = await request.body.read(1 << 20)
        self.heard.append(body)
        if request.path == NONCE_PATH:
            return Response(200, [], encode_nonce(self.nonces.issue(time.time())))
        enrolment = Enrolment(
            self.nodes,
            own=self.keyring.peer_id,
            swarm="default",
            lasts=self.lasts,
            take=self.take,
            sign=lambda credential: sign_credential(self.keyring.signer, credential),
            swarm_fields=self.swarm,
            identities=self,
            granted=Grant("default"),
        )
        request.body = ScriptedBody([body])
        return await enrolment(request)

    async def invite(self, uses: int | None = 1, lasts: float = 3600.0) -> str:
        """A join token."""
        secret = secrets.token_urlsafe(32)
        await self.nodes.add_token(hashlib.sha256(secret.encode()).digest(), GRANT, uses, lasts, BY)
        print_of_key = fingerprint(self.keyring.peer_key.public_key())
        return format_join_token(JoinToken(self.url, print_of_key, self.keyring.root_public, secret))


@asynccontextmanager
async def serving(tracker: Tracker) -> AsyncIterator[Tracker]:
    async with running(tracker, tls=server_context(tracker.keyring.peer_key)) as url:
        tracker.url = url
        yield tracker


class Machine:
    """A node's identity and what it keeps."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.peer_id = base58(peer_id_of(self.key))
        self.memory = Memory()

    def start(self, word: str | None = None, **tracker: Any) -> Joining:
        settings = NodeSettings(tracker=TrackerSection(**tracker))
        return Joining(settings, self.memory, self.key, word, chance=lambda: 0.5)


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_a_node_joins_once_and_starts_without_the_token_later(machine: Machine) -> None:
    async with serving(Tracker()) as tracker:
        member = await machine.start(await tracker.invite()).join()
        assert (member.url, member.peer_id) == (tracker.url, tracker.keyring.peer_id)
        assert member.root_key == tracker.keyring.root_public
        credential = verify_credential(tracker.keyring.keys, member.token)
        assert credential == member.credential
        assert (credential.peer_id, credential.pulls, credential.labels) == (
            machine.peer_id,
            ("acme/**",),
            {"zone": "a"},
        )
    assert await machine.start().join() == member, "and without the tracker"


async def test_two_machines_with_one_single_use_token(machine: Machine) -> None:
    async with serving(Tracker()) as tracker:
        word = await tracker.invite()
        await machine.start(word).join()
        with pytest.raises(LocalError, match="used by another node"):
            await Machine().start(word).join()
        # the answer was lost: the same machine may ask again
        machine.memory.values.clear()
        await machine.start(word).join()


async def test_an_expired_token_says_so(machine: Machine) -> None:
    async with serving(Tracker()) as tracker:
        with pytest.raises(LocalError, match="has expired: it was good until"):
            await machine.start(await tracker.invite(lasts=-5.0)).join()


async def test_somebody_in_the_middle_hears_nothing(machine: Machine) -> None:
    async with serving(Tracker()) as real, serving(Tracker()) as other:
        token = parse_join_token(await real.invite())
        moved = format_join_token(JoinToken(other.url, token.fingerprint, token.root_key, token.secret))
        with pytest.raises(LocalError, match="before anything secret was sent"):
            await machine.start(moved).join()
        assert other.heard == []


async def test_a_tracker_with_another_root_key_is_not_told_the_secret(machine: Machine) -> None:
    real = Keyring.fresh()
    forged = Keyring.fresh()
    forged.peer_key = real.peer_key  # whoever has the TLS key, and not the root's
    async with serving(Tracker(forged)) as other:
        token = JoinToken(other.url, fingerprint(real.peer_key.public_key()), real.root_public, "s" * 43)
        with pytest.raises(LocalError, match="not signed by the root key"):
            await machine.start(format_join_token(token)).join()
        assert other.heard == [b""], "it was asked what it says of itself, and told nothing"


async def test_a_token_of_another_tracker_is_refused_once_joined(machine: Machine) -> None:
    async with serving(Tracker()) as first, serving(Tracker()) as second:
        await machine.start(await first.invite()).join()
        with pytest.raises(SettingsError, match="for another one"):
            await machine.start(await second.invite()).join()
        assert second.heard == []


async def test_a_tracker_that_has_moved_is_found_by_a_new_token(machine: Machine) -> None:
    tracker = Tracker()
    async with serving(tracker):
        before = await machine.start(await tracker.invite()).join()
    async with serving(tracker):
        after = await machine.start(await tracker.invite()).join()
        assert (after.url, after.token) == (tracker.url, before.token)


async def test_without_anything_to_join_with_it_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(SettingsError, match="node-token"):
        await machine.start().join()


async def test_another_identity_cannot_use_what_was_kept(machine: Machine) -> None:
    async with serving(Tracker()) as tracker:
        await machine.start(await tracker.invite()).join()
    thief = Machine()
    thief.memory = machine.memory
    with pytest.raises(SettingsError, match="identity"):
        await thief.start().join()


async def test_a_join_file_may_be_gone_later(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with serving(Tracker()) as tracker:
        path.write_text(await tracker.invite() + "\n")
        await machine.start(join_file=str(path)).join()
    path.unlink()
    await machine.start(join_file=str(path)).join()
    with pytest.raises(SettingsError, match="cannot be read"):
        await Machine().start(join_file=str(path)).join()


async def test_joining_by_an_identity_token(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("header.payload.signature\n")
    async with serving(Tracker()) as tracker:
        tracker.subjects["header.payload.signature"] = "system:serviceaccount:kube-system:p2pregistry-node"
        ring = tracker.keyring
        stated = {"url": tracker.url, "peer_id": ring.peer_id, "root_key": ring.root_public}
        member = await machine.start(id_token_file=str(path), **stated).join()
        assert member.credential.pulls == ()
        with pytest.raises(SettingsError, match=r"tracker\.peer_id"):
            await Machine().start(id_token_file=str(path), url=tracker.url).join()


async def renewed(machine: Machine, token: str) -> None:
    """Until the node has another credential than this one."""
    with trio.fail_after(PATIENCE):
        while decode(machine.memory.values[MEMBERSHIP]).token == token:
            await trio.sleep(0.01)


async def test_a_credential_is_renewed_when_half_of_its_life_is_over(machine: Machine) -> None:
    async with serving(Tracker()) as tracker, trio.open_nursery() as nursery:
        tracker.lasts = 4.0
        joining = machine.start(await tracker.invite())
        first = await joining.join()
        began = trio.current_time()
        nursery.start_soon(joining.run, time.time)
        await renewed(machine, first.token)
        assert 0.5 <= trio.current_time() - began < 4.0
        assert joining.membership.credential.expires > first.credential.expires
        nursery.cancel_scope.cancel()


async def test_a_node_that_was_given_more_has_it_at_once(machine: Machine) -> None:
    async with serving(Tracker()) as tracker, trio.open_nursery() as nursery:
        joining = machine.start(await tracker.invite())
        first = await joining.join()
        nursery.start_soon(joining.run, time.time)
        await tracker.nodes.regrant(machine.peer_id, ["other/*"], None, BY)
        joining.hurry()
        await renewed(machine, first.token)
        assert joining.membership.credential.pulls == ("other/*",)
        nursery.cancel_scope.cancel()


async def test_a_node_that_was_away_for_long_renews_by_its_key(machine: Machine) -> None:
    async with serving(Tracker()) as tracker, trio.open_nursery() as nursery:
        first = await machine.start(await tracker.invite()).join()
        old = replace(first, credential=replace(first.credential, issued=1, expires=2), token="old")
        machine.memory.values[MEMBERSHIP] = encode(old)
        joining = machine.start()
        await joining.join()
        nursery.start_soon(joining.run, time.time)
        await renewed(machine, "old")
        assert joining.membership.credential.expires >= first.credential.expires
        nursery.cancel_scope.cancel()


async def test_a_revoked_node_gets_no_other_credential(machine: Machine) -> None:
    async with serving(Tracker()) as tracker, trio.open_nursery() as nursery:
        joining = machine.start(await tracker.invite(None))
        first = await joining.join()
        await tracker.nodes.revoke(machine.peer_id, True, BY)
        before = len(tracker.heard)
        nursery.start_soon(joining.run, time.time)
        joining.hurry()
        # what it says of itself, a nonce, the request: to renew, and to join with the token again
        with trio.fail_after(PATIENCE):
            while len(tracker.heard) - before < 6:
                await trio.sleep(0.01)
        assert joining.membership.token == first.token
        nursery.cancel_scope.cancel()


def test_the_secret_is_kept_nowhere(machine: Machine) -> None:
    async def run() -> str:
        async with serving(Tracker()) as tracker:
            word = await tracker.invite()
            await machine.start(word).join()
            return parse_join_token(word).secret

    secret = trio.run(run)
    assert not any(secret.encode() in value for value in machine.memory.values.values())
