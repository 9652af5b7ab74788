"""Streams that are kept between requests."""

from p2pregistry.routing.reuse import IDLE, IN_ALL, LIFE, PER_PEER, Kept, Streams


def test_a_stream_is_taken_once_and_only_for_its_peer() -> None:
    streams: Streams[str] = Streams()
    assert streams.give(Kept(b"a", "one", 0, 0)) == []
    assert streams.take(b"b", 1) is None
    kept = streams.take(b"a", 1)
    assert kept is not None
    assert kept.stream == "one"
    assert streams.take(b"a", 1) is None
    assert len(streams) == 0


def test_idle_streams_are_not_used_and_are_handed_out_to_be_closed() -> None:
    streams: Streams[str] = Streams()
    streams.give(Kept(b"a", "one", 0, 0))
    streams.give(Kept(b"b", "two", 0, 3))
    assert streams.take(b"a", IDLE) is None
    assert streams.old(IDLE) == ["one"]
    assert streams.old(IDLE) == []
    assert streams.take(b"b", IDLE) is not None


def test_a_stream_that_has_lived_long_is_closed() -> None:
    streams: Streams[str] = Streams()
    assert streams.give(Kept(b"a", "one", 0, LIFE)) == ["one"]
    assert streams.give(Kept(b"a", "two", 0, LIFE - 1)) == []
    assert streams.take(b"a", LIFE) is None


def test_streams_are_bounded_per_peer_and_in_all() -> None:
    streams: Streams[int] = Streams()
    for number in range(PER_PEER):
        assert streams.give(Kept(b"a", number, 0, 0)) == []
    assert streams.give(Kept(b"a", 99, 0, 0)) == [99]
    surplus = [s for n in range(IN_ALL) for s in streams.give(Kept(b"peer %d" % n, 1000 + n, 0, 0))]
    assert surplus == list(range(PER_PEER)), "the ones used longest ago"
    assert len(streams) == IN_ALL
