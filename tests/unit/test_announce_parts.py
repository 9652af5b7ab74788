"""What the tracker remembers beside announces: which digests are named, and what was sent of a blob."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound
from p2pregistry.trust.records import ANYONE, Caller
from tracker.catalog.base import Naming
from tracker.catalog.check import BY, Signer, add, manifest
from tracker.catalog.memory import MemoryCatalog
from tracker.handout import Handout
from tracker.named import Named

ONE, TWO = Metainfo.of_bytes(b"one"), Metainfo.of_bytes(b"two")
MIB = 1 << 20


class Asked(MemoryCatalog):
    """Counts the questions; ``away`` fails them."""

    def __init__(self) -> None:
        super().__init__(private=False)
        self.questions: list[list[Digest]] = []
        self.away = False

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        self.questions.append(list(digests))
        if self.away:
            raise LocalError("the database is away")
        return await super().naming(digests)

    async def name(self, blob: Metainfo) -> None:
        await add(self, "a", blob)
        await self.put_manifest("a", manifest(blob.hashes, [blob]), (), Signer(), BY)


async def test_what_is_named_is_asked_once_in_a_while(mock_clock: trio.testing.MockClock) -> None:
    catalog = Asked()
    await catalog.name(ONE)
    named = Named(catalog)
    for _ in range(3):
        await named.learn([ONE.digest, TWO.digest])
        await named.check(ONE.digest, ANYONE)
    assert catalog.questions == [[ONE.digest, TWO.digest]]
    assert (named.known(ONE.digest, ANYONE), named.known(TWO.digest, ANYONE)) == (True, False)
    mock_clock.jump(5)
    await named.learn([ONE.digest, TWO.digest])
    assert catalog.questions[1:] == [[TWO.digest]]  # what was not named may be by now
    mock_clock.jump(30)
    assert named.unknown([ONE.digest]) == [ONE.digest]
    assert named.known(ONE.digest, ANYONE)  # until the catalog says otherwise


async def test_a_blob_that_was_named_a_moment_ago_is_served(mock_clock: trio.testing.MockClock) -> None:
    catalog = Asked()
    named = Named(catalog)
    await named.learn([ONE.digest])
    with pytest.raises(NotFound):
        await named.check(ONE.digest, ANYONE)
    await catalog.name(ONE)
    await named.check(ONE.digest, ANYONE)
    catalog.away = True
    await named.check(ONE.digest, ANYONE)
    mock_clock.jump(60)
    with pytest.raises(LocalError):
        await named.check(ONE.digest, ANYONE)
    with pytest.raises(LocalError):
        await named.learn([TWO.digest])


async def test_what_has_become_private_is_not_told_of_any_more(mock_clock: trio.testing.MockClock) -> None:
    catalog = Asked()
    await catalog.name(ONE)
    named = Named(catalog)
    await named.check(ONE.digest, ANYONE)
    await catalog.set_visibility("a", True, BY)
    await named.check(ONE.digest, ANYONE)  # it has not been heard of here
    named.doubt()
    assert named.unknown([ONE.digest]) == [ONE.digest]
    with pytest.raises(NotFound):
        await named.check(ONE.digest, ANYONE)
    await named.learn([ONE.digest])
    assert not named.known(ONE.digest, ANYONE)
    await named.check(ONE.digest, Caller("x", ("a",)))


async def test_an_answer_from_before_a_doubt_is_asked_for_again(mock_clock: trio.testing.MockClock) -> None:
    class Late(Asked):
        async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
            found = await super().naming(digests)
            if len(self.questions) == 1:
                await self.set_visibility("a", True, BY)
                named.doubt()
            return found

    catalog = Late()
    await catalog.name(ONE)
    named = Named(catalog)
    await named.learn([ONE.digest])
    assert named.unknown([ONE.digest]) == [ONE.digest]
    with pytest.raises(NotFound):
        await named.check(ONE.digest, ANYONE)


def test_counts_of_blobs_not_asked_for_are_forgotten() -> None:
    handout = Handout(randrange=random.Random(1).randrange, limit=2)
    digests = [Digest.of(b"%d" % number) for number in range(3)]

    def sent(digest: Digest) -> int | None:
        handed, _ = handout.choose(digest, 2 * MIB - 5, b"\1\0", 0.0)
        return None if handed is None else handed.length

    assert [sent(digests[0]), sent(digests[1]), sent(digests[0])] == [MIB, MIB, None]
    assert sent(digests[2]) == MIB  # the second is forgotten
    assert [sent(digests[0]), sent(digests[1])] == [None, MIB]


def test_the_last_piece_is_shorter() -> None:
    handout = Handout(randrange=random.Random(1).randrange)
    handed, wait = handout.choose(ONE.digest, 2 * MIB - 5, b"\0\1", 0.0)
    assert handed is not None
    assert (handed.index, handed.length, wait) == (1, MIB - 5, 0.0)
