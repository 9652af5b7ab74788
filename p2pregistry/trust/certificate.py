"""TLS between nodes: who somebody is follows from the key in the certificate, and from nothing else in it.

The certificate is self-signed with the identity key of the one who shows it; that it has the secret part of the key is
what the handshake proves. Neither names nor dates nor chains are looked at: the client knows the key it wants.
"""

from __future__ import annotations

import datetime
import functools
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from p2pregistry.errors import BadContent
from p2pregistry.trust.proof import fingerprint, public_key_of

#: The longest certificate that is looked at, bytes; ours have 250.
MAX_CERTIFICATE: Final = 16 << 10
#: As ``trust.proof.fingerprint`` makes them.
_FINGERPRINT: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pregistry")])
#: Any certificate without an end has this one (RFC 5280, 4.1.2.5).
_END: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_BEGINNING: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def self_signed(key: Ed25519PrivateKey) -> bytes:
    """A certificate of this key, DER."""
    builder = x509.CertificateBuilder().subject_name(_NAME).issuer_name(_NAME).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(_BEGINNING).not_valid_after(_END)
    return builder.sign(key, None).public_bytes(Encoding.DER)


def key_in(certificate: bytes) -> Ed25519PublicKey:
    """The key of a certificate (DER) as it came from outside. Raises BadContent for one without an Ed25519 key."""
    if len(certificate) > MAX_CERTIFICATE:
        raise BadContent("a certificate is too long")
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise BadContent("a certificate cannot be read") from err
    if not isinstance(key, Ed25519PublicKey):
        raise BadContent("a certificate has no Ed25519 key")
    return key


def is_expectation(text: str) -> bool:
    """Whether ``is_of`` can be asked with this."""
    if _FINGERPRINT.fullmatch(text) is not None:
        return True
    try:
        public_key_of(text)
    except BadContent:
        return False
    return True


def is_of(key: Ed25519PublicKey, expected: str) -> bool:
    """Whether this is the key of a peer id (base58), or the key with a fingerprint. Raises BadContent for a text that
    is neither."""
    if _FINGERPRINT.fullmatch(expected) is not None:  # a peer id of an Ed25519 key is longer
        return fingerprint(key) == expected
    wanted = public_key_of(expected)
    return wanted.public_bytes(Encoding.Raw, PublicFormat.Raw) == key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def server_context(key: Ed25519PrivateKey) -> ssl.SSLContext:
    """For those who listen with this identity."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody takes a session up again: the key is looked at in each handshake
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _file(secret + ssl.DER_cert_to_PEM_cert(self_signed(key)).encode("ascii")) as path:
        context.load_cert_chain(path)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    """For those who ask. Whoever uses it must look at the key, with ``key_in``, before a byte is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _file(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL, which takes nothing else, can read these bytes; not on a disk where that can be."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("certificate"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as named:
            named.write(data)
            named.flush()
            yield named.name
