"""TLS between nodes over real sockets: with the right one whole, with anybody else nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.digest import Digest
from p2pregistry.errors import Unreachable
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.listen import Limits
from p2pregistry.sources.wire import Client
from p2pregistry.testing.http import PATIENCE, connect, running
from p2pregistry.trust.certificate import client_context, server_context
from p2pregistry.trust.proof import fingerprint

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PEER = base58(peer_id_of(KEY))
TLS = server_context(KEY)
SIZE = 5_000_001
BODY = os.urandom(SIZE)


class OpenFile:
    """A blob in a file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.size = path.stat().st_size

    digest = Digest.of(BODY)

    def fileno(self) -> int | None:
        return self.fd

    async def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        os.close(self.fd)


@asynccontextmanager
async def client(url: str, connect_timeout: float = 3.0) -> AsyncIterator[Client]:
    made = Client(url, peer_id=PEER, plain=False, connect_timeout=connect_timeout)
    try:
        yield made
    finally:
        made.close()


async def read(made: Client, target: str, chunk: int = 1 << 20) -> bytes:
    async with made.request("GET", target) as answer:
        data = bytearray(answer.left)
        view = memoryview(data)
        while view:
            view = view[await answer.read_into(view[:chunk]) :]
        return bytes(data)


def content(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """A handler for ``/OFFSET/LENGTH`` of a file, ``/bytes``, ``/stream`` and ``/echo``."""

    async def lines() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number

    async def handle(request: Request) -> Response:
        assert request.scheme == "https"
        match request.path.split("/")[1:]:
            case ["bytes"]:
                return Response(200, [], BODY)
            case ["lines"]:
                return Response(200, [], Stream(lines(), None))
            case ["echo"]:
                return Response(200, [], await request.body.read(SIZE))
            case [offset, length]:
                return Response(200, [], BlobSlice(OpenFile(path), int(offset), int(length)))
            case _:
                raise AssertionError(request.path)

    return handle


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    (tmp_path / "blob").write_bytes(BODY)
    return tmp_path / "blob"


@pytest.mark.parametrize("chunk", [1 << 20, 100_000, 7_000])
async def test_bodies_of_every_size_come_whole_on_one_connection(blob: Path, chunk: int) -> None:
    async with running(content(blob), tls=TLS) as url, client(url) as made:
        with trio.fail_after(PATIENCE):
            for offset, length in ((0, SIZE), (0, 0), (1, 1), (16_384, 16_384), (SIZE - 20_000, 20_000), (3, 1 << 20)):
                assert await read(made, f"/{offset}/{length}", chunk) == BODY[offset : offset + length]
            assert await read(made, "/bytes", chunk) == BODY
            async with made.request("POST", "/echo", body=BODY) as answer:
                assert await answer.read(SIZE) == BODY
            async with made.lines("/lines", {}, b"", silence=5.0, limit=100) as lines:
                assert [line async for line in lines] == [b"%d" % number for number in range(1000)]


async def test_many_at_once(blob: Path) -> None:
    async with running(content(blob), tls=TLS) as url, client(url) as made:

        async def ask(number: int) -> None:
            assert await read(made, f"/{number}/{1 << 20}", 50_000) == BODY[number : number + (1 << 20)]

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(ask, number)


async def test_a_connection_that_the_server_has_ended_meanwhile_is_made_again(blob: Path) -> None:
    async with running(content(blob), tls=TLS, limits=Limits(idle_time=0.1)) as url, client(url) as made:
        for _ in range(2):
            assert await made.get("/1/2", limit=10) == BODY[1:3]
            await trio.sleep(0.4)


async def test_body_in_crumbs_ends_in_time(blob: Path) -> None:
    """However few bytes of the last record are on their way, the low-water mark is below them."""
    async with running(content(blob), tls=TLS) as url, trickle(url, 7_001) as there, client(there) as made:
        with trio.fail_after(PATIENCE):
            for length in (1, 16_383, 16_385, 33_000, 90_000, 150_001):
                assert await read(made, f"/0/{length}") == BODY[:length]


@asynccontextmanager
async def trickle(url: str, step: int) -> AsyncIterator[str]:
    """What passes bytes on to ``url``, and back ``step`` at a time with pauses."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(near: trio.SocketStream) -> None:
        far = await connect(url.replace("https", "http"))
        assert isinstance(far, trio.SocketStream)

        async def back() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await far.receive_some(step):
                    await near.send_all(data)
                    await trio.sleep(0.002)

        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(back)
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await near.receive_some():
                    await far.send_all(data)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_one_whose_fingerprint_is_known(blob: Path) -> None:
    async with running(content(blob), tls=TLS) as url:
        made = Client(url, fingerprint=fingerprint(KEY.public_key()))
        assert await made.get("/1/2", limit=10) == BODY[1:3]
        made.close()


class Spy:
    """A server that keeps what it is sent once TLS stands."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.heard = b""
        self.ended = trio.Event()
        self._context = server_context(key)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            tls = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
            try:
                while data := await tls.receive_some():
                    self.heard += data
            except trio.BrokenResourceError:
                pass
            self.ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("peer_id", "print_"), [(PEER, ""), ("", fingerprint(KEY.public_key()))], ids=["peer id", "fingerprint"]
)
async def test_somebody_else_is_told_nothing(peer_id: str, print_: str) -> None:
    spy = Spy(OTHER)
    async with spy.serving() as url:
        made = Client(url, peer_id=peer_id, fingerprint=print_)
        with pytest.raises(Unreachable, match="another key"):
            await made.get("/secret", limit=10)
        with trio.fail_after(PATIENCE):
            await spy.ended.wait()
        assert spy.heard == b""


