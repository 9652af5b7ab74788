"""Run a daemon's main function until a signal, or until the process that started it is gone.

The parent is watched through a pipe whose other end only it holds: the read end reports its death however it died, on
every Unix. (PR_SET_PDEATHSIG is Linux only, and fires when the *thread* that forked ends.)
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import click
import trio

S = TypeVar("S", contravariant=True)
Ready = Callable[[dict[str, object]], None]


class App(Protocol[S]):
    """A composition root: serves until cancelled; calls ``ready`` once everything listens."""

    def __call__(self, settings: S, /, *, ready: Ready) -> Awaitable[None]: ...


def run(app: App[S], settings: S, *, as_json: bool, ready_fd: int | None, parent_fd: int | None) -> None:
    """Run ``app`` until SIGTERM, SIGINT or SIGHUP, or until ``parent_fd`` reads as closed; then it is cancelled.

    When it is ready one line of JSON goes to ``ready_fd``, and to standard output with ``as_json``.
    """

    def ready(facts: dict[str, object]) -> None:
        # What is loaded now stays for good: a hundred thousand objects, which each full collection would go through
        # while every request waits (70 ms measured).
        gc.collect()
        gc.freeze()
        # Young objects are looked at after so many, not after 700: tasks and scopes come and go by reference counts,
        # and in a swarm a twelfth of the processor's time went into looking at them.
        gc.set_threshold(20_000, 20, 20)
        line = json.dumps(facts)
        if ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # whoever asked has gone: parent_fd says so too
                os.write(ready_fd, line.encode() + b"\n")
            os.close(ready_fd)
        if as_json:
            click.echo(line)
        elif ready_fd is None:
            click.echo(f"ready: {facts.get('url')} (data in {facts.get('data_dir')}); Ctrl-C stops it", err=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
            if parent_fd is not None:
                nursery.start_soon(_cancel_when_closed, parent_fd, nursery.cancel_scope)
            await app(settings, ready=ready)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    # Once left, the receiver restores the default action: a second signal ends a shutdown that hangs.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        await signals.__anext__()
        scope.cancel()


async def _cancel_when_closed(descriptor: int, scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if not os.read(descriptor, 1):
            scope.cancel()
            return
