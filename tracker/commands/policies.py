"""``p2pregistry tracker quota``, ``immutable``, ``repo``, ``upload`` and ``status``."""

from __future__ import annotations

import click

from tracker.commands.common import Console, pairs_of, size, span, sure, table, with_tracker


@click.group()
def quota() -> None:
    """How many bytes a namespace, the first part of a repository's name, may hold."""


@quota.command("list")
@with_tracker
def quotas(console: Console) -> None:
    """Namespaces, what they hold and what they may hold."""
    answer = console.ask("GET", "/quotas", n=10_000)
    rows = [(one["namespace"], size(one["used"]), size(one["quota"])) for one in answer["quotas"]]
    console.show(answer, lambda: table(rows, ("namespace", "used", "quota")))


@quota.command("set")
@click.argument("namespace")
@click.argument("bound", metavar="SIZE")
@with_tracker
def set_quota(console: Console, namespace: str, bound: str) -> None:
    """Pushes to NAMESPACE are refused that would make it larger than SIZE, such as 500GiB."""
    from p2pregistry.settings import parse_size

    try:
        count = parse_size(bound)
    except ValueError as err:
        raise click.BadParameter(str(err)) from err
    answer = console.ask("PUT", "/quotas", {"namespace": namespace, "quota": count})
    console.show(answer, lambda: [f"{namespace} holds {size(answer['used'])} of {size(answer['quota'])}"])


@quota.command("unset")
@click.argument("namespace")
@with_tracker
def unset_quota(console: Console, namespace: str) -> None:
    """Let NAMESPACE grow without bound."""
    answer = console.ask("PUT", "/quotas", {"namespace": namespace, "quota": None})
    console.show(answer, lambda: [f"{namespace} holds {size(answer['used'])}"])


@click.group()
def immutable() -> None:
    """Tags that are never moved and never deleted."""


@immutable.command("list")
@with_tracker
def patterns(console: Console) -> None:
    """All patterns."""
    answer = console.ask("GET", "/immutable")
    rows = [(one["pattern"], one["created"]) for one in answer["immutable"]]
    console.show(answer, lambda: table(rows, ("pattern", "since")))


@immutable.command("add")
@click.argument("pattern")
@with_tracker
def add_pattern(console: Console, pattern: str) -> None:
    """Hold fast all tags that PATTERN covers: a glob over repository:tag, as in 'team/**:v*'."""
    answer = console.ask("POST", "/immutable", {"pattern": pattern})
    console.show(answer, lambda: ["added" if answer["added"] else "it is there already"])


@immutable.command("remove")
@click.argument("pattern")
@with_tracker
def remove_pattern(console: Console, pattern: str) -> None:
    """Let these tags be moved and deleted again."""
    console.show(console.ask("DELETE", "/immutable", pattern=pattern), lambda: ["removed"])


@click.group()
def repo() -> None:
    """What is in the registry."""


@repo.command("list")
@click.option("--after", metavar="NAME", help="Only names after this one.")
@with_tracker
def repositories(console: Console, after: str | None) -> None:
    """Names of repositories."""
    answer = console.ask("GET", "/repositories", n=10_000, after=after)
    console.show(answer, lambda: answer["repositories"])


@repo.command()
@click.argument("repository")
@with_tracker
def tags(console: Console, repository: str) -> None:
    """Tags of REPOSITORY."""
    answer = console.ask("GET", "/tags", repository=repository, n=10_000)
    console.show(answer, lambda: answer["tags"])


@repo.command("delete-tag")
@click.argument("repository")
@click.argument("tag")
@with_tracker
def delete_tag(console: Console, repository: str, tag: str) -> None:
    """Delete TAG of REPOSITORY; the manifest stays until garbage is collected, if that is set."""
    console.show(console.ask("DELETE", "/tags", repository=repository, tag=tag), lambda: ["deleted"])


