"""What an operator types to publish to IPFS, with a tracker that is killed in the middle; the daemon is a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest, parse_cid
from p2pregistry.testing.kubo import MIB, StubKubo, stub_kubo
from p2pregistry.testing.postgres import running
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
LAYER = b"a layer that takes more than one piece".ljust(MIB + 5, b".")


def command(process: TrackerProcess, *arguments: str) -> Any:
    """What ``p2pregistry tracker ipfs ... --json`` prints."""
    whole = [sys.executable, "-m", "p2pregistry", "tracker", "ipfs", *arguments, "--json"]
    done = subprocess.run([*whole, "--data-dir", process.facts["data_dir"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def until(process: TrackerProcess, state: str, count: int) -> Any:
    """Wait until so many are in a state."""
    with trio.fail_after(60):
        while True:
            answer = await trio.to_thread.run_sync(command, process, "status", "acme/api")
            if {one["state"]: one["count"] for one in answer["figures"]} == ({state: count} if count else {}):
                return answer
            await trio.sleep(0.2)


def push_and_pull(process: TrackerProcess, image: Image) -> list[bytes]:
    """The blobs as they come back."""
    client = Client(process)
    client.push("acme/api", "v1", image)
    return [client.request("GET", f"/v2/acme/api/blobs/{Digest.of(blob)}")[2] for blob in image.blobs]


async def test_a_tracker_with_its_blobs_in_the_daemon_is_killed_while_it_publishes(tmp_path: Path) -> None:
    """Another one goes on. Blobs that are stored there are published by a pin."""
    stub, reached = StubKubo(authorization="Bearer of-good-news"), trio.Event()
    hang = False

    async def before(name: str) -> None:
        if hang and name == "dag/import":
            reached.set()
            await trio.sleep_forever()

    stub.before = before
    (tmp_path / "secret").write_text("bearer:of-good-news\n", encoding="utf-8")
    image, root = Image.of(b"{}", [LAYER]), Metainfo.of_bytes(LAYER).root
    async with stub_kubo(stub) as (url, _):
        settings = {"kubo.url": url, "kubo.secret_file": str(tmp_path / "secret")}
        settings |= {"storage.kind": "ipfs", "ipfs.services": "kubo"}
        with running(lambda: embedded_postgres(tmp_path / "pg")) as dsn:
            settings["database.dsn"] = dsn
            with tracker(tmp_path / "one", settings) as first:
                assert await trio.to_thread.run_sync(push_and_pull, first, image) == list(image.blobs)
                assert not stub.pins
                stub.gc()
                assert stub.content(root) == LAYER
                hang = True
                answer = await trio.to_thread.run_sync(command, first, "publish", "acme/*")
                assert answer == {"pattern": "acme/*", "services": ["kubo"]}
                await reached.wait()
                first.kill()
                first.process.wait()
            hang = False
            with psycopg.connect(dsn, autocommit=True) as connection:  # as if its lease had run out
                connection.execute("update ipfs_jobs set held_until = now() - interval '1 second'")
            with tracker(tmp_path / "one", settings) as second:
                await until(second, "published", 4)
                assert stub.pins[root] == "recursive"
                answer = await trio.to_thread.run_sync(command, second, "status", "acme/api:v1")
                roots = {one["kind"]: parse_cid(one["cid"]) for one in answer["items"]}
                assert stub.blocks[roots["manifest"]] == image.manifest
                assert set(roots.values()) < set(stub.pins)
                sent = {one["kind"]: one["services"][0]["sent"] for one in answer["items"]}
                assert sent["blob"] == 0 < sent["claim"], "what the daemon has is not sent to it"
                await trio.to_thread.run_sync(command, second, "unpublish", "acme/*")
                with trio.fail_after(30):
                    while stub.pins:
                        await trio.sleep(0.05)
                assert stub.content(root) == LAYER, "the blob itself stays"
                assert "of-good-news" not in (tmp_path / "one" / "log").read_text("utf-8")
