"""Publishes to IPFS what is to be published, and unpins what is not any more. Any number of trackers share the work."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from p2pregistry.errors import LocalError, NoConnection, RegistryError, RemoteBusy, RequestError, Unreachable
from p2pregistry.observe import ipfs_figures, logger
from p2pregistry.rate import Limiter
from tracker.cars import Car
from tracker.catalog.publishing import Job, Publishing
from tracker.publishing import LONGEST_PAUSE, Item, pause, too_large

#: Seconds between two looks for something to do; between two looks at every repository; between two counts; and after
#: which what was removed is forgotten.
POLL: Final = 1.0
_EVERYTHING: Final = 3600.0
_COUNT: Final = 60.0
_REMEMBER: Final = 7 * 86400.0
#: How much longer than the last question for jobs took the database is left alone after it, if there were none.
_SPARE: Final = 10.0
#: Repositories that are looked at in one transaction.
_AT_ONCE: Final = 10
#: Seconds that nobody else takes a job, and between two times that this is said again.
LEASE: Final = 20.0
_RENEW: Final = 5.0

#: Seconds for which a service that is not there is left alone, at first and at most.
_REST: Final = 5.0
_REST_MOST: Final = 300.0

_log = logger(__name__)


class Mismatch(RequestError):
    """The service made something else of what it was sent: trying again would not help."""

    def __init__(self, message: str) -> None:
        super().__init__("INVALID", message, status=502)


class Forgotten(Unreachable):
    """The service has nothing any more under the name that it had for it: it is to be asked anew."""


@dataclass(frozen=True, slots=True)
class Later:
    """The service works on it under this name; look again in so many seconds."""

    remote: str
    after: float


class Sending:
    """A CAR on its way to a service: an async iterator that counts what has been taken, as fast as is allowed."""

    def __init__(self, car: Car, limiter: Limiter | None, count: Callable[[int], None]) -> None:
        self._car, self._limiter, self._count = car, limiter, count
        self.sent = 0

    @property
    def root(self) -> bytes:
        return self._car.root

    @property
    def size(self) -> int:
        """Bytes."""
        return self._car.size

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(aiter(self._car)) as chunks:
            async for data in chunks:
                if self._limiter is not None:
                    await self._limiter.take(len(data))
                yield data
                self.sent += len(data)
                self._count(len(data))


#: Makes the CAR when it is needed: a pin needs none.
AsyncCar = Callable[[], Awaitable[Sending]]
_AsyncCarOf = Callable[[Item], Awaitable[Car]]
_Do = Callable[[], Awaitable[object]]


class Service(Protocol):
    """Where content is published."""

    async def publish(self, job: Job, car: AsyncCar) -> Later | str | None:
        """None or what there is to say of it: done. Raises Mismatch, RemoteError."""

    async def unpin(self, job: Job) -> None:
        """Idempotent. Raises RemoteError."""

    async def has(self, job: Job) -> bool:
        """Whether what was published is still there; True where that cannot be found out. Raises RemoteError."""


class Publisher:
    """``services`` by the names that jobs have. ``cars`` opens the CAR of something. ``rate``: bytes a second.
    ``verify``: seconds after which it is checked whether what is published is still there, None: never."""

    def __init__(
        self,
        publishing: Publishing,
        cars: _AsyncCarOf,
        services: Mapping[str, Service],
        *,
        encrypted: bool = False,
        concurrency: int = 4,
        rate: int | None = None,
        attempts: int = 20,
        verify: float | None = None,
        draw: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000,
    ) -> None:
        self._publishing, self._cars, self._services = publishing, cars, services
        self._encrypted, self._concurrency, self._attempts, self._verify = encrypted, concurrency, attempts, verify
        self._limiter = None if rate is None else Limiter(rate)
        self._draw = draw
        self._busy: Counter[str] = Counter()
        self._rests: dict[str, Rest] = {name: Rest() for name in services}
        #: When a service is asked about again that had nothing to do.
        self._asked = dict.fromkeys(services, 0.0)
        self._ended = trio.Event()

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._for_ever, self._look_at_everything, _EVERYTHING)
            nursery.start_soon(self._for_ever, self._look, POLL)
            nursery.start_soon(self._for_ever, self._count, _COUNT)
            if self._services:
                nursery.start_soon(self._work_for_ever)

    async def _for_ever(self, once: _Do, every: float) -> None:
        while True:
            try:
                await once()
            except LocalError as err:
                _log.warning("publishing to IPFS must wait", error=err.message)
            await trio.sleep(every * (0.75 + 0.5 * self._draw()))

    async def _look_at_everything(self) -> None:
        """What a change of settings means, and what slipped through while a pattern was being added."""
        await self._publishing.mark_all()
        await self._publishing.prune(_REMEMBER)
        if self._verify is not None:
            await self._publishing.check_all(self._verify)

    async def _look(self) -> None:
        while await self._publishing.reconcile(_AT_ONCE, tuple(self._services), encrypted=self._encrypted):
            pass

    async def _count(self) -> None:
        figures = ipfs_figures()
        found = {(one.service, one.state): one for one in await self._publishing.figures()}
        for service in {service for service, _ in found}.union(self._services):
            for state in ("queued", "publishing", "published", "failed", "unpinning"):
                one = found.get((service, state))
                figures.jobs.labels(service, state).set(0 if one is None else one.jobs)
                figures.size.labels(service, state).set(0 if one is None else one.size)

    async def _work_for_ever(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._ended = trio.Event()
                begun = 0
                try:
                    begun = await self._begin(nursery, self._asked)
                except LocalError as err:
                    _log.warning("publishing to IPFS must wait", error=err.message)
                if not begun:
                    with trio.move_on_after(POLL):
                        await self._ended.wait()

    def resting(self) -> bool:
        """Whether some service is left alone now."""
        return any(rest.until > trio.current_time() for rest in self._rests.values())

    async def once(self) -> int:
        """Look at what has changed, and do some of what is due to its end; how many jobs. Raises LocalError."""
        await self._look()
        async with trio.open_nursery() as nursery:
            return await self._begin(nursery, dict.fromkeys(self._services, 0.0))

    async def _begin(self, nursery: trio.Nursery, asked: dict[str, float]) -> int:
        begun = 0
        for name in self._services:
            room, now = self._concurrency - self._busy[name], trio.current_time()
            if room <= 0 or max(self._rests[name].until, asked[name]) > now:
                continue
            jobs = await self._publishing.claim(tuple(self._services), room, LEASE, only=name)
            if not jobs:
                # where all of many wait for an import the database looks at all: not whenever something has ended
                asked[name] = trio.current_time() + max(POLL, _SPARE * (trio.current_time() - now))
            self._busy[name] += len(jobs)
            begun += len(jobs)
            for job in jobs:
                nursery.start_soon(self._one, job)
        return begun

    async def _one(self, job: Job) -> None:
        try:
            await self._hold(job)
        except LocalError as err:
            # it is another's when the lease has run out
            _log.warning("what became of a job could not be recorded", job=job.id, error=err.message)
        finally:
            self._busy[job.service] -= 1
            self._ended.set()

    async def _hold(self, job: Job) -> None:
        """Do it while it is ours."""
        doing = _Doing(self._limiter, ipfs_figures().sent.labels(job.service).inc)
        outcome: _Do | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, job, doing, nursery.cancel_scope)
                outcome = await self._outcome(job, doing)
                nursery.cancel_scope.cancel()
        finally:
            doing.close()
            if outcome is None:
                # whoever takes it over need not wait for the lease to run out
                with trio.move_on_after(2.0, shield=True), suppress(LocalError):
                    await self._publishing.release(job)
        if outcome is not None:
            await outcome()

    async def _renew(self, job: Job, doing: _Doing, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(_RENEW)
            try:
                if not await self._publishing.progress(job, doing.sent, LEASE):
                    scope.cancel()
                    return
            except LocalError as err:
                _log.warning("the lease of a job could not be renewed", job=job.id, error=err.message)

    async def _outcome(self, job: Job, doing: _Doing) -> _Do:
        """What is to be written down of it."""
        publishing, service = self._publishing, self._services[job.service]
        try:
            if job.state == "unpinning":
                await service.unpin(job)
                return lambda: publishing.removed(job)
            if job.state == "published":
                return self._checked(job, await service.has(job))
            never = too_large(job.item)
            if never is not None:
                raise Mismatch(never)
            done = await service.publish(job, lambda: doing.open(self._cars, job.item))
        except RegistryError as err:
            return self._failed(job, err)
        self._rests[job.service] = Rest()
        if isinstance(done, Later):
            return lambda: publishing.later(job, done.remote, done.after)
        return lambda: self._published(job, doing.sent, done)

    async def _published(self, job: Job, sent: int, note: str | None) -> None:
        await self._publishing.progress(job, sent, LEASE)
        await self._publishing.published(job, note, self._next_check())

    def _next_check(self) -> float | None:
        return None if self._verify is None else self._verify * (0.75 + 0.5 * self._draw())

    def _checked(self, job: Job, there: bool) -> _Do:
        if there:
            return lambda: self._publishing.published(job, None, self._next_check())
        _log.warning("something is published to IPFS again: it was gone", job=job.id, service=job.service)
        return lambda: self._publishing.lost(job, "it was published, and was not there any more")

    def _failed(self, job: Job, err: RegistryError) -> _Do:
        rest = self._rests[job.service] = rest_after(self._rests[job.service], err, trio.current_time())
        again: float | None = None
        away = isinstance(err, NoConnection)
        if job.state == "published":
            again = LONGEST_PAUSE
        elif away:  # no fault of the job
            again = max(0.0, rest.until - trio.current_time())
        elif not isinstance(err, Mismatch):
            asked = err.retry_after if isinstance(err, RemoteBusy) else 0.0
            again = pause(job.attempts, self._draw(), most=self._attempts, asked=asked)
        if again is None and job.state == "unpinning":  # what nobody may have any more is never left there
            again = LONGEST_PAUSE
        if again is None:
            ipfs_figures().failures.labels(job.service).inc()
            _log.warning("something is not published to IPFS", job=job.id, service=job.service, error=err.message)
        counts, forget = not away and job.state != "published", isinstance(err, Forgotten)
        return lambda: self._publishing.failed(job, err.message, again, counts=counts, forget=forget)


@dataclass(frozen=True, slots=True)
class Rest:
    """How long a service is left alone: until this time of trio's clock; ``length``: seconds, of the last rest."""

    until: float = 0.0
    length: float = 0.0


def rest_after(before: Rest, err: RegistryError, now: float) -> Rest:
    """A service that is not there is left alone for longer and longer, up to five minutes; one that has too much to do,
    for as long as it says."""
    if isinstance(err, NoConnection):
        if before.until > now:  # of several that were under way
            return before
        length = min(_REST_MOST, max(_REST, 2 * before.length))
        return Rest(now + length, length)
    if isinstance(err, RemoteBusy):
        return Rest(max(before.until, now + err.retry_after), before.length)
    return before


class _Doing:
    """The CAR of one job, if it came to that."""

    def __init__(self, limiter: Limiter | None, count: Callable[[int], None]) -> None:
        self._limiter, self._count = limiter, count
        self._car: Car | None = None
        self._sending: Sending | None = None

    async def open(self, cars: _AsyncCarOf, item: Item) -> Sending:
        self.close()
        self._car = await cars(item)
        self._sending = Sending(self._car, self._limiter, self._count)
        return self._sending

    @property
    def sent(self) -> int:
        return 0 if self._sending is None else self._sending.sent

    def close(self) -> None:
        if self._car is not None:
            self._car.close()
            self._car = None
