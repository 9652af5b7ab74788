"""How nodes are let in: what they must show, and what nobody gets by showing it twice or for somebody else."""

from __future__ import annotations

import hashlib
import json
import secrets

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import RequestError
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.serve.http import Request
from p2pregistry.testing.handlers import ScriptedBody
from p2pregistry.trust.proof import sign_proof
from p2pregistry.trust.records import Credential
from tracker.catalog.nodes import Grant
from tracker.catalog.nodes_check import BY
from tracker.catalog.nodes_memory import MemoryNodes
from tracker.enrolment import CREDENTIAL_PATH, ENROL_PATH, Asked, Enrolment, read_asked

SECRET = "s" * 43
GRANT = Grant("default", ("acme/**",), {"zone": "a"})


def key() -> tuple[Ed25519PrivateKey, str]:
    made = Ed25519PrivateKey.generate()
    return made, base58(peer_id_of(made))


NODE, PEER = key()
OWN = key()[1]


class Desk:
    """An enrolment over memory, whose credentials are kept as they are in place of being signed."""

    def __init__(self) -> None:
        self.nodes = MemoryNodes()
        self.issued: set[str] = set()
        self.signed: list[Credential] = []
        self.subjects: dict[str, str] = {}
        self.enrolment = Enrolment(
            self.nodes,
            own=OWN,
            swarm="default",
            lasts=3600.0,
            take=self.take,
            sign=self.sign,
            swarm_fields=self.fields,
            identities=self,
            granted=Grant("default", (), {"from": "kubernetes"}),
        )

    def nonce(self) -> str:
        made = secrets.token_hex(8)
        self.issued.add(made)
        return made

    async def take(self, nonce: str) -> bool:
        there = nonce in self.issued
        self.issued.discard(nonce)
        return there

    def sign(self, credential: Credential) -> str:
        self.signed.append(credential)
        return f"credential {len(self.signed)}"

    def fields(self) -> dict[str, object]:
        return {"swarm": "default"}

    async def subject(self, token: str) -> str:
        return self.subjects[token]

    async def token(self, uses: int | None = 1) -> None:
        await self.nodes.add_token(hashlib.sha256(SECRET.encode()).digest(), GRANT, uses, 3600.0, BY)

    def asked(self, secret: str | None = SECRET, id_token: str | None = None) -> Asked:
        nonce = self.nonce()
        return Asked(PEER, nonce, sign_proof(NODE, nonce, OWN), secret, id_token)

    async def refusal(self, asked: Asked) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await self.enrolment.enrol(asked, BY)
        assert SECRET not in str(caught.value)
        return caught.value


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_join_token_makes_a_credential_for_the_peer_id_that_was_proved(desk: Desk) -> None:
    await desk.token()
    assert await desk.enrolment.enrol(desk.asked(), BY) == "credential 1"
    (made,) = desk.signed
    assert (made.peer_id, made.swarm, made.pulls, made.labels) == (PEER, "default", ("acme/**",), {"zone": "a"})
    assert made.expires - made.issued == 3600
    assert await desk.enrolment.renew(desk.asked(None)) == "credential 2"
    # the answer was lost: the same node asks again with the same token
    assert await desk.enrolment.enrol(desk.asked(), BY) == "credential 3"


async def test_what_was_overheard_is_of_no_use_again(desk: Desk) -> None:
    await desk.token(None)
    asked = desk.asked()
    await desk.enrolment.enrol(asked, BY)
    assert "used before" in (await desk.refusal(asked)).message


async def test_a_secret_gives_nobody_the_identity_of_another(desk: Desk) -> None:
    await desk.token(None)
    thief, own = key()
    nonce = desk.nonce()
    for proof in (sign_proof(thief, nonce, OWN), sign_proof(NODE, nonce, own), sign_proof(NODE, "another", OWN), ""):
        assert (await desk.refusal(Asked(PEER, nonce, proof, SECRET))).code == "DENIED"
    assert await desk.nodes.nodes() == []


async def test_a_bad_proof_costs_no_use_of_the_token(desk: Desk) -> None:
    await desk.token()
    await desk.refusal(Asked(PEER, "n", "", SECRET))
    assert [token.uses_left for token in await desk.nodes.tokens()] == [1]
    await desk.enrolment.enrol(desk.asked(), BY)


async def test_a_wrong_secret_is_refused(desk: Desk) -> None:
    await desk.token()
    assert "does not know" in (await desk.refusal(desk.asked("x" * 43))).message


async def test_one_of_secret_and_id_token_is_wanted(desk: Desk) -> None:
    for asked in (desk.asked(None), desk.asked(SECRET, "token")):
        assert (await desk.refusal(asked)).status == 400


async def test_a_node_may_join_by_who_it_is(desk: Desk) -> None:
    desk.subjects["good"] = "system:serviceaccount:kube-system:p2pregistry"
    await desk.enrolment.enrol(desk.asked(None, "good"), BY)
    assert desk.signed[0].labels == {"from": "kubernetes"}
    node = await desk.nodes.node(PEER)
    assert node is not None
    assert node.joined_by == "system:serviceaccount:kube-system:p2pregistry"


async def test_a_revoked_node_gets_nothing_whatever_it_shows(desk: Desk) -> None:
    await desk.token(None)
    desk.subjects["good"] = "somebody"
    await desk.enrolment.enrol(desk.asked(), BY)
    await desk.nodes.revoke(PEER, True, BY)
    for asked in (desk.asked(), desk.asked(None, "good")):
        assert "revoked" in (await desk.refusal(asked)).message
    with pytest.raises(RequestError, match="revoked"):
        await desk.enrolment.renew(desk.asked(None))


def request(path: str, document: object, method: str = "POST") -> Request:
    return Request(method, path, (), ScriptedBody([json.dumps(document).encode()]), client="192.0.2.1")


async def test_over_http(desk: Desk) -> None:
    await desk.token()
    answer = await desk.enrolment(request(ENROL_PATH, msgspec.to_builtins(desk.asked())))
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body) == {"swarm": "default", "peer_id": OWN, "credential": "credential 1"}
    assert ("Cache-Control", "no-store") in answer.headers
    renewed = await desk.enrolment(request(CREDENTIAL_PATH, msgspec.to_builtins(desk.asked(None))))
    assert isinstance(renewed.body, bytes)
    assert json.loads(renewed.body) == {"credential": "credential 2"}
    facts = await desk.enrolment(request(ENROL_PATH, {}, "GET"))
    assert isinstance(facts.body, bytes)
    assert json.loads(facts.body) == {"swarm": "default", "peer_id": OWN}
    with pytest.raises(RequestError) as wrong:
        await desk.enrolment(request(CREDENTIAL_PATH, {}, "GET"))
    assert wrong.value.status == 405


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Parses or raises RequestError (400)."""
    try:
        read_asked(data)
    except RequestError as err:
        found = err
    else:
        return
    assert found.status == 400
    assert found.__cause__ is None