@pytest.mark.parametrize(
    ("url", "peer_id"),
    [("http://a:1", PEER), ("https://a:1", ""), ("https://a:1", "x"), ("https://a:1", "Qm" * 23)],
    ids=["plain", "nobody", "no peer id", "another kind of key"],
)
def test_without_somebody_to_expect_there_is_no_client(url: str, peer_id: str) -> None:
    with pytest.raises(Unreachable):
        Client(url, peer_id=peer_id, plain=False)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\x16\x03\x03\x00\x02ab"])
async def test_what_is_no_tls(said: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with client(f"https://127.0.0.1:{listener.socket.getsockname()[1]}") as made:
            with pytest.raises(Unreachable):
                await made.get("/", limit=10)
        nursery.cancel_scope.cancel()


async def test_one_who_never_shakes_hands() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with client(f"https://127.0.0.1:{listener.socket.getsockname()[1]}", connect_timeout=0.05) as made:
        with pytest.raises(Unreachable, match="no connection"):
            await made.get("/", limit=10)
    await listener.aclose()


@asynccontextmanager
async def cut(url: str, after: int) -> AsyncIterator[str]:
    """What passes bytes on to ``url`` and ends the connection after so many that came from there."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(near: trio.SocketStream) -> None:
        far = await connect(url.replace("https", "http"))
        assert isinstance(far, trio.SocketStream)
        left = after

        async def back() -> None:
            nonlocal left
            with contextlib.suppress(trio.BrokenResourceError):
                while left and (data := await far.receive_some(min(left, 1000))):
                    left -= len(data)
                    await near.send_all(data)
            nursery.cancel_scope.cancel()

        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(back)
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await near.receive_some():
                    await far.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("after", [1, 200, 700, 1000, 20_000, 100_000])
async def test_a_connection_that_is_cut_anywhere_is_unreachable(blob: Path, after: int) -> None:
    async with running(content(blob), tls=TLS) as url, cut(url, after) as there, client(there) as made:
        with trio.fail_after(PATIENCE), pytest.raises(Unreachable):
            await read(made, f"/0/{SIZE}")


async def test_lines_that_are_cut_are_not_taken_for_whole(blob: Path) -> None:
    async with running(content(blob), tls=TLS) as url, cut(url, 2000) as there, client(there) as made:

        async def all_lines() -> list[bytes]:
            async with made.lines("/lines", {}, b"", silence=5.0, limit=100) as lines:
                return [line async for line in lines]

        with trio.fail_after(PATIENCE), pytest.raises(Unreachable):
            await all_lines()


@pytest.mark.parametrize("bytes_first", [0, 1, 100_000])
async def test_cancelled_in_each_phase_the_connection_is_gone_and_the_next_is_whole(
    blob: Path, bytes_first: int
) -> None:
    async with running(content(blob), tls=TLS) as url, client(url) as made:
        with trio.CancelScope() as scope:
            async with made.request("GET", f"/0/{SIZE}") as answer:
                buffer = memoryview(bytearray(SIZE))
                at = 0
                while at < bytes_first:
                    at += await answer.read_into(buffer[at : at + 50_000])
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert await read(made, f"/0/{SIZE}") == BODY


async def test_cancelled_during_a_handshake() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with client(f"https://127.0.0.1:{listener.socket.getsockname()[1]}") as made:
        with trio.move_on_after(0.05) as scope:
            await made.get("/", limit=10)
        assert scope.cancelled_caught
    await listener.aclose()


# --------------------------------------------------------------------------------------------------------- the server


async def test_a_client_that_does_not_shake_hands_loses_its_connection(blob: Path) -> None:
    async with running(content(blob), tls=TLS, limits=Limits(handshake_time=0.1)) as url:
        for said in (b"", b"\x16\x03\x01"):
            raw = await connect(url.replace("https", "http"))
            await raw.send_all(said) if said else None
            with trio.fail_after(PATIENCE):
                assert await ended(raw)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0" * 100, b"\xaa\x55\xf0" * 100], ids=["http", "zeros", "noise"]
)
async def test_one_who_speaks_something_else_is_sent_away_at_once(blob: Path, said: bytes) -> None:
    async with running(content(blob), tls=TLS) as url:
        raw = await connect(url.replace("https", "http"))
        await raw.send_all(said)
        with trio.fail_after(PATIENCE):
            assert await ended(raw)


async def ended(stream: trio.abc.Stream) -> bool:
    """Whether the other side ends it, whatever it says before."""
    try:
        while await stream.receive_some(1000):
            pass
    except trio.BrokenResourceError:
        pass
    await trio.aclose_forcefully(stream)
    return True


async def test_plain_http_gets_a_word_of_explanation(blob: Path) -> None:
    async with running(content(blob), tls=TLS) as url:
        raw = await connect(url.replace("https", "http"))
        await raw.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        said = b""
        with trio.fail_after(PATIENCE):
            while data := await raw.receive_some(1000):
                said += data
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"HTTPS" in said
        await raw.aclose()


async def test_a_handshake_does_not_keep_a_place_from_others(blob: Path) -> None:
    async with running(content(blob), tls=TLS, limits=Limits(connections=1)) as url, client(url) as made:
        idle = await connect(url.replace("https", "http"))
        await idle.send_all(b"\x16")
        with trio.fail_after(PATIENCE):
            assert await made.get("/1/2", limit=10) == BODY[1:3]
            assert await ended(idle)


async def test_a_client_that_takes_nothing_loses_its_connection(blob: Path) -> None:
    async with running(content(blob), tls=TLS, limits=Limits(stall_time=0.2)) as url:
        stream = await connect(url)
        await stream.send_all(b"GET /bytes HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
        await trio.sleep(0.6)
        with trio.fail_after(PATIENCE):
            assert await ended(stream)


async def test_a_slow_reader_gets_it_all(blob: Path) -> None:
    async with (
        running(content(blob), tls=TLS, limits=Limits(stall_time=5.0, unsent=64 << 10)) as url,
        client(url) as made,
        made.request("GET", f"/0/{SIZE}") as answer,
    ):
        data = bytearray(SIZE)
        at = 0
        with trio.fail_after(PATIENCE):
            while at < SIZE:
                at += await answer.read_into(memoryview(data)[at : at + 300_000])
                await trio.sleep(0.01)
        assert data == BODY


@pytest.mark.parametrize("polite", [True, False])
async def test_a_handler_is_cancelled_when_its_client_leaves(polite: bool) -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def handle(_request: Request) -> Response:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with running(handle, tls=TLS, limits=Limits(watch_after=0.05)) as url:
        stream = await connect(url)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await began.wait()
        assert isinstance(stream, trio.SSLStream)
        raw = stream.transport_stream
        if polite:  # says so in TLS, and leaves the connection as it is
            with trio.move_on_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
                await stream.unwrap()
        else:
            await raw.aclose()
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        await raw.aclose()


async def test_what_a_client_sends_ahead_is_not_lost_to_looking_whether_it_is_there(blob: Path) -> None:
    go = trio.Event()

    async def handle(request: Request) -> Response:
        if request.path == "/1":
            await go.wait()
        return Response(200, [], request.path.encode())

    async with running(handle, tls=TLS, limits=Limits(watch_after=0.02)) as url:
        stream = await connect(url)
        await stream.send_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGE")
        await trio.sleep(0.1)
        await stream.send_all(b"T /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(0.1)
        go.set()
        said = b""
        with trio.fail_after(PATIENCE):
            while not said.endswith(b"/2"):
                said += await stream.receive_some(1000)
        assert said.index(b"/1") < said.index(b"/2")
        await trio.aclose_forcefully(stream)


async def test_nothing_older_than_tls_1_3_between_nodes(blob: Path) -> None:
    async with running(content(blob), tls=TLS) as url:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
        raw = await connect(url.replace("https", "http"))
        stream = trio.SSLStream(raw, old, server_hostname=None)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(raw)
    assert client_context().minimum_version == ssl.TLSVersion.TLSv1_3


async def test_a_buffer_is_given_back_however_an_answer_ends(blob: Path) -> None:
    from p2pregistry.serve import sockets

    async with running(content(blob), tls=TLS, limits=Limits(stall_time=0.1)) as url:
        stream = await connect(url)
        await stream.send_all(b"GET /0/5000000 HTTP/1.1\r\nHost: a\r\n\r\n" * 5)
        with trio.fail_after(PATIENCE):
            await trio.sleep(0.4)
        await trio.aclose_forcefully(stream)
    assert 1 <= len(sockets._spare) <= 8


def test_a_socket_that_has_gone_before_its_handshake() -> None:
    from p2pregistry.serve.sockets import SecureSocket

    near, far = socket.socketpair()
    far.close()
    near.setblocking(False)
    secure = SecureSocket(near, TLS)
    with pytest.raises(OSError):
        trio.run(secure.handshake)
    secure.close()
