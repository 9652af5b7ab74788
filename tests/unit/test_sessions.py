"""Sessions between nodes: who shows its credential once is known for a while, and nobody else is."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.gate import Gate, MemoryDesk, plain
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.serve.turnstile import Turnstile
from p2pregistry.sessions import (
    DRIFT,
    MAX_OPENING,
    NONCE_LIFE,
    SESSION_LIFE,
    USED_LIFE,
    Granted,
    Nonces,
    Opening,
    Sessions,
    Used,
    encode_granted,
    encode_nonce,
    encode_opening,
    read_granted,
    read_nonce,
    read_opening,
    token_of,
)
from p2pregistry.testing.handlers import ScriptedBody, call
from p2pregistry.testing.members import Authority, Member, open_session
from p2pregistry.testing.sessions import Clock, Place, check_desk
from p2pregistry.trust.proof import sign_proof
from p2pregistry.trust.records import ANYONE, Caller, Credential, named_peer

#: What a stranger can put into a message.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["nonce", "session"]), inner),
    max_leaves=10,
)
#: Requests of somebody without a session.
STRANGE = [("POST", "/p2p/v1/nonce")] * 2 + [("POST", "/p2p/v1/session")] * 2 + [("GET", "/p2p/v1/x")] * 2
STRANGE += [("POST", "/p2p/v1/nonce"), ("POST", "/p2p/v1/session")]
BYTES = st.binary() | JSON.map(lambda value: json.dumps(value).encode())


def credential(peer_id: str) -> Credential:
    return Credential(peer_id, "default", "c", 0, 1)


def passes(_credential: Credential, _peer_id: str) -> None:
    pass


def fails(_credential: Credential, _peer_id: str) -> None:
    raise BadContent("revoked")


def counted() -> Iterator[bytes]:
    for number in range(10**6):
        yield number.to_bytes(32, "big")


def draws() -> Any:
    numbers = counted()
    return lambda count: next(numbers)[-count:]


# ---------------------------------------------------------------------------------------------------------- messages


@given(BYTES)
def test_any_bytes_are_a_message_or_an_error_of_ours(data: bytes) -> None:
    for read in (read_nonce, read_granted):
        with contextlib.suppress(BadContent):
            read(data)
    with contextlib.suppress(RequestError):
        read_opening(data)


@given(st.text(), st.text())
def test_messages_come_out_as_they_went_in(one: str, other: str) -> None:
    assert read_nonce(encode_nonce(one)) == one
    assert read_opening(encode_opening(Opening(one, other))) == Opening(one, other)


@pytest.mark.parametrize(
    "granted",
    [Granted("", 600), Granted("a b", 600), Granted("a\r\nb", 600), Granted("\u00e4", 600), Granted("x" * 5000, 600)]
    + [Granted("token", seconds) for seconds in (0.0, -1.0, 1e9)],
)
def test_a_session_that_could_not_be_sent_is_not_taken(granted: Granted) -> None:
    with pytest.raises(BadContent):
        read_granted(encode_granted(granted))


@given(st.text())
def test_any_text_names_a_peer_or_is_no_credential(text: str) -> None:
    for token in (text, f"v4.public.{text}", "v4.public." + base64.urlsafe_b64encode(text.encode()).decode()):
        with contextlib.suppress(BadContent):
            named_peer(token)


def test_a_credential_names_its_peer() -> None:
    member = Member()
    assert named_peer(Authority().issue(member.peer_id)) == member.peer_id


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Session abc", "abc"),
        ("session abc", "abc"),
        ("Session ", None),
        ("Session", None),
        ("Bearer abc", None),
        ("", None),
        (None, None),
        ("Session " + "x" * 5000, None),
    ],
)
def test_the_token_of_a_header(header: str | None, token: str | None) -> None:
    assert token_of(header) == token


# ---------------------------------------------------------------------------------------------------- nonces, sessions


def test_a_nonce_is_known_again_for_a_while_by_all_who_have_the_key() -> None:
    one, other = Nonces(b"k" * 32, draws()), Nonces(b"k" * 32, draws())
    nonce = one.issue(1000.0)
    assert other.good(nonce, 1000.0 - DRIFT)
    assert other.good(nonce, 1000.0 + NONCE_LIFE)
    assert not other.good(nonce, 1000.0 + NONCE_LIFE + 0.01)
    assert not other.good(nonce, 1000.0 - DRIFT - 0.01)
    assert not Nonces(b"l" * 32, draws()).good(nonce, 1000.0)
    assert one.issue(1000.0) != nonce


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_what_others_made_is_no_nonce(text: str) -> None:
    assert not Nonces(b"k" * 32, draws()).good(text, 0.0)


@given(st.integers(0, 52), st.characters(codec="ascii"))
def test_a_nonce_that_was_changed_is_none(at: int, character: str) -> None:
    nonces = Nonces(b"k" * 32, draws())
    nonce = nonces.issue(5.0)
    changed = nonce[:at] + character + nonce[at + 1 :]
    assert nonces.good(changed, 5.0) == (changed == nonce)


def test_used_nonces_are_kept_while_they_could_come_again_and_are_bounded() -> None:
    used = Used(limit=3)
    assert used.take("a", 0.0)
    assert not used.take("a", 1.0)
    assert used.take("b", 1.0)
    assert used.take("c", 2.0)
    assert not used.take("d", 3.0), "rather no new sessions than an old nonce taken twice"
    assert used.take("d", USED_LIFE)
    assert not used.take("b", USED_LIFE)


def test_sessions_are_bounded_in_all_and_for_each_peer() -> None:
    sessions = Sessions(limit=4, per_peer=2)
    for number in range(100):
        sessions.add(f"greedy {number}", credential("greedy"), 0.0)
    assert len(sessions) == 2
    assert sessions.caller("greedy 99", 0.0, passes) == Caller("greedy", ())
    assert sessions.caller("greedy 97", 0.0, passes) is None
    for number in range(4):
        sessions.add(f"other {number}", credential(f"other {number}"), 0.0)
    assert len(sessions) == 4
    assert sessions.caller("greedy 99", 0.0, passes) is None


def test_a_session_that_ended_is_forgotten() -> None:
    sessions = Sessions()
    sessions.add("a", credential("a"), 0.0)
    sessions.add("b", credential("b"), 0.0)
    assert sessions.caller("a", 1.0, fails) is None
    assert sessions.caller("b", SESSION_LIFE, passes) is None
    assert len(sessions) == 0


async def test_a_desk_in_memory_keeps_every_promise() -> None:
    clock, own = Clock(), Member().peer_id
    authority = Authority(clock=clock)

    async def revoke(peer_id: str) -> None:
        authority.revoked.add(peer_id)

    await check_desk(Place(MemoryDesk(authority, own, clock=clock), own, authority, clock, revoke))


# --------------------------------------------------------------------------------------------------------------- gate


class Behind:
    """A handler that remembers who called."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def __call__(self, request: Request) -> Response:
        self.callers.append(request.caller)
        return Response(200, [], b"content")


