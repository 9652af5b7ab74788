"""A Postgres server for tests: one for a test process, an empty database for each test.

Takes the server's context manager as an argument, because this package knows nothing of the tracker.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import psycopg
import trio
from psycopg.conninfo import make_conninfo


@contextmanager
def running(server: Callable[[], AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """Run ``server`` on a trio loop of its own thread and give the DSN it yields; stop it at the end."""
    answers: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        end = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with server() as dsn:
            ends.append(lambda: token.run_sync_soon(end.set))
            answers.put(dsn)
            await end.wait()

    def thread() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - handed to the test, which raises it
            answers.put(error)

    worker = threading.Thread(target=thread, name="postgres-for-tests")
    worker.start()
    try:
        answer = answers.get(timeout=120)
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        for end in ends:
            end()
        worker.join(60)


@contextmanager
def fresh_database(dsn: str, name: str) -> Iterator[str]:
    """Make an empty database beside that of ``dsn``, give its DSN, and drop it with whoever is still connected."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Copying files is faster than logging them, and a test's database need not survive a crash.
        connection.execute(f'create database "{name}" strategy file_copy'.encode())
    try:
        yield make_conninfo(dsn, dbname=name)
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f'drop database "{name}" with (force)'.encode())
