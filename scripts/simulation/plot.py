"""Plots as SVG, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_WIDTH, _HEIGHT, _LEFT, _BELOW, _TOP = 640, 380, 60, 50, 40

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, up: str, curves: Mapping[str, Points]) -> str:
    """Curves over two axes that begin at 0."""
    most_x = max((x for points in curves.values() for x, _ in points), default=1.0) or 1.0
    most_y = 1.05 * (max((y for points in curves.values() for _, y in points), default=1.0) or 1.0)
    wide, high = _WIDTH - _LEFT - 20, _HEIGHT - _BELOW - _TOP

    def place(x: float, y: float) -> str:
        return f"{_LEFT + wide * x / most_x:.1f},{_TOP + high * (1 - y / most_y):.1f}"

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
            ' font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(14,{_TOP + high / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for step in range(6):
        x, y = most_x * step / 5, most_y * step / 5
        left, bottom = place(x, 0).split(","), place(0, y).split(",")
        parts.append(f'<text x="{left[0]}" y="{_TOP + high + 18}" text-anchor="middle">{x:.4g}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{bottom[1]}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<polyline points="{place(0, y)} {place(most_x, y)}" stroke="#d0d7de" fill="none"/>')
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{drawn}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts.append(f'<text x="{_LEFT + 10}" y="{_TOP + 16 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
