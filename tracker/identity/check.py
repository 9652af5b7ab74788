"""What every ``Accounts`` must do. A test runs each of ``CASES`` on a fresh, empty one of each implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pregistry.errors import RequestError, SettingsError
from tracker.catalog.base import Catalog
from tracker.catalog.check import Signer, add, blob, manifest
from tracker.catalog.trail import By
from tracker.identity.base import Accounts, Grant, Identity
from tracker.identity.rights import ACTIONS, Role


@dataclass(frozen=True, slots=True)
class Subject:
    """``age``: lets so many seconds pass for all that expires. ``audit``: actor, action and reference of each line."""

    accounts: Accounts
    catalog: Catalog
    age: Callable[[float], Awaitable[None]]
    audit: Callable[[], Awaitable[list[tuple[str, str, str]]]]


Case = Callable[[Subject], Awaitable[None]]

#: Every case, by its name.
CASES: dict[str, Case] = {}

BY = By("root", "127.0.0.1", "request")
PASSWORD = "correct horse"  # noqa: S105 - of a test
OTHER = "battery staple"


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


async def refused(call: Awaitable[object]) -> tuple[str, int]:
    """The code and status with which it is refused."""
    try:
        await call
    except RequestError as err:
        return err.code, err.status
    raise AssertionError("it was not refused")


CONFLICT = ("CONFLICT", 409)
INVALID = ("INVALID", 400)
UNKNOWN = ("ACCOUNT_UNKNOWN", 404)
DENIED = ("DENIED", 403)


async def shown(on: Subject, name: str, password: str = PASSWORD) -> Identity:
    found = await on.accounts.verify(name, password)
    assert found is not None
    return found


async def may(on: Subject, who: Identity | None, repository: str, *, private: bool = True) -> set[str]:
    return set((await on.accounts.rights(who)).actions(repository, private=private))


# -------------------------------------------------------------------------------------------------------------- users


@_case
async def a_user_is_known_by_name_and_password(on: Subject) -> None:
    made = await on.accounts.add_user("ann", PASSWORD, BY)
    assert (made.kind, made.name, made.administrator, made.disabled, made.has_password) == (
        "user",
        "ann",
        False,
        None,
        True,
    )
    assert await on.accounts.verify("ann", PASSWORD) == Identity(made.id, "ann", False)
    assert await on.accounts.verify("ann", PASSWORD) == Identity(made.id, "ann", False)
    for name, password in [("ann", OTHER), ("bob", PASSWORD), ("ann", ""), ("Ann", PASSWORD), ("ann\0", PASSWORD)]:
        assert await on.accounts.verify(name, password) is None
    assert await on.accounts.verify("ann", "x" * 100_000) is None
    assert await on.accounts.identity_of("ann") == Identity(made.id, "ann", False)
    assert await on.accounts.identity_of("bob") is None
    assert await on.accounts.account("ann") == made
    assert await on.accounts.account("b\0b") is None


@_case
async def names_and_passwords_are_in_form(on: Subject) -> None:
    for name in ("", "Ann", "a/b", "-a", "a-", "a..b", "a" * 65, "a b", "a\0", "\u00e4"):
        assert await refused(on.accounts.add_user(name, PASSWORD, BY)) == INVALID
    for password in ("", "1234567", "x" * 1001):
        assert await refused(on.accounts.add_user("ann", password, BY)) == INVALID
    await on.accounts.add_user("a" * 64, "x" * 1000, BY)
    assert await on.accounts.verify("a" * 64, "x" * 1000) is not None
    long = "p\u00e4ss w\u00f6rd : \U0001f600"
    await on.accounts.add_user("a.b_c-d__e--f", long, BY)
    assert await on.accounts.verify("a.b_c-d__e--f", long) is not None
    assert await on.accounts.verify("a.b_c-d__e--f", "pa\u0308ss wo\u0308rd : \U0001f600") is not None, (
        "typed elsewhere"
    )


@_case
async def a_name_is_had_once_by_users_and_organizations_together(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    await on.accounts.add_organization("acme", "ann", BY)
    assert await refused(on.accounts.add_user("ann", PASSWORD, BY)) == CONFLICT
    assert await refused(on.accounts.add_user("acme", PASSWORD, BY)) == CONFLICT
    assert await refused(on.accounts.add_organization("ann", "ann", BY)) == CONFLICT
    assert await refused(on.accounts.add_organization("other", "nobody", BY)) == UNKNOWN
    assert await refused(on.accounts.add_organization("other", "acme", BY)) == UNKNOWN
    assert await on.accounts.verify("acme", PASSWORD) is None
    assert await on.accounts.account("other") is None


@_case
async def lists_are_by_name_and_kind_and_come_in_pages(on: Subject) -> None:
    for name in ("b", "a-b", "a", "z"):
        await on.accounts.add_user(name, None, BY)
    await on.accounts.add_organization("m", "a", BY)
    assert [one.name for one in await on.accounts.accounts()] == ["a", "a-b", "b", "m", "z"]
    assert [one.name for one in await on.accounts.accounts("organization")] == ["m"]
    assert [one.name for one in await on.accounts.accounts("user", after="a-b", limit=1)] == ["b"]
    assert await on.accounts.accounts(limit=0) == []


@_case
async def a_new_password_ends_what_the_old_one_began(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    refresh = await on.accounts.add_refresh(await shown(on, "ann"), "docker", BY)
    assert await on.accounts.verify_refresh(refresh) is not None
    await on.accounts.set_password("ann", OTHER, BY)
    assert await on.accounts.verify("ann", PASSWORD) is None
    assert await on.accounts.verify("ann", OTHER) is not None
    assert await on.accounts.verify_refresh(refresh) is None
    await on.accounts.set_password("ann", None, BY)
    assert await on.accounts.verify("ann", OTHER) is None
    found = await on.accounts.account("ann")
    assert found is not None
    assert not found.has_password
    assert await refused(on.accounts.set_password("ann", "short", BY)) == INVALID
    assert await refused(on.accounts.set_password("bob", PASSWORD, BY)) == UNKNOWN


@_case
async def a_disabled_user_is_nobody(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    identity = await shown(on, "ann")
    personal = await on.accounts.add_token("personal", "ann", "laptop", BY)
    refresh = await on.accounts.add_refresh(identity, "docker", BY)
    await on.accounts.set_disabled("ann", True, BY)
    assert await on.accounts.verify("ann", PASSWORD) is None
    assert await on.accounts.verify("ann", personal.secret) is None
    assert await on.accounts.verify_refresh(refresh) is None
    assert await on.accounts.identity_of("ann") is None
    assert await may(on, identity, "ann/app") == set()
    assert await refused(on.accounts.add_refresh(identity, "docker", BY)) == DENIED
    await on.accounts.set_disabled("ann", False, BY)
    assert await on.accounts.verify("ann", PASSWORD) == identity
    assert await on.accounts.verify("ann", personal.secret) is not None
    assert await on.accounts.verify_refresh(refresh) is None, "it does not come back"


@_case
async def there_is_always_an_administrator(on: Subject) -> None:
    await on.accounts.add_user("root", PASSWORD, BY, administrator=True)
    await on.accounts.add_user("ann", PASSWORD, BY)
    assert (await shown(on, "root")).administrator
    assert (await on.accounts.rights(await shown(on, "root"))).administrator
    assert await refused(on.accounts.set_administrator("root", False, BY)) == CONFLICT
    assert await refused(on.accounts.set_disabled("root", True, BY)) == CONFLICT
    assert await refused(on.accounts.delete_account("root", BY)) == CONFLICT
    await on.accounts.set_administrator("ann", True, BY)
    await on.accounts.set_disabled("ann", True, BY)
    assert await refused(on.accounts.set_administrator("root", False, BY)) == CONFLICT, "a disabled one does not count"
    await on.accounts.set_disabled("ann", False, BY)
    await on.accounts.set_administrator("root", False, BY)
    assert not (await shown(on, "root")).administrator
    assert await refused(on.accounts.delete_account("ann", BY)) == CONFLICT
    await on.accounts.delete_account("root", BY)


@_case
async def the_first_administrator_is_made_once_by_a_secret(on: Subject) -> None:
    assert await on.accounts.needs_setup()
    old = await on.accounts.new_setup(BY)
    secret = await on.accounts.new_setup(BY)
    for wrong in (old, "", "p2pr_setup_x", secret[:-1]):
        assert await refused(on.accounts.set_up(wrong, "root", PASSWORD, BY)) == DENIED
    assert await refused(on.accounts.set_up(secret, "Root", PASSWORD, BY)) == INVALID
    assert await refused(on.accounts.set_up(secret, "root", "short", BY)) == INVALID
    made = await on.accounts.set_up(secret, "root", PASSWORD, BY)
    assert made.administrator
    assert (await shown(on, "root")).administrator
    assert await refused(on.accounts.set_up(secret, "again", PASSWORD, BY)) == DENIED
    assert not await on.accounts.needs_setup()
    assert await refused(on.accounts.new_setup(BY)) == CONFLICT


@_case
async def the_secret_of_the_first_administrator_expires_and_ends_with_one_made_otherwise(on: Subject) -> None:
    secret = await on.accounts.new_setup(BY, lifetime=60)
    await on.age(61)
    assert await refused(on.accounts.set_up(secret, "root", PASSWORD, BY)) == DENIED
    secret = await on.accounts.new_setup(BY)
    await on.accounts.ensure_administrator("root", PASSWORD)
    assert await refused(on.accounts.set_up(secret, "other", PASSWORD, BY)) == DENIED


@_case
async def the_administrator_of_the_settings_is_there(on: Subject) -> None:
    for password in ("short", "short", "another one"):
        await on.accounts.ensure_administrator("root", password)
        assert (await shown(on, "root", password)).administrator
    assert await on.accounts.verify("root", "short") is None
    await on.accounts.add_user("ann", PASSWORD, BY)
    await on.accounts.set_disabled("ann", True, BY)
    await on.accounts.ensure_administrator("ann", PASSWORD)
    assert (await shown(on, "ann")).administrator
    await on.accounts.add_organization("acme", "ann", BY)
    await on.accounts.delete_account("root", BY)
    for name in ("acme", "Root", "root", ""):
        assert await _bad_setting(on, name)


async def _bad_setting(on: Subject, name: str) -> bool:
    try:
        await on.accounts.ensure_administrator(name, PASSWORD)
    except SettingsError as err:
        return "auth.username" in err.message
    return False


# -------------------------------------------------------------------------------------------------------------- names


async def _push(on: Subject, repository: str, tag: str) -> None:
    layer = blob("layer")
    await add(on.catalog, repository, layer)
    await on.catalog.put_manifest(repository, manifest(b"image", [layer]), [tag], Signer(), BY)


@_case
async def repositories_go_with_a_name(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    for repository in ("ann", "ann/app", "ann/deep/er", "anna/app", "ann-x/app"):
        await _push(on, repository, "1")
    await on.catalog.set_visibility("ann/app", False, BY)
    renamed = await on.accounts.rename_account("ann", "zoe", BY)
    assert renamed.name == "zoe"
    assert await on.catalog.repositories() == ["ann-x/app", "anna/app", "zoe", "zoe/app", "zoe/deep/er"]
    assert await on.catalog.visibility("zoe/app") is False
    assert await on.catalog.visibility("zoe") is True
    assert await on.catalog.visibility("ann/app") is None
    digest = manifest(b"image").digest
    found = await on.catalog.manifest("zoe/app", "1")
    assert found is not None
    assert found.claim == f"zoe/app {digest} {blob('layer').digest}", "signed for the new name"
    assert await on.catalog.claims_for_blob("zoe/app", blob("layer").digest) == [found.claim]
    assert await may(on, await shown(on, "zoe"), "zoe/app") == ACTIONS
    assert await may(on, await shown(on, "zoe"), "ann/app") == set()
    used = {one.namespace: one.used for one in await on.catalog.policies.quotas()}
    assert used.get("zoe") == 5
    assert not used.get("ann")


@_case
async def a_name_that_was_given_up_is_nobody_elses(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    await on.accounts.add_user("bob", PASSWORD, BY)
    await on.accounts.rename_account("ann", "zoe", BY)
    assert await refused(on.accounts.add_user("ann", PASSWORD, BY)) == CONFLICT
    assert await refused(on.accounts.rename_account("bob", "ann", BY)) == CONFLICT
    assert await refused(on.accounts.rename_account("bob", "zoe", BY)) == CONFLICT
    assert await refused(on.accounts.rename_account("bob", "bob", BY)) == CONFLICT
    assert await refused(on.accounts.rename_account("bob", "Bob", BY)) == INVALID
    assert await refused(on.accounts.rename_account("nobody", "new", BY)) == UNKNOWN
    await on.accounts.rename_account("zoe", "ann", BY)
    assert await refused(on.accounts.add_user("zoe", PASSWORD, BY)) == CONFLICT
    await on.accounts.delete_account("bob", BY)
    assert await refused(on.accounts.add_organization("bob", "ann", BY)) == CONFLICT
    assert await on.accounts.verify("bob", PASSWORD) is None
    await _push(on, "old/app", "1")
    assert await refused(on.accounts.rename_account("ann", "old", BY)) == CONFLICT, "there are repositories"


@_case
async def an_organization_is_renamed_with_its_teams_and_scopes(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    await on.accounts.add_user("bob", PASSWORD, BY)
    await on.accounts.add_organization("acme", "ann", BY)
    await on.accounts.set_member("acme", "bob", "member", BY)
    await on.accounts.add_team("acme", "dev", BY)
    await on.accounts.add_team_member("acme", "dev", "bob", BY)
    await on.accounts.set_grant("acme", "dev", "acme/web*", ["push"], BY)
    robot = await on.accounts.add_token("robot", "acme", "ci", BY, scopes=["repository:acme/**:pull"])
    token = await on.accounts.add_token("personal", "bob", "x", BY, scopes=["repository:acme/web:pull,push"])
    await on.catalog.policies.add_immutable("acme/*:v*", BY)
    await on.accounts.rename_account("acme", "corp", BY)
    assert [one.pattern for one in await on.catalog.policies.immutable_tags()] == ["corp/*:v*"]
    assert [team.grants for team in await on.accounts.teams("corp")] == [(Grant("corp/web*", frozenset({"push"})),)]
    assert await refused(on.accounts.teams("acme")) == UNKNOWN
    assert [(one.organization, one.role) for one in await on.accounts.memberships("ann")] == [("corp", "owner")]
    bob = await shown(on, "bob")
    assert await may(on, bob, "corp/web1") == {"pull", "push"}
    assert await may(on, bob, "acme/web1") == set()
    assert await may(on, await shown(on, "", robot.secret), "corp/any") == {"pull"}
    assert await may(on, await shown(on, "", token.secret), "corp/web") == {"pull", "push"}
    assert await may(on, await shown(on, "", token.secret), "corp/web1") == set()


@_case
async def an_account_with_repositories_stays_unless_they_go_too(on: Subject) -> None:
    await on.accounts.add_user("ann", PASSWORD, BY)
    await _push(on, "ann/app", "1")
    await _push(on, "ann/web", "1")
    await _push(on, "other/app", "1")
    assert await refused(on.accounts.delete_account("ann", BY)) == CONFLICT
    assert await on.catalog.repositories() == ["ann/app", "ann/web", "other/app"]
    await on.accounts.delete_account("ann", BY, repositories=True)
    assert await on.catalog.repositories() == ["other/app"]
    assert await on.accounts.account("ann") is None
    assert await refused(on.accounts.delete_account("ann", BY)) == UNKNOWN


# ------------------------------------------------------------------------------------------------------ organisations


async def acme(on: Subject) -> None:
    for name in ("ann", "bob", "cat"):
        await on.accounts.add_user(name, PASSWORD, BY)
    await on.accounts.add_organization("acme", "ann", BY)


@_case
async def an_organization_keeps_an_owner(on: Subject) -> None:
    await acme(on)
    assert [(one.user, one.role) for one in await on.accounts.members("acme")] == [("ann", "owner")]
    assert await refused(on.accounts.set_member("acme", "ann", "member", BY)) == CONFLICT
    assert await refused(on.accounts.remove_member("acme", "ann", BY)) == CONFLICT
    assert await refused(on.accounts.delete_account("ann", BY)) == CONFLICT
    await on.accounts.set_member("acme", "bob", "owner", BY)
    await on.accounts.set_member("acme", "ann", "admin", BY)
    assert [(one.user, one.role) for one in await on.accounts.members("acme")] == [("ann", "admin"), ("bob", "owner")]
    await on.accounts.delete_account("ann", BY)
    assert await refused(on.accounts.remove_member("acme", "bob", BY)) == CONFLICT
    assert not await on.accounts.remove_member("acme", "cat", BY)
    assert not await on.accounts.remove_member("acme", "nobody", BY)
    await on.accounts.delete_account("acme", BY)
    await on.accounts.delete_account("bob", BY)
    assert await refused(on.accounts.members("acme")) == UNKNOWN


@_case
async def a_role_decides(on: Subject) -> None:
    await acme(on)
    roles: tuple[Role, ...] = ("member", "admin", "owner")
    for role in roles:
        await on.accounts.set_member("acme", "bob", role, BY)
        bob = await shown(on, "bob")
        on.accounts.forget()
        assert await may(on, bob, "acme/app") == (set() if role == "member" else ACTIONS)
        rights = await on.accounts.rights(bob)
        assert (rights.manages("acme"), rights.owns("acme")) == (role != "member", role == "owner")
    assert [(one.organization, one.role) for one in await on.accounts.memberships("bob")] == [("acme", "owner")]
    assert await refused(on.accounts.set_member("acme", "nobody", "member", BY)) == UNKNOWN
    assert await refused(on.accounts.set_member("acme", "acme", "member", BY)) == UNKNOWN
    assert await refused(on.accounts.set_member("bob", "ann", "member", BY)) == UNKNOWN


@_case
async def teams_grant_by_glob_what_they_grant(on: Subject) -> None:
    await acme(on)
    await on.accounts.set_member("acme", "bob", "member", BY)
    team = await on.accounts.add_team("acme", "dev", BY)
    assert await on.accounts.teams("acme") == [team]
    assert await refused(on.accounts.add_team("acme", "dev", BY)) == CONFLICT
    assert await refused(on.accounts.add_team_member("acme", "dev", "cat", BY)) == CONFLICT, "not a member"
    assert await on.accounts.add_team_member("acme", "dev", "bob", BY)
    assert not await on.accounts.add_team_member("acme", "dev", "bob", BY)
    await on.accounts.set_grant("acme", "dev", "acme/web/**", ["push"], BY)
    await on.accounts.set_grant("acme", "dev", "acme/*", ["pull"], BY)
    bob = await shown(on, "bob")
    assert await may(on, bob, "acme/web/a/b") == {"pull", "push"}
    assert await may(on, bob, "acme/app") == {"pull"}
    assert await may(on, bob, "acme/app/deep") == set()
    await on.accounts.set_grant("acme", "dev", "acme/*", ["delete", "admin"], BY)
    assert await may(on, bob, "acme/app") == ACTIONS
    (found,) = await on.accounts.teams("acme")
    assert found.members == ("bob",)
    assert found.grants == (
        Grant("acme/*", frozenset({"delete", "admin"})),
        Grant("acme/web/**", frozenset({"push"})),
    )
    assert await on.accounts.remove_grant("acme", "dev", "acme/*", BY)
    assert not await on.accounts.remove_grant("acme", "dev", "acme/*", BY)
    assert await may(on, bob, "acme/app") == set()
    assert await on.accounts.remove_team_member("acme", "dev", "bob", BY)
    assert not await on.accounts.remove_team_member("acme", "dev", "bob", BY)
    assert await may(on, bob, "acme/web/a") == set()
    await on.accounts.add_team_member("acme", "dev", "bob", BY)
    assert await on.accounts.remove_member("acme", "bob", BY)
    assert [one.members for one in await on.accounts.teams("acme")] == [()], "who leaves, leaves its teams"
    await on.accounts.delete_team("acme", "dev", BY)
    assert await on.accounts.teams("acme") == []


@_case
async def a_team_is_renamed_with_members_and_grants(on: Subject) -> None:
    await acme(on)
    await on.accounts.add_team("acme", "dev", BY)
    await on.accounts.add_team("acme", "ops", BY)
    await on.accounts.set_member("acme", "bob", "member", BY)
    await on.accounts.add_team_member("acme", "dev", "bob", BY)
    await on.accounts.set_grant("acme", "dev", "acme/*", ["push"], BY)
    renamed = await on.accounts.rename_team("acme", "dev", "web", BY)
    assert (renamed.name, renamed.members, renamed.grants) == ("web", ("bob",), (Grant("acme/*", frozenset({"push"})),))
    assert await may(on, await shown(on, "bob"), "acme/app") == {"pull", "push"}
    assert [team.name for team in await on.accounts.teams("acme")] == ["ops", "web"]
    for to in ("ops", "web"):
        assert await refused(on.accounts.rename_team("acme", "web", to, BY)) == CONFLICT
    assert await refused(on.accounts.rename_team("acme", "web", "No", BY)) == INVALID
    assert await refused(on.accounts.rename_team("acme", "dev", "new", BY)) == ("TEAM_UNKNOWN", 404)
    assert await refused(on.accounts.rename_team("nobody", "dev", "new", BY)) == UNKNOWN
    await on.accounts.add_team("acme", "dev", BY)


@_case
async def grants_are_in_form_and_within_the_organization(on: Subject) -> None:
    await acme(on)
    await on.accounts.add_team("acme", "dev", BY)
    for pattern in ("other/*", "**", "acme*", "*/x", "", "acme/a b", "acme/x:1", "acme/\0"):
        assert await refused(on.accounts.set_grant("acme", "dev", pattern, ["pull"], BY)) == INVALID
    for actions in ([], ["read"], ["pull", "*"]):
        assert await refused(on.accounts.set_grant("acme", "dev", "acme/*", actions, BY)) == INVALID
    for team in ("ops", "x\0", "No"):
        assert await refused(on.accounts.set_grant("acme", team, "acme/*", ["pull"], BY)) == ("TEAM_UNKNOWN", 404)
        assert await refused(on.accounts.delete_team("acme", team, BY)) == ("TEAM_UNKNOWN", 404)
    assert await refused(on.accounts.set_grant("ann", "dev", "ann/*", ["pull"], BY)) == UNKNOWN
    assert await refused(on.accounts.add_team("acme", "No", BY)) == INVALID
    await on.accounts.set_grant("acme", "dev", "acme", ["pull"], BY)
    assert not await on.accounts.remove_grant("acme", "dev", "acme\0/*", BY)


# -------------------------------------------------------------------------------------------------------------- trail


@_case
async def every_change_is_in_the_audit_log_and_what_changes_nothing_is_not(on: Subject) -> None:
    await acme(on)
    lines = len(await on.audit())
    await on.accounts.set_disabled("bob", False, BY)
    await on.accounts.set_administrator("bob", False, BY)
    await on.accounts.set_member("acme", "ann", "owner", BY)
    assert len(await on.audit()) == lines
    await on.accounts.set_administrator("bob", True, BY)
    await on.accounts.set_member("acme", "cat", "admin", BY)
    new = await on.accounts.add_token("personal", "cat", "x", BY)
    await on.accounts.revoke_token("cat", new.token.id, BY)
    await on.accounts.rename_account("cat", "dog", BY)
    await on.accounts.delete_account("dog", BY)
    assert [line for line in await on.audit() if "repository" not in line[1]] == [
        ("root", "user.add", "ann"),
        ("root", "user.add", "bob"),
        ("root", "user.add", "cat"),
        ("root", "organization.add", "acme"),
        ("root", "user.promote", "bob"),
        ("root", "member.set", "acme"),
        ("root", "token.add", "cat"),
        ("root", "token.revoke", "cat"),
        ("root", "user.rename", "dog"),
        ("root", "user.delete", "dog"),
    ]
