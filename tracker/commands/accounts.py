"""``p2pregistry tracker user ...``, ``tracker token ...`` and ``tracker setup-url``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from tracker.commands.common import Console, pairs_of, seconds, span, sure, table, with_tracker

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
repositories_option = click.option("--repositories", is_flag=True, help="Delete the repositories of its namespace too.")


@click.command("setup-url")
@with_tracker
def setup_url(console: Console) -> None:
    """Print a URL at which the first administrator can be made, once, while there is none."""
    answer = console.ask("POST", "/setup", {})
    console.show(answer, lambda: [str(answer["url"])])
    if not console.as_json:
        click.echo(f"it is good for {span(answer['lifetime'])}; an earlier one is good no longer", err=True)


@click.group()
def user() -> None:
    """Who may log in."""


def _password_options(command: Callable[..., Any]) -> Callable[..., Any]:
    stdin = click.option("--password-stdin", is_flag=True, help="The password is the first line of standard input.")
    made = click.option("--generate", is_flag=True, help="Make a password, and print it: it is not shown again.")
    none = click.option("--no-password", is_flag=True, help="No password: only tokens.")
    return stdin(made(none(command)))


def _password(stdin: bool, generate: bool, none: bool) -> str | None:
    """Never from the command line, where every process could read it."""
    if stdin + generate + none > 1:
        raise click.UsageError("give one of --password-stdin, --generate and --no-password")
    if none:
        return None
    if generate:
        import secrets

        return secrets.token_urlsafe(18)
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise click.UsageError("give one of --password-stdin, --generate and --no-password")
    found: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return found


def _with_password(console: Console, answer: dict[str, Any], line: str, password: str | None, shown: bool) -> None:
    """``shown``: the password was made here, and is told this once."""
    lines = [line, *([f"password {password}  (it is not shown again)"] if shown else [])]
    console.show({**answer, "password": password} if shown else answer, lambda: lines)


@user.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="An administrator, who may do everything.")
@_password_options
@with_tracker
def add(console: Console, name: str, admin: bool, password_stdin: bool, generate: bool, no_password: bool) -> None:
    """Make a user. The password is asked for, unless an option says where it comes from."""
    password = _password(password_stdin, generate, no_password)
    new = {"name": name, "password": password, "administrator": admin}
    answer = console.api("POST", "users", document=new)
    _with_password(console, answer, f"user {name}", password, generate)


@user.command("list")
@with_tracker
def listed(console: Console) -> None:
    """All users."""
    answer = console.all("users", "users")
    rows = [
        (one["name"], one["administrator"], one["has_password"], one["disabled_at"], one["created_at"])
        for one in answer["users"]
    ]
    console.show(answer, lambda: table(rows, ("name", "administrator", "password", "disabled", "since")))


@user.command()
@click.argument("name")
@with_tracker
def show(console: Console, name: str) -> None:
    """What is known of a user."""
    answer = console.api("GET", "users", name)
    console.show(answer, lambda: pairs_of(answer))


@user.command()
@click.argument("name")
@with_tracker
def disable(console: Console, name: str) -> None:
    """Let nobody be this user until enabled: password and tokens are good for nothing, docker's logins end for good."""
    answer = console.api("PUT", "users", name, "disabled", document={"disabled": True})
    console.show(answer, lambda: ["disabled"])


@user.command()
@click.argument("name")
@with_tracker
def enable(console: Console, name: str) -> None:
    """Take that back."""
    answer = console.api("PUT", "users", name, "disabled", document={"disabled": False})
    console.show(answer, lambda: ["enabled"])


@user.command()
@click.argument("name")
@_password_options
@with_tracker
def password(console: Console, name: str, password_stdin: bool, generate: bool, no_password: bool) -> None:
    """Set a password. Logins of docker with the old one end; tokens stay."""
    new = _password(password_stdin, generate, no_password)
    answer = console.api("PUT", "users", name, "password", document={"password": new})
    _with_password(console, answer, "changed", new, generate)


@user.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="No longer.")
@with_tracker
def admin(console: Console, name: str, off: bool) -> None:
    """Make a user administrator, who may do everything."""
    answer = console.api("PUT", "users", name, "administrator", document={"administrator": not off})
    console.show(answer, lambda: ["no administrator any more" if off else "an administrator"])


@user.command()
@click.argument("name")
@click.argument("to")
@with_tracker
def rename(console: Console, name: str, to: str) -> None:
    """Rename a user, with the repositories below the name. Nobody else gets the old name."""
    answer = console.api("PUT", "users", name, "name", document={"name": to})
    console.show(answer, lambda: ["renamed"])


@user.command()
@click.argument("name")
@repositories_option
@yes_option
@with_tracker
def delete(console: Console, name: str, repositories: bool, yes: bool) -> None:
    """Delete a user. What he did stays in the audit log, and nobody else gets the name."""
    sure(f"Deleting {name}", yes)
    answer = console.api("DELETE", "users", name, repositories="true" if repositories else None)
    console.show(answer, lambda: ["deleted"])


@click.group()
def token() -> None:
    """Secrets that stand in place of a password: personal ones, and those of robots."""


@token.command("add")
@click.argument("account")
@click.argument("name")
@click.option("--robot", is_flag=True, help="A robot's, of a user or an organization, which is no person.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="As in 'repository:acme/**:pull,push'.")
@click.option("--expires", metavar="TIME", help="How long it is good, such as 90d; for ever if not given.")
@with_tracker
def add_token(
    console: Console, account: str, name: str, robot: bool, scopes: tuple[str, ...], expires: str | None
) -> None:
    """Make a token of ACCOUNT called NAME, and print it: it is not shown again.

    Nothing else goes to standard output. With scopes it may do only what they say; a robot's always has some.
    """
    new = {
        "kind": "robot" if robot else "personal",
        "name": name,
        "scopes": list(scopes) or None,
        "lifetime": None if expires is None else seconds(expires, "--expires"),
    }
    answer = console.api("POST", "accounts", account, "tokens", document=new)
    console.show(answer, lambda: [str(answer["secret"])])
    if not console.as_json:
        made = answer["token"]
        click.echo(
            f"token {made['id']} of {account}: {_scopes(made)}, until {made['expires_at'] or 'revoked'}", err=True
        )


@token.command("list")
@click.argument("account")
@click.option(
    "--kind", type=click.Choice(["personal", "robot", "refresh"]), help="Only these; refresh: of docker login."
)
@with_tracker
def list_tokens(console: Console, account: str, kind: str | None) -> None:
    """Tokens of ACCOUNT, newest first."""
    answer = console.api("GET", "accounts", account, "tokens", kind=kind)
    rows = [
        (
            one["id"],
            one["kind"],
            one["name"],
            f"...{one['hint']}",
            _scopes(one),
            one["expires_at"],
            one["last_used_at"],
            one["revoked_at"],
        )
        for one in answer["tokens"]
    ]
    head = ("id", "kind", "name", "ends in", "scopes", "expires", "last used", "revoked")
    console.show(answer, lambda: table(rows, head))


@token.command()
@click.argument("account")
@click.argument("number", metavar="ID", type=int)
@with_tracker
def revoke(console: Console, account: str, number: int) -> None:
    """Make a token good for nothing, and what was made with it."""
    answer = console.api("DELETE", "accounts", account, "tokens", str(number))
    console.show(answer, lambda: ["revoked"])


def _scopes(one: dict[str, Any]) -> str:
    return "all that the account may" if one["scopes"] is None else " ".join(one["scopes"])
