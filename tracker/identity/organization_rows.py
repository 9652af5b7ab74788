"""Organisations in Postgres: their members, teams and grants. Each function runs inside a transaction.

Whoever changes something of an organisation holds its row, so changes of one come one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracker.catalog.trail import By
from tracker.db import Connection
from tracker.identity.account_rows import account, add, held, noted
from tracker.identity.base import Account, Member, Team, conflict, last_owner, unknown_account, unknown_team
from tracker.identity.rights import Grant, Role

_MEMBERS: Final = """
select o.name, u.name, m.role, m.created_at from members m
join accounts o on o.id = m.organization_id join accounts u on u.id = m.user_id
where (%s::bigint is null or o.id = %s) and (%s::bigint is null or u.id = %s) order by o.name, u.name
"""
_ROLE: Final = "select role from members where organization_id = %s and user_id = %s"
_OWNERS: Final = "select user_id from members where organization_id = %s and role = 'owner'"
_SET: Final = """
insert into members (organization_id, user_id, role) values (%s, %s, %s)
on conflict (organization_id, user_id) do update set role = excluded.role
"""
_REMOVE: Final = "delete from members where organization_id = %s and user_id = %s"
_LEAVE: Final = """
delete from team_members tm using teams t where t.id = tm.team_id and t.organization_id = %s and tm.user_id = %s
"""
_TEAMS: Final = """
select t.name, t.created_at,
    array(select u.name from team_members tm join accounts u on u.id = tm.user_id where tm.team_id = t.id
        order by u.name),
    (select coalesce(jsonb_agg(jsonb_build_array(g.pattern, g.actions) order by g.pattern), '[]') from team_grants g
        where g.team_id = t.id)
