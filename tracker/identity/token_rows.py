"""Tokens and rights in Postgres. Each function runs inside a transaction, or reads with one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from p2pregistry.trust.access import Scope, parse_scopes
from tracker.catalog.trail import By, record
from tracker.db import Connection
from tracker.identity.account_rows import held, noted
from tracker.identity.base import (
    MOST_REFRESH,
    MOST_TOKENS,
    USED_EVERY,
    Token,
    TokenKind,
    check_token,
    conflict,
    no_identity,
    unknown_account,
)
from tracker.identity.rights import Grant, Identity, Rights

#: That a token t, asked for with p or with none, is good.
_GOOD: Final = """
t.revoked_at is null and (t.expires_at is null or t.expires_at > now())
and (t.parent_id is null or (p.revoked_at is null and (p.expires_at is null or p.expires_at > now())))
"""
_SHOWN: Final = f"""
select a.id, a.name, a.administrator, t.id, t.scopes, t.kind, t.name,
    t.last_used_at is null or t.last_used_at < now() - %s * interval '1 second'
from tokens t join accounts a on a.id = t.account_id left join tokens p on p.id = t.parent_id
where t.hash = %s and (t.kind = 'refresh') = %s and a.disabled_at is null and {_GOOD}
"""  # noqa: S608 - constants
_USED: Final = """
update tokens set last_used_at = now()
where id = %s and (last_used_at is null or last_used_at < now() - %s * interval '1 second')
"""
_USER: Final = """
select id, administrator, case when disabled_at is null then password end from accounts
where name = %s and kind = 'user'
"""
_IDENTITY: Final = """
select id, name, administrator from accounts where name = %s and kind = 'user' and disabled_at is null
"""
_RIGHTS: Final = f"""
select a.name, a.administrator, shown.scopes,
    (select coalesce(jsonb_object_agg(o.name, m.role), '{{}}') from members m
        join accounts o on o.id = m.organization_id where m.user_id = a.id),
    (select coalesce(jsonb_agg(jsonb_build_array(g.pattern, g.actions) order by o.name, t.name, g.pattern), '[]')
        from team_members tm join teams t on t.id = tm.team_id join accounts o on o.id = t.organization_id
        join team_grants g on g.team_id = t.id where tm.user_id = a.id)
from accounts a left join (
    select t.id, t.account_id, t.scopes from tokens t left join tokens p on p.id = t.parent_id
    where t.id = %s and {_GOOD}
) shown on shown.account_id = a.id
where a.id = %s and a.disabled_at is null and (%s::bigint is null or shown.id is not null)
"""  # noqa: S608 - constants
_COLUMNS: Final = """t.id, t.kind, a.name, t.name, t.hint, t.scopes, t.created_at, t.created_by, t.expires_at,
t.last_used_at, t.revoked_at"""
_LIST: Final = f"""
select {_COLUMNS} from accounts a left join tokens t on t.account_id = a.id and (%s::text is null or t.kind = %s)
where a.name = %s order by t.id desc
"""  # noqa: S608 - constants
_COUNT: Final = f"""
select count(*) from tokens t left join tokens p on p.id = t.parent_id
where t.account_id = %s and t.kind <> 'refresh' and {_GOOD}
"""  # noqa: S608 - constants
_ADD: Final = f"""
with t as (
    insert into tokens (kind, account_id, name, hash, hint, scopes, created_by, expires_at, parent_id)
    values (%s, %s, %s, %s, %s, %s, %s, now() + %s * interval '1 second', %s) returning *
)
select {_COLUMNS} from t join accounts a on a.id = t.account_id
"""  # noqa: S608 - constants
_ALIVE: Final = f"""
select a.name, t.kind, t.id is null or ({_GOOD}) from accounts a
left join tokens t on t.id = %s and t.account_id = a.id left join tokens p on p.id = t.parent_id
where a.id = %s and a.disabled_at is null and (%s::bigint is null or t.id is not null)
"""  # noqa: S608 - constants
# What has been good for nothing for a month tells nobody anything.
_FORGET_REFRESH: Final = """
delete from tokens where account_id = %s and kind = 'refresh'
    and least(revoked_at, expires_at) < now() - interval '30 days'
