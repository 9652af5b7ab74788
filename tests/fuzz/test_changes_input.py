"""Whatever comes as a request for changes or as events: read within its bounds, or refused by our own errors; and the
same events however the stream is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.feed_messages import (
    MAX_LINE,
    MOST_PATTERNS,
    ChangesRequest,
    Event,
    EventReader,
    GoneEvent,
    Interest,
    KeysEvent,
    MarkEvent,
    NodeEvent,
    RepositoryEvent,
    ResetEvent,
    RevokedEvent,
    TagEvent,
    encode_event,
    read_changes,
)
from p2pregistry.trust.records import Stamp

numbers = st.integers(0, 10**17)
stamps = st.builds(Stamp, numbers, numbers)
names = st.sampled_from(["acme/api", "library/nginx", "a"])
tags = st.sampled_from(["latest", "v1.2", "_x"])
digests = st.none() | st.binary(max_size=3).map(Digest.of)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(TagEvent, stamps, names, tags, digests, st.text(max_size=10)),
    st.builds(RepositoryEvent, stamps, names, st.booleans(), st.text(max_size=10)),
    st.builds(GoneEvent, stamps, names),
    *(st.builds(kind, stamps) for kind in (NodeEvent, KeysEvent, RevokedEvent, ResetEvent)),
    st.builds(MarkEvent, stamps, st.floats(0, 1e12)),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
interests = st.fixed_dictionaries(
    {},
    optional={
        "repositories": st.lists(names | st.sampled_from(["", "A", "a//b"]), max_size=3) | values,
        "patterns": st.lists(st.sampled_from(["**", "acme/*:prod-*", "", "a b"]), max_size=3) | values,
    },
)


@given(
    st.one_of(
        st.binary(max_size=60),
        values.map(lambda value: json.dumps(value).encode()),
        st.builds(
            lambda cursor, interest, fresh: json.dumps({**cursor, **interest, "fresh": fresh}).encode(),
            st.fixed_dictionaries({}, optional={"epoch": numbers | values, "number": numbers | values}),
            interests,
            interests | values,
        ),
    )
)
def test_any_request_is_read_within_bounds_or_refused(data: bytes) -> None:
    try:
        asked = read_changes(data)
    except RequestError:
        return
    assert min(asked.cursor) >= 0
    assert asked.fresh.repositories <= asked.interest.repositories
    assert asked.fresh.patterns <= asked.interest.patterns
    assert read_changes(asked.encode()) == asked


def test_bounds_of_a_request() -> None:
    patterns = [f"p{n}/**" for n in range(MOST_PATTERNS + 1)]
    with pytest.raises(RequestError, match="patterns"):
        read_changes(json.dumps({"patterns": patterns}).encode())
    assert len(read_changes(json.dumps({"patterns": patterns[1:]}).encode()).interest.patterns) == MOST_PATTERNS
    assert read_changes(b"{}") == ChangesRequest()


@given(st.lists(events, max_size=6), st.lists(st.integers(0, 2000), max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_any_split_gives_the_same_events(said: list[Event], cuts: list[int], end: bytes) -> None:
    data = b"".join(b": hello\n" + encode_event(event) for event in said).replace(b"\n", end)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    reader = EventReader()
    found = [event for start, stop in pairwise(places) for event in reader.feed(data[start:stop])]
    assert found == said


fragments = st.lists(
    st.one_of(
        st.sampled_from([b"id: 1.2\n", b"id: 1\n", b"\n", b"\r\n", b"event: mark\n", b"event: tag\n", b"event:new\n"]),
        st.sampled_from([b"data: {}\n", b'data: {"epoch":1,"number":2,"time":0.5}\n', b"data: [\n", b":\n", b"\xff\n"]),
        st.sampled_from([b'data: {"repository":"a","tag":"b","digest":null,"record":""}\n', b"event: gone\n"]),
        st.binary(max_size=8),
    ),
    max_size=14,
)


@given(fragments)
def test_any_bytes_are_events_or_refused(pieces: list[bytes]) -> None:
    whole, cut = EventReader(), EventReader()
    found: list[Event] = []
    failed = False
    try:
        for byte in b"".join(pieces):
            found += cut.feed(bytes([byte]))
    except BadContent:
        failed = True
    try:
        assert whole.feed(b"".join(pieces)) == found
        assert not failed
    except BadContent:
        assert failed
    for event in found:
        assert EventReader().feed(encode_event(event)) == [event]


def test_a_line_without_an_end_is_refused() -> None:
    reader = EventReader()
    for _ in range(MAX_LINE // 1000):
        assert reader.feed(b"x" * 1000) == []
    with pytest.raises(BadContent):
        reader.feed(b"x" * 2000)


def test_an_event_of_a_kind_that_is_not_known_is_left_out() -> None:
    mark = MarkEvent(Stamp(1, 2), 3.0)
    stream = b"id: 1.2\nevent: weather\ndata: sunny\n\n" + encode_event(mark)
    assert EventReader().feed(stream) == [mark]


def test_what_an_interest_covers() -> None:
    interest = Interest(frozenset({"acme/api"}), frozenset({"library/*", "acme/*:prod-*", "**:stable"}))
    assert interest.covers("acme/api", "dev")
    assert interest.covers("acme/web", "prod-1")
    assert not interest.covers("acme/web", "dev")
    assert interest.covers("library/nginx", "1.27")
    assert interest.covers("x/y/z", "stable")
    assert not interest.covers("library/a/b", "1")
    assert interest.touches("acme/web")  # some tag of it is covered, or could be
    assert not Interest(patterns=frozenset({"library/*:v*"})).touches("library/a/b")
    assert Interest(patterns=frozenset({"library/ng*"})).touches("library/nginx")
    assert not Interest()
