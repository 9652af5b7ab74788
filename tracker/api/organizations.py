"""Organisations, their members, and their teams with what they may do."""

from __future__ import annotations

from tracker.api import documents as d
from tracker.api.asked import Asked, Services, Who, naming, page, wrong
from tracker.api.rules import denied, unknown
from tracker.identity.base import Account, Team, unknown_account, unknown_team
from tracker.identity.rights import check_pattern


async def listed(asked: Asked[d.Nothing, d.Page]) -> d.Organizations:
    """All of them for administrators, for others their own."""
    accounts, n, after = asked.services.accounts, asked.query.n, asked.query.after
    if asked.who.rights.administrator:
        found = await accounts.accounts("organization", after=after, limit=n + 1)
    else:
        mine = sorted(name for name in asked.who.rights.roles if name > after)[: n + 1]
        found = [one for one in [await accounts.account(name) for name in mine] if one is not None]
    some, following = page(found, n, lambda one: one.name)
    return d.Organizations([_shown(asked.who, one) for one in some], following)


async def add(asked: Asked[d.NewOrganization, d.Nothing]) -> d.Organization:
    new = asked.body
    owner = new.owner or asked.who.name
    if not owner:
        raise wrong("owner", "say which user is to own it")
    with naming("name"):
        return _shown(asked.who, await asked.services.accounts.add_organization(new.name, owner, asked.by))


async def show(asked: Asked[d.Nothing, d.Nothing]) -> d.Organization:
    return _shown(asked.who, await _organization(asked.services, asked.path["organization"]))


async def rename(asked: Asked[d.NewName, d.Nothing]) -> d.Organization:
    name = (await _organization(asked.services, asked.path["organization"])).name
    with naming("name"):
        return _shown(asked.who, await asked.services.accounts.rename_account(name, asked.body.name, asked.by))


async def delete(asked: Asked[d.Nothing, d.Deletion]) -> None:
    name = (await _organization(asked.services, asked.path["organization"])).name
    await asked.services.accounts.delete_account(name, asked.by, repositories=asked.query.repositories)


async def members(asked: Asked[d.Nothing, d.Nothing]) -> d.Members:
    found = await asked.services.accounts.members(asked.path["organization"])
    return d.Members([d.Member(one.user, one.role, one.since) for one in found])


async def set_member(asked: Asked[d.NewRole, d.Nothing]) -> None:
    organization, user = asked.path["organization"], asked.path["user"]
    if asked.body.role == "owner":
        _owner(asked.who, organization)
    await _spare_owners(asked.services, asked.who, organization, user)
    await asked.services.accounts.set_member(organization, user, asked.body.role, asked.by)


async def remove_member(asked: Asked[d.Nothing, d.Nothing]) -> None:
    """Everybody may leave."""
    organization, user = asked.path["organization"], asked.path["user"]
    if user != asked.who.name:
        if not asked.who.rights.manages(organization):
            raise denied("only owners and admins of the organization may remove others")
        await _spare_owners(asked.services, asked.who, organization, user)
    if not await asked.services.accounts.remove_member(organization, user, asked.by):
        raise unknown("MEMBER", "the organization has no such member")


def _owner(who: Who, organization: str) -> None:
    if not who.rights.owns(organization):
        raise denied("only owners say who the owners are")


async def _spare_owners(services: Services, who: Who, organization: str, user: str) -> None:
    """Raises RequestError (DENIED) if the user is an owner, and the one who asks is none."""
    if who.rights.owns(organization):
        return
    found = await services.accounts.members(organization)
    if any(one.user == user and one.role == "owner" for one in found):
        _owner(who, organization)


async def teams(asked: Asked[d.Nothing, d.Nothing]) -> d.Teams:
    return d.Teams([_team(one) for one in await asked.services.accounts.teams(asked.path["organization"])])


async def add_team(asked: Asked[d.NewTeam, d.Nothing]) -> d.Team:
    with naming("name"):
        return _team(await asked.services.accounts.add_team(asked.path["organization"], asked.body.name, asked.by))


async def show_team(asked: Asked[d.Nothing, d.Nothing]) -> d.Team:
    for one in await asked.services.accounts.teams(asked.path["organization"]):
        if one.name == asked.path["team"]:
            return _team(one)
    raise unknown_team(asked.path["team"])


async def rename_team(asked: Asked[d.TeamName, d.Nothing]) -> d.Team:
    organization, team = asked.path["organization"], asked.path["team"]
    with naming("name"):
        return _team(await asked.services.accounts.rename_team(organization, team, asked.body.name, asked.by))


async def delete_team(asked: Asked[d.Nothing, d.Nothing]) -> None:
    await asked.services.accounts.delete_team(asked.path["organization"], asked.path["team"], asked.by)


async def add_team_member(asked: Asked[d.Nothing, d.Nothing]) -> None:
    """Repeating is no error."""
    organization, team, user = asked.path["organization"], asked.path["team"], asked.path["user"]
    await asked.services.accounts.add_team_member(organization, team, user, asked.by)


async def remove_team_member(asked: Asked[d.Nothing, d.Nothing]) -> None:
    organization, team, user = asked.path["organization"], asked.path["team"], asked.path["user"]
    if not await asked.services.accounts.remove_team_member(organization, team, user, asked.by):
        raise unknown("MEMBER", "the team has no such member")


async def set_grant(asked: Asked[d.Grant, d.Nothing]) -> None:
    organization, team, grant = asked.path["organization"], asked.path["team"], asked.body
    with naming("pattern"):
        await asked.services.accounts.set_grant(organization, team, grant.pattern, grant.actions, asked.by)


async def remove_grant(asked: Asked[d.Nothing, d.Pattern]) -> None:
    organization, team, pattern = asked.path["organization"], asked.path["team"], asked.query.pattern
    with naming("pattern"):
        check_pattern(pattern, organization)
    if not await asked.services.accounts.remove_grant(organization, team, pattern, asked.by):
        raise unknown("GRANT", "the team has no such grant")


async def _organization(services: Services, name: str) -> Account:
    found = await services.accounts.account(name)
    if found is None or found.kind != "organization":
        raise unknown_account(name)
    return found


def _shown(who: Who, account: Account) -> d.Organization:
    return d.Organization(account.name, account.created, who.rights.roles.get(account.name))


def _team(team: Team) -> d.Team:
    grants = [d.Grant(one.pattern, [action for action in ORDER if action in one.actions]) for one in team.grants]
    return d.Team(team.name, team.created, list(team.members), grants)


#: In which actions are told.
ORDER: tuple[d.Action, ...] = ("pull", "push", "delete", "admin")
