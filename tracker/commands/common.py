"""What the operator's commands share: their options, asking the tracker, and how answers are printed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tracker.units import is_size, size, span

__all__ = [
    "Console",
    "config_option",
    "data_dir_option",
    "json_option",
    "load_settings",
    "pairs_of",
    "seconds",
    "sets_option",
    "size",
    "span",
    "sure",
    "table",
    "with_tracker",
]

if TYPE_CHECKING:
    from tracker.settings import TrackerSettings

R = TypeVar("R")

config_option = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="TOML file; see docs/configuration.md."
)
data_dir_option = click.option("--data-dir", metavar="DIR", help="Where the tracker keeps everything.")
sets_option = click.option(
    "--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")

#: Seconds to wait for an answer.
_TIMEOUT: Final = 30.0


def load_settings(
    config: Path | None, overrides: Mapping[str, object] | None = None, sets: Sequence[str] = ()
) -> TrackerSettings:
    """The tracker's settings as ``tracker run`` would have them. Raises SettingsError."""
    from p2pregistry.settings import load, pairs
    from tracker.settings import TrackerSettings

    return load(TrackerSettings, config, os.environ, {**(overrides or {}), **pairs(sets)})


@dataclass(frozen=True, slots=True)
class Console:
    """The running tracker of one command, and how its answer is to be shown."""

    socket: Path
    as_json: bool

    def ask(
        self, method: str, path: str, document: object = None, *, timeout: float | None = _TIMEOUT, **query: object
    ) -> Any:
        """What the tracker answers. Of the ``query``, None is left out. ``timeout``: seconds, None for ever. Raises
        LocalError, with the tracker's own words where it refused."""
        from urllib.parse import urlencode

        from p2pregistry.admin import send

        given = urlencode({key: value for key, value in query.items() if value is not None})
        target = f"{path}?{given}" if given else path
        return send(self.socket, method, target, document, timeout=timeout, actor=_login())

    def api(self, method: str, *path: str, document: object = None, **query: object) -> Any:
        """The same of the JSON API, whose path consists of these names (docs/api.md)."""
        from urllib.parse import quote

        target = "/".join(quote(name, safe="") for name in path)
        return self.ask(method, f"/api/v1/{target}", document, timeout=_TIMEOUT, **query)

    def all(self, key: str, *path: str, **query: object) -> dict[str, Any]:
        """A whole list of the JSON API: all its pages, under their ``key``."""
        found: list[Any] = []
        after: str | None = None
        while True:
            page = self.api("GET", *path, n=1000, after=after, **query)
            found += page[key]
            after = page["next"]
            if after is None:
                return {key: found}

    def show(self, answer: Any, lines: Callable[[], Iterable[str]]) -> None:
        """Print the answer as one JSON document, or else ``lines``, or "none" where there are none."""
        if self.as_json:
            click.echo(json.dumps(answer))
            return
        printed = list(lines())
        for line in printed or ["none"]:
            click.echo(line)


def with_tracker(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options --config, --data-dir and --json, and the tracker they name as its first argument.
    Other options and arguments are written above this decorator."""

    @functools.wraps(command)
    def run(config: Path | None, data_dir: str | None, as_json: bool, **others: object) -> R:
        settings = load_settings(config, {"tracker.data_dir": data_dir})
        return command(Console(Path(settings.tracker.data_dir) / "admin.sock", as_json), **others)

    return config_option(data_dir_option(json_option(run)))


def table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> list[str]:
    """Lines of columns under their names, numbers to the right; nothing if there are no rows."""
    texts = [[_text(value) for value in row] for row in rows]
    if not texts:
        return []
    right = [all(text == "-" or is_size(text) for text in column) for column in zip(*texts, strict=True)]
    lines = [list(head), *texts]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]


def pairs_of(facts: Mapping[str, object]) -> list[str]:
    """A line for each fact."""
    width = max((len(key) for key in facts), default=0)
    return [f"{key:<{width}}  {_text(value)}" for key, value in facts.items()]


def _text(value: object) -> str:
    """On one line, whatever it is: names come from clients."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return "".join(c if c.isprintable() else "?" for c in str(value))


def seconds(text: str, option: str) -> float:
    """A time such as 30m or 7d. Raises click.BadParameter."""
    from p2pregistry.settings import parse_duration

    try:
        return parse_duration(text)
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint=option) from err


def sure(what: str, yes: bool) -> None:
    """Ask, unless the command line says yes. Raises click.Abort, also where nobody sits there."""
    if not yes:
        click.confirm(f"{what} cannot be taken back. Go on?", abort=True, err=True)


def _login() -> str:
    """Who sits there."""
    import getpass

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return f"uid {os.getuid()}"
