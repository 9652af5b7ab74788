"""What docs/operating.md says of backing up and restoring, done by its own commands while pushes go on."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from p2pregistry.testing.postgres import running
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
    path = f"{server.bin}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command], env=os.environ | variables | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def image(rng: random.Random) -> Image:
    return Image.of(rng.randbytes(50), [rng.randbytes(300_000), b""])


def test_what_was_backed_up_while_pushes_went_on_is_there_after_a_restore(tmp_path: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
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
