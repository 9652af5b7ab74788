"""Whatever is said about pieces: read within its bounds, or refused by our own errors; never believed by half."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.have_news import MAX_WATCHED, HaveNews, Watch, read_news, read_watch
from p2pregistry.messages import MAX_PEERS

DIGESTS = [Digest.of(bytes([n])) for n in range(5)]
PEER = {"peer_id": "A" * 40, "url": "http://10.0.0.1:5001"}
WATCHED = 5

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
places = st.integers(-1, 6) | st.just(MAX_WATCHED)
indexes = st.lists(st.integers(-1, 40) | st.just(1 << 32), max_size=5)
bitmaps = st.sampled_from(["", "gA==", "gA", "!", "////", "\u00fc"])
peers = st.fixed_dictionaries(
    {
        "peer_id": st.sampled_from(["A" * 40, "", "x\ny"]),
        "url": st.sampled_from(["http://a:1", "http://a:0", "http://[::", "x"]),
    },
    optional={"zone": st.sampled_from(["", "z", "\r\n"]), "want": st.lists(places, max_size=3), "hold": values},
)
lines = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional={
            "have": st.lists(st.tuples(places, bitmaps), max_size=3) | values,
            "add": st.lists(st.tuples(places, indexes), max_size=3) | values,
            "full": st.lists(places, max_size=3) | values,
            "gone": st.lists(places, max_size=3) | values,
            "peers": st.lists(peers, max_size=2) | values,
            "more": values,
        },
    ).map(lambda news: json.dumps(news).encode()),
)


@given(lines)
def test_any_line_is_news_within_bounds_or_refused(line: bytes) -> None:
    try:
        news = read_news(line, WATCHED)
    except BadContent:
        return
    said = [place for place, _ in news.have] + [place for place, _ in news.add] + news.full + news.gone
    assert len(set(said)) == len(said)
    assert all(0 <= place < WATCHED for place in said)
    assert all(0 <= index < 1 << 32 for _, pieces in news.add for index in pieces)
    assert len(news.peers) <= MAX_PEERS
    for peer in news.peers:
        assert peer.url.startswith("http")
        assert all(0 <= place < WATCHED for place in [*peer.want, *peer.hold])
    assert read_news(news.encode(), WATCHED) == news


@given(
    st.one_of(
        st.binary(max_size=60),
        values.map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries(
            {},
            optional={
                "peer_id": st.sampled_from(["A" * 40, "A" * 65, ""]) | values,
                "url": st.sampled_from(["http://a:1", "https://[::1]:2/", "http://a:0", "http://a\n"]) | values,
                "zone": st.text(max_size=70) | values,
                "want": st.lists(st.sampled_from([*map(str, DIGESTS), "sha256:", ""]), max_size=4) | values,
                "more": values,
            },
        ).map(lambda watch: json.dumps(PEER | watch).encode()),
    )
)
def test_any_bytes_are_a_watch_or_refused_with_a_reason(data: bytes) -> None:
    refused: RequestError | None = None
    watch: Watch | None = None
    try:
        watch = read_watch(data)
    except RequestError as err:
        refused = err
    if watch is None:
        assert refused is not None
        assert (refused.status, refused.code) == (400, "ANNOUNCE_INVALID")
        assert 0 < len(refused.message) <= 300
        return
    assert 1 <= len(watch.want) <= MAX_WATCHED
    assert read_watch(watch.encode()) == watch


@given(st.sets(st.sampled_from(DIGESTS), min_size=1), st.sampled_from(["", "a-b", "rack/7"]))
def test_what_we_send_we_can_read(want: set[Digest], zone: str) -> None:
    watch = Watch("A" * 40, "http://[::1]:5001", zone, tuple(sorted(want)))
    assert read_watch(watch.encode()) == watch
    assert read_news(HaveNews().encode(), len(want)) == HaveNews()
