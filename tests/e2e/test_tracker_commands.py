"""What an operator types to a running tracker, and what clients then may and may not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pregistry.digest import Digest
from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
IMAGE, OTHER = Image.of(b"{}", [b"1" * 50_000]), Image.of(b"{ }", [b"2" * 50_000])


def typed(process: TrackerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "p2pregistry", "tracker", *arguments, "--data-dir", process.facts["data_dir"]]
    return subprocess.run(whole, capture_output=True, text=True)


def command(process: TrackerProcess, *arguments: str) -> Any:
    """What it prints with --json."""
    done = typed(process, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def put(client: Client, tag: str, image: Image) -> int:
    kind = json.loads(image.manifest)["mediaType"]
    return client.request("PUT", f"/v2/acme/api/manifests/{tag}", image.manifest, Content_Type=kind)[0]


def test_quotas_and_immutable_tags_hold_for_clients(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "v1", IMAGE)
        client.push("acme/api", "v2", OTHER)
        assert command(process, "immutable", "add", "acme/*:v*")["added"]
        assert put(client, "v1", OTHER) == 403
        assert put(client, "v1", IMAGE) == 201
        status, _, body = client.request("DELETE", "/v2/acme/api/manifests/v1")
        assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")
        assert "immutable" in typed(process, "repo", "delete-tag", "acme/api", "v1").stderr
        assert command(process, "quota", "set", "acme", "100KiB")["quota"] == 102_400
        assert command(process, "quota", "list")["quotas"][0]["used"] == 100_005
        large = b"3" * 10_000
        status, _, body = client.request("POST", f"/v2/acme/web/blobs/uploads/?digest={Digest.of(large)}", large)
        assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")
        assert "100.0 KiB" in json.loads(body)["errors"][0]["message"]
        assert command(process, "audit", "--action", "quota.exceeded")["audit"][0]["repository"] == "acme/web"
        command(process, "quota", "unset", "acme")
        assert client.request("POST", f"/v2/acme/web/blobs/uploads/?digest={Digest.of(large)}", large)[0] == 201
        assert command(process, "immutable", "remove", "acme/*:v*") == {}
        assert put(client, "v1", OTHER) == 201
        assert command(process, "immutable", "list")["immutable"] == []


def test_a_tag_is_put_back_by_hand(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "prod", IMAGE)
        client.push("acme/api", "prod", OTHER)
        assert command(process, "repo", "rollback", "acme/api", "prod")["digest"] == str(IMAGE.digest)
        assert client.tag_there("acme/api", "prod", IMAGE)
        moved = command(process, "repo", "move", "acme/api", "prod", str(OTHER.digest))
        assert moved == {"digest": str(OTHER.digest), "before": str(IMAGE.digest)}
        history = command(process, "repo", "history", "acme/api", "prod")["history"]
        kinds = [(line["digest"], line["actor"].partition(":")[0]) for line in history]
        first, second = str(IMAGE.digest), str(OTHER.digest)
        assert kinds == [(second, "operator"), (first, "operator"), (second, "pusher"), (first, "pusher")]
        assert "pusher" in typed(process, "repo", "history", "acme/api", "prod").stdout
        assert client.request("DELETE", f"/v2/acme/api/manifests/{IMAGE.digest}")[0] == 202
        refused = typed(process, "repo", "rollback", "acme/api", "prod")
        assert refused.returncode != 0
        assert "collected" in refused.stderr


def test_what_is_there_can_be_looked_at_and_uploads_cancelled(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "v1", IMAGE)
        assert command(process, "repo", "list")["repositories"] == ["acme/api"]
        assert command(process, "repo", "tags", "acme/api")["tags"] == ["v1"]
        location = client.request("POST", "/v2/acme/api/blobs/uploads/")[1]["location"]
        client.request("PATCH", location, b"some bytes")
        (upload,) = command(process, "upload", "list")["uploads"]
        assert (upload["repository"], upload["size"], upload["actor"]) == ("acme/api", 10, "pusher")
        command(process, "upload", "cancel", upload["id"])
        assert client.request("GET", location)[0] == 404
        assert command(process, "upload", "list")["uploads"] == []
        said = command(process, "status")
        assert (said["database"], said["store"], said["uploads"]) == ("ok", "ok", 0)
        assert "acme/api" in typed(process, "repo", "list").stdout
        assert command(process, "repo", "delete-tag", "acme/api", "v1") == {}
        assert typed(process, "repo", "tags", "never/made").returncode == 1


def test_what_an_operator_does_by_hand_is_in_the_audit_log(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        client = Client(process)
        client.push("acme/api", "v1", IMAGE)
        client.request("POST", "/v2/acme/api/blobs/uploads/")
        (upload,) = command(process, "upload", "list")["uploads"]
        command(process, "upload", "cancel", upload["id"])
        command(process, "gc", "--dry-run")
        command(process, "gc")
        command(process, "scrub")
        command(process, "retention", "run")
        lines = command(process, "audit")["audit"]
        # an operator is no account, and the pusher is one, whose lines are found by its id
        by_hand = [line for line in lines if line["actor"].startswith("operator")]
        done = [line["action"] for line in reversed(by_hand)]
        assert done == ["upload.cancel", "collect.start", "scrub.start", "retention.start"]
        assert {line["account_id"] for line in by_hand} == {None}
        (pushed,) = command(process, "audit", "--action", "manifest.push")["audit"]
        assert (pushed["actor"], pushed["account_id"] is not None) == ("pusher", True)
        of_it = command(process, "audit", "--account", str(pushed["account_id"]))["audit"]
        assert pushed in of_it
        assert {line["actor"] for line in of_it} == {"pusher"}


def test_settings_are_checked_without_starting(tmp_path: Path) -> None:
    def check(*sets: str) -> subprocess.CompletedProcess[str]:
        options = [part for one in sets for part in ("--set", one)]
        whole = [sys.executable, "-m", "p2pregistry", "tracker", "config", "check", *options]
        return subprocess.run(whole, capture_output=True, text=True, cwd=tmp_path)

    assert check().returncode == 0
    wrong = check("storage.kind=s3")
    assert wrong.returncode == 2
    assert "$.s3.endpoint" in wrong.stderr
    assert check("registry.nothing=1").returncode == 2
