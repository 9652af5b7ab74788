"""The HTTP server over real loopback sockets, in the clear and over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import h11
import httpx
import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RemoteBusy, RequestError, StorageFull, Unreachable
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.listen import Limits, open_listeners, open_unix_listener, serve
from p2pregistry.store.base import FilePart
from p2pregistry.testing.http import PATIENCE, everything_over_tls, raw_client, request, running


@pytest.fixture(autouse=True, params=["plain", "TLS"])
def _over(request: pytest.FixtureRequest) -> Iterator[None]:
    with everything_over_tls() if request.param == "TLS" else contextlib.nullcontext():
        yield


class FileBlob:
    """A blob in a file; ``in_file`` False hides the descriptor."""

    def __init__(self, path: Path, in_file: bool = True, claimed: int | None = None) -> None:
        self.fd: int | None = os.open(path, os.O_RDONLY)
        self.size = claimed or path.stat().st_size
        self.in_file = in_file
        self.closed = False

    @property
    def digest(self) -> Digest:
        raise NotImplementedError

    def fileno(self) -> int | None:
        return self.fd if self.in_file else None

    async def read_at(self, offset: int, length: int) -> bytes:
        assert self.fd is not None
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
        self.fd = None
        self.closed = True


async def echo(req: Request) -> Response:
    body = await req.body.read(10_000_000)
    return Response(200, [("X-Method", req.method), ("X-Target", req.target)], body or b"nothing")


def code(body: bytes) -> str:
    return json.loads(body)["errors"][0]["code"]


async def test_get_put_and_head_keep_the_connection() -> None:
    async with running(echo) as url, httpx.AsyncClient(base_url=url, verify=False) as client:
        assert (await client.get("/a?b=c")).headers["x-target"] == "/a?b=c"
        assert (await client.put("/", content=b"x" * 3_000_000)).content == b"x" * 3_000_000
        head = await client.head("/")
        assert (head.headers["content-length"], head.content) == ("7", b"")
    async with running(echo) as url, await raw_client(url) as raw:
        for method in ("GET", "HEAD", "GET"):
            await raw.send(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await raw.response(method)).status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(echo) as url, await raw_client(url) as raw:
        await raw.send(
            b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
            b"PUT /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answers = [await raw.response() for _ in range(3)]
        assert [a.headers["x-target"] for a in answers] == ["/1", "/2", "/3"]
        assert answers[1].body == b"abc"


async def test_http_1_0_and_connection_close_end_the_connection() -> None:
    async with running(echo) as url:
        for start in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
            async with await raw_client(url) as raw:
                await raw.send(start)
                assert (await raw.response()).headers["connection"] == "close"
                assert await raw.at_end()


async def test_100_continue_is_sent_only_to_a_handler_that_reads() -> None:
    async def choosy(req: Request) -> Response:
        return await echo(req) if req.path == "/yes" else Response(200)

    head = "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with running(choosy) as url:
        async with await raw_client(url) as raw:
            await raw.send(head.format("/yes").encode())
            assert await raw.receive_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await raw.send(b"abc")
            assert (await raw.response()).body == b"abc"
        async with await raw_client(url) as raw:
            await raw.send(head.format("/no").encode())
            assert (await raw.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_an_unread_body_is_drained_or_ends_the_connection() -> None:
    async def deaf(req: Request) -> Response:
        raise RequestError("DENIED", "no")

    async with running(deaf, limits=Limits(drain=1000)) as url, await raw_client(url) as raw:
        await raw.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 900)
        assert "connection" not in (await raw.response()).headers
        await raw.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000)
        answer = await raw.response()
        assert (answer.status, answer.headers["connection"]) == (403, "close")


async def test_a_client_that_stops_mid_body_is_an_error_in_the_handler() -> None:
    seen: list[str] = []
    done = trio.Event()

    async def reader(req: Request) -> Response:
        try:
            async for _ in req.body:
                pass
        except RequestError as err:
            seen.append(err.code)
            done.set()
            raise
        return Response(200)

    async with running(reader) as url:
        for framing in (b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
            done = trio.Event()
            async with await raw_client(url) as raw:
                await raw.send(b"PATCH / HTTP/1.1\r\nHost: x\r\n" + framing)
            with trio.fail_after(PATIENCE):
                await done.wait()
    assert seen == ["SIZE_INVALID", "SIZE_INVALID"]


async def test_a_body_over_the_limit_is_413_without_being_invited() -> None:
    async def small(req: Request) -> Response:
        return Response(200, [], await req.body.read(10))

    async with running(small) as url, await raw_client(url) as raw:
        await raw.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        answer = await raw.response()
        assert (answer.status, code(answer.body)) == (413, "SIZE_INVALID")


@pytest.mark.parametrize("in_file", [True, False])
async def test_a_slice_of_a_blob_goes_out_whole_and_is_closed(tmp_path: Path, in_file: bool) -> None:
    data = os.urandom(5_000_001)
    (tmp_path / "blob").write_bytes(data)
    blobs: list[FileBlob] = []
    sent: list[int] = []

    async def handler(req: Request) -> Response:
        blobs.append(FileBlob(tmp_path / "blob", in_file))
        return Response(206, [], BlobSlice(blobs[-1], 7, 4_999_990, sent.append))

    async with running(handler) as url:
        assert (await request(url, "GET", "/")).body == data[7:-4]
        head = await request(url, "HEAD", "/")
        assert (head.headers["content-length"], head.body) == ("4999990", b"")
    assert [blob.closed for blob in blobs] == [True, True]
    assert sent == [4_999_990]


@pytest.mark.parametrize("in_file", [True, False])
async def test_a_blob_that_is_too_short_never_looks_whole(tmp_path: Path, in_file: bool) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    blob = FileBlob(tmp_path / "blob", in_file, claimed=10)

    async def handler(req: Request) -> Response:
        return Response(200, [], BlobSlice(blob, 0, 10))

    async with running(handler) as url:
        with pytest.raises(h11.RemoteProtocolError):
            await request(url, "GET", "/")
    assert blob.closed


class Chunks:
    def __init__(self, chunks: list[bytes | Exception]) -> None:
        self.chunks = chunks
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        chunk = self.chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("last", [b"de", b"defg", Unreachable("gone"), KeyError("x")])
async def test_a_stream_that_fails_or_has_the_wrong_length_never_looks_whole(last: bytes | Exception) -> None:
    chunks = Chunks([b"abc", last])
    sent: list[int] = []

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(chunks, 6, sent.append))

    async with running(handler) as url:
        with pytest.raises(h11.RemoteProtocolError):
            await request(url, "GET", "/")
    assert chunks.closed == 1
    assert sent[0] < 6


async def test_a_stream_goes_out_whole_and_is_closed() -> None:
    chunks = [Chunks([b"abc", b"def"]), Chunks([])]

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(chunks[req.method == "HEAD"], 6))

    async with running(handler) as url:
        assert (await request(url, "GET", "/")).body == b"abcdef"
        assert (await request(url, "HEAD", "/")).headers["content-length"] == "6"
    assert [c.closed for c in chunks] == [1, 1]


# --------------------------------------------------------------------------------------------- streams without an end


class Slowly(Chunks):
    """Gives each item when the test says so, and waits for ever after the last."""

    def __init__(self, chunks: list[bytes | Exception]) -> None:
        super().__init__(chunks)
        self.go = trio.Semaphore(0)

    async def __anext__(self) -> bytes:
        await self.go.acquire()
        return await super().__anext__()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_each_item_of_a_stream_without_a_length_is_a_chunk_sent_at_once() -> None:
    chunks = Slowly([b"one\n", b"", b"x" * 300_000, b"two\n"])
    sent: list[int] = []

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(chunks, None, sent.append) if req.path == "/" else b"next")

    async with running(handler) as url, await raw_client(url) as raw:
        await raw.send(GET)
        head = await raw.receive_until(b"\r\n\r\n")  # before there is anything to send
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert b"Content-Length" not in head
        chunks.go.release()
        assert await raw.receive_until(b"one\n\r\n") == b"4\r\none\n\r\n"
        chunks.go.release()
        chunks.go.release()
        assert await raw.receive_until(b"x\r\n") == b"493e0\r\n" + b"x" * 300_000 + b"\r\n"
        chunks.go.release()
        assert await raw.receive_until(b"two\n\r\n") == b"4\r\ntwo\n\r\n"
        chunks.go.release()
        assert await raw.receive_until(b"0\r\n\r\n") == b"0\r\n\r\n"
        await raw.send(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await raw.response()).body == b"next"
    assert (chunks.closed, sent) == (1, [300_008])


async def test_parts_of_files_in_a_stream_without_a_length(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:

        async def parts() -> AsyncIterator[FilePart | bytes]:
            yield b"<"
            yield FilePart(file.fileno(), 10, 2_500_000)
            yield b">"

        async def handler(req: Request) -> Response:
            return Response(200, [], Stream(parts(), None))

        async with running(handler) as url:
            assert (await request(url, "GET", "/")).body == b"<" + data[10:2_500_010] + b">"
            head = await request(url, "HEAD", "/")
            assert (head.status, head.body) == (200, b"")


async def test_a_client_of_http_1_0_gets_a_stream_without_chunks() -> None:
    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(Chunks([b"abc", b"def"]), None))

    async with running(handler) as url, await raw_client(url) as raw:
        await raw.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await raw.response()
        assert (answer.body, answer.headers["connection"]) == (b"abcdef", "close")
        assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize("error", [Unreachable("gone"), KeyError("x")])
async def test_a_stream_without_a_length_that_fails_never_looks_whole(error: Exception) -> None:
    chunks = Chunks([b"abc", error])

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(chunks, None))

    async with running(handler) as url, await raw_client(url) as raw:
        await raw.send(GET)
        with pytest.raises(h11.RemoteProtocolError):
            await raw.response()
    assert chunks.closed == 1


async def test_an_endless_stream_ends_when_the_server_stops_accepting() -> None:
    chunks, late = Slowly([b"a"]), Slowly([b"b"])
    started, finish, stop, over = trio.Event(), trio.Event(), trio.Event(), trio.Event()

    async def handler(req: Request) -> Response:
        if req.path == "/":
            return Response(200, [], Stream(chunks, None, endless=True))
        started.set()
        await finish.wait()
        return Response(200, [], Stream(late, None, endless=True))

    listeners = await open_listeners([("127.0.0.1", 0)])
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

    async def server() -> None:
        await serve(handler, listeners, stop=stop, grace=10 * PATIENCE)
        over.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            async with await raw_client(url) as raw, await raw_client(url) as other:
                await raw.send(GET)
                await other.send(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
                chunks.go.release()
                await raw.receive_until(b"a\r\n")
                await started.wait()
                stop.set()
                assert await raw.at_end()
                finish.set()  # its stream has not begun: it ends in good order
                assert (await other.response()).body == b""
            await over.wait()
    assert (chunks.closed, late.closed) == (1, 1)


async def test_an_endless_stream_ends_when_its_client_leaves() -> None:
    chunks, closed = Slowly([]), trio.Event()

    class Watched(Slowly):
        async def aclose(self) -> None:
            closed.set()

    chunks = Watched([])

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(chunks, None, endless=True))

    async with running(handler, limits=Limits(watch_after=0.02)) as url:
        async with await raw_client(url) as raw:
            await raw.send(GET)
            await raw.receive_until(b"\r\n\r\n")
        with trio.fail_after(PATIENCE):
            await closed.wait()


# ---------------------------------------------------------------------------------------------------------------- pace


@pytest.mark.parametrize("how", ["file", "memory", "parts", "chunks"])
async def test_a_paced_answer_is_whole_and_asks_for_small_parts_before_they_go(tmp_path: Path, how: str) -> None:
    data = os.urandom(1_000_001)
    (tmp_path / "blob").write_bytes(data)
    blob = FileBlob(tmp_path / "blob", how == "file")
    asked: list[int] = []
    allowed = trio.Semaphore(0)
    assert blob.fd is not None
    fd = blob.fd

    async def pace(count: int) -> None:
        asked.append(count)
        await allowed.acquire()

    async def items() -> AsyncIterator[FilePart | bytes]:
        yield data[:10]
        yield FilePart(fd, 10, 500_000)
        yield data[500_010:]

    async def handler(req: Request) -> Response:
        if how in ("file", "memory"):
            return Response(200, [], BlobSlice(blob, 0, len(data), pace=pace))
        return Response(200, [], Stream(items(), len(data) if how == "parts" else None, pace=pace))

    async with running(handler) as url, trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def client() -> None:
            got.append((await request(url, "GET", "/")).body)

        nursery.start_soon(client)
        while sum(asked) < len(data):
            before = len(asked)
            with trio.fail_after(PATIENCE):
                while len(asked) == before:
                    await trio.sleep(0)
            assert len(asked) == before + 1  # no more is asked for before this much was allowed
            allowed.release()
    assert got == [data]
    assert sum(asked) == len(data)
    assert max(asked) <= (500_000 if how == "chunks" else 256 << 10)
    blob.close()


async def test_the_kernel_takes_little_that_is_not_on_its_way(tmp_path: Path) -> None:
    if not hasattr(socket, "TCP_NOTSENT_LOWAT"):
        pytest.skip("this platform has no TCP_NOTSENT_LOWAT")
    out = 0

    class Counted(Chunks):
        async def __anext__(self) -> bytes:
            nonlocal out
            out += 64 << 10
            return bytes(64 << 10)

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(Counted([]), 32 << 20))

    async with running(handler, limits=Limits(unsent=64 << 10)) as url, await raw_client(url) as raw:
        await raw.send(GET)  # and read nothing
        before = -1
        while before != out:  # until nothing moves any more
            before = out
            await trio.sleep(0.1)
    assert out <= 1 << 20  # 4 MiB and more without the option


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (NotFound("BLOB_UNKNOWN", "x"), 404, "BLOB_UNKNOWN"),
        (RemoteBusy("x", 3.2), 503, "UNAVAILABLE"),
        (StorageFull("x"), 429, "TOOMANYREQUESTS"),
        (
            ExceptionGroup("", [ExceptionGroup("", [Unreachable("x"), NotFound("NAME_UNKNOWN", "x")])]),
            404,
            "NAME_UNKNOWN",
        ),
        (KeyError("password"), 503, "UNAVAILABLE"),
        (ExceptionGroup("", [KeyError("password"), NotFound("NAME_UNKNOWN", "x")]), 503, "UNAVAILABLE"),
    ],
)
async def test_whatever_a_handler_raises_the_client_gets_an_oci_error(error: Exception, status: int, name: str) -> None:
    async def handler(req: Request) -> Response:
        raise error

    async with running(handler) as url:
        answer = await request(url, "GET", "/")
        assert (answer.status, code(answer.body)) == (status, name)
        assert answer.headers["content-type"] == "application/json"
        assert ("retry-after" in answer.headers) == (status in (429, 503))
        assert b"password" not in answer.body
        assert (await request(url, "HEAD", "/")).body == b""


@pytest.mark.parametrize("header", [("X", "a\r\nY: b"), ("X\n", "a"), ("Content-Length", "3"), ("X", "é")])
async def test_a_header_that_must_not_go_out_is_a_503(header: tuple[str, str]) -> None:
    async def handler(req: Request) -> Response:
        return Response(200, [header], b"ab")

    async with running(handler) as url:
        assert (await request(url, "GET", "/")).status == 503


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_have_none(status: int) -> None:
    async def handler(req: Request) -> Response:
        return Response(status, [])

    async with running(handler) as url, await raw_client(url) as raw:
        for _ in range(2):
            await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await raw.response()
            assert (answer.status, answer.body, "content-length" in answer.headers) == (status, b"", False)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x00", 400),
        (b"SSH-2.0-x\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_answered_at_once(sent: bytes, status: int) -> None:
    async with running(echo) as url, await raw_client(url) as raw:
        await raw.send(sent)
        answer = await raw.response()
        assert (answer.status, bool(code(answer.body))) == (status, True)
        assert await raw.at_end()


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_silent_client_loses_its_connection(start: bytes) -> None:
    async with running(echo, limits=Limits(head_time=0.04, idle_time=0.04)) as url, await raw_client(url) as raw:
        await raw.send(start)
        if start.endswith(b"\n\r\n"):
            assert (await raw.response()).status == 200
        assert await raw.at_end()


async def test_a_small_body_that_drips_in_is_not_waited_for() -> None:
    async def handler(req: Request) -> Response:
        return Response(200, [], await req.body.read(1000))

    async with running(handler, limits=Limits(stall_time=0.3)) as url, await raw_client(url) as raw:
        await raw.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                while True:
                    await raw.send(b"x")
                    await trio.sleep(0.05)

            nursery.start_soon(drip)
            answer = await raw.response()
            nursery.cancel_scope.cancel()
        assert (answer.status, code(answer.body)) == (408, "SIZE_INVALID")


async def test_a_client_that_takes_nothing_loses_its_connection() -> None:
    ended = trio.Event()

    class Endless(Chunks):
        async def __anext__(self) -> bytes:
            return bytes(1 << 20)

        async def aclose(self) -> None:
            ended.set()

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(Endless([]), 1 << 50))

    async with running(handler, limits=Limits(stall_time=0.1)) as url, await raw_client(url) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(PATIENCE):
            await ended.wait()


async def test_a_handler_is_cancelled_when_its_client_leaves() -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def handler(req: Request) -> Response:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with running(handler, limits=Limits(watch_after=0.02)) as url:
        async with await raw_client(url) as raw:
            await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await started.wait()
        with trio.fail_after(PATIENCE):
            await cancelled.wait()


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_requests_under_way_are_finished_at_the_end(how: str) -> None:
    started, finish, stop = trio.Event(), trio.Event(), trio.Event()

    async def handler(req: Request) -> Response:
        started.set()
        await finish.wait()
        return Response(200, [], b"done")

    listeners = await open_listeners([("127.0.0.1", 0)])
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve(handler, listeners, stop=stop, grace=PATIENCE))
            async with await raw_client(url) as idle, await raw_client(url) as busy:
                await busy.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await started.wait()
                with trio.CancelScope(shield=True):
                    if how == "stop":
                        stop.set()
                    else:
                        nursery.cancel_scope.cancel()
                    assert await idle.at_end()
                    with pytest.raises(OSError, match=r"."):
                        await raw_client(url)
                    finish.set()
                    answer = await busy.response()
            assert (answer.body, answer.headers["connection"]) == (b"done", "close")
            outer.cancel_scope.cancel()


async def test_what_outlasts_the_grace_is_cancelled() -> None:
    started = trio.Event()

    async def handler(req: Request) -> Response:
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(PATIENCE):
        async with running(handler, grace=0) as url, await raw_client(url) as raw:
            await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await started.wait()
            # leaving ends the server although the request never does


async def test_the_bound_on_connections_ends_idle_ones() -> None:
    get = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with (
        running(echo, limits=Limits(connections=2)) as url,
        await raw_client(url) as a,
        await raw_client(url) as b,
    ):
        for client in (a, b):
            await client.send(get)
            assert (await client.response()).status == 200
        async with await raw_client(url) as c:
            await c.send(get)
            assert (await c.response()).status == 200
            assert await a.at_end()
            await b.send(get)
            assert (await b.response()).status == 200


@pytest.mark.parametrize(
    "beginning", [b"GET / HTTP/1.1\r\nX: ", b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", b"GET /much"]
)
async def test_the_bound_on_connections_ends_slow_ones(beginning: bytes) -> None:
    async def handler(req: Request) -> Response:
        return Response(200, [], b"x" * (64 << 20)) if req.path == "/much" else await echo(req)

    if beginning == b"GET /much":
        beginning += b" HTTP/1.1\r\nHost: x\r\n\r\n"
    limits = Limits(connections=2, slow_after=0.2)
    async with (
        running(handler, limits=limits) as url,
        await raw_client(url) as a,
        await raw_client(url) as b,
    ):
        for client in (a, b):
            await client.send(beginning)
        async with await raw_client(url) as c:
            await c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await c.response()).status == 200


async def test_both_families_get_the_same_free_port() -> None:
    listeners = await open_listeners([("127.0.0.1", 0), ("::1", 0)])
    assert len({listener.socket.getsockname()[1] for listener in listeners}) == 1
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(LocalError, match=f"{port} on 127.0.0.1"):
        await open_listeners([("127.0.0.1", port)])
    for listener in listeners:
        await listener.aclose()
    for wrong in ("localhost", "192.0.2.1"):
        with pytest.raises(LocalError, match=wrong):
            await open_listeners([(wrong, 0)])


async def test_the_unix_socket_is_private_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = open_unix_listener(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(LocalError, match="another program"):
        open_unix_listener(path)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(echo, [listener], stop=stop))
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        stop.set()
    assert not path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="not a socket"):
        open_unix_listener(tmp_path / "file")
