"""Trackers are upgraded one by one: an older program goes on beside a newer one that has changed the schema."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import psycopg
import pytest

from p2pregistry.testing.tracker_process import Client, Image, tracker
from tracker.catalog.migrate import load

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parents[2]


def newer(folder: Path) -> Path:
    """This program with one migration more, which says that it serves this one."""
    for package in ("p2pregistry", "node", "tracker"):
        shutil.copytree(HERE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    last = load()[-1].version
    (folder / "tracker" / "catalog" / "migrations" / f"{last + 1:04}_more.sql").write_text(
        f"-- serves: {last}\n\nalter table repositories add column more text;\n"
    )
    return folder


def test_an_older_program_serves_beside_a_newer_one_and_starts_again(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    images = [Image.of(rng.randbytes(20), [rng.randbytes(100_000)]) for _ in range(3)]
    shared = {
        "database.dsn": database,
        "keys.dir": str(tmp_path / "keys"),
        "storage.path": str(tmp_path / "blobs"),
        "uploads.min_free": "0",
    }
    before = load()[-1].version
    now = before + 1
    program = newer(tmp_path / "program")
    monkeypatch.chdir(HERE)  # where "python -m" looks first
    with tracker(tmp_path / "old", shared) as old:
        assert schema(database) == before
        Client(old).push("acme/api", "t0", images[0])
        monkeypatch.chdir(program)
        with tracker(tmp_path / "new", shared) as new:
            assert schema(database) == now
            Client(old).push("acme/api", "t1", images[1])
            Client(new).push("acme/api", "t2", images[2])
            for client in (Client(old), Client(new)):
                assert all(client.tag_there("acme/api", f"t{number}", image) for number, image in enumerate(images))
    monkeypatch.chdir(HERE)
    with tracker(tmp_path / "old", shared) as old:
        assert Client(old).tag_there("acme/api", "t2", images[2])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("update schema_migrations set serves = version where version = %s", (now,))
    with (
        pytest.raises(AssertionError, match="the database is newer than this program"),
        tracker(tmp_path / "old", shared),
    ):
        pass


def schema(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("select max(version) from schema_migrations").fetchone()
        assert row is not None
        return int(row[0])