async def test_the_gate_lets_nobody_through_without_a_session() -> None:
    behind, authority, own = Behind(), Authority(), Member().peer_id
    gate = Gate(behind, MemoryDesk(authority, own), open_paths=["/p2p/v1/enrol"])
    refused: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "Session nonsense")],
        [("authorization", "Basic YTpi")],
    ]
    for headers in refused:
        answer = await call(gate, "GET", "/p2p/v1/swarm", headers=headers)
        assert (answer.status, answer.headers["p2p-session"], answer.code) == (401, "required", "UNAUTHORIZED")
    assert behind.callers == []
    assert (await call(gate, "POST", "/p2p/v1/enrol", b"{}")).status == 200
    assert behind.callers == [ANYONE]


async def test_the_gate_makes_a_session_and_knows_it_again() -> None:
    behind, authority, own, member = Behind(), Authority(), Member().peer_id, Member()
    gate = Gate(behind, MemoryDesk(authority, own))
    answer = await call(gate, "POST", "/p2p/v1/nonce")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    proof = sign_proof(member.key, answer.json()["nonce"], own)
    body = json.dumps({"credential": authority.issue(member.peer_id, pulls=("a/*",)), "proof": proof}).encode()
    made = await call(gate, "POST", "/p2p/v1/session", body)
    assert (made.status, made.headers["cache-control"]) == (200, "no-store")
    headers = [("authorization", f"Session {made.json()['session']}")]
    assert (await call(gate, "GET", "/p2p/v1/anything", headers=headers)).status == 200
    assert behind.callers == [Caller(member.peer_id, ("a/*",))]
    authority.revoked.add(member.peer_id)
    assert (await call(gate, "GET", "/p2p/v1/anything", headers=headers)).status == 401
    assert (await call(gate, "POST", "/p2p/v1/session", body)).status == 401


