"""Whatever an IPFS daemon answers: it is understood, or refused with an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import cid_text
from p2pregistry.errors import BadContent, RegistryError
from p2pregistry.ipfs import kubo_answers as answers

PARSERS = [
    answers.block_key,
    answers.imported,
    answers.file_stat,
    answers.file_list,
    answers.repo_stat,
    answers.version,
    answers.pin_kinds,
]
NAMES = st.sampled_from(
    [
        "Key",
        "Size",
        "Root",
        "Cid",
        "/",
        "PinErrorMsg",
        "Hash",
        "Type",
        "Entries",
        "Name",
        "RepoSize",
        "StorageMax",
        "Version",
        "Keys",
        "Message",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.binary(max_size=200) | VALUES.map(json.dumps).map(str.encode)


@given(data=ANSWERS)
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    for parse in PARSERS:
        with suppress(BadContent):
            parse(data)


@given(status=st.integers(100, 599), data=ANSWERS)
def test_any_refusal_is_an_error_that_can_be_shown(status: int, data: bytes) -> None:
    error = answers.refusal(status, data)
    assert isinstance(error, RegistryError)
    assert error.message.isprintable()
    assert len(error.message) < 400


@given(roots=st.lists(st.binary(min_size=32, max_size=32), max_size=4), error=st.text(max_size=50))
def test_roots_are_read_line_by_line(roots: list[bytes], error: str) -> None:
    cids = [cid_text(b"\x01\x55\x12\x20" + root) for root in roots]
    lines = [json.dumps({"Root": {"Cid": {"/": cid}, "PinErrorMsg": error}}) for cid in cids]
    found = answers.imported("\n".join([*lines, '{"Stats":{"BlockCount":1}}', ""]).encode())
    assert [root.cid for root in found] == cids
    assert all(root.error == answers.printable(error) for root in found)


@given(text=st.text(max_size=200))
def test_a_root_that_is_no_cid_can_be_shown(text: str) -> None:
    (found,) = answers.imported(json.dumps({"Root": {"Cid": {"/": text}}}).encode())
    assert not found.cid or found.cid.isprintable()


@given(secret=st.text(max_size=40))
def test_any_secret_becomes_a_header_or_is_refused(secret: str) -> None:
    with suppress(ValueError):
        value = answers.authorization(secret)
        assert value.startswith(("Bearer ", "Basic "))
        assert value.isascii()
        assert value.isprintable()


@pytest.mark.parametrize(
    ("text", "most"), [('{"RepoSize":5,"StorageMax":18446744073709551615}', None), ('{"RepoSize":5,"StorageMax":9}', 9)]
)
def test_a_repository_without_bound(text: str, most: int | None) -> None:
    assert answers.repo_stat(text.encode()).most == most
