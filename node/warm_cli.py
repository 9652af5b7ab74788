"""``p2pregistry node prefetch | pin | unpin | pins | gc``: questions to a running node over its admin socket."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

#: Seconds between two looks at how far it is, and between two lines where the output is no terminal.
_LOOK, _LINE = 0.2, 2.0
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_config = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="TOML file; see docs/configuration.md."
)
_data_dir = click.option("--data-dir", metavar="DIR", help="Where the node keeps everything.")
_platform = click.option(
    "--platform", "platforms", multiple=True, metavar="OS/ARCH", help="As linux/arm64, or all; may be repeated."
)
_no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until it is here.")


@click.command()
@_config
@_data_dir
@click.argument("image", metavar="REF")
@_platform
@_no_wait
@click.option("--cancel", is_flag=True, help="End the prefetch of REF that is under way; what is here stays.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
def prefetch(
    config: Path | None,
    data_dir: str | None,
    image: str,
    platforms: tuple[str, ...],
    no_wait: bool,
    cancel: bool,
    as_json: bool,
) -> None:
    """Fetch the image REF (repository:tag or repository@digest), so that a later pull finds it on this machine.

    It is the node that fetches: Ctrl-C ends this command, and the node goes on; --cancel ends that too. While clients
    pull other images the node fetches these first.
    """
    node = _Node(config, data_dir)
    if cancel:
        _say(node.ask("DELETE", f"/prefetch?image={quote(image)}"), "the prefetch of {image} ends", as_json)
        return
    begun = node.ask("POST", "/prefetch", {"image": image, "platforms": platforms})
    _follow(node, begun, "prefetch --cancel", no_wait=no_wait, as_json=as_json)


@click.command()
@_config
@_data_dir
@click.argument("image", metavar="REF")
@_platform
@_no_wait
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
def pin(
    config: Path | None, data_dir: str | None, image: str, platforms: tuple[str, ...], no_wait: bool, as_json: bool
) -> None:
    """Keep the image REF on this machine: fetched if it is missing, and never removed to make room.

    A pinned tag is followed: the image before stays until the new one is all here. A pinned digest is that one image.
    """
    node = _Node(config, data_dir)
    begun = node.ask("POST", "/pins", {"image": image, "platforms": platforms})
    _follow(node, begun, "unpin", no_wait=no_wait, as_json=as_json)


@click.command()
@_config
@_data_dir
@click.argument("image", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def unpin(config: Path | None, data_dir: str | None, image: str, as_json: bool) -> None:
    """Remove the pin of the image REF. Nothing is removed at once."""
    answer = _Node(config, data_dir).ask("DELETE", f"/pins?image={quote(image)}")
    _say({"image": image, **answer}, "{image} is pinned no more", as_json)


@click.command()
@_config
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def pins(config: Path | None, data_dir: str | None, as_json: bool) -> None:
    """The images that are pinned, and how much of each is here."""
    answer = _Node(config, data_dir).ask("GET", "/pins")
    if as_json:
        click.echo(json.dumps(answer))
        return
    rows = [
        (
            pinned["image"],
            ",".join(pinned["platforms"]),
            "all here" if pinned["complete"] else f"{_size(pinned['here'])} of {_size(pinned['total'])}",
            _size(pinned["total"]) if pinned["complete"] else "",
        )
        for pinned in answer["pins"]
    ]
    if not rows:
        click.echo("none")
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command()
@_config
@_data_dir
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--to", "most", metavar="SIZE", help="As if cache.max_bytes were this: 20GiB.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def gc(config: Path | None, data_dir: str | None, dry_run: bool, most: str | None, as_json: bool) -> None:
    """Bring the blobs under the node's limits now, as it does by itself whenever it needs room.

    What was fetched ahead and not asked for goes first, then what was used longest ago; never what is in use or pinned.
    """
    from p2pregistry.settings import parse_size

    try:
        limit = None if most is None else parse_size(most)
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--to") from err
    answer = _Node(config, data_dir).ask("POST", "/gc", {"dry_run": dry_run, "max_bytes": limit})
    if as_json:
        click.echo(json.dumps(answer))
        return
    for blob in answer["blobs"]:
        click.echo(f"{blob['digest'][:31]}  {_size(blob['size'])}")
    blobs = len(answer["blobs"])
    verb = "would go" if dry_run else "went"
    click.echo(
        f"{blobs} blob{'' if blobs == 1 else 's'}, {_size(answer['bytes'])}, {verb}" if blobs else "nothing to do"
    )


class _Node:
    """The running node that these settings are of."""

    def __init__(self, config: Path | None, data_dir: str | None) -> None:
        import os

        from node.settings import NodeSettings
        from p2pregistry.settings import load

        settings = load(NodeSettings, config, os.environ, {"node.data_dir": data_dir})
        self._socket = Path(settings.node.data_dir) / "admin.sock"

    def ask(self, method: str, target: str, document: object = None) -> Any:
        """Its answer. Raises LocalError."""
        from p2pregistry.admin import send

        return send(self._socket, method, target, document, timeout=60.0)


def _say(answer: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else text.format(**answer))


def _follow(node: _Node, begun: dict[str, Any], ender: str, *, no_wait: bool, as_json: bool) -> None:
    """Show how far it is until it ends, which the command ``ender`` would make it. Raises LocalError if it fails."""
    from p2pregistry.errors import LocalError

    if no_wait:
        _say(begun, "{image} is being fetched", as_json)
        return
    now, started = begun, time.monotonic()
    try:
        with _shown(begun, as_json) as show:
            while True:
                show(now)
                if now["state"] not in ("waiting", "running"):
                    break
                time.sleep(_LOOK)
                now = node.ask("GET", f"/prefetch?number={begun['number']}")
    except KeyboardInterrupt:
        image = begun["image"]
        click.echo(f"\nThe node goes on fetching {image}; to end that: p2pregistry node {ender} {image}", err=True)
        raise SystemExit(130) from None
    if now["state"] == "failed":
        raise LocalError(f"{now['image']}: {now['error']}")
    if now["state"] == "cancelled":
        raise LocalError(f"{now['image']} is not wanted any more")
    if not as_json:
        click.echo(_result(now, time.monotonic() - started))


def _result(now: dict[str, Any], seconds: float) -> str:
    came = now["peer"] + now["tracker"]
    if not came:
        return f"{now['image']} is here, all {_size(now['total'])} of it"
    return (
        f"{now['image']} is here: {_size(now['peer'])} from peers and {_size(now['tracker'])} from the tracker"
        f" in {seconds:.1f} s"
    )


@contextmanager
def _shown(begun: dict[str, Any], as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What to call with each new state."""
    if as_json:
        yield _Lines(json.dumps, every=0.0)
    elif not sys.stdout.isatty():
        yield _Lines(_line, every=_LINE)
    else:
        with _bar(begun) as show:
            yield show


