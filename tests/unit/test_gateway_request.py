"""What requests to a trustless gateway ask for."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.gateway_request import Asked, Bytes, read_request
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import RequestError

CID = Digest.of(b"block").cid()
TEXT = cid_text(CID)
PATH = f"/ipfs/{TEXT}"


def read(query: str = "", *accept: str, path: str = PATH) -> Asked:
    return read_request(path, parse_qsl(query, keep_blank_values=True), accept)


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        ("format=raw", "", "raw"),
        ("format=car", "", "car n"),
        ("", "application/vnd.ipld.raw", "raw"),
        ("", "Application/Vnd.IPLD.Raw", "raw"),
        ("", "application/vnd.ipld.car", "car n"),
        ("", "application/vnd.ipld.car; version=1; order=dfs; dups=y", "car y"),
        ("", 'application/vnd.ipld.car;version="1";dups=n', "car n"),
        ("", "application/vnd.ipld.car;order=unk;dups=y", "car y"),
        ("", "application/vnd.ipld.car, application/vnd.ipld.raw", "car n"),
        ("", "application/vnd.ipld.car;q=0.5, application/vnd.ipld.raw", "raw"),
        ("", "application/vnd.ipld.car;q=0, application/vnd.ipld.raw;q=0.1", "raw"),
        ("", "application/vnd.ipld.car;order=foo, application/vnd.ipld.car;order=dfs;dups=y;q=0.5", "car y"),
        ("", "application/vnd.ipld.car;version=2, application/vnd.ipld.raw;q=0.1", "raw"),
        ("", "text/html, application/vnd.ipld.raw;q=0.1, */*", "raw"),
        ("format=raw", "application/vnd.ipld.car", "raw"),
        ("format=car", "application/vnd.ipld.raw", "car n"),
        ("format=car", "application/vnd.ipld.car;dups=y", "car y"),
        ("format=car&car-dups=n", "application/vnd.ipld.car;dups=y", "car n"),
        ("format=car&car-dups=y&car-order=dfs&car-version=1", "", "car y"),
        ("format=car&car-order=unk", "application/vnd.ipld.car;order=foo", "car n"),
        ("format=car&format=raw", "", "car n"),
    ],
)
def test_the_form_of_the_answer(query: str, accept: str, form: str) -> None:
    asked = read(query, *([accept] if accept else []))
    assert f"{asked.format}{'' if asked.format == 'raw' else ' y' if asked.dups else ' n'}" == form
    assert (asked.cid, asked.text) == (CID, TEXT)


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ("", "", 400),
        ("", "*/*", 400),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", 400),
        ("format=", "", 406),
        ("format=tar", "", 406),
        ("format=json", "application/vnd.ipld.raw", 406),
        ("", "text/html", 406),
        ("", "application/x-tar", 406),
        ("", "application/vnd.ipld.car;version=2", 406),
        ("", "application/vnd.ipld.car;order=foo", 406),
        ("", "application/vnd.ipld.car;dups=maybe", 406),
        ("format=car&car-version=2", "", 406),
        ("format=car&car-order=foo", "", 406),
        ("format=car&car-dups=x", "", 406),
        ("format=car&dag-scope=none", "", 400),
        ("format=car&entity-bytes=", "", 400),
        ("format=car&entity-bytes=1", "", 400),
        ("format=car&entity-bytes=*:1", "", 400),
        ("format=car&entity-bytes=5:4", "", 400),
        ("format=car&entity-bytes=-4:-5", "", 400),
        ("format=car&entity-bytes=0:99999999999999999999", "", 400),
    ],
)
def test_what_is_refused(query: str, accept: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        read(query, *([accept] if accept else []))
    assert caught.value.status == status
    if status == 400 and not query:
        assert "format=raw" in caught.value.message


@pytest.mark.parametrize(
    ("path", "raw", "car"),
    [
        ("/ipfs/", 400, 400),
        ("/ipfs/nonsense", 400, 400),
        (f"{PATH}/", 400, 200),
        (f"{PATH}/a", 400, 404),
        (f"{PATH}/a/b", 400, 404),
        ("/ipfs/bafyreiaabbb", 400, 400),
        ("/ipfs/bafkqabtimvwgy3yk", 404, 404),
    ],
)
def test_paths(path: str, raw: int, car: int) -> None:
    for query, status in (("format=raw", raw), ("format=car", car)):
        if status == 200:
            assert read(query, path=path).cid == CID
            continue
        with pytest.raises(RequestError) as caught:
            read(query, path=path)
        assert caught.value.status == status


def test_how_much_of_a_dag() -> None:
    assert read("format=car").scope == "all"
    assert read("format=car&dag-scope=block").scope == "block"
    asked = read("format=car&dag-scope=block&entity-bytes=-5:*")
    assert (asked.scope, asked.part) == ("entity", Bytes(-5, None))
    assert read("format=raw&dag-scope=nonsense&entity-bytes=x").format == "raw", "of a block they mean nothing"


def test_every_answer_has_its_own_tag() -> None:
    queries = ["format=raw", "format=car", "format=car&car-dups=y", "format=car&dag-scope=block",
               "format=car&dag-scope=entity", "format=car&entity-bytes=0:*", "format=car&entity-bytes=0:5"]  # fmt: skip
    assert len({read(query).etag for query in queries}) == len(queries)


@pytest.mark.parametrize(
    ("query", "accept", "location"),
    [
        ("format=raw", "application/vnd.ipld.raw", ""),
        ("", "application/vnd.ipld.raw", f"{PATH}?format=raw"),
        ("format=car", "", ""),
        ("format=car", "application/vnd.ipld.car", ""),
        (
            "dag-scope=block",
            "application/vnd.ipld.car;dups=y",
            f"{PATH}?format=car&car-version=1&car-order=dfs&car-dups=y&dag-scope=block",
        ),
        (
            "format=car&entity-bytes=0:*",
            "application/vnd.ipld.car;dups=y",
            f"{PATH}?format=car&car-version=1&car-order=dfs&car-dups=y&entity-bytes=0:*",
        ),
        ("format=car&car-version=1&car-order=dfs&car-dups=n", "application/vnd.ipld.car;dups=y", ""),
    ],
)
def test_where_the_same_is_without_an_accept_header(query: str, accept: str, location: str) -> None:
    asked = read(query, *([accept] if accept else []))
    assert asked.location == location
    if location:
        again = read(urlsplit(location).query)
        assert (again.etag, again.location) == (asked.etag, "")


_NUMBERS = st.integers(-300, 300)


@given(st.integers(0, 200), _NUMBERS, st.one_of(st.none(), _NUMBERS))
def test_bytes_are_counted_as_the_specification_does(size: int, first: int, last: int | None) -> None:
    begin = max(0, size + first) if first < 0 else first
    end = size - 1 if last is None else size + last if last < 0 else last
    wanted = [at for at in range(size) if begin <= at <= end]
    assert Bytes(first, last).within(size) == ((wanted[0], wanted[-1]) if wanted else None)


_NAMES = st.sampled_from(["format", "dag-scope", "entity-bytes", "car-version", "car-order", "car-dups", "filename"])
_VALUES = st.one_of(st.text(max_size=30), st.sampled_from(["car", "raw", "all", "block", "1", "dfs", "y", "0:*"]))
_ACCEPT = st.one_of(
    st.text(max_size=60),
    st.builds("application/vnd.ipld.car;{}={};q={}".format, st.text(max_size=9), _VALUES, st.text(max_size=5)),
)


@given(st.text(max_size=80), st.lists(st.tuples(_NAMES, _VALUES), max_size=6), st.lists(_ACCEPT, max_size=4))
def test_any_request_is_read_or_refused(path: str, query: list[tuple[str, str]], accept: list[str]) -> None:
    refused: set[int] = set()
    for where in (f"/ipfs/{path}", PATH, f"{PATH}/{path}"):
        try:
            asked = read_request(where, query, accept)
        except RequestError as err:
            refused.add(err.status)
        else:
            for text in (asked.etag, asked.filename, asked.content_type, asked.location):
                assert text.isascii()
                assert text.isprintable()
    assert refused <= {400, 404, 406}
