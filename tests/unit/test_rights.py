"""Who may do what: the decisions, without a database."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import RequestError
from p2pregistry.globs import matches, moved
from p2pregistry.trust.access import Scope
from tracker.identity.rights import (
    ACTIONS,
    NOBODY,
    Grant,
    Rights,
    Role,
    check_actions,
    check_pattern,
    check_scopes,
    implied,
)

ALL, PULL, NONE = ACTIONS, frozenset({"pull"}), frozenset[str]()
PUSH = frozenset({"pull", "push"})
CLOSED = Rights(anonymous_pull=False)


def scoped(rights: Rights, *scopes: str) -> Rights:
    return replace(rights, scopes=check_scopes(scopes))


ANN = Rights(
    "ann",
    roles={"acme": "member", "corp": "admin", "inc": "owner"},
    grants=(
        Grant("acme/web/**", frozenset({"push"})),
        Grant("acme/tools", frozenset({"delete"})),
        Grant("acme/mine", frozenset({"admin"})),
        Grant("acme/read*", frozenset({"pull"})),
    ),
)
ROOT = Rights("root", everything=True)

#: Who, repository, what may be done where it is private, and where it is public.
TABLE = [
    (NOBODY, "ann/app", NONE, PULL),
    (CLOSED, "ann/app", NONE, NONE),
    (ANN, "ann/app", ALL, ALL),
    (ANN, "ann", ALL, ALL),
    (ANN, "anna/app", NONE, PULL),
    (ANN, "x/ann/app", NONE, PULL),
    (ANN, "corp/app", ALL, ALL),
    (ANN, "inc/app", ALL, ALL),
    (ANN, "acme/app", NONE, PULL),
    (ANN, "acme/web/app", PUSH, PUSH),
    (ANN, "acme/web", NONE, PULL),
    (ANN, "acme/tools", frozenset({"delete"}), frozenset({"delete", "pull"})),
    (ANN, "acme/mine", ALL, ALL),
    (ANN, "acme/read-this", PULL, PULL),
    (ANN, "free/app", NONE, PULL),
    (ROOT, "free/app", ALL, ALL),
    (ROOT, "ann/app", ALL, ALL),
    (replace(ANN, anonymous_pull=False), "free/app", NONE, PULL),
    (scoped(ANN, "repository:ann/**:pull"), "ann/app", PULL, PULL),
    (scoped(ANN, "repository:ann/**:push"), "ann/app", PUSH, PUSH),
    (scoped(ANN, "repository:ann/**:admin"), "ann/app", ALL, ALL),
    (scoped(ANN, "repository:ann/**:pull"), "corp/app", NONE, PULL),
    (scoped(ANN, "repository:**:push"), "acme/app", NONE, PULL),
    (scoped(ANN, "repository:**:push"), "acme/read-this", PULL, PULL),
    (scoped(ANN, "repository:**:push"), "acme/tools", NONE, PULL),
    (scoped(ANN, "repository:ann/a:pull", "repository:ann/*:delete"), "ann/a", frozenset({"pull", "delete"}), None),
    (scoped(ROOT, "repository:ann/app:pull"), "ann/app", PULL, PULL),
    (scoped(ROOT, "repository:ann/app:pull"), "bob/app", NONE, PULL),
    (scoped(replace(ANN, anonymous_pull=False), "repository:free/*:pull"), "free/app", NONE, PULL),
    (scoped(replace(ANN, anonymous_pull=False), "repository:ann/*:pull"), "free/app", NONE, NONE),
    (replace(ANN, scopes=()), "ann/app", NONE, PULL),
    (replace(ANN, scopes=(Scope("registry", "**", frozenset({"pull"})),)), "ann/app", NONE, PULL),
    (replace(ANN, scopes=(Scope("repository", "**", frozenset({"*"})),)), "ann/app", NONE, PULL),
]


@pytest.mark.parametrize(("who", "repository", "private", "public"), TABLE)
def test_actions(who: Rights, repository: str, private: frozenset[str], public: frozenset[str] | None) -> None:
    assert who.actions(repository, private=True) == private
    assert who.actions(repository, private=False) == (private if public is None else public)


def test_who_manages_what() -> None:
    names = ("ann", "acme", "corp", "inc", "bob")
    assert [name for name in names if ANN.manages(name)] == ["ann", "corp", "inc"]
    assert [name for name in names if ANN.owns(name)] == ["ann", "inc"]
    assert [name for name in names if ROOT.manages(name) and ROOT.owns(name)] == list(names)
    for who in (NOBODY, CLOSED, scoped(ANN, "repository:**:admin"), scoped(ROOT, "repository:**:admin")):
        assert not who.administrator
        assert not any(who.manages(name) or who.owns(name) for name in (*names, ""))
    assert ROOT.administrator
    assert not ANN.administrator


@pytest.mark.parametrize("count", range(5))
def test_what_is_implied(count: int) -> None:
    for given_ in itertools.combinations(sorted(ACTIONS), count):
        found = implied(given_)
        assert found >= set(given_)
        assert ("admin" in found) == ("admin" in given_)
        assert "admin" not in found or found == ACTIONS
        assert "push" not in found or "pull" in found
        assert implied(found) == found
    assert implied(["*", "", "Pull"]) == NONE


PARTS = st.sampled_from(["ann", "acme", "corp", "bob", "app", "web", "a"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
GLOBS = st.lists(PARTS | st.sampled_from(["*", "**", "a*"]), min_size=1, max_size=3).map("/".join)
SOME = st.frozensets(st.sampled_from(sorted(ACTIONS)), min_size=1)
SCOPES = st.none() | st.lists(st.builds(Scope, st.just("repository"), GLOBS, SOME), max_size=3).map(tuple)
ROLES: st.SearchStrategy[Role] = st.sampled_from(("owner", "admin", "member"))
WHO = st.builds(
    Rights,
    st.sampled_from(["", "ann", "bob"]),
    st.booleans(),
    st.dictionaries(st.sampled_from(["acme", "corp"]), ROLES),
    st.lists(st.builds(lambda glob, actions: Grant(f"acme/{glob}", actions), GLOBS, SOME), max_size=3).map(tuple),
    SCOPES,
    st.booleans(),
)


@given(WHO, SCOPES, NAMES, st.booleans())
def test_a_narrowed_token_never_may_more(
    who: Rights, scopes: tuple[Scope, ...] | None, name: str, private: bool
) -> None:
    """Adding scopes to an account, or leaving some out, takes actions away or leaves them."""
    whole = replace(who, scopes=None)
    assert who.actions(name, private=private) <= whole.actions(name, private=private)
    if who.scopes:
        fewer = replace(who, scopes=who.scopes[:-1])
        assert fewer.actions(name, private=private) <= who.actions(name, private=private)
    narrowed = replace(who, scopes=scopes)
    assert narrowed.actions(name, private=private) >= replace(narrowed, anonymous_pull=False).actions(
        name, private=private
    )


@given(WHO, NAMES, st.booleans())
def test_rights_hang_together(who: Rights, name: str, private: bool) -> None:
    """Admin implies the rest, push implies pull, public is never less than private, nobody only pulls what is public,
    and the filter for lists admits exactly what may be pulled."""
    found = who.actions(name, private=private)
    assert implied(found) == found <= ACTIONS
    assert who.actions(name, private=True) <= who.actions(name, private=False)
    if not who.name:
        assert found == (PULL if who.anonymous_pull and not private else NONE)
    visible = who.visible()
    assert ("pull" in found) == (visible is None or visible.admits(name, private))


@given(GLOBS, st.sampled_from(["ann", "acme", "app"]), NAMES)
def test_a_glob_moves_with_the_namespace_it_begins_with(glob: str, namespace: str, name: str) -> None:
    """It covers the renamed repositories as it covered them before, and no others than before."""
    after = moved(glob, namespace, "newcomer")
    if after == glob:
        return
    assert glob.split("/")[0] == namespace
    renamed = moved(name, namespace, "newcomer")
    assert matches(after, renamed) == (matches(glob, name) and renamed != name)
    assert moved(f"{glob}:v*", namespace, "newcomer") == f"{after}:v*"


@given(st.lists(st.text(max_size=30) | st.builds(lambda glob: f"repository:{glob}:pull,push", GLOBS), max_size=3))
def test_scopes_are_in_form_or_refused(texts: list[str]) -> None:
    """Whatever is given: scopes that mean something, or RequestError (INVALID)."""
    caught: RequestError | None = None
    found: tuple[Scope, ...] = ()
    try:
        found = check_scopes(texts)
    except RequestError as err:
        caught = err
    assert (caught is None) == bool(found)
    assert caught is None or (caught.code, caught.status) == ("INVALID", 400)
    assert all(scope.type == "repository" and scope.actions <= ACTIONS and scope.actions for scope in found)


def test_patterns_and_actions_are_in_form() -> None:
    check_pattern("acme/**", "acme")
    check_pattern("**")
    for pattern in ("", "a b", "a:b", "acmes/*", "*"):
        with pytest.raises(RequestError):
            check_pattern(pattern, "acme")
    assert check_actions(["push"]) == {"push"}
    for actions in ([], ["*"], ["pull", "read"]):
        with pytest.raises(RequestError):
            check_actions(actions)
