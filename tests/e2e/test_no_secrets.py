"""Programs that do what has to do with secrets keep them to themselves, whatever happens and however much they log.

Every helper that starts a program looks for secrets in its log when it has stopped (p2pregistry/testing/secrets_used),
so each end-to-end test watches over this; here is what the others do not do.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

from p2pregistry.testing import secrets_used
from p2pregistry.testing.node_process import node_process
from p2pregistry.testing.tracker_process import AUTHORIZATION, Client, Image, tracker

#: What clients show that is wrong, in places where it might be logged.
WRONG = secrets_used.used("a-wrong-password-that-is-a-right-one-elsewhere", "a wrong password", user="pusher")


def ask(url: str, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        assert not secrets_used.found_in(answer.read().decode("utf-8", errors="replace"))
        return answer.status
    finally:
        connection.close()


def test_no_secret_is_in_a_log_at_its_most_talkative(tmp_path: Path) -> None:
    token = "p2pr_pat_" + "x" * 49
    loud = {"tracker.log_level": "debug"}
    with tracker(tmp_path / "tracker", loud) as one:
        Client(one).push("a/b", "1", Image.of(b"config", [b"layer"]))
        place = (tmp_path / "tracker", one.facts["peer_url"])
        with node_process(tmp_path / "node", place[1], node__log_level="debug") as node:
            for url in (one.facts["url"], node.url, one.facts["peer_url"], node.peer_url):
                for shown in (
                    AUTHORIZATION,
                    f"Bearer {token}",
                    "Session " + "0" * 64,
                    "Basic " + secrets_used.b64(f"pusher:{WRONG}"),
                    f"Nonsense {WRONG}",
                ):
                    headers = {"Authorization": shown, "X-Request-Id": "a b", "User-Agent": "a test"}
                    for method, target in (("GET", "/v2/"), ("GET", "/v2/a/b/manifests/1"), ("PUT", "/v2/a/b/x")):
                        ask(url, method, target, headers)
                    ask(url, "GET", f"/v2/a/b/tags/list?token={token}&password={WRONG}", headers)
                    ask(url, "POST", "/p2p/v1/session", headers, f'{{"credential": "{token}", "proof": 1}}'.encode())
    assert "/v2/a/b/tags/list" in (tmp_path / "tracker" / "log").read_text(), "or this test says nothing"
    assert (tmp_path / "node" / "log").read_text()
