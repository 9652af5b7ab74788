"""Sessions over real connections: made once, kept over all connections, made again when the server forgot."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from p2pregistry.errors import NotFound, Unreachable
from p2pregistry.serve.gate import Gate, MemoryDesk
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.wire import Client
from p2pregistry.testing.http import running
from p2pregistry.testing.members import Authority, Member
from p2pregistry.testing.sessions import Clock

TARGET = "/p2p/v1/thing"


class Server:
    """A peer whose sessions can be forgotten; it counts what is asked."""

    def __init__(self, authority: Authority) -> None:
        self.member, self.authority = Member(), authority
        self.asked: Counter[str] = Counter()
        self.callers: list[str] = []
        self.slow = 0.0
        self.forget()

    def forget(self) -> None:
        self._gate: Handler = Gate(self._content, MemoryDesk(self.authority, self.member.peer_id))

    async def __call__(self, request: Request) -> Response:
        self.asked[request.path] += 1
        if request.path == "/p2p/v1/nonce":
            await trio.sleep(self.slow)
        return await self._gate(request)

    async def _content(self, request: Request) -> Response:
        self.callers.append(request.caller.peer_id)
        if request.method == "POST":
            return Response(200, [], b"one line\n")
        return Response(200, [], b"content")


class Caller:
    def __init__(self, authority: Authority) -> None:
        self.member = Member()
        self.credential: str | None = authority.issue(self.member.peer_id)
        self.speaker = Speaker(self.member.key, lambda: self.credential)

    def to(self, server: Server, url: str) -> Client:
        return Client(url, peer_id=server.member.peer_id, speaker=self.speaker)


async def get(client: Client) -> bytes:
    return await client.get(TARGET, limit=100)


async def test_a_crowd_of_requests_makes_one_session(autojump_clock: trio.abc.Clock) -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(authority)
    server.slow = 0.5
    async with running(server) as url:
        clients = [caller.to(server, url) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(get, clients[number % 3])
        assert await get(clients[0]) == b"content"
        for client in clients:
            client.close()
    assert server.asked == {"/p2p/v1/nonce": 1, "/p2p/v1/session": 1, TARGET: 31}
    assert set(server.callers) == {caller.member.peer_id}


async def test_a_session_that_the_server_forgot_is_made_again_once() -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(authority)
    async with running(server) as url:
        client = caller.to(server, url)
        await get(client)
        server.forget()
        server.asked.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(get, client)
        client.close()
    assert (server.asked["/p2p/v1/nonce"], server.asked["/p2p/v1/session"]) == (1, 1)
    assert 11 <= server.asked[TARGET] <= 20, "each is repeated at most once"


async def test_a_new_credential_gets_a_new_session() -> None:
    """What a node may do is what the credential says that its session was made with."""
    authority = Authority()
    server, caller = Server(authority), Caller(authority)
    async with running(server) as url:
        client = caller.to(server, url)
        await get(client)
        caller.credential = authority.issue(caller.member.peer_id, pulls=("acme/**",))
        await get(client)
        await get(client)
        client.close()
    assert server.asked == {"/p2p/v1/nonce": 2, "/p2p/v1/session": 2, TARGET: 3}


async def test_lines_are_asked_for_with_a_session_too_and_again_where_it_was_forgotten() -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(authority)
    async with running(server) as url:
        client = caller.to(server, url)
        for _ in range(2):
            async with client.lines(TARGET, {}, b"{}", silence=5.0, limit=100) as lines:
                assert [line async for line in lines] == [b"one line"]
            server.forget()
        client.close()
    assert server.asked == {"/p2p/v1/nonce": 2, "/p2p/v1/session": 2, TARGET: 3}


async def test_who_is_not_believed_asks_no_more() -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(Authority())
    async with running(server) as url:
        client = caller.to(server, url)
        with pytest.raises(Unreachable, match="no session"):
            await get(client)
        caller.credential = None
        with pytest.raises(Unreachable, match="no credential"):
            await get(client)
        client.close()
    assert server.asked[TARGET] == 0


async def test_a_server_that_takes_no_session_it_gave_is_asked_twice() -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(authority)

    async def forgetful(request: Request) -> Response:
        server.forget()
        return await server(request)

    async def ours(request: Request) -> Response:
        return await (forgetful if request.path == TARGET else server)(request)

    async with running(ours) as url:
        client = caller.to(server, url)
        with pytest.raises(Unreachable, match="401"):
            await get(client)
        client.close()
    assert server.asked[TARGET] == 2


async def test_a_server_without_sessions_is_no_place_to_go_on() -> None:
    async def old(_request: Request) -> Response:
        raise NotFound("NAME_UNKNOWN", "nothing here")

    caller = Caller(Authority())
    async with running(old) as url:
        client = Client(url, peer_id=Member().peer_id, speaker=caller.speaker)
        with pytest.raises(Unreachable):
            await get(client)
        client.close()


async def test_a_session_begun_by_a_request_that_was_cancelled_is_made_by_the_next(
    autojump_clock: trio.abc.Clock,
) -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(authority)
    server.slow = 2.0
    got: list[bytes] = []

    async def patient() -> None:
        got.append(await get(client))

    async with running(server) as url:
        client = caller.to(server, url)
        async with trio.open_nursery() as nursery:

            async def impatient() -> None:
                with trio.move_on_after(1.0):
                    await get(client)

            nursery.start_soon(impatient)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(patient)
        client.close()
    assert got == [b"content"]


async def test_those_who_wait_for_a_session_that_fails_fail_with_it(autojump_clock: trio.abc.Clock) -> None:
    authority = Authority()
    server, caller = Server(authority), Caller(Authority())
    server.slow = 1.0
    failed: list[str] = []

    async def attempt() -> None:
        try:
            await get(client)
        except Unreachable as err:
            failed.append(err.message)

    async with running(server) as url:
        client = caller.to(server, url)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(attempt)
        client.close()
    assert len(failed) == 5
    assert server.asked["/p2p/v1/session"] == 1


async def test_clocks_that_are_far_apart_do_not_matter(autojump_clock: trio.abc.Clock) -> None:
    there = Clock()
    authority = Authority(clock=there)
    server, caller = Server(authority), Caller(authority)
    there.now += 3600
    async with running(server) as url:
        client = caller.to(server, url)
        assert await get(client) == b"content"
        client.close()


async def test_what_was_shown_to_one_server_is_of_no_use_at_another() -> None:
    """A server in the middle passes on another's nonce and the proof it gets for it."""
    authority = Authority()
    server, caller, middle = Server(authority), Caller(authority), Member()
    async with running(server) as url:
        client = Client(url, peer_id=middle.peer_id, speaker=caller.speaker)  # it believes to talk to the middle
        with pytest.raises(Unreachable, match="401"):
            await get(client)
        client.close()
    assert server.callers == []
