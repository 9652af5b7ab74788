"""No sentence of the specification without a test, and no test of a sentence that is not listed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LISTS = runpy.run_path(str(HERE / "sentences.py"))
SAYS = re.compile(r'^@says\("(.*)"\)$', re.MULTILINE)


def test_every_sentence_that_binds_a_registry_has_a_test() -> None:
    marked = {text for path in HERE.glob("test_*.py") for text in SAYS.findall(path.read_text("utf-8"))}
    assert marked == LISTS["SHOWN"]


@pytest.mark.parametrize("where", sorted(set(LISTS["ELSEWHERE"].values())))
def test_tests_that_are_named_are_there(where: tuple[str, str]) -> None:
    module, name = where
    assert f"def {name}(" in (HERE.parent / f"{module}.py").read_text("utf-8")


def test_what_has_no_test_has_a_reason() -> None:
    assert all(reason for reason in LISTS["NOTHING_TO_SHOW"].values())
    assert len(set(LISTS["CLIENTS"])) == len(LISTS["CLIENTS"])
