"""What S3's answers mean, and which requests are made again; answers from a scripted transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from trio.testing import MockClock

from p2pregistry.errors import LocalError, NotFound, StorageFull
from p2pregistry.objects.s3 import S3Objects
from p2pregistry.objects.s3_client import ANSWER_MOST, TRIES, S3Client, S3Error, together
from p2pregistry.objects.s3_config import s3_config

CONFIG = s3_config(endpoint="https://s3.example.org", bucket="blobs", access_key="AK", secret_key="hidden")


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>hidden</Message><StringToSign>hidden</StringToSign></Error>".encode()


def refusal(status: int, code: str = "") -> httpx.Response:
    return httpx.Response(status, content=error(code) if code else b"")


class Body(httpx.AsyncByteStream):
    """Bytes that have not been read yet."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data


class Script:
    """Answers in turn, the last for ever; keeps the requests and when they came."""

    def __init__(self, *answers: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, httpx.Response):
            answer = answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Body(answer.content))


@asynccontextmanager
async def client(script: Script) -> AsyncIterator[S3Client]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(script)) as http:
        yield S3Client(CONFIG, http, http, lambda: 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        refusal(503, "SlowDown"),
        refusal(500, "InternalError"),
        refusal(400, "RequestTimeout"),
        refusal(400, "BadDigest"),
        refusal(409, "OperationAborted"),
        refusal(429),
        refusal(502),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("closed"),
    ],
)
async def test_what_may_go_better_is_tried_again(bad: httpx.Response | Exception, autojump_clock: MockClock) -> None:
    script = Script(bad, bad, httpx.Response(200, headers={"ETag": '"tag"'}))
    async with client(script) as s3:
        assert await s3.put("a", b"data") == '"tag"'
    assert [request.content for request in script.requests] == [b"data"] * 3


async def test_it_is_given_up_after_some_tries_further_and_further_apart(autojump_clock: MockClock) -> None:
    script = Script(refusal(503, "SlowDown"))
    async with client(script) as s3:
        with pytest.raises(LocalError, match="SlowDown"):
            await s3.get("a", 0, 1)
    pauses = [later - earlier for earlier, later in zip(script.times, script.times[1:], strict=False)]
    assert len(script.requests) == TRIES
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 8 * pauses[0] * 0.99


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "SignatureDoesNotMatch", "secret key is wrong"),
        (403, "InvalidAccessKeyId", "access key"),
        (403, "AccessDenied", "rights"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "ExpiredToken", "expired"),
        (404, "NoSuchBucket", "bucket"),
        (301, "", "region"),
        (400, "MadeUp", "MadeUp"),
        (418, "", "418"),
    ],
)
async def test_what_will_not_go_better_is_said_once_and_without_secrets(status: int, code: str, said: str) -> None:
    script = Script(refusal(status, code))
    async with client(script) as s3:
        with pytest.raises(LocalError, match=said) as caught:
            await s3.put("a", b"data")
    assert len(script.requests) == 1
    assert "hidden" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "code"), [(403, "QuotaExceeded"), (507, ""), (507, "XMinioStorageFull"), (403, "StorageLimitExceeded")]
)
async def test_no_room_is_told_apart(status: int, code: str) -> None:
    async with client(Script(refusal(status, code))) as s3:
        with pytest.raises(StorageFull):
            await s3.put("a", b"data")


async def test_a_bucket_that_is_gone_is_not_a_blob_that_is_gone() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return refusal(404) if request.method == "HEAD" else refusal(404, "NoSuchBucket")

    async with client(Script(answer)) as s3:
        with pytest.raises(LocalError, match="bucket"):
            await S3Objects(s3).size("u/aa/one")


async def test_a_key_that_is_not_there_is_a_blob_that_is_gone() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return refusal(404) if request.method == "HEAD" else refusal(404, "NoSuchKey")

    async with client(Script(answer)) as s3:
        store = S3Objects(s3)
        opened = await store.open("u/aa/one", 5)
        for call in (
            lambda: store.size("u/aa/one"),
            lambda: opened.read_at(0, 5),
            lambda: store.body("u/aa/one", 5, 0, 5),
        ):
            with pytest.raises(NotFound) as caught:
                await call()
            assert caught.value.code == "BLOB_UNKNOWN"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"0123456789"),  # the range was not heeded
        httpx.Response(206, content=b"234", headers={"Content-Range": "bytes 3-5/10"}),
        httpx.Response(206, content=b"23", headers={"Content-Range": "bytes 2-4/10"}),
        httpx.Response(206, content=b"234"),
        httpx.Response(206, content=b"234", headers={"Content-Range": "bytes 2-4/*"}),
        httpx.Response(206, content=b"2345", headers={"Content-Range": "bytes 2-4/10"}),
    ],
)
async def test_other_bytes_than_were_asked_for_are_refused(answer: httpx.Response) -> None:
    async with client(Script(answer)) as s3:
        with pytest.raises(S3Error):
            await s3.get("a", 2, 3)


async def test_an_object_of_another_size_is_not_served() -> None:
    answer = httpx.Response(206, content=b"234", headers={"Content-Range": "bytes 2-4/11"})
    async with client(Script(answer)) as s3:
        store = S3Objects(s3)
        opened = await store.open("u/aa/one", 10)
        with pytest.raises(LocalError, match="11 bytes in place of 10"):
            await opened.read_at(2, 3)
        with pytest.raises(LocalError, match="11 bytes in place of 10"):
            await store.body("u/aa/one", 10, 2, 3)


async def test_an_answer_without_end_is_cut_off() -> None:
    class Endless(httpx.AsyncByteStream):
        taken = 0

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                Endless.taken += 1 << 20
                await trio.lowlevel.checkpoint()
                yield bytes(1 << 20)

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        s3 = S3Client(CONFIG, http, http, lambda: 1.0)
        with pytest.raises(S3Error, match="more bytes"):
            async for _ in s3.entries("uploads/"):
                pass
    assert Endless.taken <= ANSWER_MOST + (2 << 20)


async def test_an_error_that_comes_with_status_200_is_an_error(autojump_clock: MockClock) -> None:
    script = Script(httpx.Response(200, content=error("InternalError")))
    async with client(script) as s3:
        with pytest.raises(S3Error, match="InternalError"):
            await s3.complete("a", "upload", ['"1"'], {})
        with pytest.raises(S3Error, match="InternalError"):
            await s3.copy_part("a", "upload", 1, "b", None)
    assert len(script.requests) == 2 * TRIES


async def test_what_is_not_s3_is_not_understood() -> None:
    async with client(Script(httpx.Response(200, content=b"<html>Welcome</html>"))) as s3:
        with pytest.raises(S3Error, match="not understood"):
            await s3.create("a", {})


async def test_every_try_is_signed_anew(autojump_clock: MockClock) -> None:
    script = Script(refusal(503), httpx.Response(200))
    async with client(script) as s3:
        await s3.put("a", b"data")
    first, second = (request.headers for request in script.requests)
    assert first["content-md5"] == second["content-md5"]
    assert first["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AK/")
    assert "content-md5" in second["authorization"]


async def test_calls_together_stop_at_the_first_failure() -> None:
    made: list[int] = []

    def call(number: int) -> Callable[[], object]:
        async def run() -> None:
            made.append(number)
            await trio.lowlevel.checkpoint()
            if number == 3:
                raise LocalError("third")

        return run

    with pytest.raises(LocalError, match="third"):
        await together([call(number) for number in range(20)], 2)
    assert len(made) < 8
    await together([call(number) for number in range(100, 110)], 4)
    assert sorted(made[-10:]) == list(range(100, 110))
