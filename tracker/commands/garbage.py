"""``p2pregistry tracker gc``, ``retention`` and ``scrub``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from tracker.commands.common import Console, pairs_of, size, span, table, with_tracker

_dry_run = click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")


@click.command()
@_dry_run
@click.option("--orphans", is_flag=True, help="Remove what the database does not know, even most of the store.")
@click.option("--history", is_flag=True, help="Show the latest runs in place of beginning one.")
@with_tracker
def gc(console: Console, dry_run: bool, orphans: bool, history: bool) -> None:
    """Remove bytes that nothing refers to. Pushes and pulls go on meanwhile."""
    if history:
        answer = console.ask("GET", "/runs")
        rows = [
            (
                run["id"],
                run["kind"] + (" (dry run)" if run["dry_run"] else ""),
                run["started_at"],
                run["ended_at"],
                run["error"] or " ".join(f"{name}={value}" for name, value in run["figures"].items()),
            )
            for run in answer["runs"]
        ]
        console.show(answer, lambda: table(rows, ("id", "kind", "began", "ended", "result")))
        return
    wanted = {"dry_run": dry_run, "orphans": orphans}
    answer = console.ask("POST", "/gc", timeout=None, **{name: "true" for name, on in wanted.items() if on})
    console.show(answer, lambda: pairs_of(_figures(answer["figures"])))


@click.group()
def retention() -> None:
    """Rules for which tags are kept."""


@retention.command("list")
@with_tracker
def listed(console: Console) -> None:
    """All rules."""
    answer = console.ask("GET", "/retention/rules")
    rows = [
        (
            rule["id"],
            rule["repositories"],
            rule["tags"],
            rule["keep_last"],
            span(rule["pushed_within"]),
            span(rule["pulled_within"]),
        )
        for rule in answer["rules"]
    ]
    head = ("id", "repositories", "tags", "keep last", "pushed within", "pulled within")
    console.show(answer, lambda: table(rows, head))


@retention.command()
@click.argument("repositories", metavar="REPOSITORIES")
@click.argument("tags", metavar="TAGS")
@click.option("--keep-last", type=click.IntRange(min=0), help="Keep so many tags, those pushed last.")
@click.option("--pushed-within", metavar="TIME", help='Keep tags pushed within this time: "30d", "12h".')
@click.option("--pulled-within", metavar="TIME", help="Keep tags pulled within this time.")
@with_tracker
def add(
    console: Console,
    repositories: str,
    tags: str,
    keep_last: int | None,
    pushed_within: str | None,
    pulled_within: str | None,
) -> None:
    """Let tags go that match both globs, but for those that an option keeps. Other tags are not touched."""
    document = {
        "repositories": repositories,
        "tags": tags,
        "keep_last": keep_last,
        "pushed_within": _seconds(pushed_within),
        "pulled_within": _seconds(pulled_within),
    }
    answer = console.ask("POST", "/retention/rules", document)
    console.show(answer, lambda: [f"rule {answer['id']}"])


@retention.command()
@click.argument("number", metavar="ID", type=int)
@with_tracker
def remove(console: Console, number: int) -> None:
    """Remove a rule."""
    console.show(console.ask("DELETE", "/retention/rules", id=number), lambda: ["removed"])


@retention.command()
@_dry_run
@with_tracker
def run(console: Console, dry_run: bool) -> None:
    """Apply the rules now; they are applied regularly by themselves."""
    answer = console.ask("POST", "/retention", timeout=None, dry_run="true" if dry_run else None)
    rows = [(name, tag) for name, tags in answer["tags"].items() for tag in tags]
    console.show(answer, lambda: table(rows, ("repository", "tag")))


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what was looked at lately.")
@click.option("--report", is_flag=True, help="Only show what is known to be damaged.")
@with_tracker
def scrub(console: Console, everything: bool, report: bool) -> None:
    """Compare stored bytes with their digests, at the rate of scrub.rate."""
    if report:
        answer = console.ask("GET", "/scrub")
    else:
        answer = console.ask("POST", "/scrub", timeout=None, all="true" if everything else None)
    rows = [(one["digest"], size(one["size"]), one["object"]) for one in answer["damaged"]]
    lines = [] if report else pairs_of(_figures(answer["figures"]))
    console.show(answer, lambda: lines + table(rows, ("damaged", "size", "object")))


def _figures(figures: Mapping[str, Any]) -> dict[str, object]:
    return {name: size(value) if name == "bytes" else value for name, value in figures.items()}


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from p2pregistry.settings import parse_duration

    days = text.removesuffix("d")
    try:
        return float(days) * 86400 if days != text else parse_duration(text)
    except ValueError as err:
        raise click.BadParameter(f'{text} is no time such as "30d" or "12h"') from err
