"""The upload endpoints over durable sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.objects.memory import MemoryObjects
from p2pregistry.serve.http import Request, Response
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.sessions import Lease, unknown
from tracker.catalog.sessions_memory import MemorySessions
from tracker.catalog.trail import By
from tracker.upload_api import UploadApi
from tracker.uploads import Uploads

REPO = "acme/api"
BY = By("pusher")
DATA = bytes(range(256)) * 20


class Recorder:
    def __init__(self, sessions: MemorySessions) -> None:
        self.sessions = sessions
        self.blobs: dict[Digest, str] = {}

    async def holder(self, digest: Digest) -> str | None:
        return self.blobs.get(digest)

    async def add_blob(
        self,
        repository: str,
        blob: Metainfo,
        name: str,
        by: By,
        *,
        upload: Lease | None = None,
        lost: str | None = None,
    ) -> str:
        assert (repository, by) == (REPO, BY)
        assert upload is not None
        if not self.sessions.end(upload):
            raise unknown(upload.id)
        return self.blobs.setdefault(blob.digest, name)


class Two:
    """Two processes that share everything; each request goes to the other one."""

    def __init__(self) -> None:
        self.objects = MemoryObjects()
        sessions = MemorySessions()
        self.recorder = Recorder(sessions)
        self.apis = [UploadApi(MemoryCatalog(), Uploads(self.recorder, sessions, self.objects)) for _ in range(2)]

    async def __call__(
        self,
        method: str,
        target: str,
        body: bytes | ScriptedBody = b"",
        *headers: tuple[str, str],
    ) -> Answer:
        api = self.apis.pop(0)
        self.apis.append(api)
        number = target.partition("?")[0].rpartition("/")[2]
        methods: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "POST": lambda request: api.start(REPO, request, BY, None),
            "PATCH": lambda request: api.append(REPO, number, request),
            "PUT": lambda request: api.finish(REPO, number, request, BY),
            "GET": lambda _request: api.status(REPO, number),
            "DELETE": lambda _request: api.cancel(REPO, number),
        }
        return await call(methods[method], method, target, body, headers=headers)

    async def begin(self, query: str = "") -> str:
        answer = await self("POST", f"/v2/{REPO}/blobs/uploads/{query}")
        assert (answer.status, answer.headers["range"]) == (202, "0-0")
        return answer.headers["location"]

    def has(self, digest: Digest) -> bool:
        name = self.recorder.blobs.get(digest)
        return name is not None and self.objects.held.objects[name] == DATA


async def test_chunks_to_two_processes_in_turn() -> None:
    api = Two()
    location = await api.begin()
    for a in range(0, 4000, 1000):
        answer = await api("PATCH", location, DATA[a : a + 1000], ("Content-Range", f"{a}-{a + 999}"))
        assert (answer.status, answer.headers["range"]) == (202, f"0-{a + 999}")
        status = await api("GET", location)
        assert (status.status, status.headers["range"]) == (204, f"0-{a + 999}")
    last = ("Content-Range", f"4000-{len(DATA) - 1}")
    answer = await api("PUT", f"{location}?digest={Digest.of(DATA)}", DATA[4000:], last)
    assert answer.status == 201
    assert api.has(Digest.of(DATA))
    assert (await api("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_out_of_order_is_refused_wherever_it_comes(method: str) -> None:
    api = Two()
    location = await api.begin()
    await api("PATCH", location, DATA[:1000])
    target = f"{location}?digest={Digest.of(DATA)}"
    for span in (f"0-{len(DATA) - 1001}", f"1001-{len(DATA)}"):
        answer = await api(method, target, DATA[1000:], ("Content-Range", span))
        assert (answer.status, answer.code, answer.headers["range"]) == (416, "BLOB_UPLOAD_INVALID", "0-999")
    assert (await api("PUT", target, DATA[1000:], ("Content-Range", f"1000-{len(DATA) - 1}"))).status == 201


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_whole_put_that_was_cut_can_be_repeated(algorithm: str) -> None:
    api = Two()
    digest = Digest.of(DATA, algorithm)
    location = await api.begin(f"?digest-algorithm={algorithm}")
    cut = await api(
        "PUT", f"{location}?digest={digest}", ScriptedBody([DATA[:3000]], cut=True), ("Content-Length", "9")
    )
    assert cut.code == "SIZE_INVALID"
    assert (await api("GET", location)).headers["range"] == "0-0"
    assert (await api("PUT", f"{location}?digest={digest}", DATA)).status == 201
    assert api.has(digest)


async def test_a_whole_post_and_a_cancel() -> None:
    api = Two()
    for _ in range(2):
        assert (await api("POST", f"/v2/{REPO}/blobs/uploads/?digest={Digest.of(DATA)}", DATA)).status == 201
    assert api.has(Digest.of(DATA))
    location = await api.begin()
    await api("PATCH", location, b"abc")
    assert (await api("DELETE", location)).status == 204
    assert (await api("PATCH", location, b"abc")).code == "BLOB_UPLOAD_UNKNOWN"
    assert api.objects.held.drafts == {}
