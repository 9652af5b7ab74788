"""The HTTP client for bulk bytes: right answers whole, everything else one of our errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, NotYet, RemoteBusy, RemoteError, Unreachable
from p2pregistry.sources import wire
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.wire import Answer, Client

BODY = b"0123456789"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """``serve`` is given each connection."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def connection(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client had enough

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        try:
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        except Exception as err:  # not as a group: the tests look for it
            failure = err
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def client(url: str, **options: float) -> AsyncIterator[Client]:
    made = Client(url, **options)
    try:
        yield made
    finally:
        made.close()


async def head_of(stream: trio.SocketStream) -> bytes:
    """The next request; b"" at the end."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = await stream.receive_some(4096)
        if not more:
            return b""
        data += more
    return data


def answering(*answers: bytes, keep: bool = True) -> Serve:
    """One answer after another, on one connection or several."""
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        while left and await head_of(stream):
            await stream.send_all(left.pop(0))
            if not keep:
                return
        if left:
            return
        await stream.send_eof()
        await head_of(stream)

    return serve


async def get(answer: bytes, limit: int = 1000) -> bytes:
    async with server(answering(answer)) as url, client(url) as made:
        with trio.fail_after(20):
            return await made.get("/x", limit=limit)


# -------------------------------------------------------------------------------------------------------- one answer


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, BODY),
        (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, BODY),
        (b"HTTP/1.1 102 X\r\n\r\nHTTP/1.1 103 Y\r\nLink: z\r\n\r\n" + OK, BODY),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY, BODY),
        (b"HTTP/1.1 200 \xfc\r\nX: \xfc\r\nContent-Length: 10\r\n\r\n" + BODY, BODY),
    ],
)
async def test_answers(answer: bytes, body: bytes) -> None:
    assert await get(answer) == body


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Unreachable),
        (b"HTTP/1.1 200 OK\r\nConte", Unreachable),
        (OK[:-1], Unreachable),
        (OK + b"x", BadContent),
        (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, BadContent),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", BadContent),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BadContent),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", BadContent),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000 + b"\r\n", Unreachable),
        (b"HTTP/9 200 OK\r\n\r\n", Unreachable),
        (b"\x16\x03\x01\r\n\r\n", Unreachable),
        (b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\n\r\n", Unreachable),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", NotFound),
        (b"HTTP/1.1 429 Later\r\nContent-Length: 0\r\n\r\n", RemoteBusy),
        (b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown", Unreachable),
        (b"HTTP/1.1 302 Away\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", Unreachable),
        (b"HTTP/1.1 206 Part\r\nContent-Length: 0\r\n\r\n", Unreachable),
        (b"HTTP/1.1 204 None\r\n\r\n", Unreachable),
        (b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n", Unreachable),
    ],
    ids=range(23),
)
async def test_what_is_no_answer(answer: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await get(answer)


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("99999", 60.0),
        ("9" * 500, 60.0),
        ("", 1.0),
        ("-1", 1.0),
        ("Wed, 21 Oct", 1.0),
        ("\xb2", 1.0),
    ],
)
async def test_when_to_come_back(after: str, seconds: float) -> None:
    with pytest.raises(RemoteBusy) as caught:
        await get(f"HTTP/1.1 429 X\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
    assert caught.value.retry_after == seconds


async def test_nobody_listens_there() -> None:
    async with server(answering()) as url:
        pass
    async with client(url) as made:
        with pytest.raises(Unreachable):
            await made.get("/", limit=1)


async def test_silence(autojump_clock: trio.testing.MockClock) -> None:
    """Before a head, and in the middle of a body: ``get`` waits no longer than it was told."""
    for said in (b"", b"HTTP/1.1 200", OK[:-3]):

        async def serve(stream: trio.SocketStream, said: bytes = said) -> None:
            await head_of(stream)
            await stream.send_all(said or b"HTTP/1.1 100 X\r\n\r\n")
            await trio.sleep_forever()

        async with server(serve) as url, client(url, head_timeout=2.0) as made:
            with pytest.raises(Unreachable):
                await made.get("/", limit=100)


@pytest.mark.parametrize(
    "url",
    ["", "x", "https://a", "http://", "http://:1", "http://a:99999", "http://a:x", "http://[::1", "http://a b",
     "http://a\r\nX: y", "http://u:p@a", "http://\u00fc", "http://a\u2028b", "ftp://a"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Unreachable):
        Client(url)


@given(st.one_of(st.text(max_size=40), st.text(max_size=30).map(lambda text: "http://" + text)))
def test_any_address_is_one_or_refused(url: str) -> None:
    with contextlib.suppress(Unreachable):
        Client(url).close()


# ------------------------------------------------------------------------------------------------------- connections


async def test_one_connection_serves_many_requests() -> None:
    connections: list[int] = []
    inner = answering(OK, OK, OK)

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(1)
        await inner(stream)

    async with server(serve) as url, client(url) as made:
        for _ in range(3):
            assert await made.get("/", limit=10) == BODY
    assert len(connections) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY,
    ],
)
async def test_a_connection_that_is_to_be_closed_is_not_used_again(answer: bytes) -> None:
    async with server(answering(answer, OK, keep=False)) as url, client(url) as made:
        assert await made.get("/", limit=10) == BODY
        assert made._idle == []
        assert await made.get("/", limit=10) == BODY


async def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    async with server(answering(OK, OK, keep=False)) as url, client(url) as made:
        assert await made.get("/", limit=10) == BODY
        assert len(made._idle) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert await made.get("/", limit=10) == BODY


async def test_an_old_idle_connection_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[int] = []

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(1)
        while await head_of(stream):
            await stream.send_all(OK)

    async with server(serve) as url, client(url) as made:
        await made.get("/", limit=10)
        monkeypatch.setattr(wire, "IDLE", 0.0)
        await made.get("/", limit=10)
    assert len(connections) == 2


async def test_a_body_that_was_not_read_takes_its_connection_with_it() -> None:
    async with server(answering(OK, OK, keep=False)) as url, client(url) as made:
        async with made.request("GET", "/") as answer:
            assert answer.length == 10
        assert made._idle == []


async def test_after_close_nothing_is_kept() -> None:
    async with server(answering(OK)) as url, client(url) as made:
        async with made.request("GET", "/") as answer:
            made.close()
            assert await answer.read(10) == BODY
        assert made._idle == []


async def test_a_cancelled_request_gives_its_connection_up() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await stream.send_all(OK[:-3])
        await head_of(stream)

    async with server(serve) as url, client(url) as made:
        with trio.move_on_after(0.05) as scope:
            await made.get("/", limit=10)
        assert scope.cancelled_caught
        assert made._idle == []


@pytest.mark.parametrize("body", [b"", b"{}", bytes(300_000)], ids=["none", "short", "long"])
async def test_a_body_goes_with_its_length_also_over_a_connection_that_was_used(body: bytes) -> None:
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while more := await stream.receive_some(4096):
            head += more
            before, found, rest = head.partition(b"\r\n\r\n")
            if not found:
                continue
            length = int(before.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(rest) < length:
                rest += await stream.receive_some(1 << 16)
            seen.append(rest)
            head = b""
            await stream.send_all(OK)

    async with server(serve) as url, client(url) as made:
        for _ in range(2):
            async with made.request("POST", "/", {"X": "y"}, body=body) as answer:
                assert await answer.read(10) == BODY
    assert seen == [body, body]


# ------------------------------------------------------------------------------------------------------- long answers

LONG = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(*parts: bytes, end: bool = True) -> bytes:
    return LONG + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")


async def lines_of(made: Client, *, body: bytes = b"", limit: int = 50) -> list[bytes]:
    async with made.lines("/x", {}, body, silence=20.0, limit=limit) as lines:
        return [line async for line in lines]


async def long_answer(said: bytes) -> list[bytes]:
    async def serve(stream: trio.SocketStream) -> None:
        while not (await stream.receive_some(4096)).endswith(b"{}"):
            pass
        await stream.send_all(said)

    async with server(serve) as url, client(url) as made:
        with trio.fail_after(20):
            return await lines_of(made, body=b"{}")


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (chunked(), []),
        (chunked(b"a\nb\n"), [b"a", b"b"]),
        (chunked(b"a", b"b\n\n", b"c\n"), [b"ab", b"", b"c"]),
        (b"HTTP/1.1 102 X\r\n\r\n" + chunked(b"a\n"), [b"a"]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\n", [b"a", b"b"]),
        (b"HTTP/1.0 200 OK\r\n\r\na\n", [b"a"]),
    ],
    ids=range(6),
)
async def test_lines(said: bytes, lines: list[bytes]) -> None:
    assert await long_answer(said) == lines


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Unreachable),
        (LONG[:-5], Unreachable),
        (chunked(b"a\n", end=False), Unreachable),
        (chunked(b"a\n")[:-1], Unreachable),
        (chunked(b"a\nb"), Unreachable),
        (LONG + b"x\r\n", Unreachable),
        (chunked(b"a" * 51), BadContent),
        (chunked(b"a" * 51 + b"\n"), BadContent),
        (chunked(b"a" * 30, b"b" * 30), BadContent),
        (b"HTTP/1.1 404 N\r\nContent-Length: 2\r\n\r\nno", NotFound),
        (b"HTTP/1.1 429 N\r\nRetry-After: 5\r\nContent-Length: 2\r\n\r\nno", RemoteBusy),
        (b"HTTP/1.1 416 N\r\nContent-Length: 0\r\n\r\n", NotYet),
        (b"HTTP/1.1 204 N\r\n\r\n", Unreachable),
        (b"HTTP/1.1 503 N\r\nTransfer-Encoding: chunked\r\n\r\n", Unreachable),
    ],
    ids=range(14),
)
async def test_what_are_no_lines(said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await long_answer(said)


async def test_a_long_answer_that_falls_silent_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Also one that trickles without an end of line; a line in time, be it empty, keeps it."""
    last = 0.0

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(chunked(b"a\n", end=False))
        await trio.sleep(9)
        await stream.send_all(b"1\r\n\n\r\n")
        while True:
            await trio.sleep(4)
            await stream.send_all(b"1\r\nx\r\n")

    async def listen(made: Client) -> None:
        nonlocal last
        async with made.lines("/x", {}, b"", silence=10.0, limit=50) as lines:
            async for _ in lines:
                last = trio.current_time()

    async with server(serve) as url, client(url) as made:
        start = trio.current_time()
        with pytest.raises(Unreachable):
            await listen(made)
        assert round(last - start) == 9
        assert round(trio.current_time() - last) == 10


