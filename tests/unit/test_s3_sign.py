"""Signatures are those of Amazon's examples ("Authenticating Requests: AWS Signature Version 4")."""

from __future__ import annotations

import logging
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import md5, sha256

import botocore.auth
import pytest

from p2pregistry.objects.s3_config import S3Config, s3_config
from p2pregistry.objects.s3_sign import Signer, escaped

EMPTY = sha256().hexdigest()


def config(**other: object) -> S3Config:
    values = {
        "endpoint": "https://s3.amazonaws.com",
        "bucket": "examplebucket",
        "access_key": "AKIAIOSFODNN7EXAMPLE",
        "secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "path_style": False,
    }
    return s3_config(**{**values, **other})


@pytest.fixture(autouse=True)
def _then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda *_args, **_kwargs: datetime(2013, 5, 24, tzinfo=UTC)
    )


def signature(headers: dict[str, str]) -> str:
    return headers["Authorization"].rpartition("Signature=")[2]


def test_get_object() -> None:
    made = config()
    headers = {"Range": "bytes=0-9", "X-Amz-Content-SHA256": EMPTY}
    signed = Signer(made).headers("GET", made.url("test.txt"), headers)
    assert signature(signed) == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


def test_list_objects() -> None:
    made = config()
    url = f"{made.url()}?{escaped({'prefix': 'J', 'max-keys': '2'})}"
    signed = Signer(made).headers("GET", url, {"X-Amz-Content-SHA256": EMPTY})
    assert signature(signed) == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"


def test_a_link() -> None:
    link = Signer(config()).link("test.txt", 86400.0, {})
    assert link.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_what_is_sent_is_sealed() -> None:
    tag = b64encode(md5(b"data").digest()).decode()
    assert Signer(config()).seal(b"data") == {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD", "Content-MD5": tag}
    whole = Signer(config(sign_payload=True)).seal(memoryview(b"data"))
    assert whole == {"X-Amz-Content-SHA256": sha256(b"data").hexdigest(), "Content-MD5": tag}
    assert Signer(config()).seal(b"") == {"X-Amz-Content-SHA256": EMPTY}


def test_a_session_token_is_signed_too() -> None:
    made = config(session_token="hidden-token")
    signed = Signer(made).headers("GET", made.url("a"), {"X-Amz-Content-SHA256": EMPTY})
    assert signed["X-Amz-Security-Token"] == "hidden-token"
    assert "x-amz-security-token" in signed["Authorization"]
    assert "X-Amz-Security-Token=hidden-token" in Signer(made).link("a", 60.0, {})


def test_nothing_secret_is_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = config(session_token="hidden-token")
    signer = Signer(made)
    signer.headers("GET", made.url("a"), {"X-Amz-Content-SHA256": EMPTY})
    signer.link("a", 60.0, {})
    assert "hidden" not in caplog.text
    assert "wJalr" not in caplog.text
    assert "Signature" not in caplog.text


def test_a_query_is_escaped_in_one_way_only() -> None:
    assert escaped({"b": "a/ +~", "a": "é="}) == "a=%C3%A9%3D&b=a%2F%20%2B~"
