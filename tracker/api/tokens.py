"""Personal tokens and those of robots."""

from __future__ import annotations

from tracker.api import documents as d
from tracker.api.asked import Asked, naming
from tracker.api.rules import denied, unknown
from tracker.identity.base import Token


async def listed(asked: Asked[d.Nothing, d.OfKind]) -> d.Tokens:
    found = await asked.services.accounts.tokens(asked.path["account"], kind=asked.query.kind)
    return d.Tokens([_shown(one) for one in found])


async def add(asked: Asked[d.NewToken, d.Nothing]) -> d.MadeToken:
    """A personal token is as good as its user, so nobody makes one of somebody else's; but the operator."""
    account, new = asked.path["account"], asked.body
    if new.kind == "personal" and account != asked.who.name and not asked.who.operator:
        raise denied("a personal token is made by its user")
    with naming("kind" if new.scopes is None and new.kind == "personal" else "scopes"):
        made = await asked.services.accounts.add_token(
            new.kind, account, new.name, asked.by, scopes=new.scopes, lifetime=new.lifetime
        )
    return d.MadeToken(_shown(made.token), made.secret)


async def revoke(asked: Asked[d.Nothing, d.Nothing]) -> None:
    number = asked.path["id"]
    known = number.isascii() and number.isdecimal() and len(number) < 19
    if not known or not await asked.services.accounts.revoke_token(asked.path["account"], int(number), asked.by):
        raise unknown("TOKEN", "there is no such token, or it was revoked before")


def _shown(token: Token) -> d.Token:
    return d.Token(
        token.id,
        token.kind,
        token.name,
        token.hint,
        None if token.scopes is None else [str(scope) for scope in token.scopes],
        token.created,
        token.created_by,
        token.expires,
        token.last_used,
        token.revoked,
    )
