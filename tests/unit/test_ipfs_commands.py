"""What ``p2pregistry tracker ipfs`` asks the tracker and shows people."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tracker.commands.common import Console
from tracker.commands.ipfs import ipfs

FIGURES = [
    {"service": "kubo", "state": "published", "count": 3, "size": 3 << 20},
    {"service": "kubo", "state": "failed", "count": 1, "size": 5},
]
PROGRESS = {
    "service": "kubo", "state": "failed", "sent": 0, "attempts": 20, "next_at": None,
    "error": "the daemon imported bafyother in place of bafyroot\n", "updated_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
ITEM = {"kind": "blob", "digest": "sha256:aa", "size": 5, "cid": "bafyroot", "services": [PROGRESS]}
PATTERN = {"pattern": "acme/**", "created_at": "2026-01-01T00:00:00Z", "created_by": "operator:root"}
ANSWERS: dict[str, Any] = {
    "GET ipfs": {
        "services": ["kubo"],
        "encrypted": False,
        "patterns": [PATTERN],
        "figures": FIGURES,
        "failures": [ITEM],
    },
    "GET repositories/acme/api/ipfs": {"published": False, "figures": []},
    "GET repositories/acme/api/ipfs/v1": {
        "digest": "sha256:bb",
        "published": True,
        "children": ["sha256:cc"],
        "items": [ITEM, {**ITEM, "services": []}],
    },
    "PUT ipfs/patterns": None,
    "DELETE ipfs/patterns": None,
    "POST ipfs/retry": {"retried": 7},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []

    def api(self: Console, method: str, *path: str, document: object = None, **query: object) -> Any:
        found.append((f"{method} {'/'.join(path)}", document or query or None))
        return ANSWERS[found[-1][0]]

    monkeypatch.setattr(Console, "api", api)
    return found


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(ipfs, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_publish_and_unpublish(asked: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("publish", "acme/**").output == "acme/** is published\n"
    assert run("unpublish", "acme/**").output == "acme/** is not published any more\n"
    assert ("PUT ipfs/patterns", {"pattern": "acme/**"}) in asked
    assert ("DELETE ipfs/patterns", {"pattern": "acme/**"}) in asked
    monkeypatch.setitem(ANSWERS["GET ipfs"], "services", [])
    assert "ipfs.services" in run("publish", "acme/**").output


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ((), ["services: kubo", "acme/**  ", "kubo     published  ", "the daemon imported bafyother in place"]),
        (("acme/api",), ["no pattern names it"]),
        (("acme/api:v1",), ["published", "kind", "blob   5 B  bafyroot  kubo failed", "lists sha256:cc"]),
        (("acme/api@v1",), ["published"]),
    ],
    ids=["everything", "a repository", "a tag", "a digest"],
)
def test_status(asked: list[tuple[str, object]], arguments: tuple[str, ...], lines: list[str]) -> None:
    shown = run("status", *arguments).output
    for line in lines:
        assert line in shown, shown
    assert json.loads(run("status", *arguments, "--json").output) == ANSWERS[asked[-1][0]]


def test_retry(asked: list[tuple[str, object]]) -> None:
    assert run("retry").output == "7 are tried again\n"
    assert asked == [("POST ipfs/retry", None)]
