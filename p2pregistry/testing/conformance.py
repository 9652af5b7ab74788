"""What the conformance suite is written with: sentences of the specification, and a client that hides nothing."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import ipaddress
import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlencode, urljoin, urlsplit

from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from p2pregistry.testing.tracker_process import AUTHORIZATION

EMPTY_JSON: Final = "application/vnd.oci.empty.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_PATIENCE: Final = 60.0  # seconds; only a test that fails takes as long

F = TypeVar("F", bound=Callable[..., object])

#: Which tests cover a sentence: its beginning, to names of tests.
COVERED: Final[dict[str, list[str]]] = {}


def says(*sentences: str) -> Callable[[F], F]:
    """The test shows these sentences of the specification, each named by some words of it (see ``sentences.py``)."""

    def mark(test: F) -> F:
        for sentence in sentences:
            COVERED.setdefault(sentence, []).append(getattr(test, "__name__", ""))
        return test

    return mark


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names are lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """A header that must be there."""
        values = self.all(name)
        assert values, f"no {name} in {self.headers}"
        return values[0]

    def get(self, name: str) -> str | None:
        """The first header of this name."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every header of this name."""
        return [value for key, value in self.headers if key == name.lower()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        """The codes of an error body, whose form is checked."""
        assert self["content-type"].startswith("application/json")
        errors = self.json["errors"]
        assert errors
        for error in errors:
            assert set(error) <= {"code", "message", "detail"}
            assert all(c.isupper() or c == "_" for c in error["code"])
            assert isinstance(error.get("message", ""), str)
        return [error["code"] for error in errors]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """As it stands in URLs."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    """Of these bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def encode(document: Mapping[str, object]) -> bytes:
    """A manifest as a client might write it: the bytes matter, not the style."""
    return json.dumps(document, indent=1).encode()


@dataclass
class Api:
    """A client of one registry on one kept connection. ``repo``: a repository that nobody else uses.

    ``source``: the loopback address that it comes from, as a socket takes it; None: any. Registries count wrong
    passwords by address, and one test must not be turned away for what another one sent. ``bearer``: what it shows are
    access tokens for the repositories of each request, which it gets where the challenge of the ping says.
    """

    address: str
    repo: str
    connection: http.client.HTTPConnection
    random: random.Random
    source: tuple[str, int] | None
    bearer: bool = False
    tokens: dict[tuple[str, ...], str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def connected(cls, address: str, repo: str, *, bearer: bool = False) -> Iterator[Api]:
        """Until the end of the block."""
        source = own_address(repo) if address.startswith("127.") else None
        connection = http.client.HTTPConnection(address, timeout=_PATIENCE, source_address=source)
        try:
            yield cls(address, repo, connection, random.Random(repo), source, bearer)  # noqa: S311 - reproducible
        finally:
            connection.close()

    def __call__(
        self,
        method: str,
        target: str,
        body: bytes | Sequence[bytes] = b"",
        *,
        anonymous: bool = False,
        **headers: str,
    ) -> Answer:
        """One request. A path that does not begin with ``/`` is below the repository; a Location may be absolute. A
        list of chunks goes out with chunked encoding. ``content_type="x"`` is the header Content-Type."""
        parts = urlsplit(urljoin(f"http://{self.address}/v2/{self.repo}/", target))
        where = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if not anonymous:
            sent["Authorization"] = f"Bearer {self._token(where)}" if self.bearer else AUTHORIZATION
        if isinstance(body, bytes):
            # a registry may refuse a body that it has not read; its answer is there all the same
            with contextlib.suppress(BrokenPipeError):
                self.connection.request(method, where, body or None, sent)
        else:
            self.connection.request(
                method, where, iter(body), sent | {"Transfer-Encoding": "chunked"}, encode_chunked=True
            )
        found = self.connection.getresponse()
        return Answer(found.status, [(name.lower(), value) for name, value in found.getheaders()], found.read())

    def _token(self, where: str) -> str:
        """An access token for all that a request could need."""
        parts = urlsplit(where)
        names = re.findall(r"^/v2/(.+)/(?:manifests|blobs|tags|referrers)/", parts.path)
        names = [unquote(name) for name in [*names, *parse_qs(parts.query).get("from", [])]]
        # what is no name makes no scope: any token will do to be told so
        asking = [f"repository:{name}:pull,push,delete" for name in names if name.isprintable() and " " not in name]
        scopes = tuple(asking) or ("registry:catalog:*",)
        if scopes not in self.tokens:
            asked = self("GET", "/v2/", anonymous=True)["www-authenticate"]
            challenge = dict(re.findall(r'(\w+)="([^"]*)"', asked.removeprefix("Bearer ")))
            query = urlencode([("service", challenge["service"]), *(("scope", scope) for scope in scopes)])
            answer = self("GET", f"{challenge['realm']}?{query}", anonymous=True, authorization=AUTHORIZATION)
            assert answer.status == 200, answer
            self.tokens[scopes] = answer.json["token"]
        return self.tokens[scopes]

    def fresh(self, size: int = 100) -> bytes:
        """Bytes that no test has used."""
        return self.random.randbytes(size)

    def start(self, query: str = "") -> str:
        """The Location of a new upload."""
        answer = self("POST", f"blobs/uploads/{query}", content_length="0")
        assert answer.status == 202, answer
        return answer["location"]

    def blob(self, data: bytes, algorithm: str = "sha256") -> str:
        """Push a blob; its digest."""
        digest = digest_of(data, algorithm)
        answer = self("PUT", with_digest(self.start(), digest), data)
        assert answer.status == 201, answer
        return digest

    def manifest(self, **more: object) -> bytes:
        """The bytes of an image manifest whose config and layer have been pushed."""
        config, layer = b'{"architecture":"amd64","os":"linux"}', self.fresh()
        self.blob(config)
        self.blob(layer)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": [descriptor(layer, LAYER)],
            "annotations": {"unique": self.fresh(8).hex()},
            **more,
        }
        return encode(document)

    def artifact(self, subject: bytes | None, artifact_type: str | None, **annotations: str) -> bytes:
        """The bytes of an artifact's manifest, whose only blob is the empty object."""
        self.blob(b"{}")
        empty = descriptor(b"{}", EMPTY_JSON)
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": empty,
            "layers": [empty],
            "annotations": {"unique": self.fresh(8).hex(), **annotations},
        }
        if artifact_type is not None:
            document["artifactType"] = artifact_type
        if subject is not None:
            document["subject"] = descriptor(subject, OCI_MANIFEST)
        return encode(document)

    def put(self, body: bytes, reference: str | None = None, media_type: str = OCI_MANIFEST) -> Answer:
        """Push a manifest under a tag, or else its digest."""
        return self("PUT", f"manifests/{reference or digest_of(body)}", body, content_type=media_type)

    def image(self, tag: str | None = None, **more: object) -> bytes:
        """Push an image; the bytes of its manifest."""
        body = self.manifest(**more)
        answer = self.put(body, tag)
        assert answer.status == 201, answer
        return body

    def index(self, *children: bytes, **more: object) -> bytes:
        """The bytes of an index over manifests."""
        entries = [descriptor(child, OCI_MANIFEST) for child in children]
        return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **more})

    def referrers(self, subject: bytes | str, query: str = "") -> Answer:
        """The list of referrers."""
        return self("GET", f"referrers/{digest_of(subject) if isinstance(subject, bytes) else subject}{query}")

    def holds(self, digest: str, data: bytes) -> bool:
        """Whether the blob is there, right, whichever way it is asked for."""
        got, head = self("GET", f"blobs/{digest}"), self("HEAD", f"blobs/{digest}")
        return (got.status, got.body, head.status, head["content-length"]) == (200, data, 200, str(len(data)))


def own_address(name: str) -> tuple[str, int] | None:
    """A loopback address for the client of this name, with any port: never 127.0.x.y, where others are. None where only
    127.0.0.1 can be bound, which is so on other systems than Linux."""
    if sys.platform != "linux":
        return None
    return str(ipaddress.IPv4Address("127.1.0.0") + zlib.crc32(name.encode()) % (254 << 16)), 0


def with_digest(location: str, digest: str) -> str:
    """A Location with the digest that closes the upload; it may have a query already."""
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def basic(user: str, password: str) -> str:
    """An Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
