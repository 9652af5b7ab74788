"""The parts of the demonstration that need no processes."""

import hashlib
import io

import httpx
import pytest
import trio.testing
from rich.console import Console

from p2pregistry.demo import counters, pushed_manifest
from p2pregistry.errors import BadContent
from p2pregistry.screen import PlainScreen, RichScreen

METRICS = """\
# HELP p2pregistry_fetched_bytes_total Bytes of blobs and manifests fetched.
# TYPE p2pregistry_fetched_bytes_total counter
p2pregistry_fetched_bytes_total{source="peer"} 1.2584448e+07
p2pregistry_fetched_bytes_total{source="tracker"} 0.0
p2pregistry_fetched_bytes_created{source="peer"} 1.7e+09
p2pregistry_served_bytes_total{to="client"} 5.0
"""


def test_counters_are_read_by_their_label() -> None:
    assert counters(METRICS, "p2pregistry_fetched_bytes_total", "source") == {"peer": 12584448, "tracker": 0}
    assert counters("", "p2pregistry_fetched_bytes_total", "source") == {}


def test_a_plain_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen(err=False).table("Bytes", ("from", "MiB"), [("node 1", "12.0"), ("n", "1.0")])
    assert capsys.readouterr().out == "\nBytes\n  from     MiB\n  node 1  12.0\n  n        1.0\n"


def test_a_spinner_rests_when_nothing_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=shown, force_terminal=True, width=80))
    screen = RichScreen()
    screen.start()
    screen.step("Pulling it")
    screen.rest()
    assert shown.getvalue().endswith("\x1b[2K"), "the line is wiped"
    screen.note("all is done")
    assert shown.getvalue().endswith("all is done\n"), "and nothing is drawn over what follows"
    screen.step("Stopping")
    screen.stop()
    assert "Stopping ..." in shown.getvalue()


async def test_a_tag_of_an_earlier_demonstration_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    bodies = [b"old", b"old", b"new"]

    def node(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=bodies.pop(0) if len(bodies) > 1 else bodies[0])

    async with httpx.AsyncClient(transport=httpx.MockTransport(node)) as client:
        asked = await pushed_manifest(client, "http://node/v2/demo/hello", digest(b"new"))
        assert asked == trio.current_time(), "what came before does not count"
        with pytest.raises(BadContent, match="another manifest"):
            await pushed_manifest(client, "http://node/v2/demo/hello", digest(b"never"))


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
