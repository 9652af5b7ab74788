"""Where an S3 store is: what is taken, what is refused, and that keys do not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pregistry.errors import SettingsError
from p2pregistry.objects.s3_config import MIB, S3Config, s3_config

GOOD = {"endpoint": "https://s3.example.org", "bucket": "blobs", "access_key": "AKID", "secret_key": "hidden-secret"}


def config(**other: object) -> S3Config:
    return s3_config(**{**GOOD, **other})


def test_keys_do_not_show() -> None:
    made = config(session_token="hidden-token")
    assert "hidden" not in repr(made)
    assert "hidden" not in str(made)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint", "s3.example.org"),
        ("endpoint", "ftp://s3.example.org"),
        ("endpoint", "https://user:word@s3.example.org"),
        ("endpoint", "https://s3.example.org/path"),
        ("endpoint", "https://s3.example.org?x=1"),
        ("public_endpoint", "https://"),
        ("bucket", "a/b"),
        ("bucket", ""),
        ("prefix", "/lead"),
        ("prefix", "a//b"),
        ("prefix", "a b"),
        ("prefix", "../a"),
        ("region", "eu west"),
        ("secret_key", ""),
        ("secret_key", "hidden\nline"),
        ("access_key", "hidden key"),
        ("session_token", ""),
        ("part_size", 4 * MIB),
        ("part_size", 9 * MIB),
        ("ca_file", Path("/nowhere/at-all.pem")),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        config(**{name: value})
    assert "hidden" not in str(caught.value)


def test_urls_are_made_in_both_styles() -> None:
    made = config(prefix="registry", endpoint="https://S3.example.org:9000/")
    assert made.url(made.prefix + "objects/a") == "https://s3.example.org:9000/blobs/registry/objects/a"
    assert made.url() == "https://s3.example.org:9000/blobs"
    made = config(path_style=False)
    assert made.url("objects/a") == "https://blobs.s3.example.org/objects/a"
    assert made.url() == "https://blobs.s3.example.org/"


def test_links_can_lead_to_another_host() -> None:
    made = config(public_endpoint="https://cdn.example.org")
    assert made.url("a", public=True) == "https://cdn.example.org/blobs/a"
    assert config().url("a", public=True) == "https://s3.example.org/blobs/a"


def test_the_body_is_signed_where_tls_does_not_protect_it() -> None:
    assert not config().sign_payload
    assert config(endpoint="http://127.0.0.1:9000").sign_payload
    assert config(sign_payload=True).sign_payload


def test_parts_are_equal_where_the_server_wants_it() -> None:
    assert config(endpoint="https://0123456789abcdef.r2.cloudflarestorage.com", region="auto").equal_parts
    assert config(endpoint="https://0123.eu.r2.cloudflarestorage.com", region="auto").equal_parts
    assert not config().equal_parts
    assert not config(endpoint="https://x.r2.cloudflarestorage.com", equal_parts=False).equal_parts
