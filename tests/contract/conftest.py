"""A Postgres server for each test process, and an empty database for each test that asks for ``database``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from p2pregistry.testing.postgres import fresh_database, running
from tracker.embedded import embedded_postgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("postgres")
    with running(lambda: embedded_postgres(home)) as dsn:
        yield dsn


@pytest.fixture
def database(postgres_server: str) -> Iterator[str]:
    with fresh_database(postgres_server, f"test_{next(_numbers)}") as dsn:
        yield dsn
