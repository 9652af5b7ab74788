"""Postgres from trio: one thread hop for a whole transaction.

A transaction is a plain synchronous function ``fn(connection, *args)`` that runs SQL on psycopg and returns a value;
``Db`` runs it in a worker thread on a pooled connection. Measured against async drivers this is as fast for one
statement and faster for several, and the SQL stays readable and usable without trio.

Rules kept here:

* A lost connection is noticed by the call that meets it. The whole free list is dropped then, because a restarted
  server has killed every pooled connection and each would fail one more call.
* Opening a connection is tried again for ``patience`` seconds (the embedded server restarts in less); nothing has run
  yet, so this is always safe. What had begun is repeated only where ``retry=True`` says that it may, or where the
  server says that it was rolled back (serialisation failure, deadlock).
* A cancelled call asks the server to cancel the statement and waits for its thread. That connection is closed, not
  pooled: a cancel request that arrives late would hit its next user.
* Nothing depends on server-side session state (``SET LOCAL`` in transactions, no prepared statements unless asked for,
  no start-up options), so the pool works behind PgBouncer in transaction mode. A single statement, which has no
  transaction to set anything in, is timed here and cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

import psycopg
import trio
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from p2pregistry.errors import LocalError

Connection: TypeAlias = psycopg.Connection[TupleRow]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Between two tries to open a connection, seconds.
_CONNECT_PAUSE: Final = 0.05
#: Between two cancel requests for the same statement, seconds.
_CANCEL_PAUSE: Final = 0.1


class _Job:
    """One run of one function in a thread, and what the canceller needs to know of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.finished = threading.Event()
        self.connection: Connection | None = None
        #: A thread has it, or will have it in any case: only then there is an end to wait for.
        self.handed = False
        self.interrupted = False
        #: The function was entered, so it may have changed something.
        self.began = False
        #: The connection did not survive.
        self.lost = False
        #: Around a single statement. While a connection is being made its deadline does not count.
        self.patience = trio.CancelScope()

    def interrupt(self) -> None:
        """Cancel the running statement, and each one after it, until the thread is done (blocks)."""
        with self.lock:
            if self.finished.is_set():
                return
            self.interrupted = True
        while not self.finished.is_set():
            connection = self.connection
            if connection is not None and not connection.closed:
                try:
                    connection.cancel_safe(timeout=2.0)
                except psycopg.Error:
                    # The server cannot be reached; the statement will fail by itself.
                    self.finished.wait(_CANCEL_PAUSE)
            self.finished.wait(_CANCEL_PAUSE)


class _Handing:
    """A limiter that notes when a job is given to a thread: before that, cancelling it leaves nothing to end."""

    def __init__(self, limiter: trio.CapacityLimiter, job: _Job) -> None:
        self._limiter, self._job = limiter, job

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self._job.handed = True  # from here to the start of the thread nothing waits

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)


