"""An issuer of identity tokens on loopback, as a Kubernetes API server is: its keys over https, tokens on demand."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey, KeyParameters, RSAKey

NAME = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "p2pregistry"
SUBJECT = "system:serviceaccount:kube-system:p2pregistry-node"


class Issuer:
    """Keys by their ids, and what was asked of it over https: headers of each request for the keys."""

    def __init__(self) -> None:
        self.keys: dict[str, RSAKey | ECKey] = {}
        self.requests: list[Mapping[str, str]] = []
        self.url = ""

    def add(self, name: str, kind: str = "RS256") -> RSAKey | ECKey:
        """A new key."""
        options: KeyParameters = {"kid": name, "use": "sig"}
        made = RSAKey.generate_key(2048, options) if kind == "RS256" else ECKey.generate_key("P-256", options)
        self.keys[name] = made
        return made

    def key_set(self) -> bytes:
        """What it publishes."""
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys.values()]}).encode()

    def token(self, now: float, *, key: str = "first", alg: str = "RS256", **claims: Any) -> str:
        """One for AUDIENCE and SUBJECT that begins at ``now`` and lasts an hour, unless ``claims`` say otherwise; None
        leaves a claim out."""
        usual = {
            "iss": NAME,
            "aud": [AUDIENCE],
            "sub": SUBJECT,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now) + 3600,
        }
        stated = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        return jwt.encode({"alg": alg, "kid": key}, stated, self.keys[key], algorithms=[alg])


@contextmanager
def issuing(folder: Path) -> Iterator[Issuer]:
    """An issuer with the key "first", serving on loopback; the certificate to trust for it is ``folder``/issuer.pem."""
    issuer = Issuer()
    issuer.add("first")
    _certificate(folder)

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(dict(self.headers.items()))
            body = issuer.key_set()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library has it
            """Says nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "issuer.pem", folder / "issuer.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        issuer.url = f"https://127.0.0.1:{server.server_address[1]}/openid/v1/jwks"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()


def _certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "issuer.key").write_bytes(pem)
    (folder / "issuer.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
