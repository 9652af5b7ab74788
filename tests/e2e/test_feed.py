"""Tags in step, with real processes: what moves on the tracker is seen by every node at once, and what is known is
still there when the tracker is not."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from p2pregistry.digest import Digest
from p2pregistry.testing.cable import cable
from p2pregistry.testing.cluster import eventually
from p2pregistry.testing.node_process import NodeProcess, node_process
from p2pregistry.testing.postgres import running
from p2pregistry.testing.tracker_process import Client, Image, tracker
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e

REPO = "acme/api"
#: Seconds within which a node has heard of a change, on a machine that is busy with tests.
SOON = 1.0
#: Longer than any test takes: what is served without a question is so because changes are followed.
NEVER = 3600.0


def image(text: str) -> Image:
    return Image.of(json.dumps({"config": text}).encode(), [text.encode() * 100])


def digest(text: str) -> str:
    return str(Digest.of(image(text).manifest))


def get(node: NodeProcess, tag: str, repository: str = REPO) -> tuple[int, dict[str, str]]:
    """Status and headers of a question for a tag."""
    connection = http.client.HTTPConnection(urlsplit(node.url).netloc, timeout=30)
    try:
        connection.request("GET", f"/v2/{repository}/manifests/{tag}")
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def served(node: NodeProcess, tag: str, repository: str = REPO) -> str | int:
    """The digest that a tag has, or the status of the refusal."""
    status, headers = get(node, tag, repository)
    return headers["docker-content-digest"] if status == 200 else status


def metric(node: NodeProcess, name: str) -> float:
    connection = http.client.HTTPConnection(urlsplit(str(node.facts["metrics_url"])).netloc, timeout=30)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def following(node: NodeProcess, repositories: int = 1) -> None:
    """Wait until the node is told of changes of so many repositories."""

    def so() -> bool:
        status = node.status()
        return bool(status["feed_connected"]) and status["feed_repositories"] >= repositories

    eventually("the node follows changes", so)


def soon(what: str, node: NodeProcess, tag: str, answer: str | int, within: float = SOON) -> None:
    eventually(what, lambda: served(node, tag) == answer, within=within)


def make_private(client: Client, repository: str, *, private: bool = True) -> None:
    target = f"/api/v1/repositories/{quote(repository, safe='')}/visibility"
    body = json.dumps({"private": private}).encode()
    status, _, answer = client.request("PUT", target, body, Content_Type="application/json")
    assert status in (200, 204), answer


def delete_tag(client: Client, tag: str) -> None:
    status, _, answer = client.request("DELETE", f"/v2/{REPO}/manifests/{tag}")
    assert status == 202, answer


@contextmanager
def nodes(folder: Path, url: str, count: int, **sets: object) -> Iterator[list[NodeProcess]]:
    with ExitStack() as stack:
        settings = {"tags__max_age": 0.0} | sets
        yield [stack.enter_context(node_process(folder / f"node{number}", url, **settings)) for number in range(count)]


def test_a_tag_that_moves_is_served_by_every_node_and_one_that_goes_by_none(tmp_path: Path) -> None:
    with (
        tracker(tmp_path / "tracker") as process,
        nodes(tmp_path, str(process.facts["peer_url"]), 3, tags__max_age=NEVER) as all_nodes,
    ):
        client = Client(process)
        client.push(REPO, "1", image("one"))
        for node in all_nodes:
            assert served(node, "1") == digest("one")
            following(node)
        client.push(REPO, "1", image("two"))
        for node in all_nodes:
            soon("the tag has moved", node, "1", digest("two"))
            assert "warning" not in get(node, "1")[1]
            assert metric(node, "p2pregistry_feed_connected") == 1.0
            assert metric(node, "p2pregistry_feed_lag_seconds") < 10.0
            assert metric(node, "p2pregistry_stale_answers_total") == 0.0
        delete_tag(client, "1")
        for node in all_nodes:
            soon("the tag is gone", node, "1", 404)
        client.push(REPO, "1", image("three"))
        for node in all_nodes:
            soon("the tag is back", node, "1", digest("three"))
        make_private(client, REPO)
        for node in all_nodes:
            soon("the repository is private", node, "1", 404)
            assert served(node, digest("three")) == 404
        make_private(client, REPO, private=False)
        for node in all_nodes:
            soon("the repository is public", node, "1", digest("three"))


def test_with_the_tracker_dead_the_last_known_tag_is_served_and_peers_are_asked(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as process:
        url = str(process.facts["peer_url"])
        client = Client(process)
        client.push(REPO, "1", image("one"))
        with (
            nodes(tmp_path, url, 2) as (first, second),
            node_process(tmp_path / "never", url, tags__max_age=0.0, tags__max_stale=0.0) as never,
        ):
            for node in (first, never):
                assert served(node, "1") == digest("one")
                following(node)
            client.push(REPO, "1", image("two"))
            soon("the tag has moved", first, "1", digest("two"))
            eventually("the nodes know each other", lambda: second.status()["peers"] >= 2)
            process.kill()
            eventually("the node has noticed", lambda: not first.status()["feed_connected"])
            status, headers = get(first, "1")
            assert (status, headers["docker-content-digest"]) == (200, digest("two"))
            assert headers["warning"].startswith('299 - "the tracker does not answer; this tag was last confirmed')
            assert metric(first, "p2pregistry_stale_answers_total") >= 1.0
            assert metric(first, "p2pregistry_feed_connected") == 0.0
            assert first.status()["last_known_age"] < 60
            # one that has never heard of the tag
            status, headers = get(second, "1")
            assert (status, headers["docker-content-digest"]) == (200, digest("two"))
            assert "a peer has this tag" in headers["warning"]
            eventually("it has noticed too", lambda: not never.status()["feed_connected"])
            assert served(never, "1") == 503


def test_nodes_go_on_following_when_postgres_was_restarted(tmp_path: Path) -> None:
    with (
        tracker(tmp_path / "tracker") as process,
        nodes(tmp_path, str(process.facts["peer_url"]), 1) as (node,),
    ):
        client = Client(process)
        client.push(REPO, "1", image("one"))
        assert served(node, "1") == digest("one")
        following(node)
        pid_file = Path(process.facts["data_dir"], "postgres", "data", "postmaster.pid")
        postmaster = int(pid_file.read_text("ascii").split("\n")[0])
        os.kill(postmaster, signal.SIGINT)

        def pushed() -> bool:
            try:
                client.push(REPO, "1", image("two"))
            except AssertionError:
                return False
            return True

        eventually("pushes are taken again", pushed)
        soon("the tag has moved", node, "1", digest("two"), within=10.0)
        following(node)


@pytest.mark.parametrize("offset", [3600.0, -3600.0])
def test_a_clock_that_is_an_hour_off(tmp_path: Path, offset: float) -> None:
    with tracker(tmp_path / "tracker") as process:
        url = str(process.facts["peer_url"])
        client = Client(process)
        client.push(REPO, "1", image("one"))
        with (
            nodes(tmp_path, url, 1, node__clock_offset=offset, tags__max_stale=600.0) as (node,),
            node_process(tmp_path / "other", url, node__clock_offset=offset, tags__peer_stale=600.0) as other,
        ):
            assert served(node, "1") == digest("one")
            following(node)
            client.push(REPO, "1", image("two"))
            soon("the tag has moved", node, "1", digest("two"))
            assert metric(node, "p2pregistry_feed_lag_seconds") < 10.0
            eventually("the nodes know each other", lambda: node.status()["peers"] and other.status()["peers"])
            process.kill()
            eventually("the node has noticed", lambda: not node.status()["feed_connected"])
            assert served(node, "1") == digest("two")
            assert node.status()["last_known_age"] < 600
            assert served(other, "1") == digest("two")


def test_a_node_that_was_away_for_longer_than_changes_are_kept(tmp_path: Path) -> None:
    tags = [f"v{number}" for number in range(6)]
    with ExitStack() as stack:
        dsn = stack.enter_context(running(lambda: embedded_postgres(tmp_path / "postgres")))
        process = stack.enter_context(tracker(tmp_path / "tracker", {"database.dsn": dsn}))
        line = stack.enter_context(cable(str(process.facts["peer_url"])))
        client = Client(process)
        for tag in tags:
            client.push(REPO, tag, image("one"))
        (node,) = stack.enter_context(nodes(tmp_path, line.url, 1))
        for tag in tags:
            assert served(node, tag) == digest("one")
        following(node)
        line.pull()
        eventually("the node is alone", lambda: not node.status()["feed_connected"])
        for tag in tags[:3]:
            delete_tag(client, tag)
        client.push(REPO, tags[3], image("two"))
        assert served(node, tags[0]) == digest("one")  # last known
        # a month goes by, and a tracker forgets what was gone before
        process.kill()
        process.process.wait()
        with psycopg.connect(dsn) as connection:
            connection.execute("update changes set at = at - interval '31 days'")
        after = stack.enter_context(tracker(tmp_path / "tracker", {"database.dsn": dsn}))
        eventually("the changes are compacted", lambda: _pruned(dsn) > 0)
        line.plug(str(after.facts["peer_url"]))
        eventually("the node follows again", lambda: node.status()["feed_connected"], within=90.0)
        assert [served(node, tag) for tag in tags[:3]] == [404, 404, 404]
        assert served(node, tags[3]) == digest("two")
        assert served(node, tags[4]) == digest("one")
        line.pull()
        eventually("the node is alone", lambda: not node.status()["feed_connected"])
        assert served(node, tags[0]) == 503  # it knows that this one is gone
        assert served(node, tags[4]) == digest("one")


def _pruned(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select pruned from change_state").fetchone()
    assert row is not None
    return int(row[0])
