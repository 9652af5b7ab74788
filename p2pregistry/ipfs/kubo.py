"""Kubo's RPC, ``/api/v0`` (https://docs.ipfs.tech/reference/kubo/rpc/): what we ask of an IPFS daemon that is ours.

Everything is a POST. Failures in the middle of an answer come as HTTP trailers, which are not looked at: what counts is
the hash of a block, the length of a file, the root that an import names. CIDs are asked for in base32, because js-ipfs
gives base58 otherwise. The RPC may do anything to the daemon: nothing that a client of ours says is passed on to it.

Importing this takes a quarter of a second (httpx): import it only where it is configured.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, cid_text
from p2pregistry.errors import BadContent, NotFound, RemoteBusy, SettingsError
from p2pregistry.ipfs import kubo_answers as answers
from p2pregistry.ipfs.http import Form, beginning, broken, cut_short, make_client, send, sending, walked, whole
from p2pregistry.ipfs.kubo_answers import Exists, FileEntry, FileStat, Imported, KuboError, RepoStat, authorization

__all__ = ["Exists", "FileEntry", "FileStat", "Imported", "Kubo", "KuboConfig", "KuboError", "RepoStat", "kubo_config"]
__all__ += ["open_kubo"]

#: Seconds: for a connection, for a free one of the pool, and without a byte; over a pin and an import it may take long.
_CONNECT: Final = 5.0
_POOL: Final = 30.0
_SILENCE: Final = 30.0
_SLOW: Final = 900.0
#: Bytes of an answer that is read whole, of a list of names, and of what is read of an error.
_ANSWER_MOST: Final = 4 << 20
_LIST_MOST: Final = 64 << 20
_ERROR_MOST: Final = 4 << 10
#: The largest block, bytes.
MAX_BLOCK: Final = 2 << 20
#: Bytes that are handed to the connection at a time, so that the time-out for writing is for a piece.
_SEND: Final = 256 << 10
_DAEMON: Final = "the IPFS daemon"

_URL: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True, slots=True)
class KuboConfig:
    """Where the RPC is, without ``/api/v0``, and what ``Authorization`` it wants, if any. Made by ``kubo_config``."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    connections: int = 16


def kubo_config(
    url: str, *, secret: str | None = None, ca_file: Path | None = None, connections: int = 16
) -> KuboConfig:
    """``secret``: as ``kubo_answers.authorization`` takes it. Raises SettingsError whose message never shows it."""
    if not _URL.fullmatch(url):
        raise SettingsError("url: a URL such as http://127.0.0.1:5001, without user or query")
    try:
        header = None if secret is None else authorization(secret)
    except ValueError as err:
        raise SettingsError(f"secret: {err}") from None
    if ca_file is not None and not ca_file.is_file():
        raise SettingsError(f"ca_file: {ca_file} is not a file")
    return KuboConfig(url.rstrip("/"), header, ca_file, connections)


