"""kill -9 of the tracker during a push: nothing half-written is ever visible, and the push can be repeated."""

from __future__ import annotations

import http.client
import random
import threading
from pathlib import Path

import pytest

from p2pregistry.testing.tracker_process import Client, Image, TrackerProcess, tracker

ROUNDS = 20


class Killer:
    """Kills the tracker ``delay`` seconds after ``after`` bytes of a push went out."""

    def __init__(self, victim: TrackerProcess, after: int, delay: float) -> None:
        self._victim = victim
        self._left = after
        self._delay = delay
        self._timer: threading.Timer | None = None

    def sent(self, count: int) -> None:
        self._left -= count
        if self._left <= 0 and self._timer is None:
            self._timer = threading.Timer(self._delay, self._victim.kill)
            self._timer.start()

    def finish(self) -> None:
        """However far the push came, the tracker is dead afterwards."""
        if self._timer is not None:
            self._timer.join()
        self._victim.kill()
        self._victim.process.wait()


@pytest.mark.slow
@pytest.mark.e2e
def test_a_push_can_be_repeated_after_kill_9_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(20)
    before: Image | None = None
    survived = 0
    for number in range(ROUNDS + 1):
        with tracker(tmp_path / "tracker") as process:
            if before is not None:
                name, tag = "crash/image", f"r{number - 1}"
                client = Client(process)
                client.blobs_there(name, before)
                survived += client.tag_there(name, tag, before)
                client.push(name, tag, before)
                assert client.tag_there(name, tag, before)
            if number == ROUNDS:
                break
            layers = [rng.randbytes(rng.choice([10, 1 << 20, (3 << 20) + 17])) for _ in range(3)]
            before = Image.of(rng.randbytes(200), layers)
            # the last bytes are the manifest's: some rounds must reach the end, where commits happen
            killer = Killer(
                process, rng.choice([rng.randrange(before.size), before.size]), rng.choice([0, 0.005, 0.03])
            )
            try:
                Client(process, killer.sent).push("crash/image", f"r{number}", before)
            except (OSError, http.client.HTTPException):
                pass  # what a client of a killed server sees
            finally:
                killer.finish()
    assert survived < ROUNDS  # or nothing was ever interrupted
