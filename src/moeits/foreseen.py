"""What a run would take, foreseen: work that is counted, at speeds that were timed for a moment on this machine.

One idea: every verb counts its own work (bytes copied, tokens through a layer, pairs compared), a small piece of each
kind is done for real at two sizes, and the line through the two is followed to the size of the run. What cannot be
counted before it is done is said in a sentence, and no number is given for it.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from moeits.checkpoint.sources import Shard

_TRIED_BYTES = 32 << 20
_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """Some work that is done a number of times."""

    what: str
    times: float
    seconds_each: float | None
    """None where a moment does not tell."""

    def repeated(self, times: float) -> "Work":
        """The same work, so many times."""
        return replace(self, times=self.times * times)


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A run that was not made. Nothing of it was written."""

    source: str
    output: str | None
    reads_bytes: int | None = None
    """Of tensors, as often as they are read."""
    writes_bytes: int | None = None
    """Of the result, tensors alone where it has any."""
    disk_bytes: int
    """At most, of all that lies on the disk of the output at a time."""
    disk_free_bytes: int | None
    memory_bytes: int | None = None
    """About, of weights and of what grows with the tokens; the program itself is not counted."""
    work: tuple[Work, ...] = ()
    not_foreseen: tuple[str, ...] = ()
    """What is not in the numbers, a sentence each."""
    seconds: float | None = field(init=False, default=None)
    """Of all work that could be timed; None where none could."""

    def started(self) -> "Foreseen":
        """With what the program took to start and to check what was asked for, which it takes again."""
        start = Work(what="starting the program, and checking", times=1, seconds_each=seconds_of_checks())
        return replace(self, work=(start, *self.work))

    def __post_init__(self) -> None:
        timed = [each.times * each.seconds_each for each in self.work if each.seconds_each is not None]
        object.__setattr__(self, "seconds", sum(timed) if timed else None)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Seconds against a size."""

    fixed: float
    each: float

    def at(self, size: float) -> float:
        """Seconds at a size."""
        return self.fixed + self.each * size


_tried = [0.0, 0.0]
"""Seconds of the process that went into trying so far; and how deep one trying is in another."""


@contextmanager
def trying() -> Iterator[None]:
    """What happens in the block is done to see how long it takes; all else of a dry run is done again in the run."""
    begun = time.process_time()
    _tried[1] += 1
    try:
        yield
    finally:
        _tried[1] -= 1
        if not _tried[1]:
            _tried[0] += time.process_time() - begun


def seconds_of_checks() -> float:
    """What this process has taken to start, to import and to check what was asked for: a run takes it again."""
    return time.process_time() - _tried[0]


def timed(work: Callable[[], object]) -> float:
    """Seconds of some work on a machine that has nothing else to do.

    The smaller of the clock's and the process's own: others who are busy lengthen the one, more threads the other.
    """
    with trying():
        wall, own = time.perf_counter(), time.process_time()
        work()
        return min(time.perf_counter() - wall, time.process_time() - own)


def line_through(work: Callable[[int], object], sizes: tuple[int, int]) -> Line:
    """The line through some work at two sizes; each is done once before and the second time counts."""
    least, more = sizes
    with trying():
        work(least)
    seconds = [timed(lambda size=size: work(size)) for size in sizes]  # type: ignore[misc]
    if more <= least:
        return Line(fixed=0.0, each=seconds[0] / max(1, least))
    each = max(0.0, (seconds[1] - seconds[0]) / (more - least))
    return Line(fixed=max(0.0, seconds[0] - each * least), each=each)


def sizes_up_to(most: int, wanted: tuple[int, int]) -> tuple[int, int]:
    """Two sizes to try, neither larger than the whole."""
    return min(wanted[0], most), min(wanted[1], most)


def disk_of(output: str | Path | None) -> Path | None:
    """The folder that is there, on whose disk the output would be."""
    if output is None:
        return None
    return next(parent for parent in Path(output).absolute().parents if parent.exists())


def free_bytes(output: str | Path | None) -> int | None:
    """What is free on the disk where the output would be."""
    folder = disk_of(output)
    return None if folder is None else shutil.disk_usage(folder).free


def reading(nbytes: float, source: Shard, what: str = "reading tensors") -> Work:
    """Bytes read from a shard into memory."""
    seen = [0]

    def read() -> None:
        seen[0] = 0
        with source.open() as file:
            while seen[0] < _TRIED_BYTES and (some := file.read(4 << 20)):
                seen[0] += len(some)

    seconds = timed(read)
    return Work(what=f"{what}, bytes", times=nbytes, seconds_each=seconds / max(1, seen[0]))


def copying(nbytes: float, source: Shard, output: str | Path, what: str = "copying tensors") -> Work:
    """Bytes read from a shard and written to the disk of the output.

    Timed on a file without a name, which is gone when it is closed: no folder changes.
    """
    folder = disk_of(output)
    assert folder is not None
    try:
        seconds = _copied(source, folder)
    except OSError:
        return Work(what=f"{what}, bytes", times=nbytes, seconds_each=None)
    return Work(what=f"{what}, bytes", times=nbytes, seconds_each=seconds)


def _copied(source: Shard, folder: Path) -> float:
    """Seconds per byte."""
    with trying(), source.open() as original, tempfile.TemporaryFile(dir=folder) as copy:

        def work() -> None:
            original.seek(0)
            copy.seek(0)
            left = _TRIED_BYTES
            while left > 0 and (some := original.read(min(left, 4 << 20))):
                copy.write(some)
                left -= len(some)
            copy.flush()
            os.fsync(copy.fileno())

        def by_the_clock() -> float:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began

        work()
        # A disk is waited for, so the clock counts, and others who write lengthen some of the tries.
        return min(by_the_clock() for _ in range(_COPIES)) / max(1, copy.tell())
