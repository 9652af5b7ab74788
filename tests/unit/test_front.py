"""Paths of the registry listener."""

from __future__ import annotations

import pytest

from p2pregistry.observe import route_class
from p2pregistry.serve.http import Handler, Request, Response
from p2pregistry.testing.handlers import call
from tracker.front import by_path


def named(name: str) -> Handler:
    async def handle(request: Request) -> Response:
        return Response(200, [], name.encode())

    return handle


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/token", "token"),
        ("/token?scope=x", "token"),
        ("/tok%65n", "token"),
        ("/token/", "other"),
        ("/token2", "other"),
        ("/api/v1/users", "api"),
        ("/api/", "api"),
        ("/api", "other"),
        ("/v2/", "other"),
        ("/v2/api/token", "other"),
    ],
)
async def test_each_path_has_its_handler(target: str, name: str) -> None:
    front = by_path({"/token": named("token"), "/api/": named("api")}, named("other"))
    assert (await call(front, "GET", target)).body.decode() == name


def test_the_requests_of_ipfs_clients_are_counted_by_themselves() -> None:
    paths = ("/ipfs/bafkqaaa", "/routing/v1/providers/x", "/ipfs", "/p2p/v1/swarm", "/else")
    assert [route_class(path) for path in paths] == ["ipfs", "routing", "other", "p2p", "other"]
