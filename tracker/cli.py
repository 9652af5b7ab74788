"""``p2pregistry tracker ...``: the daemon and the operator's tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracker.commands import accounts, garbage, hooks, ipfs, keys, nodes, organizations, policies

if TYPE_CHECKING:
    from tracker.settings import TrackerSettings

_config = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="TOML file; see docs/configuration.md."
)
_data_dir = click.option("--data-dir", metavar="DIR", help="Where the tracker keeps everything.")
_database = click.option(
    "--database", metavar="DSN", help="Your Postgres. A password is safer in the file named by database.dsn_file."
)
_sets = click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")


@click.group()
def tracker() -> None:
    """The origin registry: takes pushes, owns the tags, tells nodes what is what."""


@tracker.command()
@_config
@_data_dir
@_database
@click.option("--port", metavar="PORT", help="Port of the registry API.")
@_sets
@click.option("--json", "as_json", is_flag=True, help="One JSON line on standard output when ready.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--parent-fd", type=int, hidden=True)
def run(
    config: Path | None,
    data_dir: str | None,
    database: str | None,
    port: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    ready_fd: int | None,
    parent_fd: int | None,
) -> None:
    """Run the tracker until Ctrl-C."""
    overrides: dict[str, object] = {"tracker.data_dir": data_dir, "database.dsn": database, "registry.port": port}
    settings = _settings(config, overrides, sets)
    from p2pregistry import daemon
    from tracker import app

    daemon.run(app.run, settings, as_json=as_json, ready_fd=ready_fd, parent_fd=parent_fd)


@tracker.command()
@_config
@_data_dir
@_database
@_sets
def migrate(config: Path | None, data_dir: str | None, database: str | None, sets: tuple[str, ...]) -> None:
    """Bring the database to this program's schema, then stop."""
    settings = _settings(config, {"tracker.data_dir": data_dir, "database.dsn": database}, sets)
    import trio

    from tracker import app

    trio.run(app.migrate, settings)
    click.echo("the database is up to date", err=True)


@tracker.command("new-epoch")
@_config
@_data_dir
@_database
@_sets
def new_epoch(config: Path | None, data_dir: str | None, database: str | None, sets: tuple[str, ...]) -> None:
    """Say that the database was restored from a backup, so that nodes read everything again; before the trackers are
    started."""
    settings = _settings(config, {"tracker.data_dir": data_dir, "database.dsn": database}, sets)
    import trio

    from tracker import app

    state = trio.run(app.new_epoch, settings)
    click.echo(f"epoch {state.epoch} begins after change {state.number}", err=True)


for _group in (policies.quota, policies.immutable, policies.repo, policies.upload):
    tracker.add_command(_group)
tracker.add_command(policies.status)
tracker.add_command(garbage.gc)
tracker.add_command(garbage.retention)
tracker.add_command(garbage.scrub)
tracker.add_command(hooks.webhook)
tracker.add_command(hooks.audit)
tracker.add_command(keys.keys)
tracker.add_command(nodes.node_token)
tracker.add_command(nodes.node_tokens)
tracker.add_command(nodes.node)
tracker.add_command(accounts.setup_url)
tracker.add_command(accounts.user)
tracker.add_command(accounts.token)
tracker.add_command(organizations.org)
tracker.add_command(ipfs.ipfs)


@tracker.group("config")
def config_group() -> None:
    """The settings, without starting anything."""


@config_group.command()
@_config
@_data_dir
@_sets
def check(config: Path | None, data_dir: str | None, sets: tuple[str, ...]) -> None:
    """Say what is wrong with the settings; exit status 2 if anything is."""
    _settings(config, {"tracker.data_dir": data_dir}, sets).check()
    click.echo("the settings are in order")


def _settings(config: Path | None, overrides: dict[str, object], sets: tuple[str, ...]) -> TrackerSettings:
    from p2pregistry.settings import load, pairs
    from tracker.settings import TrackerSettings

    return load(TrackerSettings, config, os.environ, overrides | pairs(sets))
