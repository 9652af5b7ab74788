"""Any bytes are a certificate with an Ed25519 key, or BadContent."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import BadContent
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.trust.certificate import MAX_CERTIFICATE, is_expectation, is_of, key_in, self_signed
from p2pregistry.trust.proof import fingerprint

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
GOOD = self_signed(KEY)


def read(data: bytes) -> Ed25519PublicKey | None:
    try:
        return key_in(data)
    except BadContent:
        return None


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert read(data) is None or data.startswith(b"\x30")


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_certificate_that_was_changed_is_read_or_refused(at: int, change: bytes, longer: bool) -> None:
    data = GOOD[:at] + change + GOOD[at if longer else at + len(change) :]
    key = read(data)
    assert key is None or isinstance(key, Ed25519PublicKey)


@given(st.text(max_size=70))
def test_any_text_is_an_expectation_or_none(text: str) -> None:
    key = KEY.public_key()
    if is_expectation(text):
        assert not is_of(key, text) or text in (fingerprint(key), base58(peer_id_of(KEY)))
    else:
        with pytest.raises(BadContent):
            is_of(key, text)


def test_the_key_is_that_of_the_peer_id_and_the_fingerprint() -> None:
    key = key_in(GOOD)
    for of, ours in ((KEY, True), (OTHER, False)):
        assert is_of(key, base58(peer_id_of(of))) is ours
        assert is_of(key, fingerprint(of.public_key())) is ours


def test_a_certificate_of_another_kind_of_key_or_one_too_long_is_refused() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    key = ec.generate_private_key(ec.SECP256R1())
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = builder.serial_number(1).not_valid_before(when).not_valid_after(when).sign(key, hashes.SHA256())
    with pytest.raises(BadContent, match="Ed25519"):
        key_in(made.public_bytes(Encoding.DER))
    with pytest.raises(BadContent, match="too long"):
        key_in(b"\x30" * (MAX_CERTIFICATE + 1))
