"""The index: records, grouped writes, and what happens to a damaged one."""

import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.store import index as index_module
from p2pregistry.store.environment import MARK
from p2pregistry.store.forget import keep_only
from p2pregistry.store.index import BlobEntry, RepositoryRecord, StoredManifest, TagRecord, kept_path, open_index
from p2pregistry.store.kept import format_kept, parse_kept
from p2pregistry.store.records import (
    BLOBS,
    CLAIMS,
    MANIFESTS,
    METAINFO,
    REFS,
    TAGS,
    digest_key,
    read_digest,
)
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from p2pregistry.trust.keys import Signer
from p2pregistry.trust.paserk import new_secret
from p2pregistry.trust.records import Stamp

A, B = Digest.of(b"a"), Digest.of(b"b", "sha512")


async def test_tags(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        await index.put_tag("acme/api", "1.4", TagRecord(A, 5.0))
        await index.put_tag("acme/api", "1.5", TagRecord(B, 6.0))
        await index.put_tag("acme/api2", "1.4", TagRecord(B, 7.0))
        await index.put_tag("acme/api", "1.4", TagRecord(B, 8.0))
        assert index.tag("acme/api", "1.4") == TagRecord(B, 8.0)
        assert index.tags("acme/api") == ["1.4", "1.5"]
        assert index.tags("acme/ap") == []
        gone = TagRecord(None, 9.0, Stamp(1, 7), "the last record")
        await index.put_tag("acme/api", "1.4", gone)
        assert index.tag("acme/api", "1.4") == gone
        assert index.tags("acme/api") == ["1.5"]
        await index.put_tag("r" * 255, "t" * 128, TagRecord(A, 1.0))
        assert index.tags("r" * 255) == ["t" * 128]
        for repository, tag in (("r" * 256, "t"), ("r", "t" * 129), ("", "t"), ("r", ""), ("a\0b", "c"), ("a", "b\0c")):
            with pytest.raises(ValueError):
                index.tag(repository, tag)


async def test_an_older_record_of_a_tag_or_repository_is_not_written(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        newer, older = TagRecord(A, 1.0, Stamp(2, 1)), TagRecord(B, 2.0, Stamp(1, 9))
        assert await index.put_tag("acme/api", "1", newer) == newer
        assert await index.put_tag("acme/api", "1", older) == newer
        assert index.tag("acme/api", "1") == newer
        again = TagRecord(None, 3.0, Stamp(2, 1))
        assert await index.put_tag("acme/api", "1", again) == again
        await index.put_repository("acme/api", RepositoryRecord(True, Stamp(2, 1), "newer"))
        await index.put_repository("acme/api", RepositoryRecord(False, Stamp(1, 9), "older"))
        assert index.repository("acme/api") == RepositoryRecord(True, Stamp(2, 1), "newer")


async def test_the_repositories_of_which_tags_are_known(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        assert index.owners(10) == []
        names = ["a", "a-b", "a/b", "a1", "b"]
        for name in names:
            for tag in ("1", "zz"):
                await index.put_tag(name, tag, TagRecord(A, 1.0))
        assert sorted(index.owners(10)) == sorted(names)
        assert len(index.owners(3)) == 3


async def test_manifests_claims_and_refs(tmp_path: Path) -> None:
    root = b"\x01\x55\x12\x20" + bytes(32)
    async with open_index(tmp_path / "i") as index:
        manifest = StoredManifest(A, "application/x", b"{}")
        await index.put_manifest("one", manifest, None, [])
        assert index.claims("one", A) == []
        await index.put_manifest("one", manifest, "c1", [BlobRef(B, 7, root)])
        for number in range(2, 7):
            await index.put_manifest("one", manifest, f"c{number}", [])
        await index.put_manifest("one", manifest, "c5", [])
        await index.put_manifest("two", manifest, "d1", [])
        assert index.manifest(A) == manifest
        assert index.manifest(B) is None
        assert index.claims("one", A) == ["c5", "c6", "c4", "c3"]
        assert index.manifest_claims(A) == [("one", "c5"), ("two", "d1")]
        assert index.claimed("one", B) == index.ref(B) == BlobRef(B, 7, root)
        assert index.claimed("two", B) is None
        assert index.ref(A) is None
        info = Metainfo.of_bytes(bytes(3 << 20))
        assert index.metainfo(info.digest) is None
        await index.put_metainfo(info)
        assert index.metainfo(info.digest) == info


async def test_claims_of_keys_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    stolen, good = Signer.of(new_secret()), Signer.of(new_secret())
    shared, only = (Metainfo.of_bytes(data).ref for data in (b"shared", b"only"))

    async def put(repository: str, name: bytes, signer: Signer, *blobs: BlobRef) -> Digest:
        digest = Digest.of(name, "sha512")
        token = sign_manifest_claim(signer, ManifestClaim(repository, digest, blobs))
        await index.put_manifest(repository, StoredManifest(digest, "application/x", name), token, blobs)
        return digest

    async with open_index(tmp_path / "i") as index:
        forged = await put("one", b"forged", stolen, shared, only)
        kept = await put("one", b"kept", good, shared)
        both = await put("two", b"both", stolen, only)
        await put("two", b"both", good, only)
        await index.put_manifest("three", StoredManifest(A, "application/x", b""), "no claim at all", [only])
        assert await keep_only(index, {stolen.kid, good.kid}) == 1
        assert await keep_only(index, {good.kid}) == 2
        assert index.claims("one", forged) == []
        assert index.claimed("one", only.digest) is None
        assert index.claimed("one", shared.digest) == shared, "a good claim names it too"
        assert len(index.claims("one", kept)) == len(index.claims("two", both)) == 1
        assert index.claimed("two", only.digest) == only
        assert index.manifest(forged) is not None
        assert await keep_only(index, {good.kid}) == 0


async def test_blobs_and_their_total(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(index.put_blob, A, 10, 1.0)
            nursery.start_soon(index.put_blob, B, 20, 2.0)
        await index.put_blob(A, 15, 3.0)
        assert index.total() == 35
        index.touch(B, 9.0)
        assert index.blob(B) == BlobEntry(20, 9.0)
        await index.drop_blob(A)
        await index.drop_blob(A)
        assert index.total() == 20
    async with open_index(tmp_path / "i") as index:
        assert index.held() == [(B, 20, 9.0)]
        assert index.total() == 20


async def test_a_touch_reaches_the_disk_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    kept = trio.Event()
    async with open_index(tmp_path / "i") as index:
        await index.put_blob(A, 10, 1.0)
        real: Callable[[dict[Digest, float]], None] = index._touches_kept
        monkeypatch.setattr(index._writer, "_lazily_done", lambda touched: (real(touched), kept.set()))
        began = trio.current_time()
        index.touch(A, 4.0)
        await kept.wait()
        assert trio.current_time() - began == index_module.TOUCH_DELAY
        assert index._touched == {}
        assert index.blob(A) == BlobEntry(10, 4.0)


async def test_a_failing_operation_fails_alone(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        failures: list[LocalError] = []

        async def bad() -> None:
            try:
                await index.write(lambda txn: txn.put(b"", b"no empty keys", db=index.table("meta")))
            except LocalError as err:
                failures.append(err)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(index.put_tag, "r", "1", TagRecord(A, 1.0))
            nursery.start_soon(bad)
            nursery.start_soon(index.put_tag, "r", "2", TagRecord(A, 1.0))
        assert index.tags("r") == ["1", "2"]
        assert [type(err.__cause__) for err in failures] == [lmdb.BadValsizeError]


async def test_a_cancelled_owner_loses_no_accepted_write(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_index(tmp_path / "i") as index, trio.open_nursery() as nursery:
            nursery.start_soon(index.put_tag, "r", "t", TagRecord(A, 1.0))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(LocalError):
        await index.put_tag("r", "late", TagRecord(A, 1.0))
    async with open_index(tmp_path / "i") as index:
        assert index.tags("r") == ["t"]


async def test_errors_of_the_body_are_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with open_index(tmp_path / "i"):
            raise KeyError
    async with open_index(tmp_path / "i"):
        with pytest.raises(LocalError, match="in use"):
            async with open_index(tmp_path / "i"):
                pass


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty pages", "mark", "tables"])
async def test_a_damaged_index_is_rebuilt_and_pins_survive(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index.lmdb"
    async with open_index(path) as index:
        await index.put_meta("root key", b"pinned")
        await index.put_meta("cursor", b"5", rebuildable=True)
        for number in range(200):
            await index.put_tag("r", str(number), TagRecord(A, 1.0))
    data = path / "data.mdb"
    if damage == "garbage":
        data.write_bytes(os.urandom(50_000))
    elif damage == "cut":
        os.truncate(data, 3 * 4096)
    elif damage == "empty pages":
        size = data.stat().st_size
        os.truncate(data, 2 * 4096)
        os.truncate(data, size)
    elif damage == "mark":
        (path / MARK).touch()
    else:
        with lmdb.open(str(path), max_dbs=1) as env, env.begin(write=True) as txn:
            txn.drop(env.open_db(b"blobs", txn))
            txn.put(b"blobs", b"a record, not a table")
    async with open_index(path) as index:
        assert index.get_meta("root key") == b"pinned"
        assert index.get_meta("cursor") is None
        assert index.tags("r") == []
        await index.put_tag("r", "t", TagRecord(A, 1.0))
    assert path.with_name("index.lmdb.damaged").is_dir()
    async with open_index(path) as index:
        assert index.tags("r") == ["t"]


async def test_a_short_but_sound_index_is_kept(tmp_path: Path) -> None:
    """Freed pages at the end may never have been written."""
    path = tmp_path / "i"
    async with open_index(path) as index:
        await index.put_tag("r", "t", TagRecord(A, 1.0))
        await index.put_meta("big", bytes(1 << 20), rebuildable=True)
        await index.put_meta("big", b"", rebuildable=True)
        for number in range(3):
            await index.put_tag("r", f"t{number}", TagRecord(A, 1.0))
    with (path / "data.mdb").open("r+b") as file:
        file.truncate((path / "data.mdb").stat().st_size - 4096)
    async with open_index(path) as index:
        assert index.tag("r", "t") == TagRecord(A, 1.0)


async def test_damaged_pins_stop_the_start(tmp_path: Path) -> None:
    path = tmp_path / "i"
    kept_path(path).write_bytes(b"{")
    with pytest.raises(LocalError, match=r"i\.kept\.json.*damaged"):
        async with open_index(path):
            pass


async def test_meta_is_of_one_kind(tmp_path: Path) -> None:
    async with open_index(tmp_path / "i") as index:
        assert index.get_meta("k") is None
        await index.put_meta("k", b"1")
        await index.put_meta("k", b"2")
        with pytest.raises(ValueError):
            await index.put_meta("k", b"3", rebuildable=True)
    async with open_index(tmp_path / "i") as index:
        assert index.get_meta("k") == b"2"


@given(st.binary())
def test_any_bytes_are_a_record_or_nothing(data: bytes) -> None:
    for codec in (TAGS, MANIFESTS, CLAIMS, BLOBS, REFS, METAINFO):
        for raw in (data, b"\x01" + data, b"\x02" + data):
            codec.decode(raw)
    digest = read_digest(data)
    assert digest is None or digest_key(digest) == data


@given(st.binary())
def test_any_bytes_are_pins_or_an_error(data: bytes) -> None:
    try:
        values = parse_kept(data)
    except LocalError:
        return
    assert parse_kept(format_kept(values)) == values


@given(st.dictionaries(st.text(), st.binary()))
def test_pins_read_back(values: dict[str, bytes]) -> None:
    assert parse_kept(format_kept(values)) == values