class Kubo:
    """Made by ``open_kubo``. Every method raises Unreachable, BadContent, RemoteBusy, StorageFull, KuboError, and
    NotFound where it says so. ``timeout``: seconds after which the daemon gives up looking. ``offline``: it looks at
    what it has, and asks no network."""

    def __init__(self, config: KuboConfig, client: httpx.AsyncClient) -> None:
        self._base = f"{config.url}/api/v0/"
        self._headers = {} if config.authorization is None else {"Authorization": config.authorization}
        self._client = client

    # ------------------------------------------------------------------------------------------------------- requests

    @asynccontextmanager
    async def _asked(
        self,
        command: str,
        args: Sequence[str] = (),
        options: Mapping[str, str] = {},
        *,
        files: AsyncIterable[bytes] | None = None,
        silence: float = _SILENCE,
    ) -> AsyncIterator[httpx.Response]:
        """The answer with status 200, its body not read."""
        timeout = httpx.Timeout(_SILENCE, connect=_CONNECT, pool=_POOL, read=silence)
        params = (*(("arg", arg) for arg in args), *options.items())
        url = httpx.URL(self._base + command, params=params)
        async with AsyncExitStack() as stack:
            if files is None:
                request = self._client.build_request("POST", url, headers=self._headers, timeout=timeout)
            else:
                form = Form("file")
                content = await stack.enter_async_context(walked(form.around(files)))
                headers = {**self._headers, "Content-Type": form.content_type}
                request = sending(self._client, "POST", url, headers, content, timeout)
            response = await send(self._client, request, _DAEMON)
            try:
                if response.status_code == 429:
                    raise RemoteBusy("the IPFS daemon has too much to do")
                if response.status_code != 200:
                    data = await beginning(response, _ERROR_MOST, _DAEMON)
                    raise answers.refusal(response.status_code, data)
                yield response
            finally:
                await response.aclose()

    async def _call(
        self,
        command: str,
        args: Sequence[str] = (),
        options: Mapping[str, str] = {},
        *,
        files: AsyncIterable[bytes] | None = None,
        silence: float = _SILENCE,
        most: int = _ANSWER_MOST,
    ) -> bytes:
        async with self._asked(command, args, options, files=files, silence=silence) as response:
            return await whole(response, most, _DAEMON)

    # --------------------------------------------------------------------------------------------------------- blocks

    async def block_get(self, cid: bytes, *, timeout: float | None = None, offline: bool = False) -> bytes:
        """The block of a CID (36 bytes), hashed against it. Raises NotFound, BadContent."""
        options, silence = _looking(timeout, offline=offline)
        data = await self._call("block/get", [cid_text(cid)], options, silence=silence, most=MAX_BLOCK)
        if hashlib.sha256(data).digest() != cid[4:]:
            raise BadContent("the IPFS daemon answers with another block than was asked for")
        return data

    async def block_put(self, block: bytes, *, dag_pb: bool = False, pin: bool = False) -> bytes:
        """Store a block of 1 MiB at most (older daemons take no larger one); its CID. A pin made here protects what is
        below the block too, whether that is there already or comes later. Raises BadContent if the daemon calls the
        block something else."""
        cid = (CID_DAG_PB_PREFIX if dag_pb else CID_RAW_PREFIX) + hashlib.sha256(block).digest()
        options = {"cid-codec": "dag-pb" if dag_pb else "raw", "mhtype": "sha2-256", "pin": _flag(pin), **_BASE32}
        stored, _ = answers.block_key(await self._call("block/put", options=options, files=_pieces(block)))
        if stored != cid:
            raise BadContent("the IPFS daemon gives a block another CID than it has")
        return cid

    async def block_stat(self, cid: bytes, *, timeout: float | None = None, offline: bool = False) -> int:
        """Bytes of a block. Raises NotFound."""
        options, silence = _looking(timeout, offline=offline)
        data = await self._call("block/stat", [cid_text(cid)], {**options, **_BASE32}, silence=silence)
        return answers.block_key(data)[1]

    # ----------------------------------------------------------------------------------------------------------- DAGs

    async def dag_import(self, car: AsyncIterable[bytes], *, pin: bool = True) -> list[Imported]:
        """Store the blocks of a CAR. With ``pin`` each root is pinned with all below it, and named in the answer with
        "" for an error only if that is complete, whatever else the daemon had of it; without, the answer may be empty.
        The caller compares the roots, and should give bytes in parts of some 100 KiB."""
        data = await self._call("dag/import", options={"pin-roots": _flag(pin), **_BASE32}, files=car, silence=_SLOW)
        return answers.imported(data)

    @asynccontextmanager
    async def dag_export(
        self, cid: bytes, *, timeout: float | None = None, offline: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A CAR of all below a root, as it comes: it may end early without a word, and its blocks must be hashed.
        Raises NotFound, Unreachable in its course."""
        options, silence = _looking(timeout, offline=offline)
        options["progress"] = "false"
        asked = self._asked("dag/export", [cid_text(cid)], options, silence=silence)
        async with asked as response, _chunks(response) as chunks:
            yield chunks

    # ----------------------------------------------------------------------------------------------------------- pins

    async def pin_add(
        self, cid: bytes, *, recursive: bool = True, timeout: float | None = None, offline: bool = False
    ) -> None:
        """Keep a block, ``recursive``: with all below it, which is fetched if it is not there; raises NotFound if
        ``offline`` and something is not. Idempotent."""
        options, _ = _looking(timeout, offline=offline)
        options |= {"recursive": _flag(recursive), **_BASE32}
        await self._call("pin/add", [cid_text(cid)], options, silence=_SLOW if timeout is None else timeout + _SILENCE)

    async def pin_rm(self, cid: bytes) -> None:
        """Keep it no longer. One that is not pinned is no error."""
        with suppress(NotFound):
            await self._call("pin/rm", [cid_text(cid)], _BASE32)

    async def pin_ls(self, cid: bytes, kind: str = "all") -> str | None:
        """How it is pinned: "recursive", "direct", "indirect through ..."; None: not at all, or not of this ``kind``.
        To look for indirect pins, as with "all", is much work where there are none."""
        try:
            found = answers.pin_kinds(await self._call("pin/ls", [cid_text(cid)], {"type": kind, **_BASE32}))
        except NotFound:
            return None
        return found.get(cid_text(cid))

    # ----------------------------------------------------------------------------------------------------- the daemon

    async def version(self) -> str:
        """Of the daemon, such as 0.35.0."""
        return answers.version(await self._call("version"))

    async def swarm_connect(self, address: str) -> None:
        """Have the daemon connect to a peer, a multiaddr that ends with ``/p2p/`` and its id."""
        await self._call("swarm/connect", [address])

    async def repo_stat(self) -> RepoStat:
        """What the repository has, and may have, in bytes."""
        # size-only: counting objects means walking through all of them
        return answers.repo_stat(await self._call("repo/stat", options={"size-only": "true"}))

    # ---------------------------------------------------------------------------------------------------- named files

    async def files_stat(self, path: str) -> FileStat:
        """What is under a path of the daemon's files (MFS), or ``/ipfs/CID``. Raises NotFound."""
        return answers.file_stat(await self._call("files/stat", [path], {**_BASE32, **_OFFLINE}))

    async def files_read(self, path: str, offset: int, count: int) -> bytes:
        """``count`` bytes of a file from ``offset``, fewer at its end, and where the daemon breaks off. Raises
        NotFound."""
        options = {"offset": str(offset), "count": str(count), **_OFFLINE}
        return await self._call("files/read", [path], options, most=count)

    @asynccontextmanager
    async def files_stream(self, path: str, offset: int, count: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The same as it comes. Raises NotFound, Unreachable in its course."""
        options = {"offset": str(offset), "count": str(count), **_OFFLINE}
        async with self._asked("files/read", [path], options) as response, _chunks(response) as chunks:
            yield chunks

    async def files_write(self, path: str, data: bytes) -> None:
        """Make ``data`` the file's bytes, with the directories above it."""
        options = {"create": "true", "truncate": "true", "parents": "true", "raw-leaves": "true", "cid-version": "1"}
        await self._call("files/write", [path], options, files=_pieces(data))

    async def files_mkdir(self, path: str) -> None:
        """Make a directory and those above it. Idempotent."""
        await self._call("files/mkdir", [path], {"parents": "true", "cid-version": "1"})

    async def files_cp(self, source: str, path: str) -> None:
        """Give what ``source`` is, a path or ``/ipfs/CID``, one more name, whose directory is there. Raises NotFound,
        and Exists if the name is in use."""
        await self._call("files/cp", [source, path], _OFFLINE)

    async def files_mv(self, source: str, path: str) -> None:
        """Give a file another name, in place of the file that had it. Raises NotFound."""
        await self._call("files/mv", [source, path])

    async def files_rm(self, path: str) -> None:
        """Remove a name and all below it. One that is not there is no error."""
        with suppress(NotFound):
            await self._call("files/rm", [path], {"recursive": "true"})

    async def files_ls(self, path: str) -> list[FileEntry]:
        """What is in a directory. Raises NotFound."""
        return answers.file_list(await self._call("files/ls", [path], {"long": "true", **_OFFLINE}, most=_LIST_MOST))


_BASE32: Final = {"cid-base": "base32"}
_OFFLINE: Final = {"offline": "true"}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _looking(timeout: float | None, *, offline: bool) -> tuple[dict[str, str], float]:
    """Options of a command that looks for something, and for how long it may be silent."""
    options = {} if timeout is None else {"timeout": f"{max(1, round(timeout * 1000))}ms"}
    if offline:
        options |= _OFFLINE
    return options, _SILENCE if timeout is None else timeout + 5.0


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, max(1, len(data)), _SEND):
        yield data[at : at + _SEND]


@asynccontextmanager
async def _chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a body as they come, of which some may be left."""
    chunks = response.aiter_raw()

    async def translated() -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in chunks:
                yield chunk
        except httpx.HTTPError as err:
            raise broken(err, _DAEMON) from err

    outer = translated()
    try:
        yield outer
    finally:
        await outer.aclose()
        await cut_short(chunks)


@asynccontextmanager
async def open_kubo(config: KuboConfig) -> AsyncIterator[Kubo]:
    """Connections are opened when they are needed. Raises LocalError if ``ca_file`` cannot be used."""
    async with make_client(connections=config.connections, ca_file=config.ca_file) as client:
        yield Kubo(config, client)
