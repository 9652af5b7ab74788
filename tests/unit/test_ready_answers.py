"""Answers to manifest requests that are kept ready: never longer than the resolver vouches for them."""

from __future__ import annotations

from typing import cast

import pytest

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.flights import Flights
from p2pregistry.resolve import Found, Resolver
from p2pregistry.serve.body import NO_BODY
from p2pregistry.serve.hosts import Hosts
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.pull_api import READY, PullApi
from p2pregistry.store.base import Blob
from p2pregistry.store.records import StoredManifest
from p2pregistry.visible import Visible

TARGET = "/v2/acme/api/manifests/1"


class Tags:
    """A resolver that counts: every tag is ``body`` for two seconds from when it was asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.body = b"{}"
        self.warning: str | None = None
        self.asked = 0
        self.changes = 0
        self.shown = 0

    async def manifest(self, repository: str, reference: str | Digest) -> Found:
        self.asked += 1
        if not self.body:
            raise NotFound("MANIFEST_UNKNOWN", "gone")
        stored = StoredManifest(Digest.of(self.body), "application/json", self.body)
        return Found(stored, self.warning, 0.0 if self.warning else self.now + 2)


class Nothing:
    async def open(self, digest: Digest) -> Blob:
        raise NotFound("BLOB_UNKNOWN", "not here")


@pytest.fixture
def tags() -> Tags:
    return Tags()


@pytest.fixture
def api(tags: Tags) -> PullApi:
    def interest(_manifest: StoredManifest) -> None:
        tags.shown += 1

    return PullApi(
        cast("Resolver", tags),
        cast("Visible", tags),
        Nothing(),
        cast("Flights", None),
        hosts=Hosts(()),
        names=lambda: frozenset({"registry.example.com"}),
        served=lambda _count: None,
        clock=lambda: tags.now,
        interest=interest,
    )


async def ask(api: PullApi, target: str = TARGET, method: str = "GET") -> Response:
    return await api(Request(method, target, (), NO_BODY))


async def test_the_same_answer_without_asking(api: PullApi, tags: Tags) -> None:
    first = await ask(api)
    again = await ask(api)
    assert (again.status, again.headers, again.body) == (first.status, first.headers, first.body)
    again.headers.append(("X-Mine", "1"))  # what one answer gets is not in the next
    assert (await ask(api)).headers == first.headers
    assert (tags.asked, tags.shown) == (1, 1)


async def test_only_while_it_is_fresh(api: PullApi, tags: Tags) -> None:
    await ask(api)
    tags.body = b'{"moved": 1}'
    tags.now += 1.9
    assert (await ask(api)).body == b"{}"
    tags.now += 0.1
    assert (await ask(api)).body == tags.body
    tags.now -= 3600  # the clock was set back: nothing is known to be fresh
    await ask(api)
    assert tags.asked == 3


async def test_a_tag_that_is_gone_is_gone(api: PullApi, tags: Tags) -> None:
    await ask(api)
    tags.now += 2
    tags.body = b""
    for _ in range(2):
        with pytest.raises(NotFound):
            await ask(api)


async def test_a_stale_answer_is_not_kept(api: PullApi, tags: Tags) -> None:
    tags.warning = "old"
    await ask(api)
    await ask(api)
    assert tags.asked == 2


async def test_head_shows_no_interest_but_is_served_from_what_get_left(api: PullApi, tags: Tags) -> None:
    await ask(api, method="HEAD")
    assert (tags.asked, tags.shown) == (1, 0)
    await ask(api)
    assert (tags.asked, tags.shown) == (2, 1)
    assert (await ask(api, method="HEAD")).status == 200
    assert tags.asked == 2
    with pytest.raises(RequestError):
        await ask(api, method="DELETE")


async def test_names_are_checked_each_time(api: PullApi, tags: Tags) -> None:
    for _ in range(2):
        assert ("OCI-Namespace", "registry.example.com") in (
            await ask(api, f"{TARGET}?ns=registry.example.com")
        ).headers
        with pytest.raises(NotFound):
            await ask(api, f"{TARGET}?ns=docker.io")
    assert tags.asked == 2


async def test_what_is_kept_is_bounded(api: PullApi, tags: Tags) -> None:
    for number in range(READY + 10):
        await ask(api, f"/v2/acme/api/manifests/t{number}")
    assert len(api._ready) <= READY
