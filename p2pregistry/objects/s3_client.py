"""Requests to S3 over httpx: signed, repeated where that does no harm, and their failures made ours.

Every request here may be repeated: what is written is whole and always the same under its key, except the completion of
a multipart upload, whose caller looks whether it was done.

Answers to requests have bounded lengths and are read whole; ``stream`` gives the body of an object as it comes. The two
have connections of their own, so that slow clients that are being sent objects never hold up anything else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx
import trio

from p2pregistry.errors import LocalError, StorageFull
from p2pregistry.ipfs.http import cut_short
from p2pregistry.objects import s3_answers
from p2pregistry.objects.s3_config import MIB, S3Config
from p2pregistry.objects.s3_sign import Buffer, Signer, escaped

#: Seconds: for a connection, for a free one of the pool, and without a byte. S3 may take long over a completion.
_CONNECT: Final = 5.0
_POOL: Final = 10.0
_SILENCE: Final = 30.0
_SLOW: Final = 300.0
#: How often a request is tried, in how many seconds the last try begins, and the longest pause, doubled from the first.
TRIES: Final = 5
_TRY_FOR: Final = 20.0
_PAUSE: Final = 0.2
_PAUSE_MOST: Final = 5.0
#: The longest answer that is read whole, bytes; that of a list of 1,000 names is below 1 MiB.
ANSWER_MOST: Final = 8 * MIB
_ERROR_MOST: Final = 64 << 10
#: Bytes that are handed to the connection at a time, and up to which hashing costs less than the way to a thread.
_SEND: Final = 256 << 10
_INLINE: Final = 32 << 10

_AGAIN: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "BadDigest"}
    | {"ConditionalRequestConflict"}
)
_AGAIN_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: A full quota has a code of its own with nearly every maker.
_FULL: Final = re.compile(r"QuotaExceeded|StorageFull|StorageLimit|InsufficientStorage|DiskFull")
_REFUSED: Final = {
    "SignatureDoesNotMatch": "the secret key is wrong",
    "InvalidAccessKeyId": "it does not know the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is wrong",
    "AccessDenied": "the access key has not the rights that are needed",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NoSuchBucket": "there is no such bucket",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "PermanentRedirect": "the bucket is at another endpoint or in another region",
}


_RANGE: Final = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})")

_T = TypeVar("_T")


class S3Error(LocalError):
    """A request failed. ``answered`` is the status, 0 where no answer came; ``reason`` S3's code for it, or ""."""

    def __init__(self, message: str, *, answered: int = 0, reason: str = "", again: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        self.reason = reason
        self.again = again

    @property
    def missing(self) -> bool:
        """There is no such key."""
        return self.reason == "NoSuchKey"

    @property
    def unsupported(self) -> bool:
        """The server does not know this kind of request."""
        return self.answered == 501 or self.reason in ("NotImplemented", "MethodNotAllowed")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class S3Client:
    """Made by ``open_client``. ``draw`` gives numbers from 0 to 1."""

    def __init__(
        self, config: S3Config, short: httpx.AsyncClient, long: httpx.AsyncClient, draw: Callable[[], float]
    ) -> None:
        self.config = config
        self.signer = Signer(config)
        self._short, self._long, self._draw = short, long, draw

    async def call(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        data: Buffer = b"",
        most: int = ANSWER_MOST,
        late: bool = False,
    ) -> Answer:
        """An answer with a status below 300, and ``most`` bytes at most. ``late``: S3 sends the status before it knows
        how it ends. Raises S3Error, StorageFull."""
        if len(data) > _INLINE:
            seal = await trio.to_thread.run_sync(self.signer.seal, data)
        else:
            seal = self.signer.seal(data)
        url = self._url(key, query)

        async def once() -> Answer:
            # signed each time anew: a signature is good for some minutes only
            signed = self.signer.headers(method, url, {**headers, **seal})
            timeout = httpx.Timeout(_SILENCE, connect=_CONNECT, pool=_POOL, read=_SLOW if late else _SILENCE)
            if data:
                signed["Content-Length"] = str(len(data))
            request = self._short.build_request(
                method, url, headers=signed, content=_pieces(data) if data else None, timeout=timeout
            )
            response = await _send(self._short, request)
            try:
                if response.status_code >= 300:
                    raise await _refusal(response, method)
                body = await _whole(response, most)
                if late and (reason := s3_answers.error_code(body)):
                    raise _failed(response.status_code, reason, method)
                return Answer(response.status_code, dict(response.headers), body)
            finally:
                await response.aclose()

        return await self.again(once)

    async def stream(self, key: str, offset: int, length: int) -> httpx.Response:
        """The answer with bytes of an object, its body not read; the caller closes it. Raises S3Error."""
        url = self._url(key, {})
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", **self.signer.seal(b"")}
        timeout = httpx.Timeout(_SILENCE, connect=_CONNECT, pool=_POOL)

        async def once() -> httpx.Response:
            signed = self.signer.headers("GET", url, headers)
            response = await _send(self._long, self._long.build_request("GET", url, headers=signed, timeout=timeout))
            try:
                if response.status_code >= 300:
                    raise await _refusal(response, "GET")
            except BaseException:
                await response.aclose()
                raise
            return response

        return await self.again(once)

    async def again(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """What ``once`` gives, which is tried again, after a pause, where that may help. Raises S3Error."""
        started = trio.current_time()
        pause = _PAUSE
        for tried in range(1, TRIES + 1):
            try:
                return await once()
            except S3Error as err:
                if not err.again or tried == TRIES or trio.current_time() - started > _TRY_FOR:
                    raise
            await trio.sleep(pause * (0.5 + self._draw() / 2))
            pause = min(2 * pause, _PAUSE_MOST)
        raise AssertionError("not reached")

    def _url(self, key: str, query: Mapping[str, str]) -> str:
        url = self.config.url(key)
        return f"{url}?{escaped(query)}" if query else url

    # ------------------------------------------------------------------------------------------------- single objects

    async def get(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        """``length`` bytes from ``offset``, and how many the object has. Raises S3Error, also for fewer."""

        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        answer = await self.call("GET", key, headers=headers, most=length)
        total = total_of(answer.status, answer.headers, offset, length)
        if len(answer.data) != length:
            raise S3Error("the object store answers with another range than was asked for")
        return answer.data, total

    async def put(self, key: str, data: Buffer, headers: Mapping[str, str] = {}) -> str:
        """Write an object; its tag. Raises S3Error, StorageFull."""
        content = {"Content-Type": "application/octet-stream", **headers}
        return (await self.call("PUT", key, headers=content, data=data)).headers.get("etag", "")

    async def head(self, key: str) -> Answer:
        """Raises S3Error (``missing``)."""
        try:
            return await self.call("HEAD", key)
        except S3Error as err:
            if err.answered != 404:
                raise
        # An answer to HEAD has no body, so a bucket that is not there would look like an object that is gone.
        await self.call("GET", key, headers={"Range": "bytes=0-0"}, most=ANSWER_MOST)
        raise S3Error("the object store contradicts itself about an object", answered=404, again=True)

    async def delete(self, key: str) -> None:
        """Remove an object, if it is there. Raises S3Error."""
        try:
            await self.call("DELETE", key)
        except S3Error as err:
            if not err.missing:
                raise

    async def entries(self, prefix: str, *, deep: bool = True) -> AsyncIterator[s3_answers.Entry]:
        """The objects below ``prefix``, in the order of their keys; if not ``deep`` without those of which the rest of
        the key has a ``/``. Raises S3Error."""
        query = {"list-type": "2", "prefix": prefix}
        if not deep:
            query["delimiter"] = "/"
        while True:
            answer = await self.call("GET", query=query)
            with _understood():
                page = s3_answers.objects_page(answer.data)
            for entry in page.entries:
                yield entry
            if page.next is None:
                return
            query["continuation-token"] = page.next

    # ----------------------------------------------------------------------------------------------- multipart uploads

    async def create(self, key: str, headers: Mapping[str, str]) -> str:
        """Begin a multipart upload; its id. Raises S3Error."""
        content = {"Content-Type": "application/octet-stream", **headers}
        answer = await self.call("POST", key, query={"uploads": ""}, headers=content)
        with _understood():
            return s3_answers.upload_id(answer.data)

    async def put_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """Its tag. Raises S3Error, StorageFull."""
        query = {"partNumber": str(number), "uploadId": upload}
        return (await self.call("PUT", key, query=query, data=data)).headers.get("etag", "")

    async def copy_part(self, key: str, upload: str, number: int, source: str, part: tuple[int, int] | None) -> str:
        """Let the server copy the object ``source``, or ``part`` of it (offset, length). Its tag. Raises S3Error."""
        headers = {"X-Amz-Copy-Source": f"{self.config.bucket}/{source}"}
        if part is not None:
            headers["X-Amz-Copy-Source-Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
        query = {"partNumber": str(number), "uploadId": upload}
        answer = await self.call("PUT", key, query=query, headers=headers, late=True)
        with _understood():
            return s3_answers.copied_etag(answer.data)

    async def complete(self, key: str, upload: str, etags: Sequence[str], headers: Mapping[str, str]) -> None:
        """Make the parts the object. After an S3Error it may have been done. Raises S3Error, StorageFull."""
        body = s3_answers.completion(list(etags))
        answer = await self.call("POST", key, query={"uploadId": upload}, headers=headers, data=body, late=True)
        with _understood():
            s3_answers.completed(answer.data)

    async def abort(self, key: str, upload: str) -> None:
        """Forget a multipart upload and its parts. Raises S3Error."""
        try:
            await self.call("DELETE", key, query={"uploadId": upload})
        except S3Error as err:
            if err.reason != "NoSuchUpload":
                raise

    async def unfinished(self, prefix: str) -> AsyncIterator[s3_answers.Unfinished]:
        """The multipart uploads below ``prefix`` that have no end. MinIO lists them for a whole key only. Raises
        S3Error."""
        query = {"uploads": "", "prefix": prefix}
        while True:
            answer = await self.call("GET", query=query)
            with _understood():
                found, after = s3_answers.uploads_page(answer.data)
            for upload in found:
                yield upload
            if after is None:
                return
            query["key-marker"], query["upload-id-marker"] = after


@asynccontextmanager
async def open_client(
    config: S3Config, *, draw: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000
) -> AsyncIterator[S3Client]:
    """Connections are opened when they are needed. Raises LocalError if ``ca_file`` cannot be used."""
    try:
        tls = httpx.create_ssl_context(trust_env=False)
        if config.ca_file is not None:
            tls.load_verify_locations(config.ca_file)
    except OSError as err:
        raise LocalError("the certificates in ca_file cannot be used") from err

    def client(connections: int) -> httpx.AsyncClient:
        # as many may stay open as there are: httpcore 1.0.9 takes busy connections for idle ones when it counts
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30)
        return httpx.AsyncClient(
            verify=tls, trust_env=False, limits=limits, headers={"Accept-Encoding": "identity"}, follow_redirects=False
        )

    async with client(config.requests) as short, client(config.streams) as long:
        yield S3Client(config, short, long, draw)


def total_of(status: int, headers: Mapping[str, str], offset: int, length: int) -> int:
    """How many bytes the object has of which ``length`` from ``offset`` were asked for. Raises S3Error if the answer is
    another range."""
    if status == 200 and offset == 0:  # a range that is all may be answered without saying so
        stated = headers.get("content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated) == length:
            return length
    found = _RANGE.fullmatch(headers.get("content-range", "")) if status == 206 else None
    if found is None or (int(found[1]), int(found[2])) != (offset, offset + length - 1):
        raise S3Error("the object store answers with another range than was asked for", answered=status)
    return int(found[3])


async def together(calls: Sequence[Callable[[], Awaitable[object]]], width: int) -> None:
    """Make the calls, ``width`` at a time; after the first failure no more are begun. Raises LocalError."""
    failures: list[LocalError] = []
    left = iter(calls)

    async def work() -> None:
        for call in left:
            try:
                await call()
            except LocalError as err:
                failures.append(err)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(width, len(calls))):
            nursery.start_soon(work)
    if failures:
        raise failures[0]


async def _pieces(data: Buffer) -> AsyncIterator[bytes]:
    """Piecemeal, so that the time-out for writing is for a piece."""
    with memoryview(data) as view:
        for at in range(0, len(view), _SEND):
            yield bytes(view[at : at + _SEND])


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    try:
        return await client.send(request, stream=True)
    except httpx.HTTPError as err:
        raise broken(err) from err


def broken(err: httpx.HTTPError) -> S3Error:
    """What a failure of the connection means."""
    if isinstance(err, httpx.PoolTimeout):
        return S3Error("all connections to the object store are in use")
    return S3Error(f"the object store cannot be reached ({type(err).__name__})", again=True)


async def _whole(response: httpx.Response, most: int) -> bytes:
    data = bytearray()
    chunks = response.aiter_raw()
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) > most:
                await cut_short(chunks)
                raise S3Error("the object store answers with more bytes than were asked for")
    except httpx.HTTPError as err:
        raise broken(err) from err
    return bytes(data)


async def _refusal(response: httpx.Response, method: str) -> LocalError:
    """The error that an answer is."""
    data = b"" if method == "HEAD" else await _whole(response, _ERROR_MOST)
    return _failed(response.status_code, s3_answers.error_code(data), method)


def _failed(status: int, reason: str, method: str) -> LocalError:
    if status == 507 or _FULL.search(reason):
        return StorageFull("the object store has no room left")
    if status in (301, 307) and not reason:
        reason = "PermanentRedirect"
    said = f"{method}: {status} {reason}".rstrip()
    known = _REFUSED.get(reason)
    if known is not None:
        return S3Error(f"the object store refuses us: {known} ({said})", answered=status, reason=reason)
    again = status in _AGAIN_STATUS or reason in _AGAIN
    return S3Error(f"the object store refuses a request ({said})", answered=status, reason=reason, again=again)


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except s3_answers.BadAnswer as err:
        raise S3Error(f"the object store is not understood: {err}") from err
