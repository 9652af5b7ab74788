"""Sizes and durations as people read them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: int | None) -> str:
    """Bytes: "1.5 GiB"; "-" for None."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def is_size(text: str) -> bool:
    """Whether it is a number, or one that ``size`` has made."""
    number, _, unit = text.partition(" ")
    return number.replace(".", "", 1).isdigit() and (not unit or unit in _UNITS)


def span(seconds: float | None) -> str:
    """A duration in its two largest units: "3d 4h"; "-" for None."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (name == "s" and not parts):
            parts.append(f"{count}{name}")
    return " ".join(parts[:2])