class _Lines:
    """A line whenever something has changed, but not more often than ``every`` so many seconds."""

    def __init__(self, text: Callable[[dict[str, Any]], str], every: float) -> None:
        self._text, self._every = text, every
        self._last: dict[str, Any] = {}
        self._at = -every

    def __call__(self, now: dict[str, Any]) -> None:
        due = time.monotonic() - self._at >= self._every or now["state"] not in ("waiting", "running")
        if now != self._last and due:
            self._last, self._at = now, time.monotonic()
            click.echo(self._text(now))


def _line(now: dict[str, Any]) -> str:
    if not now["total"]:
        return f"{now['image']}: looking for it"
    share = 100 * now["here"] // now["total"]
    return (
        f"{now['image']}: {share} % of {_size(now['total'])}, {now['blobs_here']} of {now['blobs']} blobs,"
        f" peers {_size(now['peer'])}, tracker {_size(now['tracker'])}"
    )


@contextmanager
def _bar(begun: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    name = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")
    )
    bar = BarColumn(bar_width=None, table_column=Column(ratio=3, min_width=8))
    with Progress(name, bar, TextColumn("{task.fields[came]}", markup=False), expand=True) as progress:
        task = progress.add_task(begun["image"], total=None, came="looking for it")

        def show(now: dict[str, Any]) -> None:
            if now["total"]:
                came = f"{_size(now['here'])} of {_size(now['total'])}, peers {_size(now['peer'])}"
                came += f", tracker {_size(now['tracker'])}"
                progress.update(task, total=now["total"], completed=now["here"], came=came)

        yield show


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


COMMANDS = (prefetch, pin, unpin, pins, gc)
