"""What a person sees: progress, tables and errors, by rich. Nothing is decided here.

This module holds what all commands share; how a result is shown is in one file per kind of result beside it.
"""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from moeits.console.voice import Course, speaking, voice
from moeits.printable import printable
from moeits.progress import Note, Progress

__all__ = ["ReaderGone", "error", "open_streams", "out", "print_json", "progress", "speaking", "table", "written"]


class ReaderGone(Exception):
    """Whoever read the output has read enough, as `head` does. Not an OSError, for which typer exits with 1."""


class _Screen(Console):
    """Standard output or standard error, of whoever holds it now."""

    def on_broken_pipe(self) -> NoReturn:
        raise ReaderGone


def out(text: str) -> None:
    """One line on standard output, unless nothing is wanted."""
    if text:
        voice().note_down("says", text)
    if voice().quiet:
        return
    _Screen(soft_wrap=True, highlight=False).print(Text(printable(text)))


# Longer sentences quote what is too long to be read.
_LONGEST_SENTENCE = 1200


def error(message: str) -> None:
    """One line on standard error; what a terminal would obey stands as `\\x1b`, and an endless name is cut."""
    sentence = printable(message, _LONGEST_SENTENCE)
    _Screen(stderr=True, soft_wrap=True, highlight=False).print(Text(f"moeits: {sentence}"))


@contextmanager
def open_streams() -> Iterator[None]:
    """Standard output and standard error that take any text, whatever their encoding, and are there when closed.

    A command whose output was closed (`>&-`) does its work all the same. What is written is flushed at the end, so that
    a reader who has gone is heard of here.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it lives as long as the process
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    yield
    with _reader_may_go():
        sys.stdout.flush()


@contextmanager
def _reader_may_go() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar per kind of work, with the time left, on standard error; no bars where that is not a terminal.

    Notes stand there too, with `--verbose` every piece of work, and all of it in the log.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen, spoken = _Screen(stderr=True), voice()

    def tell(kind: str, text: str) -> None:
        spoken.note_down(kind, text)
        if spoken.verbose or (kind == "note" and not spoken.quiet):
            sentence = printable(text, _LONGEST_SENTENCE)
            screen.print(Text(f"{kind}: {sentence}"), soft_wrap=True, highlight=False)

    course = Course(tell)
    with Bars(*columns, console=screen, transient=True, disable=spoken.quiet or not screen.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            course(what, done, total)
            if isinstance(what, Note):
                return
            if what not in tasks:
                tasks[what] = bars.add_task(escape(printable(what, _LONGEST_NAME)), total=total)
            bars.update(tasks[what], completed=done)

        yield report


def print_json(result: Any) -> None:
    """A result for machines, on standard output."""
    facts = result.facts() if hasattr(result, "facts") else dataclasses.asdict(result)
    with _reader_may_go():
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")


_LONGEST_NAME = 80


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table of right-aligned columns on standard output, without frames.

    No cell is cut or broken: on a narrow terminal lines go on below, for `0...` is not a number.
    """
    if voice().quiet:
        return
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(Text(printable(column)), justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    screen = _Screen(soft_wrap=False, highlight=False)
    terminal, screen.width = screen.width, _WIDEST
    screen.width = max(terminal, Measurement.get(screen, screen.options, drawn).maximum)
    screen.print(drawn, crop=False)


# More columns than any table has.
_WIDEST = 10_000_000


def written(arguments: dict[str, Any]) -> None:
    """Where the result went."""
    out(f"written: {arguments['output']}" if arguments.get("output") else "nothing written (no --output)")
