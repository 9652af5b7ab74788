"""Figures, ratios and targets, as a table or as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One line. ``ratio`` is the median of the ratios of each round; ``ok`` is None where there is no target, or
    where it could not be measured."""

    name: str
    value: float | None
    unit: str
    against: str | None = None
    ratio: float | None = None
    target: str | None = None
    ok: bool | None = None
    samples: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What one bench found."""

    bench: str
    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # only in the JSON object

    def value(self, name: str, samples: Sequence[float], unit: str) -> None:
        """A figure without a target."""
        self.results.append(Result(name, _middle(samples), unit, samples=_rounded(samples)))

    def limit(self, name: str, samples: Sequence[float], unit: str, *, most: float | None) -> None:
        """A figure that must stay below ``most``, if that is given."""
        if most is None:
            self.value(name, samples, unit)
            return
        middle = _middle(samples)
        ok = None if middle is None else middle < most
        self.results.append(Result(name, middle, unit, target=f"< {most:g} {unit}", ok=ok, samples=_rounded(samples)))

    def least(self, name: str, samples: Sequence[float], unit: str, *, least: float) -> None:
        """A figure that must reach ``least``."""
        middle = _middle(samples)
        ok = None if middle is None else middle >= least
        self.results.append(Result(name, middle, unit, target=f">= {least:g} {unit}", ok=ok, samples=_rounded(samples)))

    def ratio(
        self,
        name: str,
        samples: Sequence[float],
        unit: str,
        against: str,
        theirs: Sequence[float],
        least: float | None,
        most: float | None = None,
    ) -> None:
        """Ours to theirs, round by round; ``least`` or ``most`` is the target. Without theirs, a line that says so."""
        ratio = median(a / b for a, b in zip(samples, theirs, strict=True)) if theirs else None
        target = None if least is None else f">= {least:g}x {against}"
        ok = None if ratio is None or least is None else ratio >= least
        if most is not None:
            target, ok = f"<= {most:g}x {against}", None if ratio is None else ratio <= most
        rounded = None if ratio is None else round(ratio, 3)
        self.results.append(Result(name, _middle(samples), unit, against, rounded, target, ok, _rounded(samples)))

    def as_json(self) -> str:
        """The object of ``--json``, on one line."""
        return json.dumps(
            {
                "bench": self.bench,
                "machine": self.machine,
                "results": [asdict(result) for result in self.results],
                "skipped": self.skipped,
                **self.details,
            }
        )

    def as_text(self) -> str:
        """For people."""
        lines = [f"bench {self.bench}", *(f"  {key}: {value}" for key, value in self.machine.items()), ""]
        row = "{:<34} {:>10} {:<7} {:>8} {:<16} {:<24} {}"
        lines.append(row.format("what", "median", "unit", "ratio", "to", "target", "ok"))
        for result in self.results:
            lines.append(
                row.format(
                    result.name,
                    "-" if result.value is None else f"{result.value:.6g}",
                    result.unit,
                    "-" if result.ratio is None else f"{result.ratio:.2f}",
                    result.against or "",
                    result.target or "",
                    _verdict(result),
                )
            )
            lines.append(f"    rounds: {' '.join(f'{sample:g}' for sample in result.samples) or 'none'}")
        lines += [f"left out: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def _verdict(result: Result) -> str:
    if result.target is None:
        return ""
    return "not measured" if result.ok is None else "yes" if result.ok else "NO"


def _middle(samples: Sequence[float]) -> float | None:
    return round(median(samples), 3) if samples else None


def _rounded(samples: Sequence[float]) -> list[float]:
    return [round(sample, 3) for sample in samples]
