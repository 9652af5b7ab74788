"""The tracker's peer API, seen from a node: blobs as from any peer, and what only the tracker knows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec
import trio

from p2pregistry.content.unixfs import PIECE_SIZE, piece_count, piece_length
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, Unreachable
from p2pregistry.feed_messages import HEARTBEAT, MAX_LINE, MEDIA_TYPE, ChangesRequest, Event, EventReader
from p2pregistry.messages import MAX_ANNOUNCED, Announce, Announced, pack, read_announced
from p2pregistry.oci.media import OCTET_STREAM
from p2pregistry.sources.peer import JSON_ERRORS, MAX_JSON, PeerSource, RemoteManifest, read_manifest
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.wire import Answer, Client, Lines, refusal

#: Seconds without a line after which who tells of changes is taken for gone.
SILENCE: Final = 3 * HEARTBEAT
#: Seconds that a request for the next piece may wait for its turn at the tracker.
TURN_TIMEOUT: Final = 60.0
#: Bytes of the tracker's answer about the swarm: the list of revoked nodes is the most of it.
MAX_SWARM: Final = 5 << 20
#: Seconds to wait before asking again, whatever the tracker says.
_MAX_WAIT: Final = 60.0
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class Swarm(msgspec.Struct):
    """What the tracker tells of itself: the swarm's name, the registry names it is, where its DHT node listens (multi-
    addresses), its public root key and signed key set; the signed list of revoked nodes; its clock in unix seconds; and
    where clients of a node get tokens. Older trackers leave the last three out. ``renew``: the node that asks should
    renew its credential."""

    swarm: str
    root_key: str
    key_set: str
    names: list[str] = []
    libp2p: list[str] = []
    revocations: str = ""
    time: float | None = None
    token_url: str = ""
    renew: bool = False


class Tags(msgspec.Struct):
    """Tags, and the record of their repository."""

    tags: list[str]
    repository: str = ""


class Claims(msgspec.Struct):
    """Claims of a repository, and its record."""

    claims: list[str]
    repository: str = ""


class _Records(msgspec.Struct):
    records: list[str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the tracker sends next: piece ``index``, ``length`` bytes of it (an Incoming); or None, ask again after
    ``wait`` seconds."""

    index: int | None
    wait: float = 0.0
    length: int = 0
    answer: Answer | None = None

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming."""
        if self.answer is None:
            raise Unreachable("the tracker sends no piece now")
        return await self.answer.read_into(buffer)


class Events:
    """What the tracker tells of changes; an async iterator that ends only with an error. Made by
    ``TrackerSource.changes``."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._reader = EventReader()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        """Raises Unreachable when it ends, breaks off or falls silent, BadContent for what is no event."""
        async for line in self._lines:
            for event in self._reader.feed(line + b"\n"):  # a line ends one event at most
                return event
        raise Unreachable("the tracker tells nothing any more")


class TrackerSource(PeerSource):
    """The tracker. After a failure it is left alone for ``rest`` seconds: pulls do not each wait for a dead one.

    ``peer_id``: its own, which is that of all trackers of a database; see PeerSource for ``speaker`` and
    ``plain``.
    """

    kind = "tracker"

    def __init__(
        self,
        url: str,
        *,
        zone: str = "",
        timeout: float = 3.0,
        rest: float = 3.0,
        peer_id: str = "",
        plain: bool = True,
        speaker: Speaker | None = None,
    ) -> None:
        super().__init__(
            "tracker",
            url,
            zone=zone,
            connect_timeout=timeout,
            head_timeout=timeout,
            peer_id=peer_id,
            plain=plain,
            speaker=speaker,
        )
        # for what needs no session, so that a node which is given none still learns why
        self._bare = Client(url, connect_timeout=timeout, head_timeout=timeout, peer_id=peer_id, plain=plain)
        self._timeout = timeout
        self._rest = rest
        self._down_until = 0.0

    @property
    def down(self) -> bool:
        """Whether it failed a moment ago."""
        return trio.current_time() < self._down_until

    def close(self) -> None:
        """See PeerSource."""
        super().close()
        self._bare.close()

    async def _ask(self, target: str, limit: int = MAX_JSON, *, bare: bool = False) -> bytes:
        self._check_up()
        try:
            return await (self._bare if bare else self.client).get(target, limit=limit)
        except Unreachable:
            self._down()
            raise

    def _check_up(self) -> None:
        if self.down:
            raise Unreachable("the tracker did not answer a moment ago")

    def _down(self) -> None:
        self._down_until = trio.current_time() + self._rest

    async def swarm(self, node: str = "", issued: int = 0) -> Swarm:
        """``node``: who asks, with a credential issued then (unix seconds). Raises RemoteError."""
        target = f"/p2p/v1/swarm?node={node}&issued={issued}" if node else "/p2p/v1/swarm"
        try:
            return msgspec.json.decode(await self._ask(target, MAX_SWARM, bare=True), type=Swarm)
        except NotFound as err:  # every tracker has this: the URL is that of something else
            raise BadContent("what answers at the tracker's URL is no tracker's peer API") from err
        except JSON_ERRORS as err:
            raise BadContent("the tracker's answer about the swarm cannot be read") from err

    async def resolve(self, repository: str, reference: str | Digest) -> RemoteManifest:
        """The manifest behind a tag or digest of a repository, with its claims. Raises NotFound (MANIFEST_UNKNOWN)."""
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/manifests/{reference}")
        except NotFound as err:
            raise NotFound("MANIFEST_UNKNOWN", "the manifest is not known to the tracker") from err
        return read_manifest(data, reference if isinstance(reference, Digest) else None)

    async def tags(self, repository: str, after: str, limit: int) -> Tags:
        """Tags greater than ``after`` in ASCII order. Raises NotFound (NAME_UNKNOWN)."""
        query = f"?n={limit}" + (f"&last={quote(after, safe='')}" if after else "")
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/tags{query}")
            return msgspec.json.decode(data, type=Tags)
        except NotFound as err:
            raise NotFound("NAME_UNKNOWN", "the repository is not known to the tracker") from err
        except JSON_ERRORS as err:
            raise BadContent("the tracker's list of tags cannot be read") from err

    async def blob_claims(self, repository: str, digest: Digest) -> Claims:
        """Claims of this repository that name the blob. Raises NotFound (BLOB_UNKNOWN) or RemoteError."""
        try:
            data = await self._ask(f"/p2p/v1/repositories/{repository}/blobs/{digest}/claims")
            return msgspec.json.decode(data, type=Claims)
        except NotFound as err:
            raise NotFound("BLOB_UNKNOWN", "the blob is not known to the tracker") from err
        except JSON_ERRORS as err:
            raise BadContent("the tracker's claims cannot be read") from err

    async def records(self, repositories: Sequence[str]) -> list[str]:
        """The records of those of these repositories (MOST_NAMES at most) that this node may pull. Raises RemoteError,
        NotFound (an older tracker)."""
        data = await self._post("/p2p/v1/repositories", msgspec.json.encode({"names": list(repositories)}), MAX_JSON)
        try:
            return msgspec.json.decode(data, type=_Records).records
        except JSON_ERRORS as err:
            raise BadContent("the tracker's records cannot be read") from err

    @asynccontextmanager
    async def changes(self, request: ChangesRequest) -> AsyncIterator[Events]:
        """Be told of changes, on a connection of its own. Entering raises RemoteError, NotFound (an older tracker)."""
        headers = {"Content-Type": "application/json", "Accept": MEDIA_TYPE}
        body = request.encode()
        async with self.client.lines("/p2p/v1/changes", headers, body, silence=SILENCE, limit=MAX_LINE) as lines:
            self._down_until = 0.0  # it answers: what waits for it need not wait for the rest of its rest
            yield Events(lines)

    async def announce(self, announce: Announce) -> Announced:
        """Tell what this node wants and holds; who else does. Raises RemoteError, NotFound (it takes no announces)."""
        data = await self._post("/p2p/v1/announce", announce.encode(), MAX_ANNOUNCED)
        return read_announced(data, len(announce.want))

    async def _post(self, target: str, body: bytes, limit: int) -> bytes:
        self._check_up()
        headers = self._headers | {"Content-Type": "application/json"}
        try:
            with trio.fail_after(self._timeout):
                async with self.client.request("POST", target, headers, body=body) as answer:
                    data = await answer.read(limit)
        except trio.TooSlowError as err:
            self._down()
            raise Unreachable("the tracker did not answer in time") from err
        except Unreachable:
            self._down()
            raise
        if answer.status != 200:
            raise refusal(answer)
        return data

    @asynccontextmanager
    async def next_piece(self, digest: Digest, wanted: bytes) -> AsyncIterator[Chosen]:
        """Let the tracker choose and send one of the pieces of a blob that are ``wanted`` (one byte per piece, not 0).

        Entering takes as long as the tracker's queue; it raises NotFound, RemoteBusy, Unreachable or BadContent.
        Leaving early cancels the request.
        """
        self._check_up()
        target = f"/p2p/v1/blobs/{digest}/next"
        headers = self._headers | {"Content-Type": OCTET_STREAM}
        body = pack(wanted)
        async with self.client.request("POST", target, headers, body=body, head_timeout=TURN_TIMEOUT) as answer:
            if answer.status == 204:
                yield Chosen(None, wait=_wait(answer.headers.get("p2p-wait", "")))
            elif answer.status == 206:
                yield _chosen(answer, wanted)
            else:
                raise refusal(answer)


def _wait(text: str) -> float:
    """Seconds of a header in milliseconds; a second if it says nothing sensible."""
    return min(int(text) / 1000, _MAX_WAIT) if text.isascii() and text.isdigit() and len(text) < 12 else 1.0


def _chosen(answer: Answer, wanted: bytes) -> Chosen:
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if match is None:
        raise BadContent("the tracker does not say which piece it sends")
    start, last, size = int(match[1]), int(match[2]), int(match[3])
    index, rest = divmod(start, PIECE_SIZE)
    if rest or piece_count(size) != len(wanted) or index >= len(wanted) or not wanted[index]:
        raise BadContent("the tracker sends a piece that was not asked for")
    length = piece_length(size, index)
    if last != start + length - 1 or answer.length != length:
        raise BadContent("the tracker sends part of a piece")
    return Chosen(index, length=length, answer=answer)
