"""A tracker with a certificate of its own, which is replaced while it runs."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import random
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pregistry.digest import Digest
from p2pregistry.serve.tls import server_context
from p2pregistry.testing.tracker_process import AUTHORIZATION, TrackerProcess, tracker

pytestmark = pytest.mark.e2e
PATIENCE = 30.0


def certificate(folder: Path, name: str) -> None:
    """A self-signed certificate for loopback in ``folder``, in place of what is there."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for file, data in (
        ("key", key.private_bytes(serialization.Encoding.PEM, form, plain)),
        ("crt", made.public_bytes(serialization.Encoding.PEM)),
    ):
        (folder / f"{file}.new").write_bytes(data)
        (folder / f"{file}.new").replace(folder / file)


def connect(process: TrackerProcess, trusted: Path | None) -> http.client.HTTPSConnection:
    parts = urlsplit(process.facts["url"])
    assert parts.scheme == "https"
    context = ssl.create_default_context(cafile=None if trusted is None else str(trusted))
    return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=PATIENCE, context=context)


def shown(process: TrackerProcess) -> str:
    """The name in the certificate that a new connection is shown."""
    parts = urlsplit(process.facts["url"])
    pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 0), timeout=PATIENCE)
    (name,) = x509.load_pem_x509_certificate(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    certificate(tmp_path, "first")
    return {"tls.cert_file": str(tmp_path / "crt"), "tls.key_file": str(tmp_path / "key")}


def test_pushes_and_pulls_over_tls(tmp_path: Path, settings: dict[str, str]) -> None:
    data = random.Random(1).randbytes(5_000_000)
    with tracker(tmp_path / "tracker", settings) as process:
        connection = connect(process, tmp_path / "crt")
        headers = {"Authorization": AUTHORIZATION}
        connection.request("POST", f"/v2/a/blobs/uploads/?digest={Digest.of(data)}", data, headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        answer.read()
        for span in (None, "bytes=1000000-1999999"):
            connection.request("GET", f"/v2/a/blobs/{Digest.of(data)}", headers={} if span is None else {"Range": span})
            answer = connection.getresponse()
            assert answer.read() == (data if span is None else data[1_000_000:2_000_000])
        connection.close()
        stranger = connect(process, None)
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.request("GET", "/v2/")
        stranger.close()
        parts = urlsplit(process.facts["url"])
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE) as plain:
            plain.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200" not in plain.recv(1000), "nothing is served in the clear"
    assert server_context(tmp_path / "crt", tmp_path / "key").minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    with tracker(tmp_path / "tracker", settings) as process:
        kept = connect(process, tmp_path / "crt")
        kept.request("GET", "/v2/")
        kept.getresponse().read()
        assert shown(process) == "first"
        certificate(tmp_path, "second")
        deadline = time.monotonic() + PATIENCE
        while shown(process) != "second":
            assert time.monotonic() < deadline
        kept.request("GET", "/v2/")  # the connection that was open goes on
        assert kept.getresponse().status == 401
        (tmp_path / "crt").write_text("no certificate")
        log = tmp_path / "tracker" / "log"
        while "cannot be used" not in log.read_text("utf-8"):
            assert time.monotonic() < deadline
        assert shown(process) == "second"
        kept.close()


def test_a_download_that_is_under_way_is_finished_at_shutdown(tmp_path: Path, settings: dict[str, str]) -> None:
    data = random.Random(2).randbytes(20_000_000)
    with tracker(tmp_path / "tracker", settings) as process:
        connection = connect(process, tmp_path / "crt")
        connection.request(
            "POST", f"/v2/a/blobs/uploads/?digest={Digest.of(data)}", data, {"Authorization": AUTHORIZATION}
        )
        connection.getresponse().read()
        connection.request("GET", f"/v2/a/blobs/{Digest.of(data)}")
        answer = connection.getresponse()
        begun = answer.read(1000)
        process.process.terminate()
        assert begun + answer.read() == data
        connection.close()
        assert process.process.wait(PATIENCE) == 0


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "key").write_text("no key")
    command = [sys.executable, "-m", "p2pregistry", "tracker", "run", "--data-dir", str(tmp_path / "data")]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command += [part for name in ("registry", "peer", "libp2p", "metrics") for part in ("--set", f"{name}.port=0")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no certificate with its key" in done.stderr
