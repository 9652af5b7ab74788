"""``p2pregistry tracker keys ...``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracker.commands.common import Console, table, with_tracker

_root_key = click.option(
    "--root-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of the root key, where it is not kept with the tracker. It is read here; the tracker never sees it.",
)


@click.group()
def keys() -> None:
    """The keys that the tracker signs with."""


@keys.command("list")
@with_tracker
def listed(console: Console) -> None:
    """All keys there ever were, and how many live claims each has signed."""
    answer = console.ask("GET", "/keys")
    console.show(answer, lambda: _lines(answer))


@keys.command()
@click.option("--retire", is_flag=True, help="Drop older keys too, once nothing that they signed is in use.")
@_root_key
@with_tracker
def rotate(console: Console, retire: bool, root_key: Path | None) -> None:
    """Publish a new key, which signs once every node has had the time to hear of it (keys.overlap)."""
    answer = _change(console, {"retire": retire}, root_key)
    console.show(answer, lambda: _lines(answer))


@keys.command()
@click.argument("kid", metavar="KID")
@_root_key
@with_tracker
def revoke(console: Console, kid: str, root_key: Path | None) -> None:
    """Drop a key that somebody else may have. Another one signs at once; what this one signed is signed again, and
    nodes stop trusting it within a minute."""
    answer = _change(console, {"drop": kid}, root_key)
    console.show(answer, lambda: _lines(answer))


def _change(console: Console, change: dict[str, object], root_key: Path | None) -> Any:
    if root_key is None:
        return console.ask("POST", "/keys", change)
    from p2pregistry.errors import SettingsError
    from p2pregistry.trust.keys import sign_key_set
    from p2pregistry.trust.paserk import SECRET, load_key

    root = load_key(root_key, SECRET)
    if root is None:
        raise SettingsError(f"--root-key: there is no file {root_key}")
    draft = console.ask("POST", "/keys/draft", change)
    token = sign_key_set(root, draft["version"], draft["keys"])
    return console.ask("POST", "/keys", {**change, "key_set": token}) | {"kept": draft["kept"]}


def _lines(answer: Any) -> list[str]:
    rows = [
        (one["kid"], one["state"], _time(one["created"]), _time(one["sign_from"]), one["claims"])
        for one in answer["keys"]
    ]
    lines = [f"key set {answer['version']} of root {answer['root_key']}"]
    lines += table(rows, ("kid", "state", "created", "signs from", "claims"))
    return lines + [f"{kid} stays: {why}" for kid, why in answer.get("kept", {}).items()]


def _time(seconds: float | None) -> str | None:
    import datetime

    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
