"""Keys in the database: one root for all trackers, secrets wrapped, every change a key set that the root signed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError, SettingsError
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim, verify_manifest_claim
from p2pregistry.trust.keys import KeySet, TrackerKeys, kid_of, sign_key_set
from p2pregistry.trust.paserk import SECRET, load_key, new_local, public_of
from tracker.catalog.base import NewManifest
from tracker.catalog.check import blob
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.catalog.signing import Change
from tracker.catalog.trail import By
from tracker.db import Db
from tracker.key_keeper import KeyFiles, KeyKeeper, open_keys

ME = By("operator:me", "admin socket")


@pytest.fixture
async def db(database: str) -> AsyncIterator[Db]:
    db = Db(database)
    try:
        await migrate(db)
        yield db
    finally:
        db.close()


def shown(database: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def run(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statement.encode())


async def states(keeper: KeyKeeper) -> dict[str, str]:
    found = await keeper.status()
    keys = found["keys"]
    assert isinstance(keys, list)
    return {key["kid"]: key["state"] for key in keys}


# --------------------------------------------------------------------------------------------------------------- start


async def test_several_trackers_that_start_at_once_have_the_same_keys(db: Db, tmp_path: Path) -> None:
    found: list[KeyKeeper] = []

    async def start() -> None:
        found.append(await open_keys(db, KeyFiles(tmp_path / "keys")))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(start)
    first = found[0].keyring
    for keeper in found[1:]:
        ring = keeper.keyring
        assert (ring.root_public, ring.key_set, ring.signer.kid) == (first.root_public, first.key_set, first.signer.kid)
        assert (ring.peer_id, ring.nonce_key) == (first.peer_id, first.nonce_key)
    assert set(first.keys.keys) == {first.signer.kid}
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["root.key", "wrapping.key"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "keys").iterdir())


async def test_a_tracker_with_another_root_key_does_not_start(db: Db, tmp_path: Path) -> None:
    await open_keys(db, KeyFiles(tmp_path / "one"))
    TrackerKeys.load_or_create(tmp_path / "two")
    shutil.copy(tmp_path / "one" / "wrapping.key", tmp_path / "two")
    with pytest.raises(SettingsError, match=r"keys\.dir.*another root\.key"):
        await open_keys(db, KeyFiles(tmp_path / "two"))


async def test_a_tracker_starts_without_the_root_key_and_makes_none(db: Db, tmp_path: Path) -> None:
    before = (await open_keys(db, KeyFiles(tmp_path / "one"))).keyring
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / "wrapping.key", tmp_path / "two")
    keeper = await open_keys(db, KeyFiles(tmp_path / "two"))
    assert keeper.keyring.signer.kid == before.signer.kid
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["wrapping.key"]
    with pytest.raises(RequestError, match="--root-key"):
        await keeper.change(Change(), ME)


async def test_a_tracker_without_the_wrapping_key_is_told_where_to_get_it(db: Db, tmp_path: Path) -> None:
    await open_keys(db, KeyFiles(tmp_path / "one"))
    with pytest.raises(SettingsError, match=r"wrapping\.key is missing"):
        await open_keys(db, KeyFiles(tmp_path / "two"))
    assert not (tmp_path / "two").exists()
    other = new_local().to_paserk()
    with pytest.raises(SettingsError, match="wrapped with another key") as caught:
        await open_keys(db, KeyFiles(tmp_path / "one", wrapping=other))
    assert other not in caught.value.message
    for bad in ("k4.local.AAAA", "k4.secret.AAAA", "x"):
        with pytest.raises(SettingsError, match=r"keys\.wrapping_key") as caught:
            await open_keys(db, KeyFiles(tmp_path / "one", wrapping=bad))
        assert bad not in caught.value.message.split(": ", 1)[1].split()


async def test_the_wrapping_key_may_come_from_elsewhere(db: Db, tmp_path: Path) -> None:
    text = new_local().to_paserk()
    first = (await open_keys(db, KeyFiles(tmp_path / "keys", wrapping=text))).keyring
    (tmp_path / "secret").write_text(text)
    (tmp_path / "secret").chmod(0o600)
    again = (await open_keys(db, KeyFiles(tmp_path / "keys", tmp_path / "secret"))).keyring
    assert first.nonce_key == again.nonce_key
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["root.key"]


async def test_the_keys_of_an_older_program_are_taken_over(db: Db, database: str, tmp_path: Path) -> None:
    older = TrackerKeys.load_or_create(tmp_path)
    run(database, f"insert into root_key (public) values ('{older.root_public}')")
    with pytest.raises(SettingsError, match=r"root\.key is needed once"):
        await open_keys(db, KeyFiles(tmp_path / "elsewhere"))
    ring = (await open_keys(db, KeyFiles(tmp_path))).keyring
    assert (ring.root_public, ring.signer.kid) == (older.root_public, older.signer.kid)
    ring.keys.follows(KeySet.verify(older.key_set(), older.root_public))  # nodes have that one


async def test_no_secret_stands_in_the_database_unwrapped(db: Db, database: str, tmp_path: Path) -> None:
    ring = (await open_keys(db, KeyFiles(tmp_path))).keyring
    texts = shown(database, "select secret from signing_keys union all select wrapped from tracker_secrets")
    kinds = sorted(str(text).partition(".pie.")[0] for (text,) in texts)
    assert kinds == ["k4.local-wrap", "k4.secret-wrap", "k4.secret-wrap"]
    assert ring.signer.secret.to_paserk() not in str(texts)


# ------------------------------------------------------------------------------------------------------------- changes


async def test_a_new_key_is_published_at_once_and_signs_later(db: Db, database: str, tmp_path: Path) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path), overlap=1)
    other = await open_keys(db, KeyFiles(tmp_path))
    before = keeper.keyring.signer.kid
    await keeper.change(Change(), ME)
    (new,) = keeper.keyring.keys.keys.keys() - {before}
    assert await states(keeper) == {before: "signs", new: "published"}
    assert keeper.keyring.signer.kid == before
    await other.refresh()
    assert other.keyring.key_set == keeper.keyring.key_set
    with trio.fail_after(20):
        while other.keyring.signer.kid == before:
            await other.refresh()
    assert other.keyring.signer.kid == new
    assert await states(other) == {before: "superseded", new: "signs"}
    (line,) = shown(database, "select actor, action, detail from audit")
    assert line[:2] == ("operator:me", "keys.rotate")
    assert shown(database, "select kind, gone from changes") == [("keys", False)]


async def test_a_stolen_key_goes_at_once_and_another_one_signs(db: Db, tmp_path: Path) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path))
    stolen, old_set = keeper.keyring.signer.kid, keeper.keyring.keys
    await keeper.change(Change(drop=stolen), ME)
    ring = keeper.keyring
    assert ring.signer.kid != stolen
    assert set(ring.keys.keys) == {ring.signer.kid}
    ring.keys.follows(old_set)
    assert ring.keys.version > old_set.version
    with pytest.raises(NotFound):
        await keeper.change(Change(drop=stolen), ME)


async def test_one_that_is_published_signs_where_the_signing_one_is_stolen(db: Db, tmp_path: Path) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path))
    stolen = keeper.keyring.signer.kid
    await keeper.change(Change(), ME)
    await keeper.change(Change(drop=stolen), ME)
    assert len(await states(keeper)) == 2
    assert keeper.keyring.signer.kid != stolen


async def test_the_root_may_sign_elsewhere(db: Db, tmp_path: Path) -> None:
    await open_keys(db, KeyFiles(tmp_path))
    root = load_key(tmp_path / "root.key", SECRET)
    assert root is not None
    (tmp_path / "root.key").unlink()
    keeper = await open_keys(db, KeyFiles(tmp_path), overlap=0)
    before = keeper.keyring.signer.kid
    draft = await keeper.draft(Change())
    assert (await keeper.draft(Change())).keys == draft.keys
    assert sorted((await states(keeper)).values()) == ["prepared", "signs"]
    assert keeper.keyring.keys.keys.keys() == {before}
    foreign = TrackerKeys.fresh()
    for refused in (
        sign_key_set(foreign.root, draft.version, draft.keys),
        sign_key_set(root, 1, draft.keys),
        sign_key_set(root, draft.version, [foreign.signing_public]),
        sign_key_set(root, draft.version, []),
        "nonsense",
    ):
        with pytest.raises(RequestError) as caught:
            await keeper.publish(refused, Change(), ME)
        assert caught.value.status == 400
    with pytest.raises(RequestError):  # it still names the one that is to go
        await keeper.publish(sign_key_set(root, draft.version, draft.keys), Change(drop=before), ME)
    await keeper.publish(sign_key_set(root, draft.version, draft.keys), Change(), ME)
    assert keeper.keyring.signer.kid != before
    assert public_of(root).to_paserk() == keeper.keyring.root_public


# -------------------------------------------------------------------------------------------------------------- claims


async def push(catalog: PostgresCatalog, keeper: KeyKeeper, repository: str, body: bytes, texts: list[str]) -> Digest:
    infos = [blob(text) for text in texts]
    for info in infos:
        await catalog.add_blob(repository, info, f"object-{info.digest}", ME)
    digest = Digest.of(body)
    manifest = NewManifest(digest, "application/x", body, tuple(info.digest for info in infos), ())

    def sign(refs: object) -> str:
        return sign_manifest_claim(keeper.keyring.signer, ManifestClaim(repository, digest, tuple(refs)))  # type: ignore[arg-type]

    await catalog.put_manifest(repository, manifest, ["1"], sign, ME)
    return digest


async def test_claims_of_a_stolen_key_are_signed_again_by_whoever_comes_first(
    db: Db, database: str, tmp_path: Path
) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path))
    catalog = PostgresCatalog(db)
    body = f"{blob('two').digest} {blob('one').digest}".encode()
    digest = await push(catalog, keeper, "a/b", body, ["two", "one"])
    empty = await push(catalog, keeper, "a/c", b"no blobs", [])
    stolen = keeper.keyring.signer.kid
    assert shown(database, "select distinct claim_kid from repository_manifests") == [(stolen,)]
    run(database, "update repository_manifests set claim_kid = null where repository_id = 2")  # not known
    others = [keeper, *[await open_keys(db, KeyFiles(tmp_path)) for _ in range(2)]]
    before = await catalog.manifest("a/b", digest)
    assert before is not None
    await keeper.change(Change(drop=stolen), ME)
    done: list[int] = []

    async def again(one: KeyKeeper) -> None:
        await one.refresh()
        done.append(await one.sign_again())

    async with trio.open_nursery() as nursery:
        for one in others:
            nursery.start_soon(again, one)
    assert sum(done) == 2
    assert shown(database, "select distinct claim_kid from repository_manifests") == [(keeper.keyring.signer.kid,)]
    for repository, one, names in (("a/b", digest, ("two", "one")), ("a/c", empty, ())):
        record = await catalog.manifest(repository, one)
        assert record is not None
        assert kid_of(record.claim) == keeper.keyring.signer.kid
        claim = verify_manifest_claim(keeper.keyring.keys, record.claim)
        assert claim == ManifestClaim(repository, one, tuple(blob(name).ref for name in names))
    assert await keeper.sign_again() == 0


async def test_many_claims_are_signed_again_in_small_steps(db: Db, database: str, tmp_path: Path) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path))
    catalog = PostgresCatalog(db)
    await push(catalog, keeper, "a/b", b"first", ["one"])
    run(
        database,
        "with made as (insert into manifests (digest, body) select '\\x12'::bytea || sha256(i::text::bytea),"
        " i::text::bytea from generate_series(1, 450) i returning id) insert into repository_manifests"
        " (repository_id, manifest_id, media_type, claim, claim_number) select 1, id, 'x', 'claim', 7 from made",
    )
    assert shown(database, "select count(*) from repository_manifests where claim_kid is null") == [(450,)]
    assert await keeper.sign_again() == 450
    assert shown(database, "select count(*) from repository_manifests where claim_kid is null") == [(0,)]


async def test_an_old_key_is_retired_once_nothing_of_it_is_in_use(db: Db, database: str, tmp_path: Path) -> None:
    keeper = await open_keys(db, KeyFiles(tmp_path), overlap=0)
    await push(PostgresCatalog(db), keeper, "a/b", b"first", ["one"])
    first = keeper.keyring.signer.kid
    await keeper.change(Change(), ME)
    second = keeper.keyring.signer.kid
    assert second != first
    made = await keeper.change(Change(retire=True), ME)
    assert made.kept == {first: "1 claims have yet to be signed again"}
    both = f"('{first}', '{second}')"
    run(database, f"update signing_keys set sign_from = sign_from - interval '40 hours' where kid in {both}")
    await keeper.sign_again()
    made = await keeper.change(Change(retire=True), ME)
    assert list(made.kept) == [second]
    assert "credentials" in made.kept[second]
    assert first not in keeper.keyring.keys.keys
    assert (await states(keeper))[first] == "dropped"
