"""One task writes to the environment, many requests at a time.

A durable transaction costs a disk flush (0.2 ms and up) whatever it holds, and LMDB has one writer. So operations
queue, and one task commits all that have gathered in one transaction in one worker thread, while the next ones gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import lmdb
import trio

from p2pregistry.errors import LocalError, RegistryError
from p2pregistry.store.environment import Environment, index_error, mark_damaged

_T = TypeVar("_T")
_L = TypeVar("_L")
#: Operations in one transaction: bounds how long one commit holds back the next.
MAX_BATCH = 1000


@dataclass(slots=True, eq=False)
class _Job:
    op: Callable[[lmdb.Transaction], object]
    #: called in the writer's task once it is durable, even if nobody waits any more
    committed: Callable[[object], None] | None = None
    done: trio.Event = field(default_factory=trio.Event)
    result: object = None
    error: RegistryError | None = None


class Writer(Generic[_L]):
    """The queue and the task.

    ``lazy`` is asked before each transaction for work that nobody waits for, as one operation that is added to it;
    ``lazily_done`` gets its result when that is durable.
    """

    def __init__(
        self,
        environment: Environment,
        lazy: Callable[[], Callable[[lmdb.Transaction], _L] | None],
        lazily_done: Callable[[_L], None],
    ) -> None:
        self._environment = environment
        self._lazy = lazy
        self._lazily_done = cast("Callable[[object], None]", lazily_done)
        self._jobs: list[_Job] = []
        self._wake = trio.Event()
        self._lazy_delay = math.inf
        self._closing = False
        self._limiter = trio.CapacityLimiter(1)

    async def write(self, op: Callable[[lmdb.Transaction], _T], committed: Callable[[_T], None] | None = None) -> _T:
        """Run ``op`` in the next transaction; returns its result when that is durable.

        ``op`` runs in a worker thread, may run twice (only one run is kept), and must not keep the transaction. Raises
        StorageFull or LocalError. Cancelled while waiting, the operation may or may not have been done.
        """
        if self._closing:
            raise LocalError("the index is closed")
        job = _Job(op, cast("Callable[[object], None] | None", committed))
        self._jobs.append(job)
        self._wake.set()
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return cast("_T", job.result)

    def nudge(self, delay: float) -> None:
        """There is lazy work: it goes with the next transaction, or alone after ``delay`` seconds."""
        if self._lazy_delay == math.inf:
            self._lazy_delay = delay
            self._wake.set()

    def close(self) -> None:
        """Take no more operations; ``run`` ends when the queue is empty."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """The task. Cancelled, it still finishes what was queued: each of these is short and someone may rely on it."""
        try:
            while not self._closing:
                await self._gather()
                await self._commit()
        finally:
            self._closing = True
            with trio.CancelScope(shield=True):
                while self._jobs:
                    await self._commit()
                await self._commit()

    async def _gather(self) -> None:
        while not self._jobs and not self._closing:
            with trio.move_on_after(self._lazy_delay) as waiting:
                await self._wake.wait()
            self._wake = trio.Event()
            if waiting.cancelled_caught:
                return

    async def _commit(self) -> None:
        batch, self._jobs = self._jobs[:MAX_BATCH], self._jobs[MAX_BATCH:]
        lazy = self._lazy()
        self._lazy_delay = math.inf
        if lazy is not None:
            batch.append(_Job(lazy, self._lazily_done))
        if not batch:
            return
        try:
            with trio.CancelScope(shield=True):  # the answer to what has been handed over is always told
                await trio.to_thread.run_sync(self._transact, batch, limiter=self._limiter)
        except BaseException:  # a mistake in an operation: whoever waits for this batch is told before the task ends
            for job in batch:
                job.error = LocalError("the index failed")
                job.done.set()
            raise
        for job in batch:
            if job.error is None and job.committed is not None:
                job.committed(job.result)
            job.done.set()

    def _transact(self, batch: list[_Job]) -> None:
        """In a worker thread. One operation that fails takes down the transaction: then each gets its own."""
        if self._try(batch) is None:
            return
        for job in batch:
            job.error = self._try([job])

    def _try(self, batch: list[_Job]) -> RegistryError | None:
        try:
            with self._environment.env.begin(write=True) as txn:
                for job in batch:
                    job.result = job.op(txn)
        except lmdb.Error as err:
            mark_damaged(self._environment.path, err)
            failure = index_error(err)
            failure.__cause__ = err
            return failure
        return None