class Db:
    """A pool of connections to one database.

    ``size``: most connections (and threads) at once. ``statement_timeout``, ``connect_timeout``, ``patience``: seconds.
    ``prepare``: keep prepared statements, which saves most of the time of a short query (planning); only for a server
    that is reached directly, not through PgBouncer.

    Every error of the database becomes LocalError; a RegistryError raised by a transaction function passes through
    after the rollback.
    """

    def __init__(
        self,
        dsn: str,
        *,
        size: int = 8,
        statement_timeout: float = 15.0,
        connect_timeout: int = 5,
        patience: float = 2.0,
        application_name: str = "p2pregistry-tracker",
        prepare: bool = False,
    ) -> None:
        self._dsn = dsn
        self._size = size
        self._free: list[Connection] = []
        self._closed = False
        self._semaphore = trio.Semaphore(size)
        self._limiter = trio.CapacityLimiter(size)
        # Cancelling must not queue behind the very threads it is to end.
        self._cancel_limiter = trio.CapacityLimiter(size)
        self._timeout = int(statement_timeout * 1000)
        self._patience = patience
        # several addresses may be tried, each for so long
        self._connect_timeout = 4.0 * connect_timeout
        self._options: dict[str, Any] = {
            "application_name": application_name,
            "connect_timeout": connect_timeout,
            "prepare_threshold": 5 if prepare else None,
            # A server that vanished without a word is noticed in half a minute (TCP only).
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }

    async def tx(self, fn: Callable[[Connection, *Ts], T], *args: *Ts, retry: bool = False) -> T:
        """Run ``fn(connection, *args)`` in one transaction and return its value.

        Each statement may take ``statement_timeout``.

        ``retry``: the function may run twice with the effect of once, so it is repeated if the connection was lost.
        Raises LocalError; whatever ``fn`` raises rolls back and passes through. When cancelled, whether the transaction
        was committed is unknown.
        """
        return await self._call(True, retry, fn, args)

    async def query(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run ``fn``, which reads with a single statement: no transaction block, so one round trip. Repeated if the
        connection was lost. Raises LocalError, also where it takes longer than ``statement_timeout``."""
        return await self._call(False, True, fn, args)

    @property
    def dsn(self) -> str:
        """As it was given; it may hold a password."""
        return self._dsn

    def figures(self) -> tuple[int, int]:
        """Connections in use now, and the most there may be."""
        return self._limiter.borrowed_tokens, self._size

    def close(self) -> None:
        """Close the idle connections; busy ones are closed when their call ends."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        while self._free:
            self._free.pop().close()

    async def _call(self, block: bool, retry: bool, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        again = True
        async with self._semaphore:
            give_up_at = trio.current_time() + self._patience
            while True:
                if self._closed:
                    raise LocalError("the database pool is closed")
                job = _Job()
                try:
                    if block:
                        return await self._hop(job, block, fn, args)
                    with job.patience:
                        job.patience.deadline = trio.current_time() + self._timeout / 1000
                        return await self._hop(job, block, fn, args)
                    raise LocalError("the database failed: one statement took longer than the statement timeout")
                except psycopg.Error as error:
                    if job.lost:
                        self._drop()
                    if not job.began and isinstance(error, psycopg.OperationalError):
                        if trio.current_time() < give_up_at:
                            await trio.sleep(_CONNECT_PAUSE)
                            continue
                    elif again and ((job.lost and retry) or isinstance(error, DeadlockDetected | SerializationFailure)):
                        again = False
                        continue
                    raise LocalError(f"the database failed: {_describe(error)}") from error

    async def _hop(self, job: _Job, block: bool, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        handing: Any = _Handing(self._limiter, job)
        try:
            return await trio.to_thread.run_sync(
                lambda: self._run(job, block, fn, args), limiter=handing, abandon_on_cancel=True
            )
        except trio.Cancelled:
            if not job.handed:
                raise
            # Not really abandoned: nothing goes on behind the caller's back.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(job.interrupt, limiter=self._cancel_limiter)
            raise

    def _allow(self, job: _Job, more: float) -> None:
        job.patience.deadline = trio.current_time() + self._timeout / 1000 + more

    def _connect(self) -> Connection:
        # nothing is set here: behind PgBouncer it would end up on a connection of somebody else
        return psycopg.connect(self._dsn, autocommit=True, **self._options)

    def _run(self, job: _Job, block: bool, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        try:
            # list.pop and append are atomic under the GIL; the semaphore bounds how many connections there are.
            try:
                connection = self._free.pop()
            except IndexError:
                if not block:
                    trio.from_thread.run_sync(self._allow, job, self._connect_timeout)
                connection = job.connection = self._connect()
                if not block:
                    trio.from_thread.run_sync(self._allow, job, 0.0)
            job.connection = connection
            if block:
                return self._in_block(job, connection, fn, args)
            job.began = True
            return fn(connection, *args)
        finally:
            self._finish(job)

    def _in_block(self, job: _Job, connection: Connection, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        connection.execute(f"begin; set local statement_timeout = {self._timeout}".encode())
        # Only now: a pooled connection that turns out to be dead has done no harm yet.
        job.began = True
        try:
            value = fn(connection, *args)
            done = connection.execute("commit").statusmessage
        except BaseException:
            if not connection.closed and not connection.broken:
                try:
                    connection.execute("rollback")
                except psycopg.Error:
                    # The first error is the one to report; without a rollback the connection is of no more use.
                    connection.close()
            raise
        if done != "COMMIT":
            raise LocalError("the transaction was rolled back: an error inside it was ignored")
        return value

    def _finish(self, job: _Job) -> None:
        connection = job.connection
        if connection is None:
            job.lost = True
        else:
            job.lost = connection.closed or connection.broken
        with job.lock:
            if connection is not None:
                idle = not job.lost and connection.info.transaction_status == TransactionStatus.IDLE
                if idle and not job.interrupted and not self._closed:
                    self._free.append(connection)
                else:
                    connection.close()
            job.finished.set()


def _describe(error: psycopg.Error) -> str:
    """One line without row values: the server's primary message and SQLSTATE, or what libpq said."""
    primary = error.diag.message_primary
    if primary:
        return f"{primary} ({error.sqlstate})"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
