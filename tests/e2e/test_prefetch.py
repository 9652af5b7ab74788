"""Images that are on a node before anybody asks for them, with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pregistry import admin
from p2pregistry.testing.cluster import Daemon, Separate, eventually, separate
from p2pregistry.testing.images import MIB, Descriptor, Layout, make_image, make_index

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("prefetch")]
QUICK = {"sync.poll": "0.3", "tags.max_age": "0.1", "cache.min_free": "0"}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Separate]:
    with separate(tmp_path / "swarm") as found:
        yield found


def image(folder: Path, seed: str, *, layers: int = 3, size: int = 2 * MIB, **more: Any) -> tuple[Layout, Descriptor]:
    layout = Layout(folder / seed)
    return layout, make_image(layout, layers=layers, layer_bytes=size, seed=seed, **more)


def ask(node: Daemon, method: str, target: str, document: object = None) -> Any:
    return admin.send(Path(node.facts["data_dir"]) / "admin.sock", method, target, document)


def held(node: Daemon) -> int:
    return int(node.status()["blobs"])


def command(node: Daemon, *words: str) -> list[str]:
    return [sys.executable, "-m", "p2pregistry", "node", *words, "--data-dir", str(node.facts["data_dir"])]


def run(node: Daemon, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(node, *words), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_a_tag_under_a_pattern_is_here_before_any_pull_and_for_sync_its_manifest_alone(
    swarm: Separate, tmp_path: Path
) -> None:
    sets = QUICK | {"prefetch.patterns": "acme/app:prod-*", "sync.patterns": "acme/app,other/one"}
    first = swarm.add_node(sets)
    layout, one = image(tmp_path, "one")
    swarm.push(layout, one, "acme/app", "dev-1")
    swarm.push(layout, one, "acme/app", "prod-1")
    eventually("the image is here", lambda: held(first) == len(one.blobs), within=20)
    assert first.counters().fetched["tracker"] >= sum(blob.size for blob in one.blobs)
    first.all_provided()

    second = swarm.add_node(sets)  # the layers come from the first now
    eventually("the image is here too", lambda: held(second) == len(one.blobs), within=20)
    # the tracker sends a piece where the first is not found quickly enough
    assert second.counters().fetched["peer"] >= sum(blob.size for blob in one.blobs[1:]) / 2
    before = second.counters()
    for blob in one.blobs:
        assert second.request("GET", f"/v2/acme/app/blobs/{blob.digest}").status == 200
    assert sum((second.counters() - before).fetched.values()) == 0
    assert second.status()["ahead_bytes"] == 0  # they have been asked for

    layout, other = image(tmp_path, "other")
    swarm.push(layout, other, "other/one", "1")
    layout, moved = image(tmp_path, "moved")
    swarm.push(layout, moved, "acme/app", "prod-1")
    eventually("the tag has moved", lambda: held(first) == len(one.blobs) + len(moved.blobs), within=20)
    time.sleep(1)  # twice the time between two looks
    swarm.tracker.kill()
    for name, tag, expected in (("acme/app", "dev-1", one), ("acme/app", "prod-1", moved), ("other/one", "1", other)):
        answer = first.request("GET", f"/v2/{name}/manifests/{tag}")
        assert answer.status == 200
        assert answer.headers["docker-content-digest"] == expected.digest
    assert held(first) == len(one.blobs) + len(moved.blobs)  # nothing of what is only kept in sync


def test_of_an_index_only_the_wanted_platforms(swarm: Separate, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "both")
    index = make_index(layout, ["linux/amd64", "linux/arm64"])
    for child in index.parts:
        swarm.push(layout, child, "acme/both", child.digest)
    swarm.push(layout, index, "acme/both", "1")
    node = swarm.add_node(QUICK | {"prefetch.patterns": "acme/both:1", "prefetch.platforms": "linux/arm64"})
    wanted = len(index.parts[1].blobs)
    eventually("the image for arm64 is here", lambda: held(node) == wanted, within=20)
    time.sleep(1)
    assert held(node) == wanted
    asked = json.loads(run(node, "prefetch", "acme/both:1", "--platform", "all", "--json").stdout.splitlines()[-1])
    assert asked["state"] == "done"
    assert held(node) == 2 * wanted


def test_the_cap_holds_the_oldest_goes_and_what_clients_use_stays(swarm: Separate, tmp_path: Path) -> None:
    node = swarm.add_node(QUICK | {"prefetch.patterns": "acme/**", "prefetch.max_bytes": str(5 * MIB)})
    layout, used = image(tmp_path, "used", layers=2)
    swarm.push(layout, used, "other/used")
    for blob in used.blobs:
        assert node.request("GET", "/v2/other/used/manifests/1").status == 200
        assert node.request("GET", f"/v2/other/used/blobs/{blob.digest}").status == 200
    made = []
    for number in range(3):
        layout, one = image(tmp_path, f"cap-{number}", layers=2)
        swarm.push(layout, one, f"acme/cap-{number}")
        run(node, "prefetch", f"acme/cap-{number}:1")
        assert node.status()["ahead_bytes"] <= 5 * MIB
        made.append(one)
    layout, large = image(tmp_path, "large", layers=3, size=3 * MIB)
    swarm.push(layout, large, "acme/large")
    refused = run(node, "prefetch", "acme/large:1", status=1)
    assert "prefetch.max_bytes" in refused.stderr
    before = node.counters()
    for name, each in (("other/used", used), ("acme/cap-2", made[2])):
        for blob in each.blobs:
            assert node.request("GET", f"/v2/{name}/blobs/{blob.digest}").status == 200
    assert sum((node.counters() - before).fetched.values()) == 0


def test_a_pin_stays_is_followed_and_outlives_a_restart(swarm: Separate, tmp_path: Path) -> None:
    node = swarm.add_node(QUICK)
    layout, pinned = image(tmp_path, "pinned")
    layout2, other = image(tmp_path, "unpinned")
    swarm.push(layout, pinned, "acme/app", "prod")
    swarm.push(layout2, other, "acme/other")
    run(node, "pin", "acme/app:prod")
    run(node, "prefetch", "acme/other:1")
    assert held(node) == len(pinned.blobs) + len(other.blobs)
    assert "acme/app:prod" in run(node, "pins").stdout
    planned = json.loads(run(node, "gc", "--to", "0", "--dry-run", "--json").stdout)
    assert held(node) == len(pinned.blobs) + len(other.blobs)
    gone = json.loads(run(node, "gc", "--to", "0", "--json").stdout)
    assert gone["blobs"] == planned["blobs"]
    assert held(node) == len(pinned.blobs)

    node = swarm.restart_node(0, QUICK | {"cache.max_bytes": str(MIB)})  # less than the pin
    assert json.loads(run(node, "pins", "--json").stdout)["pins"][0]["complete"]
    layout3, new = image(tmp_path, "new")
    swarm.push(layout3, new, "acme/app", "prod")
    node = swarm.restart_node(0, QUICK)
    eventually("the pin has followed", lambda: ask(node, "GET", "/pins")["pins"][0]["digest"] == new.digest, within=20)
    run(node, "gc", "--to", "0")
    eventually("what it kept before has gone", lambda: held(node) == len(new.blobs), within=5)
    run(node, "unpin", "acme/app:prod")
    run(node, "unpin", "acme/app:prod", status=1)
    run(node, "gc", "--to", "0")
    assert held(node) == 0


def test_prefetch_shows_how_far_it_is_and_the_node_goes_on_after_ctrl_c(swarm: Separate, tmp_path: Path) -> None:
    node = swarm.add_node(QUICK | {"prefetch.rate": str(4 * MIB)})
    layout, one = image(tmp_path, "shown", layers=4, size=4 * MIB)
    swarm.push(layout, one, "acme/app")
    with subprocess.Popen(
        command(node, "prefetch", f"{node.localhost}/acme/app:1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("acme/app:1: ")
        assert "tracker" in lines[1]
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(20) == 130
    assert "p2pregistry node prefetch --cancel acme/app:1" in said
    eventually("it went on", lambda: held(node) == len(one.blobs), within=30)
    assert "is here, all" in run(node, "prefetch", "acme/app:1").stdout

    layout, other = image(tmp_path, "cancelled", layers=4, size=4 * MIB)
    swarm.push(layout, other, "acme/other")
    assert "is being fetched" in run(node, "prefetch", "acme/other:1", "--no-wait").stdout
    run(node, "prefetch", "acme/other:1", "--cancel")
    run(node, "prefetch", "acme/other:1", "--cancel", status=1)
    assert held(node) < len(one.blobs) + len(other.blobs)
    assert "not known" in run(node, "prefetch", "acme/none:1", status=1).stderr
    assert "a platform is like" in run(node, "prefetch", "acme/app:1", "--platform", "linux", status=1).stderr
