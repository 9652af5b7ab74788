"""Any bytes, however split: valid answers that are no 500, or a closed connection; the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket

import h11
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pregistry.serve import wire
from p2pregistry.serve.connection import Connection, Limits
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.sockets import PlainSocket

FAST = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

fragments = st.sampled_from(
    [
        b"GET ", b"HEAD ", b"PUT ", b"PATCH ", b"CONNECT ", b"/v2/", b"/v2/%ff", b"/?a=%zz", b" HTTP/1.1", b" HTTP/1.0",
        b" HTTP/2.0", b"\r\n", b"\n", b"\r\n\r\n", b"Host: x\r\n", b"host:\tx\r\n", b"Content-Length: 3\r\n",
        b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: x, y\r\n", b"Upgrade: h2c\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"X : y\r\n",
        b" folded\r\n",
        b"X: \xff\r\n", b"X: a\rb\r\n", b"X: \x00\r\n", b"X:\r\n", b"\x16\x03\x01", b"ffffffffffffffffffffff\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
)  # fmt: skip
inputs = st.one_of(
    st.binary(max_size=300), st.lists(st.one_of(fragments, st.binary(max_size=8)), max_size=12).map(b"".join)
)


async def handler(request: Request) -> Response:
    if request.method in ("PUT", "PATCH"):
        return Response(200, [], b"%d" % len(await request.body.read(1000)))
    return Response(200, [("X-Target", request.target)], b"ok")


def run_connection(data: bytes, splits: list[int]) -> bytes:
    """What the server says to ``data`` in pieces, followed by the end of input."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    said = bytearray()

    async def client() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        async with stream:
            at = 0
            try:
                for size in [*splits, len(data)]:
                    if data[at : at + size]:
                        await stream.send_all(data[at : at + size])
                        await trio.testing.wait_all_tasks_blocked()
                    at += size
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            try:
                async for part in stream:
                    said.extend(part)
            except trio.BrokenResourceError:
                pass

    async def main() -> None:
        connection = Connection(PlainSocket(fileno=ours.detach()), "", handler, Limits(drain=100), None)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client)
                await connection.run()

    trio.run(main)
    return bytes(said)


@FAST
@given(inputs, st.lists(st.integers(1, 40), max_size=5))
def test_any_input_gets_valid_answers_or_the_end(data: bytes, splits: list[int]) -> None:
    said = run_connection(data, splits)
    while said:
        parser = h11.Connection(h11.CLIENT)
        method = "HEAD" if b"X-Target" in said.partition(b"\r\n\r\n")[0] and b"\r\n\r\nok" not in said[:400] else "GET"
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(said)
        event = parser.next_event()
        if isinstance(event, h11.InformationalResponse):
            said = said.partition(b"\r\n\r\n")[2]
            continue
        assert isinstance(event, h11.Response)
        assert event.status_code != 500
        assert event.status_code < 500 or event.status_code == 501  # a transfer encoding we do not have
        body = b""
        while isinstance(part := parser.next_event(), h11.Data):
            body += part.data
        assert isinstance(part, h11.EndOfMessage)
        if event.status_code != 200 and method == "GET":
            assert json.loads(body)["errors"][0]["code"]
        said = bytes(parser.trailing_data[0])


@FAST
@given(inputs, st.lists(st.integers(1, 40), max_size=5))
def test_the_split_of_the_input_changes_nothing(data: bytes, splits: list[int]) -> None:
    def stable(said: bytes) -> list[bytes]:
        lines = [line for line in said.split(b"\r\n") if not line.startswith(b"Date:")]
        # one who has sent the body already is not invited to
        return [line for line in lines if line not in (b"HTTP/1.1 100 Continue", b"")]

    assert stable(run_connection(data, splits)) == stable(run_connection(data, []))


@FAST
@given(inputs)
def test_the_plain_parser_agrees_with_h11(data: bytes) -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + data if not data.startswith((b"GET", b"HEAD")) else data
    head, sep, rest = data.partition(b"\r\n\r\n")
    plain = wire.plain_head(head) if sep else None
    if plain is None:
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    ours = plain[0]
    assert (ours.method.encode(), ours.target.encode()) == (event.method, event.target)
    assert [(n.encode(), v.encode()) for n, v in ours.headers] == list(event.headers)
    assert isinstance(parser.next_event(), h11.EndOfMessage)
    assert bytes(parser.trailing_data[0]) == rest
    parser.send(h11.Response(status_code=204, headers=[]))
    parser.send(h11.EndOfMessage())
    assert (parser.our_state is h11.DONE) == ours.keep_alive


@FAST
@given(inputs)
def test_an_implausible_start_is_never_a_request(data: bytes) -> None:
    for end in range(len(data)):
        if not wire.plausible_start(data[:end]):
            parser = h11.Connection(h11.SERVER)
            parser.receive_data(data + b"\r\nHost: x\r\n\r\n")
            with contextlib.suppress(h11.RemoteProtocolError):
                assert not isinstance(parser.next_event(), h11.Request)
            return
