"""What peers and the tracker say in JSON and CAR: read, or refused; never believed without its hash."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.car import read_table, write_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteBusy, RemoteError, Unreachable
from p2pregistry.have_news import MAX_LINE, HaveNews, Watch, read_watch
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.sources.peer import PeerSource, read_manifest
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.testing.http import running

BODY = b'{"schemaVersion":2}'
DIGEST = Digest.of(BODY)


def document(**more: object) -> dict[str, object]:
    base = {
        "media_type": "a/b",
        "manifest": base64.b64encode(BODY).decode(),
        "claims": [{"repository": "a", "claim": "c"}],
    }
    return base | {"digest": str(DIGEST)} | more


def test_a_manifest() -> None:
    found = read_manifest(json.dumps(document(claims=["x", {"claim": "y"}], more=1)).encode(), DIGEST)
    assert (found.digest, found.media_type, found.body, found.claims) == (DIGEST, "a/b", BODY, ("x", "y"))
    assert read_manifest(json.dumps(document()).encode(), None).digest == DIGEST
    assert len(read_manifest(json.dumps(document(claims=["x"] * 100)).encode(), DIGEST).claims) == 20


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"media_type":"\xff"}', b"[" * 100_000, b'{"x":' * 100_000,
     *(json.dumps(document(**more)).encode() for more in (
         {"manifest": "!"}, {"manifest": "\u00fc"}, {"manifest": base64.b64encode(b"other").decode()},
         {"manifest": None},
         {"media_type": "a\r\nX: y"}, {"media_type": "a" * 256}, {"media_type": 1}, {"claims": [1]}, {"claims": None},
         {"claims": [{"repository": "a"}]}, {"manifest": base64.b64encode(bytes(9 << 20)).decode()}))],
    ids=range(18),
)  # fmt: skip
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BadContent):
        read_manifest(data, DIGEST)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
wild = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(st.sampled_from(["media_type", "manifest", "claims", "digest"]), json_values).map(
        lambda more: json.dumps(document(**more)).encode()
    ),
)


@given(wild, st.booleans())
def test_any_bytes_are_a_manifest_or_refused(data: bytes, wanted: bool) -> None:
    try:
        found = read_manifest(data, DIGEST if wanted else None)
    except BadContent:
        return
    assert Digest.of(found.body) == found.digest
    assert not wanted or found.digest == DIGEST


# ------------------------------------------------------------------------------------------------------------ tables

INFO = Metainfo.of(Digest.of(b"many"), 1500 * PIECE_SIZE + 1, b"".join(Digest.of(b"%d" % n).raw for n in range(1501)))
TABLE = write_table(INFO.root, INFO.dag().blocks)


def test_a_table() -> None:
    assert Metainfo.of_table(INFO.ref, read_table(TABLE)) == INFO


@given(at=st.integers(0, len(TABLE) - 1), change=st.sampled_from(["cut", "flip", "double"]))
def test_a_changed_table_is_refused_or_the_same(at: int, change: str) -> None:
    flipped = TABLE[:at] + bytes([TABLE[at] ^ 1]) + TABLE[at + 1 :]
    data = {"cut": TABLE[:at], "flip": flipped, "double": TABLE[:at] + TABLE}[change]
    try:
        found = Metainfo.of_table(INFO.ref, read_table(data))
    except BadContent:
        return
    assert found == INFO  # the header is not looked at


def test_a_table_of_another_blob() -> None:
    other = Metainfo.of(Digest.of(b"x"), 2 * PIECE_SIZE, bytes(64))
    with pytest.raises(BadContent):
        Metainfo.of_table(INFO.ref, read_table(write_table(other.root, other.dag().blocks)))


@given(st.binary(max_size=100))
def test_any_bytes_are_no_table(data: bytes) -> None:
    try:
        blocks = read_table(data)
        Metainfo.of_table(INFO.ref, blocks)
    except BadContent:
        return
    raise AssertionError("random bytes gave a table")


# ----------------------------------------------------------------------------------------------------------- tracker

QUESTIONS: list[Callable[[TrackerSource], Awaitable[object]]] = [
    lambda tracker: tracker.swarm(),
    lambda tracker: tracker.resolve("a", "1"),
    lambda tracker: tracker.resolve("a", DIGEST),
    lambda tracker: tracker.tags("a", "", 10),
    lambda tracker: tracker.blob_claims("a", DIGEST),
    lambda tracker: tracker.table(INFO.ref),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=["swarm", "tag", "digest", "tags", "claims", "table"])
@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"\xff", b'{"tags":["\xff"],"claims":["\xff"],"swarm":"\xff"}', b"[" * 100_000,
             b'{"tags":' + b"[" * 100_000], ids=range(8)
)  # fmt: skip
async def test_whatever_the_tracker_says(
    question: Callable[[TrackerSource], Awaitable[object]], status: int, body: bytes
) -> None:
    async def handler(_request: Request) -> Response:
        return Response(status, [], body)

    async with running(handler, grace=0.0) as url:
        tracker = TrackerSource(url)
        caught: RegistryError | None = None
        try:
            with trio.fail_after(20):
                await question(tracker)
        except (RemoteError, NotFound) as err:
            caught = err
        finally:
            tracker.close()
    assert caught is not None
    assert not isinstance(caught, NotFound) or status == 404


async def test_a_server_that_is_no_tracker_is_bad_content() -> None:
    """As where the URL is that of another port: the node must live on and say so."""

    async def handler(_request: Request) -> Response:
        raise NotFound("NAME_UNKNOWN", "there is no such endpoint")

    async with running(handler, grace=0.0) as url:
        tracker = TrackerSource(url)
        failure: RegistryError | None = None
        try:
            await tracker.swarm()
        except RegistryError as err:
            failure = err
        finally:
            tracker.close()
    assert isinstance(failure, BadContent)


# --------------------------------------------------------------------------------------------------------------- news

WATCH = Watch("A" * 40, "http://10.0.0.1:1", "r", (DIGEST, INFO.digest))
STATE = b'{"have":[[1,"gA=="]]}\n'


async def said_news(status: int, *parts: bytes) -> tuple[list[HaveNews], RegistryError]:
    """What comes of a watch that is answered like this, and how it ended."""
    asked: list[Watch] = []

    async def handler(request: Request) -> Response:
        asked.append(read_watch(await request.body.read(10_000)))
        assert request.header("p2p-zone") == "r"

        async def lines() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return Response(status, [], Stream(lines(), None))

    found: list[HaveNews] = []

    async def listen(source: PeerSource) -> None:
        async with source.watch(WATCH) as news:
            async for line in news:
                found.append(line)  # noqa: PERF401 - it ends with an error

    async with running(handler, grace=0.0) as url:
        source = PeerSource("a peer", url, zone="r")
        ended: RegistryError | None = None
        try:
            with trio.fail_after(20):
                await listen(source)
        except (RemoteError, NotFound) as err:
            ended = err
        finally:
            source.close()
    assert asked == [WATCH]
    assert ended is not None, "news never end well"
    return found, ended


async def test_news_come_as_they_are_said_without_the_heartbeats() -> None:
    found, ended = await said_news(200, b"{}\n" + STATE, b"{}\n", b'{"add":[[1,[5]]]', b',"x":1}\n{"full":[0]}\n')
    assert found == [HaveNews([(1, b"\x80")]), HaveNews(add=[(1, [5])]), HaveNews(full=[0])]
    assert isinstance(ended, Unreachable)


@pytest.mark.parametrize(
    "line",
    [b"", b"x", b"[]", b"\xff", b'{"full":[2]}', b'{"full":[-1]}', b'{"gone":[1],"full":[1]}', b'{"add":[[0,[-1]]]}',
     b'{"add":[[0,[4294967296]]]}', b'{"have":[[0,"!"]]}', b'{"peers":[{"peer_id":"x","url":"http://a:1"}]}',
     b'{"have":[[0,""],[0,""]]}', b"[" * 100_000, b'"' + b"x" * MAX_LINE + b'"'],
    ids=range(14),
)  # fmt: skip
async def test_what_is_no_news_ends_the_stream(line: bytes) -> None:
    found, ended = await said_news(200, STATE, line + b"\n", STATE)
    assert found == [HaveNews([(1, b"\x80")])]
    assert isinstance(ended, BadContent)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (405, Unreachable), (429, RemoteBusy), (400, Unreachable), (503, Unreachable)],
)
async def test_a_peer_that_tells_nothing(status: int, error: type[RegistryError]) -> None:
    found, ended = await said_news(status, STATE)
    assert found == []
    assert type(ended) is error
