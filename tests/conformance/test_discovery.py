"""OCI distribution specification, "Content Discovery": tags; and the catalogue, as docker-registry has it."""

from __future__ import annotations

import re

import pytest

from p2pregistry.testing.conformance import Api, says

NEXT = re.compile(r'<(\S+)>; *rel="next"')


def tagged(api: Api, *tags: str) -> None:
    """One image under all these tags."""
    body = api.manifest()
    for tag in tags:
        assert api.put(body, tag).status == 201


@says("Assuming a repository is found, this request MUST return a 200 OK (tags)")
@says("the tags MUST be in lexical")
@says("Upon success, the response MUST be a json body in the following format")
def test_all_tags_in_order(api: Api) -> None:
    tags = ["b", "a", "B", "_x", "1.10", "1.9", "latest", "a-b", "a.b"]
    tagged(api, *tags)
    answer = api("GET", "tags/list")
    assert answer.status == 200
    assert answer["content-type"].startswith("application/json")
    assert answer.json == {"name": api.repo, "tags": sorted(tags)}
    assert answer.get("link") is None


@says("Otherwise, the response MUST include <int> results")
@says("If included, the Link header MUST be set according to RFC 5988")
@says("As above, the tags MUST be in lexical")
@says("The tags MUST be in lexical")
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 100, 10**15])
def test_tags_in_pages(api: Api, n: int) -> None:
    tags = [f"t{number}" for number in range(7)]
    tagged(api, *tags)
    seen: list[str] = []
    target = f"tags/list?n={n}"
    while target:
        answer = api("GET", target)
        page = answer.json["tags"]
        assert len(page) == min(n, 7 - len(seen))
        seen += page
        link = answer.get("link")
        if link is None:
            target = ""
        else:
            found = NEXT.fullmatch(link)
            assert found is not None
            target = found[1]
    assert seen == tags


@says("When n is zero, this endpoint MUST return an empty list, and MUST NOT include a Link")
def test_no_tags_for_nought(api: Api) -> None:
    tagged(api, "a", "b")
    answer = api("GET", "tags/list?n=0")
    assert (answer.status, answer.json["tags"], answer.get("link")) == (200, [], None)


@says("<tagname> MUST NOT be a numerical index")
def test_the_tags_after_one(api: Api) -> None:
    tagged(api, "a", "b", "c", "d")
    assert api("GET", "tags/list?last=b").json["tags"] == ["c", "d"]
    assert api("GET", "tags/list?last=bb").json["tags"] == ["c", "d"], "it need not be there"
    assert api("GET", "tags/list?n=1&last=b").json["tags"] == ["c"]
    assert api("GET", "tags/list?last=d").json["tags"] == []
    assert api("GET", "tags/list?last=2").json["tags"] == ["a", "b", "c", "d"], "a name, no position"


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "%C2%B2", " "])
def test_a_page_size_that_is_none(api: Api, n: str) -> None:
    tagged(api, "a")
    assert api("GET", f"tags/list?n={n.replace(' ', '%20')}").status == 400


def test_a_repository_of_untagged_content_has_no_tags(api: Api) -> None:
    api.image()
    assert api("GET", "tags/list").json == {"name": api.repo, "tags": []}


def test_the_catalogue_in_pages(api: Api) -> None:
    base = api.repo
    for name in ("x", "y", "z"):
        api.repo = f"{base}/{name}"
        api.blob(b"in each of them")
    seen: list[str] = []
    target = f"/v2/_catalog?n=2&last={base}"
    while target and not (seen and seen[-1] > f"{base}/z"):
        answer = api("GET", target)
        assert len(answer.json["repositories"]) <= 2
        seen += answer.json["repositories"]
        found = NEXT.fullmatch(answer.get("link") or "")
        target = "" if found is None else found[1]
    assert [name for name in seen if name.startswith(base)] == [f"{base}/x", f"{base}/y", f"{base}/z"]
    assert seen == sorted(seen)


def test_the_ping(api: Api) -> None:
    answer = api("GET", "/v2/")
    assert (answer.status, answer["docker-distribution-api-version"]) == (200, "registry/2.0")
    assert api("GET", "/v2/", anonymous=True).status == 401, "docker sends credentials only to who asks for them"
