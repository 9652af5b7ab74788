"""Users, the first administrator, and who one is."""

from __future__ import annotations

from p2pregistry.errors import RequestError
from p2pregistry.trust.secret import is_secret, kind_of
from tracker.api import documents as d
from tracker.api.asked import Asked, Services, naming, page, wrong
from tracker.api.rules import denied
from tracker.catalog.trail import By
from tracker.identity.base import Account, Accounts, not_set_up, unknown_account


async def set_up(asked: Asked[d.Setup, d.Nothing]) -> d.User:
    new = asked.body
    return shown(await make_first(asked.services.accounts, new.secret, new.name, new.password, asked.by))


async def make_first(accounts: Accounts, secret: str, name: str, password: str, by: By) -> Account:
    """The first administrator; see Accounts. That a secret is none is said before a password is hashed, which takes a
    while."""
    if not is_secret("setup", secret) or not await accounts.needs_setup():
        raise not_set_up()
    return await accounts.set_up(secret, name, password, by)


async def me(asked: Asked[d.Nothing, d.Nothing]) -> d.Me:
    rights, identity = asked.who.rights, asked.who.identity
    return d.Me(
        rights.name,
        rights.administrator,
        None if identity is None else identity.token or None,
        None if rights.scopes is None else [str(scope) for scope in rights.scopes],
        [d.Membership(name, role) for name, role in sorted(rights.roles.items())],
    )


async def listed(asked: Asked[d.Nothing, d.Page]) -> d.Users:
    n = asked.query.n
    found = await asked.services.accounts.accounts("user", after=asked.query.after, limit=n + 1)
    some, following = page(found, n, lambda one: one.name)
    return d.Users([shown(one) for one in some], following)


async def add(asked: Asked[d.NewUser, d.Nothing]) -> d.User:
    new = asked.body
    with naming("name"):
        made = await asked.services.accounts.add_user(new.name, new.password, asked.by, administrator=new.administrator)
    return shown(made)


async def show(asked: Asked[d.Nothing, d.Nothing]) -> d.User:
    return shown(await _user(asked.services, asked.path["user"]))


async def set_password(asked: Asked[d.NewPassword, d.Nothing]) -> None:
    """Who has a token of somebody, or finds his browser open, does not get the account with it: one's own is changed by
    the one that there was."""
    name = (await _user(asked.services, asked.path["user"])).name
    if name == asked.who.name:
        await _check_current(asked, name, asked.body.current)
    await asked.services.accounts.set_password(name, asked.body.password, asked.by)


async def _check_current(asked: Asked[d.NewPassword, d.Nothing], name: str, current: str | None) -> None:
    if current is None:
        raise wrong("current", "to change your own password give the current one too")
    try:
        if kind_of(current) is not None:
            raise denied()
        await asked.services.authentication.login(name, current, asked.by.address)
    except RequestError as err:
        if err.status not in (401, 403):
            raise
        raise RequestError("DENIED", "the current password is wrong", detail={"field": "current"}) from err


async def set_disabled(asked: Asked[d.Disabled, d.Nothing]) -> None:
    await asked.services.accounts.set_disabled(asked.path["user"], asked.body.disabled, asked.by)


async def set_administrator(asked: Asked[d.Administrator, d.Nothing]) -> None:
    await asked.services.accounts.set_administrator(asked.path["user"], asked.body.administrator, asked.by)


async def rename(asked: Asked[d.NewName, d.Nothing]) -> d.User:
    name = (await _user(asked.services, asked.path["user"])).name
    with naming("name"):
        return shown(await asked.services.accounts.rename_account(name, asked.body.name, asked.by))


async def delete(asked: Asked[d.Nothing, d.Deletion]) -> None:
    name = (await _user(asked.services, asked.path["user"])).name
    await asked.services.accounts.delete_account(name, asked.by, repositories=asked.query.repositories)


async def _user(services: Services, name: str) -> Account:
    found = await services.accounts.account(name)
    if found is None or found.kind != "user":
        raise unknown_account(name)
    return found


def shown(account: Account) -> d.User:
    """As the API tells it."""
    return d.User(account.name, account.administrator, account.has_password, account.created, account.disabled)
