"""Objects in S3 do what every object store must do, and what only S3 can get wrong; on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from p2pregistry.objects.s3 import open_s3
from p2pregistry.objects.s3_config import S3Config
from p2pregistry.testing.objects import check_object_store
from p2pregistry.testing.seaweed import Seaweed, seaweed

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("s3") / "home") as running:
        yield running


@pytest.fixture
def config(server: Seaweed) -> S3Config:
    """An empty place in the bucket."""
    return server.config(f"test-{next(_numbers)}/")


async def test_s3(config: S3Config) -> None:
    await check_object_store(lambda: open_s3(config))
