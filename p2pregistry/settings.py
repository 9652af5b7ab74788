"""Settings: what a program can be told, where from, and how it is said when something is wrong.

A program's settings are one frozen struct of sections, each section a frozen struct of values. Every value carries a
``Setting`` with its one-sentence help, so name, type, unit, default and help stand in one place; the reference in
docs/configuration.md and the files under config/ are made from it and a test holds them to it.

Order, later wins: default, TOML file, environment (``P2PREGISTRY_<SECTION>__<KEY>``), command line.
Unset is None, never 0.
Rejected: pydantic-settings (four times the import time for the same errors).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from p2pregistry.errors import SettingsError

ENV_PREFIX = "P2PREGISTRY_"
_SIZES = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGT", 1)
    for name, base in ((f"{letter}iB", 1024), (f"{letter}B", 1000), (letter, 1024))
}
_TIMES = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]{0,3})")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said about one value. ``unit`` "bytes" and "seconds" also accept text such as "20GiB" and "5m"."""

    help: str
    unit: str = ""
    example: object = None  # shown in config/*.toml where the default is None
    secret: bool = False  # the value is never printed


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of a program's settings; every field is a section."""

    def check(self) -> None:
        """Rules between values. Raises SettingsError."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of a section; every field is ``Annotated[type, Setting(...)]`` with a default."""


T = TypeVar("T", bound=Settings)

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, described."""

    section: str
    key: str
    type: str
    default: object
    setting: Setting
    accepts: Any  # the annotated type, for msgspec

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def env(self) -> str:
        return f"{ENV_PREFIX}{self.section.upper()}__{self.key.upper()}"


@dataclass(frozen=True, slots=True)
class _Given:
    """A value somebody gave, and where."""

    value: object
    origin: str
    text: bool  # from the environment or the command line: text that has yet to be read


def parse_size(text: str) -> int:
    """Bytes from "1048576", "20GiB", "1.5 MB". Raises ValueError."""
    return int(_quantity(text, _SIZES, "a size is a number of bytes or text such as 20GiB or 500MB"))


def parse_duration(text: str) -> float:
    """Seconds from "30", "250ms", "5m". Raises ValueError."""
    return _quantity(text, _TIMES, "a duration is a number of seconds or text such as 30s, 5m or 12h")


def _quantity(text: str, units: Mapping[str, float], wrong: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    factor = units.get(match[2]) if match else None
    if match is None or factor is None:
        raise ValueError(wrong)
    return (float(match[1]) if "." in match[1] else int(match[1])) * factor


def describe(cls: type[Settings]) -> list[Row]:
    """Every setting of a program, in the order it is declared."""
    rows = []
    for section in msgspec.structs.fields(cls):
        for info in msgspec.structs.fields(section.type):
            setting = next(m for m in typing.get_args(info.type) if isinstance(m, Setting))
            default = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
            rows.append(Row(section.name, info.name, _type_name(info.type), default, setting, info.type))
    return rows


def load(
    cls: type[T],
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> T:
    """Read a program's settings.

    ``overrides`` maps ``section.key`` to a value, or to text that is read as in the environment; None is "not given".
    Raises SettingsError, whose message begins with the path of the setting (``$.cache.max_bytes: ...``).
    """
    rows = {row.path: row for row in describe(cls)}
    given: dict[str, _Given] = {}
    for name, value in (*_from_file(path), *_from_env(rows, env or {}), *_from_flags(overrides or {})):
        if name not in rows:
            raise SettingsError(f"$.{name}: no such setting{_nearest(name, rows)} ({value.origin})")
        given[name] = value
    sections: dict[str, dict[str, object]] = {}
    for name, one in given.items():
        row = rows[name]
        sections.setdefault(row.section, {})[row.key] = _read(row, one)
    types_ = {section.name: section.type for section in msgspec.structs.fields(cls)}
    settings = cls(**{name: types_[name](**values) for name, values in sections.items()})
    settings.check()
    return settings


def pairs(texts: Sequence[str]) -> dict[str, object]:
    """``section.key=value`` from the command line. Raises SettingsError."""
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: write section.key=value")
        found[name.strip()] = value
    return found


def _from_file(path: Path | None) -> Iterator[tuple[str, _Given]]:
    if path is None:
        return
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SettingsError(f"{path}: cannot be read: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not a TOML file: {err}") from err
    for section, table in document.items():
        if not isinstance(table, dict):
            raise SettingsError(f"$.{section}: settings stand in sections such as [cache] ({path})")
        for key, value in table.items():
            yield f"{section}.{key}", _Given(value, str(path), text=False)


def _from_env(rows: Mapping[str, Row], env: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    names = {row.env: row.path for row in rows.values()}
    for variable, text in env.items():
        section, separator, key = variable.removeprefix(ENV_PREFIX).partition("__")
        # an empty variable is an unset one: compose files and shells cannot say it otherwise
        if variable.startswith(ENV_PREFIX) and separator and text != "":
            name = names.get(variable, f"{section.lower()}.{key.lower()}")
            yield name, _Given(text, f"environment variable {variable}", text=True)


def _from_flags(overrides: Mapping[str, object]) -> Iterator[tuple[str, _Given]]:
    for name, value in overrides.items():
        if value is not None:
            yield name, _Given(value, "command line", text=isinstance(value, str))


def _read(row: Row, given: _Given) -> object:
    try:
        value = given.value
        if isinstance(value, str) and row.setting.unit in ("bytes", "seconds"):
            value = parse_size(value) if row.setting.unit == "bytes" else parse_duration(value)
        elif given.text and row.type.startswith("list"):
            value = [part.strip() for part in str(value).split(",") if part.strip()]
        return msgspec.convert(value, row.accepts, strict=not given.text)
    except (ValueError, msgspec.ValidationError) as err:
        # msgspec's own path starts at the value, which is the part we already name
        reason = re.sub(r" - at `\$.*`$", "", str(err)).replace("`", "").replace(" | null", "")
        shown = "" if row.setting.secret else f", got {_toml(given.value)}"
        raise SettingsError(f"$.{row.path}: {reason[0].lower()}{reason[1:]}{shown} ({given.origin})") from err


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _type_name(annotation: Any) -> str:
    """How a type is written in the reference: int, text, list of text, true or false."""
    if typing.get_origin(annotation) is Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(_type_name(part) for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type_name(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(annotation))
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _toml(value: object) -> str:
    """A value as TOML writes it (for strings JSON's escapes are TOML's too)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def shown(row: Row, value: object) -> str:
    """A value for people: sizes in the largest whole unit, durations with theirs."""
    if value is None:
        return "unset"
    if row.setting.unit == "bytes" and isinstance(value, int) and value:
        power = max(p for p in range(5) if value % 1024**p == 0)
        if power:
            return _toml(f"{value // 1024**power}{'KMGT'[power - 1]}iB")
    return f"{value:g}" if isinstance(value, float) else _toml(value)