from teams t where t.organization_id = %s order by t.name
"""
_TEAM: Final = "select id from teams where organization_id = %s and name = %s"
_ADD_TEAM: Final = """
insert into teams (organization_id, name) values (%s, %s) on conflict do nothing returning created_at
"""
_JOIN: Final = "insert into team_members (team_id, user_id) values (%s, %s) on conflict do nothing"
_PART: Final = "delete from team_members where team_id = %s and user_id = %s"
_GRANT: Final = """
insert into team_grants (team_id, pattern, actions) values (%s, %s, %s)
on conflict (team_id, pattern) do update set actions = excluded.actions
"""
_UNGRANT: Final = "delete from team_grants where team_id = %s and pattern = %s"


def add_organization(connection: Connection, name: str, owner: str, by: By) -> Account:
    """See Accounts."""
    user = held(connection, owner, "user")
    made = add(connection, "organization", name, None, False)
    connection.execute(_SET, (made.id, user.id, "owner"))
    noted(connection, by, "organization.add", made, owner=owner)
    return made


def members(connection: Connection, organization: str) -> list[Member]:
    """See Accounts."""
    number = _known(connection, organization, "organization")
    return [Member(*row) for row in connection.execute(_MEMBERS, (number, number, None, None)).fetchall()]


def memberships(connection: Connection, user: str) -> list[Member]:
    """See Accounts."""
    number = _known(connection, user, "user")
    return [Member(*row) for row in connection.execute(_MEMBERS, (None, None, number, number)).fetchall()]


def _known(connection: Connection, name: str, kind: str) -> int:
    found = account(connection, name)
    if found is None or found.kind != kind:
        raise unknown_account(name)
    return found.id


def set_member(connection: Connection, organization: str, user: str, role: Role, by: By) -> None:
    """See Accounts."""
    within = held(connection, organization, "organization")
    number = _known(connection, user, "user")
    before = _role(connection, within.id, number)
    if before == role:
        return
    if before == "owner":
        _keep_owner(connection, within, number)
    connection.execute(_SET, (within.id, number, role))
    noted(connection, by, "member.set", within, user=user, role=role, before=before)


def remove_member(connection: Connection, organization: str, user: str, by: By) -> bool:
    """See Accounts."""
    within = held(connection, organization, "organization")
    found = account(connection, user)
    before = None if found is None else _role(connection, within.id, found.id)
    if found is None or before is None:
        return False
    if before == "owner":
        _keep_owner(connection, within, found.id)
    connection.execute(_LEAVE, (within.id, found.id))
    connection.execute(_REMOVE, (within.id, found.id))
    noted(connection, by, "member.remove", within, user=user, before=before)
    return True


def _role(connection: Connection, organization_id: int, user_id: int) -> Role | None:
    row = connection.execute(_ROLE, (organization_id, user_id)).fetchone()
    return None if row is None else row[0]


def _keep_owner(connection: Connection, organization: Account, user_id: int) -> None:
    if connection.execute(_OWNERS, (organization.id,)).fetchall() == [(user_id,)]:
        raise last_owner(organization.name)


def teams(connection: Connection, organization: str) -> list[Team]:
    """See Accounts."""
    number = _known(connection, organization, "organization")
    return [
        Team(organization, name, created, tuple(users), tuple(Grant(p, frozenset(actions)) for p, actions in grants))
        for name, created, users, grants in connection.execute(_TEAMS, (number,)).fetchall()
    ]


def _team(connection: Connection, organization: str, team: str) -> tuple[Account, int]:
    within = held(connection, organization, "organization")
    row = connection.execute(_TEAM, (within.id, team)).fetchone()
    if row is None:
        raise unknown_team(team)
    return within, int(row[0])


def add_team(connection: Connection, organization: str, team: str, by: By) -> Team:
    """See Accounts."""
    within = held(connection, organization, "organization")
    row = connection.execute(_ADD_TEAM, (within.id, team)).fetchone()
    if row is None:
        raise conflict(f"there is a team {team}")
    noted(connection, by, "team.add", within, team=team)
    return Team(organization, team, row[0])


def rename_team(connection: Connection, organization: str, team: str, to: str, by: By) -> Team:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    if connection.execute(_TEAM, (within.id, to)).fetchone() is not None:
        raise conflict(f"there is a team {to}")
    connection.execute("update teams set name = %s where id = %s", (to, number))
    found = next(one for one in teams(connection, organization) if one.name == to)
    noted(connection, by, "team.rename", within, team=team, to=to)
    return found


def delete_team(connection: Connection, organization: str, team: str, by: By) -> None:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    connection.execute("delete from teams where id = %s", (number,))
    noted(connection, by, "team.delete", within, team=team)


def add_team_member(connection: Connection, organization: str, team: str, user: str, by: By) -> bool:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    user_id = _known(connection, user, "user")
    if _role(connection, within.id, user_id) is None:
        raise conflict(f"{user} is not a member of {organization}")
    if connection.execute(_JOIN, (number, user_id)).rowcount == 0:
        return False
    noted(connection, by, "team.member.add", within, team=team, user=user)
    return True


def remove_team_member(connection: Connection, organization: str, team: str, user: str, by: By) -> bool:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    found = account(connection, user)
    if found is None or connection.execute(_PART, (number, found.id)).rowcount == 0:
        return False
    noted(connection, by, "team.member.remove", within, team=team, user=user)
    return True


def set_grant(
    connection: Connection, organization: str, team: str, pattern: str, actions: Sequence[str], by: By
) -> None:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    connection.execute(_GRANT, (number, pattern, list(actions)))
    noted(connection, by, "grant.set", within, team=team, pattern=pattern, actions=list(actions))


def remove_grant(connection: Connection, organization: str, team: str, pattern: str, by: By) -> bool:
    """See Accounts."""
    within, number = _team(connection, organization, team)
    if connection.execute(_UNGRANT, (number, pattern)).rowcount == 0:
        return False
    noted(connection, by, "grant.remove", within, team=team, pattern=pattern)
    return True
