"""From a tracker without accounts to an organisation whose robot pushes: what is typed and what clients then may."""

from __future__ import annotations

import base64
import http.client
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from p2pregistry.digest import Digest
from p2pregistry.testing.secrets_used import used
from p2pregistry.testing.tracker_process import TrackerProcess, tracker

pytestmark = pytest.mark.e2e
PASSWORD = "correct horse battery"


def typed(process: TrackerProcess, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--data-dir", process.facts["data_dir"]]
    return subprocess.run(whole, capture_output=True, text=True, input=stdin)


def command(process: TrackerProcess, *arguments: str, stdin: str = "") -> Any:
    """What it prints with --json."""
    done = typed(process, *arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def typed_at_a_terminal(process: TrackerProcess, *arguments: str, answers: int, text: str) -> str:
    """What it shows where ``text`` is typed each time something is asked."""
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--data-dir", process.facts["data_dir"]]
    ours, its = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(whole, stdin=its, stdout=its, stderr=its, start_new_session=True) as running:
            for count in range(1, answers + 1):
                while shown.count(b": ") < count:
                    shown += os.read(ours, 1000)
                os.write(ours, text.encode() + b"\n")
            assert running.wait(60) == 0, shown
        return (shown + os.read(ours, 1000)).decode()
    finally:
        os.close(ours)
        os.close(its)


def basic(name: str, secret: str) -> dict[str, str]:
    used(secret, f"the secret of {name}", user=name)
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


def asked(
    process: TrackerProcess, method: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = process.connect()
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, sent)
        answer: http.client.HTTPResponse = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def api(process: TrackerProcess, method: str, path: str, who: dict[str, str], document: object = None) -> Any:
    body = None if document is None else json.dumps(document).encode()
    headers = who if document is None else {**who, "Content_Type": "application/json"}
    status, _, answer = asked(process, method, f"/api/v1{path}", body, **headers)
    return status, json.loads(answer) if answer else None


def pushes(process: TrackerProcess, repository: str, who: dict[str, str]) -> int:
    target = f"/v2/{repository}/blobs/uploads/?digest={Digest.of(b'bytes')}"
    return asked(process, "POST", target, b"bytes", **who)[0]


def set_up(process: TrackerProcess, folder: Path) -> None:
    """The first administrator, by the page behind the URL that the command prints."""
    assert "p2pregistry tracker setup-url" in (folder / "log").read_text(encoding="utf-8")
    done = typed(process, "setup-url")
    assert done.returncode == 0, done.stderr
    url = urlsplit(done.stdout.strip())
    status, headers, page = asked(process, "GET", url.path)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b'name="secret"' in page
    good = used(url.fragment, "the one-time secret")
    for secret, name, wanted in (("p2pr_setup_x", "root", 403), (good, "<b>", 400), (good, "root", 201)):
        form = urlencode({"secret": secret, "name": name, "password": PASSWORD}).encode()
        status, _, page = asked(process, "POST", url.path, form, Content_Type="application/x-www-form-urlencoded")
        assert status == wanted, page
    again = typed(process, "setup-url")
    assert again.returncode == 1
    assert "there is an administrator" in again.stderr


def test_from_the_first_administrator_to_a_robot_that_pushes(tmp_path: Path) -> None:
    folder = tmp_path / "tracker"
    with tracker(folder, {"auth.new_repositories": "private"}, administrator=False) as process:
        set_up(process, folder)
        root = basic("root", PASSWORD)
        assert api(process, "GET", "/me", root)[1]["administrator"] is True
        # an organisation with a team, by the command line
        made = command(process, "user", "add", "ann", "--generate")
        ann = basic("ann", made["password"])
        command(process, "user", "add", "carl", "--password-stdin", stdin=PASSWORD + "\n")
        carl = basic("carl", PASSWORD)
        assert typed(process, "user", "add", "eve").returncode == 2, "nobody sits there to ask for a password"
        shown = typed_at_a_terminal(process, "user", "add", "dora", "--admin", answers=2, text=PASSWORD)
        assert PASSWORD not in shown
        assert "user dora" in shown
        assert api(process, "GET", "/me", basic("dora", PASSWORD))[1]["administrator"] is True
        command(process, "user", "delete", "dora", "--yes")
        command(process, "org", "add", "acme", "--owner", "ann")
        command(process, "org", "member", "set", "acme", "carl", "member")
        command(process, "org", "team", "add", "acme", "page")
        command(process, "org", "team", "rename", "acme", "page", "web")
        command(process, "org", "team", "add-member", "acme", "web", "carl")
        command(process, "org", "grant", "set", "acme", "web", "acme/web/**", "pull,push")
        assert "acme/web/** pull,push" in typed(process, "org", "show", "acme").stdout
        # who may push where
        made = command(process, "token", "add", "acme", "ci", "--robot", "--scope", "repository:acme/api:pull,push")
        robot = basic("acme+ci", made["secret"])
        assert [pushes(process, name, robot) for name in ("acme/api", "acme/web/shop", "ann/x")] == [201, 401, 401]
        assert [pushes(process, name, carl) for name in ("acme/web/shop", "acme/api", "ann/x")] == [201, 401, 401]
        assert [pushes(process, name, ann) for name in ("acme/new", "ann/x", "root/x")] == [201, 201, 401]
        # what they see, over HTTP
        names = [one["name"] for one in api(process, "GET", "/repositories?q=acme", carl)[1]["repositories"]]
        assert names == ["acme/web/shop"]
        assert api(process, "GET", "/repositories/acme%2Fapi", carl)[0] == 404
        assert api(process, "GET", "/repositories/acme%2Fapi", ann)[1]["private"] is True
        assert api(process, "GET", "/repositories", {})[1]["repositories"] == []
        command(process, "repo", "public", "acme/api")
        assert [one["name"] for one in api(process, "GET", "/repositories", {})[1]["repositories"]] == ["acme/api"]
        assert api(process, "GET", "/users", robot)[0] == 403
        assert api(process, "GET", "/openapi.json", {})[1]["openapi"] == "3.1.0"
        # an end to the robot
        command(process, "token", "revoke", "acme", str(made["token"]["id"]))
        assert pushes(process, "acme/api", robot) == 401
        _renamed_and_deleted(process, carl)


def _renamed_and_deleted(process: TrackerProcess, carl: dict[str, str]) -> None:
    """What was done stays in the audit log, under the name that it was done with."""
    command(process, "org", "rename", "acme", "apex")
    assert pushes(process, "apex/web/shop", carl) == 201
    assert pushes(process, "acme/web/shop", carl) == 401
    command(process, "user", "rename", "carl", "karl")
    assert api(process, "GET", "/me", carl)[0] == 401
    assert api(process, "GET", "/me", basic("karl", PASSWORD))[1]["name"] == "karl"
    refused = typed(process, "user", "delete", "ann", "--yes")
    assert refused.returncode == 1, "it is the last owner"
    assert typed(process, "user", "delete", "karl").returncode == 1, "nobody sits there to say yes"
    command(process, "user", "delete", "karl", "--yes")
    assert "is or was in use" in typed(process, "user", "add", "carl", "--no-password").stderr
    command(process, "repo", "delete", "apex/new", "--yes")
    refused = typed(process, "org", "delete", "apex", "--yes")
    assert "repositories" in refused.stderr
    command(process, "org", "delete", "apex", "--repositories", "--yes")
    lines = command(process, "audit", "--limit", "1000")["audit"]
    done = {(one["actor"].partition(":")[0], one["action"], one["repository"]) for one in lines}
    assert {("carl", "blob.push", "acme/web/shop"), ("acme+ci", "blob.push", "acme/api")} <= done
    actions = {action for _, action, _ in done}
    assert {"setup.done", "user.add", "organization.rename", "user.rename", "user.delete", "token.revoke"} <= actions
    assert "organization.delete" in actions
    assert [one["name"] for one in command(process, "user", "list")["users"]] == ["ann", "root"]
    assert command(process, "org", "list")["organizations"] == []