"""
_BOUND_REFRESH: Final = """
update tokens set revoked_at = now() where kind = 'refresh' and revoked_at is null and account_id = %s and id not in (
    select id from tokens where account_id = %s and kind = 'refresh' and revoked_at is null order by id desc limit %s
)
"""
_REVOKE: Final = """
update tokens set revoked_at = now() where id = %s and account_id = %s and revoked_at is null returning kind, name
"""


def shown(connection: Connection, hashed: bytes, refresh: bool) -> tuple[Identity, bool] | None:
    """Whose secret this is, and whether its last use is to be noted anew."""
    row = connection.execute(_SHOWN, (USED_EVERY, hashed, refresh)).fetchone()
    if row is None:
        return None
    account_id, name, administrator, token_id, scopes, kind, token, stale = row
    narrowed = _scopes(scopes)
    whole = administrator and narrowed is None
    return Identity(account_id, name, whole, token_id, narrowed, "" if kind == "refresh" else token), stale


def used(connection: Connection, token_id: int) -> None:
    """Note that a token was used."""
    connection.execute(_USED, (token_id, USED_EVERY))


def password_of(connection: Connection, name: str) -> tuple[Identity, str | None] | None:
    """The user of this name, and what is kept of the password; None if it is disabled or has none."""
    row = connection.execute(_USER, (name,)).fetchone()
    return None if row is None else (Identity(row[0], name, row[1]), row[2])


def kept_of(connection: Connection, name: str) -> str | None:
    """What is kept of the password of a user, disabled or not."""
    row = connection.execute("select password from accounts where name = %s", (name,)).fetchone()
    return None if row is None else row[0]


def identity_of(connection: Connection, name: str) -> Identity | None:
    """See Accounts."""
    row = connection.execute(_IDENTITY, (name,)).fetchone()
    return None if row is None else Identity(*row)


def rights(connection: Connection, identity: Identity, anonymous_pull: bool) -> Rights:
    """See Accounts."""
    row = connection.execute(_RIGHTS, (identity.token_id, identity.account_id, identity.token_id)).fetchone()
    if row is None:
        return Rights(anonymous_pull=anonymous_pull)
    name, administrator, scopes, roles, grants = row
    # a token's scopes follow its account when that is renamed; an identity may be older than that
    narrowed = identity.scopes if identity.token_id is None else _scopes(scopes)
    given = tuple(Grant(pattern, frozenset(actions)) for pattern, actions in grants)
    return Rights(name, administrator, dict(sorted(roles.items())), given, narrowed, anonymous_pull)


def _scopes(texts: Sequence[str] | None) -> tuple[Scope, ...] | None:
    return None if texts is None else parse_scopes(texts)


def _token(row: Sequence[Any]) -> Token:
    number, kind, account, name, hint, scopes, *rest = row
    created, created_by, expires, last_used, revoked = rest
    return Token(number, kind, account, name, hint, _scopes(scopes), created, created_by, expires, last_used, revoked)


def add_token(
    connection: Connection,
    kind: TokenKind,
    account: str,
    name: str,
    secret: tuple[bytes, str],
    scopes: tuple[Scope, ...] | None,
    lifetime: float | None,
    by: By,
) -> Token:
    """See Accounts; ``secret``: hash and hint."""
    owner = held(connection, account)
    check_token(kind, owner.kind, scopes, lifetime)
    count = connection.execute(_COUNT, (owner.id,)).fetchone()
    if count is not None and count[0] >= MOST_TOKENS:
        raise conflict(f"an account has at most {MOST_TOKENS} tokens")
    texts = None if scopes is None else [str(scope) for scope in scopes]
    row = connection.execute(_ADD, (kind, owner.id, name, *secret, texts, by.actor, lifetime, None)).fetchone()
    assert row is not None
    made = _token(row)
    noted(connection, by, "token.add", owner, token=made.id, kind=kind, name=name, scopes=texts)
    return made


def add_refresh(
    connection: Connection, identity: Identity, name: str, secret: tuple[bytes, str], lifetime: float | None, by: By
) -> None:
    """See Accounts; ``secret``: hash and hint."""
    parent = identity.token_id
    row = connection.execute(_ALIVE, (parent, identity.account_id, parent)).fetchone()
    if row is None or not row[2] or row[1] == "refresh":
        raise no_identity()
    owner = held(connection, row[0])
    connection.execute(_FORGET_REFRESH, (owner.id,))
    texts = None if identity.scopes is None else [str(scope) for scope in identity.scopes]
    values = ("refresh", owner.id, name, *secret, texts, by.actor, lifetime, parent)
    connection.execute(_ADD, values)
    connection.execute(_BOUND_REFRESH, (owner.id, owner.id, MOST_REFRESH))
    # nothing that was known before is wrong now, so this is no change of access
    record(connection, by, "token.refresh", reference=owner.name, detail={"id": owner.id, "name": name})


def tokens(connection: Connection, account: str, kind: TokenKind | None) -> list[Token]:
    """See Accounts."""
    rows = connection.execute(_LIST, (kind, kind, account)).fetchall()
    if not rows:
        raise unknown_account(account)
    return [_token(row) for row in rows if row[0] is not None]


def revoke_token(connection: Connection, account: str, token_id: int, by: By) -> bool:
    """See Accounts."""
    owner = held(connection, account)
    row = connection.execute(_REVOKE, (token_id, owner.id)).fetchone()
    if row is None:
        return False
    noted(connection, by, "token.revoke", owner, token=token_id, kind=row[0], name=row[1])
    return True
