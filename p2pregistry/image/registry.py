"""A client of the pull half of the OCI distribution API, for commands: one request after another, nothing kept.

Whatever a registry answers is checked by whoever asks: manifests against the digest they were asked for by, blobs by
the reader. Credentials go to the registry, or to the place that it names for tokens; not over plain HTTP to another
machine unless the caller chose plain HTTP, and never along with a redirect to another host.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpx

from p2pregistry.digest import Digest, parse_cid
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteBusy, RequestError, SettingsError, Unreachable
from p2pregistry.image.credentials import Challenge, Credentials, parse_challenge
from p2pregistry.image.names import ImageName
from p2pregistry.oci.manifest import MANIFEST_LIMIT
from p2pregistry.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, ROOT_HEADER, bare

_ACCEPT: Final = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
#: Seconds without a byte, and how often in a row an answer that broke off is taken up again.
_SILENCE: Final = 60.0
_AGAIN: Final = 3
_TOKEN_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest byte for byte; the media type is that of the answer, "" without one."""

    digest: Digest
    media_type: str
    body: bytes


class Registry:
    """One repository of a registry. A context manager.

    ``plain``: HTTP instead of HTTPS. ``ca``: a file with certificates to trust instead of the system's. Methods raise
    NotFound, RequestError for what the registry refuses, and RemoteError for one that does not work.
    """

    def __init__(
        self,
        name: ImageName,
        credentials: Credentials | None = None,
        *,
        plain: bool = False,
        ca: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._name, self._credentials = name, credentials
        self._scheme = "http" if plain else "https"
        self._base = f"{self._scheme}://{name.server}/v2/{name.repository}"
        self._authorization: str | None = None
        self._client = httpx.Client(
            verify=_trusting(ca),
            follow_redirects=True,
            timeout=_SILENCE,
            transport=transport,
            trust_env=not name.loopback,  # this machine is not behind a proxy
            headers={"User-Agent": "p2pregistry"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def manifest(self, reference: str | Digest) -> Fetched:
        """By tag or digest; the bytes are those of the digest."""
        with self._answer("GET", f"/manifests/{reference}", {"Accept": _ACCEPT}) as answer:
            body = self._read(answer, MANIFEST_LIMIT)
            media_type = bare(answer.headers.get("content-type", ""))
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        digest = Digest.of(body, algorithm)
        if isinstance(reference, Digest) and digest != reference:
            raise BadContent(f"the registry sent something else for the manifest {reference}")
        return Fetched(digest, media_type, body)

    def root(self, digest: Digest) -> bytes | None:
        """The root CID (36 bytes) that the registry states for a blob; None from one that states none."""
        with self._answer("HEAD", f"/blobs/{digest}", {}) as answer:
            text = answer.headers.get(ROOT_HEADER)
        if text is None:
            return None
        try:
            return parse_cid(text.strip())
        except RequestError as err:
            raise BadContent(f"the registry states a root CID that is none: {text[:100]!r}") from err

    def blob(self, digest: Digest) -> Iterator[bytes]:
        """The bytes as they come; an answer that breaks off is taken up where it ended. Not verified."""
        done = tries = 0
        while True:
            before = done
            try:
                headers = {"Range": f"bytes={done}-"} if done else {}
                with self._answer("GET", f"/blobs/{digest}", headers) as answer:
                    if done and not answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
                        raise Unreachable(f"the registry broke off in the middle of {digest}, and does not go on there")
                    for data in answer.iter_raw():
                        done += len(data)
                        yield data
                return
            except httpx.TransportError as err:
                tries = 1 if done > before else tries + 1
                if tries > _AGAIN or not done:
                    raise _unreachable(self._name, err) from err

    @contextmanager
    def _answer(self, method: str, target: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer to one request, 200 or 206, open until the end of the block."""
        answer = self._send(method, target, headers)
        try:
            yield answer
        finally:
            answer.close()

    def _send(self, method: str, target: str, headers: dict[str, str]) -> httpx.Response:
        for renewed in (False, True):
            more = {"Authorization": self._authorization} if self._authorization else {}
            # as it is: a blob that is compressed in transit would not be what was asked for
            more["Accept-Encoding"] = "identity"
            try:
                request = self._client.build_request(method, self._base + target, headers={**headers, **more})
                answer = self._client.send(request, stream=True)
            except (httpx.TransportError, httpx.TooManyRedirects) as err:
                raise _unreachable(self._name, err) from err
            if answer.status_code in (200, 206):
                return answer
            with closing(answer):
                challenge = _challenge(answer) if self._is_registry(answer.url) else None
                if answer.status_code == 401 and challenge is not None and not renewed:
                    self._authorization = self._prove(challenge)
                    continue
                raise _refusal(self._name, answer, target)
        raise AssertionError("the second answer is an end")

    def _is_registry(self, url: httpx.URL) -> bool:
        """Whether the answer is the registry's own: whoever it redirects to names no place for credentials."""
        own = httpx.URL(self._base)
        return (url.host, url.port) == (own.host, own.port) and url.scheme in {"https", own.scheme}

    def _read(self, answer: httpx.Response, limit: int) -> bytes:
        found = bytearray()
        try:
            for data in answer.iter_raw():
                found += data
                if len(found) > limit:
                    raise BadContent(f"{self._name.host} sends a manifest of more than {limit} bytes")
        except httpx.TransportError as err:
            raise _unreachable(self._name, err) from err
        return bytes(found)

    def _prove(self, challenge: Challenge) -> str:
        """The value of Authorization that a challenge asks for."""
        if challenge.scheme == "basic":
            if self._credentials is None or self._credentials.refresh:
                raise RequestError("UNAUTHORIZED", f"{self._name.host} wants a name and a password; see --username")
            return _basic(self._credentials)
        if urlsplit(challenge.realm).scheme not in {"https", self._scheme}:
            raise RequestError("UNAUTHORIZED", f"{self._name.host} wants credentials sent in the clear")
        scope = challenge.scope or f"repository:{self._name.repository}:pull"
        asked = {"service": challenge.service, "scope": scope}
        try:
            if self._credentials is not None and self._credentials.refresh:
                form = asked | {"grant_type": "refresh_token", "refresh_token": self._credentials.refresh}
                form["client_id"] = "p2pregistry"
                request = self._client.build_request("POST", challenge.realm, data=form)
            else:
                headers = {} if self._credentials is None else {"Authorization": _basic(self._credentials)}
                request = self._client.build_request("GET", challenge.realm, params=asked, headers=headers)
            status, body = self._token(request)
        except (httpx.RequestError, httpx.InvalidURL) as err:
            raise _unreachable(self._name, err) from err
        if status != 200:
            raise RequestError("UNAUTHORIZED", f"{self._name.host} gives no token: status {status}")
        try:
            document = json.loads(body)
            token = str(document.get("token") or document["access_token"])
            token.encode("ascii")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as err:
            raise BadContent(f"{self._name.host} gives a token that cannot be read") from err
        return f"Bearer {token}"

    def _token(self, request: httpx.Request) -> tuple[int, bytes]:
        """Status and body of the answer of a place for tokens; of one that is too long the beginning, which is no
        document."""
        found = bytearray()
        with closing(self._client.send(request, stream=True, follow_redirects=False)) as answer:
            for data in answer.iter_bytes():
                found += data
                if len(found) > _TOKEN_LIMIT:
                    break
        return answer.status_code, bytes(found[:_TOKEN_LIMIT])


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _trusting(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca))
    except OSError as err:  # ssl.SSLError is one
        raise SettingsError(f"--ca-file: {ca} holds no certificates that can be read: {err}") from err


def _challenge(answer: httpx.Response) -> Challenge | None:
    return next(
        (found for line in answer.headers.get_list("www-authenticate") if (found := parse_challenge(line))), None
    )


def _unreachable(name: ImageName, err: Exception) -> Unreachable:
    return Unreachable(f"{name.host} does not answer: {str(err)[:300] or type(err).__name__}")


def _refusal(name: ImageName, answer: httpx.Response, target: str) -> RegistryError:
    status = answer.status_code
    what = f"{name.repository}{target.replace('/manifests/', ' manifest ').replace('/blobs/', ' blob ')}"
    if status == 404:
        return NotFound("MANIFEST_UNKNOWN", f"{name.host} has no {what}")
    if status in (401, 403):
        return RequestError("DENIED", f"{name.host} does not give {what} with these credentials: status {status}")
    if status == 429:
        return RemoteBusy(f"{name.host} is asked too often, now for {what}; try later")
    # what servers say that expect TLS
    clear = (
        "; it was asked over plain HTTP: --tls asks over TLS" if status == 400 and answer.url.scheme == "http" else ""
    )
    return Unreachable(f"{name.host} answered {status} for {what}{clear}")
