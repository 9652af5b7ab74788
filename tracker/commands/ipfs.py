"""``p2pregistry tracker ipfs ...``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from tracker.commands.common import Console, size, table, with_tracker


@click.group()
def ipfs() -> None:
    """Repositories that are published to IPFS."""


@ipfs.command()
@click.argument("pattern", metavar="REPO-GLOB")
@with_tracker
def publish(console: Console, pattern: str) -> None:
    """Publish the public repositories of these names, now and in future. What was published cannot be taken back."""
    console.api("PUT", "ipfs", "patterns", document={"pattern": pattern})
    answer = console.api("GET", "ipfs")
    lines = [f"{pattern} is published"]
    if not answer["services"]:
        lines.append("nowhere yet: ipfs.services in the tracker's settings names no service")
    console.show({"pattern": pattern, "services": answer["services"]}, lambda: lines)


@ipfs.command()
@click.argument("pattern", metavar="REPO-GLOB")
@with_tracker
def unpublish(console: Console, pattern: str) -> None:
    """Take back what `publish` said of exactly this pattern, and unpin what no other one names."""
    console.api("DELETE", "ipfs", "patterns", pattern=pattern)
    console.show({"pattern": pattern}, lambda: [f"{pattern} is not published any more"])


@ipfs.command()
@click.argument("what", metavar="[REPO[:TAG|@DIGEST]]", required=False)
@with_tracker
def status(console: Console, what: str | None) -> None:
    """How far publishing has come: of everything, of a repository, or of an image with its root CIDs."""
    if what is None:
        answer = console.api("GET", "ipfs")
        console.show(answer, lambda: _everything(answer))
        return
    name, reference = _split(what)
    if reference is None:
        answer = console.api("GET", "repositories", name, "ipfs")
        console.show(answer, lambda: [_published(answer), *_figures(answer)])
        return
    answer = console.api("GET", "repositories", name, "ipfs", reference)
    console.show(answer, lambda: [_published(answer), *_items(answer)])


@ipfs.command()
@with_tracker
def retry(console: Console) -> None:
    """Try again now what failed or waits."""
    answer = console.api("POST", "ipfs", "retry")
    console.show(answer, lambda: [f"{answer['retried']} are tried again"])


def _split(what: str) -> tuple[str, str | None]:
    """Name and tag or digest."""
    name, at, digest = what.partition("@")
    if at:
        return name, digest
    name, _, tag = what.partition(":")
    return name, tag or None


def _published(answer: dict[str, Any]) -> str:
    return "published" if answer["published"] else "no pattern names it: it is not published"


def _everything(answer: dict[str, Any]) -> Iterator[str]:
    yield f"services: {' '.join(answer['services']) or 'none'}"
    yield from table([(one["pattern"], one["created_at"], one["created_by"]) for one in answer["patterns"]], _PATTERNS)
    yield from _figures(answer)
    failed = [
        (one["kind"], one["digest"], state["service"], state["state"], state["attempts"], state["error"])
        for one in answer["failures"]
        for state in one["services"]
    ]
    yield from table(failed, ("kind", "digest", "service", "state", "tries", "last answer"))


_PATTERNS = ("repositories", "since", "by")


def _figures(answer: dict[str, Any]) -> list[str]:
    rows = [(one["service"], one["state"], one["count"], size(one["size"])) for one in answer["figures"]]
    return table(rows, ("service", "state", "count", "size"))


def _items(answer: dict[str, Any]) -> Iterator[str]:
    rows = []
    for one in answer["items"]:
        fares = [f"{state['service']} {state['state']}" for state in one["services"]]
        rows.append((one["kind"], size(one["size"]), one["cid"], ", ".join(fares) or "-"))
    yield from table(rows, ("kind", "size", "root", "state"))
    for child in answer["children"]:
        yield f"lists {child}"
