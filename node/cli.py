"""``p2pregistry node ...``: the daemon, and questions to a running one over its admin socket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.warm_cli import COMMANDS

if TYPE_CHECKING:
    from node.settings import NodeSettings

_config = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="TOML file; see docs/configuration.md."
)
_data_dir = click.option("--data-dir", metavar="DIR", help="Where the node keeps everything.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


@click.group()
def node() -> None:
    """The sidecar beside a container engine: pull from localhost, layers from neighbours."""


@node.command()
@_config
@_data_dir
@click.option("--port", metavar="PORT", help="Port of the pull API on loopback.")
@click.option("--tracker", "tracker_url", metavar="URL", help="Base URL of the tracker's peer API.")
@click.option(
    "--join",
    metavar="TOKEN",
    help="A join token, for the first start: itself (other users of this machine can read it in the list of processes),"
    " @FILE, or - for standard input.",
)
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
@_json
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--parent-fd", type=int, hidden=True)
def run(
    config: Path | None,
    data_dir: str | None,
    port: str | None,
    tracker_url: str | None,
    join: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    ready_fd: int | None,
    parent_fd: int | None,
) -> None:
    """Run a node until Ctrl-C.

    A join token can also be in the environment (P2PREGISTRY_JOIN_TOKEN) or in the file tracker.join_file.
    """
    import functools

    settings = _settings(config, {"node.data_dir": data_dir, "pull.port": port, "tracker.url": tracker_url}, sets)
    from node import app
    from p2pregistry import daemon

    run_node = functools.partial(app.run, join=_join_token(join))
    daemon.run(run_node, settings, as_json=as_json, ready_fd=ready_fd, parent_fd=parent_fd)


@node.command()
@_config
@_data_dir
@_json
def status(config: Path | None, data_dir: str | None, as_json: bool) -> None:
    """What the running node holds and does."""
    _show(_ask(config, data_dir, "/status"), as_json)


@node.command()
@_config
@_data_dir
@_json
def peers(config: Path | None, data_dir: str | None, as_json: bool) -> None:
    """The peers the running node is in touch with."""
    _show(_ask(config, data_dir, "/peers"), as_json)


for _command in COMMANDS:
    node.add_command(_command)


def _join_token(given: str | None) -> str | None:
    """The word itself, wherever it stands; None without one. Raises SettingsError."""
    import sys

    from node.joining import read_word
    from p2pregistry.errors import SettingsError

    # taken out: programs that this one starts need not know it
    from_environment = os.environ.pop("P2PREGISTRY_JOIN_TOKEN", "").strip()
    if given is None:
        return from_environment or None
    if given == "-":
        word = sys.stdin.readline().strip()
    elif given.startswith("@"):
        word = read_word(Path(given[1:]))
    else:
        word = given.strip()
    if not word:
        raise SettingsError("--join: the join token is empty")
    return word


def _settings(config: Path | None, overrides: dict[str, object], sets: tuple[str, ...] = ()) -> NodeSettings:
    from node.settings import NodeSettings
    from p2pregistry.settings import load, pairs

    return load(NodeSettings, config, os.environ, overrides | pairs(sets))


def _ask(config: Path | None, data_dir: str | None, path: str) -> Any:
    from p2pregistry.admin import get

    settings = _settings(config, {"node.data_dir": data_dir})
    return get(Path(settings.node.data_dir) / "admin.sock", path)


def _show(answer: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
        return
    rows = answer["peers"] if isinstance(answer, dict) and isinstance(answer.get("peers"), list) else answer
    if isinstance(rows, list):
        if not rows:
            click.echo("none")
        for row in rows:
            click.echo("  ".join(str(value) for value in row.values()) if isinstance(row, dict) else str(row))
        return
    for line in lines_of(rows):
        click.echo(line)


def lines_of(facts: dict[str, Any]) -> list[str]:
    """Facts as people read them: a line each, of a list one for each entry."""
    width = max((len(key) for key in facts), default=0)
    found: list[str] = []
    for key, value in facts.items():
        entries = value if isinstance(value, list) and value else [value]
        found += [f"{key if number == 0 else '':<{width}}  {_text(entry)}" for number, entry in enumerate(entries)]
    return found


def _text(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_text(part)}" if key != "url" else str(part) for key, part in value.items() if part)
    return str(value)
