"""The services that a tracker publishes to, behind one face each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from p2pregistry.digest import cid_text
from p2pregistry.errors import NotFound, RegistryError, SettingsError, Unreachable
from p2pregistry.ipfs.kubo import Kubo, open_kubo
from p2pregistry.ipfs.services import CarUpload, Endpoint, PinningService, open_pinning, open_upload
from tracker.catalog.publishing import Job
from tracker.publisher import AsyncCar, Forgotten, Later, Mismatch, Service
from tracker.settings import TrackerSettings, read_secret
from tracker.storage import kubo_of

if TYPE_CHECKING:
    from p2pregistry.ipfs.pinning_answers import Pin

#: Seconds until a pin that was just asked for is looked at.
_SOON: Final = 2.0
#: Seconds that the daemon may take to connect to one peer.
_DIAL: Final = 10.0


class KuboService:
    """An IPFS daemon: our CAR is imported and pinned. ``stored``: it holds the blobs of the object store, too, so that
    a pin may be all that it takes."""

    def __init__(self, kubo: Kubo, *, stored: bool = False) -> None:
        self._kubo, self._stored = kubo, stored

    async def publish(self, job: Job, car: AsyncCar) -> str | None:
        """See Service."""
        if self._stored and job.item.kind == "blob" and await self._pinned(job.item.cid):
            return None
        sending = await car()
        roots = await self._kubo.dag_import(sending)
        if not roots:
            raise Unreachable("the daemon did not say what it imported")
        wanted = cid_text(job.item.cid)
        other = next((root for root in roots if root.cid != wanted), None)
        if other is not None:
            raise Mismatch(f"the daemon imported {other.cid} in place of {wanted}")
        if roots[0].error:
            raise Unreachable(f"the daemon has not pinned it: {roots[0].error}")
        return None

    async def _pinned(self, cid: bytes) -> bool:
        try:
            await self._kubo.pin_add(cid, offline=True)
        except NotFound:
            return False
        return True

    async def unpin(self, job: Job) -> None:
        """See Service."""
        await self._kubo.pin_rm(job.item.cid)

    async def has(self, job: Job) -> bool:
        """See Service."""
        return await self._kubo.pin_ls(job.item.cid, "recursive") is not None


class UploadService:
    """A service that takes CARs."""

    def __init__(self, upload: CarUpload) -> None:
        self._upload = upload

    async def publish(self, job: Job, car: AsyncCar) -> str | None:
        """See Service."""
        sending = await car()
        named = await self._upload.upload(job.item.cid, sending.size, sending)
        if named is not None and named != job.item.cid:
            raise Mismatch(f"the service made {cid_text(named)} of it in place of {cid_text(job.item.cid)}")
        return None

    async def unpin(self, job: Job) -> None:
        """See Service."""
        await self._upload.remove(job.item.cid)

    async def has(self, job: Job) -> bool:  # noqa: ARG002 - it cannot be asked
        """True."""
        return True


class PinService:
    """A service that fetches by itself what it is asked to pin. ``kubo``: the daemon that has the content; it connects
    to the peers that the service names for that."""

    def __init__(
        self, pinning: PinningService, *, origins: Sequence[str] = (), poll: float = 30.0, kubo: Kubo | None = None
    ) -> None:
        self._pinning, self._origins, self._poll, self._kubo = pinning, tuple(origins), poll, kubo

    async def publish(self, job: Job, car: AsyncCar) -> Later | str | None:  # noqa: ARG002 - it fetches by itself
        """See Service."""
        cid, name = job.item.cid, _name(job)
        if job.remote is None:
            pin = await self._pinning.find(cid, name)
            if pin is not None and pin.status == "failed":
                await self._pinning.remove(pin.request)  # or it stays there under our name, and nobody unpins it
                pin = None
            if pin is None:
                meta = {"kind": job.item.kind, "digest": str(job.item.digest)}
                pin = await self._pinning.add(cid, name, self._origins, meta)
            # written down before anything else is made of it: it must be known to be unpinned
            return Later(pin.request, _SOON)
        pin = await self._pinning.get(job.remote)
        if pin is None:
            raise Forgotten("the service has forgotten the pin")
        return await self._of(pin, job)

    async def _of(self, pin: Pin, job: Job) -> Later | None:
        if pin.cid != cid_text(job.item.cid):
            raise Mismatch(f"the service pins {pin.cid} in place of {cid_text(job.item.cid)}")
        if pin.status == "pinned":
            return None
        if pin.status == "failed":
            await self._pinning.remove(pin.request)
            raise Forgotten(f"the service could not pin it {pin.info}".rstrip())
        await self._meet(pin.delegates)
        return Later(pin.request, self._poll)

    async def _meet(self, peers: Sequence[str]) -> None:
        """They may find the daemon by themselves, too: that it cannot reach them is no failure."""
        if self._kubo is not None:
            for peer in peers:
                with trio.move_on_after(_DIAL), suppress(RegistryError):
                    await self._kubo.swarm_connect(peer)

    async def unpin(self, job: Job) -> None:
        """See Service."""
        request = job.remote
        if request is None:
            pin = await self._pinning.find(job.item.cid, _name(job))
            request = None if pin is None else pin.request
        if request is not None:
            await self._pinning.remove(request)

    async def has(self, job: Job) -> bool:
        """See Service."""
        pin = None if job.remote is None else await self._pinning.get(job.remote)
        return pin is not None and pin.status == "pinned" and pin.cid == cid_text(job.item.cid)


def _name(job: Job) -> str:
    """Says nothing that the content does not say: no repository."""
    return f"p2pregistry {job.item.kind} {job.item.digest}"


async def open_services(settings: TrackerSettings, stack: AsyncExitStack) -> dict[str, Service]:
    """Those of the settings. Raises SettingsError, LocalError."""
    said = settings.ipfs
    found: dict[str, Service] = {}
    kubo: Kubo | None = None
    if "kubo" in said.services:
        kubo = await stack.enter_async_context(open_kubo(kubo_of(settings)))
        found["kubo"] = KuboService(kubo, stored=settings.storage.kind == "ipfs")
    if "car-upload" in said.services:
        token = _token(said.upload_token, said.upload_token_file, "ipfs.upload_token_file")
        endpoint = Endpoint(said.upload_url or "", token)
        opened = open_upload(
            endpoint, method=said.upload_method, remove_url=said.upload_remove_url, field=said.upload_field
        )
        found["car-upload"] = UploadService(await stack.enter_async_context(opened))
    if "pinning" in said.services:
        token = _token(said.pinning_token, said.pinning_token_file, "ipfs.pinning_token_file")
        pinning = await stack.enter_async_context(open_pinning(Endpoint(said.pinning_url or "", token)))
        found["pinning"] = PinService(pinning, origins=said.origins, poll=said.poll, kubo=kubo)
    return found


def _token(value: str | None, file: str | None, setting: str) -> str | None:
    token = value if file is None else read_secret(file, setting)
    if token is not None and not all("\x21" <= char <= "\x7e" for char in token):
        raise SettingsError(
            f"$.{setting.removesuffix('_file') if file is None else setting}: no header holds this token"
        )
    return token
