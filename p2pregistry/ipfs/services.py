"""Services that keep IPFS content for us: the Pinning Service API, and uploads of CARs over HTTP.

Their URLs come from the operator's settings, so they may be anywhere. The token is sent to no other place: there are no
redirects.

Importing this takes a quarter of a second (httpx): import it only where it is configured.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx
import msgspec

from p2pregistry.digest import cid_text
from p2pregistry.errors import BadContent
from p2pregistry.ipfs import pinning_answers as answers
from p2pregistry.ipfs.http import Form, beginning, make_client, send, sending, walked, whole
from p2pregistry.ipfs.pinning_answers import Pin, ServiceRefused

_THE_SERVICE: Final = "the service"
_ANSWER_MOST: Final = 1 << 20
_ERROR_MOST: Final = 4 << 10
#: Seconds: for a connection, without a byte, and until an upload that has ended is answered.
_CONNECT: Final = 10.0
_SILENCE: Final = 60.0
_SLOW: Final = 600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is and the bearer token it wants, if any."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


class _Service:
    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._url = endpoint.url.rstrip("/")
        self._headers = {} if endpoint.token is None else {"Authorization": f"Bearer {endpoint.token}"}
        self._client = client

    async def _call(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        content: bytes | None = None,
    ) -> bytes:
        """Raises Unreachable, RemoteBusy, ServiceRefused, BadContent."""
        request = self._client.build_request(
            method,
            url,
            params=dict(params) or None,
            headers={**self._headers, **headers},
            content=content,
            timeout=httpx.Timeout(_SILENCE, connect=_CONNECT),
        )
        return await self._answered(request)

    async def _answered(self, request: httpx.Request) -> bytes:
        response = await send(self._client, request, _THE_SERVICE)
        try:
            if not 200 <= response.status_code < 300:
                data = await beginning(response, _ERROR_MOST, _THE_SERVICE)
                raise answers.refusal(response.status_code, data, response.headers.get("retry-after"), time.time())
            return await whole(response, _ANSWER_MOST, _THE_SERVICE)
        finally:
            await response.aclose()


class PinningService(_Service):
    """The Pinning Service API. Made by ``open_pinning``."""

    async def find(self, cid: bytes, name: str) -> Pin | None:
        """Our pin of a root, in whatever state: one whose maker died before it could be written down. One of another
        name is somebody else's, also where the service does not look at names."""
        every = "queued,pinning,pinned,failed"
        query = {"cid": cid_text(cid), "name": name, "match": "exact", "status": every, "limit": "10"}
        found = answers.pins(await self._call("GET", f"{self._url}/pins", params=query))
        return next((one for one in found if (one.cid, one.name) == (cid_text(cid), name)), None)

    async def add(self, cid: bytes, name: str, origins: Sequence[str], meta: Mapping[str, str]) -> Pin:
        """Ask for a pin. Raises BadContent if the service answers with one of something else."""
        document = {"cid": cid_text(cid), "name": name, "origins": list(origins), "meta": dict(meta)}
        made = answers.pin(await self._call("POST", f"{self._url}/pins", headers=_JSON, content=_encoded(document)))
        if made.cid != cid_text(cid):
            raise BadContent("the service pins something else than it was asked to")
        return made

    async def get(self, request: str) -> Pin | None:
        """How far a pin is; None if the service does not know it."""
        try:
            return answers.pin(await self._call("GET", self._pin(request)))
        except ServiceRefused as err:
            if err.answered == 404:
                return None
            raise

    async def remove(self, request: str) -> None:
        """Unpin. One that is not there is no error."""
        try:
            await self._call("DELETE", self._pin(request))
        except ServiceRefused as err:
            if err.answered != 404:
                raise

    def _pin(self, request: str) -> str:
        return f"{self._url}/pins/{quote(request, safe='')}"


class CarUpload(_Service):
    """A service that takes a CAR in one request. Made by ``open_upload``. ``remove_url``: what is sent DELETE to unpin,
    with ``{cid}`` in it. ``field``: the CAR is sent as this field of a form; None: as the body."""

    def __init__(
        self, endpoint: Endpoint, client: httpx.AsyncClient, method: str, remove_url: str | None, field: str | None
    ) -> None:
        super().__init__(endpoint, client)
        self._upload_url, self._method, self._remove_url, self._field = endpoint.url, method, remove_url, field

    async def upload(self, cid: bytes, size: int, car: AsyncIterable[bytes]) -> bytes | None:
        """Send a CAR of ``size`` bytes; the root that the service names, if it names one."""
        headers = {**self._headers, "Content-Type": "application/vnd.ipld.car"}
        if self._field is not None:
            form = Form(self._field)
            headers["Content-Type"] = form.content_type
            car, size = form.around(car), form.size(size)
        url = self._upload_url.replace("{cid}", cid_text(cid))
        timeout = httpx.Timeout(_SILENCE, connect=_CONNECT, read=_SLOW)
        async with walked(car) as chunks:
            request = sending(self._client, self._method, url, headers, chunks, timeout, size=size)
            return answers.uploaded_root(await self._answered(request))

    async def remove(self, cid: bytes) -> bool:
        """False: nobody told us how."""
        if self._remove_url is None:
            return False
        try:
            await self._call("DELETE", self._remove_url.replace("{cid}", cid_text(cid)))
        except ServiceRefused as err:
            if err.answered not in (404, 410):
                raise
        return True


_JSON: Final = {"Content-Type": "application/json"}


def _encoded(document: object) -> bytes:
    return msgspec.json.encode(document)


@asynccontextmanager
async def open_pinning(endpoint: Endpoint) -> AsyncIterator[PinningService]:
    """Raises LocalError if ``ca_file`` cannot be used."""
    async with make_client(connections=16, ca_file=endpoint.ca_file) as client:
        yield PinningService(endpoint, client)


@asynccontextmanager
async def open_upload(
    endpoint: Endpoint, *, method: str = "POST", remove_url: str | None = None, field: str | None = None
) -> AsyncIterator[CarUpload]:
    """Raises LocalError if ``ca_file`` cannot be used."""
    async with make_client(connections=16, ca_file=endpoint.ca_file) as client:
        yield CarUpload(endpoint, client, method, remove_url, field)