@settings(deadline=None)
@given(st.binary(max_size=60).map(lambda data: data.replace(b"x", b"\n")), st.lists(st.integers(1, 12), max_size=9))
def test_lines_are_the_same_however_they_are_split(data: bytes, splits: list[int]) -> None:
    cutter = wire.LineCutter(100)
    found: list[bytes] = []
    at = 0
    for size in [*splits, len(data)]:
        found += cutter.feed(data[at : at + size])
        at += size
    assert found == data.split(b"\n")[:-1]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    parts=st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.just(b"\n")), max_size=6),
    splits=st.lists(st.integers(1, 30), max_size=6),
    cut=st.none() | st.integers(1, 10),
)
def test_a_long_answer_is_the_same_however_it_is_split(parts: list[bytes], splits: list[int], cut: int | None) -> None:
    whole = b"".join(parts) + b"\n"

    async def use(made: Client) -> bytes:
        return b"\n".join([*await lines_of(made, limit=1000), b""])

    found = talk(chunked(*parts, b"\n")[: None if cut is None else -cut], splits, use)
    if cut is None:
        assert found == whole
    else:
        assert isinstance(found, Unreachable)


async def test_a_bulk_transfer_may_wait_long_for_its_head(autojump_clock: trio.testing.MockClock) -> None:
    """It waits for its turn there; whoever asks cancels what takes too long."""

    async def serve(stream: trio.SocketStream) -> None:
        while await head_of(stream):
            await trio.sleep(1000)
            await stream.send_all(OK)

    async with server(serve) as url:
        source = PeerSource("p", url, head_timeout=5.0, zone="rack-1")
        async with source.fetch(Digest.of(BODY), 0, 10) as incoming:
            assert await incoming.read_into(memoryview(bytearray(10))) == 10
        with trio.move_on_after(1) as scope:
            async with source.fetch(Digest.of(BODY), 0, 10):
                pass
        assert scope.cancelled_caught
        source.close()