def dump(sections: Mapping[str, Mapping[str, object]]) -> str:
    """A TOML file of these sections; None is left out."""
    parts = []
    for name, values in sections.items():
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        parts.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(parts) + "\n"


def template(cls: type[Settings], head: Sequence[str]) -> str:
    """An annotated TOML file with every setting at its default, commented out."""
    lines = [f"# {line}".rstrip() for line in head]
    section = ""
    for row in describe(cls):
        if row.section != section:
            section = row.section
            lines += ["", f"[{section}]"]
        note = " Unset by default." if row.default is None else ""
        unit = f" ({row.setting.unit})" if row.setting.unit else ""
        example = row.setting.example if row.default is None else row.default
        lines += [f"# {row.setting.help}{unit}{note}", f"#{row.key} = {shown(row, example)}"]
    return "\n".join(lines) + "\n"


def reference(cls: type[Settings]) -> str:
    """The settings as Markdown tables, one a section."""
    lines: list[str] = []
    section = ""
    for row in describe(cls):
        if row.section != section:
            section = row.section
            lines += ["", f"### `[{section}]`", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        kind = f"{row.type}, {row.setting.unit}" if row.setting.unit else row.type
        lines.append(f"| `{row.key}` | {kind} | `{shown(row, row.default)}` | {row.setting.help} |")
    return "\n".join(lines).lstrip("\n") + "\n"
