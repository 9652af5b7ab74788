"""What an operator types to free space, and what is there afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from p2pregistry.digest import Digest
from p2pregistry.testing.postgres import running
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
LAYERS = [b"%d" % number * 100_000 for number in range(4)]


def command(process: TrackerProcess, *arguments: str) -> Any:
    """What ``p2pregistry tracker ... --json`` prints."""
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--json"]
    done = subprocess.run([*whole, "--data-dir", process.facts["data_dir"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files(process: TrackerProcess) -> int:
    folder = Path(process.facts["data_dir"]) / "blobs" / "blobs"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def age(dsn: str) -> None:
    """Everything is two days older."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("update repository_blobs set touched_at = touched_at - interval '2 days'")
        connection.execute("update tags_left set at = at - interval '2 days'")
        connection.execute("update repository_manifests set pulled_at = null")
        connection.execute("update repository_manifests set pushed_at = pushed_at - interval '2 days'")


def test_old_tags_go_by_rule_and_then_their_bytes(tmp_path: Path) -> None:
    with running(lambda: embedded_postgres(tmp_path / "pg")) as dsn:
        settings = {"database.dsn": dsn, "collection.untagged": "3600"}
        with tracker(tmp_path / "tracker", settings) as process:
            client = Client(process)
            images = [Image.of(b"%d" % number, [layer]) for number, layer in enumerate(LAYERS)]
            for number, image in enumerate(images):
                client.push("acme/api", f"v{number}", image)
            before = files(process)
            rule = command(process, "retention", "add", "acme/*", "v*", "--keep-last", "1")
            assert command(process, "retention", "list")["rules"] == [rule]
            gone = {"acme/api": ["v0", "v1", "v2"]}
            assert command(process, "retention", "run", "--dry-run")["tags"] == gone
            assert client.request("GET", "/v2/acme/api/tags/list")[2].count(b'"v') == 4
            assert command(process, "retention", "run")["tags"] == gone
            assert command(process, "gc")["figures"]["objects"] == 0, "nothing is old enough"
            age(dsn)
            dry = command(process, "gc", "--dry-run")["figures"]
            assert (dry["manifests"], dry["blobs"], dry["bytes"]) == (3, 6, 300_003)
            assert files(process) == before
            done = command(process, "gc")["figures"]
            assert (done["manifests"], done["blobs"], done["objects"]) == (3, 6, 6)
            assert files(process) == len(LAYERS[3]) + 1
            assert client.tag_there("acme/api", "v3", images[3])
            assert not client.tag_there("acme/api", "v0", images[0])
            client.push("acme/api", "again", images[0])
            assert client.tag_there("acme/api", "again", images[0])
            runs = command(process, "gc", "--history")["runs"]
            assert [run["kind"] for run in runs[:2]] == ["collect", "collect"]
            assert runs[0]["figures"] == done


def test_a_damaged_blob_is_found_and_the_next_push_mends_it(tmp_path: Path) -> None:
    image = Image.of(b"{}", [LAYERS[0]])
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "1", image)
        assert command(process, "scrub")["damaged"] == []
        folder = Path(process.facts["data_dir"]) / "blobs" / "blobs"
        (large,) = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == len(LAYERS[0]))
        large.write_bytes(b"x" * len(LAYERS[0]))
        found = command(process, "scrub", "--all")["damaged"]
        assert [one["digest"] for one in found] == [str(Digest.of(LAYERS[0]))]
        assert command(process, "audit", "--action", "scrub.damaged")["audit"][0]["digest"] == str(Digest.of(LAYERS[0]))
        status, _, _ = client.request("HEAD", f"/v2/acme/api/blobs/{Digest.of(LAYERS[0])}")
        assert status == 404, "so that a client pushes it again"
        client.push("acme/api", "1", image)
        assert client.tag_there("acme/api", "1", image)
        assert command(process, "scrub", "--report")["damaged"] == []
