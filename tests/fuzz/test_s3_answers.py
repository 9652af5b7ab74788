"""Whatever bytes an S3 server answers: they are understood, or BadAnswer says that they are not."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.objects import s3_answers
from p2pregistry.objects.s3_answers import BadAnswer, Entry, Page

PARSERS = [
    s3_answers.objects_page,
    s3_answers.uploads_page,
    s3_answers.upload_id,
    s3_answers.copied_etag,
    s3_answers.completed,
]
NAMES = st.sampled_from(
    [
        "ListBucketResult",
        "Contents",
        "Key",
        "Size",
        "LastModified",
        "IsTruncated",
        "NextContinuationToken",
        "Error",
        "Code",
        "ErrorResponse",
        "Upload",
        "UploadId",
        "Initiated",
        "ListMultipartUploadsResult",
        "CopyPartResult",
        "ETag",
    ]
)
TEXTS = st.one_of(st.just("true"), st.text(max_size=20), st.integers().map(str))
TREES = st.recursive(
    st.tuples(NAMES, TEXTS).map(lambda pair: f"<{pair[0]}>{escape(pair[1])}</{pair[0]}>"),
    lambda inner: st.tuples(NAMES, st.lists(inner, max_size=4)).map(
        lambda pair: f"<{pair[0]}>{''.join(pair[1])}</{pair[0]}>"
    ),
    max_leaves=12,
)
ANSWERS = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), TREES.map(str.encode))
#: What XML can hold as text and we would take for a key: no control characters, no space at either end.
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=0xD7FF), min_size=1, max_size=30).filter(
    lambda key: key == key.strip() and key.isprintable()
)


@given(data=ANSWERS)
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except BadAnswer:
            continue


@given(data=ANSWERS)
def test_the_code_of_an_error_can_be_logged_as_it_is(data: bytes) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]{0,64}", s3_answers.error_code(data))


@given(
    entries=st.lists(st.tuples(KEYS, st.integers(0, 1 << 50)), max_size=5),
    space=st.sampled_from(["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ' xmlns="http://doc.s3.example/"']),
    after=st.one_of(st.none(), KEYS),
)
def test_a_page_is_read_back_whatever_its_namespace(
    entries: list[tuple[str, int]], space: str, after: str | None
) -> None:
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>{size}</Size></Contents>"
        for key, size in entries
    )
    more = "" if after is None else f"<NextContinuationToken>{escape(after)}</NextContinuationToken>"
    cut = str(after is not None).lower()
    inner = f"<IsTruncated>{cut}</IsTruncated>{contents}{more}"
    text = f"<?xml version='1.0'?><ListBucketResult{space}>{inner}</ListBucketResult>"
    expected = tuple(Entry(key, size, 1767323045.0) for key, size in entries)
    assert s3_answers.objects_page(text.encode()) == Page(expected, after)


@given(cut=st.integers(0, 120))
def test_a_page_cut_short_is_never_taken_for_a_whole_one(cut: int) -> None:
    inner = b"<IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size></Contents>"
    text = b"<ListBucketResult>" + inner + b"</ListBucketResult>"
    with pytest.raises(BadAnswer):
        s3_answers.objects_page(text[: min(cut, len(text) - 1)])


def test_a_document_type_is_refused_before_it_is_read() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 1000 + b'">]><ListBucketResult>&b;</ListBucketResult>'
    for data in (bomb, bomb.decode().encode("utf-16")):
        with pytest.raises(BadAnswer):
            s3_answers.objects_page(data)


def test_an_error_after_the_status_is_no_success() -> None:
    error = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>m</Message></Error>"
    assert s3_answers.error_code(error) == "InternalError"
    for parse in (s3_answers.completed, s3_answers.copied_etag):
        with pytest.raises(BadAnswer):
            parse(error)


def test_spaces_before_an_answer_keep_a_connection_open_and_mean_nothing() -> None:
    data = b"  \n  <?xml version='1.0'?>\n<CompleteMultipartUploadResult/>"
    s3_answers.completed(data)
    assert s3_answers.error_code(b"\n \n<Error><Code>SlowDown</Code></Error>") == "SlowDown"


def test_a_completion_names_the_parts_in_order() -> None:
    body = s3_answers.completion(['"a"', "<b>"]).decode()
    assert body.index('<PartNumber>1</PartNumber><ETag>"a"</ETag>') < body.index(
        "<PartNumber>2</PartNumber><ETag>&lt;b&gt;"
    )