async def test_a_transfer_says_where_it_is_asked_from() -> None:
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heads.append(await head_of(stream))
        await stream.send_all(OK)

    async with server(serve) as url:
        for zone in ("rack-1", ""):
            source = PeerSource("p", url, zone=zone)
            async with source.fetch(Digest.of(BODY), 0, 10):
                source.close()
    assert b"\r\nP2P-Zone: rack-1\r\n" in heads[0]
    assert b"p2p-zone" not in heads[1].lower()


# -------------------------------------------------------------------------------------------------------- blob ranges

DATA = bytes(range(256)) * 10
DIGEST = Digest.of(DATA)


async def fetch(answer: bytes, offset: int, length: int) -> bytes:
    async with server(answering(answer)) as url:
        source = PeerSource("p", url)
        try:
            async with source.fetch(DIGEST, offset, length) as incoming:
                buffer = bytearray(length)
                at = 0
                while at < length:
                    at += await incoming.read_into(memoryview(buffer)[at:])
                return bytes(buffer)
        finally:
            source.close()


def part(offset: int, length: int, *, status: int = 206, more: str = "") -> bytes:
    span = f"bytes {offset}-{offset + length - 1}/{len(DATA)}"
    text = f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nContent-Range: {span}\r\n"
    return (text + more + "\r\n").encode() + DATA[offset : offset + length]