@repo.command("history")
@click.argument("repository")
@click.argument("tag")
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=100, help="How many lines, the newest ones.")
@with_tracker
def tag_history(console: Console, repository: str, tag: str, limit: int) -> None:
    """Where TAG of REPOSITORY has pointed since when, and who moved it; newest first."""
    answer = console.ask("GET", "/tag-history", repository=repository, tag=tag, n=limit)
    rows = [(one["at"], one["digest"] or "deleted", one["here"], one["actor"] or None) for one in answer["history"]]
    console.show(answer, lambda: table(rows, ("since", "digest", "still here", "by")))


@repo.command()
@click.argument("repository")
@click.argument("tag")
@click.argument("digest")
@with_tracker
def move(console: Console, repository: str, tag: str, digest: str) -> None:
    """Let TAG of REPOSITORY point at DIGEST, a manifest that it has; the tag may be new."""
    answer = console.ask("PUT", "/tags", {"repository": repository, "tag": tag, "digest": digest})
    console.show(answer, lambda: [f"from {answer['before'] or 'nowhere'} to {answer['digest']}"])


@repo.command()
@click.argument("repository")
@click.argument("tag")
@with_tracker
def rollback(console: Console, repository: str, tag: str) -> None:
    """Let TAG of REPOSITORY point where it pointed before, also if it was deleted; see "history"."""
    answer = console.ask("PUT", "/tags", {"repository": repository, "tag": tag})
    console.show(answer, lambda: [f"to {answer['digest']}"])


@repo.command()
@click.argument("repository")
@with_tracker
def public(console: Console, repository: str) -> None:
    """Let everybody pull REPOSITORY, also without an account where auth.anonymous_pull is set."""
    _set_private(console, repository, False)


@repo.command()
@click.argument("repository")
@with_tracker
def private(console: Console, repository: str) -> None:
    """Let only those pull REPOSITORY who were given rights."""
    _set_private(console, repository, True)


def _set_private(console: Console, repository: str, private: bool) -> None:
    answer = console.api("PUT", "repositories", repository, "visibility", document={"private": private})
    console.show(answer, lambda: ["private" if private else "public"])


@repo.command()
@click.argument("repository")
@with_tracker
def show(console: Console, repository: str) -> None:
    """How large REPOSITORY is, and who may pull it."""
    answer = console.api("GET", "repositories", repository)
    shown = {key: value for key, value in answer.items() if key != "actions"} | {"size": size(answer["size"])}
    console.show(answer, lambda: pairs_of(shown))


@repo.command()
@click.argument("repository")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_tracker
def delete(console: Console, repository: str, yes: bool) -> None:
    """Delete REPOSITORY with its tags and manifests; its blobs go when garbage is collected."""
    sure(f"Deleting {repository}", yes)
    console.show(console.api("DELETE", "repositories", repository), lambda: ["deleted"])


@click.group()
def upload() -> None:
    """Uploads that have begun."""


@upload.command("list")
@with_tracker
def uploads(console: Console) -> None:
    """All of them, of every tracker."""
    answer = console.ask("GET", "/uploads", n=10_000)
    rows = [
        (one["id"], one["repository"], size(one["size"]), one["actor"], span(one["idle"]), one["held"])
        for one in answer["uploads"]
    ]
    console.show(answer, lambda: table(rows, ("id", "repository", "durable", "by", "idle", "in work")))


@upload.command()
@click.argument("number", metavar="ID")
@with_tracker
def cancel(console: Console, number: str) -> None:
    """Forget an upload and its bytes."""
    console.show(console.ask("DELETE", "/uploads", id=number), lambda: ["cancelled"])


@click.command()
@with_tracker
def status(console: Console) -> None:
    """Whether the running tracker is well."""
    answer = console.ask("GET", "/status")
    shown = {**answer, "uptime": span(answer["uptime"]), "free": size(answer["free"])}
    console.show(answer, lambda: pairs_of(shown))
