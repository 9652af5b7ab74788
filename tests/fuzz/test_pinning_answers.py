"""Whatever a service that keeps IPFS content answers: it is understood, or refused with an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.digest import cid_text
from p2pregistry.errors import BadContent, RemoteError
from p2pregistry.ipfs import pinning_answers as answers

NAMES = st.sampled_from(
    ["delegates", "requestid", "status", "pin", "cid", "info", "status_details", "results", "error", "reason"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["pinned", "bafkqaaa"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.binary(max_size=200) | VALUES.map(json.dumps).map(str.encode)
REQUESTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


@given(data=ANSWERS)
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    for parse in (answers.pin, answers.pins):
        with suppress(BadContent):
            parse(data)
    found = answers.uploaded_root(data)
    assert found is None or len(found) == 36


@given(
    request=REQUESTS, status=st.sampled_from(["queued", "pinning", "pinned", "failed"]), details=st.text(max_size=300)
)
def test_a_pin_is_read(request: str, status: str, details: str) -> None:
    document = {"requestid": request, "status": status, "pin": {"cid": "bafkqaaa"}, "info": {"status_details": details}}
    pin = answers.pin(json.dumps(document).encode())
    assert (pin.request, pin.status, pin.cid) == (request, status, "bafkqaaa")
    assert pin.info == pin.info.strip()
    assert len(pin.info) <= 200
    assert answers.pins(json.dumps({"count": 1, "results": [document]}).encode()) == [pin]


@given(status=st.integers(300, 599), data=ANSWERS, wait=st.none() | st.text(max_size=40), now=st.floats(0, 2e9))
def test_any_refusal_is_an_error_that_can_be_shown(status: int, data: bytes, wait: str | None, now: float) -> None:
    error = answers.refusal(status, data, wait, now)
    assert isinstance(error, RemoteError)
    assert error.message.isprintable()
    assert len(error.message) < 400
    assert 0.0 <= answers.wait(wait, now) <= answers.WAIT_MOST


@given(st.binary(min_size=32, max_size=32))
def test_roots_of_uploads_in_the_forms_that_there_are(hash_: bytes) -> None:
    cid = b"\x01\x70\x12\x20" + hash_
    text = cid_text(cid)
    for document in (
        {"cid": text},
        {"root": text},
        {"ok": True, "value": {"cid": text}},
        {"root": {"/": text}},
    ):
        assert answers.uploaded_root(json.dumps(document).encode()) == cid
    lines = "\n".join(json.dumps(document) for document in ({"name": "a"}, {"cid": text}))
    assert answers.uploaded_root(f"{lines}\n".encode()) == cid
    assert answers.uploaded_root(json.dumps({"cid": "Qm" + "a" * 44}).encode()) is None


def test_waits_in_both_forms() -> None:
    assert answers.wait("120", 0.0) == 120.0
    assert answers.wait("Thu, 01 Jan 1970 00:01:00 GMT", 0.0) == 60.0
    assert answers.wait("9999999", 0.0) == answers.WAIT_MOST
