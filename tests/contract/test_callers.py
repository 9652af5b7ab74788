"""The trackers' sessions: what every desk promises, on a database; and that any tracker takes what another gave out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from p2pregistry.errors import BadContent, LocalError, RequestError
from p2pregistry.sessions import Opening
from p2pregistry.testing.members import DAY, Authority, Member, open_session
from p2pregistry.testing.sessions import Clock, Place, check_desk
from p2pregistry.trust.keys import KeySet, Signer
from p2pregistry.trust.paserk import new_secret, public_of
from p2pregistry.trust.proof import sign_proof
from p2pregistry.trust.records import Caller
from tracker.callers import FRESH, STALE, TrackerDesk
from tracker.catalog.migrate import migrate
from tracker.catalog.nodes import Grant, Revoked
from tracker.catalog.nodes_postgres import PostgresNodes
from tracker.catalog.trail import By
from tracker.db import Db
from tracker.nonces import TrackerNonces

BY = By("operator", "test", "r1")


@dataclass
class Keys:
    """What a tracker's keyring has."""

    peer_id: str
    signer: Signer
    keys: KeySet
    nonce_key: bytes = b"n" * 32


class Nodes(PostgresNodes):
    """It can be made not to answer."""

    away = False

    async def revoked(self) -> Revoked:
        if self.away:
            raise LocalError("the database does not answer")
        return await super().revoked()


class Trackers:
    """Two trackers of one database, and the nodes they let in."""

    def __init__(self, db: Db) -> None:
        self.clock = Clock(time.time())
        self.authority = Authority(clock=self.clock)
        self.own = Member().peer_id
        self.keys = Keys(self.own, self.authority.signer, self.authority.keys)
        self.nodes = Nodes(db)
        self.db = db
        self.one, self.other = self.desk(), self.desk()

    def desk(self) -> TrackerDesk:
        nonces = TrackerNonces(self.db, self.keys, self.clock)
        return TrackerDesk(self.keys, nonces, self.nodes, "default", lifetime=DAY, clock=self.clock, tick=self.clock)

    async def enrolled(self, *pulls: str) -> tuple[Member, str]:
        """A node, and its credential."""
        member = Member()
        await self.nodes.enrol(Grant("default", pulls), "test", member.peer_id, DAY, BY)
        return member, self.authority.issue(member.peer_id, pulls=pulls)

    async def revoke(self, peer_id: str) -> None:
        if await self.nodes.node(peer_id) is None:
            await self.nodes.enrol(Grant("default"), "test", peer_id, DAY, BY)
        assert await self.nodes.revoke(peer_id, True, BY)


@asynccontextmanager
async def trackers(dsn: str) -> AsyncIterator[Trackers]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield Trackers(db)
    finally:
        db.close()


async def test_a_trackers_desk_keeps_every_promise(database: str) -> None:
    async with trackers(database) as two:
        await check_desk(Place(two.one, two.own, two.authority, two.clock, two.revoke))


async def test_every_tracker_takes_the_sessions_and_nonces_of_every_other(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled("acme/**")
        nonce = await two.one.nonce()
        opening = Opening(credential, sign_proof(member.key, nonce, two.own))
        granted = await two.other.open(opening)
        for desk in (two.one, two.other, two.desk()):
            assert await desk.caller(granted.token) == Caller(member.peer_id, ("acme/**",))
        with pytest.raises(RequestError, match="used before"):
            await two.one.open(opening)


async def test_a_grant_that_changed_counts_at_once_at_every_tracker(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled("acme/**")
        token = await open_session(two.one, member, credential, two.own)
        assert await two.other.caller(token) == Caller(member.peer_id, ("acme/**",))
        await two.nodes.regrant(member.peer_id, ["other/*"], None, BY)
        two.clock.now += FRESH
        for desk in (two.one, two.other):
            assert await desk.caller(token) == Caller(member.peer_id, ("other/*",))
        again = await open_session(two.other, member, credential, two.own)
        assert await two.one.caller(again) == Caller(member.peer_id, ("other/*",)), "whatever the old credential says"


async def test_more_globs_than_fit_into_a_header_are_read_from_the_database(database: str) -> None:
    pulls = tuple(f"organisation{number}/repositories/**" for number in range(300))
    async with trackers(database) as two:
        member, credential = await two.enrolled(*pulls)
        token = await open_session(two.one, member, credential, two.own)
        assert len(token) < 1000
        assert await two.other.caller(token) == Caller(member.peer_id, pulls)


async def test_without_its_database_a_tracker_knows_who_is_who_for_a_minute(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled()
        token = await open_session(two.one, member, credential, two.own)
        two.nodes.away = True
        two.clock.now += STALE - 1
        assert await two.one.caller(token) is not None
        two.clock.now += 2
        with pytest.raises(LocalError):
            await two.one.caller(token)


async def test_the_dht_node_of_a_tracker_judges_by_the_same_rules(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled()
        found = await two.one.credential(credential, member.peer_id)
        two.one.check(found, member.peer_id)
        with pytest.raises(BadContent, match="another node"):
            two.one.check(found, Member().peer_id)
        await two.revoke(member.peer_id)
        two.clock.now += FRESH
        with pytest.raises(BadContent, match="revoked"):
            await two.one.credential(credential, member.peer_id)
        with pytest.raises(BadContent, match="revoked"):
            two.one.check(found, member.peer_id)
        two.clock.now += DAY
        with pytest.raises(BadContent, match="expired"):
            two.one.check(found, member.peer_id)


async def test_a_session_goes_with_the_key_of_its_credential(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled("acme/**")
        new = Signer.of(new_secret())
        keys = dict(two.keys.keys.keys)
        two.keys.keys = KeySet(2, keys | {new.kid: public_of(new.secret)})
        two.keys.signer = new
        token = await open_session(two.one, member, credential, two.own)
        assert await two.one.caller(token) is not None
        two.keys.keys = KeySet(3, {new.kid: public_of(new.secret)})
        for desk in (two.one, two.other):
            assert await desk.caller(token) is None


async def test_a_session_signed_with_a_key_that_was_dropped_is_no_good(database: str) -> None:
    async with trackers(database) as two:
        member, credential = await two.enrolled()
        token = await open_session(two.one, member, credential, two.own)
        assert await two.one.caller(token) is not None
        two.keys.keys = KeySet(2, {})
        for desk in (two.one, two.other):
            assert await desk.caller(token) is None
