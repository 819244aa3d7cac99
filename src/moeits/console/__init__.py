"""What a person sees: progress, tables and errors, by rich. Nothing is decided here.

This module holds what all commands share; how a result is shown stands in one file per kind of result beside it.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from moeits.progress import Progress


def out(text: str) -> None:
    """One line on standard output."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def error(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"moeits: {message}", markup=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar per kind of work, with the time left, on standard error; quiet where that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Bars(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def print_json(result: Any) -> None:
    """A result for machines, on standard output."""
    facts = result.facts() if hasattr(result, "facts") else dataclasses.asdict(result)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


# Columns of a table in a pipe or a file. rich would take 80.
_WIDEST = 10_000


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table of right-aligned columns on standard output, without frames; nothing is cut where nobody looks."""
    drawn = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for column in drawn.columns:
        column.justify = "right"
    for row in rows:
        drawn.add_row(*row)
    screen = Console(soft_wrap=False)
    if not screen.is_terminal:
        screen.width = _WIDEST
    screen.print(drawn)


def written(arguments: dict[str, Any]) -> None:
    """Where the result went."""
    out(f"written: {arguments['output']}" if arguments.get("output") else "nothing written (no --output)")
