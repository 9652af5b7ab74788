"""``p2pregistry tracker webhook ...`` and ``tracker audit``."""

from __future__ import annotations

from pathlib import Path

import click

from tracker.commands.common import Console, table, with_tracker


@click.group()
def webhook() -> None:
    """Tell other programs of pushes, deletions and exceeded quotas."""


@webhook.command()
@click.argument("url")
@click.option("--repository", "repositories", multiple=True, metavar="GLOB", help="Only these; may be repeated.")
@click.option("--type", "types", multiple=True, metavar="GLOB", help="Only these types of events; may be repeated.")
@click.option(
    "--secret-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="A file whose first line is the secret; without one a secret is made and printed once.",
)
@with_tracker
def add(
    console: Console, url: str, repositories: tuple[str, ...], types: tuple[str, ...], secret_file: Path | None
) -> None:
    """POST a signed CloudEvent to URL for each event from now on."""
    import base64
    import secrets

    if secret_file is None:
        secret = secrets.token_hex(32)
    else:
        secret = secret_file.read_text(encoding="utf-8").partition("\n")[0].strip()
    document = {
        "url": url,
        "secret": base64.b64encode(secret.encode()).decode(),
        "repositories": list(repositories),
        "types": list(types),
    }
    made = console.ask("POST", "/webhooks", document)
    shown = made if secret_file is not None else {**made, "secret": secret}
    lines = [f"webhook {made['id']}"]
    if secret_file is None:
        lines.append(f"secret {secret}  (it is not shown again)")
    console.show(shown, lambda: lines)


@webhook.command("list")
@with_tracker
def listed(console: Console) -> None:
    """All webhooks."""
    answer = console.ask("GET", "/webhooks")
    rows = [
        (one["id"], one["url"], _globs(one["repositories"]), _globs(one["types"]), one["enabled"])
        for one in answer["webhooks"]
    ]
    console.show(answer, lambda: table(rows, ("id", "url", "repositories", "types", "enabled")))


@webhook.command()
@click.argument("number", metavar="ID", type=int)
@with_tracker
def remove(console: Console, number: int) -> None:
    """Remove a webhook and what waits for it."""
    console.show(console.ask("DELETE", "/webhooks", id=number), lambda: ["removed"])


@webhook.command()
@click.argument("number", metavar="ID", type=int)
@with_tracker
def enable(console: Console, number: int) -> None:
    """Deliver again; what waited is delivered first."""
    console.show(console.ask("POST", "/webhooks/enable", id=number, on="true"), lambda: ["enabled"])


@webhook.command()
@click.argument("number", metavar="ID", type=int)
@with_tracker
def disable(console: Console, number: int) -> None:
    """Deliver nothing until it is enabled."""
    console.show(console.ask("POST", "/webhooks/enable", id=number, on="false"), lambda: ["disabled"])


@webhook.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--limit", type=int, default=50, show_default=True, help="How many, newest first.")
@with_tracker
def deliveries(console: Console, number: int, limit: int) -> None:
    """How the latest events fare."""
    answer = console.ask("GET", "/webhooks/deliveries", id=number, n=limit)
    rows = [
        (
            one["id"],
            one["at"],
            one["type"],
            one["repository"],
            one["state"],
            one["attempts"],
            one["last_error"] or one["last_status"],
        )
        for one in answer["deliveries"]
    ]
    console.show(answer, lambda: table(rows, ("id", "at", "type", "repository", "state", "tries", "last answer")))


@webhook.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--since", metavar="TIME", help="Only events since this time (ISO 8601).")
@click.option("--failed", is_flag=True, help="Only what was never taken.")
@with_tracker
def replay(console: Console, number: int, since: str | None, failed: bool) -> None:
    """Deliver events again."""
    answer = console.ask("POST", "/webhooks/replay", id=number, since=since, failed="true" if failed else None)
    console.show(answer, lambda: [f"{answer['replayed']} deliveries are due again"])


@click.command()
@click.option("--repository", metavar="GLOB", help="Of these repositories.")
@click.option("--actor", metavar="NAME", help="By this account.")
@click.option("--account", metavar="ID", type=int, help="By the account of this id, whatever its name was.")
@click.option("--action", metavar="ACTION", help='Such as "manifest.push", or "manifest" for all of its kind.')
@click.option("--since", metavar="TIME", help="From this time on (ISO 8601).")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--limit", type=int, default=50, show_default=True, help="How many, newest first.")
@with_tracker
def audit(
    console: Console,
    repository: str | None,
    actor: str | None,
    account: int | None,
    action: str | None,
    since: str | None,
    until: str | None,
    limit: int,
) -> None:
    """Who wrote what, when, from where."""
    answer = console.ask(
        "GET",
        "/audit",
        repository=repository,
        actor=actor,
        account=account,
        action=action,
        since=since,
        until=until,
        n=limit,
    )
    rows = [
        (one["at"], one["actor"], one["account_id"], one["address"], one["action"], _what(one), one["digest"])
        for one in answer["audit"]
    ]
    console.show(answer, lambda: table(rows, ("at", "who", "account", "from", "did", "what", "digest")))


def _globs(patterns: list[str]) -> str:
    return " ".join(patterns) or "all"


def _what(line: dict[str, str | None]) -> str | None:
    repository, reference = line["repository"], line["reference"]
    if repository is None:
        return reference or None  # an account
    return repository if reference is None else f"{repository}:{reference}"
