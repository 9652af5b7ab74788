"""How often the database is asked for what is to be published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio
import trio.testing

from p2pregistry.testing.publishing import one_image
from tracker.catalog.publishing import Job
from tracker.catalog.publishing_memory import MemoryPublishing
from tracker.publisher import Publisher


class Quick:
    async def publish(self, job: object, car: object) -> None:
        await trio.lowlevel.checkpoint()

    async def unpin(self, job: object) -> None:
        await trio.lowlevel.checkpoint()

    async def has(self, job: object) -> bool:
        await trio.lowlevel.checkpoint()
        return True


class Busy(MemoryPublishing):
    """The daemon has something to do each tenth of a second; to find nothing for the other one takes half a second."""

    def __init__(self, job: Job, before: MemoryPublishing) -> None:
        super().__init__(before._catalog)
        self.job, self.asked = job, list[float]()

    async def claim(self, services: Sequence[str], limit: int, lasts: float, *, only: str | None = None) -> list[Job]:
        if only == "kubo":
            await trio.sleep(0.1)
            return [self.job]
        self.asked.append(trio.current_time())
        await trio.sleep(0.5)
        return []


async def test_a_service_with_nothing_to_do_is_not_asked_about_whenever_something_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    acme = await one_image(Quick(), "kubo", b"bytes")
    await acme.publishing.reconcile(10, ["kubo"], encrypted=False)
    (job, *_) = await acme.publishing.claim(["kubo"], 1, 60.0)
    busy = Busy(replace(job, state="unpinning"), acme.publishing)
    publisher = Publisher(busy, acme.publisher()._cars, {"kubo": Quick(), "pinning": Quick()})
    with trio.move_on_after(60):
        await publisher.run()
    assert 8 <= len(busy.asked) <= 13
