"""What ``up`` shows: a spinner and panels on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import click


class Screen(Protocol):
    def step(self, text: str) -> None:
        """What is being done now; replaces the step before."""

    def rest(self) -> None:
        """The last step is done, and nothing else is begun."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def panel(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Labelled lines; the label "" continues the one before."""

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first column is text and whose others are numbers."""


class PlainScreen:
    """Lines of text on standard output, or on standard error when the output is for a program."""

    def __init__(self, *, err: bool) -> None:
        self._err = err

    def step(self, text: str) -> None:
        self.note(f"{text} ...")

    def rest(self) -> None:
        """See Screen."""

    def note(self, text: str) -> None:
        click.echo(text, err=self._err)

    def panel(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        self.note(f"\n{title}")
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            self.note(f"  {label:<{width}}  {text}".rstrip())

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.note(f"\n{title}")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            cells = [
                f"{row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            self.note("  " + "  ".join(cells))


class RichScreen:
    """For a person at a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._status = self._console.status("")

    def start(self) -> None:
        self._status.start()

    def stop(self) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        self._status.update(f"{text} ...")
        self._status.start()

    def rest(self) -> None:
        self._status.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def panel(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for label, text in rows:
            grid.add_row(Text(label, style="bold"), Text(text, overflow="fold"))
        self._console.print(Panel(grid, title=title, title_align="left", expand=False))

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


@contextmanager
def open_screen(*, for_program: bool) -> Iterator[Screen]:
    """The screen that fits where the output goes."""
    if for_program or not sys.stdout.isatty():
        yield PlainScreen(err=for_program)
        return
    screen = RichScreen()
    screen.start()
    try:
        yield screen
    finally:
        screen.stop()
