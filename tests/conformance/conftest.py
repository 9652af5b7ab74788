"""One real tracker for all tests of a worker, and a client that shows every byte and header."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from p2pregistry.testing.conformance import Api
from p2pregistry.testing.tracker_process import tracker

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"uploads.min_free": "0"}
    with tracker(tmp_path_factory.mktemp("conformance") / "tracker", settings) as process:
        yield process.facts["url"].removeprefix("http://")


@pytest.fixture
def api(origin: str) -> Iterator[Api]:
    """A client with the pusher's credentials and a repository of its own."""
    with Api.connected(origin, f"conformance/r{next(_numbers)}") as client:
        yield client
