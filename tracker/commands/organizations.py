"""``p2pregistry tracker org ...``"""

from __future__ import annotations

from typing import Any

import click

from tracker.commands.accounts import repositories_option, yes_option
from tracker.commands.common import Console, pairs_of, sure, table, with_tracker


@click.group()
def org() -> None:
    """Organizations: namespaces of several users."""


@org.command()
@click.argument("name")
@click.option("--owner", required=True, metavar="USER", help="Who owns it.")
@with_tracker
def add(console: Console, name: str, owner: str) -> None:
    """Make an organization."""
    answer = console.api("POST", "organizations", document={"name": name, "owner": owner})
    console.show(answer, lambda: [f"organization {name}"])


@org.command("list")
@with_tracker
def listed(console: Console) -> None:
    """All organizations."""
    answer = console.all("organizations", "organizations")
    rows = [(one["name"], one["created_at"]) for one in answer["organizations"]]
    console.show(answer, lambda: table(rows, ("name", "since")))


@org.command()
@click.argument("name")
@with_tracker
def show(console: Console, name: str) -> None:
    """An organization, its members, and its teams with what they may do."""
    answer = {
        **console.api("GET", "organizations", name),
        **console.api("GET", "organizations", name, "members"),
        **console.api("GET", "organizations", name, "teams"),
    }
    facts = {"name": answer["name"], "since": answer["created_at"]}
    lines = [*pairs_of(facts), *_members(answer), *_teams(answer)]
    console.show(answer, lambda: lines)


@org.command()
@click.argument("name")
@click.argument("to")
@with_tracker
def rename(console: Console, name: str, to: str) -> None:
    """Rename an organization, with its repositories and grants. Nobody else gets the old name."""
    answer = console.api("PUT", "organizations", name, "name", document={"name": to})
    console.show(answer, lambda: ["renamed"])


@org.command()
@click.argument("name")
@repositories_option
@yes_option
@with_tracker
def delete(console: Console, name: str, repositories: bool, yes: bool) -> None:
    """Delete an organization with its teams and robots. Nobody else gets the name."""
    sure(f"Deleting {name}", yes)
    answer = console.api("DELETE", "organizations", name, repositories="true" if repositories else None)
    console.show(answer, lambda: ["deleted"])


@org.group()
def member() -> None:
    """Who is in an organization: owners and admins may do everything with its repositories, members what teams may."""


@member.command("list")
@click.argument("organization")
@with_tracker
def list_members(console: Console, organization: str) -> None:
    """Members of ORGANIZATION."""
    answer = console.api("GET", "organizations", organization, "members")
    console.show(answer, lambda: _members(answer))


@member.command("set")
@click.argument("organization")
@click.argument("user")
@click.argument("role", type=click.Choice(["owner", "admin", "member"]))
@with_tracker
def set_member(console: Console, organization: str, user: str, role: str) -> None:
    """Let USER in, or change the role."""
    answer = console.api("PUT", "organizations", organization, "members", user, document={"role": role})
    console.show(answer, lambda: [f"{role} of {organization}"])


@member.command("remove")
@click.argument("organization")
@click.argument("user")
@with_tracker
def remove_member(console: Console, organization: str, user: str) -> None:
    """Remove USER, also from the teams."""
    answer = console.api("DELETE", "organizations", organization, "members", user)
    console.show(answer, lambda: ["removed"])


@org.group()
def team() -> None:
    """Members of an organization who may do the same."""


@team.command("list")
@click.argument("organization")
@with_tracker
def list_teams(console: Console, organization: str) -> None:
    """Teams of ORGANIZATION with their members and grants."""
    answer = console.api("GET", "organizations", organization, "teams")
    console.show(answer, lambda: _teams(answer))


@team.command("add")
@click.argument("organization")
@click.argument("name")
@with_tracker
def add_team(console: Console, organization: str, name: str) -> None:
    """Make a team."""
    answer = console.api("POST", "organizations", organization, "teams", document={"name": name})
    console.show(answer, lambda: [f"team {name}"])


@team.command("rename")
@click.argument("organization")
@click.argument("name")
@click.argument("to")
@with_tracker
def rename_team(console: Console, organization: str, name: str, to: str) -> None:
    """Rename a team; its members and grants stay."""
    answer = console.api("PUT", "organizations", organization, "teams", name, "name", document={"name": to})
    console.show(answer, lambda: ["renamed"])


@team.command("delete")
@click.argument("organization")
@click.argument("name")
@with_tracker
def delete_team(console: Console, organization: str, name: str) -> None:
    """Delete a team with all it grants."""
    answer = console.api("DELETE", "organizations", organization, "teams", name)
    console.show(answer, lambda: ["deleted"])


@team.command("add-member")
@click.argument("organization")
@click.argument("name")
@click.argument("user")
@with_tracker
def add_team_member(console: Console, organization: str, name: str, user: str) -> None:
    """Let USER, a member of the organization, into team NAME."""
    answer = console.api("PUT", "organizations", organization, "teams", name, "members", user)
    console.show(answer, lambda: ["added"])


@team.command("remove-member")
@click.argument("organization")
@click.argument("name")
@click.argument("user")
@with_tracker
def remove_team_member(console: Console, organization: str, name: str, user: str) -> None:
    """Remove USER from team NAME."""
    answer = console.api("DELETE", "organizations", organization, "teams", name, "members", user)
    console.show(answer, lambda: ["removed"])


@org.group()
def grant() -> None:
    """What teams may do."""


@grant.command("set")
@click.argument("organization")
@click.argument("name", metavar="TEAM")
@click.argument("pattern")
@click.argument("actions")
@with_tracker
def set_grant(console: Console, organization: str, name: str, pattern: str, actions: str) -> None:
    """Let TEAM do ACTIONS (pull,push,delete,admin) with repositories that PATTERN covers, as in 'acme/web/**'. Push
    implies pull, admin implies all."""
    document = {"pattern": pattern, "actions": [one.strip() for one in actions.split(",")]}
    answer = console.api("PUT", "organizations", organization, "teams", name, "grants", document=document)
    console.show(answer, lambda: [f"{name}: {pattern} {actions}"])


@grant.command("remove")
@click.argument("organization")
@click.argument("name", metavar="TEAM")
@click.argument("pattern")
@with_tracker
def remove_grant(console: Console, organization: str, name: str, pattern: str) -> None:
    """Take that back."""
    answer = console.api("DELETE", "organizations", organization, "teams", name, "grants", pattern=pattern)
    console.show(answer, lambda: ["removed"])


def _members(answer: dict[str, Any]) -> list[str]:
    rows = [(one["user"], one["role"], one["since"]) for one in answer["members"]]
    return table(rows, ("member", "role", "since"))


def _teams(answer: dict[str, Any]) -> list[str]:
    rows = [
        (
            one["name"],
            " ".join(one["members"]),
            "; ".join(f"{each['pattern']} {','.join(each['actions'])}" for each in one["grants"]),
        )
        for one in answer["teams"]
    ]
    return table(rows, ("team", "members", "may"))
