"""Every ``Accounts`` keeps every promise of ``tracker.identity.check`` and ``check_tokens``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from tracker.catalog.check import Signer, add, blob, manifest
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Connection, Db
from tracker.identity import check, check_tokens
from tracker.identity.check import BY, OTHER, PASSWORD, Subject
from tracker.identity.memory import MemoryAccounts
from tracker.identity.passwords import Passwords
from tracker.identity.postgres import PostgresAccounts

CASES = check.CASES | check_tokens.CASES


def resign(repository: str, digest: Digest, blobs: Sequence[BlobRef]) -> str:
    return " ".join([repository, str(digest), *(str(one.digest) for one in blobs)])


@pytest.mark.parametrize("case", CASES)
async def test_memory(case: str) -> None:
    passed = 0.0
    catalog = MemoryCatalog()
    accounts = MemoryAccounts(catalog, resign, now=lambda: datetime.now(UTC) + timedelta(seconds=passed))

    async def age(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    async def audit() -> list[tuple[str, str, str]]:
        return [(by.actor, action, name) for by, action, name in accounts.written]

    await CASES[case](Subject(accounts, catalog, age, audit))


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Db]:
    db = Db(dsn)
    try:
        await migrate(db)
        yield db
    finally:
        db.close()


def quick() -> Passwords:
    return Passwords(memory_cost=8, time_cost=1)


@pytest.mark.parametrize("case", CASES)
async def test_postgres(case: str, database: str) -> None:
    async with opened(database) as db:

        async def age(seconds: float) -> None:
            await db.tx(_age, seconds)

        async def audit() -> list[tuple[str, str, str]]:
            return await db.query(_audit)

        accounts = PostgresAccounts(db, resign, passwords=quick())
        await CASES[case](Subject(accounts, PostgresCatalog(db), age, audit))


def _age(connection: Connection, seconds: float) -> None:
    for table in ("tokens", "setup"):
        connection.execute(
            f"update {table} set expires_at = expires_at - %s * interval '1 second'".encode(),
            (seconds,),
        )


def _audit(connection: Connection) -> list[tuple[str, str, str]]:
    return connection.execute("select actor, action, reference from audit order by id").fetchall()


# -------------------------------------------------------------------------------------------- Postgres in particular


def accounts_on(db: Db, passwords: Passwords | None = None) -> PostgresAccounts:
    return PostgresAccounts(db, resign, passwords=passwords or quick())


def _changes(connection: Connection) -> list[tuple[str, str, str, bool]]:
    rows = connection.execute("select kind, repository, name, gone from changes order by number").fetchall()
    return [(kind, repository, name, gone) for kind, repository, name, gone in rows]


async def test_each_change_of_access_is_numbered_for_those_who_follow(database: str) -> None:
    async with opened(database) as db:
        accounts = accounts_on(db)

        async def told(call: Awaitable[object]) -> list[tuple[str, bool]]:
            await db.tx(lambda connection: connection.execute("delete from changes"))
            await call
            found = await db.query(_changes)
            assert {kind for kind, *_ in found} <= {"access"}
            return [(name, gone) for _, _, name, gone in found]

        assert await told(accounts.add_user("ann", PASSWORD, BY)) == [("ann", False)]
        assert await told(accounts.add_user("bob", PASSWORD, BY)) == [("bob", False)]
        assert await told(accounts.set_password("ann", OTHER, BY)) == [("ann", False)]
        assert await told(accounts.set_disabled("ann", True, BY)) == [("ann", False)]
        assert await told(accounts.set_disabled("ann", True, BY)) == []
        assert await told(accounts.set_disabled("ann", False, BY)) == [("ann", False)]
        assert await told(accounts.set_administrator("ann", True, BY)) == [("ann", False)]
        assert await told(accounts.add_organization("acme", "ann", BY)) == [("acme", False)]
        assert await told(accounts.set_member("acme", "bob", "member", BY)) == [("acme", False)]
        assert await told(accounts.add_team("acme", "dev", BY)) == [("acme", False)]
        assert await told(accounts.add_team_member("acme", "dev", "bob", BY)) == [("acme", False)]
        assert await told(accounts.set_grant("acme", "dev", "acme/*", ["pull"], BY)) == [("acme", False)]
        assert await told(accounts.remove_grant("acme", "dev", "acme/*", BY)) == [("acme", False)]
        assert await told(accounts.remove_team_member("acme", "dev", "bob", BY)) == [("acme", False)]
        assert await told(accounts.delete_team("acme", "dev", BY)) == [("acme", False)]
        assert await told(accounts.remove_member("acme", "bob", BY)) == [("acme", False)]
        new = await accounts.add_token("personal", "bob", "x", BY)
        assert await told(accounts.revoke_token("bob", new.token.id, BY)) == [("bob", False)]
        assert await told(accounts.rename_account("bob", "rob", BY)) == [("bob", True), ("rob", False)]
        assert await told(accounts.delete_account("rob", BY)) == [("rob", True)]


async def test_who_follows_hears_that_tags_were_renamed_and_deleted(database: str) -> None:
    async with opened(database) as db:
        accounts, catalog = accounts_on(db), PostgresCatalog(db)
        await accounts.add_user("ann", PASSWORD, BY)
        await catalog.put_manifest("ann/app", manifest(b"image"), ["1", "2"], Signer(), BY)
        await accounts.rename_account("ann", "zoe", BY)
        found = set(await db.query(_changes))
        assert found == {
            ("access", "", "ann", True),
            ("access", "", "zoe", False),
            ("repository", "ann/app", "", True),
            ("repository", "zoe/app", "", False),
            ("tag", "ann/app", "1", True),
            ("tag", "ann/app", "2", True),
            ("tag", "zoe/app", "1", False),
            ("tag", "zoe/app", "2", False),
        }
        await accounts.delete_account("zoe", BY, repositories=True)
        found = set(await db.query(_changes))
        assert ("repository", "zoe/app", "", True) in found
        assert {gone for kind, _, _, gone in found if kind == "tag"} == {True}
        await catalog.put_manifest("other/app", manifest(b"image"), ["3"], Signer(), BY)
        await catalog.delete_repository("other/app", BY)
        assert ("tag", "other/app", "3", True) in set(await db.query(_changes))


async def test_nothing_is_pushed_to_a_name_that_was_given_up(database: str) -> None:
    async with opened(database) as db:
        accounts, catalog = accounts_on(db), PostgresCatalog(db)
        await accounts.add_user("ann", PASSWORD, BY)
        layer = blob("layer")
        outcomes: list[str] = []

        async def push(number: int) -> None:
            try:
                await add(catalog, f"ann/app{number}", layer)
            except RequestError as err:
                outcomes.append(err.code)

        await push(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accounts.rename_account, "ann", "zoe", BY)
            for _ in range(6):
                nursery.start_soon(push, 0)
        assert await catalog.repositories() == ["zoe/app0"]
        await push(1)
        assert outcomes[-1] == "NAME_UNKNOWN"
        assert await catalog.repositories() == ["zoe/app0"]


async def test_claims_are_signed_for_the_new_name_with_the_blobs_in_the_order_of_the_manifest(database: str) -> None:
    async with opened(database) as db:
        accounts, catalog = accounts_on(db), PostgresCatalog(db)
        await accounts.add_user("ann", PASSWORD, BY)
        layers = [blob(f"layer {number}") for number in range(5)]
        for layer in reversed(layers):
            await add(catalog, "ann/app", layer)
        image = manifest(" ".join(str(layer.digest) for layer in layers).encode(), layers)
        await catalog.put_manifest("ann/app", image, ["1"], Signer(), BY)
        await catalog.put_manifest("ann/app", manifest(b"of nothing"), ["2"], Signer(), BY)
        await accounts.rename_account("ann", "zoe", BY)
        found = [await catalog.manifest("zoe/app", tag) for tag in ("1", "2")]
        assert [one.claim for one in found if one is not None] == [
            resign("zoe/app", image.digest, [layer.ref for layer in layers]),
            resign("zoe/app", Digest.of(b"of nothing"), []),
        ]


async def test_who_leaves_at_the_same_time_does_not_leave_nobody(database: str) -> None:
    async with opened(database) as db:
        accounts = accounts_on(db)
        names = ["ann", "bob", "cat", "dan"]
        for name in names:
            await accounts.add_user(name, None, BY, administrator=True)
        await accounts.add_organization("acme", "ann", BY)
        for name in names[1:]:
            await accounts.set_member("acme", name, "owner", BY)
        codes: list[str] = []

        async def leave(call: Callable[[], Awaitable[object]]) -> None:
            try:
                await call()
            except RequestError as err:
                codes.append(err.code)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(leave, partial(accounts.remove_member, "acme", name, BY))
                nursery.start_soon(leave, partial(accounts.set_administrator, name, False, BY))
        assert codes == ["CONFLICT", "CONFLICT"]
        assert len(await accounts.members("acme")) == 1
        assert sum(one.administrator for one in await accounts.accounts()) == 1


async def test_of_many_who_set_up_with_one_secret_one_is_administrator(database: str) -> None:
    async with opened(database) as db:
        accounts = accounts_on(db)
        secret = await accounts.new_setup(BY)
        made: list[str] = []

        async def set_up(name: str) -> None:
            with suppress(RequestError):
                made.append((await accounts.set_up(secret, name, PASSWORD, BY)).name)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(set_up, f"root{number}")
        assert len(made) == 1
        assert [one.name for one in await accounts.accounts()] == made
        async with trio.open_nursery() as nursery:
            for _ in range(4):  # trackers that start at once
                nursery.start_soon(accounts.ensure_administrator, "operator", "hunter2")
        assert await accounts.verify("operator", "hunter2") is not None


async def test_a_password_is_hashed_anew_once_the_costs_have_changed(database: str) -> None:
    async with opened(database) as db:
        before = accounts_on(db)
        await before.add_user("ann", PASSWORD, BY)
        after = accounts_on(db, passwords=Passwords(memory_cost=16, time_cost=1))
        assert await after.verify("ann", OTHER) is None
        kept = "select password from accounts"
        assert "m=8," in str(await db.query(lambda connection: connection.execute(kept).fetchall()))
        assert await after.verify("ann", PASSWORD) is not None
        assert "m=16," in str(await db.query(lambda connection: connection.execute(kept).fetchall()))
        assert await before.verify("ann", PASSWORD) is not None


async def test_the_use_of_a_token_is_noted_at_most_once_a_minute(database: str) -> None:
    async with opened(database) as db:
        accounts = accounts_on(db)
        await accounts.add_user("ann", None, BY)
        new = await accounts.add_token("personal", "ann", "x", BY)

        async def used() -> datetime | None:
            await accounts.verify("ann", new.secret)
            return (await accounts.tokens("ann"))[0].last_used

        first = await used()
        assert first is not None
        assert await used() == first
        back = "update tokens set last_used_at = last_used_at - interval '61 seconds'"
        await db.tx(lambda connection: connection.execute(back))
        second = await used()
        assert second is not None
        assert second > first


async def test_rights_are_kept_until_somebody_says_that_they_have_changed(database: str) -> None:
    async with opened(database) as db:
        here, elsewhere = accounts_on(db), accounts_on(db)
        await here.add_user("ann", PASSWORD, BY)
        await here.add_user("bob", PASSWORD, BY)
        await here.add_organization("acme", "ann", BY)
        bob = await here.identity_of("bob")
        assert not (await here.rights(bob)).manages("acme")
        await elsewhere.follow()
        assert not (await elsewhere.rights(bob)).manages("acme")
        await here.set_member("acme", "bob", "admin", BY)
        assert (await here.rights(bob)).manages("acme"), "its own changes it knows of"
        assert not (await elsewhere.rights(bob)).manages("acme")
        await elsewhere.follow()
        assert (await elsewhere.rights(bob)).manages("acme")
        kept = await elsewhere.rights(bob)
        await add(PostgresCatalog(db), "acme/app", blob("layer"))
        await elsewhere.follow()
        assert await elsewhere.rights(bob) is kept, "a push is no change of access"


async def test_secrets_are_kept_hashed_only(database: str) -> None:
    async with opened(database) as db:
        accounts = accounts_on(db)
        secrets = [await accounts.new_setup(BY)]
        await accounts.add_user("ann", PASSWORD, BY)
        secrets.append((await accounts.add_token("personal", "ann", "x", BY)).secret)
        identity = await accounts.verify("ann", secrets[-1])
        assert identity is not None
        secrets += [PASSWORD, await accounts.add_refresh(identity, "docker", BY)]
        for table in ("accounts", "tokens", "setup", "audit", "events", "changes"):
            rows = str(await db.query(_all, table))
            assert not any(secret in rows for secret in secrets)


def _all(connection: Connection, table: str) -> list[tuple[object, ...]]:
    return connection.execute(f"select * from {table}".encode()).fetchall()
