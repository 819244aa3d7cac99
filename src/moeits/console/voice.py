"""How a command speaks: as usual, quietly, or of every piece of work; and what it adds to a log."""

import datetime
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from moeits.errors import OutputError, SettingError
from moeits.printable import printable
from moeits.progress import Note
from moeits.version import __version__


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What is wanted of one command."""

    quiet: bool = False
    """Nothing but errors."""
    verbose: bool = False
    """Every piece of work, when it begins and when it ends."""
    log: TextIO | None = None

    def note_down(self, kind: str, text: str) -> None:
        """A line of the log, if there is one: when, what kind of line, what."""
        if self.log is not None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.log.write(f"{now} {kind}: {printable(text)}\n")
            self.log.flush()


# What every log begins with, in so many characters. Nothing is added to any other file.
_BEGINNING, _OF_A_LOG = 60, re.compile(r"\S+ begins: moeits ")

USUAL = Voice()
_of_now = [USUAL]


def voice() -> Voice:
    """That of the command which runs."""
    return _of_now[-1]


@contextmanager
def speaking(*, quiet: bool = False, verbose: bool = False, log: Path | None = None) -> Iterator[None]:
    """While a command runs, it speaks as its flags say; the log tells how it began and ended, by an error too.

    Raises SettingError for what cannot be both, OutputError for a log that cannot be written, or another file.
    """
    if quiet and verbose:
        raise SettingError("--quiet and --verbose cannot be both: leave one out.")
    with _opened(log) as file:
        _of_now.append(Voice(quiet=quiet, verbose=verbose, log=file))
        try:
            with _from_begin_to_end():
                yield
        finally:  # whatever becomes of the log, such as a disk that is full
            _of_now.pop()


@contextmanager
def _from_begin_to_end() -> Iterator[None]:
    begun = time.monotonic()
    voice().note_down("begins", f"moeits {__version__}: {shlex.join(['moeits', *sys.argv[1:]])}")
    try:
        yield
    except BaseException as error:
        voice().note_down("error", f"{error}" or type(error).__name__)
        raise
    finally:
        voice().note_down("ends", f"after {time.monotonic() - begun:.1f} s")


@contextmanager
def _opened(log: Path | None) -> Iterator[TextIO | None]:
    if log is None:
        yield None
        return
    try:
        if log.is_file() and not _is_a_log(log):
            raise OutputError(f"{log} is a file, and not a log of moeits. Choose another --log.")
        file = log.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{log} cannot be written: {error.strerror or error}. Choose another --log.") from None
    with file:
        yield file


def _is_a_log(file: Path) -> bool:
    """Whether a file is empty, or begins as logs do."""
    with file.open(encoding="utf-8", errors="replace") as written:
        return not (first := written.read(_BEGINNING)) or bool(_OF_A_LOG.match(first))


class Course:
    """Tells when each piece of work began and how long it took, as `progress` is called."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        """With the kind of a line, and the line."""
        self._begun: dict[str, float] = {}
        self._ended: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        if isinstance(what, Note):
            self._tell("note", what)
            return
        if done < total:
            self._ended.discard(what)
        if what in self._ended:
            return
        if what not in self._begun:
            self._begun[what] = time.monotonic()
            self._tell("work", f"{what}, {total} to do")
        if done >= total:
            self._tell("done", f"{what}, {total} in {time.monotonic() - self._begun.pop(what):.1f} s")
            self._ended.add(what)