async def test_an_endless_answer_ends_when_its_receiver_is_not_known_any_more(autojump_clock: trio.abc.Clock) -> None:
    closed = trio.Event()

    async def lines() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"line\n"
                await trio.sleep(1)
        finally:
            closed.set()

    async def tell(_request: Request) -> Response:
        return Response(200, [], Stream(lines(), None, endless=True))

    authority, own, member = Authority(), Member().peer_id, Member()
    desk = MemoryDesk(authority, own)
    token = await open_session(desk, member, authority.issue(member.peer_id), own)
    request = Request("POST", "/p2p/v1/have", (("authorization", f"Session {token}"),), ScriptedBody([]))
    body = (await Gate(tell, desk)(request)).body
    assert isinstance(body, Stream)
    started = trio.current_time()
    async for _ in body.chunks:
        if trio.current_time() - started >= 20:
            authority.revoked.add(member.peer_id)
    assert 20 <= trio.current_time() - started <= 26
    await body.chunks.aclose()  # type: ignore[union-attr]  # as the listener does
    assert closed.is_set()


@pytest.mark.parametrize("path", ["/p2p/v1/nonce", "/p2p/v1/session"])
async def test_sessions_are_made_with_post_only(path: str) -> None:
    gate = Gate(Behind(), MemoryDesk(Authority(), Member().peer_id))
    answer = await call(gate, "GET", path)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_a_request_for_a_session_has_a_longest_length() -> None:
    gate = Gate(Behind(), MemoryDesk(Authority(), Member().peer_id))
    assert (await call(gate, "POST", "/p2p/v1/session", b"x" * (MAX_OPENING + 1))).status == 413
    assert (await call(gate, "POST", "/p2p/v1/session", b"{}")).status == 400


async def test_who_asks_too_often_is_told_to_wait(autojump_clock: trio.abc.Clock) -> None:
    behind, authority, own, member = Behind(), Authority(), Member().peer_id, Member()
    desk = MemoryDesk(authority, own)
    gate = Gate(behind, desk, per_peer=Turnstile(1, 3), per_address=Turnstile(1, 5))
    token = await open_session(desk, member, authority.issue(member.peer_id), own)
    headers = [("authorization", f"Session {token}")]
    answers = [await call(gate, "GET", "/p2p/v1/x", headers=headers) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert (answers[-1].code, answers[-1].headers["retry-after"]) == ("TOOMANYREQUESTS", "1")
    statuses = [(await call(gate, method, path)).status for method, path in STRANGE]
    assert statuses == [200, 200, 400, 400, 401, 429, 429, 429], "without a session they count by their address"
    await trio.sleep(1)
    assert (await call(gate, "GET", "/p2p/v1/x", headers=headers)).status == 200
    assert (await call(gate, "POST", "/p2p/v1/nonce")).status == 200


async def test_on_a_trusted_network_one_address_cannot_ask_for_ever(autojump_clock: trio.abc.Clock) -> None:
    handler = plain(Behind(), private=False, per_address=Turnstile(1, 2))
    statuses = [(await call(handler, "GET", "/", client=client)).status for client in ["192.0.2.1"] * 3 + ["192.0.2.2"]]
    assert statuses == [200, 200, 429, 200]
    assert (await call(handler, "GET", "/", client="127.0.0.1")).status == 200


async def test_on_a_trusted_network_everybody_is_anyone_or_may_have_everything() -> None:
    behind = Behind()
    await call(plain(behind, private=False), "GET", "/")
    await call(plain(behind, private=True), "GET", "/")
    assert behind.callers == [ANYONE, Caller(everything=True)]
