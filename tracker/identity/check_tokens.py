"""More of what every ``Accounts`` must do: personal, robot and refresh tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tracker.identity.base import MOST_REFRESH, Identity
from tracker.identity.check import BY, DENIED, INVALID, PASSWORD, UNKNOWN, Subject, acme, may, refused
from tracker.identity.check import shown as shown_as
from tracker.identity.rights import ACTIONS

Case = Callable[[Subject], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


@_case
async def a_personal_token_stands_for_its_user(on: Subject) -> None:
    made = await on.accounts.add_user("ann", PASSWORD, BY, administrator=True)
    new = await on.accounts.add_token("personal", "ann", "my laptop", BY)
    assert new.secret.startswith("p2pr_pat_")
    assert new.token.hint == new.secret[-4:]
    assert (new.token.kind, new.token.account, new.token.name, new.token.scopes) == (
        "personal",
        "ann",
        "my laptop",
        None,
    )
    assert (new.token.created_by, new.token.expires, new.token.last_used, new.token.revoked) == (
        "root",
        None,
        None,
        None,
    )
    assert await on.accounts.tokens("ann") == [new.token]
    for name in ("ann", "anything"):
        found = await on.accounts.verify(name, new.secret)
        assert found is not None
        assert found == Identity(made.id, "ann", True, new.token.id, None, "my laptop")
        assert found.actor == "ann+my laptop"
    (used,) = await on.accounts.tokens("ann")
    assert used.last_used is not None
    assert await on.accounts.verify("ann", new.secret[:-1]) is None
    assert await on.accounts.verify_refresh(new.secret) is None
    assert (await on.accounts.rights(found)).administrator


@_case
async def scopes_narrow_a_token(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY, administrator=True)
    new = await on.accounts.add_token(
        "personal", "ann", "ci", BY, scopes=["repository:ann/app*:push", "repository:x/y:pull"]
    )
    shown = await shown_as(on, "ann", new.secret)
    assert not shown.administrator
    assert shown.scopes == new.token.scopes
    assert await may(on, shown, "ann/app1") == {"pull", "push"}
    assert await may(on, shown, "x/y") == {"pull"}
    assert await may(on, shown, "ann/web") == set()
    assert await may(on, shown, "ann/web", private=False) == {"pull"}, "as anybody"
    rights = await on.accounts.rights(shown)
    assert (rights.administrator, rights.manages("ann"), rights.owns("ann")) == (False, False, False)


@_case
async def a_robot_works_for_an_account_within_its_scopes(on: Subject) -> None:
    await acme(on)
    for account in ("acme", "ann"):
        new = await on.accounts.add_token("robot", account, "ci", BY, scopes=[f"repository:{account}/**:push"])
        assert new.secret.startswith("p2pr_robot_")
        shown = await shown_as(on, account, new.secret)
        assert (shown.name, shown.actor) == (account, f"{account}+ci")
        assert await may(on, shown, f"{account}/app") == {"pull", "push"}
        assert await may(on, shown, "bob/app") == set()
    wider = await on.accounts.add_token("robot", "acme", "ci", BY, scopes=["repository:**:push"])
    assert await may(on, await shown_as(on, "acme", wider.secret), "ann/app") == set(), "not what its account may not"


@_case
async def tokens_are_in_form(on: Subject) -> None:
    await acme(on)
    add_token = on.accounts.add_token
    assert await refused(add_token("robot", "ann", "ci", BY)) == INVALID
    assert await refused(add_token("personal", "acme", "ci", BY)) == INVALID
    assert await refused(add_token("refresh", "ann", "ci", BY)) == INVALID
    assert await refused(add_token("personal", "nobody", "ci", BY)) == UNKNOWN
    for name in ("", " ", "x" * 101, "a\nb", "a\0"):
        assert await refused(add_token("personal", "ann", name, BY)) == INVALID
    for scope in (
        "x",
        "registry:catalog:*",
        "repository:a:*",
        "repository:a:",
        "repository:a b:pull",
        "repository:a:b:pull",
        "",
    ):
        assert await refused(add_token("personal", "ann", "x", BY, scopes=[scope])) == INVALID
    for lifetime in (0, -1, 1e12):
        assert await refused(add_token("personal", "ann", "x", BY, lifetime=lifetime)) == INVALID
    assert await refused(add_token("personal", "ann", "x", BY, scopes=[])) == INVALID
    assert await on.accounts.tokens("ann") == []
    assert await refused(on.accounts.tokens("nobody")) == UNKNOWN


@_case
async def a_token_expires_and_is_revoked(on: Subject) -> None:
    await acme(on)
    short = await on.accounts.add_token("personal", "ann", "short", BY, lifetime=3600)
    long = await on.accounts.add_token("personal", "ann", "long", BY, lifetime=36000)
    assert short.token.expires is not None
    identity = await shown_as(on, "ann", short.secret)
    await on.age(3601)
    assert await on.accounts.verify("ann", short.secret) is None
    on.accounts.forget()
    assert await may(on, identity, "ann/app") == set()
    identity = await shown_as(on, "ann", long.secret)
    assert not await on.accounts.revoke_token("bob", long.token.id, BY), "not his"
    assert await on.accounts.revoke_token("ann", long.token.id, BY)
    assert not await on.accounts.revoke_token("ann", long.token.id, BY)
    assert await on.accounts.verify("ann", long.secret) is None
    assert await may(on, identity, "ann/app") == set()
    assert [(one.name, one.revoked is not None) for one in await on.accounts.tokens("ann")] == [
        ("long", True),
        ("short", False),
    ]


@_case
async def a_refresh_token_is_good_again_and_again_until_it_ends(on: Subject) -> None:
    await acme(on)
    ann = await shown_as(on, "ann")
    secret = await on.accounts.add_refresh(ann, "docker", BY, lifetime=3600)
    assert secret.startswith("p2pr_refresh_")
    found = None
    for _ in range(2):
        found = await on.accounts.verify_refresh(secret)
        assert found is not None
        assert (found.account_id, found.name, found.scopes, found.actor) == (ann.account_id, "ann", None, "ann")
        assert await may(on, found, "ann/app") == ACTIONS
    assert await on.accounts.verify("ann", secret) is None, "it is no password"
    assert found is not None
    assert await refused(on.accounts.add_refresh(found, "docker", BY)) == DENIED, "it does not make others"
    (token,) = await on.accounts.tokens("ann", kind="refresh")
    assert await on.accounts.tokens("ann", kind="personal") == []
    assert await on.accounts.revoke_token("ann", token.id, BY)
    assert await on.accounts.verify_refresh(secret) is None
    secret = await on.accounts.add_refresh(ann, "docker", BY, lifetime=3600)
    await on.age(3601)
    assert await on.accounts.verify_refresh(secret) is None


@_case
async def a_refresh_token_is_no_more_than_the_token_it_came_from(on: Subject) -> None:
    await acme(on)
    new = await on.accounts.add_token("personal", "ann", "x", BY, scopes=["repository:ann/app:pull"])
    shown = await shown_as(on, "ann", new.secret)
    secret = await on.accounts.add_refresh(shown, "docker", BY)
    found = await on.accounts.verify_refresh(secret)
    assert found is not None
    assert found.scopes == new.token.scopes
    assert await may(on, found, "ann/app") == {"pull"}
    await on.accounts.revoke_token("ann", new.token.id, BY)
    assert await on.accounts.verify_refresh(secret) is None
    assert await may(on, found, "ann/app") == set()
    assert await refused(on.accounts.add_refresh(shown, "docker", BY)) == DENIED


@_case
async def only_so_many_refresh_tokens_are_good_at_once(on: Subject) -> None:
    await acme(on)
    ann = await shown_as(on, "ann")
    first = await on.accounts.add_refresh(ann, "docker", BY)
    last = first
    for _ in range(MOST_REFRESH):
        last = await on.accounts.add_refresh(ann, "docker", BY)
    assert await on.accounts.verify_refresh(first) is None
    assert await on.accounts.verify_refresh(last) is not None


@_case
async def a_deleted_account_takes_its_tokens_along(on: Subject) -> None:
    await acme(on)
    identity = await shown_as(on, "cat")
    new = await on.accounts.add_token("personal", "cat", "x", BY)
    refresh = await on.accounts.add_refresh(await shown_as(on, "cat", new.secret), "docker", BY)
    await on.accounts.delete_account("cat", BY)
    assert await on.accounts.verify("cat", new.secret) is None
    assert await on.accounts.verify_refresh(refresh) is None
    assert await may(on, identity, "cat/app") == set()
    assert await may(on, identity, "cat/app", private=False) == {"pull"}
