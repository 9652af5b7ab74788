"""``image cid`` and ``image export`` as commands: who is asked, with which credentials, and what goes where."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from p2pregistry import cli
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import RegistryError
from p2pregistry.image import registry
from p2pregistry.image.credentials import Credentials
from p2pregistry.image.names import ImageName
from p2pregistry.testing.images import Layout, make_image, make_index
from p2pregistry.testing.shelf import Shelf


class Asked:
    """How registries were opened."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.names: list[str] = []
        self.credentials: list[Credentials | None] = []
        self.more: list[dict[str, Any]] = []

    def open(self, name: ImageName, credentials: Credentials | None, **more: Any) -> Open:
        self.names.append(str(name))
        self.credentials.append(credentials)
        self.more.append(more)
        return Open(self.shelf)


class Open(Shelf):
    def __init__(self, shelf: Shelf) -> None:
        self.__dict__ = shelf.__dict__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    layout = Layout(tmp_path / "layout")
    found = Asked(Shelf(layout, make_image(layout, layers=1, layer_bytes=2 * PIECE_SIZE).digest))
    monkeypatch.setattr(registry, "Registry", found.open)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    return found


def run(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli.cli, ["image", *words], input=stdin)


def config(path: Path, host: str, pair: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(pair.encode()).decode()}}}))


def test_the_local_node_is_asked_in_the_clear_and_others_by_tls(asked: Asked, tmp_path: Path) -> None:
    for words in (["acme/api"], ["r.example/acme/api"], ["acme/api", "--tls"], ["r.example/a", "--plain-http"]):
        assert run("cid", *words).exit_code == 0
    assert asked.names[0] == "localhost:5000/acme/api:latest"
    assert [more["plain"] for more in asked.more] == [True, False, False, True]
    (tmp_path / "ca.pem").touch()
    assert run("cid", "acme/api", "--ca-file", str(tmp_path / "ca.pem")).exit_code == 0
    assert asked.more[-1]["plain"] is False, "a certificate is for TLS"


def test_credentials_are_given_or_kept(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("cid", "r.example/a", "--username", "ann", "--password-stdin", stdin="the-password-of-pusher\n")
    run("cid", "r.example/a")
    config(tmp_path / ".config/containers/auth.json", "r.example", "podman:secret")
    run("cid", "r.example/a")
    config(tmp_path / ".docker/config.json", "r.example", "docker:secret")
    run("cid", "r.example/a")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "own.json"))
    config(tmp_path / "own.json", "other.example", "x:y")
    run("cid", "r.example/a")
    names = [None if found is None else found.username for found in asked.credentials]
    assert names == ["ann", None, "podman", "docker", "docker"]
    assert asked.credentials[0] == Credentials("ann", "the-password-of-pusher")


@pytest.mark.parametrize(
    "words", [["--username", "ann"], ["--password-stdin"], ["--platform", "linux"]], ids=["user", "stdin", "platform"]
)
def test_options_that_make_no_sense(asked: Asked, words: list[str]) -> None:
    assert run("cid", "acme/api", *words).exit_code == 2
    assert asked.names == []


def test_what_is_not_stated_is_said_or_read(asked: Asked) -> None:
    assert "--read" in run("cid", "acme/api").output
    assert asked.shelf.read == []
    text = run("cid", "acme/api", "--read", "--gateway", "https://gw.example/").output
    assert "reckoned from the bytes" in text
    assert "https://gw.example/ipfs/bafy" in text
    assert len(asked.shelf.read) == 1


def test_an_export_is_told_of_and_only_what_is_asked_for(asked: Asked, tmp_path: Path) -> None:
    car = tmp_path / "image.car"
    lines = run("export", "acme/api", "--car", str(car)).output.splitlines()
    assert [line.split()[0] for line in lines] == ["manifest", "config", "layer"]
    layer = lines[2].split()
    one = json.loads(run("export", "acme/api", "--car", str(car), "--blob", layer[1], "--json").output)
    assert [(part["digest"], part["cid"]) for part in one["parts"]] == [(layer[1], layer[2])]
    assert one["size"] == car.stat().st_size
    refused = run("export", "acme/api", "--car", str(car), "--blob", "sha256:" + "0" * 64)
    assert isinstance(refused.exception, RegistryError)
    assert "is no part of this image" in refused.exception.message


def test_what_the_registry_lacks_is_named_on_standard_error(asked: Asked, tmp_path: Path) -> None:
    layout = asked.shelf.layout
    index = make_index(layout, layers=1, layer_bytes=100)
    asked.shelf.top = index.digest
    layout.path(index.parts[0].digest).unlink()
    done = run("export", "acme/api", "--car", str(tmp_path / "image.car"), "--json")
    assert f"left out, not in this registry: {index.parts[0].digest}" in done.stderr
    assert json.loads(done.stdout)["missing"] == [index.parts[0].digest]
    assert run("cid", "acme/api", "--platform", "linux/arm64").stderr == ""
