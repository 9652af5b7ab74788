"""The command line. Only click is imported here; each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from node.cli import node
from p2pregistry import __version__
from p2pregistry.errors import RegistryError, SettingsError
from p2pregistry.image.cli import image
from tracker.cli import tracker


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="p2pregistry")
def cli() -> None:
    """Container images from peer to peer: push to the tracker, pull from localhost."""


@cli.command()
@click.option("--nodes", type=click.IntRange(0, 50), default=1, show_default=True, help="How many nodes to start.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("p2pregistry-data"),
    show_default=True,
    help="Where everything is kept; made if missing.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65000),
    default=5000,
    show_default=True,
    help="Pull port of the first node; the others and the tracker follow. 0: any free ports.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line on standard output when ready.")
@click.option("--demo", is_flag=True, help="Also make an image, push it, and pull it through the first two nodes.")
@click.option("--plain", is_flag=True, help="Plain HTTP between nodes and tracker: nobody joins, anybody is let in.")
def up(nodes: int, data_dir: Path, port: int, as_json: bool, demo: bool, plain: bool) -> None:
    """A whole swarm on this machine: a tracker and nodes, nothing to set up. Ctrl-C stops all."""
    from p2pregistry import up as starter

    starter.main(starter.Plan(nodes=nodes, data_dir=data_dir, port=port, as_json=as_json, demo=demo, plain=plain))


cli.add_command(tracker)
cli.add_command(node)
cli.add_command(image)


def main() -> None:
    """Run the command line."""
    reporting(lambda: cli(prog_name="p2pregistry"))


def reporting(command: Callable[[], object]) -> None:
    """Call ``command``; our own errors become a message and an exit status: 2 for a wrong setting, 1 for the rest."""
    try:
        command()
    except RegistryError as err:
        _fail(err)
    except BaseExceptionGroup as group:
        ours, other = group.split(RegistryError)
        if ours is None or other is not None:
            raise
        _fail(_first(ours))


def _first(group: BaseExceptionGroup[RegistryError]) -> RegistryError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _fail(err: RegistryError) -> None:
    click.echo(f"p2pregistry: {err.message}", err=True)
    sys.exit(2 if isinstance(err, SettingsError) else 1)