async def test_a_range() -> None:
    assert await fetch(part(100, 50), 100, 50) == DATA[100:150]
    assert await fetch(part(0, len(DATA), status=200), 0, len(DATA)) == DATA


@pytest.mark.parametrize(
    "answer",
    [part(0, 50), part(100, 49), part(100, 51), part(100, 50, status=200), part(100, 50, status=201),
     b"HTTP/1.1 206 X\r\nContent-Length: 50\r\n\r\n" + bytes(50), part(1000, 50), part(10, 50),
     part(100, 50)[:-1], b"HTTP/1.1 416 X\r\nContent-Length: 0\r\n\r\n"],
    ids=range(10),
)  # fmt: skip
async def test_another_range(answer: bytes) -> None:
    with pytest.raises(RemoteError):
        await fetch(answer, 100, 50)


# ---------------------------------------------------------------------------------------------------------- any bytes

lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 206 P\r\n",
        b"HTTP/1.1 404 N\r\n",
        b"HTTP/1.1 429 L\r\n",
        b"HTTP/1.1 100 C\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 204 E\r\n",
        b"HTTP/1.1 999 X\r\n",
        b"Content-Length: 10\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 1\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"Content-Length: 10, 10\r\n",
        b"Connection: close\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Retry-After: \xb2\r\n",
        b"Retry-After: 5\r\n",
        b"X: \xff\r\n",
        b"X : y\r\n",
        b" fold\r\n",
        b"Content-Range: bytes 0-9/10\r\n",
        b"\r\n",
        b"\n",
        BODY,
        b"a\r\n",
        OK,
    ]
)
wild = st.one_of(st.binary(max_size=60), st.lists(st.one_of(lines, st.binary(max_size=4)), max_size=8).map(b"".join))


def talk(said: bytes, splits: list[int], use: Callable[[Client], Awaitable[bytes]]) -> bytes | Exception:
    """What ``use`` makes of a server that says this, in these parts, and closes."""

    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        at = 0
        for size in [*splits, len(said)]:
            if said[at : at + size]:
                await stream.send_all(said[at : at + size])
                await trio.testing.wait_all_tasks_blocked()
            at += size

    async def main() -> bytes | Exception:
        with trio.fail_after(20):
            async with server(serve) as url, client(url) as made:
                try:
                    return await use(made)
                except (RemoteError, NotFound) as err:
                    return err

    return trio.run(main)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(said=wild, splits=st.lists(st.integers(1, 20), max_size=6))
@example(said=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789HTTP/1.1 200 OK\r\n", splits=[1, 18, 20])
def test_any_bytes_are_an_answer_or_an_error(said: bytes, splits: list[int]) -> None:
    found = talk(said, splits, lambda made: made.get("/", limit=100))
    if isinstance(found, bytes):
        assert found in said, "what a server says after its answer may come too late to be seen"
        assert b"content-length" in said.lower()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    splits=st.lists(st.integers(1, 30), max_size=8),
    body=st.binary(max_size=50),
    before=st.integers(0, 2),
    cut=st.none() | st.integers(1, 10),
)
def test_an_answer_is_the_same_however_it_is_split(
    splits: list[int], body: bytes, before: int, cut: int | None
) -> None:
    said = b"HTTP/1.1 100 C\r\n\r\n" * before + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if cut is not None:
        said = said[:-cut]
    found = talk(said, splits, lambda made: made.get("/", limit=100))
    if cut is None:
        assert found == body
    else:
        assert isinstance(found, Unreachable)


async def test_an_answer_says_what_is_left() -> None:
    async with server(answering(OK)) as url, client(url) as made, made.request("GET", "/") as answer:
        assert isinstance(answer, Answer)
        buffer = bytearray(4)
        assert await answer.read_into(memoryview(buffer)) == 4
        assert (bytes(buffer), answer.left) == (BODY[:4], 6)
        assert await answer.read_into(memoryview(bytearray(0))) == 0
