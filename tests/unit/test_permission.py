"""Who may do what, over all kinds of askers, routes and repositories."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.oci.reference import Kind, Route
from p2pregistry.trust.access import AccessToken, Scope
from tracker.catalog.visible import Visible
from tracker.identity.rights import NOBODY, Grant, Identity, Rights
from tracker.permission import CATALOG, Shown, depends, granted, may, needed, scope_text, unsure


def scope(text: str) -> Scope:
    kind, name, actions = text.split(":")
    return Scope(kind, name, frozenset(actions.split(",")))


def bearer(*texts: str, rights: Rights = NOBODY, subject: str = "") -> Shown:
    """Somebody with an access token for these scopes."""
    return Shown(rights, None, AccessToken("i", "s", subject, "1", 0, 300, tuple(map(scope, texts))))


CLOSED = Rights(anonymous_pull=False)
ANN = Rights("ann")
ADMIN = Rights("root", everything=True)
OWNER = Rights("bob", roles={"acme": "owner"})
MEMBER = Rights("carol", roles={"acme": "member"})
PUSHER = Rights("dave", grants=(Grant("acme/app/*", frozenset({"push"})),))
ROBOT = Rights("ann", scopes=(scope("repository:ann/**:pull"),))

#: For each asker, what he may do in (his own, private), and in acme/app/api while it is (private, public).
RIGHTS = {
    "nobody": (NOBODY, "", "", "pull"),
    "nobody, closed": (CLOSED, "", "", ""),
    "ann": (ANN, "pull push delete", "", "pull"),
    "administrator": (ADMIN, "pull push delete", "pull push delete", "pull push delete"),
    "owner": (OWNER, "", "pull push delete", "pull push delete"),
    "member": (MEMBER, "", "", "pull"),
    "by a team": (PUSHER, "", "pull push", "pull push"),
    "robot": (ROBOT, "pull", "", "pull"),
}


@pytest.mark.parametrize("who", RIGHTS)
def test_what_rights_allow_and_tokens_for_them_are_given(who: str) -> None:
    rights, own, private, public = RIGHTS[who]
    for name, is_private, wanted in (
        ("ann/x", True, own),
        ("acme/app/api", True, private),
        ("acme/app/api", False, public),
    ):
        for action in ("pull", "push", "delete"):
            need = Scope("repository", name, frozenset({action}))
            assert may(Shown(rights), need, private=is_private) == (action in wanted.split()), (name, action)
        known = () if is_private else (name,)
        for asked in itertools.chain.from_iterable(
            itertools.combinations(["pull", "push", "delete"], n) for n in (1, 2, 3)
        ):
            got = granted([Scope("repository", name, frozenset(asked))], rights, known)
            assert {action for one in got for action in one.actions} == set(asked) & set(wanted.split())
        everything = granted([Scope("repository", name, frozenset({"*"}))], rights, known)
        assert {action for one in everything for action in one.actions} == set(wanted.split())
        for_node = granted([Scope("repository", name, frozenset({"*"})), CATALOG], rights, known, pull_only=True)
        assert {action for one in for_node for action in one.actions} == {"pull"} & set(wanted.split())


def test_the_catalogue_is_for_who_may_pull_something() -> None:
    for rights in (NOBODY, ANN, ADMIN, ROBOT, Rights("ann", anonymous_pull=False)):
        assert granted([CATALOG], rights, ()) == (CATALOG,)
        assert may(Shown(rights), CATALOG, private=True)
    assert granted([CATALOG], CLOSED, ()) == ()
    assert not may(Shown(CLOSED), CATALOG, private=True)
    assert granted([scope("registry:catalog:pull"), scope("registry:other:*"), scope("x:catalog:*")], ADMIN, ()) == ()


def test_names_that_no_repository_has_get_nothing() -> None:
    for name in ("", "A", "a//b", "a:b", "../a", "a" * 300, "**"):
        assert granted([Scope("repository", name, frozenset({"pull"}))], ADMIN, (name,)) == ()
        assert unsure([Scope("repository", name, frozenset({"pull"}))], NOBODY) == []


def test_it_is_only_looked_up_where_it_matters() -> None:
    asked = [scope("repository:acme/app/api:pull,push"), scope("repository:ann/x:pull"), CATALOG]
    assert unsure(asked, NOBODY) == ["acme/app/api", "ann/x"]
    assert unsure(asked, ANN) == ["acme/app/api"]
    assert unsure(asked, ADMIN) == []
    assert unsure(asked, CLOSED) == []
    for action, wanted in (("pull", True), ("push", False), ("delete", False)):
        assert depends(Shown(ANN), Scope("repository", "acme/x", frozenset({action}))) is wanted
    assert not depends(bearer(), scope("repository:acme/x:pull"))


def test_a_token_allows_what_it_lists_and_nothing_else_whoever_has_it() -> None:
    shown = bearer("repository:a/b:pull,push", "repository:a/c:delete", rights=ADMIN, subject="root")
    allowed = {("a/b", "pull"), ("a/b", "push"), ("a/c", "delete")}
    for name, action, private in itertools.product(
        ("a/b", "a/c", "a", "a/b/c", "a/*"), ("pull", "push", "delete"), (True, False)
    ):
        need = Scope("repository", name, frozenset({action}))
        assert may(shown, need, private=private) == ((name, action) in allowed)
    assert not may(shown, CATALOG, private=True)
    assert may(bearer("registry:catalog:*"), CATALOG, private=True)
    assert not may(bearer("repository:a/b:*"), scope("repository:a/b:pull"), private=False)
    assert not may(bearer("registry:a/b:pull"), scope("repository:a/b:pull"), private=False)


def test_what_may_be_mounted_from() -> None:
    assert bearer("repository:a/b:pull,push", "repository:a/c:delete", rights=CLOSED).sees() == Visible.of(
        ["a/b"], public=False
    )
    seen = bearer("repository:a/b:pull").sees()
    assert seen is not None
    assert [seen.admits("a/b", True), seen.admits("a/c", True), seen.admits("a/c", False)] == [True, False, True]
    assert Shown(ADMIN).sees() is None
    assert Shown(ANN).sees() == ANN.visible()


def test_what_each_request_needs() -> None:
    kinds: list[Kind] = ["manifest", "blob", "tags", "referrers", "uploads", "upload"]
    found = {
        (kind, method): str(needed(Route(kind, "a/b", "x"), method))
        for kind in kinds
        for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "BREW")
    }
    for (kind, method), need in found.items():
        if kind in ("uploads", "upload") or (kind, method) == ("manifest", "PUT"):
            assert need == "repository:a/b:push"
        elif method == "DELETE":
            assert need == "repository:a/b:delete"
        else:
            assert need == "repository:a/b:pull", "what else there is, cannot be done here anyway"
    assert needed(Route("base"), "GET") is None
    assert needed(Route("catalog"), "GET") == CATALOG


def test_challenges_ask_for_pull_with_push() -> None:
    assert scope_text() == ""
    assert scope_text(scope("repository:a:pull")) == "repository:a:pull"
    assert (
        scope_text(scope("repository:a:push"), scope("repository:b:pull")) == "repository:a:pull,push repository:b:pull"
    )
    assert scope_text(scope("repository:a:delete")) == "repository:a:delete"
    assert scope_text(CATALOG) == "registry:catalog:*"


def test_who_it_was() -> None:
    assert Shown(NOBODY).actor == ""
    assert not Shown(NOBODY).anything
    ann = Shown(ANN, Identity(7, "ann", False, token_id=3, token="ci"))
    assert (ann.actor, ann.account_id, ann.anything) == ("ann+ci", 7, True)
    token = Shown(NOBODY, None, AccessToken("i", "s", "ann+ci", "1", 0, 1, account=7))
    assert (token.actor, token.account_id, token.anything) == ("ann+ci", 7, True)


names = st.sampled_from(["ann/x", "acme/app/api", "acme", "other/y", "Bad", "registry"])
scopes = st.builds(
    Scope,
    st.sampled_from(["repository", "registry", "plugin"]),
    st.one_of(names, st.just("catalog")),
    st.sets(st.sampled_from(["pull", "push", "delete", "admin", "*", ""])).map(frozenset),
)


@given(st.lists(scopes, max_size=5), st.sampled_from(list(RIGHTS)), st.sets(names), st.booleans())
def test_nothing_is_given_that_may_not_be_done(asked: list[Scope], who: str, public: set[str], pull_only: bool) -> None:
    rights = RIGHTS[who][0]
    for one in granted(asked, rights, public, pull_only=pull_only):
        assert one.actions
        assert one == CATALOG or one.actions <= rights.actions(one.name, private=one.name not in public)
        assert one == CATALOG or one.actions <= {"pull", "push", "delete"}
        assert any((a.type, a.name) == (one.type, one.name) for a in asked)
        assert not pull_only or one.actions == {"pull"}
