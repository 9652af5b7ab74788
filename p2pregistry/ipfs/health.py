"""Whether a gateway is worth asking: a small machine that is told what became of requests, and when.

A gateway that fails several times in a row is left out for a while, longer each time; then one question to which every
gateway has the answer (a probe) decides whether it is used again. One that says that it is busy is left alone for as
long as it asks for. One that sent what it was not asked for is banned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

#: Failures in a row after which a gateway is left out, for how long at first (seconds), and at most. Those that come
#: within so many seconds are one: several requests that were under way.
FAILURES: Final = 3
SPACING: Final = 1.0
_REST: Final = 15.0
_REST_MOST: Final = 600.0
#: Seconds for which one that lied is not asked, as with peers.
BAN: Final = 600.0
#: Seconds that a busy one is believed at most.
BUSY_MOST: Final = 600.0

State = Literal["ok", "busy", "resting", "banned"]


@dataclass(slots=True)
class Health:
    """One gateway's. ``now`` is seconds on any steady clock."""

    state: State = "ok"
    why: str = ""
    until: float = 0.0
    #: failures in a row, and how often it was left out in a row
    failures: int = 0
    failed_at: float = float("-inf")
    rests: int = 0
    #: when it last answered as it should
    seen: float | None = None

    def usable(self, now: float) -> bool:
        """Whether it may be asked for content."""
        return self.state == "ok" or (self.state == "busy" and now >= self.until)

    def wait(self, now: float) -> float:
        """Seconds until it may be asked, or probed."""
        return 0.0 if self.state == "ok" else max(0.0, self.until - now)

    def probe_due(self, now: float) -> bool:
        """Whether it should be asked if it is there again."""
        return self.state in ("resting", "banned") and now >= self.until

    def answered(self, now: float) -> bool:
        """It did as it should, even if it has not got what was asked for. True if that is news."""
        news = self.state in ("resting", "banned")
        if news and now < self.until:
            return False  # an answer to something asked before
        self.state, self.why, self.until = "ok", "", 0.0
        self.failures = self.rests = 0
        self.seen = now
        return news

    def busy(self, wait: float, now: float) -> None:
        """It asks to be left alone for ``wait`` seconds. If it was left out it stays so: a probe decides, later."""
        if self.state in ("ok", "busy"):
            self.state, self.why = "busy", "it asks for fewer requests"
        if self.state == "busy" or now >= self.until:
            self.until = max(self.until, now + min(max(wait, 0.0), BUSY_MOST))

    def failed(self, why: str, now: float, *, at_once: bool = False) -> bool:
        """It gave no proper answer; ``at_once``: to a probe, which any gateway can answer. True if it is left out from
        now on."""
        if self.state in ("banned", "resting") and now < self.until:
            return False
        if self.failures and now - self.failed_at < SPACING and not at_once:
            return False
        self.failures, self.failed_at = self.failures + 1, now
        left_out = self.state in ("banned", "resting")
        if not left_out and self.failures < FAILURES and not at_once:
            return False
        news = not left_out
        self.state, self.why = "resting", why
        self.until = now + min(_REST * 2**self.rests, _REST_MOST)
        self.rests = min(self.rests + 1, 10)
        return news

    def lied(self, why: str, now: float) -> None:
        """It sent what is not what was asked for."""
        self.state, self.why, self.until = "banned", why, now + BAN
