"""The watch over secrets finds those that were handed over and those that a process makes itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pregistry.routing.identity import load_or_create_identity
from p2pregistry.testing import secrets_used


@pytest.mark.parametrize(
    "line",
    [
        "login with hunter2-hunter2",
        "login with hunter2%20hunter2",
        "authorization cHVzaGVyOmh1bnRlcjItaHVudGVyMg==",
        "p2pr_join_" + "x" * 60,
        "p2pr_pat_" + "x" * 49,
        "credential=v4.public." + "A" * 100,
        "k4.secret." + "A" * 80,
        "-----BEGIN PRIVATE KEY-----",
        "Session " + "0" * 64,
        "Bearer " + "x" * 20,
        "connecting to postgresql://me:secret@localhost/x",
    ],
)
def test_secrets_in_a_log_are_found(tmp_path: Path, line: str) -> None:
    secrets_used.used("hunter2-hunter2", "a password", user="pusher")
    secrets_used.used("hunter2 hunter2", "another password")
    (tmp_path / "log").write_text(f'{{"event": "{line}"}}\n')
    with pytest.raises(AssertionError) as caught:
        secrets_used.check(tmp_path)
    assert line not in str(caught.value), "what tells of it must not be the next log with it"
    with pytest.raises(AssertionError):
        secrets_used.check(tmp_path / "nothing", arguments=["program", line])


@pytest.mark.parametrize(
    "line",
    [
        "sha256:" + "0" * 64,
        "root_key=k4.public." + "A" * 43,
        "http://127.0.0.1:5000/v2/",
        "/p2p/v1/session",
        "kid k4.pid." + "A" * 44,
        "postgresql://localhost/x",
    ],
)
def test_what_may_be_known_is_no_secret(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(line)
    secrets_used.check(tmp_path, arguments=["program", line])


def test_a_key_in_the_folder_is_looked_for_and_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "identity.key"
    load_or_create_identity(path)
    secrets_used.check(tmp_path)
    (tmp_path / "log").write_text(path.read_text().splitlines()[1])
    with pytest.raises(AssertionError, match=r"identity\.key"):
        secrets_used.check(tmp_path)
    (tmp_path / "log").unlink()
    path.chmod(0o644)
    with pytest.raises(AssertionError, match="mode 644"):
        secrets_used.check(tmp_path)
