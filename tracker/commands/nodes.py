"""``p2pregistry tracker node-token``, ``tracker node-tokens ...`` and ``tracker node ...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from tracker.commands.common import Console, pairs_of, seconds, table, with_tracker

_pull = click.option(
    "--pull", "pulls", multiple=True, metavar="GLOB", help="Private repositories it may pull; may be repeated."
)
_label = click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Such as zone=a; may be repeated.")


@click.command("node-token")
@click.option("--uses", type=click.IntRange(1, 1_000_000), help="How many nodes may join with it; 1 if not given.")
@click.option("--multi", is_flag=True, help="Any number of nodes may join with it until it expires.")
@click.option("--expires", metavar="TIME", default="1h", show_default=True, help="How long it is good: 30m, 1h, 7d.")
@click.option("--swarm", metavar="NAME", help="The swarm it is for; the tracker's if not given.")
@_pull
@_label
@with_tracker
def node_token(
    console: Console,
    uses: int | None,
    multi: bool,
    expires: str,
    swarm: str | None,
    pulls: tuple[str, ...],
    labels: tuple[str, ...],
) -> None:
    """Make a join token for a new node, and print it: it is not shown again.

    Nothing else goes to standard output. The node gets public repositories, and those that --pull names.
    """
    if multi and uses is not None:
        raise click.UsageError("give one of --uses and --multi")
    document = {
        "uses": None if multi else (uses or 1),
        "lasts": seconds(expires, "--expires"),
        "swarm": swarm,
        "pulls": list(pulls),
        "labels": _labels(labels),
    }
    made = console.ask("POST", "/node-tokens", document)
    console.show(made, lambda: [str(made["token"])])
    if not console.as_json:
        click.echo(f"join token {made['id']}: {_uses(made)}, until {made['expires_at']}", err=True)


@click.group("node-tokens")
def node_tokens() -> None:
    """Join tokens that were made; their secrets are not kept."""


@node_tokens.command("list")
@with_tracker
def list_tokens(console: Console) -> None:
    """Those of the last days, the expired ones too."""
    answer = console.ask("GET", "/node-tokens")
    rows = [
        (one["id"], one["swarm"], _uses(one), one["expires_at"], one["revoked_at"], *_granted(one), one["created_by"])
        for one in answer["tokens"]
    ]
    head = ("id", "swarm", "for", "expires", "revoked", "pulls", "labels", "made by")
    console.show(answer, lambda: table(rows, head))


@node_tokens.command("revoke")
@click.argument("number", metavar="ID", type=int)
@with_tracker
def revoke_token(console: Console, number: int) -> None:
    """Let nobody join with it any more; nodes that have joined stay."""
    console.show(console.ask("DELETE", "/node-tokens", id=number), lambda: ["revoked"])


@click.group()
def node() -> None:
    """The nodes that have joined."""


@node.command("list")
@click.option("--after", metavar="PEER", help="Only those after this peer id.")
@click.option("--limit", type=int, default=1000, show_default=True, help="How many.")
@with_tracker
def list_nodes(console: Console, after: str | None, limit: int) -> None:
    """By peer id."""
    answer = console.ask("GET", "/nodes", after=after, n=limit)
    rows = [(one["peer_id"], _state(one), *_granted(one), one["joined_by"]) for one in answer["nodes"]]
    console.show(answer, lambda: table(rows, ("peer id", "credential", "pulls", "labels", "joined by")))


@node.command()
@click.argument("peer_id", metavar="PEER")
@with_tracker
def show(console: Console, peer_id: str) -> None:
    """What is known of one."""
    answer = console.ask("GET", "/nodes/node", peer_id=peer_id)
    console.show(answer, lambda: pairs_of(answer))


@node.command()
@click.argument("peer_id", metavar="PEER")
@with_tracker
def revoke(console: Console, peer_id: str) -> None:
    """Turn a node away: the tracker does at once, other nodes within a minute. Its peer id cannot join again."""
    answer = console.ask("POST", "/nodes/revoke", peer_id=peer_id, on="true")
    console.show(answer, lambda: ["revoked; revoke its join token too if others could still use that"])


@node.command()
@click.argument("peer_id", metavar="PEER")
@with_tracker
def restore(console: Console, peer_id: str) -> None:
    """Take a revocation back."""
    console.show(console.ask("POST", "/nodes/revoke", peer_id=peer_id, on="false"), lambda: ["restored"])


@node.command("set")
@click.argument("peer_id", metavar="PEER")
@_pull
@click.option("--no-pull", is_flag=True, help="Public repositories only.")
@_label
@click.option("--no-label", is_flag=True, help="No labels.")
@with_tracker
def set_node(
    console: Console, peer_id: str, pulls: tuple[str, ...], no_pull: bool, labels: tuple[str, ...], no_label: bool
) -> None:
    """Change which private repositories a node may pull, or its labels; those given replace the ones it had.

    The node fetches a new credential within a minute. The one it has is good until it ends: to take something away at
    once, revoke the node.
    """
    if (pulls and no_pull) or (labels and no_label):
        raise click.UsageError("give one of --pull and --no-pull, and one of --label and --no-label")
    document = {
        "peer_id": peer_id,
        "pulls": list(pulls) if pulls or no_pull else None,
        "labels": _labels(labels) if labels or no_label else None,
    }
    console.show(console.ask("POST", "/nodes/node", document), lambda: ["changed"])


@node.command()
@with_tracker
def settings(console: Console) -> None:
    """What a node's settings say of this tracker where it joins without a join token; none of it is secret."""
    answer = console.ask("GET", "/nodes/settings")
    lines = ["[tracker]", *(f'{key} = "{answer[key]}"' for key in ("url", "peer_id", "root_key"))]
    console.show(answer, lambda: lines)


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter("write NAME=VALUE", param_hint="--label")
        found[name] = value
    return found


def _uses(token: Mapping[str, Any]) -> str:
    left = token["uses_left"]
    return "any number of nodes" if left is None else f"{left} node{'' if left == 1 else 's'}"


def _granted(one: Mapping[str, Any]) -> tuple[str, str]:
    labels = " ".join(f"{name}={value}" for name, value in one["labels"].items())
    return " ".join(one["pulls"]) or "public only", labels or "-"


def _state(one: Mapping[str, Any]) -> str:
    return f"revoked {one['revoked_at']}" if one["revoked_at"] is not None else f"until {one['expires_at']}"
