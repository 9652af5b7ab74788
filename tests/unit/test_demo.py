"""The parts of the demonstration that need no processes."""

import io

import pytest
from rich.console import Console

from p2pregistry.demo import counters
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
