"""Push, pull, discovery and management once more, by a client that shows access tokens where the other shows a
password."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pregistry.testing.conformance import Api

HERE = Path(__file__).parent
_numbers = itertools.count(1)


def borrowed(name: str) -> dict[str, object]:
    """The tests of a module beside this one, to be run with the client of this one."""
    spec = importlib.util.spec_from_file_location(f"again_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if key.startswith("test_")}


@pytest.fixture
def api(origin: str) -> Iterator[Api]:
    """A client that shows tokens, and a repository of its own."""
    with Api.connected(origin, f"conformance/t{next(_numbers)}", bearer=True) as client:
        yield client


for _name in ("test_push", "test_pull", "test_discovery", "test_management"):
    _found = borrowed(_name)
    assert _found
    assert not _found.keys() & globals().keys()
    globals().update(_found)
